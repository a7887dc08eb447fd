"""What a pass of a module in the limit shows: kernels by weight, as factors, and derivatives of its outputs (equations 88 and 90)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from meanfield.network.roles import Description
from meanfield.scaling.units import Unit
from solvers.dmft.basis import Basis
from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.stand_in import Record, Trace, Use
from solvers.running.apart import averages, derivatives
from solvers.running.failures import in_layer
from solvers.running.tangents import Derivative, Factors
from solvers.running.watching import Watch, watchable


@dataclass
class LimitPass:
    """Outputs f (n, ..., C) of a pass, targets y of its training samples, which are first, and what its backward pass needs."""

    f: Tensor
    y: Tensor
    leaves: dict[str, Tensor]  # theta of the module's own parameters, which autograd follows
    shapes: list[torch.Size]  # of L
    record: Record
    own: dict[
        str, Tensor
    ]  # their weights, with a copy for each sample of those that no layer multiplies by, if these are told apart
    watch: Watch  # of the module's own weights

    def slopes(self, of: Tensor, targets: Iterable[Any], again: bool) -> tuple[Tensor | None, ...]:
        """Derivatives of a number in the targets; the record then has the traces. again: whether the pass will be asked for others"""
        self.record.traces.clear()
        return torch.autograd.grad(of, (*targets, self.record.anchor), retain_graph=again, allow_unused=True)[:-1]


class Ends:
    """Bases of what no matrix needs: features that enter readouts, gradients that leave input weights. together: fields that extend one
    at a time.
    """

    def __init__(self, description: Description, width: int, basis: Callable[[int], Basis], together: int) -> None:
        readouts, inputs = description.having("readout"), description.having("input")
        self.features = {p.name: basis(p.below.at(width)) for p in readouts if p.name in watchable(readouts)}
        self.gradients = {p.name: basis(p.above.at(width)) for p in inputs if p.name in watchable(inputs)}
        self.width, self.together = width, together

    def growing(self) -> dict[str, Any]:
        """By name"""
        found = {f"features_{name}": basis.fields for name, basis in self.features.items()}
        return found | {f"gradients_{name}": basis.fields for name, basis in self.gradients.items()}

    def seen(self, kind: Literal["features", "gradients"], name: str, fields: Tensor) -> Tensor:
        """(K, n) coefficients of fields (n, S) of a weight"""
        basis = getattr(self, kind)[name]
        with in_layer(f"the layer {name.removesuffix('.weight')!r}", self.width):
            for some in fields.split(self.together):
                basis.reveal(some)
        return basis.coefficients(fields)


def noted(
    passed: LimitPass,
    layers: Mapping[str, InfiniteDense],
    ends: Ends,
    sigma: float,
    averaged: Collection[str] = (),
) -> dict[str, Tensor]:
    """Coefficients of the features that enter each matrix and readout, "Phi name" (K, n), and of the gradients (1 / sigma) df/dh that leave
    each matrix and input weight for each of C outputs, "G name" (J, C n)

    Of a matrix that is also met as its transpose those of the matrix alone. averaged: parameters of which they are averages over the rows
    of each sample (equation 88b), of a filter with a stride each phase's part of these.
    """
    straight = _straight(passed)
    uses = {i: use for i, use in enumerate(passed.record.uses) if use.turned != straight.get(use.name, False)}
    found: dict[str, list[Tensor]] = {}
    for use in uses.values():
        found.setdefault(f"Phi {use.name}", []).append(use.c)
    for call in passed.watch.of(*ends.features):
        found.setdefault(f"Phi {call.name}", []).append(ends.seen("features", call.name, call.features))
    if passed.f.requires_grad:
        with torch.enable_grad():
            outputs = passed.f[: len(passed.y)].flatten(1).sum(0).unbind()
        left = passed.watch.of(*ends.gradients)
        for output in outputs:
            slopes = passed.slopes(output, [call.left for call in left], True)
            traces = {trace.use: trace for trace in passed.record.traces}
            for i, use in uses.items():
                found.setdefault(f"G {use.name}", []).append(_gradients(use, traces.get(i), layers[use.name], sigma))
            for call, slope in zip(left, slopes, strict=True):
                d = ends.seen("gradients", call.name, call.slopes(slope) / sigma)
                found.setdefault(f"G {call.name}", []).append(d)
    own = {name: parts for name, parts in found.items() if _parameter(name) in averaged}
    return {name: _beside(parts) for name, parts in found.items()} | _averages(own, passed)


def _averages(found: Mapping[str, Sequence[Tensor]], passed: LimitPass) -> dict[str, Tensor]:
    samples, outputs = len(passed.y), passed.f[0].numel()
    rows = Counter[str]()  # of a sample that enter a matrix, in all phases of a filter
    for name, parts in found.items():
        if name.startswith("Phi"):
            rows[_parameter(name)] += sum(part.shape[1] for part in parts) // samples
    made = {}
    for name, parts in found.items():
        features, calls = name.startswith("Phi"), [part.T for part in _padded(parts)]
        made[name] = averages(calls, samples, *((1, rows[_parameter(name)]) if features else (outputs,))).T
    return made


def _parameter(name: str) -> str:
    """ "Phi conv.weight[0]", a phase, is of conv.weight"""
    return name.partition(" ")[2].partition("[")[0]


def tangents(
    passes: Iterable[tuple[int, int, LimitPass]], layers: Mapping[str, InfiniteDense], units: Mapping[str, Unit]
) -> Iterator[tuple[int, dict[str, Derivative]]]:
    """(number, derivatives by name) of all outputs in what is learned and in the module's own parameters, times the roots of their rates

    passes: the first sample of each, for how many samples it tells derivatives apart, and itself.
    """
    roots = {name: math.sqrt(unit.rate) for name, unit in units.items()}
    learned = {part: roots[part.partition("[")[0]] / math.sqrt(q.above.samples) for part, q in layers.items()}
    for first, samples, passed in passes:

        def slopes(output: Tensor, targets: Sequence[Any], passed: LimitPass = passed) -> Sequence[Tensor | None]:
            return passed.slopes(output, targets, True)

        def matrices(passed: LimitPass = passed) -> list[Factors]:
            traces = [t for t in passed.record.traces if learned[t.name]]
            return [(t.name, t.d * (t.factor * learned[t.name]), t.seen) for t in traces]

        scales = {name: units[name].multiplier * roots[name] for name in passed.own}
        for number, found in derivatives(passed.f, samples, passed.watch, passed.own, scales, slopes, matrices):
            yield first * passed.f[0].numel() + number, found


def bases(passed: LimitPass, layers: Mapping[str, InfiniteDense], ends: Ends) -> dict[str, Basis]:
    """Those to which the coefficients of `noted` belong, by their names: of a matrix met as its transpose alone the sides are exchanged"""
    found = {f"Phi {name}": basis for name, basis in ends.features.items()}
    found |= {f"G {name}": basis for name, basis in ends.gradients.items()}
    for name, straight in _straight(passed).items():
        below, above = layers[name].e, layers[name].f
        found |= {f"Phi {name}": below if straight else above, f"G {name}": above if straight else below}
    return found


def _straight(passed: LimitPass) -> dict[str, bool]:
    """Of each matrix whether it is met other than as its transpose"""
    found: dict[str, bool] = {}
    for use in passed.record.uses:
        found[use.name] = found.get(use.name, False) or not use.turned
    return found


def _gradients(use: Use, trace: Trace | None, layer: InfiniteDense, sigma: float) -> Tensor:
    """(J, n) of what left at a use, of an output that need not depend on it"""
    if trace is None:
        return use.c.new_zeros(0, use.images)
    if use.turned:
        return trace.seen / (sigma * layer.below.samples)
    return trace.d / (sigma * layer.above.samples)


def _beside(parts: Sequence[Tensor]) -> Tensor:
    """(K, n) of all, zeros below where a basis was still smaller"""
    return torch.cat(_padded(parts), 1)


def _padded(parts: Sequence[Tensor]) -> list[Tensor]:
    most = max(map(len, parts))
    return [F.pad(part, (0, 0, 0, most - len(part))) for part in parts]
