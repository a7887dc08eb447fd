"""What becomes of a two-layer network as N -> infinity, at any point of the scaling plane (equations 63 to 66).

`classify(scaling)` gives the powers of the width, the four properties of a finite network, whether the limit is well-defined, and
which solver finds it; `regions()` gives the parts of the plane q_a = q_w, for a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.scaling.scaling import Scaling, settled

Logits = Literal["vanishing", "finite", "infinite"]

PROPERTIES = {
    "f0_finite": "the outputs at the start are finite",
    "kernel_finite": "the tangent kernel at the start is finite",
    "same_order": "outputs and tangent kernel are of the same order at the start",
    "kernel_evolves": "the tangent kernel changes by its own order",
}


@dataclass(frozen=True)
class Exponents:
    """Powers of the width (equations 63 and 64): each quantity is of order N^exponent. Signs are as N grows.

    f0: outputs at the start. kernel: tangent kernel at the start. f: outputs after the first step. readouts, weights: how far a
    neuron's a and w move. kernel_change: change of the tangent kernel, relative to itself, from the second step on.
    """

    f0: float
    kernel: float
    f: float
    readouts: float
    weights: float
    kernel_change: float


@dataclass(frozen=True)
class Classification:
    """Where a scaling lies in the plane.

    well_defined: from some step on the outputs change by their own order and no weight diverges. logits: the outputs after the first
    step. limit: the limit model, in words. solver: the name of the solver that finds it, or "" if there is none here.
    obstacle: why it is not well-defined, or has no solver.
    """

    scaling: Scaling
    exponents: Exponents
    f0_finite: bool
    kernel_finite: bool
    same_order: bool
    kernel_evolves: bool
    well_defined: bool
    logits: Logits
    limit: str
    solver: str
    obstacle: str

    __repr__ = brief
    _repr_html_ = html

    @property
    def properties(self) -> tuple[bool, bool, bool, bool]:
        """The four properties of finite networks, in the order of `PROPERTIES`"""
        return self.f0_finite, self.kernel_finite, self.same_order, self.kernel_evolves

    def __str__(self) -> str:
        s, e = self.scaling, self.exponents
        lines = [
            f"scaling {s.name!r}: q_sigma = {s.q_sigma:g}, q_a = {s.q_a:g}, q_w = {s.q_w:g}",
            f"  at the start f ~ N^{e.f0:g}, K ~ N^{e.kernel:g}; in training f ~ N^{e.f:g}, a moves ~ N^{e.readouts:g}, "
            f"w ~ N^{e.weights:g}, K by N^{e.kernel_change:g} of itself",
            *(
                f"  {'yes' if held else 'no ':3} {text}"
                for held, text in zip(self.properties, PROPERTIES.values(), strict=True)
            ),
            f"  {'well-defined' if self.well_defined else 'not well-defined'}: {self.limit}",
            f"  solver: {self.solver or 'none'}" + (f" ({self.obstacle})" if self.obstacle else ""),
        ]
        return "\n".join(lines)


def exponents(scaling: Scaling) -> Exponents:
    """The powers of the width that the scaling implies for a two-layer network (equations 63 and 64)."""
    a, w = scaling.q_sigma + scaling.q_a, scaling.q_sigma + scaling.q_w  # one step's move of a and of w, for a = O(1)
    kernel_a, kernel_w = 2 * scaling.q_sigma + scaling.q_a + 1, 2 * scaling.q_sigma + scaling.q_w + 1
    kernel, f0 = max(kernel_a, kernel_w), initial_exponent(scaling)
    # terms odd in a(0) average out over the neurons, up to N^-1/2
    of_features = max(2 * w, w + a, w - 0.5)
    of_readouts = max(2 * a, a - 0.5, of_features)
    change = max(kernel_a + of_features, kernel_w + of_readouts) - kernel
    return Exponents(*(settled(power) for power in (f0, kernel, max(f0, kernel), a, max(w, w + a), change)))


def initial_exponent(scaling: Scaling) -> float:
    """The power of the width that f0 goes with: q_sigma + 1/2, and 0 if a frozen part keeps it finite (equation 63)."""
    own = settled(scaling.q_sigma + 0.5)
    return own if scaling.frozen == "none" else max(0.0, own)


@checked
def classify(scaling: Scaling) -> Classification:
    """Properties, well-definedness and limit model of a two-layer network in this scaling (equations 65 and 66).

    Example:
        >>> import meanfield as mf
        >>> mf.classify(mf.ntk()).solver
        'TangentKernelLimit'
        >>> mf.classify(mf.mean_field(1.0)).solver
        'WassersteinFlow'
    """
    e = exponents(scaling)
    a, w = e.readouts, settled(scaling.q_sigma + scaling.q_w)
    logits: Logits = "infinite" if e.f > 0 else "vanishing" if e.f < 0 else "finite"
    limit, solver, obstacle = _limit(scaling, e, a, w, logits)
    return Classification(
        scaling=scaling,
        exponents=e,
        f0_finite=not e.f0,
        kernel_finite=not e.kernel,
        same_order=not settled(e.kernel - e.f0),
        kernel_evolves=not e.kernel_change,
        well_defined=well_defined(scaling),
        logits=logits,
        limit=limit,
        solver=solver,
        obstacle=obstacle,
    )


def well_defined(scaling: Scaling) -> bool:
    """Whether outputs change by their own order and w stays finite: -1/2 <= q_sigma + q <= 0 if q_a = q_w = q (equation 65)."""
    e = exponents(scaling)
    return settled(e.kernel - e.f0) >= 0 and e.weights <= 0


def _limit(s: Scaling, e: Exponents, a: float, w: float, logits: Logits) -> tuple[str, str, str]:
    """(limit in words, solver, obstacle)"""
    if not well_defined(s):
        if e.weights > 0:
            return (
                "none: the weights diverge",
                "",
                f"a step moves the input weights by N^{e.weights:g}; lower q_a + q_w or q_sigma",
            )
        return (
            "none: the outputs stay at their start",
            "",
            f"outputs start at N^{e.f0:g} and change by N^{e.kernel:g}; raise q_a or q_w",
        )
    evolves, start = not e.kernel_change, _start(e.f0)
    readouts_grow = a > 0  # then a / N^a is what stays finite, and starts at zero
    if logits == "vanishing":
        return (
            f"outputs vanish like N^{e.f:g}, so that Delta = -l'(0) at every step",
            "",
            "no solver for this: Delta does not depend on what was learned; raise q_sigma, q_a or q_w",
        )
    if logits == "infinite":
        measure = f"measure over (a / N^{a:g}, w) that starts at a = 0" if readouts_grow else "measure over (a, w)"
        words = f"{start}; from step 1 outputs ~ N^{e.f:g}, with Delta at infinite logits"
        if a >= 0 or not w:
            return f"{words}, and a {measure}", "InfiniteLogitsLimit", ""
        return f"{words}, and a constant kernel", "", "no solver here for a constant kernel at infinite logits"
    if s.trained.is_mean_field:
        return f"{start}; deterministic flow of a measure over (a, w)" + (
            ", given the random initial outputs" if s.frozen != "none" else ""
        ), "WassersteinFlow", ""  # fmt: skip
    if not evolves and a and w:
        known = not settled(s.q_a - s.q_w)
        which = "" if known else "no solver here for a kernel of readouts or input weights alone"
        return f"{start}; constant tangent kernel, weights do not move", "TangentKernelLimit" if known else "", which
    part = "readouts" if w < 0 and not readouts_grow else "input weights" if a < 0 else f"(a / N^{a:g}, w)"
    return (
        f"{start}; deterministic flow of a measure in which the {part} move",
        "",
        "no solver here for q_a != q_w at finite logits: solve FiniteWidth at a large width",
    )


def _start(f0: float) -> str:
    if not f0:
        return "f0 is a Gaussian process"
    return "f0 = 0" if f0 < 0 else f"f0 ~ N^{f0:g}, a Gaussian process without bound"


@dataclass(frozen=True)
class Region:
    """A part of the plane (q_sigma, q) with q_a = q_w = q: corners of a polygon, its two ends if it is a line."""

    name: str
    corners: tuple[tuple[float, float], ...]
    meaning: str


def regions(least: float = -1.5, most: float = 0.0) -> tuple[Region, ...]:
    """The parts of the band of well-defined limits between q_sigma = least and most; each is one limit model (equation 66)."""

    def lower(x: float) -> tuple[float, float]:
        return x, -0.5 - x

    def upper(x: float) -> tuple[float, float]:
        return x, -x

    ntk, mean_field, sym_default = (-0.5, 0.0), (-1.0, 1.0), (-0.5, 0.5)
    return (
        Region("vanishing logits", (lower(least), ntk, mean_field, upper(least)), "constant Delta"),
        Region("infinite logits from f0 = 0", (ntk, sym_default, mean_field), "constant kernel, f0 forgotten"),
        Region("infinite logits from f0 infinite", (ntk, lower(most), upper(most), sym_default), "constant kernel, random sign of f0"),
        Region("finite logits", (ntk, mean_field), "constant kernel, f0 = 0"),
        Region("f0 finite, logits infinite", (ntk, sym_default), "constant kernel, random first step"),
        Region("kernel evolves", (upper(least), upper(most)), "features are learned"),
        Region("f0 is remembered", (lower(least), lower(most)), "changes of f as large as f0"),
    )  # fmt: skip
