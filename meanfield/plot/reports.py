"""Deviation of networks from their limit, and how their fields go with the width."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from meanfield.checking.arguments import checked
from meanfield.comparison.coordinates import Coordinate, CoordinatesReport, Kind
from meanfield.comparison.predicted import Fluctuation
from meanfield.comparison.report import Deviation, DeviationReport
from meanfield.network.keys import parts
from meanfield.plot import data as plot_data
from meanfield.plot.curves import MARK, drawn_before
from meanfield.plot.families import PALETTE
from meanfield.plot.frame import BLUE, GREY, ORANGE, SMALL, colours, headed, legend, panels, plain_log, width_axis
from meanfield.plot.style import in_a_row, in_print


@checked
def deviation(
    report: DeviationReport, names: Sequence[str] | None = None, ax: Any = None, label: str | None = None
) -> np.ndarray:
    """Deviation from the limit against width, one log-log panel per observable, with the fitted power of the width, a guide N^-1/2, and
    the limit's own error where it is known.

    names: None takes f, loss, the Phi of the last layer and tangent_kernel as far as the report has them. |bias| is drawn only where it
    was detected, predictions where they are of all numbers that are compared (of f and losses at every recorded step); `predictions` shows
    the others. label: of the deviations, e.g. to tell two reports on the same axes apart.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> nets = [net for width in (16, 64) for net in FiniteWidth(width).ensemble(problem, seeds=4)]
        >>> mf.plot.deviation(mf.deviation(nets, WassersteinFlow(particles=256)(problem)), names=("f", "loss")).shape
        (2,)
    """
    if names is None:
        phi = next((n for n in reversed([*report.observables]) if parts(n)[0] == "Phi"), "")
        names = [n for n in ("f", "loss", phi, "tangent_kernel") if n in report.observables] or [*report.observables]
    found = [report[name] for name in names]
    columns = max(1, min(2, len(found)))
    axes = panels(ax, -(-len(found) // columns), columns, len(found), size=(3.9, 3.1), extra=1.6)
    widths = np.array(report.widths, dtype=float)
    for i, (panel, d) in enumerate(zip(axes, found, strict=True)):
        colour = PALETTE[drawn_before(panel) % len(PALETTE)]
        _deviation(panel, d, widths, colour, label)
        for p in (p for p in report.predictions if p.name == d.name and p.whole and np.isfinite(p.predicted)):
            _predicted(panel, p, widths)
        plain_log(panel)
        panel.set_title(plot_data.described(d.name), fontsize="medium")
        width_axis(panel, report.widths, label=i + columns >= len(axes))
        panel.set_ylabel("relative to the limit" if i % columns == 0 else "")
        fits = [line for line in panel.get_lines() if "propto" in str(line.get_label())]
        if fits and ax is None and in_print():  # no room inside
            told = re.sub(r", 95 %: (.*)", r" (\1)", str(fits[0].get_label()))
            panel.set_title(f"{panel.get_title()}\n{told}", fontsize="medium")
        elif fits and ax is None:
            panel.legend(handles=fits, loc="best", **SMALL)
    if ax is None:
        _shared_legend(axes)
    else:
        axes[-1].legend(**SMALL)
    return axes


def _shared_legend(axes: np.ndarray) -> None:
    """What all panels show, once, to their right"""
    handles = {
        label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    kept = {label: handle for label, handle in handles.items() if "propto" not in label}
    place: dict[str, Any] = (
        {"loc": "outside lower center", "ncols": 2} if in_print() else {"loc": "outside right center"}
    )
    axes[0].figure.legend(kept.values(), kept.keys(), **place, **SMALL)


@checked
def variance(report: DeviationReport, ax: Axes | None = None, label: str | None = None) -> Axes:
    """N Var f(T) against width, beside the value predicted before training.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> nets = [net for width in (16, 64) for net in FiniteWidth(width).ensemble(problem, seeds=4)]
        >>> axes = mf.plot.variance(mf.deviation(nets, WassersteinFlow(particles=256)(problem)))
    """
    panel: Axes = panels(ax)[0]
    style = {"fmt": "o", "color": BLUE, "capsize": 2}
    panel.errorbar(report.widths, report.n_var, report.n_var_se, label="networks, ± 1 standard error", **style)
    if np.isfinite(report.predicted_n_var):
        panel.axhline(report.predicted_n_var, color="black", label="predicted before training")
        low, high = (report.predicted_n_var + sign * np.nan_to_num(report.predicted_n_var_se) for sign in (-1, 1))
        panel.axhspan(low, high, color="black", alpha=0.15, linewidth=0)
    top = max(np.max(report.n_var + np.nan_to_num(report.n_var_se)), np.nan_to_num(report.predicted_n_var))
    panel.set(
        xscale="log", ylim=(0, 1.25 * top), ylabel=rf"$N\,\mathrm{{Var}}\,f(T)$, mean over {report.averaged_over}"
    )
    width_axis(panel, report.widths)
    panel.legend(loc="lower right", **SMALL)
    headed([panel], ax, label)
    return panel


@checked
def coordinates(report: CoordinatesReport, step: int = -1, ax: Any = None, label: str | None = None) -> np.ndarray:
    """Fields, their changes, gradients and changes of gradients against width at a recorded step, in log-log, a panel each.

    Full lines leave a layer's weight, dashed ones enter it, the black one is the network's outputs. What does not go with the width as it
    should is marked by crosses. step: of training, one of the report's; -1 is the last.

    Example:
        >>> import meanfield as mf
        >>> from solvers import coordinate_check
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> report = coordinate_check(problem, widths=(32, 64, 128), seeds=3, samples=None)
        >>> mf.plot.coordinates(report).shape
        (4,)
    """
    at = report.steps[-1] if step == -1 else step
    if at not in report.steps:
        raise ValueError(f"step must be one of the report's, {', '.join(map(str, report.steps))}: received {step}")
    titles: dict[Kind, str] = {"field": "fields", "change": "changes of fields", "gradient": "gradients",
                               "gradient change": "changes of gradients"}  # fmt: skip
    columns = in_a_row(4)
    axes = panels(ax, -(-4 // columns), columns, 4, size=(2.9, 3.4))
    layers = list(dict.fromkeys(c.layer for c in report.coordinates if c.layer))
    colour = dict(zip(layers, colours(len(layers)), strict=True)) | {"": "black"}
    for panel, (kind, title) in zip(axes, titles.items(), strict=True):
        for c in report.coordinates:
            if c.kind == kind and (values := c.values[report.steps.index(at)]).any():
                _coordinate(panel, c, np.array(report.widths), values, colour[c.layer])
        panel.set(xscale="log", yscale="log")
        panel.set_title(f"{title}, step {at}", fontsize="medium")
        low, high = panel.get_ylim()
        middle, span = (low * high) ** 0.5, max(high / low, 10.0) ** 0.5  # so that noise does not fill the panel
        panel.set_ylim(middle / span, middle * span)
        plain_log(panel)
        width_axis(panel, report.widths)
    for panel in axes[::columns]:
        panel.set_ylabel("root mean square")
    shown: list[tuple[str, Any, Any, str]] = [(layer or "outputs", colour[layer], "-", "") for layer in (*layers, "")]
    shown += [("leaves", GREY, "-", ""), ("enters", GREY, "--", "")]
    shown += [("not as it should", ORANGE, "", "x")] if report.wrong else []
    handles = [Line2D([], [], color=c, linestyle=line, marker=mark) for _, c, line, mark in shown]
    legend(axes, ax, handles, [label for label, *_ in shown])
    headed(axes, ax, label)
    return axes


def _coordinate(ax: Axes, c: Coordinate, widths: np.ndarray, values: np.ndarray, color: Any) -> None:
    ax.plot(widths, values, "--" if c.place == "enters" else "-", color=color, linewidth=1.4)
    if not c.right:
        ax.plot(widths, values, "x", color=ORANGE, markersize=6, zorder=6)


def _deviation(ax: Axes, d: Deviation, widths: np.ndarray, colour: Any, label: str | None) -> None:
    distance = bool(np.isnan(d.variance).all())
    what = "distance" if distance else "deviation"
    marks: dict[str, Any] = {"capsize": 2, "markersize": 4}
    middle = np.exp(np.mean(np.log(d.deviation * widths**0.5)))
    ax.plot(widths, middle * widths**-0.5, ":", color="black", linewidth=1, label="$N^{-1/2}$", zorder=1)
    (points, *_) = ax.errorbar(widths, d.deviation, d.deviation_se, fmt="o", color=colour, label=label or what, **marks)
    points.set_gid(MARK)
    if what in d.exponents:
        e, weights = d.exponents[what], (d.deviation / np.maximum(d.deviation_se, 1e-12 * d.deviation)) ** 2
        centre, height = (np.average(np.log(v), weights=weights) for v in (widths, d.deviation))
        fit = rf"$\propto N^{{{e.slope:.2f}}}$, 95 %: ${e.low:.2f}$ to ${e.high:.2f}$"
        ax.plot(widths, np.exp(height + e.slope * (np.log(widths) - centre)), color=colour, linewidth=1, label=fit)
    floor = "as many neurons\nof the limit" if distance else "floor of |bias|"
    ax.plot(widths, d.floor, "--", color=GREY, marker=".", linewidth=1, label=floor)
    ax.set(xscale="log", yscale="log")
    if d.reference_error > 0:  # nan of a single limit
        ax.axhline(d.reference_error, color="black", linewidth=0.8, linestyle=(0, (1, 3)), label="error of the limit")
    if (seen := d.bias_detected).any():
        bias = np.sqrt(d.bias2[seen])
        ax.errorbar(widths[seen], bias, d.bias2_se[seen] / (2 * bias), fmt="s", color=ORANGE, label="|bias|", **marks)


def _predicted(ax: Axes, p: Fluctuation, widths: np.ndarray) -> None:
    """Standard deviation or bias, relative to the limit, as predicted"""
    spread, error = p.kind == "variance", np.nan_to_num(p.predicted_se)
    middle, low, high = (
        max(p.predicted + k * error, 1e-3 * p.predicted) / (p.size**2 if spread else p.size) for k in (0, -1, 1)
    )
    lines = [np.sqrt(v / widths) if spread else v / widths for v in (middle, low, high)]
    label = "predicted std" if spread else "predicted |bias|"
    ax.plot(widths, lines[0], color="black", linewidth=1.5, linestyle="-" if spread else "-.", label=label)
    ax.fill_between(widths, lines[1], lines[2], color="black", alpha=0.15, linewidth=0)
