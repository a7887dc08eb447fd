"""A deep linear network learns features too: its kernels H^l layer by layer, in the limit, in a network, and in the lazy limit.

Digits 0 against 1, five hidden linear layers, after Bordelon and Pehlevan (2022). H^l_mn is the mean over neurons of h^l(x_m) h^l(x_n).
Expected: before training every H^l is x.x'/D; after training at gamma0 = 2 they show the two classes, the deeper the more; a network of
width 1024 has the same kernels, while the lazy (NTK) limit keeps those of its start.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import folder, keep

DEPTH = 5


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the rich and the lazy limit and train one network; quick: fewer samples, steps and neurons."""
    problem = mf.Problem(
        data=mf.digits(classes=(0, 1), n_train=6 if quick else 20, n_test=0),
        network=mf.Network(depth=DEPTH, activation="linear"),
        scaling=mf.mean_field(2.0),
        training=mf.Training(learning_rate=0.02, steps=10 if quick else 100),
    )
    solver = CausalDMFT(2**8 if quick else 2**12, two_time=False)
    rich, lazy = solver(problem), solver(replace(problem, scaling=mf.mean_field(1e-2)))
    net = FiniteWidth(128 if quick else 1024, dtype="float32")(problem)
    solved = {"lazy limit": lazy, "feature-learning limit": rich, f"network, N = {net.width}": net}
    print(f"{'alignment with the labels':<26}" + "".join(f"{f'layer {l}':>9}" for l in range(1, DEPTH + 1)))
    found = {}
    for label, solution in solved.items():
        aligned = [float(mf.alignment(solution.kernels[f"Phi{l}"].at(), problem.data.y)) for l in range(1, DEPTH + 1)]
        print(f"{label:<26}" + "".join(f"{value:>9.3f}" for value in aligned))
        found[label.split(",")[0]] = aligned[-1]
    if out is not None:
        keep(_drawn(solved), folder(out) / "deep_linear.png")
    return found


def _drawn(solved: dict[str, mf.Solution]) -> Any:
    """A row for each solution and a column for each layer, samples sorted by class, each divided by its largest number"""
    figure, axes = plt.subplots(len(solved), DEPTH, figsize=(9.6, 5.9), layout="constrained")
    image: Any = None
    for row, (label, solution) in zip(axes, solved.items(), strict=True):
        by_class = solution.problem.data.y[:, 0].argsort(stable=True)
        for l, ax in enumerate(row, 1):
            kernel = solution.kernels[f"Phi{l}"].at()[by_class][:, by_class]
            image = ax.imshow((kernel / kernel.abs().max()).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
            if ax in axes[0]:
                ax.set_title(rf"$H^{l}$")
        row[0].set_ylabel(label, fontsize="medium")
    figure.colorbar(image, ax=axes, label="kernel after training over its largest entry", shrink=0.8)
    return axes[0, 0]


if __name__ == "__main__":
    tyro.cli(main)
