"""What a run that goes on takes over from the solution that it continues."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.warning import warn
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution, Status
from solvers.running.integrator import State
from solvers.running.sharding import current
from solvers.running.solver import Solver, settings
from solvers.running.trajectory import remembered, snapshot_steps

FREE = {"snapshots", "engine", "device", "batch", "keep_state"}  # may change when a run goes on


def earlier(solver: Solver, solution: Solution, steps: int) -> Problem:
    """The problem that continues `solution` by `steps`; ValueError if this solver cannot go on from it.

    UserWarning if it was made with another number of threads.
    """
    name = solution.solver.get("name")
    if name != type(solver).__name__:
        raise ValueError(f"a solution of {name} cannot be resumed by {type(solver).__name__}: take {name}(...).resume")
    if solution.status.blew_up:
        raise ValueError("a solution that blew up cannot be resumed: solve again with a lower learning rate")
    if other := differing(solver, solution):
        raise ValueError(
            f"the solution was made with other settings: {other}; resume with a solver of the same settings"
        )
    problem = solution.problem.with_steps(solution.steps + checks.integer("steps", steps, 1))
    training = problem.training
    if training.changing and not bool(training.rates[solution.steps :].any()):
        raise ValueError(
            f"the schedule has ended: the rate of all steps from {solution.steps} on is 0; a run that is to go on takes one that reaches "
            f"further from its start, e.g. mf.Schedule('cosine', over={training.steps})"
        )
    problem.must_have_its_law()
    solver.check(problem)
    recorded_before(solver, problem, solution)
    _tell_of_threads(solution)
    return problem


def differing(solver: Solver, solution: Solution, free: Collection[str] = FREE) -> str:
    """The settings, but for `free` ones, with which it was made and this solver would not go on; empty if there are none"""
    mine, theirs = settings(solver), solution.solver
    fixed = sorted(k for k, v in mine.items() if k not in free and theirs.get(k) != v)
    return ", ".join(f"{k}={theirs.get(k)!r} there, {mine[k]!r} here" for k in fixed)


def recorded_before(solver: Solver, problem: Problem, solution: Solution) -> None:
    """ValueError if the solver asks for a snapshot at a step that `solution` has passed without one."""
    for step in snapshot_steps(solver.snapshots, problem.training):
        if step <= solution.steps and step not in solution.snapshots:
            raise ValueError(
                f"snapshot {step} lies in the past and was not recorded; recorded are {solution.snapshots}"
            )


def ended_well(solution: Solution) -> bool:
    """Whether every step was taken, by the loop or by the iteration"""
    return solution.status in (Status.FINISHED, Status.CONVERGED)


def _tell_of_threads(solution: Solution) -> None:
    """Said once for a run in stretches: the next one goes on from a stretch with the threads of now."""
    before, now = solution.stats.get("threads"), torch.get_num_threads()
    if before not in (None, now) and current().first:
        warn(
            f"the run was made with {before} thread{'s' if before > 1 else ''} and goes on with {now}, which round differently: it will "
            f"equal an uninterrupted run to rounding, not bit for bit; OMP_NUM_THREADS={before} (or torch.set_num_threads) keeps the bits"
        )


def kept_momentum(previous: Solution | None, names: Sequence[str], like: Tensor) -> State:
    """What the steps of a run remembered when it ended; nothing for a fresh run"""
    state = previous.state if previous else {}
    return tuple(state[key].to(like, copy=True) for key in remembered(names) if key in state)
