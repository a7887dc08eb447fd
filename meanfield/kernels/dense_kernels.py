"""NNGP and tangent kernel at infinite width: of any network; of fully connected ones tile by tile over the data (equations 41 to 45)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.kernels.conv_kernels import conv_nngp_and_ntk
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.kernels.kernel_gradients import TILE, Differentiable, differentiable_pair, no_derivatives
from meanfield.kernels.kernel_range import among_all, kernels_in_range, layers_in_range, living
from meanfield.kernels.module_kernels import builder_kernels
from meanfield.kernels.relu_angles import ReluLayers
from meanfield.kernels.weights import KernelWeights, kernel_weights
from meanfield.network.architecture import Architecture, architecture
from meanfield.network.convolutional import ConvNetwork
from meanfield.network.layered import branch2
from meanfield.network.perceptron import Network
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard

BLOCK = 256  # samples: the handful of tiles in use stays in a processor's cache
PANEL = 256  # rows of a matrix product, whatever the block, so that no result depends on it


@checked
def nngp_and_ntk(
    network: Network | ConvNetwork | Architecture | Callable[[int], nn.Module],
    scaling: Scaling | Standard,
    x: Any,
    x2: Any = None,
    *,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The covariance of f_0 and the tangent kernel K of the infinite network, between x (P, D) and x2 (P2, D), default x.

    network: a perceptron, a ConvNetwork (see `conv_nngp_and_ntk`), or any network, as a function of the width that makes a torch module,
    or an Architecture of it (equations 97 to 99); x is then of any shape (P, ..), real numbers or tokens, and of outputs that have
    positions (P, .., C) the kernels are (P, .., P2, ..).

    nngp (P, P2) is lim Cov f_0, readout and its bias included: weight_std^2 Phi^L + bias_std^2 with `ntk()` and the standard
    parameterizations, and 0 in the mean-field scaling, whose networks start at f_0 = 0. ntk (P, P2) is K(0) in df/dt = K Delta / P, the
    same for `ntk()` and every `mean_field(gamma0)` (equation 43). For C outputs both stand in front of the identity between outputs.
    The dtype of x, float32 or float64, is that of the result; the arithmetic is float64. Diagonals are exact, and both matrices exactly
    symmetric, for x2 = None. `block` is the edge of a tile of work: it changes memory, 10 tiles beside the results, and no digit
    of a perceptron (activations without a closed form have tiles of a fixed size). Rows of zeros, where f = 0 in every network without
    biases and with phi(0) = 0, have rows of zeros in both.

    Derivatives with respect to x and x2, of first order, are there for the activations with closed averages of the library (linear,
    relu, erf, sin, gelu). Between parallel points relu's ntk has a cusp, whose derivative is taken as the mean of both sides.

    ValueError for functions of torch that have no rule, with their place in the code (solvers.monte_carlo_kernels takes any network), for
    networks without a width limit, for inputs that are no finite matrix, for those that require gradients where these are not known, for
    kernels that leave the range of their dtype (with layer and size), and for scalings without a tangent kernel at infinite width;
    MemoryError before allocation.

    Example:
        >>> import meanfield as mf
        >>> x = mf.digits(n_train=4, n_test=0).x
        >>> nngp, ntk = mf.nngp_and_ntk(mf.Network(depth=2, activation="relu"), mf.ntk(), x)
        >>> ntk.shape, round(ntk[0, 0].item(), 6)
        (torch.Size([4, 4]), 0.75)
    """
    if isinstance(network, ConvNetwork):
        return conv_nngp_and_ntk(network, scaling, x, x2, block=block)
    if not isinstance(network, Network):
        return builder_kernels(architecture(network), scaling, x, x2, block)
    if array_input.tracked(x) or array_input.tracked(x2):
        return _differentiable(network, scaling, x, x2, block)
    first, dtype = _inputs("x", x)
    second = first if x2 is None else _inputs("x2", x2)[0]
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"x and x2 differ in dimension: received shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    weights = kernel_weights(network, scaling, first.shape[1])
    n, m, block = len(first), len(second), BLOCK if block is None else checks.integer("block", block, 1)
    checks.memory(
        f"the kernels between {n} and {m} points",
        2.0 * n * m * dtype.itemsize + 8.0 * PANEL * m + 80.0 * min(block, n) * min(block, m),
        "call nngp_and_ntk for fewer rows of x at a time, nngp_and_ntk(network, scaling, x[i:j], x2), or give float32",
    )
    rows = living(network, first)
    columns = rows if x2 is None else living(network, second)
    z = network.inputs(first if rows is None else first[rows])
    z2 = z if x2 is None else network.inputs(second if columns is None else second[columns])
    return among_all(_between(network, weights, z, z2, block, dtype), (n, m), (rows, columns))


