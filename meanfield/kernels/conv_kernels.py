"""NNGP and tangent kernel of convolutional networks with infinitely many channels, block by block over the images (equation 46)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.kernels.kernel_range import among_all, kernels_in_range, layers_in_range, living
from meanfield.kernels.weights import KernelWeights, kernel_weights
from meanfield.network.convolutional import ConvNetwork, images
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard

AT_ONCE = 2**21  # numbers of an array in memory by default


@checked
def conv_nngp_and_ntk(
    network: ConvNetwork, scaling: Scaling | Standard, x: Any, x2: Any = None, *, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The covariance of f_0 and the tangent kernel (P, P2) between images x (P, channels, H, W) and x2, default x (equation 46).

    Meaning of both as in `nngp_and_ntk`. `block` images are paired with `block` others at a time: memory is about 8 arrays of
    block^2 H W numbers, block^2 (H W)^2 with the global average, and no digit depends on it. The dtype of x is that of the result.
    Blank images, as rows of zeros there, have rows of zeros where f = 0 in every network.

    ValueError for another layout of images, sizes that differ or do not fit the filters, and scalings without a tangent kernel;
    MemoryError before allocation.
    """
    first, dtype = images("x", x)
    second = first if x2 is None else images("x2", x2)[0]
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"x and x2 hold different images: received shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    weights, n, m = _weights(network, scaling, first), len(first), len(second)
    pixels = math.prod(first.shape[2:]) ** (2 if network.readout == "global_average" else 1)
    block = max(1, math.isqrt(AT_ONCE // pixels)) if block is None else checks.integer("block", block, 1)
    checks.memory(
        f"the kernels between {n} and {m} images",
        2.0 * n * m * dtype.itemsize + 64.0 * min(block, n) * min(block, m) * pixels,
        f"give a smaller block, e.g. block={max(1, block // 2)}, fewer images at a time, or readout='vectorised'",
    )
    rows = living(network, first)
    columns = rows if x2 is None else living(network, second)
    first = first if rows is None else first[rows]
    second = first if x2 is None else second if columns is None else second[columns]
    return among_all(_between(network, weights, first, second, block, dtype), (n, m), (rows, columns))


def _weights(network: ConvNetwork, scaling: Scaling | Standard, x: Tensor) -> KernelWeights:
    """ValueError for images that do not fit the filters too"""
    last = math.prod(network.image_size(*x.shape[2:]))
    positions = (network.filter_size**2,) * network.depth + (1 if network.readout == "global_average" else last,)
    return kernel_weights(network, scaling, x.shape[1], positions)


def _between(
    network: ConvNetwork, weights: KernelWeights, x: Tensor, x2: Tensor, block: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both kernels between images x and x2, symmetric ones where x2 is x"""
    n, m, symmetric = len(x), len(x2), x is x2
    kernels = (x.new_empty(n, m, dtype=dtype), x.new_empty(n, m, dtype=dtype))
    if not n or not m:
        return kernels
    pairs, largest = _Pairs(network, weights, x, x2), x.new_zeros(2)
    for i in range(0, n, block):
        for j in range(i if symmetric else 0, m, block):
            some, others = slice(i, min(i + block, n)), slice(j, min(j + block, m))
            parts = pairs(some, others)
            largest = torch.maximum(largest, torch.stack([part.abs().amax() for part in parts]))
            for kernel, part in zip(kernels, parts, strict=True):
                kernel[some, others] = part
                if symmetric:
                    kernel[others, some] = part.triu().T + part.triu(1) if i == j else part.T
    # images without a common pixel have a kernel of 0, which is no underflow
    sizes = [
        w * float(big > 0) for w, big in zip((weights.prior, weights.readout + weights.hidden), largest, strict=True)
    ]
    kernels_in_range(network, tuple(sizes), kernels, largest[:, None].unbind())
    return kernels


class _Pairs:
    """The recursion on blocks of pairs of images. Covariances are (S, n, m) over S = H W common pixels, (n S, m S) over pairs of pixels."""

    def __init__(self, network: ConvNetwork, weights: KernelWeights, x: Tensor, x2: Tensor) -> None:
        self.network, self.weights, self.x, self.x2 = network, weights, x, x2
        self.pooled, self.size = network.readout == "global_average", tuple(x.shape[2:])
        self.averages = gaussian_averages(network.nonlinearity)
        self.p = self._variances(x)
        self.q = self.p if x is x2 else self._variances(x2)
        pairs = len(x) * len(x2) * math.prod(self.size) ** (2 if self.pooled else 1)
        self.pair = [self.averages.prepare(p, q, pairs) for p, q in zip(self.p, self.q, strict=True)]

    def __call__(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """nngp and ntk (n, m)"""
        x, x2 = self.x[rows].flatten(2), self.x2[columns].flatten(2)  # (n, channels, S)
        same = self.x is self.x2 and rows == columns
        self.images = (len(x), len(x2))
        if self.pooled:
            products = x.transpose(1, 2).flatten(0, 1) @ x2.transpose(1, 2).flatten(0, 1).T
        else:
            products = x.permute(2, 0, 1) @ x2.permute(2, 1, 0)
        std2, bias2, size = self.network.weight_std**2, self.network.bias_std**2, self.size
        feature, bias = self.weights.layers[0]
        below, size = self._filtered(products / x.shape[1], size)
        c, theta = std2 * below + bias2, feature * below + bias
        phi = slope = c
        for l in range(self.network.depth):
            p, q = self._chosen(self.p[l], rows), self._chosen(self.q[l], columns)
            phi, slope = self.pair[l](p, q, c)
            if same:
                for full, exact in zip((phi, slope), self.averages.single(p), strict=True):
                    full.diagonal(dim1=-2, dim2=-1).copy_(exact)
            if l == self.network.depth - 1:
                break
            feature, bias = self.weights.layers[l + 1]
            theta, _ = self._filtered(theta.mul_(slope).mul_(std2).add_(phi, alpha=feature), size)
            c, size = self._filtered(phi, size)
            c, theta = c.mul_(std2).add_(bias2), theta.add_(bias)
        feature, bias = self.weights.layers[-1]
        phi, slope = self._read(phi, size), self._read(slope.mul_(theta), size)
        share = self.weights.readout * (feature * phi + bias) + self.weights.hidden * std2 * slope
        return self.weights.prior * (std2 * phi + bias2), share

    def _variances(self, x: Tensor) -> list[Tensor]:
        """For each layer (S, P), or (P, S) flat when pixels are paired"""
        p, _ = _patch_mean(self.network, x.square().mean(1).permute(1, 2, 0), ((0, 1),))
        kept = []
        for l in range(self.network.depth):
            if l:
                p, _ = _patch_mean(self.network, self.averages.single(p)[0], ((0, 1),))
            p = self.network.weight_std**2 * p + self.network.bias_std**2
            kept.append(p.permute(2, 0, 1).flatten(1) if self.pooled else p.flatten(0, 1))
        layers_in_range(self.network, kept)
        return kept

    def _chosen(self, p: Tensor, which: slice) -> Tensor:
        return p[which].flatten() if self.pooled else p[:, which]

    def _filtered(self, c: Tensor, size: Any) -> tuple[Tensor, Any]:
        """The mean over the positions of a filter that moves over both images together"""
        n, m = self.images
        if self.pooled:
            out, size = _patch_mean(self.network, c.reshape(n, *size, m, *size), ((1, 2), (4, 5)))
            return out.reshape(n * math.prod(size), -1), size
        out, size = _patch_mean(self.network, c.reshape(*size, n, m), ((0, 1),))
        return out.flatten(0, 1), size

    def _read(self, c: Tensor, size: Any) -> Tensor:
        n, m = self.images
        return c.reshape(n, math.prod(size), m, -1).mean((1, 3)) if self.pooled else c.mean(0)


def _patch_mean(network: ConvNetwork, t: Tensor, places: tuple[tuple[int, int], ...]) -> tuple[Tensor, tuple[int, int]]:
    """The mean over filter positions, moving along all (vertical, horizontal) dimensions of `places` together; and the new image size."""
    k = network.filter_size
    for direction in range(2):
        dims, kept = [place[direction] for place in places], t.shape[places[0][direction]]
        if network.padding == "circular":
            shifts = [torch.roll(t, [shift] * len(dims), dims) for shift in range(-(k // 2), k // 2 + 1)]
        else:
            if network.padding == "same":
                for dim in dims:
                    t = functional.pad(t, [0, 0] * (t.ndim - 1 - dim) + [k // 2, k // 2])
            else:
                kept -= k - 1
            shifts = []
            for shift in range(k):
                moved = t
                for dim in dims:
                    moved = moved.narrow(dim, shift, kept)
                shifts.append(moved)
        t = torch.stack(shifts).mean(0) if len(shifts) > 1 else shifts[0].clone()
    return t, (t.shape[places[0][0]], t.shape[places[0][1]])
