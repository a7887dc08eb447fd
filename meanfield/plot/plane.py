"""The scaling plane, powers of the width, and which limit is the best proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meanfield.checking.arguments import checked
from meanfield.comparison.scaling_reports import PowersReport, ProxyReport
from meanfield.plot.families import Labels, given
from meanfield.plot.frame import BLUE, GREY, ORANGE, SMALL, TIME, headed, legend, panels
from meanfield.plot.style import in_a_row
from meanfield.scaling.plane import regions
from meanfield.scaling.scaling import NAMED, Scaling, settled


@checked
def scaling_plane(
    points: Mapping[str, Scaling] | None = None, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """The plane (q_sigma, q) of scalings with q_a = q_w = q: regions of well-defined limits, the four properties' lines, named points.

    points: scalings to mark, by label; None takes the named ones. Those with q_a != q_w stand at the mean of the two, with a hollow mark.

    Example:
        >>> import meanfield as mf
        >>> axes = mf.plot.scaling_plane({"mine": mf.Scaling(-0.75, 0.5, 0.5), "NTK": mf.ntk()})
    """
    panel: Axes = panels(ax, size=(7.2, 5.2))[0]
    left, right = -1.5, 0.25
    shades = ("#E69F00", "#56B4E9", "#009E73")  # Okabe and Ito
    areas = [region for region in regions(left, right) if len(region.corners) > 2]
    for region, shade in zip(areas, shades, strict=True):
        corners = np.array(region.corners)
        panel.fill(*corners.T, color=shade, alpha=0.28, linewidth=0, label=region.name)
    x = np.array([left, right])
    lines = (
        (np.array([-0.5, -0.5]), np.array([-1.0, 2.0]), ":", r"$f_0$ finite"),
        (x, -1 - 2 * x, "--", r"$K$ finite at the start"),
        (x, -0.5 - x, "-.", r"$K \sim f_0$ at the start"),
        (x, -x, "-", "$K$ evolves"),
    )
    for along, height, style, what in lines:
        panel.plot(along, height, color="black", linestyle=style, linewidth=1.1, label=what)
    _named_points(panel, points)
    panel.text(-0.97, -0.22, "outputs do not move", color=GREY, rotation=0, ha="center")
    panel.text(-0.72, 1.42, "weights diverge", color=GREY, ha="center")
    panel.set(xlim=(left, right), ylim=(-0.6, 1.6), xlabel=r"$q_\sigma$", ylabel=r"$q = q_a = q_w$")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **SMALL)
    headed([panel], ax, label)
    return panel


def _named_points(ax: Axes, points: Mapping[str, Scaling] | None) -> None:
    """Dots with labels; scalings at one place share a label, hollow dots have q_a != q_w"""
    chosen = {name: make() for name, make in NAMED.items()} if points is None else points
    places: dict[tuple[float, float], list[tuple[str, Scaling]]] = {}
    for name, s in chosen.items():
        places.setdefault((s.q_sigma, (s.q_a + s.q_w) / 2), []).append((name, s))
    for (q_sigma, q), here in places.items():
        hollow = all(settled(s.q_a - s.q_w) for _, s in here)
        ax.plot(q_sigma, q, "o", color="black", fillstyle="none" if hollow else "full", markersize=6, zorder=6)
        told = [
            f"{name} ($q_a$ = {s.q_a:g}, $q_w$ = {s.q_w:g})" if settled(s.q_a - s.q_w) else name for name, s in here
        ]
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        ax.annotate(
            "\n".join(told), (q_sigma, q), (7, 5), textcoords="offset points", fontsize="small", bbox=box, zorder=7
        )


@checked
def powers(reports: PowersReport | Sequence[PowersReport], ax: Any = None, label: Labels = None) -> np.ndarray:
    """Measured powers of the width with their intervals against the predicted ones (crosses), a panel per scaling.

    Intervals that reach far beyond all powers are cut at the edge. label: instead of the names of the scalings, one for each report.

    Example:
        >>> import meanfield as mf
        >>> from solvers import measured_exponents
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> axes = mf.plot.powers(measured_exponents(problem, widths=(32, 64, 128), seeds=3))
    """
    several = [reports] if isinstance(reports, PowersReport) else list(reports)
    columns = in_a_row(len(several), 1.4)
    grid = -(-len(several) // columns), columns, len(several)
    axes = panels(ax, *grid, size=(2.2, 3.0), extra=3.0, sharex=True, sharey=True)
    titles = (
        [report.scaling.name.replace("_", "-") for report in several] if label is None else given(label, len(several))
    )
    points = [
        power
        for report in several
        for law in report.quantities.values()
        for power in (law.predicted, law.measured.slope)
    ]
    for panel, report, title in zip(axes, several, titles, strict=True):
        names = list(report.quantities)[::-1]
        laws = [report[name] for name in names]
        slopes = np.array([law.measured.slope for law in laws])
        spans = np.abs(np.array([[law.measured.low, law.measured.high] for law in laws]) - slopes[:, None]).T
        panel.errorbar(
            slopes, range(len(names)), xerr=spans, fmt="o", color=BLUE, capsize=2, markersize=4, label="measured, 95 %"
        )
        panel.plot(
            [law.predicted for law in laws], range(len(names)), "x", color=ORANGE, markersize=8, label="predicted"
        )
        panel.set_yticks(range(len(names)), [_POWER_LABELS.get(name, name) for name in names])
        panel.grid(axis="x", linewidth=0.4)
        panel.set_title(title, fontsize="medium")
        panel.set(xlabel="power of $N$", xlim=(min(points) - 0.7, max(points) + 0.7))
    legend(axes, ax)
    return axes


_POWER_LABELS = {
    "f0": r"$f_0$",
    "kernel": "$K(0)$",
    "f": "$f(T)$",
    "readouts": r"movement of $a$",
    "weights": r"movement of $w$",
    "kernel_change": r"$|\Delta K| / |K|$",
}


@checked
def proxy_comparison(report: ProxyReport, ax: Any = None, label: str | None = None) -> np.ndarray:
    """KL of each limit to networks of the reference width with 95 % bands, and the distance of the Gaussian fits, against time.

    Limits without randomness have an infinite KL and appear on the right only. The grey line is the floor before its correction.

    Example:
        >>> import meanfield as mf
        >>> from solvers import proxy_comparison
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> mf.plot.proxy_comparison(proxy_comparison(problem, reference_width=16, limits=("ntk",), seeds=8)).shape
        (2,)
    """
    columns = in_a_row(2, 2.4)
    axes = panels(ax, 2 // columns, columns, size=(4.0, 3.6), extra=2.4)
    colours = ["#D55E00", "#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    styles = ["-", "--", "-.", ":"]
    finite = np.isfinite(report.kl)
    least = 0.1 * float(np.min(report.floor))
    for i, name in enumerate(report.names):
        look = {"color": colours[i % 7], "linestyle": styles[i % 4], "linewidth": 1.6}
        told = name.replace("_", "-") + ("" if finite[i].any() else " (no KL: deterministic)")
        if finite[i].any():
            axes[0].plot(report.times, np.maximum(report.estimate[i], least), **look)
            axes[0].fill_between(report.times, np.maximum(report.low[i], least), np.maximum(report.high[i], least),
                                 color=look["color"], alpha=0.15, linewidth=0)  # fmt: skip
        axes[1].plot(report.times, report.distance[i], label=told, **look)
    axes[0].plot(report.times, report.floor, color=GREY, linewidth=1)
    axes[0].annotate("floor before correction", (report.times[-1], report.floor[-1]), (0, 3), ha="right",
                     textcoords="offset points", color=GREY, fontsize="small")  # fmt: skip
    axes[0].set(
        yscale="log", xlabel=TIME, ylabel=r"$E_x\,\mathrm{KL}$(limit $\|$ network), 95 % bands", ylim=(least, None)
    )
    axes[1].set(xlabel=TIME, ylabel="2-Wasserstein distance, relative", ylim=(0, None))
    legend(axes, ax, title=f"N* = {report.reference_width}, {report.seeds} seeds")
    headed(axes, ax, label)
    return axes
