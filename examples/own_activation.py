"""An activation of one's own in three lines, known from then on to the limit and to finite networks alike.

The limit uses phi' as given here, networks differentiate phi by autograd: their agreement also checks phi'. Expected: the distance
of networks from the limit falls like N^-1/2.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow, width_sweep

from . import folder, keep

ARCTAN = mf.register_activation(
    mf.Activation("arctan", phi=torch.atan, dphi=lambda h: 1 / (1 + h * h)),
)


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds, particles = ((16, 64, 256), 8, 2**10) if quick else ((64, 128, 256, 512, 1024), 16, 2**13)
    problem = mf.Problem(
        data=mf.digits(n_train=32, n_test=64),
        network=mf.Network(activation="arctan"),
        training=mf.Training(learning_rate=0.3, steps=20 if quick else 60),
    )
    limits = [WassersteinFlow(particles, seed=seed)(problem) for seed in (0, 1)]
    nets = width_sweep(problem, widths, seeds, FiniteWidth(dtype="float32"))
    report = mf.deviation(nets, limits, names=("f", "loss", "Phi1", "tangent_kernel"))
    print(report.table())
    if out is not None:
        path = folder(out)
        keep(mf.plot.loss(nets, limits), path / "loss.png")
        keep(mf.plot.deviation(report), path / "deviation.png")
    return {"power": report["f"].exponents["deviation"].slope}


if __name__ == "__main__":
    tyro.cli(main)
