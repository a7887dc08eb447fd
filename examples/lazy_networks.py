"""Networks in the NTK scaling before any is trained: mean and spread of their outputs, and what a kernel learns first.

Digits 0 against 1, two hidden ReLU layers. Expected: the outputs of networks of width 512 lie in the predicted band, and the error
falls fastest in the directions of large eigenvalues, which hold most of the true labels and little of random ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

import meanfield as mf
from solvers import FiniteWidth, lazy_prediction

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Predict, then train networks beside; quick: fewer samples, steps and networks."""
    problem = mf.Problem(
        data=mf.digits(n_train=8 if quick else 32, n_test=4 if quick else 16),
        network=mf.Network(2, "relu", bias_std=0.2),
        scaling=mf.ntk(),
        training=mf.Training(learning_rate=0.2, steps=15 if quick else 60),
    )
    predicted = lazy_prediction(problem)
    nets = FiniteWidth(256 if quick else 512, dtype="float32", snapshots=(), keep_neurons=False).ensemble(problem, 12)
    final = torch.stack([net.f[-1, :, 0] for net in nets]).double()
    z = (final - predicted.mean[-1, :, 0]) / predicted.std[-1, :, 0]
    _, kernel = mf.nngp_and_ntk(problem.perceptron, problem.scaling, problem.data.x)
    spectrum = mf.spectrum(kernel, problem.data.y)
    shuffled = problem.data.y[torch.randperm(len(kernel), generator=torch.Generator().manual_seed(0))]
    random = mf.spectrum(kernel, shuffled)
    found = {
        "mean square of (f - mean) / std": float(z.square().mean()),
        "complexity, true labels": float(spectrum.complexity()),
        "complexity, shuffled labels": float(random.complexity()),
        "share of the labels in 3 directions": float(spectrum.cumulative_alignment[2]),
    }
    for name, value in found.items():
        print(f"{name:<40}{value:>10.3f}")
    if out is not None:
        keep(mf.plot.prediction(predicted, nets), folder(out) / "prediction.png")
        keep(mf.plot.prediction(predicted, nets, test=True), folder(out) / "test_prediction.png")
        keep(mf.plot.learning_curves(spectrum, problem.training.times.tolist()), folder(out) / "learning_curves.png")
        keep(mf.plot.eigenvalues(spectrum), folder(out) / "eigenvalues.png")
    return found


if __name__ == "__main__":
    tyro.cli(main)
