"""A residual network with layer norms and branches of twice the width: its infinite-width limit beside real networks.

Digits 3 against 8. Each of three branches is a norm, a matrix to 2n neurons, gelu, and a matrix back. Expected: losses of networks
scatter about that of the limit, and outputs and kernels of all layers come nearer like N^-1/2.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import approach, folder, keep, power

BLOCKS = 3


class Block(nn.Module):
    """A residual branch, of size 1/sqrt(number of branches)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, h: Tensor) -> Tensor:
        return h + BLOCKS**-0.5 * self.down(F.gelu(self.up(self.norm(h))))


class Net(nn.Module):
    """Of any width n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read, self.blocks = nn.Linear(64, n), nn.Sequential(*(Block(n) for _ in range(BLOCKS)))
        self.norm, self.out = nn.LayerNorm(n), nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.read(x))))


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds, points = ((32, 64, 128), 6, 6) if quick else ((64, 256, 1024), 8, 16)
    training = mf.Training(learning_rate=0.05, steps=8 if quick else 30)
    problem = mf.Problem(mf.digits((3, 8), points, points), Net, mf.mean_field(1.0), training)
    limit = CausalDMFT(2**9 if quick else 2**11, groups=2 if quick else 4)(problem)
    nets = [net for width in widths for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds)]
    report = mf.deviation(nets, limit, ("f", "Phi[blocks.0.down]", "Phi[blocks.2.down]", "Phi[out]", "tangent_kernel"))
    print(report)
    if out is not None:
        keep(approach(nets, limit, report, test=True), folder(out) / "residual.png")
    return {"power": power(report)}


if __name__ == "__main__":
    tyro.cli(main)
