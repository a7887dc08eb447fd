"""WassersteinFlow: the infinite-width limit of a two-layer network as the flow of a particle measure (equations 6 to 9 and 69)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield import checks, reductions, tiles
from meanfield.kernels import TwoTimeKernel, tangent_kernel
from meanfield.measure import ParticleMeasure
from meanfield.problem import Problem
from meanfield.solution import Solution, Status
from solvers.cost import Estimate, flow_cost
from solvers.evolve import (
    State,
    Trajectory,
    conclude,
    earlier,
    evolve,
    kept_momentum,
    settings,
    snapshot_steps,
    tolerance,
)
from solvers.initial_outputs import initial_outputs
from solvers.initial_particles import Cloud, balance, random_part
from solvers.sharding import Shard, current

Initial = Literal["sobol", "iid", "gauss_hermite"]


@dataclass(frozen=True)
class WassersteinFlow:
    """Solves two-layer problems in the mean-field scalings: `WassersteinFlow(particles=2**14)(problem) -> Solution`.

    initial: "sobol" (scrambled quasi-Monte-Carlo, error about 1/N at few samples), "iid" (equal in law to a width-N network),
    "gauss_hermite" (quadrature, up to about four dimensions; `particles` is then an upper bound), or a ParticleMeasure.
    balanced: shift the readouts a, by as little as possible, so that f(0) = 0 exactly, as in the limit ("sobol" only; equation 12).
    f0: the frozen outputs of ic_mean_field at training and test samples (P + P_test, C), or a solution (of a network, say) whose first
    outputs are taken; None draws them from their Gaussian process by `seed` (equation 69).
    snapshots: steps at which kernels and particles are recorded; -1 is the last. Memory O(N + P) per snapshot, plus the kernels.
    rtol: tolerance of the adaptive integrator (gradient_flow only), see evolve.tolerance. ValueError for problems that it cannot solve.
    """

    particles: int = 2**14
    seed: int = 0
    initial: Initial | ParticleMeasure = "sobol"
    balanced: bool = True
    f0: Tensor | Solution | None = None
    engine: reductions.Engine = "auto"
    dtype: str = "float64"
    device: str = "cpu"
    snapshots: Sequence[int] = (0, -1)
    rtol: float | None = None
    progress: bool | None = None
    raise_on_failure: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "particles", checks.integer("particles", self.particles, 1))
        object.__setattr__(self, "dtype", checks.dtype(self.dtype))
        object.__setattr__(self, "device", checks.device(self.device))
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        checks.integer("seed", self.seed, 0)
        if not isinstance(self.initial, ParticleMeasure):
            checks.lookup("initial measure", self.initial, dict.fromkeys(get_args(Initial)))
        checks.lookup("engine", self.engine, dict.fromkeys(get_args(reductions.Engine)))
        if self.rtol is not None:
            checks.positive("rtol", self.rtol)

    def __call__(self, problem: Problem) -> Solution:
        self.check(problem)
        cloud, shard = self._initial_part(problem)
        b = cloud.a.new_zeros(problem.data.outputs)
        return self._run(problem, cloud.m, (cloud.a, cloud.w, b), self._frozen(problem, cloud.a), None, shard)

    def estimate(self, problem: Problem) -> Estimate:
        """Expected time and memory of a run, from rates that this machine shows."""
        return flow_cost(self, problem)

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps; equal to an uninterrupted run. Each process needs it whole."""
        problem = earlier(self, solution, steps)
        kind = {"dtype": checks.DTYPES[self.dtype], "device": self.device}
        shard = Shard(len(solution.state["m"]), current())
        a, w, m = (shard.take(solution.state[key]).to(**kind, copy=True) for key in ("a", "w", "m"))
        b = solution.state["b"].to(**kind, copy=True)
        frozen = solution.state["frozen"].to(a) if "frozen" in solution.state else None
        return self._run(problem, m, (a, w, b), frozen, solution, shard)

    def check(self, problem: Problem) -> None:
        """ValueError, before any work, for a problem without such a limit."""
        if problem.network.depth != 1:
            raise ValueError(
                f"WassersteinFlow solves networks of depth 1: received depth {problem.network.depth}; CausalDMFT takes any depth"
            )
        problem.scaling.trained.measure_limit()
        if self.f0 is not None and problem.scaling.frozen == "none":
            raise ValueError(
                f"f0 was given, but the scaling {problem.scaling.name!r} has no frozen part: leave it out, or take ic_mean_field"
            )
        snapshot_steps(self.snapshots, problem.training.steps)
        inputs, outputs = problem.network.inputs(problem.data.x).shape[1], problem.data.outputs
        if isinstance(self.initial, ParticleMeasure):
            received = (self.initial.a.shape[1], self.initial.w.shape[1])
            if received != (outputs, inputs):
                raise ValueError(
                    f"the initial measure must have (outputs, inputs) = {(outputs, inputs)}: received {received}"
                )
            return
        # state, velocity, snapshots and the draw's copy
        copies = 3 + len(self.snapshots)
        bytes_needed = (
            copies * self.particles / current().count * (inputs + outputs + 1) * (4 if self.dtype == "float32" else 8)
        )
        checks.memory("the particle flow", bytes_needed, "take fewer particles, dtype='float32', or fewer snapshots")

    def initial_measure(self, problem: Problem) -> ParticleMeasure:
        """The measure at time 0, on the solver's device."""
        x, important = _directions(problem)
        sizes, outputs = x.shape[1], problem.data.outputs
        kind, device = checks.DTYPES[self.dtype], torch.device(self.device)
        if isinstance(self.initial, ParticleMeasure):
            copies = (t.to(device=device, dtype=kind, copy=True) for t in self.initial.tensors)
            return ParticleMeasure(*copies)
        if self.initial == "iid":
            return ParticleMeasure.iid(self.particles, sizes, outputs, self.seed, self.dtype).to(device)
        if self.initial == "sobol":
            cloud = ParticleMeasure.sobol(self.particles, sizes, outputs, self.seed, self.dtype, important).to(device)
            if self.balanced:
                balance(cloud, x.to(device, kind), problem)
            return cloud
        dims = outputs + int(torch.linalg.matrix_rank(important))
        nodes = max(1, int(self.particles ** (1 / dims) + 1e-9))
        return ParticleMeasure.gauss_hermite(nodes, sizes, outputs, self.dtype, important).to(device)

    def _initial_part(self, problem: Problem) -> tuple[ParticleMeasure | Cloud, Shard]:
        """The measure at time 0, or of it what this process holds, with the same numbers"""
        ranks = current()
        if ranks.count == 1 or isinstance(self.initial, ParticleMeasure) or self.initial == "gauss_hermite":
            whole = self.initial_measure(problem)
            shard = Shard(len(whole), ranks)
            return (whole if shard.whole else Cloud(*map(shard.take, whole.tensors))), shard
        x, important = _directions(problem)
        shard, sizes = Shard(self.particles, ranks), (x.shape[1], problem.data.outputs)
        part = random_part(self.initial, self.particles, sizes, self.seed, self.dtype, important, shard)
        cloud = Cloud(*(tensor.to(self.device) for tensor in part.tensors))
        if self.initial == "sobol" and self.balanced:
            balance(cloud, x.to(cloud.w), problem, shard)
        return cloud, shard

    def _frozen(self, problem: Problem, like: Tensor) -> Tensor | None:
        """(P + P_test, C) the part of the output that is not trained"""
        return None if problem.scaling.frozen == "none" else initial_outputs(problem, self.f0, self.seed).to(like)

    def _run(
        self,
        problem: Problem,
        m: Tensor,
        state: State,
        frozen: Tensor | None,
        previous: Solution | None,
        shard: Shard,
    ) -> Solution:
        method = MeasureFlow(problem, m, self.engine, problem.scaling.trained.measure_limit(), frozen, shard)
        steps = snapshot_steps(self.snapshots, problem.training.steps)
        run = evolve(
            method,
            state,
            problem.training,
            first=previous.steps if previous else 0,
            snapshots=steps,
            rtol=tolerance(self.rtol, problem.network.nonlinearity, self.dtype),
            progress=self.progress,
            label=f"flow of {shard.size} particles",
            momentum=tuple(map(method.part, kept_momentum(previous, ("a", "w", "b"), m))),
        )
        earlier_particles = previous.particles if previous else {}
        particles = {
            step: whole if shard.whole else Cloud(*map(shard.take, whole.tensors))
            for step, whole in earlier_particles.items()
            if step in steps
        }
        solution = self._solution(problem, method, run, particles | run.captured, previous)
        conclude([solution], self.raise_on_failure)
        return solution

    def _solution(
        self,
        problem: Problem,
        method: MeasureFlow,
        run: Trajectory,
        particles: dict[int, ParticleMeasure | Cloud],
        previous: Solution | None,
    ) -> Solution:
        shard = method.shard
        kernels, tangent = measure_kernels(problem, particles, problem.scaling.trained.measure_limit(), shard)
        f, f_test = run.history(previous)
        state, first = {} if run.status is Status.NON_FINITE else method.whole_state(run), shard.ranks.first
        clouds = {
            step: measure.gathered(shard) if isinstance(measure, Cloud) else measure
            for step, measure in particles.items()
        }
        return Solution(
            problem=problem,
            solver=settings(self),
            f=f,
            f_test=f_test,
            state=state if first else {},
            status=run.status,
            snapshots=tuple(sorted(particles)),
            kernels=kernels,
            tangent_kernels=tangent,
            particles={step: measure.to("cpu") for step, measure in clouds.items() if measure is not None},
            stats=run.stats | {"engine": method.chosen, "particles": shard.size} | shard.stats(),
        )


