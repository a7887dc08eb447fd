"""NNGP and tangent kernel of any network written in torch, batch by batch over the samples (equations 93 to 95)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meanfield.checking import checks
from meanfield.kernels.field_moments import REMEDY, Moments, Tables, Within
from meanfield.kernels.field_nodes import Leaf, MatrixLaw, Node, Pointwise
from meanfield.kernels.field_reading import Call, Field, Reading, Weight, plan
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.network.architecture import Architecture
from meanfield.network.making import made
from meanfield.network.roles import Parameter
from meanfield.scaling.scaling import Scaling, settled
from meanfield.scaling.standard import Standard
from meanfield.scaling.units import units

WIDTH = 192  # at which shapes and units are asked for; no result depends on it
OTHER = 1536  # of a trial
_REAL = 2**15  # numbers of a tensor whose values may matter: vectors of neurons, not matrices
AT_ONCE = 2**19  # numbers of an array in memory by default
FEW = 2  # samples of a trial


@dataclass(frozen=True)
class Law:
    """What a network's parameters are at infinite width: stand-ins by name. prior: what multiplies the covariance of f_0."""

    parameters: Mapping[str, Any]
    module: nn.Module
    width: int


def laws(network: Architecture, scaling: Scaling | Standard, width: int) -> Law:
    """ValueError for a scaling without a tangent kernel at infinite width, and for starts whose law is not known"""
    module = made(network.build, width, least=_REAL)
    if any(buffer.is_meta for buffer in module.buffers()):
        module = made(network.build, width, least=2**62)
    starts = {name: p.detach() for name, p in module.named_parameters()}
    of = units(network, scaling, width)
    limit = _Limits(scaling)
    found: dict[str, Any] = {}
    fans = {p.layer: p.fan_in(width) for p in network.description.having("hidden", "readout")}
    for p in network.description:
        unit = of[p.name]
        fan = p.fan_in(width) if p.role in ("hidden", "readout") else 1
        square = unit.multiplier**2
        if p.role == "hidden":
            law = MatrixLaw(p.name, square * fan, unit.rate * square * fan, square * fan)
            found[p.name] = Weight.of(law, p.shape(width))
        elif p.role == "readout":
            law = MatrixLaw(p.name, limit.prior * square * fan, limit.readout * unit.rate * square * fan, limit.hidden * square * fan)
            found[p.name] = Weight.of(law, p.shape(width))
        elif p.role == "output bias":
            found[p.name] = _output_bias(p, limit.prior * square, limit.readout * unit.rate * square, width)
        elif p.role == "plain":
            found[p.name] = _plain(network, p, starts[p.name].to(torch.float64), unit.rate * limit.plain)
        else:
            start = None if unit.drawn else _start(p, starts[p.name].to(torch.float64), fans)
            found[p.name] = _leaf(module, p, start, square if unit.drawn else 0.0, unit.rate * square, width)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            owner = module.get_submodule(name.rpartition(".")[0])
            owner._buffers[name.rpartition(".")[2]] = buffer.to(torch.float64)
    return Law(found, module, width)


class _Limits:
    """1 for a share of the kernels that stays at infinite width, 0 for one that vanishes"""

    def __init__(self, scaling: Scaling | Standard) -> None:
        self.prior = self.readout = self.hidden = self.plain = 1.0
        if isinstance(scaling, Standard):
            return
        q = 2 * scaling.q_sigma + 1
        self.prior = _stays(scaling, q, "the variance of f_0")
        self.readout = _stays(scaling, q + scaling.q_a, "the tangent kernel")
        self.hidden = _stays(scaling, q + scaling.q_w, "the tangent kernel")
        self.plain = float(settled(q) >= 0)


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
            f"mf.Architecture(build, weight_std={{{p.name!r}: 0.1}}), or start it with one number"
        )
    return rows[0]


