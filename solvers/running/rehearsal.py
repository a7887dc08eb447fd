"""Rehearsal: what a run will cost, from its own beginning at full size, which is solved and timed (docs/performance.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from meanfield.problem.training import Training
from meanfield.solution.solution import Solution, Status
from solvers.running.clock import LONGEST, Beginning, Clock, Now, begun, under
from solvers.running.solver import Estimate, Solver

SECONDS = 3.0  # that a rehearsal takes, but for what cannot be shorter
_FEWER = [2**k for k in range(3, 40, 2)]  # samples with which a problem of many is rehearsed first
_PART = 20  # each of these rehearsals takes so small a part of the time
_STEEPEST = np.array([3.0, 2.0, 3.0])  # powers of the samples with which set-up, steps and end can grow

Growth = Callable[[Problem, Beginning], np.ndarray]
S = TypeVar("S", bound=Solver)


def together(parts: Sequence[Estimate], at_once: int = 1) -> Estimate:
    """Of runs one after another, so many `at_once`"""
    seconds, most = sum(part.seconds for part in parts) / at_once, max(part.bytes for part in parts)
    return Estimate(seconds, at_once * most, "; ".join(dict.fromkeys(part.how for part in parts)))


def expected(
    solver: S,
    problem: Problem,
    seconds: float,
    run: Callable[[S, Problem], object] = lambda solver, problem: solver(problem),
    growth: Growth | None = None,
    now: Now = time.perf_counter,
) -> tuple[float, str, Beginning]:
    """(seconds of `run(solver, problem)`, what they were found from, the last rehearsal), from the run's beginning at full size.

    Where set-up and a step alone would take LONGEST times `seconds`, as fewer samples show, problems with those stand for it, by the
    power of their number with which each part grows. growth: sizes (T+1,) to which the cost of a step is linear; None: steps cost alike.
    Snapshots are taken in the first steps, as many as are asked for.
    """
    training, samples, seconds = problem.training, problem.data.samples, checks.positive("seconds", seconds)
    steps, every = training.steps, training.record_every
    snapshots = len({steps if step == -1 else step for step in solver.snapshots})
    early = tuple(min(i * every, steps) for i in range(min(snapshots, training.record_count)))
    quiet = replace(solver, progress=False, raise_on_failure=False)

    def parts(asked: Problem, seconds: float) -> tuple[Beginning, np.ndarray, np.ndarray]:
        clock = Clock(seconds, now, max(1, snapshots) if every == 1 else 1)
        found, often = begun(lambda asked: run(replace(quiet, snapshots=early), asked), asked, clock), None
        if every > 1 and not found.whole:
            dense = replace(asked, training=replace(asked.training, record_every=1))
            often = begun(lambda asked: run(replace(quiet, snapshots=()), asked), dense, Clock(seconds / _PART, now))
        return found, *_parts(found, often, asked, snapshots, growth)

    tried: list[tuple[int, np.ndarray, np.ndarray]] = []  # samples, seconds of each part: of all steps, of one
    found = None
    for p in [] if _is_tied(solver) else takewhile(lambda p: p < samples, _FEWER):
        if len(tried) > 1 and _scaled(tried, 2, p) > LONGEST * seconds:
            break
        found, whole, least = parts(fewer(problem, p), seconds / _PART)
        tried.append((p, whole, least))
    if found is not None and len(tried) > 1 and _scaled(tried, 2, samples) > LONGEST * seconds:
        few = f"{tried[-2][0]} and {tried[-1][0]} of {samples} samples"
        return _scaled(tried, 1, samples), f"the first {found.steps:.3g} of {steps} steps with {few}", found
    found, whole, _ = parts(problem, seconds)
    return (
        float(whole.sum()),
        f"the whole run{_ending(found)}" if found.whole else f"the first {found.steps:.3g} of {steps} steps",
        found,
    )


def _ending(found: Beginning) -> str:
    """Said of a run that does not come to its end"""
    ends = found.solution if isinstance(found.solution, Solution) else None
    if ends is None or ends.status in (Status.FINISHED, Status.CONVERGED, Status.NOT_CONVERGED):
        return ""
    return f", which ends after step {ends.steps}: {ends.status.value}"


def _parts(
    found: Beginning, often: Beginning | None, problem: Problem, snapshots: int, growth: Growth | None
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of set-up, steps and end, of the whole run and of one of a single step; often: a beginning that records every step"""
    least = np.array([found.setup, min(found.costs(), default=found.spent), found.end])
    if found.whole:
        return np.array([found.setup, found.spent, found.end]), least
    sizes = None if growth is None or found.steps < 1 else growth(problem, found)
    left = _left(found, often, problem.training, snapshots, sizes)
    taken = 1 + int(found.steps) // problem.training.record_every
    return np.array([found.setup, found.spent + left, found.end * max(1.0, snapshots / taken)]), least


