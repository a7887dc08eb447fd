"""Fields of a real network by matrix, features that enter and gradients that leave, found where its forward meets it (equation 88)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.running.skeleton import Skeleton, written_for

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass
class Watch:
    """Of each call of a matrix in turn its name, what entered and what left, as autograd knows it, and the axis of their neurons"""

    calls: list[tuple[str, Tensor, Tensor, int]] = field(default_factory=list)


class Watched(Tensor):
    """A weight that notes what it multiplies."""

    called: str
    watch: Watch

    @staticmethod
    def of(weight: Tensor, name: str, watch: Watch) -> Watched:
        watched = weight.detach().requires_grad_().as_subclass(Watched)
        watched.called, watched.watch = name, watch
        return watched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        weight = next((a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Watched)), None)
        with torch._C.DisableTorchFunctionSubclass():
            plain = [a.as_subclass(Tensor) if isinstance(a, Watched) else a for a in args]
            out = func(*plain, **(kwargs or {}))
        if weight is not None and (func is F.linear or func in _CONVOLUTIONS):
            axis = -1 if func is F.linear else 1 - weight.ndim
            weight.watch.calls.append((weight.called, args[0].detach(), out, axis))
        return out


def fields(
    skeleton: Skeleton, weights: Mapping[str, Tensor], hidden: tuple[str, ...], x: Tensor, sigma: float
) -> dict[str, Tensor]:
    """Of one network with these weights: "Phi name" (n, N) the features that enter each hidden matrix, "G name" (C n, N) the gradients
    (1 / sigma) df/dh that leave it for each output, over rows (samples, then positions) and calls
    """
    watch = Watch()
    given = {name: Watched.of(w, name, watch) if name in hidden else w for name, w in weights.items()}
    with torch.enable_grad(), written_for(skeleton.like):
        outputs = skeleton(given, x).flatten(1).sum(0).unbind()
        left = [out for _, _, out, _ in watch.calls]
        slopes = [torch.autograd.grad(f, left, retain_graph=True) for f in outputs]
    found: dict[str, list[Tensor]] = {}
    for name, entered, _, axis in watch.calls:
        found.setdefault(f"Phi {name}", []).append(_rows(entered, axis))
    for own in slopes:
        for (name, _, _, axis), slope in zip(watch.calls, own, strict=True):
            found.setdefault(f"G {name}", []).append(_rows(slope, axis) / sigma)
    return {name: torch.cat(rows) for name, rows in found.items()}


def _rows(values: Tensor, axis: int) -> Tensor:
    """(n, N) with the axis of neurons last"""
    return values.movedim(axis, -1).flatten(0, -2)
