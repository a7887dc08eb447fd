"""NNGP and tangent kernel of convolutional networks with infinitely many channels, block by block over the images (equation 46)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from meanfield import array_input, checks
from meanfield.activations import Activation, activation
from meanfield.arguments import checked
from meanfield.gaussian_averages import gaussian_averages
from meanfield.kernel_range import among_all, kernels_in_range, layers_in_range, living
from meanfield.parameterization import KernelWeights, Standard, kernel_weights
from meanfield.scaling import Scaling

Padding = Literal["same", "circular", "valid"]
Readout = Literal["vectorised", "global_average"]
AT_ONCE = 2**21  # numbers of an array in memory by default


@checked
@dataclass(frozen=True)
class ConvNetwork:
    """Convolutions with square filters and stride 1, then a readout (equation 46)."""

    depth: int = 1
    """Convolutions"""
    activation: Activation | str = "relu"
    """The nonlinearity after each of them"""
    filter_size: int = 3
    """Pixels of a filter's side, odd unless padding is valid"""
    padding: Padding = "same"
    """same (zeros around the image), circular, valid (the image shrinks)"""
    readout: Readout = "vectorised"
    """vectorised (a weight for each channel and pixel) or global_average (channels averaged over pixels)"""
    weight_std: float = 1.0
    """Multiplies all weights, as in `Network`"""
    bias_std: float = 0.0
    """Multiplies trained biases; 0 means no biases"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", checks.integer("depth", self.depth, 1))
        object.__setattr__(self, "activation", activation(self.activation))
        object.__setattr__(self, "filter_size", checks.integer("filter_size", self.filter_size, 1))
        object.__setattr__(self, "weight_std", checks.positive("weight_std", self.weight_std))
        object.__setattr__(self, "bias_std", checks.positive("bias_std", self.bias_std, zero=True))
        checks.lookup("padding", self.padding, dict.fromkeys(get_args(Padding)))
        checks.lookup("readout", self.readout, dict.fromkeys(get_args(Readout)))
        if self.padding != "valid" and self.filter_size % 2 == 0:
            raise ValueError(
                f"filter_size must be odd with padding={self.padding!r}: received {self.filter_size}; give {self.filter_size + 1}, "
                "or padding='valid'"
            )

    @property
    def nonlinearity(self) -> Activation:
        return activation(self.activation)

    @property
    def residual(self) -> None:
        """Convolutional networks have no residual branches here"""
        return None

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of the last hidden layer; ValueError if the filters do not fit"""
        height, width = checks.integer("height", height, 1), checks.integer("width", width, 1)
        shrink = self.depth * (self.filter_size - 1) if self.padding == "valid" else 0
        least = 1 + shrink if self.padding == "valid" else (self.filter_size + 1) // 2
        if min(height, width) < least:
            raise ValueError(
                f"images of {height} x {width} pixels are too small for {self.depth} layer(s) of filters of size {self.filter_size} with "
                f"padding={self.padding!r}: at least {least} x {least}"
            )
        return height - shrink, width - shrink


def images(name: str, x: Any) -> tuple[Tensor, torch.dtype]:
    """(P, channels, H, W) in float64 and the dtype it came in; ValueError for another layout, NaN and infinities."""
    given = array_input.numbers(name, x).to(x.device if isinstance(x, Tensor) else "cpu")
    if given.ndim != 4:
        fix = " for images of one channel x[:, None]" if given.ndim == 3 else " e.g. x.reshape(len(x), 1, 8, 8)"
        raise ValueError(f"{name} must be images (P, channels, H, W): received shape {tuple(given.shape)}; give{fix}")
    _, channels, height, width = given.shape
    if width in (1, 2, 3, 4) and channels == height > 4:
        raise ValueError(
            f"{name} looks like images with channels last, (P, H, W, channels): received shape {tuple(given.shape)}; (P, channels, H, W) "
            f"is needed, give {name}.permute(0, 3, 1, 2) (numpy: {name}.transpose(0, 3, 1, 2))"
        )
    if 0 in given.shape:
        raise ValueError(
            f"{name} is empty: received shape {tuple(given.shape)}; at least one image with one channel needed"
        )
    return given, array_input.precision(x)


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
