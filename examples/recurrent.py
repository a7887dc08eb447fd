"""A recurrent network that reads a digit from above, two rows at a time, with one matrix: its infinite-width limit beside real networks.

Digits 3 against 8. One matrix meets its own images three times in a pass, so that its entries are far from independent of what it
multiplies. Expected: losses of networks scatter about that of the limit, and outputs and kernels come nearer like N^-1/2.
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
        self.read, self.again, self.out = nn.Linear(16, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 4, 16)
        h = torch.tanh(self.read(rows[:, 0]))
        for t in range(1, 4):
            h = torch.tanh(self.read(rows[:, t]) + self.again(h))
        return self.out(h)


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds, points = ((32, 64, 128), 6, 6) if quick else ((64, 256, 1024), 8, 16)
    training = mf.Training(learning_rate=0.1, steps=8 if quick else 30)
    problem = mf.Problem(mf.digits((3, 8), points, points), Net, mf.mean_field(1.0), training)
    limit = CausalDMFT(2**10 if quick else 2**11, groups=2 if quick else 4)(problem)
    nets = [net for width in widths for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds)]
    report = mf.deviation(nets, limit, ("f", "Phi[again]", "Phi[out]", "G[again]", "tangent_kernel"))
    print(report)
    if out is not None:
        keep(approach(nets, limit, report, test=True), folder(out) / "recurrent.png")
    return {"power": power(report)}


if __name__ == "__main__":
    tyro.cli(main)