def _leaf(module: nn.Module, p: Parameter, start: Tensor | None, variance: float, theta: float, width: int) -> Field:
    from meanfield.kernels.field_maps import Axes
    from meanfield.kernels.field_nodes import Rooted

    wide = [axis.wide for axis in p.axes].index(True)
    axes = Axes(p.shape(width), wide, None, 1)
    ones = torch.ones(axes.size, dtype=torch.float64)
    index = getattr(module.get_submodule(p.name.rpartition(".")[0]), "padding_idx", None)
    if p.kind == "embedding" and index is not None:
        ones[index] = 0
    mean = ones * 0 if start is None else start
    leaf = Leaf(p.name, mean, ones * variance, ones * theta)
    return Field.of(Rooted.of(leaf, torch.eye(axes.size, dtype=torch.float64)[None]), axes)


def _output_bias(p: Parameter, variance: float, theta: float, width: int) -> Field:
    """One for each output, which stand in the place of neurons"""
    from meanfield.kernels.field_maps import Axes
    from meanfield.kernels.field_nodes import Rooted

    one = torch.ones(1, dtype=torch.float64)
    leaf = Leaf(p.name, 0 * one, variance * one, theta * one)
    return Field.of(Rooted.of(leaf, one[None, None]), Axes(p.shape(width), 0, None, 1, outputs=True))


def _plain(network: Architecture, p: Parameter, start: Tensor, rate: float) -> Tensor:
    other = dict(made(network.build, WIDTH, least=2**62, seed=1).named_parameters())[p.name]
    if rate or not torch.equal(other.detach().to(start), start):
        raise ValueError(
            f"{p.name!r} has no wide axis: the kernel of a network stays random in it at any width, as each of its numbers counts; "
            + (f"freeze it, mf.Architecture(build, frozen=({p.name!r},)), or leave it out" if rate else "leave it out")
        )
    return start


@dataclass(frozen=True, eq=False)
class Batch:
    """What is known of some samples: the node of their outputs, and of each sample alone"""

    node: Node
    within: Within
    outputs: tuple[int, ...]  # axes of the outputs of a sample but for the last
    averages: int  # over neurons that its forward takes


def batch(law: Law, calls: list[Call], x: Tensor, noise: float = 0.0, apart: bool = False) -> Batch:
    reading = Reading(calls, law.width, len(x), noise, apart)
    out = reading.run(law.module, law.parameters, x)
    if not isinstance(out, Field):
        raise ValueError(
            "the outputs are averages over neurons, which are the same for every draw: the kernels are zero; end the network with a "
            "readout, nn.Linear(n, outputs)"
        )
    shape = tuple(size for axis, size in enumerate(out.axes.shape) if axis not in (out.axes.wide, out.axes.sample))
    return Batch(out.node, reading.within, shape, reading.averages)


