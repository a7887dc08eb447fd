"""Commands that train networks or go on with a run. flags.py makes flags of the fields, help of the texts under them."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from meanfield.checking import checks
from meanfield.files import storage
from meanfield.solution.solution import Given, Solution
from solvers.command_line.builders import Reads, every, loaded
from solvers.command_line.limits import Command, Run, run
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.dmft.fixed_point_dmft import FixedPointDMFT
from solvers.dmft.revealed_width import RevealedWidth
from solvers.finite.finite_width import FiniteWidth
from solvers.finite.width_sweep import network_file, width_sweep
from solvers.lazy.tangent_kernel_limit import TangentKernelLimit
from solvers.running.keeping import DONE, ELSEWHERE, solve, told
from solvers.running.rehearsal import together
from solvers.running.solver import Grouped, Solver
from solvers.running.workers import end_with_parent
from solvers.two_layer.infinite_logits import InfiniteLogitsLimit
from solvers.two_layer.wasserstein_flow import WassersteinFlow

_SOLVERS: tuple[type[Solver], ...] = (
    WassersteinFlow,
    CausalDMFT,
    FixedPointDMFT,
    TangentKernelLimit,
    InfiniteLogitsLimit,
    FiniteWidth,
    RevealedWidth,
)


@dataclass(frozen=True, kw_only=True)
class Net(Run):
    """Train one network of finite width, of any depth."""

    solver: FiniteWidth
    """Numerical settings; initial weights depend on the seed and the width alone"""
    width: int = 512
    """Neurons in each hidden layer"""
    seed: int = 0
    """Of the initial weights"""


@dataclass(frozen=True, kw_only=True)
class Sweep(Command):
    """Train networks of many widths and seeds, one file each; the same command again goes on with what is missing."""

    out: Path
    """Folder of the networks"""
    solver: FiniteWidth
    """Numerical settings; initial weights depend on the seed and the width alone"""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Neurons in each hidden layer"""
    seeds: tuple[int, ...] = (16,)
    """One number n means the seeds 0..n-1, several are the seeds themselves"""
    workers: int = 0
    """Processes that share the work, at most one a core and one a network; 0 for this one alone"""
    threads: int | None = None
    """Threads of the processor, shared among the workers; those of OMP_NUM_THREADS, or all, if left out"""
    dry_run: bool = False
    """Print the time and memory that all of them would take, found in a few seconds for each width, and keep nothing"""


@dataclass(frozen=True)
class Resume(Reads):
    """Go on with a kept run: to its end if it was interrupted, or for more steps."""

    file: Path = field(metadata={"positional": True})
    """The run (.nc), or a folder in which one alone is not finished"""
    out: Path | None = None
    """File to write; NAME.nc for NAME.partial.nc if left out"""
    steps: int | None = None
    """How many more; all that are missing if left out"""
    device: str | None = None
    """Where to go on; as before if left out"""
    evaluations: int | None = None
    """The most in a step of gradient flow, for a run that ended for want of them"""
    checkpoint: int | None = None
    """Keep the state every so many steps; the same command again goes on from there"""
    overwrite: bool = False
    """Replace a file that holds another run"""
    threads: int | None = None
    """Threads of the processor; those of OMP_NUM_THREADS, or all, if left out"""
    dry_run: bool = False
    """Print the time and memory that these steps would take, found in a few seconds from the run's first ones, and keep nothing"""


def _net(asked: Net) -> int:
    return run(replace(asked, solver=replace(asked.solver, width=asked.width, seed=asked.seed)))


