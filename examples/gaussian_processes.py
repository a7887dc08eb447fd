"""Infinite networks as Gaussian processes: how well each explains the training data, and what the best one says with which error.

Digits 3 against 8, targets -1 and 1, erf. Expected: the marginal likelihood, of training data alone, prefers the depths and standard
deviations that also err least on test data, and about 95 % of the test targets lie within two standard deviations of the prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro

import meanfield as mf

from . import folder, keep

NOISE = 0.02


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """A grid of depths and standard deviations, then weight_std fitted at each depth; quick: fewer samples and depths."""
    data = mf.digits(classes=(3, 8), n_train=40 if quick else 100, n_test=60 if quick else 200)
    depths, stds = (1, 2, 4) if quick else (1, 2, 3, 4, 6, 8), np.geomspace(0.6, 6, 9 if quick else 25)
    likelihoods, errors = np.empty((2, len(depths), len(stds)))
    for i, depth in enumerate(depths):
        for j, std in enumerate(stds):
            posterior = _process(depth, float(std)).posterior(data.x, data.y)
            likelihoods[i, j] = posterior.log_marginal_likelihood / data.samples
            errors[i, j] = _error(posterior, data)
    fits = [_process(depth).fitted(data.x, data.y, ["weight_std"]).posterior(data.x, data.y) for depth in depths]
    print(f"{'depth':>6}{'weight_std':>12}{'log p(y) / P':>14}{'test error':>12}")
    for depth, fit in zip(depths, fits, strict=True):
        std, likelihood = fit.process.network.weight_std, fit.log_marginal_likelihood / data.samples
        print(f"{depth:>6}{std:>12.3f}{likelihood:>14.4f}{_error(fit, data):>12.4f}")
    best = max(fits, key=lambda fit: fit.log_marginal_likelihood)
    mean, target = best.mean(data.x_test)[:, 0], data.test_targets[:, 0]
    spread = (best.std(data.x_test)[:, 0].square() + NOISE).sqrt()  # of y
    found = {
        "depth of the best fit": float(best.process.network.depth),
        "log p(y) / P, best of the grid": float(likelihoods.max()),
        "log p(y) / P, best fit": best.log_marginal_likelihood / data.samples,
        "test error, best fit": _error(best, data),
        "test error, median of the grid": float(np.median(errors)),
        "accuracy": float((mean.sign() == target).double().mean()),
        "within two standard deviations": float(((mean - target).abs() < 2 * spread).double().mean()),
    }
    for name, value in found.items():
        print(f"{name:<34}{value:>9.4f}")
    if out is not None:
        _, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.9), layout="constrained")
        _map(left, likelihoods, depths, stds, r"$\log p(y)\,/\,P$ of training data", vmin=likelihoods.max() - 2)
        _map(middle, errors, depths, stds, "mean squared test error", vmax=4 * errors.min(), cmap="viridis_r")
        for axes in (left, middle):
            at = [np.interp(np.log(fit.process.network.weight_std), np.log(stds), np.arange(len(stds))) for fit in fits]
            axes.plot(at, range(len(depths)), "o", color="white", markeredgecolor="black", markersize=5, label="fitted")
        left.legend(fontsize="small")
        _predictions(right, mean.numpy(), spread.numpy(), target.numpy())
        keep(left, folder(out) / "gaussian_processes.png")
    return found


def _process(depth: int, weight_std: float = 1.5) -> mf.GaussianProcess:
    return mf.GaussianProcess(mf.Network(depth, "erf", weight_std, 0.3), noise=NOISE)


def _error(posterior: mf.Posterior, data: mf.Dataset) -> float:
    return float((posterior.mean(data.x_test) - data.test_targets).square().mean())


def _map(axes: Any, values: np.ndarray, depths: Any, stds: np.ndarray, label: str, **colours: Any) -> None:
    image = axes.imshow(values, aspect="auto", origin="lower", **colours)
    axes.figure.colorbar(image, ax=axes, label=label)
    ticks = np.linspace(0, len(stds) - 1, 5).round().astype(int)
    axes.set_xticks(ticks, [f"{stds[i]:.2g}" for i in ticks])
    axes.set_yticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set(xlabel="weight_std", ylabel="hidden layers")


def _predictions(axes: Any, mean: np.ndarray, spread: np.ndarray, target: np.ndarray) -> None:
    """Test samples from the lowest mean to the highest"""
    order, place = np.argsort(mean), np.arange(len(mean))
    low, high = (mean[order] + sign * 2 * spread[order] for sign in (-1, 1))
    axes.fill_between(place, low, high, color="#0072B2", alpha=0.3, linewidth=0, label="± 2 standard deviations")
    axes.plot(place, mean[order], color="black", linewidth=1.2, label="mean")
    for value, colour, digit in ((-1, "#D55E00", 3), (1, "#009E73", 8)):
        chosen = target[order] == value
        axes.plot(place[chosen], target[order][chosen], "|", color=colour, markersize=6, label=f"a {digit}")
    axes.set(xlabel="test sample, by its mean", ylabel="output")
    axes.legend(fontsize="small", loc="upper left")


if __name__ == "__main__":
    tyro.cli(main)