def _differentiable(
    network: Network, scaling: Scaling | Standard, x: Any, x2: Any, block: int | None
) -> tuple[Tensor, Tensor]:
    """For inputs that autograd follows; ValueError where derivatives are not known"""
    phi, form = network.nonlinearity, differentiable_pair(network.nonlinearity)
    if form is None:
        raise ValueError(no_derivatives(phi))
    ends = [None if end is None else end if isinstance(end, Tensor) else checks.array("x", end) for end in (x, x2)]
    for name, end in zip(("x", "x2"), ends, strict=True):
        zero = None if end is None else (checks.matrix(name, end.detach()) == 0).all(1)
        if zero is not None and phi.kinks and not network.bias_std and bool(zero.any()):
            raise ValueError(
                f"row {int(zero.nonzero()[0])} of {name} is zero, where the kernels of {phi.name} without biases have no derivative: leave "
                "it out, or give Network(bias_std=..) above 0"
            )

    def pairs(x: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        weights = kernel_weights(network, scaling, x.shape[1])
        z, z2 = network.inputs(x), network.inputs(x2)
        p, q = ([t.square().sum(1)] for t in (z, z2))
        for kept in (p, q):
            for _ in range(1, network.depth):
                before = kept[-1]
                new = network.weight_std**2 * form(before, before, before)[0] + network.bias_std**2
                kept.append(new if network.residual is None else before + branch2(network) * new)
        return recursion(network, weights, lambda l, c: form(p[l][:, None], q[l][None], c), z @ z2.T)

    def values(x: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor]:
        return nngp_and_ntk(network, scaling, x, x2, block=block)

    return Differentiable.apply(values, pairs, TILE, *ends)  # pyright: ignore[reportReturnType]


def _between(
    network: Network, weights: KernelWeights, z: Tensor, z2: Tensor, block: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both kernels between scaled inputs z (n, D) and z2 (m, D), symmetric ones where z2 is z"""
    n, m = len(z), len(z2)
    if not n or not m:
        return z.new_empty(n, m, dtype=dtype), z.new_empty(n, m, dtype=dtype)
    closed = gaussian_averages(network.nonlinearity).exact
    block = block if closed else PANEL  # the products within a table round by their shapes
    layers = ReluLayers if closed and network.nonlinearity.name == "relu" else _Layers
    rule = layers(network, weights, z, z2)
    kernels = _tiles(rule, n, m, z is z2, block, z.new_empty(0, dtype=dtype))
    kernels_in_range(network, (weights.prior, weights.readout + weights.hidden), kernels, rule.diagonal())
    return kernels


def _tiles(
    layers: _Layers | ReluLayers, n: int, m: int, symmetric: bool, block: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Both kernels, tile by tile; of symmetric ones the upper triangle is computed."""
    kernels = (like.new_empty(n, m), like.new_empty(n, m))
    for top in range(0, n, PANEL):
        left, bottom = top if symmetric else 0, min(top + PANEL, n)
        panel = layers.panel(slice(top, bottom), slice(left, m))
        for i in range(top, bottom, block):
            rows = slice(i, min(i + block, bottom))
            others = [(i, rows.stop)] if symmetric else []
            others += [(j, min(j + block, m)) for j in range(rows.stop if symmetric else 0, m, block)]
            for columns in (slice(*ends) for ends in others):
                start = panel[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                for kernel, tile in zip(kernels, layers(rows, columns, start), strict=True):
                    if symmetric and columns == rows:
                        kernel[rows, columns] = tile.triu() + tile.triu(1).T
                        continue
                    kernel[rows, columns] = tile
                    if symmetric:
                        kernel[columns, rows] = tile.T.contiguous()
    if symmetric:
        for kernel, exact in zip(kernels, layers.diagonal(), strict=True):
            kernel.diagonal().copy_(exact)
    return kernels


class _Layers:
    """The recursion of equation 43 on tiles of covariances, for any activation."""

    def __init__(self, network: Network, weights: KernelWeights, z: Tensor, z2: Tensor) -> None:
        self.network, self.weights, self.averages = network, weights, gaussian_averages(network.nonlinearity)
        self.z, self.z2 = z, z2
        self.p = self._variances(_norms2(z))
        self.q = self.p if z is z2 else self._variances(_norms2(z2))
        pairs = len(z) * len(z2) // (2 if z is z2 else 1)
        self.pair = [self.averages.prepare(p, q, pairs) for p, q in zip(self.p, self.q, strict=True)]

    def panel(self, rows: slice, columns: slice) -> Tensor:
        """Covariances of the first layer"""
        return self.z[rows] @ self.z2[columns].T

    def __call__(self, rows: slice, columns: slice, c: Tensor) -> tuple[Tensor, Tensor]:
        def averages(l: int, c: Tensor) -> tuple[Tensor, Tensor]:
            return self.pair[l](self.p[l][rows], self.q[l][columns], c)

        return recursion(self.network, self.weights, averages, c.contiguous())

    def diagonal(self) -> tuple[Tensor, Tensor]:
        """The kernels of each point with itself, from its variances alone"""
        return recursion(self.network, self.weights, lambda l, c: self.averages.single(c), self.p[0])

    def _variances(self, p: Tensor) -> list[Tensor]:
        """Variances of h^1 .. h^L"""
        kept, add = [p], branch2(self.network)
        for _ in range(1, self.network.depth):
            new = add * (self.network.weight_std**2 * self.averages.single(kept[-1])[0] + self.network.bias_std**2)
            kept.append(new if self.network.residual is None else kept[-1] + new)
        layers_in_range(self.network, kept)
        return kept


def recursion(network: Network, weights: KernelWeights, averages: Any, c: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 43 from Sigma^1 = c; `averages(l, c)` gives <phi phi> and <phi' phi'> of layer l + 1."""
    std2, bias2, add = network.weight_std**2, network.bias_std**2, branch2(network)
    feature, bias = weights.layers[0]
    theta = (c - bias2) * (feature / std2) + bias
    for l in range(network.depth - 1):
        phi, slope = averages(l, c)
        feature, bias = weights.layers[l + 1]
        sigma, below = add * (std2 * phi + bias2), add * (feature * phi + bias + std2 * slope * theta)
        c, theta = (sigma, below) if network.residual is None else (c + sigma, theta + below)
    phi, slope = averages(network.depth - 1, c)
    feature, bias = weights.layers[-1]
    prior = weights.prior * (std2 * phi + bias2)
    return prior, weights.readout * (feature * phi + bias) + weights.hidden * std2 * slope * theta


def _inputs(name: str, x: Any) -> tuple[Tensor, torch.dtype]:
    """Checked float64 points on their own device, and the dtype of the result"""
    points = checks.matrix(name, x)
    return points.to(x.device if isinstance(x, Tensor) else "cpu"), array_input.precision(x)


def _norms2(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z, dim=1).square()
