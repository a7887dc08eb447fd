"""FixedPointDMFT: the infinite-width limit as a fixed point over the whole training window, the classical way (equations 20 to 22, 31)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.problem.problem import Problem
from meanfield.problem.stream import must_come_again
from meanfield.solution.solution import Solution, Status
from meanfield.solution.two_time import TwoTimeKernel, tangent_of
from solvers.dmft.anderson import Anderson
from solvers.dmft.dmft_window import Kernels, Window, distance, square_root
from solvers.running.clock import postponed_interrupt, progress_bar
from solvers.running.failures import WHERE, NonFiniteError, SolverError, Watch, conclude
from solvers.running.memory import float32_of
from solvers.running.rehearsal import SECONDS, by_law
from solvers.running.resuming import earlier
from solvers.running.solver import Estimate, settings
from solvers.running.trajectory import snapshot_steps

# windows grow by this factor (and one step), the shorter ones solved to this accuracy: from a worse start the iteration may overflow
_GROWTH, _ROUGH = 1.15, 1e-2


@checked
@dataclass(frozen=True)
class FixedPointDMFT:
    """Solves deep networks in the mean-field scaling by iteration: `FixedPointDMFT(samples=4096)(problem) -> Solution`.

    For cross-checks and comparisons: CausalDMFT solves the same equations without iterating, and more problems. Linear networks
    close in matrices, without sampling. Memory O(depth T P samples + (T P)^2).

    Example:
        >>> import meanfield as mf
        >>> from solvers import FixedPointDMFT
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> solution = FixedPointDMFT(samples=128)(problem)
        >>> solution.status.name, sorted(solution.kernels)
        ('CONVERGED', ['G1', 'G2', 'Phi1', 'Phi2'])
    """

    samples: int = 4096
    """Neurons that stand for each hidden layer; a power of 2 is best"""
    seed: int = 0
    """Of all random draws"""
    iterations: int = 100
    """The most for each window of steps"""
    damping: float = 0.5
    """The fraction of each change that is taken"""
    anderson: int = 5
    """How many earlier iterates extrapolate the next one; 0 switches it off"""
    tolerance: float | None = None
    """Stop when no kernel, nor f, moves by more under the map (relative, Frobenius); if left out 1e-3, 1e-10 for linear networks, and
    5e-3 for activations with kinks, where the sampled map is no smoother"""
    dtype: str = "float64"
    """Precision of all numbers"""
    snapshots: Sequence[int] = (0, -1)
    """Steps at which the tangent kernel is recorded; -1 is the last"""
    keep_state: bool = False
    """Keep what resuming needs, all kernels (an interrupted run keeps it anyway)"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""

    def __post_init__(self) -> None:
        checks.normalise(self, samples=2, iterations=1, anderson=0)
        if checks.positive("damping", self.damping) > 1:
            raise ValueError(
                f"damping is the fraction of a change that is taken, 0 < damping <= 1: received {self.damping!r}"
            )

    def __call__(self, problem: Problem) -> Solution:
        return self._run(problem, None)

    def estimate(self, problem: Problem, seconds: float = SECONDS) -> Estimate:
        """Time and memory, from windows of 1, 2, 4, .. steps, which are solved as long as `seconds` last. Not known before: with kinks,
        how many iterations noise will cost in longer windows. ValueError or MemoryError as of the run.
        """
        self.check(problem)
        quiet, total = replace(self, snapshots=(0, -1), progress=False, raise_on_failure=False), problem.training.steps
        law, steps = by_law(lambda steps: quiet(problem.with_steps(steps)), total, seconds)
        how = "the whole run" if steps == total else f"windows of up to {steps} of {total} steps"
        return Estimate(float(law[-1]), self.bytes_needed(problem), how)

    def bytes_needed(self, problem: Problem) -> float:
        """A bound on the peak memory of the last window: kernels with what extrapolates them, noise and fields of all neurons"""
        data, depth, times = problem.data, problem.perceptron.depth, problem.training.steps + 1
        points, p = data.points, data.samples
        u, r = times * points, times * p * data.outputs
        numbers = depth * (u**2 + r**2) + (depth - 1) * (u * r + r * times * p)
        past = min(self.iterations, self.anderson + 1)  # each a point, a change, their differences
        kernels = 8.0 * numbers * (10 + 5 * past)
        if problem.is_linear:
            return kernels + 8 * 14 * max(u, r) ** 2
        size = checks.DTYPES[self.dtype].itemsize
        rows = [(points if l == 0 else u) + (problem.data.outputs if l == depth - 1 else r) for l in range(depth)]
        drawing = 8 * max(3.5 * max(rows), 3 * 128)  # in blocks, in float64
        return self.samples * (size * sum(rows) + max(size * 4 * (u + r + times * p), drawing)) + kernels

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps: the bits of an uninterrupted run on as many threads.

        ValueError for a solution without the state to go on from: it takes keep_state=True, or an interrupted run.
        """
        if solution.status is not Status.NON_FINITE and not solution.state:
            raise ValueError("this solution keeps no state to go on from: solve with keep_state=True")
        problem = earlier(self, solution, steps)
        return self._run(problem, dict(solution.state))

    def _run(self, problem: Problem, before: Kernels | None) -> Solution:
        self.check(problem)
        start = time.perf_counter()
        kernels, status, changes, known = self._solve(problem, before)
        stats = {
            "seconds": time.perf_counter() - start,
            "threads": torch.get_num_threads(),
            "iterations": len(changes),
            "changes": tuple(changes),
        }
        keep = self.keep_state or status is Status.INTERRUPTED
        solution = replace(_solution(problem, self, kernels, status, stats), state=known if keep else {})
        if status is Status.CONVERGED and (lost := Watch(problem).lost(solution.loss)) is not None:
            status, solution = lost, replace(solution, state={}, status=lost)
        if status in (Status.INTERRUPTED, Status.DIVERGED):
            return conclude([solution], self.raise_on_failure)[0]
        if not self.raise_on_failure or status is Status.CONVERGED:
            return solution
        done = f"After {len(changes)} iterations on the window of {solution.steps} steps"
        if status is Status.NON_FINITE:
            remedy = "lower damping or learning_rate, or take CausalDMFT, which needs no iteration"
            raise NonFiniteError(f"non-finite: the iteration blew up; {remedy}. {done}.", [solution], WHERE)
        raise SolverError(
            f"{status.value}. {done} the kernels still moved by {changes[-1]:.2g} (relative).", [solution], WHERE
        )

    def check(self, problem: Problem) -> None:
        """ValueError, before any work, for a problem that this solver does not take."""
        problem.in_plane.measure_limit()
        snapshot_steps(self.snapshots, problem.training)
        network, data = problem.perceptron_for("FixedPointDMFT"), problem.data
        must_come_again(problem.data, "FixedPointDMFT")
        if network.bias_std or network.residual is not None:
            raise ValueError("FixedPointDMFT solves networks without biases and residual branches: take CausalDMFT")
        if problem.training.optimiser == "gradient_flow":
            raise ValueError("FixedPointDMFT follows gradient_descent: for gradient_flow take a small learning_rate")
        if other := problem.training.other_than("batch_size", "schedule", "warmup"):
            raise ValueError(
                f"FixedPointDMFT has no momentum, weight_decay or the like: received {other}; take CausalDMFT"
            )
        checks.memory(
            "the fixed point",
            self.bytes_needed(problem),
            f"take fewer samples or steps, {float32_of(checks.DTYPES[self.dtype].itemsize)}or CausalDMFT",
        )
        if network.is_linear:
            return
        points = data.points + data.samples * data.outputs
        rows = points * (problem.training.steps + 1)
        if self.samples < 2 * rows:
            raise ValueError(
                f"samples={self.samples} are too few for the {rows} Gaussians of a neuron over all steps: take at least {2 * rows}, "
                "or CausalDMFT, which needs fewer"
            )

    def _solve(self, problem: Problem, before: Kernels | None) -> tuple[Kernels, Status, list[float], Kernels]:
        """(kernels, status, relative change at each iteration of the last window, kernels of the window before, for longer runs).

        Each window starts from the shorter one before; all but the last are those of any longer run.
        """
        known = now = before or self._window(problem, 0).beginning()
        status, changes = Status.NOT_CONVERGED, []
        with postponed_interrupt() as interrupted:
            for steps, enough in self.windows(problem, passed=len(now["f"]) - 1):
                known = now  # a window is gone before the next one draws its noise
                now, status, changes = self._iterate(self._window(problem, steps), known, enough, interrupted)
                if status is Status.INTERRUPTED:
                    return known, status, changes, known
                if status is Status.NON_FINITE:
                    break
        return now, status, changes, known

    def _window(self, problem: Problem, steps: int) -> Window:
        return Window(problem, steps, self.samples, self.seed, self.dtype)

    def windows(self, problem: Problem, passed: int = 0) -> Iterator[tuple[int, float]]:
        """(steps, tolerance) of each window, after one of `passed` steps"""
        network, steps = problem.perceptron, problem.training.steps
        limit = self.tolerance or (1e-10 if network.is_linear else 5e-3 if network.nonlinearity.kinks else 1e-3)
        while (passed := math.ceil(_GROWTH * passed) + 1) < steps:
            yield passed, max(limit, _ROUGH)
        yield steps, limit

    def _iterate(
        self, window: Window, known: Kernels, limit: float, interrupted: Callable[[], bool]
    ) -> tuple[Kernels, Status, list[float]]:
        """The last image of the map, from the kernels of a shorter window on, damped and extrapolated by Anderson's rule."""
        image = now = window.extended(known)
        changes: list[float] = []
        next_point = Anderson(self.anderson, self.damping)
        label = f"fixed point, {window.times - 1} steps"
        for _ in progress_bar(label, self.progress, iterable=range(self.iterations)):
            if interrupted():
                return image, Status.INTERRUPTED, changes
            try:
                new = window.image(now, fresh=True)
            except RuntimeError as error:  # infinities in a covariance
                if "linalg" not in str(error):
                    raise
                return image, Status.NON_FINITE, changes
            if not all(math.isfinite(float(q.norm())) for q in new.values()):
                return image, Status.NON_FINITE, changes
            image = new
            changes.append(max(distance(image[name], now[name]) for name in image if name not in window.responses))
            if len(changes) > 1 and max(changes[-2:]) < limit:  # twice: responses lag by one iteration
                return image, Status.CONVERGED, changes
            now = next_point(now, image)
        return image, Status.NOT_CONVERGED, changes


