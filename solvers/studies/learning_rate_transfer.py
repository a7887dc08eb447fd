"""learning_rate_transfer: loss against the learning rate for several widths and the limit (equation 92)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.comparison.transfer_report import TransferReport
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard
from meanfield.solution.solution import Solution, Status
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.finite.finite_width import FiniteWidth
from solvers.running.clock import progress_bar
from solvers.running.rehearsal import together
from solvers.running.solver import Estimate, Solver

LEAST = 3  # rates, of which one has neighbours


@checked
def learning_rate_transfer(
    problem: Problem,
    rates: Sequence[float],
    widths: Sequence[int] = (64, 256, 1024),
    seeds: int | Sequence[int] = 4,
    limit: Solver | None = None,
    solver: FiniteWidth | None = None,
    test: bool = False,
    progress: bool | None = None,
) -> TransferReport:
    """Train networks of every width and seed, and the limit, at each learning rate for the same number of steps.

    A run that blows up is part of the answer: its loss is infinite, and the study goes on. ValueError, before any work, for fewer than
    three rates, and for what a solver would refuse.

    Args:
        problem: What is asked; its learning rate is replaced
        rates: At least three, in any order
        widths: Neurons in each hidden layer; of a standard parameterization how many times its widths
        seeds: The seeds themselves, or a number n that means 0..n-1; intervals need three
        limit: Solves the limit; CausalDMFT in two groups if left out, where the scaling has that limit, and none elsewhere
        solver: Settings of the networks (its width and seed are replaced)
        test: Take the loss of the test samples
        progress: Show a bar; in a terminal only if left out

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT, learning_rate_transfer
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), mf.Network(2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> limit = CausalDMFT(samples=64, groups=2)
        >>> report = learning_rate_transfer(problem, (0.1, 0.4, 1.6), widths=(16, 64), seeds=3, limit=limit)
        >>> report.final.shape, report.limit.shape
        ((2, 3, 3), (2, 3))
    """
    asked, sized, chosen, limit = _asked(problem, rates, widths, seeds, limit, solver, test)
    infinite: list[np.ndarray] = []
    finite: list[list[np.ndarray]] = [[] for _ in sized]
    with progress_bar("learning rates", progress, total=len(asked) * (len(sized) + (limit is not None))) as bar:
        for one in asked:
            if limit is not None:
                infinite.append(_limit_losses(_told_early(limit(one)), test))
                bar.update()
            for found, nets in zip(finite, sized, strict=True):
                found.append(np.array([_losses(net, test) for net in nets.ensemble(one, chosen)]))
                bar.update()
    final, best = np.array(finite).transpose(3, 0, 1, 2)
    rows = np.array(infinite).T if infinite else None  # final, best and their errors
    return TransferReport(
        rates=np.array([one.training.learning_rate for one in asked]),
        widths=tuple(nets.width for nets in sized),
        final=final,
        best=best,
        limit=None if rows is None else rows[:2],
        limit_errors=None if rows is None else rows[2:],
        settings=_told(problem, test),
    )


def transfer_cost(
    problem: Problem,
    rates: Sequence[float],
    widths: Sequence[int],
    seeds: int | Sequence[int],
    limit: Solver | None,
    solver: FiniteWidth | None,
    test: bool,
) -> Estimate:
    """What `learning_rate_transfer` with these arguments takes, from the beginnings of its runs at the lowest rate"""
    asked, sized, chosen, limit = _asked(problem, rates, widths, seeds, limit, solver, test)
    found = [nets.estimate(asked[0], len(chosen)) for nets in sized]
    found += [] if limit is None else [limit.estimate(asked[0])]
    once = together(found)
    return replace(once, seconds=len(asked) * once.seconds)


def _asked(
    problem: Problem,
    rates: Sequence[float],
    widths: Sequence[int],
    seeds: int | Sequence[int],
    limit: Solver | None,
    solver: FiniteWidth | None,
    test: bool,
) -> tuple[list[Problem], list[FiniteWidth], tuple[int, ...], Any]:
    """The problem at each rate, the networks of each width, the seeds and the limit's solver, once all of them are checked"""
    ascending = sorted({checks.positive("rates", rate) for rate in rates})
    if len(ascending) < LEAST:
        raise ValueError(f"the best of several rates needs at least {LEAST} that differ: received {ascending}")
    if test and problem.data.y_test is None:
        raise ValueError("test=True needs test samples, which the data lack: give y_test, or leave test out")
    if problem.training.steps < 1:
        raise ValueError("rates are told apart by training: received steps=0; take at least 1")
    chosen = checks.seeds(seeds)
    asked = [replace(problem, training=replace(problem.training, learning_rate=rate)) for rate in ascending]
    quiet: dict[str, Any] = {"snapshots": (), "progress": False, "raise_on_failure": False}
    nets = replace(solver or FiniteWidth(), keep_neurons=False, **quiet)
    sized = [replace(nets, width=width) for width in sorted(checks.integers("widths", widths, 1))]
    if limit is None and _has_limit(problem.scaling):
        limit = CausalDMFT(groups=2, two_time=False, keep_neurons=False)
    infinite = None if limit is None else replace(limit, **quiet)
    for one in asked:
        for each in sized:
            each.check(one, len(chosen))
        if infinite is not None:
            infinite.check(one)
    return asked, sized, chosen, infinite


def _has_limit(scaling: Scaling | Standard) -> bool:
    if isinstance(scaling, Standard):
        return False
    try:
        scaling.measure_limit()
    except ValueError:
        return False
    return True


def _told_early(run: Solution) -> Solution:
    """A limit that ended early for another reason than blowing up has no loss, and says why"""
    if not (run.status.blew_up or run.status in (Status.FINISHED, Status.CONVERGED)):
        rate, why = run.problem.training.learning_rate, run.stats.get("reason", run.status.value)
        warn(f"the limit has no result at the learning rate {rate:g}: {why}; give limit=..", RuntimeWarning)
    return run


def _losses(run: Solution, test: bool) -> tuple[float, float]:
    """(final, least) loss; infinite for a run that blew up, nan for one that ended early otherwise"""
    if run.status not in (Status.FINISHED, Status.CONVERGED):
        lost = np.inf if run.status.blew_up else np.nan
        return lost, lost
    losses = run.test_loss if test else run.loss
    return float(losses[-1]), float(losses.min())


def _limit_losses(run: Solution, test: bool) -> np.ndarray:
    """(4,) `_losses` and their standard errors, nan where those are unknown"""
    losses, errors = run.test_loss if test else run.loss, run.standard_errors.get("test_loss" if test else "loss")
    steps = (-1, int(torch.argmin(losses)))
    known = [float(errors[step]) if errors is not None else np.nan for step in steps]
    return np.array([*_losses(run, test), *known])


def _told(problem: Problem, test: bool) -> dict[str, str]:
    points, trained, scaling = problem.data.points, problem.data.samples, problem.scaling
    shown = f"{trained} watched" if isinstance(problem.data, Stream) else f"{trained} training"
    units = f", N in units of {', '.join(map(str, scaling.widths))}" if isinstance(scaling, Standard) else ""
    return {
        "data": problem.data.name,
        "samples": f"{points - trained} test" if test else shown,
        "network": problem.network_name,
        "scaling": scaling.name + units,
        "steps": f"{problem.training.steps}",
    }
