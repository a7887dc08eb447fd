"""Kernels of real networks, drawn at random and differentiated by torch.func: no formula is shared with the recursions (equation 47)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.kernels.kernel_range import sampled_in_range
from meanfield.network.architecture import Architecture, architecture
from meanfield.network.convolutional import ConvNetwork, images
from meanfield.network.layered import branch
from meanfield.network.perceptron import Network
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard
from meanfield.scaling.units import module_width
from solvers.finite.drawn_modules import DrawnModules
from solvers.finite.networks import generator

Parameters = dict[str, Tensor]


@checked
@dataclass(frozen=True, eq=False)
class MonteCarloKernels:
    """Means over seeds of both kernels; their bias at finite width, O(1/N), comes on top of the errors.

    A single network's kernel deviates by O(N^-1/2). Of outputs at positions all are (P, positions, P, positions).

    Example:
        >>> import meanfield as mf
        >>> from solvers import monte_carlo_kernels
        >>> found = monte_carlo_kernels(mf.Network(2, "tanh"), mf.ntk(), mf.digits(n_train=3, n_test=0).x, width=64, seeds=4)
        >>> found.ntk.shape, found.ntk_error.shape, found.seeds
        (torch.Size([3, 3]), torch.Size([3, 3]), (0, 1, 2, 3))
    """

    nngp: Tensor
    """(P, P)"""
    nngp_error: Tensor
    """(P, P) its standard error"""
    ntk: Tensor
    """(P, P)"""
    ntk_error: Tensor
    """(P, P) its standard error"""
    width: int
    """Of the networks"""
    seeds: tuple[int, ...]
    """One network each"""

    __repr__ = brief
    _repr_html_ = html


@checked
def monte_carlo_kernels(
    network: Network | ConvNetwork | Architecture | Callable[[int], nn.Module],
    scaling: Scaling | Standard,
    x: Any,
    width: int,
    seeds: int | Iterable[int] = 16,
) -> MonteCarloKernels:
    """Kernels of finite networks, averaged over seeds (a number n means 0..n-1): of perceptrons and ConvNetworks of one output at x (P, D)
    or (P, channels, H, W); of modules (equation 79), in the mean over their outputs, at x (P, ..) as they take it.

    nngp is the covariance of f_0 over the readouts' weights and drawn biases, given all others; of a module that is not linear in these
    the mean of f_0 f_0^T. `width` is the number of neurons or channels, n of a module; for the standard parameterizations the multiple s of
    their widths. float64. ValueError as in `nngp_and_ntk`, and below two seeds; MemoryError before allocation.

    Example:
        >>> import meanfield as mf
        >>> from solvers import monte_carlo_kernels
        >>> network, x = mf.Network(2, "relu"), mf.digits(n_train=3, n_test=0).x
        >>> found = monte_carlo_kernels(network, mf.ntk(), x, width=256, seeds=8)
        >>> exact = mf.nngp_and_ntk(network, mf.ntk(), x)[1]
        >>> bool(((found.ntk - exact).abs() < 0.1 * exact.max()).all())
        True
    """
    chosen = checks.seeds(seeds)
    if len(chosen) < 2:
        raise ValueError(f"seeds must be at least two, for the error bars: received {chosen}")
    if isinstance(network, (Network, ConvNetwork)):
        found: Iterable[tuple[Tensor, Tensor, Tensor]] = (_kernels(network, scaling, x, width, s) for s in chosen)
    else:
        n = module_width(scaling, checks.integer("width", width, 1))
        samples, own = checks.samples("x", x), architecture(network)
        samples = samples if own.perceptron is None else samples.double()
        found = DrawnModules(own.sized(samples.shape[-1]), scaling, samples, n).kernels(chosen)
    nngp, ntk, f = (torch.stack(k) for k in zip(*found, strict=True))
    for name, kernels in (("nngp", nngp), ("ntk", ntk)):
        sampled_in_range(f"the {name} of drawn networks", kernels, f)

    def error(many: Tensor) -> Tensor:
        return many.std(0) / math.sqrt(len(chosen))

    return MonteCarloKernels(nngp.mean(0), error(nngp), ntk.mean(0), error(ntk), int(width), chosen)


@checked
def empirical_tangent_kernel(
    network: Network | ConvNetwork, scaling: Scaling | Standard, x: Any, width: int, seed: int = 0, x2: Any = None
) -> Tensor:
    """(P, P2) sum over parameters of learning rate times df(x) df(x2) of one network at its start; see `monte_carlo_kernels`.

    Example:
        >>> import meanfield as mf
        >>> from solvers import empirical_tangent_kernel
        >>> x = mf.digits(n_train=3, n_test=0).x
        >>> empirical_tangent_kernel(mf.Network(2, "tanh"), mf.ntk(), x, width=64, seed=1).shape
        torch.Size([3, 3])
    """
    _, kernel, f = _kernels(network, scaling, x, width, seed, x2)
    sampled_in_range("the ntk of drawn networks", kernel, f if x2 is None else None)
    return kernel


def _kernels(
    network: Network | ConvNetwork, scaling: Scaling | Standard, x: Any, width: int, seed: int, x2: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """nngp, ntk and f at x of one network"""
    first, second = _points(network, "x", x), None if x2 is None else _points(network, "x2", x2)
    if second is not None and first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"x and x2 differ in dimension: received shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    with torch.inference_mode(False):  # in which nothing is differentiated
        model = _Model(network, scaling, first.clone(), checks.integer("width", width, 1))
        parameters = model.draw(checks.seed("seed", seed))
        left = model.jacobian(parameters, model.x)
        right = left if second is None else model.jacobian(parameters, second.clone())
    grams = {k: left[k].reshape(len(left[k]), -1) @ right[k].reshape(len(right[k]), -1).T for k in parameters}
    ntk = sum((model.rates[name] * gram for name, gram in grams.items()), torch.zeros_like(grams["a"]))
    nngp = sum((model.stds[name] ** 2 * grams[name] for name in ("a", "b") if name in grams), torch.zeros_like(ntk))
    return nngp, ntk, vmap(model.output, (None, 0))(parameters, model.x)


def _points(network: Network | ConvNetwork, name: str, x: Any) -> Tensor:
    return images(name, x)[0].cpu() if isinstance(network, ConvNetwork) else checks.matrix(name, x)


class _Model:
    """A network of one output as written in equations 1, 44 and 46: parameters with their initial deviations and learning rates."""

    def __init__(self, network: Network | ConvNetwork, scaling: Scaling | Standard, x: Tensor, width: int) -> None:
        self.network, self.scaling, self.x = network, scaling, x
        self.conv = isinstance(network, ConvNetwork)
        standard = isinstance(scaling, Standard)
        reference = scaling.layers(network) if standard else (1,) * network.depth
        self.widths = (x.shape[1], *(width * n for n in reference))
        # 1/sqrt(s) before all layers but the first
        self.stretch = math.sqrt(width) if standard and scaling.improved else 1.0
        filters = (network.filter_size,) * 2 if isinstance(network, ConvNetwork) else ()
        positions = network.image_size(*x.shape[2:]) if isinstance(network, ConvNetwork) else ()
        pooled = isinstance(network, ConvNetwork) and network.readout == "global_average"
        self.pixels = 1 if pooled else math.prod(positions)
        self.shapes: dict[str, tuple[int, ...]] = {
            f"W{l}": (self.widths[l + 1], self.widths[l], *filters) for l in range(network.depth)
        }
        self.shapes["a"] = (self.widths[-1], *(() if pooled else positions))
        if network.bias_std:
            self.shapes |= {f"b{l}": (self.widths[l + 1],) for l in range(network.depth)} | {"b": ()}
        checks.memory(
            f"the gradients of {len(x)} outputs of a network of width {width}",
            24.0 * len(x) * sum(math.prod(s) for s in self.shapes.values()),
            "give a smaller width or fewer inputs",
        )
        self.fans = {f"W{l}": self.widths[l] * math.prod(filters) for l in range(network.depth)}
        self.fans["a"] = self.widths[-1] * self.pixels
        if standard:
            extra = {name: 1.0 if name == "W0" else self.stretch for name in self.fans}
            self.stds = {name: network.weight_std / math.sqrt(fan) * extra[name] for name, fan in self.fans.items()}
            self.stds |= {name: network.bias_std for name in self.shapes if name.startswith("b")}
            self.rates = dict.fromkeys(self.shapes, 1.0)
        else:
            self.stds = dict.fromkeys(self.shapes, 1.0)
            rate_a, rate_w = scaling.learning_rate_multipliers(width)
            self.rates = {name: rate_a if name in ("a", "b") else rate_w for name in self.shapes}

    def draw(self, seed: int) -> Parameters:
        g = generator(seed, self.widths[-1])
        return {
            name: self.stds[name] * torch.randn(shape, generator=g, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }

    def jacobian(self, parameters: Parameters, x: Tensor) -> Parameters:
        """df/dtheta with a leading axis of samples"""
        return vmap(grad(self.output), (None, 0))(parameters, x)

    def output(self, parameters: Parameters, x: Tensor) -> Tensor:
        network, phi = self.network, self.network.nonlinearity.phi
        h = self._layer(parameters, 0, x)
        for l in range(1, network.depth):
            new = self._layer(parameters, l, phi(h))
            h = new if network.residual is None else h + branch(network) * new
        last = phi(h).mean((-2, -1)) if self.conv and parameters["a"].ndim == 1 else phi(h)
        sigma = 1.0 if isinstance(self.scaling, Standard) else self.scaling.output_multiplier(self.widths[-1])
        weight, bias = self._multipliers("a")
        bias *= 1.0 if isinstance(self.scaling, Standard) else math.sqrt(self.widths[-1])
        weight *= 1.0 if isinstance(self.scaling, Standard) else math.sqrt(self.widths[-1])  # the fan is in sigma
        f = weight * (parameters["a"] * last).sum()
        return sigma * (f + bias * parameters["b"] if "b" in parameters else f)

    def _layer(self, parameters: Parameters, l: int, x: Tensor) -> Tensor:
        weight, bias = self._multipliers(f"W{l}")
        w = parameters[f"W{l}"]
        h = weight * (self._convolved(x, w) if isinstance(self.network, ConvNetwork) else w @ x)
        if f"b{l}" in parameters:
            h = h + bias * parameters[f"b{l}"].reshape(-1, *(1,) * (h.ndim - 1))
        return h

    def _multipliers(self, name: str) -> tuple[float, float]:
        """What multiplies the weights and the biases of a layer"""
        if isinstance(self.scaling, Standard):
            return 1 / (1.0 if name == "W0" else self.stretch), 1.0
        return self.network.weight_std / math.sqrt(self.fans[name]), self.network.bias_std

    def _convolved(self, x: Tensor, w: Tensor) -> Tensor:
        assert isinstance(self.network, ConvNetwork)
        around = 0 if self.network.padding == "valid" else self.network.filter_size // 2
        if around:
            mode = "circular" if self.network.padding == "circular" else "constant"
            x = functional.pad(x[None], [around] * 4, mode=mode)[0]
        return functional.conv2d(x[None], w)[0]
