"""Ordinary parameterizations at infinite width: improved standard beside NTK, and naive standard, by their kernels and by SGD networks.

Digits 3 against 8, ReLU, SGD on the squared loss. In the improved standard parameterization the widths of a reference network stay in the
kernel, and networks s times as wide are trained at its one learning rate. Expected: kernels of both parameterizations predict about
equally well, of random layer widths, of convolutions and of residual networks with layer norms too; networks of both approach the lazy
limit of their own as they become wider, at any depth and number of samples; in the naive standard parameterization they diverge at that
learning rate once they are some times as wide.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import tyro
from torch import Tensor, nn

import meanfield as mf
from solvers import FiniteWidth, TangentKernelLimit

from . import folder, keep

N = 16  # neurons in each hidden layer of the reference network
KINDS = {"NTK": mf.ntk(), "improved standard": mf.improved_standard(N), "naive standard": mf.naive_standard(N)}
COLOURS = {"NTK": "#0072B2", "improved standard": "#D55E00", "naive standard": "#666666"}
Value = tuple[float, float]  # a mean and its standard error


class Convolutions(nn.Module):
    """Two filters, the second with a stride, and a readout of all positions"""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read, self.mix = nn.Conv2d(1, n, 3, padding=1, bias=False), nn.Conv2d(n, n, 3, 2, padding=1, bias=False)
        self.out = nn.Linear(16 * n, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mix(torch.relu(self.read(x.reshape(-1, 1, 8, 8))))).flatten(1))


class WideResidual(nn.Module):
    """Two residual branches of 2n channels behind layer norms, and a mean over positions"""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(1, n, 3, 2, padding=1, bias=False)
        self.up = nn.ModuleList(nn.Conv2d(n, 2 * n, 3, padding=1, bias=False) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(2 * n, n, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(1, m) for m in (n, 2 * n, n, 2 * n, n))
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x.reshape(-1, 1, 8, 8))
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            h = h + down(torch.relu(self.norms[2 * i + 1](up(torch.relu(self.norms[2 * i](h))))))
        return self.out(torch.relu(self.norms[-1](h)).mean((2, 3)))


BUILDERS = {"convolutions": Convolutions, "residual, layer norms": WideResidual}


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Test losses of kernels, and of networks beside their limits; quick: fewer widths, sizes, steps and networks."""
    multiples = (1, 4, 32) if quick else (1, 2, 4, 8, 16)
    depths, sizes = ((1, 2), (12, 24)) if quick else ((1, 3), (12, 24, 48, 96))
    steps, seeds = (20, 6) if quick else (60, 24)
    by_width = {}
    for kind in KINDS:
        asked = _problem(kind, depths[-1], sizes[-2], steps)
        by_width[kind] = [_networks(asked, s, seeds) for s in multiples], _limit(asked)
    by_size: dict[tuple[str, int], list[tuple[Value, Value]]] = {}
    for kind in ("NTK", "improved standard"):
        for depth in depths:
            asked = [_problem(kind, depth, p, steps) for p in sizes]
            by_size[kind, depth] = [(_limit(one), _networks(one, multiples[-1], seeds)) for one in asked]
    kernels = _kernels(sizes[:1] if quick else sizes)
    print(f"| width of {depths[-1]} hidden layers | " + " | ".join(str(N * s) for s in multiples) + " | lazy limit |")
    print("|---" * (len(multiples) + 2) + "|")
    for kind, (values, limit) in by_width.items():
        print(f"| test loss, {kind} | " + " | ".join(map(_told, (*values, limit))) + " |")
    if out is not None:
        keep(_drawn(kernels, by_width, by_size, multiples), folder(out) / "standard_parameterizations.png")
    widest = {kind: values[-1][0] / limit[0] for kind, (values, limit) in by_width.items()}
    apart = [math.log(b / a) for same in kernels.values() for a, b in same]
    spread = math.exp((sum(v * v for v in apart) / len(apart)) ** 0.5)
    return {f"{kind}, widest over its limit": v for kind, v in widest.items()} | {"kernels, typical ratio": spread}


