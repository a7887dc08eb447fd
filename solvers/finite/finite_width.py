"""FiniteWidth: real networks, perceptrons or modules, trained by autograd, all seeds of a width in one batched run (equations 1, 62, 79).

Nothing here knows a limit: training and gradients come from autograd, without a formula of the limits' solvers. K alone is put
together as theirs is, from kernels of features and gradients (equation 11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.units import layers, module_width
from meanfield.solution.solution import Solution, Status
from solvers.finite.module_run import ModuleRun
from solvers.finite.modules import must_suit_modules
from solvers.finite.networks import POINTS_AT_ONCE, Networks
from solvers.running.apart import must_be_apart
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.failures import conclude
from solvers.running.gradient_flow import EVALUATIONS, Flow, tolerance
from solvers.running.memory import INTEGRATOR, Parts, bound, factors, float32_of, kept
from solvers.running.rehearsal import SECONDS, expected
from solvers.running.resuming import earlier, kept_momentum
from solvers.running.solver import Estimate, settings
from solvers.running.tangents import MOST
from solvers.running.trajectory import snapshot_steps


@checked
@dataclass(frozen=True)
class FiniteWidth:
    """Trains networks of one width: `FiniteWidth(512, seed=0)(problem)`, or many at once: `.ensemble(problem, seeds=range(16))`.

    Each seed's initial weights depend on (seed, width) alone, not on the company it runs in.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> nets = FiniteWidth(64).ensemble(problem, seeds=3)
        >>> len(nets), nets[0].f.shape
        (3, torch.Size([6, 4, 1]))
    """

    width: int = 512
    """Neurons in each hidden layer; n of a module; in a standard parameterization the multiple of its widths"""
    seed: int = 0
    """Of the initial weights"""
    dtype: str = "float64"
    """Precision of all numbers"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    snapshots: Sequence[int] = (0, -1)
    """Steps at which neurons and kernels are recorded; -1 is the last"""
    keep_neurons: bool = True
    """Record neurons at snapshots, of modules those that `record` names; kernels of perceptrons are made of them when they are looked at,
    otherwise, and in the standard parameterizations, at once"""
    batch: int | None = None
    """Seeds trained at once; if left out as many as are faster together (on a GPU as many as fit), which round differently from one alone
    (1e-15 of f, 1e-6 in float32) and share the steps of gradient flow's integrator. With 1 each has the bits of a network alone"""
    rtol: float | None = None
    """Relative tolerance of gradient flow; 1e-7 if left out, 1e-5 in float32, 1e-4 for activations with kinks"""
    evaluations: int = EVALUATIONS
    """The most evaluations of the velocity in a step of gradient flow; one that needs more ends the run"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""

    def __post_init__(self) -> None:
        checks.normalise(self, width=1, batch=1, evaluations=1)

    def __call__(self, problem: Problem) -> Solution:
        return self.ensemble(problem, (self.seed,))[0]

    def ensemble(self, problem: Problem, seeds: int | Sequence[int] = 16) -> list[Solution]:
        """One solution per seed; a number n means the seeds 0..n-1.

        A seed that blows up does not cost the others: the error that is raised at the end carries all of them.
        """
        chosen = checks.seeds(seeds)
        self.check(problem, len(chosen))
        at_once = self.seeds_at_once(problem)
        solutions: list[Solution] = []
        for start in range(0, len(chosen), at_once):
            solutions += self._train(problem, chosen[start : start + at_once])
            if solutions[-1].status is Status.INTERRUPTED:
                break
        return conclude(solutions, self.raise_on_failure)

    def check(self, problem: Problem, seeds: int = 1) -> None:
        """ValueError or MemoryError, before any work, for a problem of limits or networks that cannot fit."""
        snapshot_steps(self.snapshots, problem.training)
        if problem.loss_function.is_at_infinite_logits:
            raise ValueError(
                f"the loss {problem.loss_function.name!r} belongs to limits: a network of finite width has finite logits; take "
                f"loss={problem.loss_function.name.split()[0]!r}"
            )
        if problem.trial is not None:
            must_suit_modules(problem.architecture, problem.scaling, self._module_width(problem))
            must_be_apart(problem.architecture, problem.data.x)
        checks.memory_in_all(self.parts(problem, seeds), checks.free_memory(self.device))

    def parts(self, problem: Problem, seeds: int = 1) -> Parts:
        """What `ensemble` holds in memory"""
        at_once = min(seeds, self.seeds_at_once(problem))
        snapshots = len(self.snapshots)
        training, weights = problem.training, self._numbers(problem)[0]
        copies = (INTEGRATOR - 3) * (training.optimiser == "gradient_flow") + training.memories  # of the weights
        own = at_once * (self.bytes_per_seed(problem) + copies * weights * self._itemsize)
        made = 0 if self._keeps(problem) else snapshots  # kernels that are not made when looked at
        if problem.trial is None:
            own += seeds * sum(factors(problem, made, n) for n in self._layers(problem))
        else:
            rows = problem.data.samples * problem.data.outputs * problem.gradients_recorded
            own += min(MOST, rows * weights * self._itemsize) if made else 0
            own += seeds * made * problem.trial.noted(self.width) * problem.data.samples * self._itemsize
        own += (seeds - at_once) * self._bytes_kept(problem)
        remedy = f"take {'fewer seeds, ' if seeds > 1 else ''}a smaller width, {float32_of(self._itemsize)}or fewer snapshots"
        what = f"training {seeds} network{'s' if seeds > 1 else ''} of width {self.width}"
        return {what: (own, remedy)} | kept(problem, made, self._itemsize, seeds, at_once)

    def estimate(self, problem: Problem, seeds: int = 1, seconds: float = SECONDS) -> Estimate:
        """Time and memory of `ensemble(problem, seeds)`, from the beginning of its first batch, which is trained for so many `seconds`.

        ValueError or MemoryError as of the run.
        """
        self.check(problem, seeds)
        batch = range(min(seeds, self.seeds_at_once(problem)))
        found, how, _ = expected(self, problem, seconds, lambda solver, asked: solver.ensemble(asked, batch))
        how += f" of {len(batch)} of {seeds} networks" if len(batch) < seeds else ""
        return Estimate(found * seeds / len(batch), bound(self.parts(problem, seeds)), how)

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps: the bits of an uninterrupted run on as many threads of the same device.

        It goes on alone: a network of a batch goes on with the rounding of a network alone.
        """
        if "seed" not in solution.solver:
            raise ValueError("only solutions of FiniteWidth can be resumed by it")
        solver = replace(self, seed=solution.solver["seed"])
        problem = earlier(solver, solution, steps)
        return conclude(solver._train(problem, (solver.seed,), solution), self.raise_on_failure)[0]

    def seeds_at_once(self, problem: Problem) -> int:
        """Seeds of one batched run; wide networks, whose products are large by themselves, run alone on a CPU."""
        if self.batch:
            return self.batch
        fit = _BATCH_BYTES / self.bytes_per_seed(problem)
        if torch.device(self.device).type == "cpu":
            # what one step takes from the system anew for one network: its gradients and fields
            fit = min(fit, _STEP_BYTES / (sum(self._numbers(problem)) * self._itemsize))
        return max(1, int(fit))

    def bytes_per_seed(self, problem: Problem) -> float:
        """An estimate of the memory that training one network needs."""
        weights, fields = self._numbers(problem)
        return (2 * weights + fields) * self._itemsize + self._bytes_kept(problem)  # whose state is a third copy

    def _bytes_kept(self, problem: Problem) -> float:
        """Neurons at the snapshots, and the state, of one network that is trained"""
        if problem.trial is not None:
            outputs = problem.data.outputs if problem.gradients_recorded else 0
            per_snapshot = problem.trial.kept * self._module_width(problem) * problem.data.samples * (1 + outputs)
            return (len(self.snapshots) * per_snapshot + self._numbers(problem)[0]) * self._itemsize
        widths, data = self._layers(problem), problem.data
        per_snapshot = sum(widths) * data.samples * (1 + data.outputs)
        per_snapshot += widths[0] * (data.inputs + data.outputs + 1) if len(widths) == 1 else 0
        snapshots = len(self.snapshots) if self._keeps(problem) else 0
        return (snapshots * per_snapshot + self._numbers(problem)[0]) * self._itemsize

    def _numbers(self, problem: Problem) -> tuple[int, int]:
        """Weights, and fields of one step"""
        batch = problem.batch
        if problem.trial is not None:
            n = self._module_width(problem)
            own = sum(math.prod(p.shape(n)) for p in problem.architecture.description)
            return own, int(problem.trial.numbers(n) * (problem.data.points + (batch or 0)))
        widths, data = self._layers(problem), problem.data
        weights = sum(n * (below + 1) for n, below in zip(widths, (data.inputs, *widths), strict=False))
        weights += widths[-1] * (data.outputs + 1)
        recorded = 0 if batch is None else 2 * min(max(widths) * data.points, POINTS_AT_ONCE)
        return weights, 4 * sum(widths) * (batch or data.points) + recorded

    def _module_width(self, problem: Problem) -> int:
        return module_width(problem.scaling, self.width)

    def _layers(self, problem: Problem) -> tuple[int, ...]:
        """Neurons of each hidden layer of a perceptron"""
        return layers(problem.perceptron, problem.scaling, problem.data.inputs, self.width).widths

    def _keeps(self, problem: Problem) -> bool:
        """Whether solutions have the neurons"""
        return self.keep_neurons and problem.trial is None and isinstance(problem.scaling, Scaling)

    @property
    def _itemsize(self) -> int:
        return checks.DTYPES[self.dtype].itemsize

    @torch.inference_mode(False)  # in which nothing is differentiated
    def _train(self, problem: Problem, seeds: Sequence[int], previous: Solution | None = None) -> list[Solution]:
        like = torch.empty(0, dtype=checks.DTYPES[self.dtype], device=self.device)
        if problem.trial is None:
            networks = Networks(problem, self.width, seeds, like, self._keeps(problem))
        else:
            networks = ModuleRun(problem, self.width, seeds, like)
        steps = snapshot_steps(self.snapshots, problem.training)
        rtol = tolerance(self.rtol, problem.has_kinks, like.dtype)
        flow = Flow(problem.training.learning_rate, problem.data.samples, rtol, self.evaluations)
        memory = tuple(v[None] for v in kept_momentum(previous, networks.names, networks.y))
        run = evolve(
            networks,
            networks.initial_state() if previous is None else networks.state_of(previous),
            problem,
            step_of(problem.training, flow, memory),
            previous=previous,
            snapshots=steps,
            progress=self.progress,
            label=f"{len(seeds)} networks of width {self.width}",
        )
        run.stats["seconds"] /= len(seeds)
        if run.status.blew_up and len(seeds) > 1:
            return [solution for group in _without_blown(seeds, run.bad) for solution in self._train(problem, group)]
        named = [settings(replace(self, seed=seed)) for seed in seeds]
        both = enumerate(zip(named, run.answers(previous, len(seeds)), strict=True))
        return [networks.solution(run, e, solver, steps, answer, previous) for e, (solver, answer) in both]


_BATCH_BYTES = 5e8
_STEP_BYTES = 8e6  # beyond, the allocator gives memory back after each step: page faults and cache misses cost more than batching saves


def _without_blown(seeds: Sequence[int], bad: Tensor | None) -> list[tuple[int, ...]]:
    """The good seeds together, each other one alone; all alone if nobody knows who blew up."""
    if bad is None:
        return [(seed,) for seed in seeds]
    marked = list(zip(seeds, bad.tolist(), strict=True))
    healthy = tuple(seed for seed, blown in marked if not blown)
    return ([healthy] if healthy else []) + [(seed,) for seed, blown in marked if blown]
