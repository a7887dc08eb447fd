"""Learning rates transfer across width and depth: loss against learning rate, finite networks beside their limit.

Digits 0 against 1, residual tanh networks with branches of size 1/sqrt(L) in the mean-field scaling, gamma0 = 1. Expected: the loss after
a fixed number of steps is lowest at the same learning rate for every width and depth, and networks lie on the curve of the limit, up
to the edge of stability: at rates above 2 P / (largest eigenvalue of the tangent kernel at the start), which is drawn, the loss grows
before it falls, if it does, and what little a finite network differs by grows with it, so that there network and limit may be far apart.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from matplotlib import colormaps
from matplotlib.axes import Axes

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Scan learning rates for some depths and widths; quick: fewer of each. Returns the best learning rate of each curve."""
    depths, widths, seeds = ((2, 6), (32, 128), 4) if quick else ((2, 8, 32), (32, 128, 512), 8)
    rates = [0.1 * 2**k for k in (range(-1, 5, 2) if quick else range(-2, 6))]
    problem = mf.Problem(
        data=mf.digits(n_train=6 if quick else 12, n_test=0),
        training=mf.Training(steps=4 if quick else 12),
    )
    limit = CausalDMFT(512 if quick else 1024, snapshots=(), two_time=False, raise_on_failure=False)
    curves = {}
    for depth in depths:
        asked = replace(problem, network=mf.Network(depth, "tanh", residual=1.0))
        curves[f"L = {depth}, limit"] = [_loss([limit(_at(asked, rate))]) for rate in rates]
        for width in widths if depth == depths[1] else widths[1:2]:
            net = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False, raise_on_failure=False)
            curves[f"L = {depth}, N = {width}"] = [_loss(net.ensemble(_at(asked, rate), seeds)) for rate in rates]
    best = {label: rates[min(range(len(rates)), key=lambda i: losses[i])] for label, losses in curves.items()}
    print(f"{'learning rate':<20}" + "".join(f"{rate:>9.3g}" for rate in rates) + f"{'best':>9}")
    for label, losses in curves.items():
        print(f"{label:<20}" + "".join(f"{loss:>9.4f}" for loss in losses) + f"{best[label]:>9.3g}")
    if out is not None:
        edges = [_edge(replace(problem, network=mf.Network(depth, "tanh", residual=1.0))) for depth in depths]
        keep(_drawn(curves, rates, depths, widths, edges), folder(out) / "depth_transfer.png")
    return best


def _at(problem: mf.Problem, rate: float) -> mf.Problem:
    return replace(problem, training=replace(problem.training, learning_rate=rate))


def _loss(runs: list[mf.Solution]) -> float:
    """The mean final loss; infinite if a run blew up"""
    if any(run.steps < run.problem.training.steps for run in runs):
        return math.inf
    return sum(float(run.loss[-1]) for run in runs) / len(runs)


def _edge(problem: mf.Problem) -> float:
    """The largest rate at which descent on the tangent kernel of the start is stable"""
    kernel = mf.nngp_and_ntk(problem.network, problem.scaling, problem.data.x)[1]
    return mf.spectrum(kernel, problem.data.y).largest_learning_rate()


def _drawn(
    curves: dict[str, list[float]],
    rates: list[float],
    depths: tuple[int, ...],
    widths: tuple[int, ...],
    edges: list[float],
) -> list[Axes]:
    _, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    middle = depths[1]
    for i, width in enumerate(widths):
        colour = colormaps["viridis"](0.85 - 0.65 * i / max(1, len(widths) - 1))
        left.loglog(rates, curves[f"L = {middle}, N = {width}"], "o-", color=colour, label=f"$N = {width}$")
    left.loglog(rates, curves[f"L = {middle}, limit"], "k-", label="limit")
    for i, depth in enumerate(depths):
        colour = colormaps["plasma"](0.8 - 0.7 * i / max(1, len(depths) - 1))
        right.loglog(rates, curves[f"L = {depth}, limit"], "-", color=colour, label=f"$L = {depth}$, limit")
        label = f"$L = {depth}$, $N = {widths[1]}$"
        right.loglog(rates, curves[f"L = {depth}, N = {widths[1]}"], "o", color=colour, mfc="none", label=label)
    left.set(
        xlabel=r"learning rate $\eta$", ylabel="training loss after the last step", title=f"widths, $L = {middle}$"
    )
    right.set(xlabel=r"learning rate $\eta$", title="depths")
    for ax, edge in ((left, edges[1]), (right, min(edges))):
        ax.legend(fontsize="small", loc="upper left")
        ax.axvspan(edge, 1.3 * rates[-1], color="0.9", zorder=0)
        ax.set_xlim(rates[0] / 1.2, 1.3 * rates[-1])
        ax.annotate("beyond the edge of stability", (0.995, 0.02), xycoords="axes fraction", rotation=90, ha="right", color="0.4",
                    fontsize="small")  # fmt: skip
    return [left, right]


if __name__ == "__main__":
    tyro.cli(main)