class MeasureFlow:
    """Outputs and velocity of the measure; the state is (a, w, b), b the readout bias in units of the output.

    limit: (Gamma, kappa_a, kappa_w) of equation 7. frozen (P + P_test, C): added to the outputs (equation 69). shard: says of which
    particles a, w and m are, where processes share them; None: of all.
    """

    def __init__(
        self,
        problem: Problem,
        m: Tensor,
        engine: reductions.Engine,
        limit: tuple[float, float, float],
        frozen: Tensor | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.shard = shard or Shard(len(m))
        self.problem, self.m, self.activation = problem, m, problem.network.nonlinearity
        self.engine: reductions.Engine = engine
        self.x = all_inputs(problem, m.dtype, m.device)
        self.y = problem.data.y.to(m)
        self.train, self.frozen = len(self.y), frozen
        self.gain, self.rate_a, self.rate_w = limit
        self.std, self.bias = problem.network.weight_std, problem.network.bias_std
        one_pass = self.x.shape[1] >= tiles.ONE_PASS and self.chosen == "chunked"  # f and velocity share products
        self.fused = one_pass and self.shard.whole and problem.training.batch_size is None
        self.ahead: tuple[Tensor, Tensor, Tensor] | None = None  # f and the particles' velocity that belongs to it

    @property
    def chosen(self) -> str:
        """The engine that is used"""
        if self.engine != "auto":
            return self.engine
        return reductions.choose(len(self.m), len(self.x), self.x.shape[1], self.m.device, self.activation)

    def outputs(self, state: State) -> tuple[Tensor, Tensor | None]:
        a, w, b = state

        def output(f: Tensor, rows: slice) -> Tensor:
            f = self.gain * self.std * f + b
            return f if self.frozen is None else f + self.frozen[rows]

        def delta(f: Tensor, rows: slice) -> Tensor:
            return self.problem.loss_function.delta(output(f, rows), self.y[rows])

        everything = slice(0, len(self.x))
        if self.fused:
            f, va, vw = reductions.step(a, w, self.m, self.x, delta, self.activation, self.engine, self.train)
            f = output(f, everything)
            self.ahead = f[: self.train], va, vw
            return self.ahead[0], f[self.train :] if len(f) > self.train else None
        f = output(self.shard.sum(reductions.outputs(a, w, self.m, self.x, self.activation, self.engine)), everything)
        return f[: self.train], f[self.train :] if len(f) > self.train else None

    def velocity(self, state: State, f: Tensor, weights: Tensor | None) -> State:
        a, w, _ = state
        delta = self.problem.loss_function.delta(f, self.y)  # (P, C)
        if weights is not None:
            delta = delta * weights[:, None]
        if self.ahead is not None and self.ahead[0] is f and weights is None:
            va, vw = self.ahead[1:]
        else:
            va, vw = reductions.velocity(a, w, self.x[: self.train], delta, self.activation, self.engine)
        self.ahead = None
        vb = self.gain * self.rate_a * self.bias**2 * delta.mean(0)
        return va.mul(self.rate_a * self.std), vw.mul(self.rate_w * self.std), vb

    def capture(self, state: State) -> ParticleMeasure | Cloud:
        return (ParticleMeasure if self.shard.whole else Cloud)(state[0].clone(), state[1].clone(), self.m)

    def agree(self, flag: bool) -> bool:
        """Whether the flag is set on any process that shares the particles"""
        return self.shard.ranks.any(flag)

    @property
    def norm(self) -> Callable[[State], Tensor] | None:
        """The integrator's norm, over the particles of all processes: the largest root mean square of a, w, b; None for its own"""
        return None if self.shard.whole else self._norm

    def _norm(self, state: State) -> Tensor:
        a, w, b = state
        sums = self.shard.sum(torch.stack([a.square().sum(dtype=torch.float64), w.square().sum(dtype=torch.float64)]))
        means = [sums[0] / (self.shard.size * a.shape[1]), sums[1] / (self.shard.size * w.shape[1]), b.square().mean()]
        return torch.stack([mean.to(a) for mean in means]).max().sqrt()

    def part(self, tensor: Tensor) -> Tensor:
        """Of a tensor over all particles what this process holds; a bias as it is"""
        return tensor if tensor.ndim == 1 else self.shard.take(tensor)

    def whole_state(self, run: Trajectory) -> dict[str, Tensor]:
        """What a run goes on from, on the CPU; the particles are gathered on the first process"""
        named = zip(("a", "w", "b", "m"), (*run.state, self.m), strict=True)
        momentum = zip(("momentum_a", "momentum_w", "momentum_b"), run.momentum, strict=False)
        kept = {k: v.cpu() if k.endswith("b") else self.shard.gather(v) for k, v in (*named, *momentum)}
        return kept | ({} if self.frozen is None else {"frozen": self.frozen.cpu()})


def all_inputs(problem: Problem, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """(P + P_test, D) what the first layer's weights multiply, training samples first."""
    data = problem.data
    x = data.x if data.x_test is None else torch.cat([data.x, data.x_test])
    return problem.network.inputs(x).to(dtype=dtype, device=device)


def _directions(problem: Problem) -> tuple[Tensor, Tensor]:
    """All inputs (P + P_test, D), and the rows whose span matters: test directions after all training directions"""
    x, train = all_inputs(problem, torch.float64, "cpu"), len(problem.data.x)
    return x, torch.cat([x[:train], 1e-3 * x[train:]])


def measure_kernels(
    problem: Problem,
    particles: Mapping[int, ParticleMeasure | Cloud],
    limit: tuple[float, float, float],
    shard: Shard | None = None,
) -> tuple[dict[str, TwoTimeKernel], Tensor | None]:
    """Phi1, G1 at every pair of snapshots and the tangent kernel at each (equations 10 and 11); limit: those of equation 7.

    shard: says of which particles these are, where processes share them.
    """
    if not particles:
        return {}, None
    steps, network, first = sorted(particles), problem.network, next(iter(particles.values()))
    x, act, c = network.inputs(problem.data.x).to(first.w), network.nonlinearity, problem.data.outputs
    points = [torch.cat(particles[step].tensors[:2], 1) for step in steps]  # (N, C + D) each

    def gradients(q: Tensor) -> Tensor:
        slope = network.weight_std * act.dphi(q[:, c:] @ x.T)  # (n, P)
        return (slope[:, :, None] * q[:, None, :c]).flatten(1)  # (n, P C)

    total = shard.total if shard else None
    phi = TwoTimeKernel.from_fields(steps, first.m, points, len(x), lambda q: act.phi(q[:, c:] @ x.T), total)
    g = TwoTimeKernel.from_fields(steps, first.m, points, len(x) * c, gradients, total)
    scaled = problem.data.x.to(phi.factor) / problem.data.inputs**0.5
    k_x = scaled @ scaled.T
    gain, rate_a, rate_w = limit
    tangent = torch.stack(
        [
            gain * rate_a * tangent_kernel([(phi.at(t), None)], c, network.weight_std, network.bias_std)
            + gain * rate_w * tangent_kernel([(k_x, g.at(t))], c, network.weight_std, network.bias_std)
            for t in steps
        ]
    )
    return {"Phi1": phi, "G1": g}, tangent
