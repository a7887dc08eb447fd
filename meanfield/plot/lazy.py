"""Lazy limits: spectra of kernels, learning curves, predictions over the random start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meanfield.checking.arguments import checked
from meanfield.kernels.spectrum import KernelSpectrum
from meanfield.plot import data as plot_data
from meanfield.plot.data import Solutions
from meanfield.plot.families import families
from meanfield.plot.frame import (
    BLUE,
    GREY,
    LIMIT,
    ORANGE,
    TIME,
    colours,
    few_ticks,
    headed,
    legend,
    output_of,
    panels,
    plain_log,
    shown,
)
from meanfield.problem.dataset import for_tests
from meanfield.solution.prediction import LazyPrediction


@checked
def learning_curves(
    spectrum: KernelSpectrum,
    times: Sequence[float],
    learning_rate: float | None = None,
    directions: Sequence[int] = (0, 1, 2, 4, 8, 16),
    ax: Axes | None = None,
    label: str | None = None,
) -> Axes:
    """Squared error in single eigen-directions of the kernel, and their sum, against training time (equation 54).

    directions: which, from the largest eigenvalue. learning_rate: of descent; None is gradient flow.

    Example:
        >>> import meanfield as mf
        >>> data = mf.digits(n_train=8, n_test=0)
        >>> found = mf.spectrum(mf.nngp_and_ntk(mf.Network(2, "relu"), mf.ntk(), data.x)[1], data.y)
        >>> axes = mf.plot.learning_curves(found, times=range(0, 100, 10), directions=(0, 1, 2))
    """
    panel: Axes = panels(ax)[0]
    curves = spectrum.learning_curve(times, learning_rate).numpy() / spectrum.samples
    at, chosen = np.asarray(times, dtype=float), [i for i in directions if i < curves.shape[1]]
    for i, colour in zip(chosen, reversed(colours(len(chosen))), strict=True):
        panel.plot(
            at,
            curves[:, i],
            color=colour,
            linewidth=1.2,
            label=rf"$\lambda_{{{i + 1}}}$ = {spectrum.eigenvalues[i]:.2g}",
        )
    panel.plot(at, curves.sum(1), label="all directions", **LIMIT)
    if (left := spectrum.remaining_error) > 1e-12 * curves[0].sum():
        panel.axhline(left, color=GREY, linestyle=":", linewidth=1, label="outside the kernel's range")
    highest = curves.sum(1).max()
    panel.set(
        xlabel=TIME, ylabel=r"squared error, $E\,(v_i\cdot(f-y))^2/P$", yscale="log", ylim=(1e-5 * highest, 2 * highest)
    )
    legend([panel], ax)
    headed([panel], ax, label)
    return panel


@checked
def eigenvalues(spectrum: KernelSpectrum, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Eigenvalues of the kernel, and the share of the targets in the first i directions on the right-hand axis (equation 56).

    Example:
        >>> import meanfield as mf
        >>> data = mf.digits(n_train=8, n_test=0)
        >>> found = mf.spectrum(mf.nngp_and_ntk(mf.Network(2, "relu"), mf.ntk(), data.x)[1], data.y)
        >>> axes = mf.plot.eigenvalues(found)
    """
    panel: Axes = panels(ax)[0]
    index = np.arange(1, len(spectrum.eigenvalues) + 1)
    values = spectrum.eigenvalues.clamp(min=0).numpy()
    panel.plot(
        index, np.where(spectrum.singular.numpy(), np.nan, values), "o", color=BLUE, markersize=3, label="eigenvalues"
    )
    panel.set(xlabel="direction $i$", xscale="log", yscale="log")
    plain_log(panel, "x", "y")
    panel.set_ylabel(r"eigenvalue $\lambda_i$", color=BLUE)
    right = panel.twinx()
    right.plot(index, spectrum.cumulative_alignment.numpy(), color=ORANGE, linewidth=1.5)
    right.set_ylim(0, 1.03)
    right.set_ylabel(r"$\sum_{j\leq i}(v_j\cdot y)^2/|y|^2$", color=ORANGE)
    headed([panel], ax, label)
    return panel


@checked
def prediction(
    found: LazyPrediction,
    nets: Solutions = (),
    samples: Sequence[int] | None = None,
    ax: Any = None,
    output: int = 0,
    test: bool = False,
    label: str | None = None,
) -> np.ndarray:
    """f_mu(t) of single samples, one panel each: mean and band of one standard deviation as predicted, single networks as thin lines.

    samples: None takes one of each class, up to three in all. output: which of a sample, counted through its positions if it has some.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, lazy_prediction
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.ntk(), mf.Training(0.2, 5))
        >>> mf.plot.prediction(lazy_prediction(problem), FiniteWidth(64).ensemble(problem, seeds=3), samples=(0, 1)).shape
        (2,)
    """
    chosen = plot_data.several(nets)
    every = families(chosen, ()) if chosen else []
    mean, std = map(for_tests, (found.mean_test, found.std_test) if test else (found.mean, found.std))
    finite = found.times.isfinite()
    times, targets = found.times[finite].numpy(), found.problem.data.y_test if test else found.problem.data.y
    samples = shown(found.problem.data, test) if samples is None else samples
    axes = panels(ax, 1, len(samples), size=(3.0, 3.3), extra=1.6, sharey=True)
    for panel, mu in zip(axes, samples, strict=True):
        for family in every:
            for group in family.nets.values():
                for i, net in enumerate(group):
                    drawn = output_of(net, mu, output, test).double().numpy()
                    look = family.look(net) | {"linewidth": 0.6, "alpha": 0.6}
                    panel.plot(net.times.numpy(), drawn, label="_" if i else family.who(net), **look)
        m, s = (plot_data.row(t[finite].transpose(0, 1), mu).flatten(1)[:, output].numpy() for t in (mean, std))
        panel.fill_between(
            times, m - s, m + s, color=ORANGE, alpha=0.25, linewidth=0, zorder=4, label="predicted, ± 1 std"
        )
        panel.plot(times, m, label="predicted mean", **LIMIT)
        if targets is not None:
            panel.axhline(
                float(plot_data.row(targets, mu).flatten()[output]),
                color=GREY,
                linestyle=":",
                linewidth=1,
                label="target",
            )
        panel.set_xlabel(TIME)
        few_ticks(panel)
        panel.set_title(plot_data.told(found.problem.data, mu, output, test), fontsize="medium")
    axes[0].set_ylabel(r"output $f_\mu(t)$")
    legend(axes, ax)
    headed(axes, ax, label)
    return axes
