"""width_sweep: finite networks of many widths and seeds, through any concurrent.futures.Executor, kept as they finish."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.files import storage
from meanfield.files.sealed import DamagedFile
from meanfield.network.recalled import CodeMissing
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution, Status
from solvers.finite.finite_width import FiniteWidth
from solvers.running.clock import progress_bar
from solvers.running.failures import Interrupted, SolverError
from solvers.running.keeping import keep, made
from solvers.running.resuming import differing
from solvers.running.workers import end_with_parent


@dataclass(frozen=True)
class _Task:
    width: int
    seeds: tuple[int, ...]


@checked
def width_sweep(
    problem: Problem,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int | Sequence[int] = 16,
    solver: FiniteWidth | None = None,
    executor: Executor | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> list[Solution]:
    """Networks of every width and seed, by width and then seed.

    A network that fails does not cost the others: SolverError at the end carries every finished one in `.solutions`, and so does
    Interrupted. Nor does a worker that dies: dask gives its tasks to others; a process pool is then broken, and the next call, with a
    new one and the folder, runs what is missing. An executor changes batches, and a worker may have other threads: both change
    rounding (FiniteWidth's `batch`).

    Args:
        problem: What is asked
        widths: Neurons in each hidden layer
        seeds: The seeds themselves, or a number n that means 0..n-1
        solver: Settings of the networks (its width and seed are replaced)
        executor: Runs the tasks, e.g. a ProcessPoolExecutor; they run here if left out
        folder: Keeps each finished network as a file (elsewhere, with a warning, where it cannot be written), and a sweep that failed
            or was interrupted goes on from what it holds; a damaged file is a warning, and its network is trained again. ValueError if
            it holds another run
        progress: Show a bar; in a terminal only if left out

    Example:
        >>> import meanfield as mf
        >>> from solvers import width_sweep
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> [int(net.solver["width"]) for net in width_sweep(problem, widths=(8, 16), seeds=2)]
        [8, 8, 16, 16]
    """
    solver = replace(solver or FiniteWidth(), progress=False, raise_on_failure=False)
    widths = checks.integers("widths", widths, 1)
    chosen = checks.seeds(seeds)
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"the result folder {folder} is a file: give a folder")
    with nullcontext() if folder is None else made(Path(folder)):
        return _swept(problem, widths, chosen, solver, executor, folder, progress)


def _swept(
    problem: Problem,
    widths: Sequence[int],
    chosen: Sequence[int],
    solver: FiniteWidth,
    executor: Executor | None,
    folder: str | Path | None,
    progress: bool | None,
) -> list[Solution]:
    store = _Store(Path(folder), problem, solver) if folder is not None else None
    done = store.load(widths, chosen) if store else {}
    tasks = _tasks(problem, solver, widths, chosen, done, many=executor is not None)
    with progress_bar("networks", progress, total=len(widths) * len(chosen), initial=len(done)) as bar:
        networks = _Networks(done, store, bar)
        try:
            _run(tasks, problem, solver, executor, networks)
        except KeyboardInterrupt as error:
            if isinstance(error, Interrupted):
                networks.add([s for s in error.solutions if s.status is Status.FINISHED])
            kept = f" and kept in {folder}; call again to go on" if store else "; give a folder to go on from them"
            raise Interrupted(f"interrupted: {len(done)} networks are finished{kept}", networks.ordered) from error
    if failures := networks.failures:
        raise SolverError(
            f"{len(failures)} of {len(widths) * len(chosen)} networks failed, {len(done)} are finished (in .solutions"
            + (f" and {folder}): " if store else "): ") + "; ".join(failures[:3]) + ("; .." if len(failures) > 3 else ""),
            networks.ordered,
        )  # fmt: skip
    return networks.ordered


@dataclass
class _Networks:
    """The networks of a sweep: those that are done by width and seed, kept in a store if there is one, and why others failed."""

    done: dict[tuple[int, int], Solution]
    store: _Store | None
    bar: tqdm
    failures: list[str] = field(default_factory=list)

    def add(self, solutions: Sequence[Solution]) -> None:
        for solution in solutions:
            width, seed = solution.solver["width"], solution.solver["seed"]
            if solution.status is Status.FINISHED:
                if self.store:
                    self.store.save(solution)
                self.done[width, seed] = solution
            else:
                self.failures.append(f"width {width}, seed {seed}: {solution.status.value} (step {solution.steps})")
        self.bar.update(len(solutions))

    def failed(self, task: _Task, why: str) -> None:
        self.failures.append(f"width {task.width}, seeds {task.seeds}: {why}")

    @property
    def ordered(self) -> list[Solution]:
        """By width and then seed"""
        return [self.done[key] for key in sorted(self.done)]


def _tasks(
    problem: Problem, solver: FiniteWidth, widths: Sequence[int], seeds: Sequence[int], done: dict, many: bool
) -> list[_Task]:
    """Blocks of seeds that one batch can hold, the widest first: they take longest."""
    tasks = []
    for width in sorted(widths, reverse=True):
        left = [seed for seed in seeds if (width, seed) not in done]
        sized = replace(solver, width=width)
        block = sized.seeds_at_once(problem)
        if many:  # enough tasks to share among workers
            block = min(block, max(1, len(left) // 4))
        tasks += [_Task(width, tuple(left[i : i + block])) for i in range(0, len(left), block)]
    return tasks


def _solve(problem: Problem, solver: FiniteWidth, task: _Task) -> list[Solution]:
    end_with_parent()
    return replace(solver, width=task.width).ensemble(problem, task.seeds)


def _run(
    tasks: Sequence[_Task],
    problem: Problem,
    solver: FiniteWidth,
    executor: Executor | None,
    networks: _Networks,
) -> None:
    if executor is None:
        for task in tasks:
            try:
                networks.add(_solve(problem, solver, task))
            except (SolverError, RuntimeError, MemoryError) as error:
                networks.failed(task, str(error))
        return
    futures: dict[Future, _Task] = {}
    try:
        for task in tasks:
            try:
                futures[executor.submit(_solve, problem, solver, task)] = task
            except RuntimeError as error:  # the executor broke meanwhile: what it has finished counts
                networks.failed(task, _why(error))
        for future in as_completed(futures):
            try:
                networks.add(future.result())
            except Exception as error:  # a worker may fail in any way; the others go on
                networks.failed(futures[future], _why(error))
    except KeyboardInterrupt:
        for future in futures:
            future.cancel()
        raise


def _why(error: Exception) -> str:
    remedy = " (call again with a new executor)" if isinstance(error, BrokenExecutor) else ""
    return f"{type(error).__name__}: {error}{remedy}"


def network_file(width: int, seed: int) -> str:
    """The name of the file of one network in the folder of its sweep"""
    return f"width{width:06d}_seed{seed:04d}.nc"


class _Store:
    """A folder with one file per network, all of one problem and one set of numerical settings."""

    def __init__(self, folder: Path, problem: Problem, solver: FiniteWidth) -> None:
        self.folder, self.problem, self.solver = folder, problem, solver
        whole = ((path, found) for path in sorted(folder.glob("*.nc")) if (found := self._read(path)) is not None)
        for path, found in islice(whole, 1):
            self._check(path, found)

    def save(self, solution: Solution) -> None:
        """Elsewhere if the folder cannot be written; the networks in memory are worth more than a file."""
        try:
            keep(solution, self.folder / network_file(solution.solver["width"], solution.solver["seed"]))
        except OSError as error:
            warn(f"the sweep goes on, but a network could not be kept: {error}")

    def load(self, widths: Sequence[int], seeds: Sequence[int]) -> dict[tuple[int, int], Solution]:
        found = {}
        for width in widths:
            for seed in seeds:
                path = self.folder / network_file(width, seed)
                if path.exists() and (kept := self._read(path)) is not None:
                    found[width, seed] = self._check(path, kept)
        return found

    def _read(self, path: Path) -> Any:
        """What is kept there; None, with a warning, for a damaged file"""
        try:
            return storage.load(path)
        except DamagedFile as error:
            warn(f"{error}: where this network is asked for, it is trained again")
            return None
        except ValueError as error:
            if not isinstance(error.__cause__, CodeMissing):
                raise
            raise ValueError(
                f"{self.folder} holds another run: {path.name} is of the network {error.__cause__.name!r}, whose code is not that of "
                f"{self.problem.network_name!r} or cannot be compared with it; give an empty folder, or a class or function that "
                "Python can import, by whose name code is found again"
            ) from error

    def _check(self, path: Path, solution: object) -> Solution:
        if not isinstance(solution, Solution) or solution.problem != self.problem:
            own = self.problem.network_name
            other = isinstance(solution, Solution) and solution.problem.network != self.problem.network
            why = f"is of another network than {own!r}, or of other code of it" if other else "solves another problem"
            raise ValueError(f"{self.folder} holds another run: {path.name} {why}; give an empty folder")
        if differ := differing(self.solver, solution, {"width", "seed", "batch", "device"}):
            raise ValueError(
                f"{self.folder} holds another run: {path.name} was made with {differ}; give an empty folder"
            )
        return solution
