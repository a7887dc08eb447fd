"""The tangent kernel from the derivatives of one output after the other, which take turns in memory (equation 90)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 2**29  # bytes of derivatives that are kept at a time
_BLOCK = 2**21  # numbers of a block of products


@dataclass(frozen=True)
class Derivative:
    """Of an output in a weight: left right^T of left (a, R) and right (b, R), or the columns of a one-hot right given by R integers;
    without a right left (a, ..) itself.
    """

    left: Tensor
    right: Tensor | None = None

    @property
    def factored(self) -> bool:
        """Whether its inner products take less work from the factors than from the entries"""
        if self.right is None:
            return False
        a, rank = self.left.shape
        return self.right.ndim == 1 or rank**2 * (a + len(self.right)) <= a * len(self.right)

    def share(self, turn: int, turns: int, factored: bool) -> Derivative:
        """Its rows turn, turn + turns, ..; entries or factors"""
        left = self.left[turn::turns]
        if self.right is None or factored:
            return replace(self, left=left.clone() if turns > 1 else left)
        return Derivative(left @ self.right.T)


Derivatives = Callable[[], Iterator[tuple[int, Mapping[str, Derivative]]]]
Factors = tuple[str, Tensor, Tensor]  # of a weight by name


def tangent_kernel(derivatives: Derivatives, outputs: int, like: Tensor) -> Tensor:
    """(outputs, outputs) inner products of the derivatives of any two outputs, through which `derivatives` goes, with the outputs'
    numbers, as often as memory asks

    The roots of the rates are in the derivatives. Some may have fewer rows and columns: zeros are left out.
    """
    _, first = next(derivatives())
    factored = {name: own.factored for name, own in first.items()}
    held = sum(_numbers(own, factored[name]) for name, own in first.items()) * outputs * like.element_size()
    turns = math.ceil(held / MOST) or 1
    total = like.new_zeros(outputs, outputs, dtype=torch.float64)
    for turn in range(turns):
        kept: dict[str, list[tuple[int, Derivative]]] = {}
        for output, every in derivatives():
            for name, own in every.items():
                factors = factored.setdefault(name, own.factored)
                if turn < len(own.left):
                    kept.setdefault(name, []).append((output, own.share(turn, turns, factors)))
        for every in kept.values():
            _add(total, sorted(every, key=lambda pair: pair[0]))
    return (total.triu() + total.triu(1).T).to(like)


def _numbers(one: Derivative, factored: bool) -> int:
    if one.right is None or factored:
        return one.left.numel()
    return len(one.left) * len(one.right)


def _add(total: Tensor, every: Sequence[tuple[int, Derivative]]) -> None:
    """Their inner products onto the upper half of `total`"""
    most = [max(d.left.shape[0] for _, d in every), max(_columns(d) for _, d in every)]
    size = max(_numbers(d, True) + (0 if d.right is None else d.right.numel()) for _, d in every)
    rank = max(1 if d.right is None else d.left.shape[1] for _, d in every)
    count = max(1, min(_BLOCK // size, math.isqrt(_BLOCK) // rank))
    blocks = [every[i : i + count] for i in range(0, len(every), count)]
    for i, one in enumerate(blocks):
        left, right, own = _joined(one, most)
        for two in blocks[i:]:
            other_left, other_right, other = _joined(two, most)
            products = torch.einsum("iar,jas->irjs", left, other_left)
            if right is not None and other_right is not None:
                products = products * _of_rights(right, other_right)
            total[own[:, None], other] += products.sum((1, 3), dtype=torch.float64)


def _joined(some: Sequence[tuple[int, Derivative]], most: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor]:
    """(n, a, R) and (n, b, R) of all, or of derivatives by their entries (n, a b, 1) and None; the numbers of their outputs"""
    (a, b), where = most, torch.tensor([output for output, _ in some])
    if some[0][1].right is None:
        entries = [F.pad(d.left.reshape(len(d.left), -1), (0, b - _columns(d), 0, a - len(d.left))) for _, d in some]
        return torch.stack(entries).reshape(len(some), -1, 1), None, where
    rank = max(d.left.shape[1] for _, d in some)
    left = torch.stack([F.pad(d.left, (0, rank - d.left.shape[1], 0, a - len(d.left))) for _, d in some])
    rights = [d.right for _, d in some if d.right is not None]
    high = [(0, rank - r.shape[-1]) + (() if r.ndim == 1 else (0, b - len(r))) for r in rights]
    return left, torch.stack([F.pad(r, pad) for r, pad in zip(rights, high, strict=True)]), where


def _of_rights(one: Tensor, two: Tensor) -> Tensor:
    """(n, R, n', R') inner products of columns, (n, b, R) and (n', b, R), or (n, R) of one-hot ones"""
    if one.ndim == 2:
        return one[:, :, None, None] == two
    return torch.einsum("ibr,jbs->irjs", one, two)


def _columns(one: Derivative) -> int:
    """b"""
    if one.right is None:
        return one.left[0].numel()
    return len(one.right) if one.right.ndim > 1 else 0


def beside(names: Iterable[Factors]) -> dict[str, Derivative]:
    """One derivative of each weight by name, from the factors (a, R) and (b, R) of its calls"""
    lefts: dict[str, list[Tensor]] = {}
    rights: dict[str, list[Tensor]] = {}
    for name, left, right in names:
        lefts.setdefault(name, []).append(left)
        rights.setdefault(name, []).append(right)
    return {name: Derivative(_grown(lefts[name]), _grown(rights[name])) for name in lefts}


def _grown(parts: Sequence[Tensor]) -> Tensor:
    """All columns, with zeros below where there are fewer rows"""
    if parts[0].ndim == 1 or len(parts) == 1:
        return torch.cat(list(parts), -1) if len(parts) > 1 else parts[0]
    most = max(map(len, parts))
    return torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in parts], 1)
