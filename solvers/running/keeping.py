"""keep and solve: results are saved where they were asked to be, or else where they can be, and a kept run is not solved again."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from meanfield.checking.warning import warn
from meanfield.files import storage
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution
from solvers.running.checkpoints import checkpointed
from solvers.running.failures import Interrupted, SolverError
from solvers.running.resuming import ended_well
from solvers.running.solver import Estimate, Solver, settings, stated

DONE, ELSEWHERE = 0, 3  # exit status


def keep(result: Any, path: Path) -> Path:
    """Save `result`; where `path` cannot be written (a full disk, a folder that is gone), in another folder, with a warning.

    Returns where. The others are those for temporary files, of the user, and the present one. OSError if none will do.
    """
    try:
        return storage.save(result, path)
    except OSError as error:
        failed = error
    for folder in (Path(tempfile.gettempdir()), Path.home(), Path.cwd()):
        try:
            kept = storage.save(result, unused(folder / path.name))
        except OSError:
            continue
        warn(f"{path} could not be written ({failed}); kept in {kept}")
        return kept
    raise OSError(f"{path} could not be written ({failed}), nor could any other folder: free some space") from failed


def unused(path: Path) -> Path:
    """`path`, or NAME-2.nc, .. if it is taken: an earlier partial run may be longer than this one."""
    names = (path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, 10_000)))
    return next(name for name in names if not name.exists())


def solve(
    problem: Problem,
    solver: Solver,
    run: Callable[[], Solution],
    out: Path,
    overwrite: bool,
    checkpoint: int | None = None,
) -> int:
    """Solve and keep the solution, or what there is of it; nothing to do if `out` holds this very run. Returns the exit status.

    checkpoint: steps after which the state is kept beside, until the run is finished.
    """
    storage.writable(out)
    if out.exists() and not overwrite:
        there = readable(out)
        if not (_of_this_run(there, problem, solver) and ended_well(there)):
            what = str(there).splitlines()[0]
            raise ValueError(f"{out} holds another run, {what}: give another --out, or --overwrite to replace it")
        print(f"{there}\nalready kept in {out}; --overwrite solves it again")
        return DONE
    beside = out.with_suffix(".checkpoint.nc")
    try:
        solution = run() if checkpoint is None else checkpointed(solver, problem, beside, checkpoint)
    except KeyboardInterrupt as error:
        reached = error.solution if isinstance(error, Interrupted) else None
        if checkpoint and (told := _in_checkpoints(out, reached)):
            raise KeyboardInterrupt(f"{str(error) or 'interrupted'}\n{told}") from error
        if not isinstance(error, Interrupted):
            raise
        raise _kept_in_part(error, out) from error
    except SolverError as error:
        raise _kept_in_part(error, out) from error
    status = kept(solution, out, f"{solution.stats['seconds']:.2f} s, ")
    for left in _beside(out, "checkpoint") if checkpoint else ():
        left.unlink()
    for left in _beside(out, "partial"):
        if _superseded(left, solution):
            left.unlink()
    return status


def told(estimate: Estimate) -> int:
    """Of a dry run"""
    print(estimate)
    return DONE


def kept(result: Any, out: Path, more: str = "") -> int:
    """Keep a result and print it, `more`, where it lies, and what it warns of. Returns the exit status."""
    path = keep(result, out)
    print(f"{result}\n{more}kept in {path}")
    if warning := getattr(result, "stats", {}).get("warning"):
        print(f"warning: {warning}")
    return DONE if path == out else ELSEWHERE


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder, with those above it, for what is done inside; those that are new are removed again if nothing came into them"""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for path in new:
            with suppress(OSError):  # it holds something
                path.rmdir()


def free(path: Path, overwrite: bool) -> None:
    """ValueError if there is something already that nobody wants to replace"""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give another --out, or --overwrite to replace it")


def _kept_in_part(error: SolverError | Interrupted, out: Path) -> SolverError | Interrupted:
    """The error, with what was computed kept in a file beside `out` that its message names"""
    if error.solution is None:
        return error
    path = keep(error.solution, unused(out.with_suffix(".partial.nc")))
    problem = error.solution.problem
    code = (
        "" if problem.layered is not None else f" --network {problem.architecture.description.source or 'MODULE:NAME'}"
    )
    on = f"; go on with: meanfield resume {path}{code}" if error.solution.state else ""
    return type(error)(f"{error.reason}\nwhat was computed is kept in {path}{on}", error.solutions)


def _in_checkpoints(out: Path, reached: Solution | None) -> str | None:
    """Where and how far the state is kept, if some is and it holds all that was `reached`"""
    for path in _beside(out, "checkpoint"):
        with suppress(ValueError, OSError):
            kept = storage.load(path)
            same = reached is None or (
                reached.solver.get("seed") == kept.solver.get("seed") and kept.steps >= reached.steps
            )
            if same:
                return f"{kept.steps} steps are kept in {path}: the same command goes on from there"
    return None


def _beside(out: Path, what: str) -> list[Path]:
    """NAME.checkpoint.nc, NAME.checkpoint.previous.nc, NAME.partial-2.nc, .. of NAME.nc"""
    return sorted(out.parent.glob(f"{glob.escape(out.stem)}.{what}*.nc"))


def _of_this_run(kept: object, problem: Problem, solver: Solver) -> bool:
    asked = stated(solver, problem), settings(solver)
    return isinstance(kept, Solution) and (kept.problem, dict(kept.solver)) == asked


def _superseded(path: Path, solution: Solution) -> bool:
    """Whether `path` holds a part of `solution` and nothing else"""
    try:
        part = storage.load(path)
    except (ValueError, OSError):
        return False
    whole = solution.problem.training.steps
    return (
        isinstance(part, Solution)
        and part.steps <= solution.steps
        and part.problem.with_steps(whole) == solution.problem
        and dict(part.solver) == dict(solution.solver)
    )


def readable(path: Path) -> Any:
    """What is kept in `path`; ValueError that says how to write there if it cannot be read"""
    try:
        return storage.load(path)
    except ValueError as error:
        raise ValueError(f"{error}; give another --out, or --overwrite to replace it") from error
