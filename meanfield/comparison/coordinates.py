"""How what enters and leaves each weight of a network goes with its width, beside what it should be (equation 91)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.comparison.statistics import Exponent
from meanfield.scaling.plane import exponents
from meanfield.scaling.scaling import Scaling

Place = Literal["enters", "leaves", "outputs"]
Kind = Literal["field", "change", "gradient", "gradient change"]

CHANGES: dict[str, Kind] = {"field": "change", "gradient": "gradient change"}
MARGIN = 0.1  # of powers: corrections of relative order 1/n have slopes of their own
UNKNOWN = Exponent(np.nan, np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Coordinate:
    """One field of a network against its width, at each of the recorded steps; nan where there is nothing to tell."""

    layer: str
    """Name of the layer, empty for the outputs of the network"""
    place: Place
    """Whether it enters the layer's weight, leaves it, or is the network's outputs"""
    kind: Kind
    """A field h, its change since step 0, a gradient (1/sigma) df/dh, or its change"""
    values: np.ndarray
    """(steps, widths) root mean square over neurons, rows and seeds"""
    errors: np.ndarray
    """(steps, widths) its standard error"""
    expected: np.ndarray
    """(steps,) power of the width that the scaling implies; of gradients the largest"""
    measured: tuple[Exponent, ...]
    """At each step the power of the width, with its interval"""
    limit: np.ndarray
    """(steps, 2) root mean square in the limit from S and from 2 S samples"""
    limit_errors: np.ndarray
    """(steps, 2) its standard error"""
    limit_measured: tuple[Exponent, ...]
    """At each step the power of the samples, which should be 0"""

    __repr__ = brief

    @property
    def name(self) -> str:
        """For tables and pictures"""
        return f"{self.layer} {self.place}, {self.kind}".strip()

    @property
    def blown(self) -> int | None:
        """The first step, by its place in `values`, that some network, or the limit, did not reach with finite numbers"""
        lost = ~np.isfinite(self.values).all(1)
        if np.isfinite(self.limit[0]).all():
            lost |= ~np.isfinite(self.limit).all(1)
        lost &= np.isfinite(self.expected)
        return int(lost.argmax()) if lost.any() else None

    @property
    def growing(self) -> tuple[int, Exponent] | None:
        """The first step, by its place in `values`, at which it grows faster than it should, and how fast"""
        for i, power in enumerate(self.expected):
            for found, right in ((self.measured[i], power), (self.limit_measured[i], 0.0)):
                if found.low > right + MARGIN:
                    return i, found
        return None

    @property
    def vanishing(self) -> tuple[int, Exponent] | None:
        """The last step, if there it is smaller in wide networks than it should be, and how it goes"""
        i = len(self.expected) - 1 if np.isfinite(self.expected[-1]) else 0
        started = self.kind in ("field", "gradient") and self.place != "outputs"  # what is there at step 0 stays
        for found, right in ((self.measured[i], 0.0 if started else self.expected[i]), (self.limit_measured[i], 0.0)):
            if found.high < right - MARGIN:
                return i, found
        return None

    @property
    def at_most(self) -> bool:
        """Whether it may vanish in wide networks: gradients that are averages of independent fields do until training aligns these"""
        return self.kind in ("gradient", "gradient change")

    @property
    def right(self) -> bool:
        """Whether it goes as it should, within the interval and a margin of 0.1"""
        return self.blown is None and self.growing is None and (self.at_most or self.vanishing is None)

    def verdict(self, steps: Sequence[int]) -> str:
        """In words; steps: of `values`"""
        if self.blown is not None:
            return f"blows up by step {steps[self.blown]}"
        wrong, known = self.growing or self.vanishing, self.expected[np.isfinite(self.expected)]
        if wrong is None and not (len(known) and np.nanmax(self.values)):
            return "zero"
        if wrong is None:
            return f"like n^{known[-1]:g}, as it should" if known[-1] else "order 1"
        i, found = wrong
        how, of = "grows" if self.growing else "vanishes", "S" if found is self.limit_measured[i] else "n"
        instead = f", not n^{self.expected[i]:g}" if of == "n" and self.expected[i] else ""
        return f"{how} like {of}^{found.slope:.2f} at step {steps[i]}{instead}"


@checked
@dataclass(frozen=True, eq=False)
class CoordinatesReport:
    """What enters and leaves each weight of a network against its width, before and after steps of training (equation 91).

    Example:
        >>> import meanfield as mf
        >>> from solvers import coordinate_check
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> report = coordinate_check(problem, widths=(32, 64, 128), seeds=3, samples=None)
        >>> report.widths, len(report.coordinates)
        ((32, 64, 128), 14)
    """

    network: str
    """Its name"""
    scaling: Scaling
    """In which it was trained"""
    widths: tuple[int, ...]
    """Of the networks"""
    seeds: int
    """Networks of each width, and runs of the limit"""
    steps: tuple[int, ...]
    """At which was looked, 0 the first"""
    samples: tuple[int, ...]
    """S and 2 S of the limit; empty without one"""
    coordinates: tuple[Coordinate, ...]
    """Fields and gradients, layer by layer"""
    remark: str = ""
    """Why a limit that was asked for is not there"""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What was trained"""

    __repr__ = brief
    _repr_html_ = html

    def __getitem__(self, layer: str) -> tuple[Coordinate, ...]:
        """All of a layer, of "outputs" those of the network"""
        found: dict[str, list[Coordinate]] = {}
        for coordinate in self.coordinates:
            found.setdefault(coordinate.layer or "outputs", []).append(coordinate)
        return tuple(checks.lookup("layer", layer, found))

    @property
    def vanishing(self) -> tuple[str, ...]:
        """Layers whose gradients vanish in wide networks: they learn nothing there, unless later training aligns what they average"""
        return tuple(dict.fromkeys(c.layer for c in self.coordinates if c.kind == "gradient" and c.vanishing))

    @property
    def wrong(self) -> tuple[Coordinate, ...]:
        """Those that do not go with the width as they should"""
        return tuple(c for c in self.coordinates if not c.right)

    def __str__(self) -> str:
        span = f"n = {', '.join(map(str, self.widths))}; {self.seeds} seeds; powers of n, 95 % intervals"
        limit = f"; limit from S = {self.samples[0]} and {self.samples[1]}" if self.samples else ""
        lines = [f"{self.network} in the scaling {self.scaling.name!r}: {span}{limit}"]
        long = max(len(c.name) for c in self.coordinates) + 2
        head = "".join(f"{f'step {step}':>15}" for step in self.steps) + f"{'expected':>11}"
        lines.append(" " * long + head + (f"{'S to 2 S':>15}" if self.samples else "") + "  verdict")
        for c in self.coordinates:
            cells = "".join(f"{_told(e):>15}" for e in c.measured) + f"{_expected(c):>11}"
            cells += f"{_told(c.limit_measured[-1]):>15}" if self.samples else ""
            lines.append(f"{c.name:<{long}}{cells}  {c.verdict(self.steps)}" + ("" if c.right else "  <--"))
        lines += [self.remark] if self.remark else []
        if self.vanishing:
            lines.append(f"gradients vanish, as those of queries and keys do at first: {', '.join(self.vanishing)}")
        wrong = dict.fromkeys(c.layer or "outputs" for c in self.wrong)
        lines.append(f"not as they should be: {', '.join(wrong)}" if wrong else "all as they should be")
        return "\n".join(lines)


def expected_power(scaling: Scaling, place: Place, kind: Kind, later: bool) -> float:
    """The power of the width that a scaling implies; later: after training has begun. nan where nothing is to be told"""
    e = exponents(scaling)
    moves = e.weights if kind in ("field", "change") else max(e.readouts, e.weights)
    if kind in ("change", "gradient change"):
        return (e.kernel if place == "outputs" else moves) if later else np.nan
    if place == "outputs":
        return np.nan if later else e.f0
    return max(0.0, moves) if later else 0.0


def _told(e: Exponent) -> str:
    return "" if np.isnan(e.slope) else f"{e.slope:+.2f} ± {(e.high - e.low) / 2:.2f}"


def _expected(c: Coordinate) -> str:
    known = c.expected[np.isfinite(c.expected)]
    return ("at most " if c.at_most else "") + f"{known[-1]:g}" if len(known) else ""
