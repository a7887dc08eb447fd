"""A convolutional network: patches, a filter, an average over positions, and its infinite-width limit beside real networks.

Digits 0 against 1 as images. Expected: losses of networks scatter about that of the limit, and outputs, feature kernels and tangent
kernel come nearer like N^-1/2.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import approach, folder, keep, power


class Net(nn.Module):
    """n channels, at first at 3 x 3 positions, then at 2 x 2."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(1, n, 4, stride=2)
        self.mix = nn.Conv2d(n, n, 2)
        self.out = nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.read(x.reshape(-1, 1, 8, 8)))
        return self.out(F.gelu(self.mix(h)).mean((2, 3)))


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds, points = ((32, 64, 128), 6, 6) if quick else ((64, 256, 1024), 8, 16)
    training = mf.Training(learning_rate=0.3, steps=8 if quick else 30)
    problem = mf.Problem(mf.digits((0, 1), points, points), Net, mf.mean_field(1.0), training)
    limit = CausalDMFT(2**9 if quick else 2**11, groups=2 if quick else 4)(problem)
    nets = [net for width in widths for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds)]
    report = mf.deviation(nets, limit, ("f", "Phi[mix]", "Phi[out]", "G[mix]", "tangent_kernel"))
    print(report)
    if out is not None:
        keep(approach(nets, limit, report, test=True), folder(out) / "convolutional.png")
    return {"power": power(report)}


if __name__ == "__main__":
    tyro.cli(main)
