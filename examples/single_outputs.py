"""Not only the loss: the output on every single sample, seen in training or not, converges with the width.

Digits 0 against 1, ReLU. Expected: curves of networks on single samples fluctuate about the limit, by half as much for four times the
width, on held-out samples as on training samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow, width_sweep

from . import folder, keep, slope


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Train networks of several widths; quick: fewer and narrower ones."""
    widths, seeds, particles = ((16, 64, 256), 8, 2**10) if quick else ((64, 256, 1024), 16, 2**13)
    problem = mf.Problem(
        data=mf.digits(n_train=32, n_test=64),
        network=mf.Network(activation="relu"),
        training=mf.Training(learning_rate=0.2, steps=20 if quick else 60),
    )
    limit = WassersteinFlow(particles)(problem)
    nets = width_sweep(problem, widths, seeds, FiniteWidth(dtype="float32", snapshots=()))
    samples = (0, 1, 2)
    print("root mean square distance from the limit over time and seeds")
    print(f"{'width':>6}" + "".join(f"{f'{kind} {mu}':>10}" for kind in ("train", "test") for mu in samples))
    rows = []
    for width in widths:
        group = [net for net in nets if net.width == width]
        train, test = (
            torch.stack([getattr(net, key).double() - getattr(limit, key) for net in group])
            .square()
            .mean((0, 1, 3))
            .sqrt()
            for key in ("f", "f_test")
        )
        rows.append([*train[list(samples)].tolist(), *test[list(samples)].tolist()])
        print(f"{width:>6}" + "".join(f"{value:>10.4f}" for value in rows[-1]))
    power = slope(widths, np.mean(rows, axis=1))
    print(f"their mean falls like N^{power:.2f}")
    if out is not None:
        path = folder(out)
        for name, test in (("training", False), ("test", True)):
            keep(mf.plot.outputs(nets, limit, samples, test=test), path / f"{name}_outputs.png")
    return {"power": power}


if __name__ == "__main__":
    tyro.cli(main)
