"""WassersteinFlow: the infinite-width limit of a two-layer network as the flow of a particle measure (equations 6 to 9 and 69)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.measures import reductions, tiles
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from meanfield.problem.two_layers import two_layers
from meanfield.solution.measure_kernels import MeasureKernels
from meanfield.solution.solution import Solution
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.failures import conclude
from solvers.running.gradient_flow import EVALUATIONS, Flow, tolerance
from solvers.running.inputs import Inputs
from solvers.running.integrator import State
from solvers.running.memory import INTEGRATOR, Parts, bound, float32_of, kept
from solvers.running.rehearsal import SECONDS, expected
from solvers.running.resuming import earlier, kept_momentum
from solvers.running.rounding import must_resolve
from solvers.running.sharding import Shard, current
from solvers.running.solver import Estimate, settings
from solvers.running.trajectory import Trajectory, snapshot_steps
from solvers.two_layer.initial_outputs import initial_outputs
from solvers.two_layer.initial_particles import PER_POINT, Cloud, balance, random_part
from solvers.two_layer.mass_flow import MassFlow
from solvers.two_layer.measure_flow import MeasureFlow
from solvers.two_layer.optimal_readout import OptimalReadout
from solvers.two_layer.refusals import (
    must_have_a_penalty,
    must_let_masses_move,
    must_let_readouts_settle,
    must_suit_layers,
)

Initial = Literal["sobol", "iid", "gauss_hermite"]


@checked
@dataclass(frozen=True)
class WassersteinFlow:
    """Solves two-layer problems in the mean-field scalings: `WassersteinFlow(particles=2**14)(problem) -> Solution`.

    ValueError for problems that it cannot solve.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=1), mf.mean_field(1.0), mf.Training(0.2, 10))
        >>> limit = WassersteinFlow(particles=256)(problem)
        >>> limit.f.shape, limit.status.name
        (torch.Size([11, 4, 1]), 'FINISHED')
    """

    particles: int = 2**14
    """Points of the measure; a power of 2 is best"""
    seed: int = 0
    """Of all random draws"""
    initial: Initial | ParticleMeasure = "sobol"
    """sobol: scrambled quasi-Monte-Carlo, error about 1/N at few samples; iid: equal in law to a width-N network; gauss_hermite:
    quadrature, up to about four dimensions, with at most so many particles"""
    balanced: bool = True
    """Shift sobol's readouts a, by as little as possible, so that f(0) = 0 exactly, as in the limit (equation 12). Fewer than four
    particles a point are left as drawn: they would lose most of their readouts"""
    f0: Tensor | Solution | None = None
    """Frozen outputs of ic_mean_field (Q, C) at training and test samples, or a solution (of a network, say) whose first outputs are
    taken; drawn from their Gaussian process by `seed` if left out (equation 69)"""
    engine: reductions.Engine = "auto"
    """How sums over particles are taken; the numbers are the same"""
    dtype: str = "float64"
    """Precision of all numbers"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    snapshots: Sequence[int] = (0, -1)
    """Steps at which particles are recorded, memory O(N + P) each; kernels are made of them when they are looked at. -1 is the last"""
    rtol: float | None = None
    """Relative tolerance of gradient flow; 1e-7 if left out, 1e-5 in float32, 1e-4 for activations with kinks"""
    evaluations: int = EVALUATIONS
    """The most evaluations of the velocity in a step of gradient flow; one that needs more ends the run"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""
    mass_rate: float = 0.0
    """alpha: masses of particles grow where they lower the loss, at this rate in units of training time (Wasserstein-Fisher-Rao)"""
    transport: bool = True
    """Whether particles move; without it masses alone do (Fisher-Rao)"""
    readout_ridge: float | None = None
    """s: the readout is at the optimum of ridge regression at each step, for the squared loss, as if it were infinitely fast, and hidden
    weights move along the gradient there (equation 122)"""
    births: float | None = None
    """Births and deaths where masses move: particles lighter than a tenth of the mean give their mass to one of them, and the heaviest are
    halved into their places, the halves apart by a normal distance of this size, 0 for none (equation 126)"""
    variation: float = 0.0
    """s, a penalty on the total variation <|a|> of the signed measure beside the loss, which leaves few particles alive (equation 127)"""

    def __post_init__(self) -> None:
        checks.normalise(self, particles=1, evaluations=1)
        object.__setattr__(self, "mass_rate", checks.positive("mass_rate", self.mass_rate, zero=True))
        if self.readout_ridge is not None:
            object.__setattr__(self, "readout_ridge", checks.positive("readout_ridge", self.readout_ridge))
        object.__setattr__(self, "variation", checks.positive("variation", self.variation, zero=True))
        if self.births is not None:
            object.__setattr__(self, "births", checks.positive("births", self.births, zero=True))
        if not self.transport and not self.mass_rate:
            raise ValueError(
                "transport=False and mass_rate=0 let nothing move: give mass_rate=1.0, or leave transport as it is"
            )
        if not isinstance(self.initial, ParticleMeasure):
            checks.lookup("initial measure", self.initial, dict.fromkeys(get_args(Initial)))
        checks.lookup("engine", self.engine, dict.fromkeys(get_args(reductions.Engine)))

    def __call__(self, problem: Problem) -> Solution:
        self.check(problem)
        cloud, shard = self._initial_part(problem)
        b = cloud.a.new_zeros(problem.data.outputs)
        masses = (cloud.m.log(),) if self.mass_rate else ()
        return self._run(problem, cloud.m, (cloud.a, cloud.w, b, *masses), self._frozen(problem, cloud.a), None, shard)

    def estimate(self, problem: Problem, seconds: float = SECONDS) -> Estimate:
        """Time and memory of a run, from its beginning, which is solved for so many `seconds`. ValueError or MemoryError as of the run."""
        self.check(problem)
        found, how, _ = expected(self, problem, seconds)
        return Estimate(found, bound(self.parts(problem)), how)

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps: the bits of an uninterrupted run on as many threads of the same device.

        Each process needs it whole.
        """
        problem = earlier(self, solution, steps)
        kind = {"dtype": checks.DTYPES[self.dtype], "device": self.device}
        shard = Shard(len(solution.state["m"]), current())
        a, w, m = (shard.take(solution.state[key]).to(**kind, copy=True) for key in ("a", "w", "m"))
        b = solution.state["b"].to(**kind, copy=True)
        frozen = solution.state["frozen"].to(a) if "frozen" in solution.state else None
        masses = (solution.state["log_m"].to(**kind, copy=True),) if self.mass_rate else ()
        return self._run(problem, m, (a, w, b, *masses), frozen, solution, shard)

    def check(self, problem: Problem) -> None:
        """ValueError, before any work, for a problem without such a limit."""
        network = problem.layered or problem.perceptron_for("WassersteinFlow")
        if network.depth != 1:
            raise ValueError(
                f"WassersteinFlow solves networks of depth 1: received depth {network.depth}; CausalDMFT takes any depth"
            )
        problem.in_plane.trained.measure_limit()
        if problem.trial is not None:
            must_suit_layers(problem, self.initial)
        if self.f0 is not None and problem.in_plane.frozen == "none":
            raise ValueError(
                f"f0 was given, but the scaling {problem.in_plane.name!r} has no frozen part: leave it out, or take ic_mean_field"
            )
        if self.mass_rate or self.births is not None:
            must_let_masses_move(problem, self.mass_rate, self.births)
        if self.variation:
            must_have_a_penalty(problem, self.variation, self.readout_ridge)
        if self.readout_ridge is not None:
            must_let_readouts_settle(problem, self.readout_ridge, self.mass_rate)
        self.check_particles(problem)

    def check_particles(self, problem: Problem) -> None:
        """ValueError or MemoryError, before any work, for particles or snapshots that do not fit the problem, whatever its scaling."""
        must_resolve(problem, checks.DTYPES[self.dtype])
        snapshot_steps(self.snapshots, problem.training)
        inputs, outputs = problem.data.inputs + bool(two_layers(problem).inner.bias_std), problem.data.outputs
        if isinstance(self.initial, ParticleMeasure):
            for tensor in self.initial.tensors:
                array_input.untracked("the initial measure", tensor)
            received = (self.initial.a.shape[1], self.initial.w.shape[1])
            if received != (outputs, inputs):
                raise ValueError(
                    f"the initial measure must have (outputs, inputs) = {(outputs, inputs)}: received {received}"
                )
        if self.initial == "gauss_hermite":
            self._nodes(problem)
        checks.memory_in_all(self.parts(problem), checks.free_memory(self.device))

    def parts(self, problem: Problem) -> Parts:
        """What a run holds in memory, in each process that shares the particles"""
        given = isinstance(self.initial, ParticleMeasure)
        particles = (len(self.initial) if given else self.particles) / current().count
        size = checks.DTYPES[self.dtype].itemsize
        own = self._numbers(problem, particles) * size
        remedy = f"take fewer particles, {float32_of(size)}or fewer snapshots"
        parts = {f"the flow of {self.particles} particles": (own, remedy)}
        parts |= kept(problem, 0, size)  # kernels are made when they are looked at
        points, samples = problem.data.points, problem.data.samples
        if self.readout_ridge is not None:
            parts[f"the readout of {samples} samples"] = (32.0 * samples**2, "take fewer samples")
        if self.initial == "sobol" and self.balanced and self.particles >= PER_POINT * points:
            remedy = "give balanced=False, or take fewer samples"
            parts[f"balancing the start on {points} points"] = (32.0 * points**2, remedy)
        return parts

    def _numbers(self, problem: Problem, particles: float) -> float:
        """State, velocity and a new state while running, and the states of the snapshots; h of as many points as a step keeps"""
        training, outputs = problem.training, problem.data.outputs
        network = two_layers(problem).inner
        inputs = network.inputs(problem.data.x[:1]).shape[1]
        running = INTEGRATOR if training.optimiser == "gradient_flow" else 3 + training.memories
        like, batch = torch.empty(0, dtype=checks.DTYPES[self.dtype]), problem.batch or problem.data.samples
        shown = tiles.kept_points(network.nonlinearity, int(particles), inputs, like, batch)
        return particles * ((inputs + outputs + 1) * (running + len(self.snapshots)) + shown)

    def initial_measure(self, problem: Problem) -> ParticleMeasure:
        """The measure at time 0, on the solver's device."""
        important, network = _directions(problem), two_layers(problem)
        sizes, outputs = important.shape[1], problem.data.outputs
        kind, device = checks.DTYPES[self.dtype], torch.device(self.device)
        if isinstance(self.initial, ParticleMeasure):
            copies = (t.to(device=device, dtype=kind, copy=True) for t in self.initial.tensors)
            return ParticleMeasure(*copies)
        if self.initial == "iid":
            cloud = ParticleMeasure.iid(self.particles, sizes, outputs, self.seed, self.dtype)
            return ParticleMeasure(*network.drawn(cloud.a, cloud.w), cloud.m).to(device)
        if self.initial == "sobol":
            turned = important if network.isotropic else None  # other laws are those of the coordinates that x has
            cloud = ParticleMeasure.sobol(self.particles, sizes, outputs, self.seed, self.dtype, turned)
            cloud = ParticleMeasure(*network.drawn(cloud.a, cloud.w), cloud.m).to(device)
            if self.balanced:
                balance(cloud, problem)
            return cloud
        nodes = self._nodes(problem)
        return ParticleMeasure.gauss_hermite(nodes, sizes, outputs, self.dtype, important).to(device)

    def _nodes(self, problem: Problem) -> int:
        """Gauss-Hermite nodes a coordinate; ValueError below two, and for what is not linear below three, which tell sizes apart"""
        dims = problem.data.outputs + int(torch.linalg.matrix_rank(_directions(problem)))
        nodes, least = int(self.particles ** (1 / dims) + 1e-9), 2 if problem.is_linear else 3
        if nodes < least:
            more = f", or at least {least}^{dims} = {least**dims} particles" if dims * math.log2(least) <= 22 else ""
            raise ValueError(
                f"initial='gauss_hermite' needs {least} nodes a dimension at least: received {self.particles} particles for {dims} "
                f"dimensions (the outputs and the rank of the inputs), {nodes} a dimension; take initial='sobol'{more}"
            )
        return nodes

    def _initial_part(self, problem: Problem) -> tuple[ParticleMeasure | Cloud, Shard]:
        """The measure at time 0, or of it what this process holds, with the same numbers"""
        ranks = current()
        if ranks.count == 1 or isinstance(self.initial, ParticleMeasure) or self.initial == "gauss_hermite":
            whole = self.initial_measure(problem)
            shard = Shard(len(whole), ranks)
            return (whole if shard.whole else Cloud(*map(shard.take, whole.tensors))), shard
        important, network = _directions(problem), two_layers(problem)
        shard, sizes = Shard(self.particles, ranks), (important.shape[1], problem.data.outputs)
        turned = important if network.isotropic else None
        part = random_part(self.initial, self.particles, sizes, self.seed, self.dtype, turned, shard, network)
        cloud = Cloud(*(tensor.to(self.device) for tensor in part.tensors))
        if self.initial == "sobol" and self.balanced:
            balance(cloud, problem, shard)
        return cloud, shard

    def _frozen(self, problem: Problem, like: Tensor) -> Tensor | None:
        """(P + P_test, C) the part of the output that is not trained"""
        return None if problem.in_plane.frozen == "none" else initial_outputs(problem, self.f0, self.seed).to(like)

    def _run(
        self, problem: Problem, m: Tensor, state: State, frozen: Tensor | None, previous: Solution | None, shard: Shard
    ) -> Solution:
        given = (problem, m, self.engine, problem.in_plane.trained.measure_limit(), frozen, shard, self.seed)
        moving: dict[str, Any] = {"mass_rate": self.mass_rate, "transport": self.transport, "births": self.births}
        if self.readout_ridge is not None:
            method: MeasureFlow = OptimalReadout(*given, ridge=self.readout_ridge)
        else:
            own: dict[str, Any] = {"variation": self.variation} | (moving if self.mass_rate else {})
            method = (MassFlow if self.mass_rate else MeasureFlow)(*given, **own)
        known = {step: method.captured(whole) for step, whole in (previous.particles if previous else {}).items()}
        training, rtol = problem.training, tolerance(self.rtol, problem.has_kinks, m.dtype)
        flow = Flow(
            training.learning_rate, problem.data.samples, rtol, self.evaluations, None if shard.whole else method.norm
        )
        memory = tuple(map(method.part, kept_momentum(previous, method.names, m)))
        run = evolve(
            method,
            state,
            problem,
            step_of(training, flow, memory),
            previous=previous,
            snapshots=snapshot_steps(self.snapshots, training),
            captured=known,
            progress=self.progress,
            label=f"flow of {shard.size} particles",
            agree=shard.ranks.any,
        )
        return conclude([self._solution(problem, method, run, previous)], self.raise_on_failure)[0]

    def _solution(self, problem: Problem, method: MeasureFlow, run: Trajectory, previous: Solution | None) -> Solution:
        shard, particles = method.shard, run.captured
        state, first = {} if run.status.blew_up else method.whole_state(run), shard.ranks.first
        clouds = {step: q.gathered(shard) if isinstance(q, Cloud) else q for step, q in particles.items()}
        kept = {step: measure.to("cpu") for step, measure in clouds.items() if measure is not None}
        source = MeasureKernels(problem, kept, problem.in_plane.trained.measure_limit(), self.device)
        if not shard.whole:  # all processes take part in the sums
            source = replace(source, particles=particles, total=shard.total)
        return Solution(
            problem=problem,
            solver=settings(self),
            **run.answer(previous),
            state=state if first else {},
            snapshots=tuple(sorted(particles)),
            kernels=source.kernels,
            tangent=source if shard.whole else source(),
            particles=kept,
            stats=run.stats | {"engine": method.chosen, "particles": shard.size} | shard.stats(),
        )


def _directions(problem: Problem) -> Tensor:
    """Rows (at most 2 D or so many as there are points, D) whose span matters: test directions after all training directions"""
    inputs, train = Inputs(problem, torch.empty(0, dtype=torch.float64)), problem.data.samples
    rows = torch.empty(0, inputs.width, dtype=torch.float64)
    for x, weight in ((slice(0, train), 1.0), (slice(train, None), 1e-3)):
        for block in inputs.blocks(x):
            rows = torch.cat([rows, weight * block])
            if len(rows) > 2 * inputs.width:  # the triangle has the same right singular vectors
                rows = torch.linalg.qr(rows, mode="r").R
    if isinstance(problem.data, Stream):  # whose samples may have any, after those of the watched ones
        rows = torch.cat([rows, 1e-3 * rows.norm() * torch.eye(inputs.width, dtype=torch.float64)])
    return rows
