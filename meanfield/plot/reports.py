"""Deviation of networks from their limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meanfield.checking.arguments import checked
from meanfield.comparison.report import Deviation, DeviationReport
from meanfield.plot import data as plot_data
from meanfield.plot.frame import BLUE, GREY, ORANGE, SMALL, panels, plain_log, width_axis


@checked
def deviation(report: DeviationReport, names: Sequence[str] | None = None, ax: Any = None) -> np.ndarray:
    """Deviation from the limit against width, one log-log panel per observable, with the fitted power of the width.

    names: None takes f, loss, Phi1 and tangent_kernel as far as the report has them. |bias| is drawn only where it was detected.
    """
    if names is None:
        names = [n for n in ("f", "loss", "Phi1", "tangent_kernel") if n in report.observables] or [*report.observables]
    found = [report[name] for name in names]
    columns = max(1, min(2, len(found)))
    axes = panels(ax, -(-len(found) // columns), columns, len(found), size=(4.4, 3.4))
    for i, (panel, d) in enumerate(zip(axes, found, strict=True)):
        _deviation(panel, d, np.array(report.widths, dtype=float))
        panel.set(title=plot_data.described(d.name))
        width_axis(panel, report.widths, label=i + columns >= len(axes))
        panel.set_ylabel("relative to the limit" if i % columns == 0 else "")
        panel.legend(loc="upper right", **SMALL)
    return axes


@checked
def variance(report: DeviationReport, ax: Axes | None = None) -> Axes:
    """N Var f(T) against width, beside the value predicted before training."""
    panel: Axes = panels(ax)[0]
    style = {"fmt": "o", "color": BLUE, "capsize": 2}
    panel.errorbar(report.widths, report.n_var, report.n_var_se, label="networks, ± 1 standard error", **style)
    if np.isfinite(report.predicted_n_var):
        panel.axhline(report.predicted_n_var, color="black", label="predicted before training")
    top = max(np.max(report.n_var + np.nan_to_num(report.n_var_se)), np.nan_to_num(report.predicted_n_var))
    panel.set(xscale="log", ylim=(0, 1.25 * top), ylabel=r"$N\,\mathrm{Var}\,f(T)$, mean over training outputs")
    width_axis(panel, report.widths)
    panel.legend(loc="lower right", **SMALL)
    return panel


def _deviation(ax: Axes, d: Deviation, widths: np.ndarray) -> None:
    distance = bool(np.isnan(d.variance).all())
    what = "distance" if distance else "deviation"
    marks: dict[str, Any] = {"capsize": 2, "markersize": 4}
    ax.errorbar(widths, d.deviation, d.deviation_se, fmt="o", color=BLUE, label=what, **marks)
    if what in d.exponents:
        e, weights = d.exponents[what], (d.deviation / np.maximum(d.deviation_se, 1e-12 * d.deviation)) ** 2
        centre, height = (np.average(np.log(v), weights=weights) for v in (widths, d.deviation))
        label = rf"$\propto N^{{{e.slope:.2f}}}$, 95 %: ${e.low:.2f}$ to ${e.high:.2f}$"
        ax.plot(widths, np.exp(height + e.slope * (np.log(widths) - centre)), color=BLUE, linewidth=1, label=label)
    floor = "as many neurons of the limit" if distance else "floor of |bias|"
    ax.plot(widths, d.floor, "--", color=GREY, marker=".", linewidth=1, label=floor)
    if (seen := d.bias_detected).any():
        bias = np.sqrt(d.bias2[seen])
        ax.errorbar(widths[seen], bias, d.bias2_se[seen] / (2 * bias), fmt="s", color=ORANGE, label="|bias|", **marks)
    ax.set(xscale="log", yscale="log")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    plain_log(ax)
