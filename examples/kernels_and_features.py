"""A convolutional network by depth: its Gaussian process, its tangent kernel, its feature-learning limit and real networks.

Digits 3 against 8 as images, few of them. Kernels are exact: the posterior of Bayes, and lazy networks on average over their random start,
followed as long as the others are trained by descent on the squared loss. Expected: all learn the digits, deeper ones not necessarily
better on so few images, and real networks lie near the limit of their own scaling; those of the NTK scaling start at random outputs, whose
spread is part of their loss. The limit is found for up to two convolutions: of three its loss
still rises with the samples, 0.339 and 0.350 with 2048 and 4096 of them, where networks of all widths have 0.37.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import tyro
from matplotlib.axes import Axes
from torch import Tensor, nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, lazy_prediction

from . import folder, keep


class Net(nn.Module):
    """n channels: a filter of 4 x 4 pixels with as large a stride, then depth - 1 over its 2 x 2 positions, and their average."""

    def __init__(self, n: int, depth: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(1, n, 4, stride=4, bias=False)
        self.mix = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1, bias=False) for _ in range(depth - 1))
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.read(x.reshape(-1, 1, 8, 8)))
        for layer in self.mix:
            h = F.gelu(layer(h))
        return self.out(h.mean((2, 3)))


class Depth:
    """A builder of networks of one depth"""

    def __init__(self, depth: int) -> None:
        self.depth, self.__name__ = depth, f"depth {depth}"

    def __call__(self, n: int) -> nn.Module:
        return Net(n, self.depth)


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Test loss by depth of six ways; quick: fewer images, steps, samples and networks."""
    train, test, steps, seeds, width = (8, 20, 6, 2, 32) if quick else (10, 100, 25, 8, 256)
    depths = (1, 2) if quick else (1, 2, 3)
    data = mf.digits((3, 8), train, test)
    rows: dict[str, list[tuple[float, float]]] = {}
    for depth in depths:
        network = mf.Architecture(Depth(depth), weight_std=1.5)  # gelu nearly keeps its size
        lazy = mf.Problem(data, network, mf.ntk(), mf.Training(0.4 / depth, steps))
        rich = mf.Problem(data, network, mf.mean_field(1.0), mf.Training(0.4 / depth, steps))
        found = {
            "Bayes, NNGP": _bayes(network, data),
            "kernel, trained as long": _lazy(lazy),
            f"networks, NTK, N = {width}": FiniteWidth(width, dtype="float32", snapshots=()).ensemble(lazy, seeds),
            "feature-learning limit": _limit(rich, 2**9 if quick else 2**12) if depth < 3 else None,
            f"networks, mean field, N = {width}": FiniteWidth(width, dtype="float32", snapshots=()).ensemble(
                rich, seeds
            ),
        }
        for name, runs in found.items():
            if runs is not None:
                rows.setdefault(name, []).append(_with_error(runs))
    print("| test loss after training | " + " | ".join(f"depth {d}" for d in depths) + " |")
    print("|---" * (len(depths) + 1) + "|")
    for name, values in rows.items():
        told = [f"{v:.3f}" + (f" ± {e:.3f}" if e else "") for v, e in values]
        print(f"| {name} | " + " | ".join(told + [""] * (len(depths) - len(told))) + " |")
    if out is not None:
        keep(_drawn(rows, depths), folder(out) / "kernels_and_features.png")
    return {name: values[-1][0] for name, values in rows.items()}


def _limit(problem: mf.Problem, samples: int) -> mf.Solution:
    return CausalDMFT(samples, groups=2, tolerance=0.01, dtype="float32", snapshots=())(problem)


def _with_error(found: float | mf.Solution | list[mf.Solution]) -> tuple[float, float]:
    """A test loss at the end, with its standard error if it has one: of the limit over its groups, of networks over their seeds"""
    if isinstance(found, (int, float)):
        return found, 0.0
    if isinstance(found, mf.Solution):
        return float(found.test_loss[-1]), float(found.standard_errors["test_loss"][-1])
    several = torch.stack([run.test_loss[-1] for run in found])
    return float(several.mean()), float(several.std()) / len(found) ** 0.5


def _lazy(problem: mf.Problem) -> float:
    """What networks of infinite width have on average over their random start"""
    loss = lazy_prediction(problem).test_loss
    assert loss is not None
    return float(loss[-1])


def _bayes(network: mf.Architecture, data: mf.Dataset) -> float:
    """Half the mean square error of the mean over the posterior, its noise found from the marginal likelihood"""
    process = mf.GaussianProcess(network, mf.ntk(), noise=0.1).fitted(data.x, data.y, ("noise",))
    assert data.x_test is not None
    assert data.y_test is not None
    return float((process.posterior(data.x, data.y).mean(data.x_test) - data.y_test).square().mean() / 2)


def _drawn(rows: dict[str, list[tuple[float, float]]], depths: tuple[int, ...]) -> Axes:
    _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    styles = (("#000000", "o-"), ("#0072B2", "s-"), ("#0072B2", "s:"), ("#D55E00", "D-"), ("#D55E00", "D:"))
    for i, ((name, values), (colour, style)) in enumerate(zip(rows.items(), styles, strict=True)):
        beside = [d + 0.03 * (i - 2) for d in depths[: len(values)]]
        mean, error = zip(*values, strict=True)
        ax.errorbar(beside, mean, error, color=colour, fmt=style, markersize=4, linewidth=1.1, capsize=2, label=name)
    ax.set_xticks(depths)
    ax.set_xlabel("convolutions")
    ax.set_ylabel("test loss")
    ax.set_ylim(0, None)
    ax.legend(fontsize="small")
    return ax


if __name__ == "__main__":
    tyro.cli(main)
