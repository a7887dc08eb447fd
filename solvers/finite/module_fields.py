"""Fields and derivatives of a real network by weight, found where its forward meets it (equations 88 and 90)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meanfield.network.roles import Description
from solvers.running.skeleton import Skeleton, written_for
from solvers.running.tangents import Derivative, beside
from solvers.running.watching import Watch, Watched, watchable


def fields(
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    description: Description,
    x: Tensor,
    sigma: float,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """Of one network with these weights, over rows (samples, then positions) and calls: "Phi name" (n, N) the features that enter each
    hidden matrix and readout, "G name" (C n, N) the gradients (1 / sigma) df/dh that leave each hidden matrix and input weight, for each
    output. Calls that samples share, as of embedded positions, have the sum of their gradients.
    """
    entered = {p.name for p in description.having("hidden", "readout")}
    left = {p.name for p in description.having("input", "hidden")}
    watch, f = _passed(skeleton, weights, watchable(description), x)
    calls = watch.of(*left)
    edges: list[Any] = [call.left for call in calls]
    with torch.enable_grad():
        outputs = f.flatten(1).sum(0).unbind()
    found: dict[str, list[Tensor]] = {}
    for call in watch.of(*entered):
        found.setdefault(f"Phi {call.name}", []).append(call.features)
    for output in outputs if gradients else ():
        slopes = torch.autograd.grad(output, edges, retain_graph=True, allow_unused=True)
        for call, slope in zip(calls, slopes, strict=True):
            found.setdefault(f"G {call.name}", []).append(call.slopes(slope) / sigma)
    return {name: torch.cat(rows) for name, rows in found.items()}


def derivatives(
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    description: Description,
    scales: Mapping[str, float],
    passes: Sequence[Tensor],
) -> Iterator[dict[str, Derivative]]:
    """Of each output of each sample in turn, in the parameters that have a scale, by which they are multiplied

    passes: samples that go through the network together.
    """
    names = watchable(description)
    for x in passes:
        leaves = {name: w.detach().requires_grad_(name in scales) for name, w in weights.items()}
        watch, f = _passed(skeleton, leaves, names, x)
        calls = [call for call in watch.of(*scales) if call.name not in watch.otherwise]
        known = {call.name for call in calls}
        others = [name for name in scales if name not in known]
        targets: list[Any] = [call.left for call in calls] + [leaves[name] for name in others]
        with torch.enable_grad():
            outputs = f.flatten().unbind()
        for output in outputs:
            slopes = torch.autograd.grad(output, targets, retain_graph=True, allow_unused=True) if targets else ()
            found = zip(calls, slopes[: len(calls)], strict=True)
            yield beside((call.name, *call.factors(g, scales[call.name])) for call, g in found) | {
                name: Derivative(torch.atleast_1d(g * scales[name]))
                for name, g in zip(others, slopes[len(calls) :], strict=True)
                if g is not None
            }


def _passed(skeleton: Skeleton, weights: Mapping[str, Tensor], names: Sequence[str], x: Tensor) -> tuple[Watch, Tensor]:
    watch = Watch()
    given = {name: Watched.of(w, name, watch) if name in names else w for name, w in weights.items()}
    with torch.enable_grad(), written_for(skeleton.like):
        return watch, skeleton(given, x)
