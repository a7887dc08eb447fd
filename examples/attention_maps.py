"""Attention maps and feature kernels of a small transformer become those of its limit as it grows wider.

Causal attention with logits 4 q.k/n on the letters of a verse. Its weights are recorded by name. Expected: the map of a wide network
after training looks like the limit's, and distances from the limit of attention maps, outputs and feature kernels fall like N^-1/2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import tyro
from torch import Tensor, nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, width_sweep

from . import distances, folder, keep, power
from .language_model import CONTEXT, LETTERS, windows

STRIDE, WINDOW = 6, 2  # between windows of the verse; the one that is drawn


class Net(nn.Module):
    """Of any width n; x (P, positions) letters by number. The softmax is a module, so that its outputs have a name."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(len(LETTERS), n), nn.Embedding(CONTEXT, n)
        self.q, self.k, self.v, self.mix = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.norm, self.last, self.attention = nn.LayerNorm(n), nn.LayerNorm(n), nn.Softmax(-1)
        self.out = nn.Linear(n, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.letter(x) + self.place(torch.arange(x.shape[1]))
        u = self.norm(h)
        logits = 4 * self.q(u) @ self.k(u).transpose(1, 2) / u.shape[-1]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.out(self.last(h + self.mix(self.attention(logits.masked_fill(later, -math.inf)) @ self.v(u))))


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds = ((32, 64, 128), 6) if quick else ((64, 256, 1024), 8)
    network = mf.Architecture(Net, record={"attention": "attention"})
    training = mf.Training(learning_rate=0.2, steps=8 if quick else 24)
    problem = mf.Problem(windows(12 if quick else STRIDE), network, mf.mean_field(1.0), training, "cross_entropy")
    limit = CausalDMFT(2**9 if quick else 2**11, groups=2 if quick else 4)(problem)
    nets = width_sweep(problem, widths, seeds, FiniteWidth(dtype="float32"))
    report = mf.deviation(nets, limit, ("attention", "f", "Phi[mix]", "Phi[out]"))
    print(report)
    if out is not None:
        first = [next(net for net in nets if net.width == n) for n in (widths[0], widths[-1])]
        keep(_drawn(first, limit, report), folder(out) / "attention_maps.png")
    return {"power": power(report)}


def _drawn(nets: list[mf.Solution], limit: mf.Solution, report: mf.DeviationReport) -> Any:
    """Maps of a narrow and a wide network and of the limit, the networks' less the limit's, and distances against width"""
    figure = plt.figure(figsize=(12.2, 5.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    left, right = parts
    axes = left.subplots(2, 3)
    axes[1, 0].remove()
    kept = [*axes[0], *axes[1, 1:]]
    mf.plot.recorded([limit, *nets], "attention", (-1,), (WINDOW,), axes[0])
    mf.plot.recorded([limit, *nets], "attention", (-1,), (WINDOW,), axes[1, 1:], difference=True)
    letters = [LETTERS[i].replace(" ", "_") for i in limit.problem.data.x[WINDOW]]
    titles = ["limit", *(f"$N = {net.width}$" for net in nets), *(f"$N = {net.width}$ less limit" for net in nets)]
    for ax, title in zip(kept, titles, strict=True):
        ax.set_xticks(range(CONTEXT), letters)
        ax.set_yticks(range(CONTEXT), letters)
        ax.set(xlabel="key", ylabel="query", title=title)
    distances(right.subplots(), report)
    return axes[0]


if __name__ == "__main__":
    tyro.cli(main)
