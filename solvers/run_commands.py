"""Commands that train networks or go on with a run. cli.py makes flags of the fields and help of the docstrings."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from meanfield import checks, storage
from meanfield.problem import Problem
from meanfield.solution import Solution, Status
from solvers.causal_dmft import CausalDMFT
from solvers.checkpoints import checkpointed
from solvers.evolve import settings
from solvers.failures import Interrupted, SolverError
from solvers.finite_width import FiniteWidth
from solvers.infinite_logits import InfiniteLogitsLimit
from solvers.tangent_kernel import TangentKernelLimit
from solvers.wasserstein_flow import WassersteinFlow
from solvers.width_sweep import width_sweep

_RESUMABLE = (WassersteinFlow, CausalDMFT, TangentKernelLimit, InfiniteLogitsLimit, FiniteWidth)


@dataclass(frozen=True)
class Net:
    """Train one network of finite width, of any depth.

    out: file to write (.nc). width: neurons in each hidden layer. seed: of the initial weights.
    overwrite: replace a file that holds another run. checkpoint: keep the state every so many steps; the same command again
    goes on from there.
    """

    out: Path
    problem: Problem
    solver: FiniteWidth
    width: int = 512
    seed: int = 0
    overwrite: bool = False
    checkpoint: int | None = None


@dataclass(frozen=True)
class Sweep:
    """Train networks of many widths and seeds, one file each; the same command again goes on with what is missing.

    out: folder of the networks. widths: neurons in each hidden layer. seeds: one number n means the seeds 0..n-1, several are the
    seeds themselves. workers: processes that share the work, at most one a core and one a network; 0 for this one alone.
    """

    out: Path
    problem: Problem
    solver: FiniteWidth
    widths: tuple[int, ...] = (64, 128, 256, 512)
    seeds: tuple[int, ...] = (16,)
    workers: int = 0


@dataclass(frozen=True)
class Resume:
    """Go on with a kept run: to its end if it was interrupted, or for more steps.

    file: the run (.nc). out: file to write, NAME.nc for NAME.partial.nc if left out. steps: how many more, all that are missing if
    left out. device: where to go on, as before if left out. overwrite: replace a file that holds another run.
    """

    file: Path = field(metadata={"positional": True})
    out: Path | None = None
    steps: int | None = None
    device: str | None = None
    overwrite: bool = False


def _net(asked: Net) -> None:
    solver = replace(asked.solver, width=asked.width, seed=asked.seed)
    solve(asked.problem, solver, lambda: solver(asked.problem), asked.out, asked.overwrite, asked.checkpoint)


def _resume(asked: Resume) -> None:
    earlier = storage.load(asked.file)
    if not isinstance(earlier, Solution):
        raise ValueError(f"{asked.file} holds a {type(earlier).__name__}: a run is needed here")
    values = {name: value for name, value in earlier.solver.items() if name != "name"}
    if any(str(value).startswith("given (") for value in values.values()):
        raise ValueError(
            f"{asked.file} started from an object of Python's: go on from there, with solver.resume(solution, steps)"
        )
    kind: Any = checks.lookup("solver", earlier.solver.get("name"), {c.__name__: c for c in _RESUMABLE})
    solver = kind(**values | ({"device": asked.device} if asked.device else {}))
    missing = earlier.problem.training.steps - earlier.steps
    if asked.steps is None and missing == 0:
        raise ValueError(f"{asked.file} is finished after {earlier.steps} steps: give --steps N for N more")
    steps = missing if asked.steps is None else asked.steps
    finished = asked.file.with_name(re.sub(r"\.partial(-\d+)?\.nc$", ".nc", asked.file.name))
    if asked.out is None and finished == asked.file:
        raise ValueError(
            f"where should the longer run be kept? give --out FILE (with --overwrite it may be {asked.file})"
        )
    problem = earlier.problem.with_steps(earlier.steps + checks.integer("steps", steps, 1))
    solve(problem, solver, lambda: solver.resume(earlier, steps), asked.out or finished, asked.overwrite)


def solve(
    problem: Problem,
    solver: Any,
    run: Callable[[], Solution],
    out: Path,
    overwrite: bool,
    checkpoint: int | None = None,
) -> None:
    """Solve and keep the solution, or what there is of it; nothing to do if `out` holds this very run.

    checkpoint: steps after which the state is kept beside, until the run is finished.
    """
    storage.writable(out)
    if out.exists() and not overwrite:
        kept = _readable(out)
        same = isinstance(kept, Solution) and kept.problem == problem and dict(kept.solver) == settings(solver)
        if not same or kept.status is not Status.FINISHED:
            what = str(kept).splitlines()[0]
            raise ValueError(f"{out} holds another run, {what}: give another --out, or --overwrite to replace it")
        print(f"{kept}\nalready kept in {out}; --overwrite solves it again")
        return
    beside = out.with_suffix(".checkpoint.nc")
    try:
        solution = run() if checkpoint is None else checkpointed(solver, problem, beside, checkpoint)
    except (SolverError, Interrupted) as error:
        if error.solution is None:
            raise
        path = keep(error.solution, _unused(out.with_suffix(".partial.nc")))
        on = (
            f"; go on with: meanfield resume {path}"
            if isinstance(error, Interrupted) and hasattr(solver, "resume")
            else ""
        )
        told = str(error).removesuffix(" What was computed is in this error's .solutions")
        raise type(error)(f"{told}\nwhat was computed is kept in {path}{on}", error.solutions) from error
    path = keep(solution, out)
    for left in out.parent.glob(f"{out.stem}.checkpoint*.nc") if checkpoint else ():
        left.unlink()
    print(f"{solution}\n{solution.stats['seconds']:.2f} s, kept in {path}")
    if "warning" in solution.stats:
        print(f"warning: {solution.stats['warning']}")


def _readable(path: Path) -> Any:
    try:
        return storage.load(path)
    except ValueError as error:
        raise ValueError(f"{error}; give another --out, or --overwrite to replace it") from error


def _unused(path: Path) -> Path:
    """`path`, or NAME-2.nc, .. if it is taken: an earlier partial run may be longer than this one."""
    names = (path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, 10_000)))
    return next(name for name in names if not name.exists())


def keep(result: Any, path: Path) -> Path:
    """Save `result`, elsewhere if `path` cannot be written; returns where."""
    try:
        return storage.save(result, path)
    except OSError as error:  # e.g. a full disk: the result is worth another place
        elsewhere = _unused(Path(tempfile.gettempdir()) / path.name)
        print(f"meanfield: {path} could not be written ({error}); trying {elsewhere}", file=sys.stderr)
        return storage.save(result, elsewhere)


def _sweep(asked: Sweep) -> None:
    start, workers = time.perf_counter(), checks.integer("workers", asked.workers, 0)
    seeds = asked.seeds[0] if len(asked.seeds) == 1 else asked.seeds
    networks = len(set(asked.widths)) * len(checks.seeds(seeds))
    with _executor(useful(workers, networks, os.cpu_count() or 1)) as executor:
        nets = width_sweep(asked.problem, asked.widths, seeds, asked.solver, executor, asked.out)
    for width in sorted(set(asked.widths)):
        losses = torch.stack([net.loss[-1] for net in nets if net.width == width])
        print(f"width {width}: {len(losses)} networks, final loss {losses.mean():.4g} (lowest {losses.min():.4g})")
    print(f"{time.perf_counter() - start:.2f} s, kept in {asked.out}")


def useful(workers: int, networks: int, cores: int) -> int:
    """So many of the asked workers as have a network and a core each; says so where they are fewer"""
    most = min(networks, cores)
    if workers <= most:
        return workers
    print(
        f"meanfield: {most} workers start: {workers} were asked for {networks} networks on {cores} cores",
        file=sys.stderr,
    )
    return most


@contextmanager
def _executor(workers: int) -> Iterator[Executor | None]:
    """Processes that start afresh (a forked torch may hang), with this one's threads shared among them."""
    if workers == 0:
        yield None
        return
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,))
    others = set(multiprocessing.active_children())
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by workers; a run in progress listens for itself
    try:
        for _ in range(workers):
            pool.submit(int)  # starts a worker
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        yield pool
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        while left := set(multiprocessing.active_children()) - others:  # again for each run that was queued
            for pid in filter(None, (worker.pid for worker in left)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
            time.sleep(0.1)
        raise
    finally:
        pool.shutdown()


COMMANDS: dict[type, Callable[[Any], None]] = {
    Net: _net,
    Sweep: _sweep,
    Resume: _resume,
}
