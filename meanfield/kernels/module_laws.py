"""What the parameters of a network are at infinite width, as stand-ins by name: of a builder, of a ConvNetwork (equation 97)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from meanfield.checking.own_numerics import default_device
from meanfield.kernels.field_maps import Axes
from meanfield.kernels.field_nodes import ONE, Leaf, MatrixLaw, Rooted
from meanfield.kernels.field_reading import Field, Numbered, Weight, activated
from meanfield.kernels.weights import KernelWeights
from meanfield.network.architecture import Architecture
from meanfield.network.convolutional import ConvNetwork
from meanfield.network.laws import NORMAL, ZERO
from meanfield.network.making import Build, made
from meanfield.network.roles import Parameter
from meanfield.scaling.scaling import Scaling, settled
from meanfield.scaling.standard import Standard
from meanfield.scaling.units import units

_REAL = 2**15  # numbers of a tensor whose values may matter: vectors of neurons, not matrices


@dataclass(frozen=True)
class ModuleLaw:
    """A module of some width and stand-ins of its parameters by name"""

    module: nn.Module
    parameters: Mapping[str, Any]
    width: int


@dataclass(frozen=True)
class Readable:
    """A network to be read at infinite width. exact: whether no result may depend on the width at which it is read. unit: its multiples
    are widths that the builder takes.
    """

    build: Build
    law: Callable[[int], ModuleLaw]
    exact: bool = True
    unit: int = 96

    @property
    def widths(self) -> tuple[int, int]:
        """At which shapes are asked for; no result depends on them"""
        return 2 * self.unit, 2 * self.unit * max(4, 768 // self.unit)


def of_builder(network: Architecture, scaling: Scaling | Standard) -> Readable:
    """ValueError for laws whose fields are no Gaussians; when a law is asked for, for a scaling without kernels at infinite width, and for
    starts whose law is not known"""
    must_have_kernels(network)
    law = partial(_law, network, scaling)
    return Readable(network.builder, law, not isinstance(scaling, Standard), network.description.unit)


def _law(network: Architecture, scaling: Scaling | Standard, width: int) -> ModuleLaw:
    """Its numbers lie on torch's default device"""
    module = made(network.builder, width, least=_REAL)
    numbers = [module.get_parameter(p.name) for p in network.description.having("vector", "plain")]
    if any(tensor.is_meta for tensor in (*numbers, *module.buffers())):
        module = made(network.builder, width, least=2**62)
    device = default_device()
    for name, buffer in module.named_buffers():
        owner = module.get_submodule(name.rpartition(".")[0])
        there = buffer.to(device)
        owner._buffers[name.rpartition(".")[2]] = there.double() if buffer.is_floating_point() else there
    found: dict[str, Any] = _buffers(network.builder, module, width)
    starts = {
        name: p.detach() if p.is_meta else p.detach().to(device, torch.float64) for name, p in module.named_parameters()
    }
    of = units(network, scaling, width)
    fans = {p.layer: p.fan_in(width) for p in network.description.having("hidden", "readout")}
    limits = _Limits.of(scaling)
    for p in network.description:
        unit, square = of[p.name], of[p.name].multiplier ** 2
        rate = unit.rate * square  # of w itself
        if p.role in ("hidden", "readout"):
            there = 0.0 if unit.law == ZERO else 1.0  # a readout at 0 passes nothing on (equation 121)
            prior, own, below = (1.0, 1.0, 1.0) if p.role == "hidden" else (limits.prior, limits.readout, limits.hidden)
            prior, below = there * prior, there * below
            fan = p.fan_in(width)
            found[p.name] = Weight.of(
                MatrixLaw(p.name, prior * square * fan, own * rate * fan, below * square * fan), p.shape(width)
            )
        elif p.role == "output bias":
            prior = 0.0 if unit.law == ZERO else limits.prior
            found[p.name] = _bias(p.name, prior * square, limits.readout * rate, p.shape(width), outputs=True)
        elif p.role == "plain":
            found[p.name] = _plain(network, p, starts[p.name], bool(unit.rate and limits.plain))
        else:
            start = None if unit.drawn else _start(p, starts[p.name], fans)
            variance = square if unit.drawn and unit.law != ZERO else 0.0
            found[p.name] = _leaf(module, p, start, variance, rate, width)
    return ModuleLaw(module, found, width)


