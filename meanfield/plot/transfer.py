"""Loss against the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meanfield.checking.arguments import checked
from meanfield.comparison.transfer_report import BestRate, TransferReport
from meanfield.plot.frame import LIMIT, SMALL, colours, headed, panels, plain_log

SHOWN = 5.0  # times the largest loss at the lowest rate: above it curves leave the picture, as diverged runs do


@checked
def learning_rates(
    report: TransferReport, best: bool = False, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Loss against learning rate, both logarithmic: a line a width, the limit black and dashed, bands of one standard error.

    Dots mark the best rates. Where runs diverged there is a cross at the top edge, and no line. best: the least loss of all recorded
    steps instead of the last one.

    Example:
        >>> import meanfield as mf
        >>> from solvers import learning_rate_transfer
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), mf.Network(2), mf.ntk(), mf.Training(0.2, 5))
        >>> report = learning_rate_transfer(problem, rates=(0.1, 0.4, 1.6), widths=(16, 64), seeds=3)
        >>> axes = mf.plot.learning_rates(report)
    """
    panel: Axes = panels(ax)[0]
    runs, curves = report.best if best else report.final, report.losses(best)
    shades, seeds = colours(len(report.widths)), runs.shape[-1]
    found = list(report.best_rates(best).values())
    for i, (n, shade) in enumerate(zip(report.widths, shades, strict=True)):
        with np.errstate(invalid="ignore"):  # of infinite losses
            spread = runs[i].std(-1, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.zeros(len(report.rates))
        _curve(panel, report.rates, curves[i], spread, {"color": shade, "marker": ".", "label": f"$N = {n}$"})
        _mark(panel, report.rates, curves[i], found[i], shade)
        _crosses(panel, report.rates[report.diverged()[i] > 0], shade, len(report.widths) - i)
    if report.limit is not None and report.limit_errors is not None:
        curve, errors = report.limit[int(best)], report.limit_errors[int(best)]
        _curve(panel, report.rates, curve, errors, LIMIT | {"linestyle": "--", "label": "limit"})
        if (rate := report.limit_rate(best)) is not None:
            _mark(panel, report.rates, curve, rate, "black")
        _crosses(panel, report.rates[np.isinf(curve)], "black", 0)
        curves = np.vstack([curves, curve])
    what = "test" if report.settings.get("samples", "").endswith("test") else "training"
    told = f"least {what} loss" if best else f"{what} loss after {report.settings.get('steps', 'all')} steps"
    panel.set(xscale="log", yscale="log", xlabel=r"learning rate $\eta$", ylabel=told)
    finite = curves[np.isfinite(curves)]
    if len(finite):
        first = curves[:, 0][np.isfinite(curves[:, 0])]
        panel.set_ylim(finite.min() / 1.6, SHOWN * (first.max() if len(first) else finite.min()))
    plain_log(panel, "x", "y")
    panel.plot([], [], "o", color="grey", markersize=7, markeredgecolor="white", label="best rate")
    if report.diverged().any() or not np.isfinite(curves).all():
        panel.plot([], [], "x", color="grey", markersize=5, label="blew up")
    panel.legend(**SMALL)
    headed([panel], ax, label)
    return panel


def _curve(panel: Axes, rates: np.ndarray, losses: np.ndarray, errors: np.ndarray, look: dict[str, Any]) -> None:
    shown = np.where(np.isfinite(losses), losses, np.nan)
    style: dict[str, Any] = {"linewidth": 1.3} | look
    panel.plot(rates, shown, **style)
    low = np.maximum(shown - errors, 0.1 * shown)
    panel.fill_between(rates, low, shown + errors, color=look["color"], alpha=0.2, linewidth=0)


def _mark(panel: Axes, rates: np.ndarray, losses: np.ndarray, best: BestRate, shade: Any) -> None:
    """A dot at the best rate, on the curve as it is drawn, with its interval"""
    if np.isnan(best.rate):
        return
    usable = np.isfinite(losses)
    height = np.exp(np.interp(np.log(best.rate), np.log(rates[usable]), np.log(losses[usable])))
    panel.plot(best.rate, height, "o", color=shade, markersize=7, markeredgecolor="white", zorder=6)
    if best.enclosed and np.isfinite(best.low):
        panel.hlines(height, best.low, best.high, color=shade, linewidth=3, alpha=0.6, zorder=6)


def _crosses(panel: Axes, rates: np.ndarray, shade: Any, row: int) -> None:
    """Of diverged runs, one row of them a curve"""
    heights = np.full(len(rates), 0.97 - 0.035 * row)
    panel.plot(rates, heights, "x", color=shade, markersize=5, transform=panel.get_xaxis_transform())
