"""A causal transformer that learns the next letters of a verse: its infinite-width limit beside real networks.

Embeddings of letters and positions, attention with logits q.k/n, an MLP of four times the width, layer norms, cross-entropy at every
position. Expected: losses of networks scatter about that of the limit, outputs and kernels come nearer like N^-1/2, and wide networks
give the next letter the limit's probabilities; the logit of a single letter and the distribution of the MLP's preactivations do so too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import approach, folder, keep, power

TEXT = "tyger tyger burning bright in the forests of the night"  # William Blake, 1794
LETTERS = sorted(set(TEXT))
CONTEXT = 8


class Net(nn.Module):
    """Of any width n; x (P, positions) letters by number."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(len(LETTERS), n), nn.Embedding(CONTEXT, n)
        self.q, self.k, self.v, self.mix = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.up, self.down, self.out = nn.Linear(n, 4 * n), nn.Linear(4 * n, n), nn.Linear(n, len(LETTERS))
        self.norms = nn.ModuleList(nn.LayerNorm(n) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.letter(x) + self.place(torch.arange(x.shape[1]))
        u = self.norms[0](h)
        logits = self.q(u) @ self.k(u).transpose(1, 2) / u.shape[-1]  # 1/n, not 1/sqrt(n): they stay of order 1
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        h = h + self.mix(logits.masked_fill(later, -math.inf).softmax(-1) @ self.v(u))
        h = h + self.down(F.gelu(self.up(self.norms[1](h))))
        return self.out(self.norms[2](h))


def windows(stride: int) -> mf.Dataset:
    """Letters x (P, 8) and at each the next one y (P, 8)."""
    ids, starts = torch.tensor([LETTERS.index(c) for c in TEXT]), range(0, len(TEXT) - CONTEXT, stride)
    x, y = (torch.stack([ids[i + next : i + next + CONTEXT] for i in starts]) for next in (0, 1))
    return mf.Dataset(x, y, name="verse")


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds = ((32, 64, 128), 6) if quick else ((64, 256, 1024), 8)
    training = mf.Training(learning_rate=0.1, steps=5 if quick else 24)
    network = mf.Architecture(Net, record={"up": "up"})  # preactivations of the MLP, neuron by neuron
    problem = mf.Problem(windows(24 if quick else 12), network, mf.mean_field(1.0), training, "cross_entropy")
    limit = CausalDMFT(2**9 if quick else 2**11, groups=2 if quick else 4)(problem)
    nets = [net for width in widths for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds)]
    report = mf.deviation(nets, limit, ("f", "Phi[mix]", "Phi[down]", "Phi[out]"))
    print(report)
    for label, group in {
        "limit": [limit],
        f"N = {widths[-1]}": [net for net in nets if net.width == widths[-1]],
    }.items():
        print(f"{label:<10}{_guesses(group)}")
    if out is not None:
        keep(approach(nets, limit, report), folder(out) / "language_model.png")
        keep(_one_letter(nets, limit), folder(out) / "one_letter.png")
    return {"power": power(report)}


def _one_letter(nets: list[mf.Solution], limit: mf.Solution, position: int = 3) -> Any:
    """The logit of the letter that follows, and the MLP's preactivations where it is read, before and after training"""
    _, axes = plt.subplots(1, 3, figsize=(12.6, 3.9), layout="constrained")
    following = LETTERS.index(TEXT[position + 1])
    mf.plot.outputs(nets, limit, (0,), axes[:1], output=position * len(LETTERS) + following)
    axes[0].set_title(f"logit of {LETTERS[following]!r} after {TEXT[: position + 1]!r}", fontsize="medium")
    mf.plot.preactivations(nets, limit, sample=position, layer="up", ax=axes[1:])
    return axes[0]


def _guesses(group: list[mf.Solution], window: int = 0) -> str:
    """The likeliest letter after each part of a window, with its probability in the mean over networks"""
    shares = torch.stack([net.f[-1, window].softmax(-1) for net in group]).mean(0).max(-1)
    letters = [TEXT[: i + 1] for i in range(CONTEXT)]
    found = zip(letters, shares.values.tolist(), shares.indices.tolist(), strict=True)
    return "  ".join(f"{before}>{LETTERS[best]} {share:.2f}" for before, share, best in found)


if __name__ == "__main__":
    tyro.cli(main)
