"""InfiniteLogitsLimit: two-layer networks whose outputs grow with the width, as under default and sym_default (equations 67 to 71)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.measures import reductions
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.keys import parts
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.stream import must_come_again
from meanfield.scaling.plane import classify, exponents
from meanfield.scaling.scaling import MeasureLimit, Scaling
from meanfield.solution.measure_kernels import MeasureKernels
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel
from solvers.running.descent import Descent
from solvers.running.evolve import evolve
from solvers.running.failures import conclude
from solvers.running.inputs import Rows, trained
from solvers.running.integrator import State
from solvers.running.memory import bound
from solvers.running.method import Method
from solvers.running.rehearsal import SECONDS, expected
from solvers.running.resuming import earlier, kept_momentum
from solvers.running.solver import Estimate, settings
from solvers.running.trajectory import Trajectory, snapshot_steps
from solvers.two_layer.initial_outputs import initial_outputs
from solvers.two_layer.measure_flow import MeasureFlow, MeasurePass
from solvers.two_layer.wasserstein_flow import Initial, WassersteinFlow


@checked
@dataclass(frozen=True)
class InfiniteLogitsLimit:
    """Solves two-layer classifiers in scalings such as default() and sym_default(): `InfiniteLogitsLimit()(problem) -> Solution`.

    Step 0 sees the random f0 of the network; from then on outputs are of order N^e with e > 0 and every sample is as right or as wrong
    as can be. The solution's f is the limit of f_k (N/N*)^-e_k, with the exponents e_0 = stats["initial_exponent"] and, for k >= 1,
    e = stats["output_exponent"]; its problem has the loss at infinite logits, so that `loss` is the limit of loss (N/N*)^-e. Readouts
    are in units of (N/N*)^stats["readout_exponent"], tangent kernels of (N/N*)^e. `rescaled(network)` brings a network to these units.
    Where readouts forget their start they begin at zero.
    ValueError for problems without such a limit: other scalings, the squared loss, gradient flow (Delta jumps), depth above 1.

    Example:
        >>> import meanfield as mf
        >>> from solvers import InfiniteLogitsLimit
        >>> data, training = mf.digits(n_train=4, n_test=0), mf.Training(0.2, 5)
        >>> problem = mf.Problem(data, scaling=mf.default(), training=training, loss="logistic")
        >>> limit = InfiniteLogitsLimit(particles=64)(problem)
        >>> limit.stats["output_exponent"]  # outputs grow like this power of the width
        1.0
    """

    particles: int = 2**14
    """Points of the measure; a power of 2 is best"""
    seed: int = 0
    """Of all random draws"""
    initial: Initial | ParticleMeasure = "sobol"
    """Of the particles: scrambled quasi-Monte-Carlo (sobol), independent draws (iid) or quadrature (gauss_hermite)"""
    f0: Tensor | Solution | None = None
    """Outputs at step 0 (Q, C), or a solution (of a network, say) whose first outputs are taken; a draw by `seed` if left out"""
    engine: reductions.Engine = "auto"
    """How sums over particles are taken; the numbers are the same"""
    dtype: str = "float64"
    """Precision of all numbers"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    snapshots: Sequence[int] = (0, -1)
    """Steps at which particles are recorded; -1 is the last"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""

    def __post_init__(self) -> None:
        flow = self._flow
        for key in ("particles", "seed", "dtype", "device", "snapshots"):
            object.__setattr__(self, key, getattr(flow, key))

    @property
    def _flow(self) -> WassersteinFlow:
        """The solver of the finite-logits limit that has the same cloud; it checks the settings"""
        kind = (self.engine, self.dtype, self.device, self.snapshots)
        return WassersteinFlow(self.particles, self.seed, self.initial, True, None, *kind)

    def __call__(self, problem: Problem) -> Solution:
        self.check(problem)
        measure = self._flow.initial_measure(problem)
        if readout_exponent(problem.in_plane) > 0:  # what a starts from is forgotten
            measure.a.zero_()
        f0 = initial_outputs(problem, self.f0, self.seed).to(measure.a)
        if exponents(problem.in_plane).f0 < 0:
            f0.zero_()
        return self._run(problem, measure.m, (measure.a, measure.w, measure.a.new_zeros(f0.shape[1])), f0, None)

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps: the bits of an uninterrupted run on as many threads of the same device."""
        problem = earlier(self, solution, steps)
        kind = {"dtype": checks.DTYPES[self.dtype], "device": self.device}
        a, w, b, m, f0 = (solution.state[key].to(**kind, copy=True) for key in ("a", "w", "b", "m", "f0"))
        return self._run(problem, m, (a, w, b), f0, solution)

    def estimate(self, problem: Problem, seconds: float = SECONDS) -> Estimate:
        """Time and memory of a run, from its beginning, which is solved for so many `seconds`. ValueError or MemoryError as of the run."""
        self.check(problem)
        found, how, _ = expected(self, problem, seconds)
        return Estimate(found, bound(self._flow.parts(problem)), how)

    def check(self, problem: Problem) -> None:
        """ValueError, before any work, for a problem without such a limit."""
        scaling, found = problem.in_plane, classify(problem.in_plane)
        depth = problem.perceptron_for("InfiniteLogitsLimit").depth
        if depth != 1:
            raise ValueError(
                f"InfiniteLogitsLimit solves networks of depth 1: received depth {depth}; take FiniteWidth, or "
                "CausalDMFT in the mean-field scaling"
            )
        if found.solver != "InfiniteLogitsLimit":
            other = f"; take {found.solver}" if found.solver else f" ({found.obstacle})"
            raise ValueError(
                f"the scaling {scaling.name!r} (q_sigma={scaling.q_sigma:g}, q_a={scaling.q_a:g}, q_w={scaling.q_w:g}) has another limit: "
                f"{found.limit}{other}"
            )
        try:
            problem.loss_function.at_infinite_logits()
        except ValueError as error:
            raise ValueError(
                f"under the scaling {scaling.name!r} outputs grow like N^{found.exponents.f:g}: {error}"
            ) from error
        if problem.training.optimiser == "gradient_flow":
            raise ValueError(
                "at infinite logits Delta jumps where an output changes sign, so there is no gradient flow: take "
                "optimiser='gradient_descent', whose steps are the limit's"
            )
        if other := problem.training.other_than("momentum", "weight_decay", "batch_size", "schedule", "warmup"):
            raise ValueError(
                f"InfiniteLogitsLimit follows gradient descent without {other}: leave it out, or take FiniteWidth"
            )
        must_come_again(problem.data, "InfiniteLogitsLimit")
        self._flow.check_particles(problem)

    def stated(self, problem: Problem) -> Problem:
        """`problem` as its solutions have it: with the loss at infinite logits"""
        return replace(problem, loss=problem.loss_function.at_infinite_logits())

    def _run(self, problem: Problem, m: Tensor, state: State, f0: Tensor, previous: Solution | None) -> Solution:
        method = _AtInfinity(problem, m, self, f0)
        time = torch.tensor(float(previous.steps if previous else 0), dtype=torch.float64)
        memory = kept_momentum(previous, _STATE, m)
        run = evolve(
            method,
            (*state, time),
            problem,
            Descent(problem.training, (*memory, torch.zeros_like(time)) if memory else ()),
            previous=previous,
            snapshots=snapshot_steps(self.snapshots, problem.training),
            captured=previous.particles if previous else None,
            progress=self.progress,
            label=f"limit of infinite logits, {len(m)} particles",
        )
        return conclude([self._solution(method, run, previous)], self.raise_on_failure)[0]

    def _solution(self, method: _AtInfinity, run: Trajectory, previous: Solution | None) -> Solution:
        flow, particles = method.after, run.captured
        problem, e = flow.problem, exponents(flow.problem.in_plane)
        measures = {step: measure.to("cpu") for step, measure in particles.items()}
        source = MeasureKernels(problem, measures, rescaled_limit(problem.in_plane), self.device)
        kept = run.named_state((*_STATE, _TIME)) | {"m": flow.m, "f0": method.f0}
        powers = {"initial_exponent": max(0.0, e.f0), "output_exponent": e.f}
        powers["readout_exponent"] = readout_exponent(problem.in_plane)
        return Solution(
            problem=problem,
            solver=settings(self),
            **run.answer(previous),
            state={} if run.status.blew_up else {k: v.cpu() for k, v in kept.items() if not k.endswith(_TIME)},
            snapshots=tuple(sorted(particles)),
            kernels=source.kernels,
            tangent=source,
            particles=measures,
            stats=run.stats | {"engine": flow.chosen, "particles": len(flow.m)} | powers,
        )


