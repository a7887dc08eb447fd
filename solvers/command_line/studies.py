"""Commands that answer a question with many runs or none: the lazy prediction, powers of the width, the best proxy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meanfield.files import storage
from solvers.command_line.limits import Command
from solvers.finite.finite_width import FiniteWidth
from solvers.lazy.lazy_prediction import lazy_prediction
from solvers.running.keeping import free, kept, told
from solvers.running.rehearsal import together
from solvers.studies.measured_exponents import measured_exponents
from solvers.studies.proxy_comparison import proxy_comparison, proxy_cost


@dataclass(frozen=True, kw_only=True)
class Predict(Command):
    """Mean and spread of infinitely wide lazy networks over their random start, in closed form (squared loss)."""

    times: tuple[float, ...] | None = None
    """Training times, inf for the end; the problem's grid if left out"""
    jitter: float = 0.0
    """Added to the kernel where it is inverted (at inf only), in units of its mean eigenvalue"""
    overwrite: bool = False
    """Replace an older file"""


@dataclass(frozen=True, kw_only=True)
class Powers(Command):
    """Measure how outputs, tangent kernel and weights of two-layer networks go with the width, beside the predicted powers."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    """At least three"""
    seeds: int = 16
    """Networks of each width"""
    overwrite: bool = False
    """Replace an older file"""
    dry_run: bool = False
    """Print the time and memory that the networks would take, found in a few seconds for each width, and keep nothing"""


@dataclass(frozen=True, kw_only=True)
class Proxy(Command):
    """Which infinite-width limit is nearest to networks of one width, step by step (two layers)."""

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
    dry_run: bool = False
    """Print the time and memory that networks and limits would take, found in a few seconds for each, and keep nothing"""


def _predict(asked: Predict) -> int:
    free(storage.writable(asked.out), asked.overwrite)
    return kept(lazy_prediction(asked.problem, asked.times, jitter=asked.jitter), asked.out)


def _powers(asked: Powers) -> int:
    if asked.dry_run:
        return told(together([FiniteWidth(n).estimate(asked.problem, asked.seeds) for n in asked.widths]))
    free(storage.writable(asked.out), asked.overwrite)
    return kept(measured_exponents(asked.problem, asked.widths, asked.seeds), asked.out)


def _proxy(asked: Proxy) -> int:
    if asked.dry_run:
        return told(proxy_cost(asked.problem, asked.width, asked.limits, asked.seeds, asked.runs))
    free(storage.writable(asked.out), asked.overwrite)
    report = proxy_comparison(asked.problem, asked.width, asked.limits, asked.seeds, asked.runs)
    return kept(report, asked.out, f"nearest: {report.nearest}\n")


COMMANDS: dict[type, Callable[[Any], int]] = {Predict: _predict, Powers: _powers, Proxy: _proxy}