def _left(
    found: Beginning, often: Beginning | None, training: Training, snapshots: int, sizes: np.ndarray | None
) -> float:
    """Seconds of the steps that were not taken"""
    from scipy.optimize import nnls  # half a second to import

    costs, steps = found.costs(), training.steps
    # within the first: by the power of the time reached that the second half of what was spent shows
    if not len(costs):
        half = max(float(np.interp(found.spent / 2, found.laps[:, 1], found.laps[:, 0])), 1e-9)
        power = 1.0 / max(1.0, float(np.log2(found.steps / half)))
        return found.spent * ((steps / found.steps) ** power - 1)
    later = slice(max(len(costs) // 2, min(snapshots, len(costs)) - 1), None)  # caches are warm, and snapshots taken
    if sizes is not None:
        size = sizes[1 : len(costs) + 1][later]
        columns = np.stack([np.ones_like(size), size / size.mean()], 1)
        fixed, grows = nnls(columns, costs[later])[0] if len(size) > 3 else (0.0, float(costs[later].mean()))
        return float((fixed + grows * sizes[len(costs) + 1 :] / size.mean()).sum())
    if often is None:
        return (steps - found.steps) * float(costs[later].mean())
    plain = np.arange(1, len(costs) + 1) % training.record_every != 0  # steps without a record
    step, both = float(costs[plain].mean()), often.costs()
    records = training.record_count - 1 - int(found.steps) // training.record_every
    return (steps - found.steps) * step + records * max(0.0, float(both[len(both) // 2 :].mean()) - step)


def _scaled(tried: Sequence[tuple[int, np.ndarray, np.ndarray]], which: int, samples: int) -> float:
    """Seconds of all parts, each by the power of the number of samples that the last two show"""
    (few, *_), (more, *_) = tried[-2:]
    small, large = (np.maximum(row[which], 1e-9) for row in tried[-2:])
    power = np.clip(np.log(large / small) / np.log(more / few), 0, _STEEPEST)
    return float((large * (samples / more) ** power).sum())


def fewer(problem: Problem, samples: int) -> Problem:
    """The problem with so many of its training samples, evenly chosen, and as small a part of its test samples"""
    data, training = problem.data, problem.training
    rows, test = torch.linspace(0, data.samples - 1, samples).round().long(), {}
    if data.x_test is not None:
        count = max(1, len(data.x_test) * samples // data.samples)
        some = torch.linspace(0, len(data.x_test) - 1, count).round().long()
        test = {"x_test": data.x_test[some], "y_test": None if data.y_test is None else data.y_test[some]}
    batch = None if training.batch_size is None else min(training.batch_size, samples)
    if isinstance(data, Stream):
        own: Dataset = replace(data, x=data.x[rows], y=data.y[rows], batch=min(data.batch, samples), **test)
    else:
        own = Dataset(data.x[rows], data.y[rows], **test)
    return replace(problem, data=own, training=replace(training, batch_size=batch))


def _is_tied(solver: Solver) -> bool:
    """Whether a setting belongs to the samples, such as given outputs or a given kernel"""
    return any(isinstance(value, (Tensor, Solution)) for value in vars(solver).values())


def by_law(
    run: Callable[[int], object], most: int, seconds: float, now: Now = time.perf_counter
) -> tuple[np.ndarray, int]:
    """(seconds of run(n) for n = 0..most, the last n that was run), from runs of 1, 2, 4, .. as far as `seconds` last.

    Four of them at least, unless they would last LONGEST times that. Between and beyond them by the polynomial of third degree in n + 1
    without negative coefficients that is nearest in relative terms.
    """
    taken, seconds = dict[int, float](), checks.positive("seconds", seconds)
    with under(Clock(np.inf, now)):
        run(min(1, most))  # loads what the first one needs
        start, n = now(), min(1, most)
        while True:
            times = [now()]
            while len(times) < 4 and times[-1] - times[0] <= seconds / _PART:  # of short ones the least
                run(n)
                times.append(now())
            taken[n] = float(min(np.diff(times)))
            law, following = _law(taken, most), min(2 * n, most)
            limit = seconds * (LONGEST if len(taken) < 4 else 1)
            if n == most or now() - start + law[following] > limit:
                return law, n
            n = following


def _law(taken: dict[int, float], most: int) -> np.ndarray:
    from scipy.optimize import nnls

    powers, seconds, n = np.arange(4.0), np.array([*taken.values()]), np.array([*taken]) + 1.0
    scale = n.max() ** powers
    fit = nnls(n[:, None] ** powers / scale / seconds[:, None], np.ones(len(n)))[0] / scale
    law = (np.arange(most + 1)[:, None] + 1.0) ** powers @ fit
    law[[*taken]] = seconds
    return law
