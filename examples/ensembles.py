"""Wider or more: loss of single networks and of means of several against width, beside what their variance and bias predict.

Digits 0 against 1, two hidden layers, mean-field scaling, gamma0 = 1, test loss. Expected: averaging removes the part of the variance
alone, so that means of many networks stay above the limit by the bias, as far as networks a few times as wide.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, predicted_bias, predicted_variance

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Networks of several widths, in means of up to 16; quick: fewer of them. Returns predictions at the least width, and what was seen."""
    widths, seeds, draws = ((32, 64), 160, 60) if quick else ((32, 64, 128, 256), 800, 200)
    problem = mf.Problem(
        data=mf.digits((0, 1), n_train=6, n_test=20),
        network=mf.Network(2, "tanh"),
        scaling=mf.mean_field(1.0),
        training=mf.Training(0.2, 10 if quick else 20),
    )
    limit = CausalDMFT(2048 if quick else 16384, groups=4)(problem)
    variance = predicted_variance(problem, 128 if quick else 512)
    bias = predicted_bias(problem, 64, draws)
    solvers = [FiniteWidth(n, dtype="float32", snapshots=(), keep_neurons=False) for n in widths]
    nets = [net for solver in solvers for net in solver.ensemble(problem, seeds)]
    found = mf.ensemble_loss(limit, variance, bias, nets, (1, 4, 16), test=True)
    print(found)
    if out is not None:
        keep(mf.plot.ensemble_loss(found), folder(out) / "ensembles.png")
    assert found.measured is not None
    taken = float(found.measured[0, 0] - found.measured[0, 2])
    return {
        "variance": found.removed(widths[0]),
        "bias": found.kept(widths[0]),
        "removed over predicted": taken / (found.removed(widths[0]) * 15 / 16),
    }


if __name__ == "__main__":
    tyro.cli(main)