_STATE, _TIME = ("a", "w", "b"), "time"  # the latter tells step 0 from later ones, as the steps of a solution do


class _FirstPass(MeasurePass):
    """At step 0"""


class _AtInfinity(Method):
    """Outputs and velocity: f0 and the loss as asked at time 0, the measure and the loss at infinite logits from then on.

    The state is that of the measure, (a, w, b), and the time.
    """

    def __init__(self, problem: Problem, m: Tensor, solver: InfiniteLogitsLimit, f0: Tensor) -> None:
        asked = problem.loss_function
        limit = rescaled_limit(problem.in_plane)
        finite = asked.at_finite_logits() if exponents(problem.in_plane).f0 <= 0 else asked.at_infinite_logits()
        self.before = MeasureFlow(replace(problem, loss=finite), m, solver.engine, limit)
        self.after = MeasureFlow(solver.stated(problem), m, solver.engine, limit)
        self.f0 = f0

    def forward(self, state: State, rows: Rows, differentiated: bool) -> MeasurePass:
        *measure, time = state
        if time > 0:
            return self.after.forward(tuple(measure), rows, differentiated)
        assert not isinstance(rows, Dataset)  # `check` refuses streams
        train = trained(rows, self.after.train)
        return _FirstPass(self.f0[rows], tuple(measure), rows, train)

    def backward(self, passed: MeasurePass) -> State:
        flow = self.before if isinstance(passed, _FirstPass) else self.after
        return (*flow.backward(passed), torch.ones((), dtype=torch.float64))

    def capture(self, state: State, passed: MeasurePass) -> ParticleMeasure:
        del passed
        a, w, *_ = state
        return ParticleMeasure(a.clone(), w.clone(), self.after.m)


