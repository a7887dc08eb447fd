"""checkpointed: a run in stretches, each kept in a file, so that one that was killed goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.files import storage
from meanfield.files.sealed import DamagedFile
from meanfield.problem.problem import Problem
from meanfield.solution.pooling import pooled
from meanfield.solution.solution import Solution, Status
from solvers.running.failures import Interrupted, SolverError, conclude
from solvers.running.resuming import differing, ended_well, recorded_before
from solvers.running.sharding import RankLost, current
from solvers.running.solver import Grouped, KeepsState, Solver, settings, stated
from solvers.running.trajectory import snapshot_steps


@checked
def checkpointed(solver: Solver, problem: Problem, path: str | Path, every: int = 100) -> Solution:
    """`solver(problem)`, with the state kept in `path` (.nc) every `every` steps; called again, it goes on from there.

    The result equals that of an uninterrupted run bit for bit on the same device with the same number of threads; with another one
    it goes on with a warning, and equals it to rounding. What is kept is a run interrupted there, which `resume` takes as well; the
    file before the last is NAME.previous.nc: a damaged file is passed over for it, with a warning. Groups of CausalDMFT have a file
    each. On success the files stay: a finished run is returned at once, or goes on if more steps are asked for. A file that cannot be
    written (a full disk, say) is a warning, and the run goes on. Under `over_ranks` the first process writes and all read, so `path`
    must lie where all see it; where a process is lost, the others' RankLost says which file and step to go on from. ValueError for a
    file of another run.

    Example:
        >>> import tempfile
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow, checkpointed
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = checkpointed(WassersteinFlow(particles=64), problem, folder + "/run.nc", every=5)
        >>> bool((run.f == WassersteinFlow(particles=64)(problem).f).all())
        True
    """
    path = storage.writable(path)
    every = checks.integer("every", every, 1)
    alone = solver.alone(problem) if isinstance(solver, Grouped) else [solver]
    if len(alone) > 1:
        parts = [checkpointed(one, problem, path.with_stem(f"{path.stem}-{one.seed}"), every) for one in alone]
        return pooled(parts, settings(solver))
    with _kept_where(path):
        return _in_stretches(alone[0], problem, path, every)


def _in_stretches(solver: Solver, problem: Problem, path: Path, every: int) -> Solution:
    done = _found(solver, problem, path)
    total, wanted = problem.training.steps, snapshot_steps(solver.snapshots, problem.training)
    while done is None or done.steps < total:
        start = 0 if done is None else done.steps
        end = min(total, start + every)
        stretch = _part(solver, tuple(step for step in wanted if step <= end))
        try:
            done = stretch(problem.with_steps(end)) if done is None else stretch.resume(done, end - start)
        except (SolverError, Interrupted) as error:
            error.solutions = [_of_the_whole(solver, problem, s) for s in error.solutions]
            if error.solution is not None and error.solution.state and current().first:
                _keep_or_warn(error.solution, path)
            if isinstance(error, Interrupted):
                conclude(error.solutions, True)  # says how many steps of all
            raise
        done = _of_the_whole(solver, problem, done)
        if not ended_well(done) and done.status is not Status.INTERRUPTED:
            return done
        ranks = current()
        if ranks.first:
            _keep_or_warn(done, path)
        ranks.any(False)  # all wait until the file is written
        if ranks.count > 1 and done.steps < total:
            done = storage.load(path)  # the first process alone has the whole of it
    return replace(done, state={}) if isinstance(solver, KeepsState) and not solver.keep_state else done


def _of_the_whole(solver: Solver, problem: Problem, stretch: Solution) -> Solution:
    """A stretch as the run that it belongs to would be if it had been interrupted there"""
    before_its_end = ended_well(stretch) and stretch.steps < problem.training.steps
    status = Status.INTERRUPTED if before_its_end else stretch.status
    whole = stretch.problem.with_steps(problem.training.steps)
    return replace(stretch, problem=whole, solver=settings(solver), status=status)


@contextmanager
def _kept_where(path: Path) -> Iterator[None]:
    """A RankLost from within says which file to go on from."""
    try:
        yield
    except RankLost as error:
        for candidate in (path, _previous(path)):
            try:
                step = storage.load(candidate).steps
            except (ValueError, OSError):  # none there, or a broken one
                continue
            raise RankLost(error.reason, candidate, step) from error
        raise


def _part(solver: Solver, snapshots: tuple[int, ...]) -> Solver:
    """The solver for a stretch, which keeps the state: also the last one, since more steps may be asked for later"""
    part = replace(solver, snapshots=snapshots)
    return replace(part, keep_state=True) if isinstance(part, KeepsState) else part


def _keep_or_warn(solution: Solution, path: Path) -> None:
    """The run in memory is worth more than its checkpoint; many processes, though, go on from the file."""
    try:
        _keep(solution, path)
    except OSError as error:
        if current().count > 1:
            raise
        warn(f"the run goes on, but its checkpoint could not be written: {error}")


def _keep(solution: Solution, path: Path) -> None:
    """Write beside, then move: at every moment one of the two files is whole."""
    fresh = storage.save(solution, path.with_name(f"{path.stem}.new.nc"))
    if path.exists():
        os.replace(path, _previous(path))
    os.replace(fresh, path)


def _found(solver: Solver, problem: Problem, path: Path) -> Solution | None:
    """The last good checkpoint, if there is one. ValueError for that of another run."""
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            found = storage.load(candidate)
        except (DamagedFile, OSError) as error:
            why = " ".join(str(error).split())
            warn(f"the checkpoint {candidate} cannot be read and is passed over: {why}")
            continue
        _check(solver, problem, found, candidate)
        return found
    return None


def _check(solver: Solver, problem: Problem, found: object, path: Path) -> None:
    remedy = "give another file, or remove this one to start anew"
    if not isinstance(found, Solution):
        raise ValueError(f"{path} holds a {type(found).__name__}, no checkpoint: {remedy}")
    total = problem.training.steps
    if found.problem.with_steps(total) != stated(solver, problem) or found.steps > total:
        raise ValueError(f"the checkpoint {path} belongs to another problem, {found!r}: {remedy}")
    if differ := differing(solver, found):
        raise ValueError(f"the checkpoint {path} was made with other settings ({differ}): {remedy}")
    recorded_before(solver, problem, found)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous.nc")
