"""Commands that answer a question with many runs or none: the lazy prediction, powers of the width, the best proxy, which
layer spoils the limit, which learning rate is best at each width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meanfield.files import storage
from meanfield.problem.problem import Problem
from solvers.command_line.limits import Command, usually
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.finite.finite_width import FiniteWidth
from solvers.lazy.lazy_prediction import lazy_prediction, prediction_cost
from solvers.running.keeping import free, kept, told
from solvers.running.rehearsal import together
from solvers.studies.coordinate_check import coordinate_check, coordinates_cost
from solvers.studies.learning_rate_transfer import learning_rate_transfer, transfer_cost
from solvers.studies.measured_exponents import measured_exponents
from solvers.studies.proxy_comparison import proxy_comparison, proxy_cost


@dataclass(frozen=True, kw_only=True)
class Predict(Command):
    """Mean and spread of infinitely wide lazy networks over their random start, in closed form (squared loss)."""

    problem: Problem = field(metadata=usually("ntk", "mean_field"))
    """What is asked"""
    times: tuple[float, ...] | None = None
    """Training times, inf for the end; the problem's grid if left out"""
    jitter: float = 0.0
    """Added to the kernel where it is inverted (at inf only), in units of its mean eigenvalue"""
    overwrite: bool = False
    """Replace an older file"""
    dry_run: bool = False
    """Print the time and memory that it would take, found in a few seconds from few samples, and keep nothing"""


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

    problem: Problem = field(metadata=usually(loss="logistic"))
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
    dry_run: bool = False
    """Print the time and memory that networks and limits would take, found in a few seconds for each, and keep nothing"""


@dataclass(frozen=True, kw_only=True)
class Coordinates(Command):
    """Which layer spoils the limit: fields and gradients of each weight against the width, before and after some steps."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """At least three"""
    seeds: int = 4
    """Networks of each width and runs of the limit, at least three"""
    steps: tuple[int, ...] = (0, 1, 4)
    """Of training, at which is looked"""
    points: int = 32
    """Training samples that are used, the first ones"""
    samples: int = 512
    """S of the limit, which is solved with S and 2 S; 0 leaves it out"""
    dtype: str = "float32"
    """Precision of the networks"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    overwrite: bool = False
    """Replace an older file"""
    dry_run: bool = False
    """Print the time and memory that networks and limits would take, found in a few seconds for each size, and keep nothing"""


@dataclass(frozen=True, kw_only=True)
class Rates(Command):
    """Loss against the learning rate for several widths and the limit: whether the best rate of one width is that of another."""

    rates: tuple[float, ...]
    """Learning rates, at least three"""
    widths: tuple[int, ...] = (64, 256, 1024)
    """Of the networks"""
    seeds: int = 4
    """Networks of each width and rate; intervals need three"""
    test: bool = False
    """Take the loss of the test samples"""
    samples: int | None = None
    """Neurons that stand for each layer of the limit, in two groups; as many as dmft takes if left out"""
    dtype: str = "float64"
    """Precision of the networks"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    overwrite: bool = False
    """Replace an older file"""
    dry_run: bool = False
    """Print the time and memory that networks and limits would take, found in a few seconds for each size at the lowest rate, and keep
    nothing"""


def _predict(asked: Predict) -> int:
    if asked.dry_run:
        return told(prediction_cost(asked.problem, asked.times, asked.jitter))
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


def _coordinates(asked: Coordinates) -> int:
    solver = FiniteWidth(dtype=asked.dtype, device=asked.device)
    sizes = asked.widths, asked.seeds, asked.steps, asked.points, asked.samples or None, solver
    if asked.dry_run:
        return told(coordinates_cost(asked.problem, *sizes))
    free(storage.writable(asked.out), asked.overwrite)
    return kept(coordinate_check(asked.problem, *sizes), asked.out)


def _rates(asked: Rates) -> int:
    nets, limit = FiniteWidth(dtype=asked.dtype, device=asked.device), None
    if asked.samples is not None:
        limit = CausalDMFT(asked.samples, groups=2, two_time=False, keep_neurons=False, device=asked.device)
    sizes = asked.rates, asked.widths, asked.seeds, limit, nets, asked.test
    if asked.dry_run:
        return told(transfer_cost(asked.problem, *sizes))
    free(storage.writable(asked.out), asked.overwrite)
    return kept(learning_rate_transfer(asked.problem, *sizes), asked.out)


COMMANDS: dict[type, Callable[[Any], int]] = {
    Predict: _predict,
    Powers: _powers,
    Proxy: _proxy,
    Coordinates: _coordinates,
    Rates: _rates,
}
