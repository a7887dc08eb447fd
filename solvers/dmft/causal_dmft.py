"""CausalDMFT: the infinite-width limit of deep networks in the mean-field scaling, in one causal sweep (equations 20 to 30, 81 to 88)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.network.keys import Key
from meanfield.problem.problem import Problem
from meanfield.solution.pooling import pooled
from meanfield.solution.solution import Solution, Status
from solvers.dmft.module_limit import must_be_whole
from solvers.dmft.module_sweep import (
    ModuleSweep,
    bytes_of_module,
    largest_axis,
    must_have_gaussian_matrices,
    must_have_neurons,
)
from solvers.dmft.neurons import Population
from solvers.dmft.perceptron import LimitNetwork
from solvers.dmft.room import least_rank, must_have_room, rank_to_expect
from solvers.dmft.state import restore, state_of
from solvers.dmft.sweep import Sweep
from solvers.running.apart import must_be_apart
from solvers.running.clock import Beginning, Clock, begun
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.failures import conclude
from solvers.running.gradient_flow import EVALUATIONS, Flow, tolerance
from solvers.running.memory import Parts, bound, float32_of, kept
from solvers.running.rehearsal import SECONDS, expected, fewer
from solvers.running.resuming import earlier
from solvers.running.rounding import learned, must_resolve
from solvers.running.sharding import Shard, current
from solvers.running.solver import Estimate, settings
from solvers.running.trajectory import snapshot_steps

Draws = Literal["sobol", "plain", "finite"]


@checked
@dataclass(frozen=True)
class CausalDMFT:
    """Solves perceptrons of any depth and modules in the mean-field scaling: `CausalDMFT(samples=8192)(problem) -> Solution`.

    Linear networks are solved exactly, without sampling. ValueError for problems that it cannot solve.

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> limit = CausalDMFT(samples=256, groups=2)(problem)
        >>> sorted(limit.kernels), limit.standard_errors["f"].shape
        (['G1', 'G2', 'Phi1', 'Phi2'], torch.Size([6, 4, 1]))
    """

    samples: int = 8192
    """Neurons that stand for each hidden layer, n of a module; a power of 2 is best"""
    seed: int = 0
    """Of all random draws"""
    groups: int = 1
    """Independent runs with this and the next seeds; the solution is their mean and carries its standard errors"""
    tolerance: float | None = None
    """The part of the fields (relative, root mean square) that may be dropped as already known (equation 28b); if left out 1e-2, for
    features gamma0 / 10 times the targets' size where that is less, and 1e-12 for linear networks"""
    max_rank: int | None = None
    """The most directions kept for one side of a matrix; what samples and memory admit if left out"""
    draws: Draws = "sobol"
    """sobol: scrambled quasi-Monte-Carlo; plain: independent; finite: as of a network with `samples` neurons (equation 100)"""
    rtol: float | None = None
    """Tolerance of gradient flow, in units of what training moves; 1e-5 if left out, 1e-4 for kinks, 1e-7 for linear networks"""
    evaluations: int = EVALUATIONS
    """The most evaluations of the velocity in a step of gradient flow; one that needs more ends the run"""
    dtype: str = "float32"
    """Precision of all numbers"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    snapshots: Sequence[int] = (0, -1)
    """Steps at which neurons and the tangent kernel are recorded, and all kernels of modules; -1 is the last"""
    two_time: bool = True
    """Of perceptrons keep the first layer's G and the last layer's Phi at all pairs of steps, as the others are, instead of at snapshots"""
    responses: bool = False
    """Record A^l and B^l of perceptrons at all pairs of steps"""
    keep_neurons: bool = True
    """Record preactivations at snapshots, of modules those that `record` names"""
    keep_state: bool = False
    """Keep what resuming needs, all bases (an interrupted run keeps it anyway)"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""

    def __post_init__(self) -> None:
        checks.normalise(self, samples=2, groups=1, max_rank=1, evaluations=1)
        checks.lookup("draws", self.draws, dict.fromkeys(get_args(Draws)))

    def __call__(self, problem: Problem) -> Solution:
        self.check(problem)
        solutions = []
        for one in self.alone(problem):
            solutions.append(one._run(problem))
            if solutions[-1].status is not Status.FINISHED:
                return conclude(solutions, self.raise_on_failure)[-1]
        return solutions[0] if len(solutions) == 1 else pooled(solutions, settings(self))

    def alone(self, problem: Problem) -> list[CausalDMFT]:
        """The solver of each group; linear networks have no sampling error to estimate, and so one group only"""
        groups = 1 if self._exact(problem) else self.groups
        return [replace(self, groups=1, seed=self.seed + group) for group in range(groups)]

    def check(self, problem: Problem) -> None:
        """ValueError or MemoryError, before any work, for a problem without such a limit or one that cannot fit."""
        problem.in_plane.measure_limit()
        snapshot_steps(self.snapshots, problem.training)
        points, least, most = problem.data.points, least_rank(problem), rank_to_expect(problem)
        if self.responses and problem.training.record_every > 1:
            raise ValueError(
                f"responses are functions of every step: received record_every={problem.training.record_every}; take 1"
            )
        if not self._exact(problem) and self.draws != "finite" and self.samples <= 2 * points:
            raise ValueError(
                f"samples={self.samples} are too few for {points} data points, whose features alone may span as many directions: "
                f"take at least {4 * points}"
            )
        if most > least and self.max_rank is None and not self._exact(problem) and self.draws != "finite":
            must_have_room(problem, self.samples, most)
        entrywise = problem.training.entrywise
        if entrywise is not None and not entrywise.low_rank and current().count > 1:
            raise ValueError(
                f"what a matrix learns by {entrywise.name} is a number for each pair of neurons, which processes cannot share: received "
                f"{current().count} processes; spread groups over an executor"
            )
        if self.max_rank is not None and self.max_rank < min(least, self.samples):
            raise ValueError(f"max_rank={self.max_rank} is below the {least} directions that the data alone may span")
        if problem.trial is not None:
            self._must_suit_modules(problem)
        must_resolve(problem, self._kind(problem))
        rank = least if self._exact(problem) else min(most, self.max_rank or most, max(self.samples, least))
        checks.memory_in_all(self.parts(problem, rank), checks.free_memory(self.device))

    def parts(self, problem: Problem, rank: int) -> Parts:
        """What a run holds in memory whose bases have `rank` directions each"""
        remedy = f"take fewer samples (with more groups), {float32_of(self._kind(problem).itemsize)}fewer steps or data points"
        sweep = {f"a sweep with {self.samples} samples": (self.bytes_needed(problem, rank), remedy)}
        return sweep | kept(problem, len(self.snapshots), self._kind(problem).itemsize)

    def rank_limit(self, problem: Problem) -> int:
        """The most directions of one side of a matrix: max_rank, or what fits in samples and memory, whichever is less"""
        least = least_rank(problem)
        base = self.bytes_needed(problem, 0)
        slope = (self.bytes_needed(problem, least) - base) / least
        fits = (checks.free_memory(self.device) - base) / slope if slope else self.samples
        most = self.samples if problem.trial is None else largest_axis(problem, self.samples)
        return max(1, int(min(self.max_rank or most, most, max(fits, least))))

    def tolerances(self, problem: Problem) -> tuple[float, float]:
        """(of features, of gradients), equation 28b: features that were dropped return as noise Gamma tolerance / sqrt(samples) in f"""
        default = (1e-12, 1e-12) if self._exact(problem) else (min(1e-2, 0.1 * learned(problem)), 1e-2)
        return (self.tolerance, self.tolerance) if self.tolerance else default

    def bytes_needed(self, problem: Problem, rank: int) -> float:
        """An estimate of the peak memory of one group whose bases all have `rank` directions, in each process that shares the samples."""
        if problem.trial is not None:
            return bytes_of_module(problem, self.samples, rank, len(self.snapshots), self._kind(problem).itemsize)
        data, depth, training = problem.data, problem.perceptron.depth, problem.training
        points, gradients = problem.data.points, data.samples * data.outputs
        fields = 3 * depth * points + (depth + 4) * gradients + 2 * depth * data.samples
        matrices = 4 if self._exact(problem) else 8  # whose draws need not be orthogonal to what is known
        per_rank = (depth - 1) * matrices + 2 * self.two_time
        snapshots = len(self.snapshots) * ((depth + 1) * data.samples + gradients)
        own = self.samples / current().count
        neurons = own * (fields + snapshots + 1.75 * per_rank * rank)  # buffers double as they grow, and are copied
        dense = training.entrywise and not training.entrywise.low_rank
        neurons += (3 + training.memories) * (depth - 1) * self.samples**2 if dense else 0  # a number for each pair
        records = training.record_count * depth * rank * (points + gradients)
        return (neurons + records) * self._kind(problem).itemsize

    def _must_suit_modules(self, problem: Problem) -> None:
        if self.draws == "finite":
            must_have_gaussian_matrices(problem)
        if self.responses:
            raise ValueError(
                "responses A and B are recorded of perceptrons only: received a module; leave responses out"
            )
        numbers = [p.key for p in problem.architecture.description.having("plain") if problem.architecture.rate_of(p)]
        if problem.training.temperature and numbers:
            raise ValueError(
                f"temperature={problem.training.temperature:g} makes {', '.join(map(repr, numbers))} random at any width, parameters "
                "without an axis of neurons: freeze them, mf.Architecture(build, frozen=..)"
            )
        must_be_whole(current().count)
        for parameter in problem.architecture.description:
            parameter.shape(self.samples, "samples")
        if self.draws != "finite":
            must_have_neurons(problem, self.samples)
        must_be_apart(problem.architecture, problem.data.x)

    def _exact(self, problem: Problem) -> bool:
        """Whether averages over neurons carry no sampling error: of linear networks, unless those of finite width are asked for"""
        training = problem.training  # noise and steps entry by entry leave the span of the start's Gaussians
        closes = problem.is_linear and training.entrywise is None and not training.temperature
        return closes and self.draws != "finite"

    def _kind(self, problem: Problem) -> torch.dtype:
        """Of all numbers: linear networks are solved in float64"""
        return torch.float64 if problem.is_linear else checks.DTYPES[self.dtype]

    def estimate(self, problem: Problem, seconds: float = SECONDS) -> Estimate:
        """Time and memory of a run, from its beginning, which is solved for so many `seconds`. ValueError or MemoryError as of the run.

        The cost of a step grows with the directions of the bases. How they will grow is seen in a run of few samples and neurons, whose
        bases grow alike.
        """
        self.check(problem)
        one, ends = replace(self, groups=1), []

        if problem.trial is not None:
            found, how, last = expected(one, problem, seconds)
            groups, ranks = len(self.alone(problem)), last.solution.stats["ranks"] if last.solution else ()
            rank = max((max(pair) for pair in ranks), default=0)
            return Estimate(
                groups * found,
                bound(self.parts(problem, max(rank, least_rank(problem)))),
                how + f", {groups} times" * (groups > 1),
            )

        def growth(asked: Problem, beginning: Beginning) -> np.ndarray:
            sizes = one._expected_sizes(asked, beginning, seconds / 2)
            ends[:] = [sizes[-1] * problem.data.samples / asked.data.samples]
            return sizes

        found, how, last = expected(one, problem, seconds, growth=growth)
        if last.whole and last.solution is not None:
            ends = [one._sizes(last.solution)[-1]]
        rank = max(least_rank(problem), *(size / max(1, len(self._bases(problem))) for size in ends))
        groups = len(self.alone(problem))
        return Estimate(groups * found, bound(self.parts(problem, int(rank))), how + f", {groups} times" * (groups > 1))

    def _expected_sizes(self, problem: Problem, beginning: Beginning, seconds: float) -> np.ndarray:
        """(T+1,) directions of all bases together: those of the beginning, and then as those of a run of few samples go on"""
        assert beginning.solution is not None
        steps, known = np.arange(problem.training.steps + 1), self._sizes(beginning.solution)
        few = min(problem.data.samples, max(problem.data.samples // 4, 4), 16)
        small = fewer(problem, few)
        neurons = max(min(self.samples // 4, self.samples * few // problem.data.samples), 4 * small.data.points, 64)
        solver = replace(self, samples=neurons, snapshots=(), max_rank=None, progress=False, raise_on_failure=False)
        alike = begun(solver, small, Clock(seconds)).solution
        if alike is None or not known.any():
            return np.full(len(steps), max(known[-1], 1.0))
        shape = self._sizes(alike)
        slope = (shape[-1] - shape[len(shape) // 2]) / max(1, len(shape) - 1 - len(shape) // 2)
        shape = np.where(steps < len(shape), np.resize(shape, len(steps)), shape[-1] + slope * (steps - len(shape) + 1))
        return np.concatenate([known, known[-1] * shape[len(known) :] / shape[len(known) - 1]])

    def _bases(self, problem: Problem) -> list[Key]:
        """The kernels whose factors show how far a basis has grown"""
        (*features, last), (first, *gradients) = (problem.keys(kind) for kind in ("Phi", "G"))
        return features + gradients + [last, first] * self.two_time

    def _sizes(self, solution: Solution) -> np.ndarray:
        """(T+1,) directions of all bases together at each step that was taken"""
        count = np.zeros(solution.steps + 1)
        for name in self._bases(solution.problem):
            kernel = solution.kernels[name]
            count += np.interp(np.arange(len(count)), kernel.steps, (kernel.factor != 0).any(2).sum(1).numpy())
        return count

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution (of one group) continued for `steps` more steps: the bits of an uninterrupted run on as many threads of the
        same device.

        ValueError for a solution without the state to go on from: it takes keep_state=True, or an interrupted run.
        """
        if self.groups > 1:
            raise ValueError(
                "a mean over groups cannot be resumed: resume each group, CausalDMFT(seed=.., groups=1), and pool them"
            )
        return conclude([self._run(earlier(self, solution, steps), solution)], self.raise_on_failure)[0]

    def _sweep(self, problem: Problem) -> Sweep | ModuleSweep:
        like = torch.empty(0, dtype=self._kind(problem), device=self.device)
        shard, draws = Shard(self.samples, current()), "exact" if self._exact(problem) else self.draws
        population = Population(self.samples, self.seed, draws, like, shard)
        if problem.trial is not None:
            return ModuleSweep(problem, population, self.tolerances(problem), self.rank_limit(problem))
        network = LimitNetwork(problem, population, self.tolerances(problem), self.rank_limit(problem))
        return Sweep(network, self.two_time, self.responses)

    def _flow(self, problem: Problem, sweep: Sweep | ModuleSweep) -> Flow:
        """Errors are allowed in units of what training moves, where that is less than the neurons' own size, which is one (equation 33)"""
        rtol = tolerance(self.rtol, problem.has_kinks, self._kind(problem))
        rtol *= min(1.0, learned(problem))
        return Flow(problem.training.learning_rate, problem.data.samples, rtol, self.evaluations, sweep.norm)

    def _run(self, problem: Problem, previous: Solution | None = None) -> Solution:
        sweep, training = self._sweep(problem), problem.training
        if previous is None:
            state, memory, captured = sweep.initial_state(), (), {}
        else:
            state, memory, captured = restore(sweep, previous.state)
        run = evolve(
            sweep,
            state,
            problem,
            step_of(training, self._flow(problem, sweep), memory),
            previous=previous,
            snapshots=snapshot_steps(self.snapshots, training),
            captured=captured,
            progress=self.progress,
            label=f"DMFT, {self.samples} samples",
            agree=sweep.shard.ranks.any,
        )
        cut_short = run.status in (Status.INTERRUPTED, Status.OUT_OF_EVALUATIONS)
        keep = cut_short or (self.keep_state and run.status is Status.FINISHED)
        neurons = self.keep_neurons and not self._exact(problem)  # the exact solution's "neurons" are coefficients
        return sweep.solution(run, settings(self), state_of(sweep, run) if keep else {}, previous, neurons)
