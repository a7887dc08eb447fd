"""What the tangent kernel says of a data set before training: how fast its labels are learned, and whether they generalise.

Digits 3 against 8, two hidden ReLU layers, after Arora, Du, Hu, Li and Wang (2019). A share of the training labels is drawn at random.
Expected: true labels lie in few directions of large eigenvalue, so that they are learned sooner than random ones; the complexity
sqrt(2 y.K^-1 y / P) grows with the share of random labels, and the test error of the trained network with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

import meanfield as mf

from . import folder, keep

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Kernels alone, no network is trained; quick: fewer samples and draws."""
    data, draws = mf.digits((3, 8), *((40, 40) if quick else (150, 200))), 5 if quick else 20
    network = mf.Network(2, "relu")
    _, kernel = mf.nngp_and_ntk(network, mf.ntk(), data.x)
    _, across = mf.nngp_and_ntk(network, mf.ntk(), data.x_test, data.x)
    generator = torch.Generator().manual_seed(0)
    found = np.empty((len(SHARES), draws, 2))  # complexity, test error
    for i, share in enumerate(SHARES):
        for k in range(draws):
            y = _randomised(data.y, share, generator)
            mean, _ = mf.kernel_posterior(kernel, y, 0.0, across)  # where gradient flow of the lazy limit ends
            wrong = float((mean.sign() != data.test_targets.sign()).double().mean())
            found[i, k] = mf.spectrum(kernel, y).complexity(), wrong
    print(f"{'random labels':>14}{'complexity':>12}{'test error':>12}")
    for share, (complexity, error) in zip(SHARES, found.mean(1), strict=True):
        print(f"{share:>14.0%}{complexity:>12.2f}{error:>12.3f}")
    spectra = {
        "true labels": mf.spectrum(kernel, data.y),
        "random labels": mf.spectrum(kernel, _randomised(data.y, 1.0, generator)),
    }
    if out is not None:
        keep(_drawn(spectra, found), folder(out) / "random_labels.png")
    sooner = {name: float(spectrum.loss([100.0])) for name, spectrum in spectra.items()}
    complexity, error = found.mean(1).T
    return {
        "loss at time 100, true over random": sooner["true labels"] / sooner["random labels"],
        "correlation of complexity and test error": float(np.corrcoef(complexity, error)[0, 1]),
        "test error, true labels": error[0],
    }


def _randomised(y: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Each label is replaced by a fair coin with this probability"""
    coins = torch.randint(0, 2, y.shape, generator=generator, dtype=y.dtype) * 2 - 1
    return torch.where(torch.rand(y.shape, generator=generator) < share, coins, y)


def _drawn(spectra: dict[str, mf.KernelSpectrum], found: np.ndarray) -> Any:
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(12.6, 3.9), layout="constrained")
    times = np.geomspace(1, 1e5, 80)
    for (name, spectrum), colour in zip(spectra.items(), ("#0072B2", "#D55E00"), strict=True):
        left.plot(times, spectrum.loss(times.tolist()).numpy(), color=colour, label=name)
        share = spectrum.cumulative_alignment.numpy()
        middle.plot(np.arange(1, len(share) + 1), share, color=colour, label=name)
    left.set(
        xscale="log", xlabel="time of gradient flow", ylabel="training loss", title="true labels are learned sooner"
    )
    values = next(iter(spectra.values())).eigenvalues.numpy()
    beside = middle.twinx()
    beside.plot(np.arange(1, len(values) + 1), values, color="0.55", linestyle=":", label="eigenvalues")
    beside.set(yscale="log", ylabel="eigenvalue (dotted)")
    middle.set(xscale="log", ylim=(0, 1.03), xlabel="first directions", ylabel="share of the labels in them")
    middle.set_title("they lie in directions of large eigenvalue")
    left.legend(fontsize="small")
    mean, error = found.mean(1), found.std(1) / found.shape[1] ** 0.5
    right.errorbar(SHARES, mean[:, 0], error[:, 0], color="#009E73", marker="o", markersize=4, capsize=2)
    right.set(xlabel="share of random labels", ylim=(0, None), title="complexity and test error rise together")
    right.set_ylabel("complexity", color="#009E73")
    wrong = right.twinx()
    wrong.errorbar(SHARES, mean[:, 1], error[:, 1], color="#CC79A7", marker="s", markersize=4, capsize=2)
    wrong.set(ylim=(0, None))
    wrong.set_ylabel("test error", color="#CC79A7")
    return left


if __name__ == "__main__":
    tyro.cli(main)
