"""Pictures of results: (result, ..., ax=None) -> the axes drawn on. Nothing is shown or written; rcParams stay as they are.

Without `ax` a new figure is made. Functions with several panels return a flat array of axes, and take one of that many. Widths run
from light to dark, a limit is black. This is the only file that imports matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.ticker import LogLocator
from torch import Tensor

from meanfield import plot_data
from meanfield.plot_data import Solutions
from meanfield.report import Deviation, DeviationReport
from meanfield.scaling import NAMED, Scaling
from meanfield.scaling_plane import regions
from meanfield.scaling_reports import PowersReport, ProxyReport
from meanfield.solution import Solution

_LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.5, "zorder": 5}
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.45"  # colour-blind readers tell them apart (Okabe and Ito)
_TIME = r"training time $\eta k$"
_SMALL: dict[str, Any] = {"fontsize": "small", "title_fontsize": "small"}


def loss(nets: Solutions, limit: Solutions | None = None, ax: Axes | None = None, test: bool = False) -> Axes:
    """Training (or test) loss against time: per width the mean over seeds and a band of one standard deviation."""
    groups, limits = plot_data.by_width(nets, limit)
    panel: Axes = _panels(ax)[0]
    curves = _curves(panel, groups, limits, lambda s: s.test_loss if test else s.loss)
    panel.set_yscale("log")
    lowest, highest = min(c[c > 0].min(initial=np.inf) for c in curves), max(c.max() for c in curves)
    if 0 < lowest < highest:  # a band that reaches down to zero must not set the scale
        panel.set_ylim(0.6 * lowest, 1.6 * highest)
    _plain_log(panel)
    data = _any(groups, limits).problem.data
    samples = len(data.x_test) if test and data.x_test is not None else data.samples
    panel.set(xlabel=_TIME, ylabel=f"{'test' if test else 'training'} loss, mean of {samples} samples")
    panel.legend(title=plot_data.seeds(groups), **_SMALL)
    return panel


def outputs(
    nets: Solutions,
    limit: Solutions | None = None,
    samples: Sequence[int] = (0, 1, 2),
    ax: Any = None,
    output: int | None = None,
    test: bool = False,
    difference: bool = False,
) -> np.ndarray:
    """f_mu(t) of single samples, one panel each: per width the mean over seeds and a band of one standard deviation.

    output: which of several; None takes the one with the largest target. difference: f less that of the (first) limit.
    """
    groups, limits = plot_data.by_width(nets, limit)
    problem = _any(groups, limits).problem
    if difference and not limits:
        raise ValueError("a difference needs a limit: give limit=...")
    axes = _panels(ax, 1, len(samples), size=(3.3, 3.3), sharey=True)
    for panel, mu in zip(axes, samples, strict=True):
        targets = problem.data.y_test if test else problem.data.y
        target = None if targets is None else plot_data.row(targets, mu)
        column = output if output is not None else 0 if target is None else int(target.argmax())
        base = _output(limits[0], mu, column, test) if difference else torch.zeros(())
        _curves(panel, groups, limits, lambda s, mu=mu, c=column, base=base: _output(s, mu, c, test) - base)
        if target is not None and problem.loss_function.name == "squared" and not difference:
            panel.axhline(float(target[column]), color=_GREY, linestyle=":", linewidth=1, label="target")
        which = f", output {column}" if problem.data.outputs > 1 else ""
        panel.set(xlabel=_TIME, title=f"{'test' if test else 'training'} sample {mu}{which}")
    axes[0].set_ylabel(r"$f_\mu(t)$ less that of the limit" if difference else r"output $f_\mu(t)$")
    axes[-1].legend(title=plot_data.seeds(groups), **_beside(ax))
    return axes


def deviation(report: DeviationReport, names: Sequence[str] | None = None, ax: Any = None) -> np.ndarray:
    """Deviation from the limit against width, one log-log panel per observable, with the fitted power of the width.

    names: None takes f, loss, Phi1 and tangent_kernel as far as the report has them. |bias| is drawn only where it was detected.
    """
    if names is None:
        names = [n for n in ("f", "loss", "Phi1", "tangent_kernel") if n in report.observables] or [*report.observables]
    found = [report[name] for name in names]
    columns = min(2, len(found))
    axes = _panels(ax, -(-len(found) // columns), columns, len(found), size=(4.4, 3.4))
    for i, (panel, d) in enumerate(zip(axes, found, strict=True)):
        _deviation(panel, d, np.array(report.widths, dtype=float))
        panel.set(title=plot_data.described(d.name))
        _width_axis(panel, report.widths, label=i + columns >= len(axes))
        panel.set_ylabel("relative to the limit" if i % columns == 0 else "")
        panel.legend(loc="upper right", **_SMALL)
    return axes


def variance(report: DeviationReport, ax: Axes | None = None) -> Axes:
    """N Var f(T) against width, beside the value predicted before training."""
    panel: Axes = _panels(ax)[0]
    style = {"fmt": "o", "color": _BLUE, "capsize": 2}
    panel.errorbar(report.widths, report.n_var, report.n_var_se, label="networks, ± 1 standard error", **style)
    if np.isfinite(report.predicted_n_var):
        panel.axhline(report.predicted_n_var, color="black", label="predicted before training")
    top = max(np.max(report.n_var + np.nan_to_num(report.n_var_se)), np.nan_to_num(report.predicted_n_var))
    panel.set(xscale="log", ylim=(0, 1.25 * top), ylabel=r"$N\,\mathrm{Var}\,f(T)$, mean over training outputs")
    _width_axis(panel, report.widths)
    panel.legend(loc="lower right", **_SMALL)
    return panel


def kernels(solutions: Solutions, name: str = "Phi1", steps: Sequence[int] = (0, -1), ax: Any = None) -> np.ndarray:
    """Kernels ("Phi1", "G1", .., "tangent_kernel") as heat maps, one row per solution and one column per step.

    Samples are sorted by target, with lines between classes. With several outputs: the mean over pairs of equal outputs.
    """
    chosen = plot_data.several(solutions)
    maps = [(s, step, plot_data.kernel_matrix(s, name, step)) for s in chosen for step in steps]
    if not maps:
        raise ValueError("nothing to draw: give at least one Solution and one step")
    low, high = min(k.min() for *_, k in maps), max(k.max() for *_, k in maps)
    signed = low < 0
    norm = CenteredNorm(0, max(-low, high)) if signed else Normalize(low, high)
    axes, picture = _panels(ax, len(chosen), len(steps), size=(3.1, 2.7)), None
    for i, (panel, (solution, step, kernel)) in enumerate(zip(axes, maps, strict=True)):
        order, borders = plot_data.by_class(solution.problem.data.y)
        colours = "RdBu_r" if signed else "viridis"
        picture = panel.imshow(kernel[np.ix_(order, order)], norm=norm, cmap=colours, interpolation="nearest")
        for line in (panel.axhline, panel.axvline):
            for border in borders:
                line(border - 0.5, color="black" if signed else "white", linewidth=0.8)
        panel.set(xticks=[], yticks=[], title=f"{plot_data.who(solution)}, {plot_data.when(solution, step)}")
        panel.set_xlabel("sample, by target" if i >= len(axes) - len(steps) else "")
        panel.set_ylabel("sample, by target" if i % len(steps) == 0 else "")
    label = plot_data.described(name).split(",")[0]
    axes[0].figure.colorbar(picture, ax=list(axes), label=label, shrink=0.9).ax.set_ylim(low, high)
    return axes


def two_times(solution: Solution, names: Sequence[str] = ("Phi1", "G1"), ax: Any = None) -> np.ndarray:
    """Kernels Phi^l(t, s), G^l(t, s) and responses A^l(t, s), B^l(t, s) over pairs of steps, mean over samples, a panel each."""
    maps = [plot_data.two_times(solution, name) for name in names]
    axes = _panels(ax, 1, len(names), size=(3.6, 3.0))
    for panel, name, (steps, matrix) in zip(axes, names, maps, strict=True):
        signed = bool(matrix.min() < 0) or name[0] in "AB"
        largest = max(float(np.abs(matrix).max()), 1e-30)
        norm = CenteredNorm(0, largest) if signed else Normalize(float(matrix.min()), float(matrix.max()))
        extent = (-0.5, steps[-1] + 0.5, steps[-1] + 0.5, -0.5)
        colours = "RdBu_r" if signed else "viridis"
        picture = panel.imshow(matrix, norm=norm, cmap=colours, extent=extent, interpolation="nearest")
        kind, layer = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        symbol = rf"${chr(92) + kind if kind == 'Phi' else kind}^{{{layer}}}(t, s)$"
        panel.set(xlabel="step $s$", ylabel="step $t$", title=symbol)
        panel.figure.colorbar(picture, ax=panel, shrink=0.85)
    return axes


def preactivations(
    nets: Solutions,
    limit: Solutions | None = None,
    sample: int = 0,
    steps: Sequence[int] = (0, -1),
    layer: int = 1,
    ax: Any = None,
    bins: int = 40,
) -> np.ndarray:
    """Distribution of h^layer over neurons at one training sample, a panel per step; the seeds of a width are pooled."""
    groups, limits = plot_data.by_width(nets, limit)
    styles = {f"N = {n}": {"color": c, "linewidth": 1.1} for n, c in zip(groups, _colours(len(groups)), strict=True)}
    sets = dict(zip([*styles, "limit"], [*groups.values(), limits], strict=True))
    drawn = {step: {k: plot_data.pooled(g, step, layer, sample) for k, g in sets.items() if g} for step in steps}
    ends = np.array([np.quantile(h, [0.001, 0.999]) for found in drawn.values() for h, _ in found.values()])
    edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), bins + 1)
    axes = _panels(ax, 1, len(steps), size=(4.0, 3.3), sharey=True)
    for panel, (step, found) in zip(axes, drawn.items(), strict=True):
        for label, (h, m) in found.items():
            density = np.histogram(h, edges, weights=m)[0] / np.diff(edges)
            panel.stairs(density, edges, label=label, **styles.get(label, _LIMIT))
        panel.set(
            xlabel=rf"preactivation $h^{{{layer}}}$ of sample {sample}",
            title=plot_data.when(_any(groups, limits), step),
        )
    axes[0].set_ylabel("density of neurons")
    axes[-1].legend(title="seeds pooled" if groups else None, **_beside(ax))
    return axes


def particles(solution: Solution, steps: Sequence[int] = (0, -1), ax: Any = None, output: int = 0) -> np.ndarray:
    """Clouds of a two-layer solution in a plane of input weights, coloured by readout a; heavier particles are larger.

    The plane: both weights for two inputs, (w, a) for one, else the two directions v_1, v_2 in which the particles moved most.
    At most 3000 particles are drawn.
    """
    clouds, picture = plot_data.clouds(solution, output), None
    axes = _panels(ax, 1, len(steps), size=(4.0, 3.6), sharex=True, sharey=True)
    for panel, step in zip(axes, steps, strict=True):
        solution.measure(step)  # says which steps were recorded
        picture = _scatter(panel, clouds, max(clouds.points) if step == -1 else step)
        panel.set_title(plot_data.when(solution, step))
    axes[0].set_ylabel(clouds.axes[1])
    axes[0].figure.colorbar(picture, ax=list(axes), label="readout $a$", extend="both")
    return axes


def animate_particles(
    solution: Solution, ax: Axes | None = None, output: int = 0, milliseconds: float = 100
) -> FuncAnimation:
    """`particles` through all recorded snapshots. Keep the result, and `.save("cloud.gif", writer="pillow")` it."""
    clouds = plot_data.clouds(solution, output)
    panel: Axes = _panels(ax, size=(5.0, 4.2))[0]
    picture = _scatter(panel, clouds, min(clouds.points))
    panel.set_ylabel(clouds.axes[1])
    figure: Any = panel.get_figure(root=True)
    figure.colorbar(picture, ax=panel, label="readout $a$", extend="both")

    def show(step: int) -> list[Any]:
        picture.set_offsets(clouds.points[step])
        picture.set_array(clouds.readouts[step])
        return [picture, panel.set_title(plot_data.when(solution, step))]

    show(min(clouds.points))
    if ax is None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: doing so for every frame costs more than drawing it
    return FuncAnimation(figure, show, frames=list(clouds.points), interval=milliseconds)


def _panels(ax: Any, rows: int = 1, columns: int = 1, count: int = 0, size: Any = (5.2, 3.8), **shared: Any) -> Any:
    """`count` (default: all) axes as a flat array: the ones given, or those of a new figure, without the rest of its grid."""
    count = count or rows * columns
    if ax is not None:
        given = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
        if len(given) != count:
            raise ValueError(f"this picture needs {count} axes: received {len(given)}; without ax a new figure is made")
        return given
    shape = (size[0] * columns, size[1] * rows)
    _, made = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False, **shared)
    for unused in made.ravel()[count:]:
        unused.remove()
    return made.ravel()[:count]


def _beside(ax: Any) -> dict[str, Any]:
    """A legend to the right of the panels of a new figure; in a given one, wherever there is room."""
    return _SMALL | ({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if ax is None else {})


def _curves(
    ax: Axes, groups: dict[int, list[Solution]], limits: Sequence[Solution], of: Callable[[Solution], Tensor]
) -> list[np.ndarray]:
    """Per width the mean over seeds with a band of ± 1 standard deviation, the limits on top; returns the lines."""
    drawn = []
    for (width, group), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        values, times = torch.stack([of(s).double() for s in group]).numpy(), group[0].times.numpy()
        drawn.append(values.mean(0))
        ax.plot(times, drawn[-1], color=colour, linewidth=1.2, label=f"N = {width}")
        if len(group) > 1:
            spread = values.std(0, ddof=1)
            ax.fill_between(times, drawn[-1] - spread, drawn[-1] + spread, color=colour, alpha=0.25, linewidth=0.6)
    for i, solution in enumerate(limits):
        drawn.append(of(solution).double().numpy())
        ax.plot(solution.times.numpy(), drawn[-1], label="_" if i else "limit", **_LIMIT)
    return drawn


def _output(solution: Solution, mu: int, column: int, test: bool) -> Tensor:
    f = solution.f_test if test else solution.f
    if f is None:
        raise ValueError("the problem has no test samples: give the Dataset x_test")
    return plot_data.row(f.transpose(0, 1), mu)[:, column]


def _deviation(ax: Axes, d: Deviation, widths: np.ndarray) -> None:
    distance = bool(np.isnan(d.variance).all())
    what = "distance" if distance else "deviation"
    marks: dict[str, Any] = {"capsize": 2, "markersize": 4}
    ax.errorbar(widths, d.deviation, d.deviation_se, fmt="o", color=_BLUE, label=what, **marks)
    if what in d.exponents:
        e, weights = d.exponents[what], (d.deviation / np.maximum(d.deviation_se, 1e-12 * d.deviation)) ** 2
        centre, height = (np.average(np.log(v), weights=weights) for v in (widths, d.deviation))
        label = rf"$\propto N^{{{e.slope:.2f}}}$, 95 %: ${e.low:.2f}$ to ${e.high:.2f}$"
        ax.plot(widths, np.exp(height + e.slope * (np.log(widths) - centre)), color=_BLUE, linewidth=1, label=label)
    floor = "as many neurons of the limit" if distance else "floor of |bias|"
    ax.plot(widths, d.floor, "--", color=_GREY, marker=".", linewidth=1, label=floor)
    if (seen := d.bias_detected).any():
        bias = np.sqrt(d.bias2[seen])
        ax.errorbar(widths[seen], bias, d.bias2_se[seen] / (2 * bias), fmt="s", color=_ORANGE, label="|bias|", **marks)
    ax.set(xscale="log", yscale="log")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    _plain_log(ax)


def _scatter(ax: Axes, clouds: plot_data.Clouds, step: int) -> PathCollection:
    """One snapshot, on scales that all snapshots share; the colours saturate for the largest 2 % of readouts."""
    everywhere, readouts = np.concatenate([*clouds.points.values()]), np.concatenate([*clouds.readouts.values()])
    low, high = everywhere.min(0), everywhere.max(0)
    (x0, y0), (x1, y1) = low - 0.05 * (high - low), high + 0.05 * (high - low)
    ax.set(xlim=(x0, x1), ylim=(y0, y1), xlabel=clouds.axes[0], facecolor="0.93")
    ax.set_aspect("equal" if clouds.isometric else "auto")
    norm = CenteredNorm(0, float(np.quantile(np.abs(readouts), 0.98)) or 1.0)
    points = clouds.points[step]
    return ax.scatter(*points.T, s=clouds.sizes, c=clouds.readouts[step], norm=norm, cmap="RdBu_r", linewidths=0)


def _any(groups: dict[int, list[Solution]], limits: Sequence[Solution]) -> Solution:
    return (limits or next(iter(groups.values())))[0]


def _colours(count: int) -> list[Any]:
    return (
        [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.88, 0.15, count)] if count > 1 else [_BLUE] * count
    )


def _plain_log(ax: Axes) -> None:
    """Ticks at 1, 2, 5 of each decade where the default labels would crowd; for the limits as they are now"""
    low, high = ax.get_ylim()
    if high < 1000 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")


def _width_axis(ax: Axes, widths: Sequence[int], label: bool = True) -> None:
    ax.set_xticks(widths, [str(n) for n in widths])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("width $N$" if label else "")


def scaling_plane(points: Mapping[str, Scaling] | None = None, ax: Axes | None = None) -> Axes:
    """The plane (q_sigma, q) of scalings with q_a = q_w = q: regions of well-defined limits, the four properties' lines, named points.

    points: scalings to mark, by label; None takes the named ones. Those with q_a != q_w stand at the mean of the two, with a hollow mark.
    """
    panel: Axes = _panels(ax, size=(7.2, 5.2))[0]
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
    for along, height, style, label in lines:
        panel.plot(along, height, color="black", linestyle=style, linewidth=1.1, label=label)
    _named_points(panel, points)
    panel.text(-0.97, -0.22, "outputs do not move", color=_GREY, rotation=0, ha="center")
    panel.text(-0.72, 1.42, "weights diverge", color=_GREY, ha="center")
    panel.set(xlim=(left, right), ylim=(-0.6, 1.6), xlabel=r"$q_\sigma$", ylabel=r"$q = q_a = q_w$")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **_SMALL)
    return panel


def _named_points(ax: Axes, points: Mapping[str, Scaling] | None) -> None:
    """Dots with labels; scalings at one place share a label, hollow dots have q_a != q_w"""
    chosen = {name: make() for name, make in NAMED.items()} if points is None else points
    places: dict[tuple[float, float], list[tuple[str, Scaling]]] = {}
    for name, s in chosen.items():
        places.setdefault((s.q_sigma, (s.q_a + s.q_w) / 2), []).append((name, s))
    for (q_sigma, q), here in places.items():
        hollow = all(s.q_a != s.q_w for _, s in here)
        ax.plot(q_sigma, q, "o", color="black", fillstyle="none" if hollow else "full", markersize=6, zorder=6)
        told = [name if s.q_a == s.q_w else f"{name} ($q_a$ = {s.q_a:g}, $q_w$ = {s.q_w:g})" for name, s in here]
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        ax.annotate(
            "\n".join(told), (q_sigma, q), (7, 5), textcoords="offset points", fontsize="small", bbox=box, zorder=7
        )


def powers(reports: PowersReport | Sequence[PowersReport], ax: Any = None) -> np.ndarray:
    """Measured powers of the width with their intervals against the predicted ones (crosses), a panel per scaling."""
    several = [reports] if isinstance(reports, PowersReport) else list(reports)
    axes = _panels(ax, 1, len(several), size=(2.7, 3.0), sharex=True, sharey=True)
    for panel, report in zip(axes, several, strict=True):
        names = list(report.quantities)[::-1]
        laws = [report[name] for name in names]
        slopes = np.array([law.measured.slope for law in laws])
        spans = np.abs(np.array([[law.measured.low, law.measured.high] for law in laws]) - slopes[:, None]).T
        panel.errorbar(
            slopes, range(len(names)), xerr=spans, fmt="o", color=_BLUE, capsize=2, markersize=4, label="measured, 95 %"
        )
        panel.plot(
            [law.predicted for law in laws], range(len(names)), "x", color=_ORANGE, markersize=8, label="predicted"
        )
        panel.set_yticks(range(len(names)), [_POWER_LABELS.get(name, name) for name in names])
        panel.grid(axis="x", linewidth=0.4)
        panel.set(title=report.scaling.name.replace("_", "-"), xlabel="power of $N$")
    axes[-1].legend(**_beside(ax))
    return axes


_POWER_LABELS = {
    "f0": r"$f_0$",
    "kernel": "$K(0)$",
    "f": "$f(T)$",
    "readouts": r"movement of $a$",
    "weights": r"movement of $w$",
    "kernel_change": r"$|\Delta K| / |K|$",
}


def proxy_comparison(report: ProxyReport, ax: Any = None) -> np.ndarray:
    """KL of each limit to networks of the reference width with bootstrap bands, and the distance of the Gaussian fits, against time.

    Limits without randomness have an infinite KL and appear on the right only. The grey line is the floor before its correction.
    """
    axes = _panels(ax, 1, 2, size=(4.6, 3.6))
    colours = ["#D55E00", "#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    styles = ["-", "--", "-.", ":"]
    finite = np.isfinite(report.kl)
    least = 0.1 * float(np.min(report.floor))
    for i, name in enumerate(report.names):
        look = {"color": colours[i % 7], "linestyle": styles[i % 4], "linewidth": 1.6}
        label = name.replace("_", "-") + ("" if finite[i].any() else " (no KL: deterministic)")
        if finite[i].any():
            axes[0].plot(report.times, np.maximum(report.kl[i], least), **look)
            axes[0].fill_between(report.times, np.maximum(report.low[i], least), np.maximum(report.high[i], least),
                                 color=look["color"], alpha=0.15, linewidth=0)  # fmt: skip
        axes[1].plot(report.times, report.distance[i], label=label, **look)
    axes[0].plot(report.times, report.floor, color=_GREY, linewidth=1)
    axes[0].annotate("floor before correction", (report.times[-1], report.floor[-1]), (0, 3), ha="right",
                     textcoords="offset points", color=_GREY, fontsize="small")  # fmt: skip
    axes[0].set(
        yscale="log", xlabel=_TIME, ylabel=r"$E_x\,\mathrm{KL}$(limit $\|$ network), 95 % bands", ylim=(least, None)
    )
    axes[1].set(xlabel=_TIME, ylabel="2-Wasserstein distance, relative", ylim=(0, None))
    axes[1].legend(title=f"N* = {report.reference_width}, {report.seeds} seeds", **_beside(ax))
    return axes
