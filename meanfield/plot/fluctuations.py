"""What finite networks add to their limit: measured beside predicted, and predictions of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.ensembles import EnsembleLoss
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.comparison.predicted import Fluctuation
from meanfield.comparison.report import DeviationReport
from meanfield.network.keys import parts
from meanfield.plot import data as plot_data
from meanfield.plot.frame import (
    BLUE,
    GREY,
    LIMIT,
    ORANGE,
    SMALL,
    TIME,
    colours,
    headed,
    legend,
    panels,
    plain_log,
    width_axis,
)

_SIDES = {"variance": (r"$\mathrm{Var}$", BLUE), "bias": (r"$|\mathrm{bias}|$", ORANGE)}


@checked
def predictions(report: DeviationReport, ax: Any = None, label: str | None = None) -> np.ndarray:
    """Variance and bias of each observable that was predicted: against width beside the predicted line, and measured over predicted.

    Two panels for each; a band is the prediction's standard error, bars are 95 % intervals. ValueError for a report without predictions.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow, predicted_variance
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> nets = [net for width in (16, 64) for net in FiniteWidth(width).ensemble(problem, seeds=4)]
        >>> variance = predicted_variance(problem, particles=64)
        >>> report = mf.deviation(nets, WassersteinFlow(particles=256)(problem), predicted=variance)
        >>> mf.plot.predictions(report).shape
        (4,)
    """
    if not report.predictions:
        raise ValueError(
            "this report holds no predictions: give deviation what predicted_variance and predicted_bias found, predicted= and bias="
        )
    found = [p for p in report.predictions if np.isfinite(p.predicted)]
    axes = panels(ax, len(found), 2, size=(4.2, 2.7))
    for i, p in enumerate(found):
        last = i == len(found) - 1
        _measured(axes[2 * i], p, report.widths)
        _ratio(axes[2 * i + 1], p, report.widths)
        for panel in axes[2 * i : 2 * i + 2]:
            width_axis(panel, report.widths, label=last)
    headed(axes, ax, label)
    return axes


def _title(p: Fluctuation) -> str:
    kind, layer = parts(p.name)
    words = {"f": "outputs $f$", "f_test": "test outputs $f$", "loss": "training loss", "test_loss": "test loss",
             "tangent_kernel": "tangent kernel $K$"}  # fmt: skip
    what = words.get(p.name) or plot_data.symbol(kind, layer)
    return f"{what}, step {p.steps[-1]}" if len(p.steps) == 1 else f"{what}, {len(p.steps)} steps"


def _measured(ax: Axes, p: Fluctuation, widths: tuple[int, ...]) -> None:
    """Variance against width in log-log; N times the bias, which noise may turn over"""
    symbol, color = _SIDES[p.kind]
    n = np.array(widths, dtype=float)
    ends = n[[0, -1]] * [0.85, 1.18]
    scale = p.kind == "variance"
    at, by = (ends, n) if scale else (np.ones(2), np.ones_like(n))
    told = rf"predicted, {p.predicted:.3g}$/N$" if scale else f"predicted, {p.predicted:.3g}"
    ax.plot(ends, p.predicted / at, **LIMIT, label=told)
    if np.isfinite(p.predicted_se):
        low, high = ((p.predicted + sign * p.predicted_se) / at for sign in (-1, 1))
        ax.fill_between(ends, np.maximum(low, 1e-3 * p.predicted / at), high, color="black", alpha=0.15, linewidth=0)
    error = 1.96 * np.nan_to_num(p.measured_se)
    below = np.minimum(error, 0.9 * p.measured) if scale else error  # a logarithmic axis has no room for 0
    style: dict[str, Any] = {"fmt": "o", "color": color, "capsize": 2, "markersize": 4}
    ax.errorbar(n, p.measured / by, np.array([below, error]) / by, label="networks, 95 %", **style)
    symbol = symbol if scale else f"$N$ {symbol}"
    ax.set(xscale="log", xlim=ends, ylabel=f"{symbol}, {p.numbers} numbers" if p.numbers > 1 else symbol)
    ax.set_title(_title(p), fontsize="medium")
    if scale:
        ax.set_yscale("log")
        plain_log(ax)
    ax.legend(loc="lower left" if scale else "best", **SMALL)


def _ratio(ax: Axes, p: Fluctuation, widths: tuple[int, ...]) -> None:
    ratio, _ = p.ratio()
    ax.axhline(1.0, color="black", linewidth=1)
    if np.isfinite(p.predicted_se):
        ends = (1 + sign * p.predicted_se / p.predicted for sign in (-1, 1))
        ax.axhspan(*ends, color="black", alpha=0.15, linewidth=0)
    own = 1.96 * np.nan_to_num(p.measured_se / p.predicted)
    ax.errorbar(widths, ratio, own, fmt="o", color=_SIDES[p.kind][1], capsize=2, markersize=4)
    reach = max(0.25, 1.1 * float(np.max(np.abs(ratio - 1) + own)))
    ax.set(xscale="log", xlim=(0.85 * widths[0], 1.18 * widths[-1]), ylim=(1 - reach, 1 + reach))
    ax.set_ylabel("measured / predicted")
    ax.set_title(f"{p.kind} of {_title(p)}", fontsize="medium")


def _some(found: PredictedVariance | PredictedBias, name: str) -> None:
    """ValueError for an observable of which nothing was predicted"""
    checks.lookup("observable", name, dict.fromkeys(found.names))


@checked
def predicted_variance(
    found: PredictedVariance, name: str = "f", ax: Axes | None = None, label: str | None = None
) -> Axes:
    """N Var of an observable by the layer whose neurons it comes from, stacked: over training time, mean over its numbers, or of each
    number where it was predicted at one step.

    The bars are the standard error of the whole.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_variance
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> axes = mf.plot.predicted_variance(predicted_variance(problem, particles=64))
    """
    _some(found, name)
    each = found.by_part(name)  # (parts, R, ..)
    asked = ~each[0, 0].isnan()
    stacked, error = each[:, :, asked].double().numpy(), found.error(name)[:, asked].double()
    panel: Axes = panels(ax)[0]
    shades = colours(len(found.parts))
    if len(found.steps) == 1:
        at, heights = np.arange(stacked.shape[2]), stacked[:, 0]
        for part, base, height, shade in zip(
            found.parts, np.cumsum(heights, 0) - heights, heights, shades, strict=True
        ):
            panel.bar(at, height, bottom=base, color=shade, label=part)
        spread = error[0].numpy()
        panel.errorbar(at, heights.sum(0), spread, fmt="none", color="black", capsize=2)
        panel.set_xlabel(f"numbers of {name}, in their order, at step {found.steps[0]}")
        panel.set_ylabel(r"$N\,\mathrm{Var}$")
        panel.locator_params(axis="x", integer=True)
    else:
        rate = found.problem.training.learning_rate
        at, heights = rate * np.array(found.steps), stacked.mean(2)
        panel.stackplot(at, heights, colors=shades, labels=found.parts)
        whole = found.each(name)[:, :, asked].mean(2)
        spread = whole.std(0).numpy() / len(whole) ** 0.5 if len(whole) > 1 else None
        panel.errorbar(at, heights.sum(0), spread, color="black", linewidth=1, capsize=2, label="all")
        panel.set(
            xlabel=TIME, xlim=(at[0], at[-1]), ylabel=rf"$N\,\mathrm{{Var}}$ of {name}, mean over {stacked.shape[2]}"
        )
    panel.set_ylim(0, 1.1 * float((heights.sum(0) + np.nan_to_num(0.0 if spread is None else spread)).max()))
    if len(found.parts) > 1:
        legend([panel], ax, title="from neurons of")
    headed([panel], ax, label)
    return panel


@checked
def predicted_bias(found: PredictedBias, name: str = "f", ax: Axes | None = None, label: str | None = None) -> Axes:
    """N times the bias of the numbers of an observable, with standard errors: over training time, or where it was predicted at one step.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> axes = mf.plot.predicted_bias(predicted_bias(problem, width=16, draws=20))
    """
    _some(found, name)
    bias, error = found.bias(name), found.error(name)
    asked = ~bias[0].isnan()
    values, errors = bias[:, asked].double().numpy(), error[:, asked].double().numpy()
    panel: Axes = panels(ax)[0]
    panel.axhline(0.0, color=GREY, linewidth=1)
    if len(found.steps) == 1:
        panel.bar(np.arange(values.shape[1]), values[0], yerr=errors[0], color=ORANGE, capsize=2)
        panel.set_xlabel(f"numbers of {name}, in their order, at step {found.steps[0]}")
        panel.locator_params(axis="x", integer=True)
    else:
        at = found.problem.training.learning_rate * np.array(found.steps)
        few = values.shape[1] <= 8
        for number, row, spread, shade in zip(
            np.flatnonzero(asked.flatten().numpy()), values.T, errors.T, colours(values.shape[1]), strict=True
        ):
            panel.plot(at, row, color=shade, linewidth=1.2, label=f"number {number}" if few else "_")
            panel.fill_between(at, row - spread, row + spread, color=shade, alpha=0.2, linewidth=0)
        panel.set(xlabel=TIME, xlim=(at[0], at[-1]))
        legend([panel], ax, title="± 1 standard error") if few else None
    panel.set_ylabel(rf"$N$ bias of {name}")
    headed([panel], ax, label)
    return panel


@checked
def width_for(found: WidthFor, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Distance from the limit against width, of which variance and bias make up a part each, and the width that was found.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias, predicted_variance, width_for
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> known = {
        ...     "variance": predicted_variance(problem, particles=64),
        ...     "bias": predicted_bias(problem, width=16, draws=20),
        ... }
        >>> axes = mf.plot.width_for(width_for(problem, error=0.1, **known))
    """
    panel: Axes = panels(ax)[0]
    n = np.geomspace(max(1.0, found.width / 30), 10.0 * found.width, 200)
    variance, bias = found.n_variance / (found.ensemble * n), max(found.n_bias2, 0.0) / n**2
    whose = "one network" if found.ensemble == 1 else f"mean of {found.ensemble} networks"
    panel.plot(n, np.sqrt(variance + bias) / found.size, **LIMIT, label=whose)
    for part, (kind, (_, color)) in zip((variance, bias), _SIDES.items(), strict=True):
        if part.any():
            panel.plot(n, np.sqrt(part) / found.size, "--", color=color, zorder=5, label=f"by its {kind}")
    panel.axhline(found.asked, color=GREY, linewidth=1, linestyle=":", label="asked for")
    bar = found.error if np.isfinite(found.error) else None
    panel.errorbar([found.width], [found.asked], xerr=bar, fmt="o", color="black", capsize=3, zorder=6)
    panel.annotate(f"{found.width}", (found.width, found.asked), (6, 6), textcoords="offset points")
    panel.set(xscale="log", yscale="log", xlabel="width $N$", ylabel="distance from the limit, relative")
    panel.legend(**SMALL)
    headed([panel], ax, label)
    return panel


