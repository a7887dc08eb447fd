"""Arrays of moments between points: sums over offsets, folds and parts, None standing for zeros (equation 97)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Part = Tensor | None
Both = tuple[Part, Part]  # C, Theta


def zeros(p: Tensor, q: Tensor, own: bool, same: bool) -> Tensor:
    points = (len(p),) if same else (len(p), len(q))
    batch = (max(p.shape[1], q.shape[1]),) if own else (p.shape[1], q.shape[1])
    return torch.zeros(*points, *batch, dtype=torch.float64)


def itself(x: Tensor, own: bool, same: bool) -> Tensor:
    """The view (points, b) of what each point of each sample has with itself"""
    if own:
        return x.diagonal(0, 0, 1).T
    return x.diagonal(0, -2, -1) if same else x.diagonal(0, -2, -1).diagonal(0, 0, 1).T


def mean_of_folds(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    out = sum(x[a][:, b] for a, b in zip(first, second, strict=True))
    return out / len(first)  # type: ignore[operator]


def parts(x: Part, parts: int, across: Part) -> Part:
    """(points parts, points' parts, ..): x within each part, `across` between two"""
    like = x if x is not None else across
    if like is None:
        return None
    out = like.new_zeros(len(like), parts, like.shape[1], parts, *like.shape[2:])
    if across is not None:
        out += across[:, None, :, None]
    for part in range(parts):
        out[:, part, :, part] = 0 if x is None else x
    return out.flatten(2, 3).flatten(0, 1)


def weighted(x: Tensor, weight: Tensor | None, batch: int) -> Tensor:
    """x (points, ..) times weights (b, points)"""
    if weight is None:
        return x
    shape = [1] * x.ndim
    shape[0], shape[batch] = weight.shape[1], len(weight)
    return x * weight.T.reshape(shape)


def diagonal(parts: Both) -> Both:
    return each(lambda x: x.diagonal(0, 0, 1).movedim(-1, 0), parts)


def each(function: Callable[[Tensor], Tensor], parts: Both) -> Both:
    first, second = (None if x is None else function(x) for x in parts)
    return first, second


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def scaled(x: Part, number: float) -> Part:
    return None if x is None or number == 0 else x * number


def times(x: Part, y: Part) -> Part:
    return None if x is None or y is None else x * y


def added(parts: Iterable[Part]) -> Part:
    out = None
    for part in parts:
        if part is not None:
            out = part if out is None else out + part
    return out


def sums(parts: Iterable[Both]) -> Both:
    many = list(parts)
    return added(c for c, _ in many), added(theta for _, theta in many)
