"""Test loss against width: the NTK scaling and mean field with the same networks at one width, and where each goes from there.

Digits 3 against 8. Both scalings train the very same networks at N* = 64. Expected: wider, the NTK networks become lazy and learn no
features, the mean-field ones keep their features; each curve ends at its own infinite-width limit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

import meanfield as mf
from solvers import FiniteWidth, TangentKernelLimit, WassersteinFlow

from . import folder, keep

_COLOURS = {"ntk": "#0072B2", "mean_field": "#D55E00"}


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Train networks of several widths in both scalings; quick: fewer widths, seeds and steps."""
    reference, seeds = 64, 6 if quick else 24
    widths = (16, 64, 256) if quick else (16, 32, 64, 128, 256, 512, 1024)
    base = mf.Problem(
        data=mf.digits((3, 8), n_train=24 if quick else 48, n_test=64 if quick else 128),
        network=mf.Network(1, "relu"),
        scaling=mf.mean_field(1.0),
        training=mf.Training(learning_rate=0.2, steps=40 if quick else 120),
    )
    scalings = {name: s for name, s in mf.coinciding(base.in_plane, reference).items() if name in _COLOURS}
    curves, errors, limits = {}, {}, {}
    for name, scaling in scalings.items():
        problem = replace(base, scaling=scaling)
        runs = []
        for width in widths:
            solver = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False)
            runs.append([float(net.test_loss[-1]) for net in solver.ensemble(problem, seeds)])
        curves[name] = [float(np.mean(losses)) for losses in runs]
        errors[name] = [float(np.std(losses, ddof=1) / np.sqrt(seeds)) for losses in runs]
        if name == "ntk":
            draws = TangentKernelLimit(snapshots=()).ensemble(problem, 64)
            limits[name] = float(np.mean([float(draw.test_loss[-1]) for draw in draws]))
        else:
            limits[name] = float(WassersteinFlow(2**12, snapshots=())(problem).test_loss[-1])
    print(f"{'test loss at N =':<20}" + "".join(f"{width:>16}" for width in widths) + f"{'limit':>10}")
    for name in scalings:
        cells = (f"{f'{c:.4f} ± {e:.4f}':>16}" for c, e in zip(curves[name], errors[name], strict=True))
        print(f"{name:<20}" + "".join(cells) + f"{limits[name]:>10.4f}")
    if out is not None:
        _, ax = plt.subplots(figsize=(5.6, 4.0), layout="constrained")
        for name, colour in _COLOURS.items():
            told = name.replace("_", "-")
            ax.errorbar(widths, curves[name], errors[name], fmt="o-", color=colour, capsize=3, label=told)
            ax.axhline(limits[name], color=colour, linestyle="--", linewidth=1, label=f"{told}, limit")
        ax.axvline(reference, color="0.6", linewidth=1, linestyle=":")
        ax.annotate("the same networks", (reference, 0.9), (4, 0), xycoords=("data", "axes fraction"),
                    textcoords="offset points", color="0.4", fontsize="small", va="top")  # fmt: skip
        ax.set(xscale="log", xlabel="width $N$", ylabel="final test loss")
        ax.set_title(f"mean of {seeds} networks ± 1 standard error", fontsize="medium")
        ax.set_xticks(widths, [str(n) for n in widths])
        ax.set_xticks([], minor=True)
        ax.legend(fontsize="small", loc="center left")
        keep(ax, folder(out) / "width_in_two_scalings.png")
    at = widths.index(reference)
    return {
        "difference at N*": abs(curves["ntk"][at] - curves["mean_field"][at]),
        "ntk, widest": curves["ntk"][-1],
        "mean_field, widest": curves["mean_field"][-1],
        "ntk, limit": limits["ntk"],
        "mean_field, limit": limits["mean_field"],
    }


if __name__ == "__main__":
    tyro.cli(main)
