"""Weights that note what they multiply and what leaves them, where a module's forward meets them (equations 88 and 90)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map

from meanfield.network.roles import Parameter
from solvers.running.spread import Spread

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


@dataclass(frozen=True)
class Call:
    """One use of a weight: what entered, where autograd finds what left, and the axis of their neurons."""

    name: str
    entered: Tensor
    left: GradientEdge | None  # None in passes that nothing will differentiate
    like: Tensor  # zeros of the shape of what left
    axis: int = -1
    geometry: tuple[Any, ...] | None = None  # of a filter: its size, stride, padding and dilation
    nothing: int | None = None  # of an embedding: the number that stands for no token
    turned: bool = False  # x @ weight

    @property
    def features(self) -> Tensor:
        """(n, N) what entered, over rows (samples, then positions); of a filter at the positions that some output sees"""
        return rows(self.entered if self.geometry is None else _seen(self.entered, *self.geometry), self.axis)

    @cached_property
    def multiplied(self) -> Tensor:
        """(fan-in, n) what the weight multiplied to give each row of what left; of an embedding the n tokens"""
        if not self.entered.is_floating_point():
            return self.entered.flatten()
        return self.features.T if self.geometry is None else patches(self.entered, *self.geometry)

    def factors(self, slope: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """(a, n) and (b, n): scale times the derivative of an output in the weight (a, b) is the product of the one with the other's
        transpose; of an embedding (N, n) and tokens
        """
        g = self.slopes(slope).T * scale
        return (self.multiplied, g) if self.turned else (g, self.multiplied)

    def slopes(self, slope: Tensor | None) -> Tensor:
        """(n, N) the derivatives of an output in what left, over rows; None for an output that does not depend on it"""
        slope = self.like if slope is None else slope
        if self.nothing is not None:
            slope = slope * (self.entered != self.nothing)[..., None]
        return rows(slope, self.axis)


@dataclass
class Watch:
    """The calls of each weight in turn; `otherwise`: weights that something else was done with. samples: of passes in which what all
    samples share is to be spread over so many.
    """

    samples: int | None = None
    calls: list[Call] = field(default_factory=list)
    otherwise: set[str] = field(default_factory=set)

    def of(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.name in names]


class Watched(Tensor):
    """A shell around a weight: what torch does with it is done with the weight, and noted."""

    called: str
    weight: Tensor
    watch: Watch

    @staticmethod
    def of(weight: Tensor, name: str, watch: Watch) -> Watched:
        watched = torch.empty(weight.shape, dtype=weight.dtype, device="meta").as_subclass(Watched)
        watched.called, watched.weight, watched.watch = name, weight, watch
        return watched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own: list[Watched] = []

        def inside(value: Any) -> Any:
            if not isinstance(value, Watched):
                return value
            own.append(value)
            return value.weight

        plain, named = tree_map(inside, (tuple(args), dict(kwargs or {})))
        out = func(*plain, **named)
        if len(own) == 1 and len(args) > 1 and isinstance(args[1], Watched):
            use = use_of(func, own[0], args, named)
            if use is not None:
                return _noted(own[0], args[0].detach(), out, use)
        if any(isinstance(o, Tensor) for o in (out if isinstance(out, (tuple, list)) else (out,))):
            own[0].watch.otherwise.update(weight.called for weight in own)
        return out


def watchable(parameters: Iterable[Parameter]) -> tuple[str, ...]:
    """The names of the weights"""
    return tuple(p.name for p in parameters if p.kind != "own" or p.role == "hidden")


def shells(
    weights: Mapping[str, Tensor], names: Iterable[str], watch: Watch, copied: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The parameters of a pass, in shells those with these names and those that are copies, one for each sample"""
    noted = {name: Watched.of(weights[name], name, watch) for name in names if name in weights}
    return {**weights, **noted, **{name: Spread.of(weights[name]) for name in copied}}


