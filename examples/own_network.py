"""A network of one's own in ten lines: an ordinary torch class, its infinite-width limit and three of its widths.

Digits 3 against 8; a residual layer behind a layer norm, named nowhere in the library. Expected: the outputs of networks scatter about
those of the limit, by half as much at four times the width.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import approach, folder, keep, power


class Net(nn.Module):
    """Of any width n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read, self.norm, self.mix, self.out = nn.Linear(64, n), nn.LayerNorm(n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        return self.out(torch.tanh(h + self.mix(torch.tanh(self.norm(h)))))


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds = ((16, 64, 256), 6) if quick else ((64, 256, 1024), 16)
    steps = 10 if quick else 40
    problem = mf.Problem(mf.digits((3, 8), 16, 16), Net, mf.mean_field(1.0), mf.Training(0.1, steps))
    limit = CausalDMFT(2**9 if quick else 2**12, groups=4)(problem)
    nets = [net for width in widths for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds)]
    report = mf.deviation(nets, limit, ("f", "Phi[mix]", "Phi[out]", "tangent_kernel"))
    print(report)
    if out is not None:
        keep(approach(nets, limit, report, test=True), folder(out) / "own_network.png")
    return {"power": power(report)}


if __name__ == "__main__":
    tyro.cli(main)