def module_kernels(
    network: Architecture, scaling: Scaling | Standard, x: Tensor, x2: Tensor | None, block: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """nngp and ntk (P, .., P2, ..) of float64 or integer inputs x and x2; .. the positions of outputs that have some"""
    calls = plan(network.build, x, lambda build, width: made(build, width, least=2**62).to(torch.float64))
    law = laws(network, scaling, WIDTH)
    size = _must_have_a_limit(network, scaling, law, calls, x)
    block = max(1, min(math.isqrt(AT_ONCE // size), len(x))) if block is None else checks.integer("block", block, 1)
    rows = [batch(law, calls, some) for some in _batches(x, block)]
    columns = rows if x2 is None else [batch(law, calls, some) for some in _batches(x2, block)]
    positions = rows[0].outputs
    n, m, q = len(x), len(x if x2 is None else x2), math.prod(positions)
    kernels = tuple(torch.empty(n, q, m, q, dtype=dtype) for _ in range(2))
    tables = _tables([*rows, *(columns if x2 is not None else [])], n * m * q)
    for i, left in enumerate(rows):
        for j, right in enumerate(columns):
            if x2 is None and j < i:
                continue
            found = Moments(left.within, right.within, tables=tables)(left.node, right.node, same=False)
            for kernel, part in zip(kernels, found, strict=True):
                one, other = slice(i * block, min((i + 1) * block, n)), slice(j * block, min((j + 1) * block, m))
                part = torch.zeros(q, q, 1, 1, dtype=torch.float64) if part is None else part
                part = part.permute(2, 0, 3, 1).expand(block, q, block, q)[: one.stop - one.start, :, : other.stop - other.start]
                if x2 is None and i == j:
                    part = (part + part.permute(2, 3, 0, 1)) / 2
                kernel[one, :, other] = part
                if x2 is None and i != j:
                    kernel[other, :, one] = part.permute(2, 3, 0, 1)
    shape = (n, *positions, m, *positions)
    nngp, ntk = (kernel.reshape(shape) for kernel in kernels)
    return nngp, ntk


def _batches(x: Tensor, block: int) -> Iterator[Tensor]:
    """All of one size, the last filled up with its own last sample"""
    for some in x.split(block):
        yield torch.cat([some, some[-1:].expand(block - len(some), *some.shape[1:])])


def _nodes(node: Node) -> Iterator[Node]:
    seen, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        yield one
        for name in ("child", "first", "second"):
            if isinstance(below := getattr(one, name, None), Node):
                todo.append(below)
        todo.extend(getattr(one, "terms", ()))


def _tables(batches: list[Batch], pairs: int) -> Tables:
    """Averages of activations without closed forms, for the variances of all samples"""
    found: dict[bytes, tuple[Pointwise, list[Tensor]]] = {}
    for some in batches:
        for node in _nodes(some.node):
            if isinstance(node, Pointwise) and not gaussian_averages(node.phi).exact:
                found.setdefault(node.key, (node, []))[1].append(some.within.variance(node).flatten())
    tables = {}
    for key, (node, variances) in found.items():
        p = torch.cat(variances)
        tables[key] = gaussian_averages(node.phi).prepare(p, p, pairs)
    return tables


def _must_have_a_limit(network: Architecture, scaling: Scaling | Standard, law: Law, calls: list[Call], x: Tensor) -> int:
    """Kernels of a few samples at two widths, and with averages over neurons as they fluctuate there; how many numbers the largest array
    holds for a pair of samples
    """
    some = x[torch.arange(FEW) % len(x)]

    def tried(width: int, noise: float) -> tuple[Batch, list[Tensor]]:
        own = law if width == WIDTH else laws(network, scaling, width)
        one = batch(own, calls, some, noise, apart=width == WIDTH and not noise)
        found = one.within.moments(one.node, one.node, False)
        return one, [torch.zeros(1) if k is None else k for k in found]

    (one, still), (_, wide_still) = tried(WIDTH, 0.0), tried(OTHER, 0.0)
    sizes = [part.abs().max().clamp_min(1e-300) for part in still]
    for here, there, size in zip(still, wide_still, sizes, strict=True):
        if not isinstance(scaling, Standard) and float((there - here).abs().max() / size) > 1e-6:
            raise ValueError(
                f"the network's kernel is another one at the widths {WIDTH} and {OTHER}: something in its forward depends on the number of "
                "neurons, which is left to the parameterization; sums over neurons need 1/n"
            )
    if one.averages:
        played = [(tried(WIDTH, 1.0)[1], still), (tried(OTHER, 1.0)[1], wide_still)]
        here, there = (
            max(float((a - b).abs().max() / s) for a, b, s in zip(*pair, sizes, strict=True)) for pair in played
        )
        if there > max(1e-9, 0.6 * here):
            raise ValueError(
                "averages over neurons, such as logits q.k, fluctuate in the limit and move the outputs: divide the sum over n neurons by n, "
                f"a = (q @ k.transpose(-1, -2) / q.shape[-1]).softmax(-1); with 1/sqrt(n) no kernel is known here, but {REMEDY}"
            )
    every = one.within.moments.known.values()
    return max((c.numel() // FEW for c, _ in every if c is not None), default=1)