def must_have_kernels(network: Architecture) -> None:
    """ValueError for input weights and vectors that are no Gaussians: neither are then the fields that activations see (equation 121)"""
    for p in network.description.having("input", "vector"):
        law = network.law_of(p)
        if law is not None and law not in (NORMAL, ZERO):
            raise ValueError(
                f"kernels at infinite width are averages over Gaussian fields: received the law {law.name!r} of {p.name!r} in "
                f"{network.name!r}; solvers.monte_carlo_kernels takes any law, and hidden weights and readouts may have one here"
            )


def _buffers(build: Build, module: nn.Module, width: int) -> dict[str, Any]:
    """Those with an axis of neurons, by name: fields where all neurons share the numbers, else what cannot be used"""
    others, found = dict(made(build, 2 * width).named_buffers()), {}
    for name, buffer in module.named_buffers():
        wide = [
            axis for axis, sizes in enumerate(zip(buffer.shape, others[name].shape, strict=True)) if len({*sizes}) > 1
        ]
        if not wide:
            continue
        one = buffer.narrow(wide[0], 0, 1)
        if len(wide) == 1 and buffer.is_floating_point() and bool((buffer == one).all()):
            axes = Axes(tuple(buffer.shape), wide[0], None, 1)
            found[name] = Field.of(Rooted.of(ONE, axes.points(one)), axes)
        else:
            found[name] = Numbered.of(name, buffer.shape)
    return found


@dataclass(frozen=True)
class _Limits:
    """1 for a share of the kernels that stays at infinite width, 0 for one that vanishes"""

    prior: float = 1.0
    readout: float = 1.0
    hidden: float = 1.0
    plain: float = 1.0

    @staticmethod
    def of(scaling: Scaling | Standard) -> _Limits:
        if isinstance(scaling, Standard):
            return _Limits()
        q = 2 * scaling.q_sigma + 1
        return _Limits(
            _stays(scaling, q, "the variance of f_0"),
            _stays(scaling, q + scaling.q_a, "the tangent kernel"),
            _stays(scaling, q + scaling.q_w, "the tangent kernel"),
            float(settled(q) >= 0),
        )


def _stays(scaling: Scaling, exponent: float, what: str) -> float:
    if settled(exponent) > 0:
        raise ValueError(
            f"{what} in the scaling {scaling.name!r} (q_sigma={scaling.q_sigma:g}, q_a={scaling.q_a:g}, q_w={scaling.q_w:g}) diverges like "
            f"N^{exponent:g}: a kernel needs 2 q_sigma + q + 1 <= 0; take ntk() or mean_field(gamma0)"
        )
    return float(settled(exponent) == 0)


def _start(p: Parameter, start: Tensor, fans: Mapping[str, int]) -> Tensor:
    """The numbers that all neurons start with, along the other axes"""
    if p.layer in fans and float(start.abs().max()) <= 1.0001 / math.sqrt(fans[p.layer]):
        start = torch.zeros_like(start)  # a bias that vanishes with the width
    wide = [axis.wide for axis in p.axes].index(True)
    rows = start.movedim(wide, 0).reshape(start.shape[wide], -1)
    if not bool((rows == rows[:1]).all()):
        raise ValueError(
            f"{p.name!r} starts with random numbers of its author, whose law is not known here: give their standard deviation, "
            f"mf.Architecture(build, weight_std={{{p.name!r}: 0.1}}), or start them with one number"
        )
    return rows[0]


