"""The measure itself: neurons of an infinite ReLU network with two inputs gather along the directions that are to be learnt.

The target is relu(x . u_1) + relu(x . u_2) with orthogonal u, the network rich (gamma0 = 10). Expected: the Gaussian cloud of input
weights grows two narrow arms at a right angle, where the readouts are large; the effective number of directions falls.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro

import meanfield as mf
from solvers import WassersteinFlow

from . import folder, keep

_BINS = 72


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Follow the cloud; quick: fewer particles and frames."""
    particles, steps, frames = (2**10, 80, 5) if quick else (2**12, 600, 30)
    problem = mf.Problem(
        data=mf.multi_index_teacher(n_train=32, n_test=0, inputs=2, directions=2, link="relu", seed=1),
        network=mf.Network(activation="relu"),
        scaling=mf.mean_field(gamma0=10.0),
        training=mf.Training(learning_rate=0.01, steps=steps),
    )
    snapshots = tuple(range(0, steps + 1, steps // frames))
    solution = WassersteinFlow(particles, snapshots=snapshots)(problem)
    effective = {step: _directions(solution.measure(step)) for step in snapshots}
    print(f"{'time':>6}{'loss':>10}{'effective directions':>22} of {_BINS}")
    for step in snapshots[:: max(1, frames // 6)]:
        print(f"{float(solution.times[step]):>6.1f}{float(solution.loss[step]):>10.5f}{effective[step]:>22.1f}")
    if out is not None:
        path = folder(out)
        keep(mf.plot.particles(solution, steps=(0, snapshots[len(snapshots) // 5], -1)), path / "particles.png")
        animation = mf.plot.animate_particles(solution)
        animation.save(path / "particles.gif", writer="pillow", dpi=70)
        plt.close("all")
    return {"directions_before": effective[0], "directions_after": effective[steps]}


def _directions(measure: mf.ParticleMeasure) -> float:
    """exp(entropy) of the angles of w, each particle counting with its share |a| |w| of the function"""
    angle = torch.atan2(measure.w[:, 1], measure.w[:, 0]).add(math.pi).mul(_BINS / (2 * math.pi)).long() % _BINS
    share = measure.m * measure.a[:, 0].abs() * measure.w.norm(dim=1)
    p = torch.zeros(_BINS, dtype=share.dtype).index_add(0, angle, share / share.sum())
    return float(torch.exp(torch.special.entr(p).sum()))


if __name__ == "__main__":
    tyro.cli(main)
