"""Layer widths as a setting of an infinite network: the improved standard parameterization beside NTK, after Sohl-Dickstein et al. (2020).

Digits 3 against 8, five hidden ReLU layers, kernel regression. In the improved standard parameterization the widths of the layers say how
much each contributes to the kernel; in NTK all contribute alike. Expected: with equal widths the two predict about equally well, and
with widths chosen on validation data the improved standard one is better on test data that the choice has not seen.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.ticker import LogLocator

import meanfield as mf

from . import folder, keep

DEPTH, LOOKS = 5, {"NTK": "#0072B2", "equal widths": "#E69F00", "tuned widths": "#D55E00"}


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Kernels alone, no network is trained; quick: fewer samples, draws and candidates."""
    sizes, candidates, draws = ((16, 32), 6, 2) if quick else ((16, 32, 64, 128), 30, 8)
    generator = torch.Generator().manual_seed(0)
    choices = [(2 ** torch.randint(3, 14, (DEPTH,), generator=generator)).tolist() for _ in range(candidates)]
    losses = np.array([[_compared(size, choices, seed) for seed in range(draws)] for size in sizes])
    mean, error = losses.mean(1), losses.std(1, ddof=1) / math.sqrt(draws)
    print(f"{'samples':>8}" + "".join(f"{name:>22}" for name in LOOKS))
    for size, row, errors in zip(sizes, mean, error, strict=True):
        print(f"{size:>8}" + "".join(f"{m:>13.4f} ± {e:.4f}" for m, e in zip(row, errors, strict=True)))
    logs = np.log(losses / losses[..., :1]).mean(0)[:, 1:]  # of the same images, in the mean over their number
    for name, several in zip([*LOOKS][1:], logs.T, strict=True):
        ratio, spread = math.exp(several.mean()), several.std(ddof=1) / math.sqrt(draws)
        print(f"{name}: test loss over that of NTK {ratio:.3f} ± {ratio * spread:.3f}")
    if out is not None:
        keep(_drawn(sizes, mean, error), folder(out) / "tuned_widths.png")
    return {f"{name} over NTK": math.exp(logs[:, i].mean()) for i, name in enumerate([*LOOKS][1:])}


def _compared(size: int, choices: list[list[int]], seed: int) -> list[float]:
    """Test losses with the kernels of NTK, of equal widths, and of the widths that are best on validation data"""
    half = 100  # of the images that are not trained on: for the choice
    data = mf.digits((3, 8), size, half + 100, seed=seed)
    assert data.x_test is not None
    network = mf.Network(DEPTH, "relu", weight_std=math.sqrt(2))
    scalings: tuple[Any, ...] = (mf.ntk(), mf.improved_standard(512), *map(mf.improved_standard, choices))
    found = []
    for scaling in scalings:
        _, kernel = mf.nngp_and_ntk(network, scaling, data.x)
        _, across = mf.nngp_and_ntk(network, scaling, data.x_test, data.x)
        mean, _ = mf.kernel_posterior(kernel, data.y, 1e-3 * float(kernel.diagonal().mean()), across)
        square = (mean - data.test_targets).square().mean(1) / 2
        found.append((float(square[:half].mean()), float(square[half:].mean())))  # validation, test
    _, best = min(found[2:])
    return [found[0][1], found[1][1], best]


def _drawn(sizes: tuple[int, ...], mean: np.ndarray, error: np.ndarray) -> Any:
    _, ax = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    for i, (name, colour) in enumerate(LOOKS.items()):
        style = {"color": colour, "marker": "o^s"[i], "markersize": 4, "capsize": 2, "linewidth": 1.1}
        shifted = np.array(sizes) * (1 + 0.02 * (i - 1))
        ax.errorbar(shifted, mean[:, i], error[:, i], label="NTK" if not i else f"improved standard, {name}", **style)
    ax.set(xscale="log", yscale="log", xlabel="training samples", ylabel="test loss, ± 1 standard error")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4, 6)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.legend(fontsize="small")
    return ax


if __name__ == "__main__":
    tyro.cli(main)