def _resume(asked: Resume) -> int:
    if asked.file.is_dir():
        asked = replace(asked, file=_unfinished(asked.file, asked.network))
    finished = asked.file.with_name(re.sub(r"\.(partial(-\d+)?|checkpoint)\.nc$", ".nc", asked.file.name))
    if not asked.file.exists() and finished.exists():
        print(f"{loaded(finished, asked.network)}\n{asked.file} is gone: its run is kept in {finished}")
        return DONE
    earlier = loaded(asked.file, asked.network)
    if not isinstance(earlier, Solution):
        raise ValueError(f"{asked.file} holds a {type(earlier).__name__}: a run is needed here")
    values = {name: value for name, value in earlier.solver.items() if name != "name"}
    if any(isinstance(value, Given) for value in values.values()):
        raise ValueError(
            f"{asked.file} started from an object of Python's: go on from there, with solver.resume(solution, steps)"
        )
    kind = checks.lookup("solver", earlier.solver.get("name"), {c.__name__: c for c in _SOLVERS})
    values = {name: value for name, value in values.items() if name in {f.name for f in fields(kind)}}  # of now
    changed = {"device": asked.device, "evaluations": asked.evaluations}
    solver = kind(**values | {name: value for name, value in changed.items() if value is not None})
    missing = earlier.problem.training.steps - earlier.steps
    if asked.steps is None and missing == 0:
        raise ValueError(f"{asked.file} is finished after {earlier.steps} steps: give --steps N for N more")
    steps = missing if asked.steps is None else asked.steps
    problem = earlier.problem.with_steps(earlier.steps + checks.integer("steps", steps, 1))
    if asked.dry_run:
        whole = solver.estimate(problem)
        return told(replace(whole, seconds=whole.seconds * steps / problem.training.steps))
    if asked.out is None and finished == asked.file:
        raise ValueError(
            f"where should the longer run be kept? give --out FILE (with --overwrite it may be {asked.file})"
        )
    out = asked.out or finished
    begun = None if asked.checkpoint is None else _begun(earlier, solver, out)
    try:
        return solve(problem, solver, lambda: solver.resume(earlier, steps), out, asked.overwrite, asked.checkpoint)
    except ValueError:  # refused
        if begun is not None:
            begun.unlink(missing_ok=True)
        raise


def _unfinished(folder: Path, network: str | None) -> Path:
    """The one run of a folder that is not finished; ValueError if there is none or several"""
    runs = {path: found for path in every((folder,)) if isinstance(found := loaded(path, network), Solution)}
    left = [path for path, run in runs.items() if run.steps < run.problem.training.steps]
    if len(left) == 1:
        print(f"{left[0]} is not finished")
        return left[0]
    if not left:
        raise ValueError(
            f"{folder} holds no run that is not finished: give the file of the one to go on with, and --steps N for N more"
        )
    raise ValueError(
        f"{folder} holds {len(left)} runs that are not finished: give one of them, {', '.join(map(str, left))}"
    )


def _begun(earlier: Solution, solver: Solver, out: Path) -> Path | None:
    """Keep the run where that with checkpoints begins, unless it has been there and went on; where, if it is new"""
    if isinstance(solver, Grouped) and len(solver.alone(earlier.problem)) > 1:
        raise ValueError(
            "each group has checkpoints of its own: give checkpoint to the command that began the run, or leave it out"
        )
    beside = out.with_suffix(".checkpoint.nc")
    return None if beside.exists() else storage.save(earlier, beside)


def _sweep(asked: Sweep) -> int:
    start, workers = time.perf_counter(), checks.integer("workers", asked.workers, 0)
    seeds = asked.seeds[0] if len(asked.seeds) == 1 else asked.seeds
    count = len(checks.seeds(seeds))
    at_once = useful(workers, len(set(asked.widths)) * count, os.cpu_count() or 1)
    if asked.dry_run:
        sized = [replace(asked.solver, width=width) for width in sorted(set(asked.widths))]
        return told(together([solver.estimate(asked.problem, count) for solver in sized], max(1, at_once)))
    with _executor(at_once) as executor:
        nets = width_sweep(asked.problem, asked.widths, seeds, asked.solver, executor, asked.out)
    for width in sorted(set(asked.widths)):
        losses = torch.stack([net.loss[-1] for net in nets if net.width == width])
        print(f"width {width}: {len(losses)} networks, final loss {losses.mean():.4g} (lowest {losses.min():.4g})")
    lost = sum(not (asked.out / network_file(net.solver["width"], net.solver["seed"])).exists() for net in nets)
    print(f"{time.perf_counter() - start:.2f} s, kept in {asked.out}" + f" but for {lost} networks" * bool(lost))
    return ELSEWHERE if lost else DONE


def _begin(threads: int) -> None:
    """What a worker does first"""
    torch.set_num_threads(threads)
    end_with_parent()


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
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads,))
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


COMMANDS: dict[type, Callable[[Any], int]] = {Net: _net, Sweep: _sweep, Resume: _resume}
