"""Gradient descent approaches gradient flow in proportion to its learning rate.

The same particles follow both; what is compared is f at common times. Expected: an error of order 1 in the learning rate, which at
ordinary learning rates exceeds the effect of a finite width: compare networks with the limit of the same optimiser.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import tyro

import meanfield as mf
from solvers import WassersteinFlow

from . import folder, keep, slope


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Halve the learning rate several times; quick: fewer particles."""
    particles, coarse, records = (2**8, 1.6, 6) if quick else (2**11, 1.6, 12)
    data, solve = mf.digits(n_train=16, n_test=0), WassersteinFlow(particles, snapshots=())
    flow = solve(mf.Problem(data, training=mf.Training(coarse, records, "gradient_flow")))
    rates, errors, curves = [], [], []
    print(f"{'learning rate':>14}{'steps':>7}{'relative error of f':>21}")
    for halving in range(5):
        every = 2**halving
        discrete = solve(mf.Problem(data, training=mf.Training(coarse / every, records * every)))
        rates.append(coarse / every)
        errors.append(float((discrete.f[::every] - flow.f).norm() / flow.f.norm()))
        curves.append(discrete)
        print(f"{rates[-1]:>14}{discrete.steps:>7}{errors[-1]:>21.2e}")
    order = slope(rates, errors)
    print(f"order {order:.2f}")
    if out is not None:
        _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        for i, solution in enumerate(curves[:3]):
            colour = plt.colormaps["viridis"](0.8 - 0.3 * i)
            left.semilogy(
                solution.times, solution.loss, color=colour, label=rf"gradient descent, $\eta$ = {rates[i]:g}"
            )
        left.semilogy(flow.times, flow.loss, "k", label="gradient flow")
        left.set(xlabel=r"training time $\eta k$", ylabel="training loss of the limit")
        left.legend(fontsize="small")
        right.loglog(rates, errors, "o-", label=rf"$\propto \eta^{{{order:.2f}}}$")
        right.set(xlabel=r"learning rate $\eta$", ylabel="relative distance of $f$ from gradient flow")
        right.set_xticks(rates, [f"{rate:g}" for rate in rates])
        right.set_xticks([], minor=True)
        right.legend()
        keep(left, folder(out) / "gradient_flow.png")
    return {"order": order}


if __name__ == "__main__":
    tyro.cli(main)
