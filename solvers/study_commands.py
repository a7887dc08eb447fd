"""Commands that answer a question with many runs or none: the lazy prediction, powers of the width, the best proxy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield import storage
from meanfield.problem import Problem
from solvers.finite_width import FiniteWidth
from solvers.keeping import exit_status, keep, told
from solvers.lazy_prediction import lazy_prediction
from solvers.measured_exponents import measured_exponents
from solvers.proxy_comparison import proxy_comparison, proxy_cost
from solvers.rehearsal import together


@dataclass(frozen=True)
class Predict:
    """Mean and spread of infinitely wide lazy networks over their random start, in closed form (squared loss).

    out: file to write (.nc). times: training times, the problem's grid if left out, inf for the end. jitter: added to the kernel where it
    is inverted (at inf only), in units of its mean eigenvalue. overwrite: replace an older file.
    threads: of the processor; those of OMP_NUM_THREADS, or all, if left out.
    """

    out: Path
    problem: Problem
    times: tuple[float, ...] | None = None
    jitter: float = 0.0
    overwrite: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Powers:
    """Measure how outputs, tangent kernel and weights of two-layer networks go with the width, beside the predicted powers.

    out: file to write (.nc). widths: at least three. seeds: networks of each width. overwrite: replace an older file.
    threads: of the processor; those of OMP_NUM_THREADS, or all, if left out.
    dry_run: print the time and memory that the networks would take, found in a few seconds for each width, and keep nothing.
    """

    out: Path
    problem: Problem
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    seeds: int = 16
    overwrite: bool = False
    threads: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Proxy:
    """Which infinite-width limit is nearest to networks of one width, step by step (two layers).

    out: file to write (.nc). width: the reference width, at which all scalings agree. limits: scalings, all if left out. seeds: networks.
    runs: of each limit, as many as seeds if left out. overwrite: replace an older file.
    threads: of the processor; those of OMP_NUM_THREADS, or all, if left out.
    dry_run: print the time and memory that networks and limits would take, found in a few seconds for each, and keep nothing.
    """

    out: Path
    problem: Problem
    width: int = 64
    limits: tuple[str, ...] | None = None
    seeds: int = 256
    runs: int | None = None
    overwrite: bool = False
    threads: int | None = None
    dry_run: bool = False


def _predict(asked: Predict) -> int:
    _free(asked)
    found = lazy_prediction(asked.problem, asked.times, jitter=asked.jitter)
    path = keep(found, asked.out)
    print(f"{found}\nkept in {path}")
    if "warning" in found.stats:
        print(f"warning: {found.stats['warning']}")
    return exit_status(path, asked.out)


def _powers(asked: Powers) -> int:
    if asked.dry_run:
        return told(together([FiniteWidth(n).estimate(asked.problem, asked.seeds) for n in asked.widths]))
    _free(asked)
    report = measured_exponents(asked.problem, asked.widths, asked.seeds)
    path = keep(report, asked.out)
    print(f"{report}\nkept in {path}")
    return exit_status(path, asked.out)


def _proxy(asked: Proxy) -> int:
    if asked.dry_run:
        return told(proxy_cost(asked.problem, asked.width, asked.limits, asked.seeds, asked.runs))
    _free(asked)
    report = proxy_comparison(asked.problem, asked.width, asked.limits, asked.seeds, asked.runs)
    path = keep(report, asked.out)
    print(f"{report}\nnearest: {report.nearest}\nkept in {path}")
    return exit_status(path, asked.out)


def _free(asked: Predict | Powers | Proxy) -> None:
    storage.writable(asked.out)
    if asked.out.exists() and not asked.overwrite:
        raise ValueError(f"{asked.out} is there already: give another --out, or --overwrite to replace it")


COMMANDS: dict[type, Callable[[Any], int]] = {Predict: _predict, Powers: _powers, Proxy: _proxy}