def use_of(func: Any, weight: Watched, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a layer uses its weight, in fields of `Call`; None for what is no layer"""
    if func in _CONVOLUTIONS:
        stride, padding, dilation, groups = _given(args[3:], options, stride=1, padding=0, dilation=1, groups=1)
        geometry = (tuple(weight.shape[2:]), stride, padding, dilation)
        return {"axis": 1 - weight.ndim, "geometry": geometry} if groups == 1 else None
    if func is F.embedding:
        nothing, most, _, by_frequency, _ = _given(
            args[2:], options, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
        )
        nothing = nothing if nothing is None or nothing >= 0 else len(weight) + nothing
        return {"nothing": nothing} if most is None and not by_frequency else None
    if func is F.linear:
        return {}
    return {"turned": True} if func in _PRODUCTS and weight.ndim == 2 else None


def _noted(weight: Watched, entered: Tensor, out: Tensor, use: Mapping[str, Any]) -> Tensor:
    """What left, with the call in the watch; embeddings that all samples share are spread over these"""
    watch, shared = weight.watch, None
    if torch.is_grad_enabled() and not out.requires_grad:
        out = out + out.new_zeros(()).requires_grad_()  # no leaf, since the module may overwrite it
    if watch.samples is not None and not entered.is_floating_point() and len(entered) != watch.samples:
        shared = out = out.expand(watch.samples, *out.shape)
        entered = entered.expand(watch.samples, *entered.shape)
    left = get_gradient_edge(out) if out.requires_grad else None
    watch.calls.append(Call(weight.called, entered, left, out.new_zeros(()).expand(out.shape), **use))
    return out if shared is None else Spread.of(shared)


def _given(places: Sequence[Any], names: Mapping[str, Any], **usual: Any) -> list[Any]:
    """The values of these arguments, given by place or by name"""
    return [places[i] if i < len(places) else names.get(name, value) for i, (name, value) in enumerate(usual.items())]


def rows(values: Tensor, axis: int) -> Tensor:
    """(n, N) with the axis of neurons last"""
    moved = values.movedim(axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def patches(x: Tensor, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Tensor:
    """(fan-in, n) what a filter sees at each place"""
    sides = _sides(kernel, stride, padding, dilation)
    x, dims = F.pad(x, [side for _, _, before, after, _ in reversed(sides) for side in (before, after)]), len(kernel)
    first = x.ndim - dims
    for i, (span, s, _, _, d) in enumerate(sides):
        x = x.unfold(first + i, span + 1, s)[..., ::d]
    return x.movedim(first - 1, first - 1 + dims).flatten(-dims - 1).flatten(0, -2).T  # batch, places, channels, filter


def _seen(x: Tensor, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Tensor:
    """x without the positions that no output of a filter sees"""
    for axis, (span, s, before, after, d) in enumerate(_sides(kernel, stride, padding, dilation), x.ndim - len(kernel)):
        size = x.shape[axis]
        first = torch.arange(0, size + before + after - span, s) - before
        places = (first[:, None] + torch.arange(0, span + 1, d)).unique()
        seen = places[(places >= 0) & (places < size)]
        x = x if len(seen) == size else x.index_select(axis, seen.to(x.device))
    return x


def _sides(kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> list[tuple[int, int, int, int, int]]:
    """In each dimension what a filter spans beyond its first offset, its stride, the padding before and after, its dilation"""
    dims = len(kernel)
    strides, dilations = _each(stride, dims), _each(dilation, dims)
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    before = [span // 2 for span in spans] if padding == "same" else _each(0 if padding == "valid" else padding, dims)
    after = [span - half for span, half in zip(spans, before, strict=True)] if padding == "same" else before
    return list(zip(spans, strides, before, after, dilations, strict=True))


def _each(value: Any, dims: int) -> list[int]:
    many = [value] * dims if isinstance(value, int) else list(value)
    return many * dims if len(many) == 1 else many
