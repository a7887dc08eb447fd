"""Kernels of any module at infinite width against real networks."""

import math

import torch

import meanfield as mf
from tests.lazy_networks import CASES, real_kernels


def networks_at_their_start() -> None:
    """modules of tests/lazy_networks.py in the NTK scaling, 64 networks of width 128 and of width 512, by torch's autograd alone: root mean
    square over entries of (mean - limit) / standard error, its largest size (of so many correlated entries), and the distance of the
    tangent kernel from the limit, relative, beside the floor that its standard errors give; 1 and the floor are noise alone
    """
    print(
        "| network | entries | N | nngp: rms z, largest | ntk: rms z, largest | ntk: distance (floor) |\n|---|---|---|---|---|---|"
    )
    seeds, worst = 64, 0.0
    for name, (build, x, std) in CASES.items():
        network = mf.Architecture(build, {f"*{key}": value for key, value in std.items()}) if std else build
        kernels = mf.nngp_and_ntk(network, mf.ntk(), x)
        for width in (128, 512):
            with torch.random.fork_rng():
                real = real_kernels(build, x, width, seeds, std)
            both = [_compared(kernel, many) for kernel, many in zip(kernels, real, strict=True)]
            if width == 512:
                worst = max(worst, *(largest for _, largest, _, _ in both))
            cells = [f"{rms:.2f}, {largest:.1f}" for rms, largest, _, _ in both]
            entries, (_, _, distance, floor) = real[1].shape[1] ** 2, both[1]
            print(
                f"| {name} | {entries} | {width} | {cells[0]} | {cells[1]} | {distance:.4f} ({floor:.4f}) |", flush=True
            )
    print(f"largest at N = 512: {worst:.1f}")
    assert worst < 4.5


def _compared(kernel: torch.Tensor, many: torch.Tensor) -> tuple[float, float, float, float]:
    """Root mean square and largest size of z; distance and floor"""
    limit = kernel.reshape(many.shape[1:])
    error, apart = many.std(0) / math.sqrt(len(many)), many.mean(0) - limit
    z = apart / error
    size = limit.norm()
    return float(z.square().mean().sqrt()), float(z.abs().max()), float(apart.norm() / size), float(error.norm() / size)


CLAIMS = {"networks_at_their_start": networks_at_their_start}