@checked
def ensemble_loss(found: EnsembleLoss, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Loss of single networks and of means of several against width: measured beside predicted, with what no averaging removes.

    Example:
        >>> import meanfield as mf
        >>> found = mf.EnsembleLoss(limit=0.1, n_variance=2.0, n_variance_se=0.1, n_bias=1.0, n_bias_se=0.2, n2_bias2=0.0)
        >>> axes = mf.plot.ensemble_loss(found)
    """
    panel: Axes = panels(ax)[0]
    widths = found.widths or (64, 128, 256, 512, 1024)
    n, sizes = np.geomspace(0.85 * widths[0], 1.18 * widths[-1], 100), found.ensembles or (1, 4, 16)
    kept = found.limit + found.n_bias / n + found.n2_bias2 / n**2
    for k, (e, shade) in enumerate(zip(sizes, colours(len(sizes)), strict=True)):
        whose = "single networks" if e == 1 else f"means of {e}"
        panel.plot(
            n,
            kept + found.n_variance / (n * e),
            color=shade,
            linewidth=1.2,
            label=whose if found.measured is None else None,
        )
        if found.measured is not None and found.measured_se is not None:
            at = np.array(widths) * 1.03 ** (k - (len(sizes) - 1) / 2)  # beside each other
            error = 1.96 * found.measured_se[:, k]
            panel.errorbar(at, found.measured[:, k], error, fmt="o", color=shade, capsize=2, markersize=4, label=whose)
    panel.plot(n, kept, "--", color=ORANGE, label="bias alone, means of all")
    panel.axhline(found.limit, **LIMIT, label="limit")
    panel.set(xscale="log", xlim=n[[0, -1]], ylabel="loss after the last step")
    width_axis(panel, widths)
    told = "lines predicted" + ("" if found.measured is None else ", bars 95 %")
    panel.legend(title=told, **SMALL)
    headed([panel], ax, label)
    return panel