def _solution(
    problem: Problem, solver: FixedPointDMFT, now: Kernels, status: Status, stats: dict[str, Any]
) -> Solution:
    network, p = problem.perceptron, problem.data.samples
    times, points = now["f"].shape[:2]
    train = (torch.arange(points) < p).repeat(times)
    kernels = {}
    recorded = (*(step for step in problem.training.recorded_steps if step < times - 1), times - 1)
    for key in network.keys("Phi", "G"):
        joint = now[key][train][:, train] if key.kind == "Phi" else now[key]
        factor = square_root(joint, sorted_modes=True).T.reshape(len(joint), times, -1).transpose(0, 1)
        kernels[key] = TwoTimeKernel(recorded, factor[list(recorded)].contiguous())
    steps = tuple(t for t in snapshot_steps(solver.snapshots, problem.training) if t < times)
    at = {t: [[kernels[key].at(t, t) for key in network.keys(kind)] for kind in ("Phi", "G")] for t in steps}
    limit = problem.in_plane.measure_limit()
    return Solution(
        problem=problem,
        solver=settings(solver),
        f=now["f"][list(recorded), :p],
        f_test=now["f"][list(recorded), p:] if points > p else None,
        recorded_steps=recorded,
        state={},
        status=status,
        snapshots=steps,
        kernels=kernels,
        tangent=torch.stack([tangent_of(problem, limit, *at[t]) for t in steps]) if steps else None,
        stats=stats,
    )