def _leaf(module: nn.Module, p: Parameter, start: Tensor | None, variance: float, theta: float, width: int) -> Field:
    axes = Axes(p.shape(width), [axis.wide for axis in p.axes].index(True), None, 1)
    ones = torch.ones(axes.size, dtype=torch.float64)
    index = getattr(module.get_submodule(p.name.rpartition(".")[0]), "padding_idx", None)
    if p.kind == "embedding" and index is not None:
        ones[index] = 0
    leaf = Leaf(p.name, 0 * ones if start is None else start, ones * variance, ones * theta)
    return Field.of(Rooted.of(leaf, torch.eye(axes.size, dtype=torch.float64)[None]), axes)


def _bias(name: str, variance: float, theta: float, shape: tuple[int, ...], outputs: bool = False) -> Field:
    """One number for each neuron, or for each output, which stand in their place"""
    one = torch.ones(1, dtype=torch.float64)
    leaf = Leaf(name, 0 * one, variance * one, theta * one)
    return Field.of(Rooted.of(leaf, one[None, None]), Axes(shape, 0, None, 1, outputs))


def _plain(network: Architecture, p: Parameter, start: Tensor, counts: bool) -> Tensor:
    other = dict(made(network.builder, 2 * 192, least=2**62, seed=1).named_parameters())[p.name].detach().to(start)
    if counts or not torch.equal(other, start):
        raise ValueError(
            f"{p.name!r} has no wide axis: each of its numbers counts at any width, so the kernel stays random in "
            + (
                f"them; freeze them, mf.Architecture(build, frozen=({p.name!r},))"
                if counts
                else "their start; give them a fixed one"
            )
        )
    return start


class Convolutions(nn.Module):
    """The network of equation 46"""

    def __init__(self, n: int, network: ConvNetwork, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, k, bias = network, network.filter_size, network.bias_std > 0
        padding = k // 2 if network.padding == "same" else 0
        self.layers = nn.ModuleList(
            nn.Conv2d(n if l else channels, n, k, padding=padding, bias=bias) for l in range(network.depth)
        )
        pixels = math.prod(size) if network.readout == "vectorised" else 1
        self.out = nn.Linear(n * pixels, 1, bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.network.padding == "circular":
                x = functional.pad(x, (self.network.filter_size // 2,) * 4, mode="circular")
            x = activated(layer(x), self.network.nonlinearity)
        return self.out(x.flatten(1) if self.network.readout == "vectorised" else x.mean((2, 3)))


def of_convolutions(network: ConvNetwork, weights: KernelWeights, channels: int, size: tuple[int, int]) -> Readable:
    """Of images (channels, H, W) whose last layer has `size` pixels"""

    def build(n: int) -> nn.Module:
        return Convolutions(n, network, channels, size)

    def law(width: int) -> ModuleLaw:
        std2, bias2, found = network.weight_std**2, network.bias_std**2, {}
        module, k = made(build, width, least=_REAL), (network.filter_size,) * 2
        for l, (feature, bias) in enumerate(weights.layers[:-1]):
            name = f"layers.{l}.weight"
            if l:
                found[name] = Weight.of(MatrixLaw(name, std2, feature, std2), (width, width, *k))
            else:
                entries = torch.ones(channels * math.prod(k), dtype=torch.float64)
                leaf = Leaf(name, 0 * entries, entries * std2 / len(entries), entries * feature / len(entries))
                root = Rooted.of(leaf, torch.eye(len(entries), dtype=torch.float64)[None])
                found[name] = Field.of(root, Axes((width, channels, *k), 0, None, 1))
            if network.bias_std:
                found[f"layers.{l}.bias"] = _bias(f"layers.{l}.bias", bias2, bias, (width,))
        feature, bias = weights.layers[-1]
        readout = MatrixLaw("out.weight", weights.prior * std2, weights.readout * feature, weights.hidden * std2)
        found["out.weight"] = Weight.of(readout, tuple(module.out.weight.shape))  # type: ignore[union-attr]
        if network.bias_std:
            found["out.bias"] = _bias("out.bias", weights.prior * bias2, weights.readout * bias, (1,), outputs=True)
        return ModuleLaw(module, found, width)

    return Readable(build, law, exact=False)
