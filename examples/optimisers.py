"""Four optimisers on one network: losses of networks of three widths beside the infinite-width limit of each.

Digits 3 against 8, two hidden layers. Momentum, Adam on a cosine schedule, Muon, and Langevin descent. Expected: each limit is another
one, and networks scatter about their own, less the wider they are; with noise by far the most. Learning rates are distances for Adam and
Muon, and training time for the others.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import tyro

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import folder, keep

COLOURS = ("#9ecae1", "#4292c6", "#08519c")


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limits and train networks; quick: fewer and narrower ones."""
    widths, seeds, steps, points = ((32, 64, 128), 4, 12, 6) if quick else ((64, 256, 1024), 6, 40, 12)
    ways = {
        "momentum": mf.Training(0.1, steps, momentum=0.8),
        "Adam, cosine with warm-up": mf.Training(0.04, steps, "adam", schedule="cosine", warmup=4),
        "Muon": mf.Training(0.04, steps, "muon"),
        "Langevin, temperature 0.1": mf.Training(0.5, steps, temperature=0.1, weight_decay=0.1),
    }
    figure, axes = plt.subplots(1, len(ways), figsize=(13, 3.2), sharey=True, layout="constrained")
    found = {}
    for ax, (name, training) in zip(axes, ways.items(), strict=True):
        problem = mf.Problem(mf.digits((3, 8), points, 2), mf.Network(2), training=training)
        limit = CausalDMFT(2**9 if quick else 2**11, snapshots=(), two_time=False)(problem)
        for width, colour in zip(widths, COLOURS, strict=True):
            nets = FiniteWidth(width, dtype="float32", snapshots=()).ensemble(problem, seeds)
            for net in nets:
                ax.plot(net.loss, color=colour, lw=0.8, label=f"N = {width}" if net is nets[0] else None)
            off = [float((net.f[-1] - limit.f[-1]).norm() / limit.f[-1].norm()) for net in nets]
            found[f"{name}, N = {width}"] = sum(off) / seeds
        ax.plot(limit.loss, color="black", lw=2, ls="--", label="limit")
        ax.set(title=name, xlabel="step", yscale="log")
        print(
            f"{name}: loss {float(limit.loss[-1]):.3g}; networks are off by",
            *(f"{v:.1%}" for v in list(found.values())[-3:]),
        )
    axes[0].set_ylabel("training loss")
    axes[0].legend(fontsize=8)
    if out is not None:
        keep(axes[0], folder(out) / "optimisers.png")
    plt.close(figure)
    return found


if __name__ == "__main__":
    tyro.cli(main)