def _problem(kind: str, depth: int, samples: int, steps: int) -> mf.Problem:
    """Trained at half of the largest stable learning rate of the reference network's kernel"""
    data, network = mf.digits((3, 8), samples, 100), mf.Network(depth, "relu", weight_std=math.sqrt(2))
    reference = mf.ntk() if kind == "NTK" else mf.improved_standard(N)
    _, kernel = mf.nngp_and_ntk(network, reference, data.x)
    rate = mf.spectrum(kernel, data.y).largest_learning_rate() / 2
    training = mf.Training(rate, steps, batch_size=samples // 2, batch_seed=0, record_every=steps)
    return mf.Problem(data, network, KINDS[kind], training)


def _networks(asked: mf.Problem, multiple: int, seeds: int) -> Value:
    """The test loss after SGD of networks so many times as wide as the reference; infinite if some diverge"""
    width = multiple * N if asked.scaling is KINDS["NTK"] else multiple
    solver = FiniteWidth(width, dtype="float32", snapshots=(), raise_on_failure=False, progress=False)
    nets = solver.ensemble(asked, seeds)
    if any(net.status.blew_up for net in nets):
        return math.inf, 0.0
    return _mean([float(net.test_loss[-1]) for net in nets])


def _limit(asked: mf.Problem, draws: int = 256) -> Value:
    """Of infinitely wide networks, in the mean over draws of their start; of the naive ones that of the improved, with which they begin"""
    lazy = asked if asked.scaling is not KINDS["naive standard"] else replace(asked, scaling=KINDS["improved standard"])
    return _mean([float(one.test_loss[-1]) for one in TangentKernelLimit(snapshots=()).ensemble(lazy, draws)])


def _mean(values: list[float]) -> Value:
    several = torch.tensor(values, dtype=torch.float64)
    return float(several.mean()), float(several.std()) / len(values) ** 0.5


def _kernels(sizes: tuple[int, ...]) -> dict[str, list[tuple[float, float]]]:
    """Test losses of predictions with the kernels, NTK and improved standard, of equal layers, of random ones and of images"""
    found: dict[str, list[tuple[float, float]]] = {"equal widths": [], "random widths": []}
    generator = torch.Generator().manual_seed(0)
    for samples in sizes:
        data = mf.digits((3, 8), samples, 100)
        for depth in (1, 2, 4):
            network = mf.Network(depth, "relu", weight_std=math.sqrt(2))
            own = _predicted(network, mf.ntk(), data)
            for width in (4, 64, 1024):
                found["equal widths"].append((own, _predicted(network, mf.improved_standard(width), data)))
            for _ in range(3):
                widths = (2 ** torch.randint(2, 11, (depth,), generator=generator)).tolist()
                found["random widths"].append((own, _predicted(network, mf.improved_standard(widths), data)))
        for name, build in BUILDERS.items():
            network = mf.Architecture(build, weight_std=math.sqrt(2))
            own = _predicted(network, mf.ntk(), data)
            for width in (4, 64, 1024):
                pair = own, _predicted(network, mf.improved_standard(width), data)
                found.setdefault(name, []).append(pair)
    return found


def _predicted(network: mf.Network | mf.Architecture, scaling: Any, data: mf.Dataset) -> float:
    """Half the mean square error of kernel regression, with a ridge of a thousandth of the kernel"""
    assert data.x_test is not None
    _, kernel = mf.nngp_and_ntk(network, scaling, data.x)
    _, across = mf.nngp_and_ntk(network, scaling, data.x_test, data.x)
    mean, _ = mf.kernel_posterior(kernel, data.y, 1e-3 * float(kernel.diagonal().mean()), across)
    return float((mean - data.test_targets).square().mean() / 2)


def _told(value: Value) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}" if math.isfinite(value[0]) else "diverged"


def _drawn(kernels: Any, by_width: Any, by_size: Any, multiples: tuple[int, ...]) -> Any:
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(12.6, 4.1), layout="constrained")
    looks = (("#000000", "o"), ("#CC79A7", "^"), ("#009E73", "s"), ("#E69F00", "D"))
    for (name, pairs), (colour, marker) in zip(kernels.items(), looks, strict=True):
        left.scatter(*zip(*pairs, strict=True), s=16, color=colour, marker=marker, alpha=0.7, linewidths=0, label=name)
    left.set(xlabel="NTK parameterization", ylabel="improved standard", title="test loss, by kernels")
    widths = [N * s for s in multiples]
    for (kind, (values, limit)), shift in zip(by_width.items(), (0.97, 1.0, 1.03), strict=True):
        finite = [(n, *v) for n, v in zip(widths, values, strict=True) if math.isfinite(v[0])]
        n, mean, error = zip(*finite, strict=True)
        n = [size * shift for size in n]
        middle.errorbar(
            n, mean, error, color=COLOURS[kind], fmt="o-", markersize=4, linewidth=1.1, capsize=2, label=kind
        )
        if len(finite) < len(widths):
            place = {"xycoords": middle.get_xaxis_transform(), "color": COLOURS[kind], "ha": "right", "va": "top"}
            middle.annotate("diverges ×", (1.04 * widths[len(finite)], 0.99), **place)
        if kind != "naive standard":
            middle.axhline(limit[0], color=COLOURS[kind], linestyle="--", linewidth=1)
    middle.set(xlabel="width", xscale="log", title="test loss of networks; dashed: lazy limits")
    middle.set_xticks(widths, [str(n) for n in widths])
    middle.minorticks_off()
    for (kind, depth), pairs in by_size.items():
        limits, nets = zip(*pairs, strict=True)
        marker = "o" if depth == 1 else "s"
        right.errorbar(
            *([v[0] for v in some] for some in (limits, nets)),
            *([v[1] for v in some] for some in (nets, limits)),
            color=COLOURS[kind], fmt=marker, markersize=4, capsize=2, label=f"{kind}, depth {depth}",
        )  # fmt: skip
    right.set(xlabel="lazy limit", ylabel=f"networks of width {widths[-1]}", title="test loss, by number of samples")
    for ax in (left, right):
        low, high = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.plot([low, high], [low, high], color="#999999", linestyle=":", linewidth=1, zorder=0)
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    for ax in (left, middle, right):
        ax.legend(fontsize="small")
    return left


if __name__ == "__main__":
    tyro.cli(main)
