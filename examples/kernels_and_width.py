"""Feature kernels of a convolutional network become those of its limit as it grows wider, layer by layer and entry by entry.

Digits 0 against 1, after training, a network of each width. Expected: heat maps of wide networks look like the limit's, and the
distance between them falls like N^-1/2.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import folder, keep, slope
from .convolutional import Net

LAYERS = {"Phi[mix]": "position, then sample by class", "Phi[out]": "sample by class"}


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds, points = ((32, 64, 128), 4, 6) if quick else ((64, 256, 1024), 4, 12)
    training = mf.Training(learning_rate=0.3, steps=6 if quick else 30)
    problem = mf.Problem(mf.digits((0, 1), points, 0), Net, mf.mean_field(1.0), training)
    limit = CausalDMFT(2**9 if quick else 2**11, groups=2)(problem)
    nets = {n: FiniteWidth(n, dtype="float32", snapshots=(-1,)).ensemble(problem, seeds) for n in widths}
    order = problem.data.y[:, 0].argsort(stable=True)
    found = {}
    print(f"{'distance at N =':<18}" + "".join(f"{width:>9}" for width in widths) + f"{'power':>9}")
    for name in LAYERS:
        right = limit.kernels[name].at().double()
        far = [float(torch.stack([_distance(net, name, right) for net in nets[width]]).mean()) for width in widths]
        found[name] = slope(widths, far)
        print(f"{name:<18}" + "".join(f"{d:>9.4f}" for d in far) + f"{found[name]:>9.2f}")
    if out is not None:
        maps = {f"$N = {width}$": nets[width][0] for width in widths} | {"limit": limit}
        keep(_drawn(maps, order), folder(out) / "kernels_and_width.png")
    return found


def _distance(net: mf.Solution, name: str, right: torch.Tensor) -> torch.Tensor:
    """Relative, of a whole kernel"""
    return (net.kernels[name].at().double() - right).norm() / right.norm()


def _drawn(maps: dict[str, mf.Solution], order: torch.Tensor) -> np.ndarray:
    """A row of heat maps for each kernel, on one scale"""
    _, axes = plt.subplots(len(LAYERS), len(maps), figsize=(2.7 * len(maps) + 0.9, 5.8), layout="constrained")
    for row, (name, what) in zip(axes, LAYERS.items(), strict=True):
        kernels = {label: solution.kernels[name].at().double() for label, solution in maps.items()}
        right = kernels["limit"]
        positions = len(right) // len(order)
        every = (torch.arange(positions)[:, None] + positions * order).flatten()
        low, high = (float(f(torch.stack([*kernels.values()]))) for f in (torch.min, torch.max))
        for ax, (label, kernel) in zip(row, kernels.items(), strict=True):
            ax.imshow(kernel[every][:, every].numpy(), vmin=low, vmax=high, interpolation="nearest")
            far = "" if label == "limit" else f", {100 * float((kernel - right).norm() / right.norm()):.0f} % off"
            ax.set(xticks=[], yticks=[], title=label + far, xlabel=what)
        row[0].set_ylabel(what)
        row[0].figure.colorbar(row[0].images[0], ax=list(row), label=name.replace("Phi", r"$\Phi$"))
    return axes


if __name__ == "__main__":
    tyro.cli(main)
