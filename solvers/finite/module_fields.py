"""Fields and derivatives of a real network by weight, found where its forward meets it (equations 88 and 90)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meanfield.network.making import written_for
from meanfield.network.roles import Description
from solvers.running.apart import Passes, averages, derivatives, rows_of
from solvers.running.skeleton import Skeleton
from solvers.running.tangents import Derivative
from solvers.running.watching import Watch, shells, watchable


def fields(
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    description: Description,
    x: Tensor,
    sigma: float,
    gradients: bool = True,
    averaged: Collection[str] = (),
) -> dict[str, Tensor]:
    """Of one network with these weights, over rows (samples, then positions) and calls: "Phi name" (n, N) the features that enter each
    hidden matrix and readout, "G name" (C n, N) the gradients (1 / sigma) df/dh that leave each hidden matrix and input weight, for each
    output. Calls that samples share, as of embedded positions, have the sum of their gradients. averaged: parameters of which the rows are
    averages over those of each sample (equation 88b).
    """
    entered = {p.name for p in description.having("hidden", "readout")}
    left = {p.name for p in description.having("input", "hidden")}
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    watch, f = _passed(skeleton, leaves, watchable(description), x, () if averaged and len(x) > 1 else None)
    straight = {
        call.name for call in watch.of(*entered, *left) if not call.turned
    }  # of a transpose only where it is alone
    calls = [call for call in watch.of(*left) if not call.turned or call.name not in straight]
    edges: list[Any] = [call.left for call in calls]
    with torch.enable_grad():
        outputs = f.flatten(1).sum(0).unbind()
    found: dict[str, list[Tensor]] = {}
    for call in watch.of(*entered):
        if call.turned and call.name in straight:
            continue
        found.setdefault(f"Phi {call.name}", []).append(call.features)
    for output in outputs if gradients else ():
        slopes = torch.autograd.grad(output, edges, retain_graph=True, allow_unused=True)
        for call, slope in zip(calls, slopes, strict=True):
            found.setdefault(f"G {call.name}", []).append(call.slopes(slope) / sigma)
    return {name: _joined(name, rows, len(x), len(outputs), averaged) for name, rows in found.items()}


def _joined(name: str, rows: list[Tensor], samples: int, outputs: int, averaged: Collection[str]) -> Tensor:
    kind, _, parameter = name.partition(" ")
    if parameter not in averaged:
        return torch.cat(rows)
    return averages(rows, samples, outputs if kind == "G" else 1)


def tangents(
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    description: Description,
    scales: Mapping[str, float],
    x: Tensor,
    passes: Passes,
) -> Iterator[tuple[int, dict[str, Derivative]]]:
    """(number, derivatives by name) of all outputs in the parameters that have a scale, by which they are multiplied"""
    names = watchable(description)
    for rows in rows_of(passes, len(x)):
        some = x[rows]
        samples = len(some) if passes == "batch" else 1
        own = {name: weights[name].detach().requires_grad_() for name in scales}
        copied = [name for name in own if name not in names and samples > 1]
        with torch.enable_grad():
            own |= {name: own[name].expand(samples, *own[name].shape) for name in copied}
        watch, f = _passed(skeleton, {**weights, **own}, names, some, copied if samples > 1 else None)
        for number, found in derivatives(f, samples, watch, own, scales, _slopes):
            yield rows.start * f[0].numel() + number, found


def _slopes(output: Tensor, targets: Sequence[Any]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(output, targets, retain_graph=True, allow_unused=True) if targets else ()


def _passed(
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    names: Sequence[str],
    x: Tensor,
    copied: Sequence[str] | None = None,
) -> tuple[Watch, Tensor]:
    """Its notes on the weights with these names, and outputs f; copied: which have a copy for each sample"""
    watch = Watch(None if copied is None else len(x))
    with torch.enable_grad(), written_for(skeleton.like):
        return watch, skeleton(shells(weights, names, watch, copied or ()), x)
