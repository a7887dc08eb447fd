"""Commands that answer a question with many runs or none: the lazy prediction, powers of the width, the best proxy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.files import storage
from meanfield.problem.problem import Problem
from solvers.finite.finite_width import FiniteWidth
from solvers.lazy.lazy_prediction import lazy_prediction
from solvers.running.keeping import exit_status, keep, told
from solvers.running.rehearsal import together
from solvers.studies.measured_exponents import measured_exponents
from solvers.studies.proxy_comparison import proxy_comparison, proxy_cost


@dataclass(frozen=True)
class Predict:
    """Mean and spread of infinitely wide lazy networks over their random start, in closed form (squared loss)."""

    out: Path
    """File to write (.nc)"""
    problem: Problem
    """What is asked"""
    times: tuple[float, ...] | None = None
    """Training times, inf for the end; the problem's grid if left out"""
    jitter: float = 0.0
    """Added to the kernel where it is inverted (at inf only), in units of its mean eigenvalue"""
    overwrite: bool = False
    """Replace an older file"""
    threads: int | None = None
    """Threads of the processor; those of OMP_NUM_THREADS, or all, if left out"""


@dataclass(frozen=True)
class Powers:
    """Measure how outputs, tangent kernel and weights of two-layer networks go with the width, beside the predicted powers."""

    out: Path
    """File to write (.nc)"""
    problem: Problem
    """What is asked"""
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    """At least three"""
    seeds: int = 16
    """Networks of each width"""
    overwrite: bool = False
    """Replace an older file"""
    threads: int | None = None
    """Threads of the processor; those of OMP_NUM_THREADS, or all, if left out"""
    dry_run: bool = False
    """Print the time and memory that the networks would take, found in a few seconds for each width, and keep nothing"""


@dataclass(frozen=True)
class Proxy:
    """Which infinite-width limit is nearest to networks of one width, step by step (two layers)."""

    out: Path
    """File to write (.nc)"""
    problem: Problem
    """What is asked"""
    width: int = 64
    """The reference width, at which all scalings agree"""
    limits: tuple[str, ...] | None = None
    """Scalings; all if left out"""
    seeds: int = 256
    """Networks of the reference width"""
    runs: int | None = None
    """Of each limit; as many as seeds if left out"""
    overwrite: bool = False
    """Replace an older file"""
    threads: int | None = None
    """Threads of the processor; those of OMP_NUM_THREADS, or all, if left out"""
    dry_run: bool = False
    """Print the time and memory that networks and limits would take, found in a few seconds for each, and keep nothing"""


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
