"""NNGP and tangent kernel of any network written in torch, batch by batch over the samples (equations 97 to 99)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.kernels.field_moments import Moments, Tables, Within
from meanfield.kernels.field_nodes import REMEDY, Node, Pointwise
from meanfield.kernels.field_plan import Call, plan
from meanfield.kernels.field_reading import Field, Reading
from meanfield.kernels.field_rules import RULES
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.kernels.kernel_gradients import Differentiable
from meanfield.kernels.kernel_range import Ends, fields_in_range
from meanfield.kernels.module_laws import ModuleLaw, Readable, of_builder
from meanfield.network.architecture import Architecture
from meanfield.network.making import made
from meanfield.network.trial import tried
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard

AT_ONCE = 2**16  # numbers of an array by default: a handful of them stays in a processor's cache
FEW = 2  # samples of a trial
_TILE = 16  # samples whose derivatives are taken at once

Kernels = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """What is known of some samples: the node of their outputs, and of each sample alone. axis: of the outputs, along which these are
    independent; positions: the other axes of a sample; averages: over neurons that the forward pass takes."""

    node: Node
    within: Within
    axis: int
    positions: tuple[int, ...]
    averages: int


@dataclass(frozen=True)
class Size:
    """Numbers that a pair of samples needs: of the largest array, and of all"""

    largest: int
    together: int


def builder_kernels(network: Architecture, scaling: Scaling | Standard, x: Any, x2: Any, block: int | None) -> Kernels:
    """Of a network written in torch; see `nngp_and_ntk`"""
    network = network.sized((x if isinstance(x, Tensor) and x.ndim else checks.samples("x", x)).shape[-1])
    if array_input.tracked(x) or array_input.tracked(x2):
        return _differentiable(network, scaling, x, x2, block)
    first, second = checks.samples("x", x), None if x2 is None else checks.samples("x2", x2)
    if second is not None and (first.shape[1:] != second.shape[1:] or first.dtype != second.dtype):
        raise ValueError(
            f"x and x2 hold different samples: received shapes {tuple(first.shape)} of {first.dtype} and {tuple(second.shape)} of "
            f"{second.dtype}; give both of one shape and dtype: fill shorter sequences, or smaller images, up with zeros and multiply "
            "fields by a mask in the forward, (x != 0).to(h)"
        )
    if network.perceptron is not None:  # which takes integers for real numbers, not for tokens
        first, second = first.double(), None if second is None else second.double()
    tried(network, first)
    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    kernels, variances, ends = module_kernels(
        of_builder(network, scaling), first, second, block, array_input.precision(x), device
    )
    fields_in_range(variances, kernels, ends)
    return kernels


def _differentiable(network: Architecture, scaling: Scaling | Standard, x: Any, x2: Any, block: int | None) -> Kernels:
    """For inputs that autograd follows; ValueError where derivatives are not known"""
    first, second = checks.array("x", x), None if x2 is None else checks.array("x2", x2)
    readable, few = of_builder(network, scaling), checks.samples("x", first.detach())[:1]
    calls, law = _planned(readable, few), readable.law(readable.widths[0])

    def pairs(x: Tensor, x2: Tensor) -> Kernels:
        left, right = _read(law, calls, x), _read(law, calls, x2)
        if left.positions:
            raise ValueError("x requires gradients, which are not known for outputs with positions: give x.detach()")
        found = Moments(left.within, right.within)(left.node, right.node, same=False)
        nngp, ntk = (x.new_zeros(len(x), len(x2)) if k is None else k[0, 0].expand(len(x), len(x2)) for k in found)
        return nngp + 0 * x.sum(), ntk + 0 * x.sum()  # mean-field networks start at 0 whatever x is

    def values(x: Tensor, x2: Tensor | None) -> Kernels:
        return builder_kernels(network, scaling, x, x2, block)

    one = first.detach().double()[:1]
    pairs(*(one.clone().requires_grad_() for _ in range(2)))  # what has no derivative is told now
    return Differentiable.apply(values, pairs, _TILE, first, second)  # pyright: ignore[reportReturnType]


def outputs_axis(network: Architecture, scaling: Scaling | Standard, x: Tensor) -> int:
    """Of the outputs of samples x, the one along which they are independent of each other; all others are positions"""
    readable, few = of_builder(network, scaling), x[:1]
    return _read(readable.law(readable.widths[0]), _planned(readable, few), few).axis


def _planned(network: Readable, x: Tensor) -> list[Call]:
    make = lambda build, width: made(build, width, least=2**62).to(torch.float64)  # noqa: E731
    return plan(network.build, x.cpu(), make, network.unit)


def module_kernels(
    network: Readable, x: Tensor, x2: Tensor | None, block: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Kernels, list[Tensor], Ends]:
    """nngp and ntk (P, .., P2, ..) of float64 or integer inputs x and x2, .. the positions of outputs that have some; the variances of what
    enters each activation, one after the other, over all samples; and what tells kernels that vanish"""
    calls = _planned(network, x)
    with device:
        return _on_device(network, calls, x.to(device), None if x2 is None else x2.to(device), block, dtype)


def _on_device(
    network: Readable, calls: list[Call], x: Tensor, x2: Tensor | None, block: int | None, dtype: torch.dtype
) -> tuple[Kernels, list[Tensor], Ends]:
    law = network.law(network.widths[0])
    size, ends = _tried(network, law, calls, x)
    n, m = len(x), len(x if x2 is None else x2)
    block = min(max(1, math.isqrt(AT_ONCE // size.largest)) if block is None else checks.integer("block", block, 1), n)
    checks.memory(
        f"the kernels between {n} and {m} samples",
        2.0 * n * m * dtype.itemsize + 16.0 * block**2 * size.together,
        f"give a smaller block, e.g. block={max(1, block // 2)}, or fewer samples at a time",
    )
    rows = [_read(law, calls, some) for some in _batches(x, block)]
    columns = rows if x2 is None else [_read(law, calls, some) for some in _batches(x2, block)]
    every = rows if x2 is None else [*rows, *columns]
    tables, variances = _prepared(every, n * m)
    kernels, own = _filled(rows, columns, tables, (n, m), block, dtype)
    return kernels, variances, ends if x2 is not None else replace(ends, kernels=own)


def _filled(
    rows: list[Batch], columns: list[Batch], tables: Tables, sizes: tuple[int, int], block: int, dtype: torch.dtype
) -> tuple[Kernels, tuple[Tensor | None, ...]]:
    """Both kernels, and of symmetric ones the diagonals in float64"""
    (n, m), positions = sizes, rows[0].positions
    q, symmetric = math.prod(positions), rows is columns
    kernels = [torch.empty(n, q, m, q, dtype=dtype) for _ in range(2)]
    own: list[list[Tensor]] = [[], []]
    for i, left in enumerate(rows):
        for j, right in enumerate(columns):
            if symmetric and j < i:
                continue
            one, other = (slice(k * block, min((k + 1) * block, size)) for k, size in zip((i, j), sizes, strict=True))
            found = Moments(left.within, right.within, tables=tables)(left.node, right.node, same=False)
            for kernel, part, diagonal in zip(kernels, found, own, strict=True):
                if symmetric and i == j and part is not None:
                    diagonal.append(part.diagonal(0, -2, -1).diagonal(0, 0, 1).flatten())
                if part is None:
                    part = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
                part = part.permute(2, 0, 3, 1).expand(block, q, block, q)
                part = part[: one.stop - one.start, :, : other.stop - other.start]
                if symmetric and i == j:
                    part = (part + part.permute(2, 3, 0, 1)) / 2
                kernel[one, :, other] = part
                if symmetric and i != j:
                    kernel[other, :, one] = part.permute(2, 3, 0, 1)
    nngp, ntk = (kernel.reshape(n, *positions, m, *positions) for kernel in kernels)
    return (nngp, ntk), tuple(torch.cat(parts) if parts else None for parts in own)


def _read(law: ModuleLaw, calls: list[Call], x: Tensor, noise: float = 0.0, apart: bool = False) -> Batch:
    reading = Reading(RULES, calls, law.width, len(x), noise, apart)
    out = reading.run(law.module, law.parameters, x)
    if not isinstance(out, Field):
        raise ValueError(
            "the outputs are averages over neurons, which are the same for every draw: the kernels are zero; end the network with a "
            "readout, nn.Linear(n, outputs)"
        )
    axes = out.axes
    positions = tuple(size for axis, size in enumerate(axes.shape) if axis not in (axes.wide, axes.sample))
    return Batch(out.node, reading.within, axes.wide, positions, reading.averages)


def _batches(x: Tensor, block: int) -> Iterator[Tensor]:
    """All of one size, the last filled up with its own last sample"""
    for some in x.split(block):
        yield torch.cat([some, some[-1:].expand(block - len(some), *some.shape[1:])])


def _prepared(batches: list[Batch], pairs: int) -> tuple[Tables, list[Tensor]]:
    """Averages of activations without closed forms, for the variances of all samples; and the variances by activation"""
    found: dict[bytes, tuple[Pointwise, list[Tensor]]] = {}
    variances = [some.within.at_activations(some.node) for some in batches]
    for some in variances:
        for node, p in some:
            if not gaussian_averages(node.phi).exact:
                found.setdefault(node.key, (node, []))[1].append(p.flatten())
    tables = {
        key: gaussian_averages(node.phi).prepare(torch.cat(p), torch.cat(p), pairs) for key, (node, p) in found.items()
    }
    return tables, [torch.cat([p.flatten() for _, p in one]) for one in zip(*variances, strict=True)]


def _tried(network: Readable, law: ModuleLaw, calls: list[Call], x: Tensor) -> tuple[Size, Ends]:
    """The sizes of what a few samples need, and their own kernels; ValueError for networks whose kernels depend on the width, by the
    parameterization of their forward, or by averages over neurons that fluctuate as they do at a finite width"""
    some = x[torch.arange(FEW) % len(x)]

    def kernels(width: int, noise: float) -> tuple[Batch, list[Tensor]]:
        own = law if width == law.width else network.law(width)
        one = _read(own, calls, some, noise, apart=own is law and not noise)
        found = one.within.moments(one.node, one.node, same=False)
        return one, [torch.zeros(1) if k is None else k for k in found]

    small, large = network.widths
    one, still = kernels(small, 0.0)
    if network.exact or one.averages:
        _, other = kernels(large, 0.0)
        sizes = [part.abs().max().clamp_min(1e-300) for part in still]
        if network.exact and _apart(still, other, sizes) > 1e-6:
            raise ValueError(
                f"the network's kernel is another one at the widths {small} and {large}: something in its forward depends on the "
                "number of neurons, which is left to the parameterization; sums over neurons need 1/n"
            )
        if one.averages:
            here, there = (_apart(kernels(width, 1.0)[1], k, sizes) for width, k in ((small, still), (large, other)))
            if there > max(1e-9, 0.6 * here):
                raise ValueError(
                    "averages over neurons, such as logits q.k, fluctuate in the limit and move the outputs: divide the sum over n "
                    "neurons by n, a = (q @ k.transpose(-1, -2) / q.shape[-1]).softmax(-1); with 1/sqrt(n) no kernel is known here, but "
                    + REMEDY
                )
    every = [c for c, _ in one.within.moments.known.values() if c is not None]
    sizes, smallest = (
        [c.numel() // FEW for c in every],
        min((c.abs().max() for c in every if c.any()), default=math.inf),
    )
    ends = Ends(one.within.moments(one.node, one.node, same=True), float(smallest))
    return Size(max(sizes, default=1) or 1, sum(sizes) or 1), ends


def _apart(some: list[Tensor], others: list[Tensor], sizes: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / size) for a, b, size in zip(some, others, sizes, strict=True))