def readout_exponent(scaling: Scaling) -> float:
    """The power of the width that the readouts a go with once training has begun (equation 70)"""
    return max(0.0, exponents(scaling).readouts)


def rescaled_limit(scaling: Scaling) -> MeasureLimit:
    """Of the rescaled measure; a part that stands still in the limit has the rate 0 (equation 70)."""
    e, (gamma, kappa_a, kappa_w) = exponents(scaling), scaling.products(scaling.reference_width)
    return MeasureLimit(gamma, kappa_a * (e.readouts >= 0), kappa_w * (e.weights >= 0))


@checked
def rescaled(solution: Solution) -> Solution:
    """A finite network in the units of its limit of infinite logits, ready to be compared with it (equation 71).

    f is divided by (N/N*)^e (at step 0 by its own power), and so are kernels, particles and fields as InfiniteLogitsLimit has them.
    The solution cannot be resumed. ValueError for a limit, and for scalings in which outputs stay finite.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, InfiniteLogitsLimit, rescaled
        >>> data, training = mf.digits(n_train=4, n_test=0), mf.Training(0.2, 5)
        >>> problem = mf.Problem(data, scaling=mf.default(), training=training, loss="logistic")
        >>> nets = [rescaled(net) for net in FiniteWidth(256).ensemble(problem, seeds=2)]
        >>> mf.deviation(nets, InfiniteLogitsLimit(particles=64)(problem), names=("f",)).widths
        (256,)
    """
    scaling, width = solution.problem.in_plane, solution.width
    e, a = exponents(scaling), readout_exponent(scaling)
    if width is None or solution.solver.get("rescaled") or e.f <= 0:
        raise ValueError(
            f"only finite networks whose outputs grow with the width can be rescaled: received {solution!r} in the scaling "
            f"{scaling.name!r}, whose outputs go like N^{e.f:g}"
        )
    ratio = width / scaling.reference_width

    def outputs(f: Tensor | None) -> Tensor | None:
        if f is None:
            return None
        return torch.cat([f[:1] / ratio ** max(0.0, e.f0), f[1:] / ratio**e.f])

    f = outputs(solution.f)
    assert f is not None
    gradients = {
        k: TwoTimeKernel(v.steps, v.factor / ratio**a) for k, v in solution.kernels.items() if parts(k)[0] == "G"
    }
    return replace(
        solution,
        problem=replace(solution.problem, loss=solution.problem.loss_function.at_infinite_logits()),
        solver=dict(solution.solver) | {"rescaled": True},
        f=f,
        f_test=outputs(solution.f_test),
        state={},
        kernels=dict(solution.kernels) | gradients,
        tangent=None if solution.tangent_kernels is None else solution.tangent_kernels / ratio**e.f,
        particles={k: ParticleMeasure(p.a / ratio**a, p.w, p.m) for k, p in solution.particles.items()},
        fields={k: v / ratio**a if parts(k)[0] == "g" else v for k, v in solution.fields.items()},
    )
