"""Places: which input position each offset of a filter sees from each output position, of a convolution in any number of dimensions.

With a stride, the offsets fall into phases: those of different phases never see the same position (equation 83).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """Tables of positions for the offsets of a phase, one past the last for none: of the padding, or of positions that no output sees."""

    used: Tensor | None  # the input positions that the phase sees; None for all
    reads: Tensor  # (O, outputs): the input position, a number within `used`
    writes: Tensor  # (O, inputs): the output position that sees an input at this offset


@dataclass(frozen=True, eq=False)
class Convolution:
    """The places of each phase, in the order of `phases`, and the shape of the outputs in space."""

    places: tuple[Places, ...]
    space: tuple[int, ...]


def by_phase(rows: Tensor, where: Convolution) -> Sequence[Tensor]:
    """What each phase sees (B p, n) of rows (B, positions, n)"""
    used = [own.used for own in where.places]
    return [rows.flatten(0, 1)] if used == [None] else _ByPhase.apply(rows, *used)  # type: ignore[return-value]


class _ByPhase(torch.autograd.Function):
    """No two phases see the same position, so that gradients are put in their places and need not be added."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *used: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.used, ctx.shape = used, rows.shape
        rows = rows.contiguous()  # once for all
        return tuple(rows.index_select(1, own).flatten(0, 1) for own in used)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        batch, positions, neurons = ctx.shape
        whole = sum(map(len, ctx.used)) == positions
        found = slopes[0].new_empty(ctx.shape) if whole else slopes[0].new_zeros(ctx.shape)
        for own, slope in zip(ctx.used, slopes, strict=True):
            found.index_copy_(1, own, slope.reshape(batch, len(own), neurons))
        return found, *[None] * len(ctx.used)


def phases(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[list[int]]:
    """The numbers of the filter's offsets, those of a phase together"""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, offset in enumerate(product(*map(range, kernel))):
        found.setdefault(tuple(o * d % s for o, d, s in zip(offset, dilation, stride, strict=True)), []).append(number)
    return list(found.values())


@lru_cache(64)
def convolution(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    device: str,
) -> Convolution:
    """Of a convolution as torch's, over an input of this shape in space"""
    seen, valid, out = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool), []
    for size, k, s, before, after, d in zip(
        space, kernel, stride, *_sides(kernel, padding, dilation), dilation, strict=True
    ):
        count = (size + before + after - d * (k - 1) - 1) // s + 1
        at = torch.arange(count) * s - before + torch.arange(k)[:, None] * d  # (k, count)
        inside = (at >= 0) & (at < size)
        seen = (seen[:, None, :, None] * size + at[None, :, None, :]).flatten(2).flatten(0, 1)
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)
        out.append(count)
    reads = torch.where(valid, seen, -1)
    own = [reads[offsets] for offsets in phases(kernel, stride, dilation)]
    return Convolution(tuple(_places(r, math.prod(space), device) for r in own), tuple(out))


def _places(reads: Tensor, inputs: int, device: str) -> Places:
    used = reads[reads >= 0].unique()
    number = torch.full((inputs + 1,), len(used))
    number[used] = torch.arange(len(used))
    reads = number[reads]  # the last for -1
    outputs = reads.shape[1]
    writes = torch.full((len(reads), len(used) + 1), outputs)
    writes.scatter_(1, reads, torch.arange(outputs).expand_as(reads))  # no offset sees an input from two places
    return Places(
        None if len(used) == inputs else used.to(device), reads.to(device), writes[:, :-1].contiguous().to(device)
    )


def spread(c: Tensor, table: Tensor, positions: int) -> Tensor:
    """(K O, B q): what each offset sees from each of q positions, by a table (O, q), of rows c (K, B p) over p `positions`"""
    rows, batch = len(c), c.shape[1] // positions
    seen = torch.nn.functional.pad(c.reshape(rows, batch, positions), (0, 1))[:, :, table]  # (K, B, O, q)
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)


def gathered(a: Tensor, table: Tensor, positions: int) -> Tensor:
    """(J, B q): the sum over offsets of what each sees of its own rows, a (J O, B p)"""
    offsets, batch = len(table), a.shape[1] // positions
    own = torch.nn.functional.pad(a.reshape(len(a) // offsets, offsets, batch, positions), (0, 1))  # (J, O, B, p + 1)
    total = own[:, 0][:, :, table[0]]
    for offset in range(1, offsets):
        total += own[:, offset][:, :, table[offset]]
    return total.flatten(1)


def _sides(kernel: Sequence[int], padding: Sequence[int] | str, dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after, as torch places it"""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    both = [0] * len(kernel) if isinstance(padding, str) else list(padding)
    return both, both
