"""Places: which input position each offset of a filter sees from each output position, of a convolution in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """Tables of positions, one past the last for none: of the padding, or of positions that no output sees (equation 83)."""

    reads: Tensor  # (O, outputs): the input position
    writes: Tensor  # (O, inputs): the output position that sees an input at this offset
    space: tuple[int, ...]  # of the outputs


@lru_cache(64)
def places(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    device: str,
) -> Places:
    """Of a convolution as torch's, over an input of this shape in space"""
    seen, valid, out = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool), []
    for size, k, s, before, after, d in zip(space, kernel, stride, *_sides(kernel, padding, dilation), dilation, strict=True):
        count = (size + before + after - d * (k - 1) - 1) // s + 1
        at = torch.arange(count) * s - before + torch.arange(k)[:, None] * d  # (k, count)
        inside = (at >= 0) & (at < size)
        seen = (seen[:, None, :, None] * size + at[None, :, None, :]).flatten(2).flatten(0, 1)
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)
        out.append(count)
    inputs, outputs = math.prod(space), math.prod(out)
    reads = torch.where(valid, seen, inputs)
    writes = torch.full((len(reads), inputs + 1), outputs)
    writes.scatter_(1, reads, torch.arange(outputs).expand_as(reads))  # distinct: no offset sees an input twice
    return Places(reads.to(device), writes[:, :inputs].contiguous().to(device), tuple(out))


def spread(c: Tensor, table: Tensor, positions: int) -> Tensor:
    """(K O, B q): what each offset sees from each of q positions, by a table (O, q), of rows c (K, B p) over p `positions`"""
    rows, offsets = len(c), len(table)
    seen = torch.nn.functional.pad(c.reshape(rows, -1, positions), (0, 1))[:, :, table]  # (K, B, O, q)
    return seen.transpose(1, 2).reshape(rows * offsets, -1)


def gathered(a: Tensor, table: Tensor, positions: int) -> Tensor:
    """(J, B q): the sum over offsets of what each sees of its own rows, a (J O, B p)"""
    offsets, q = table.shape
    own = torch.nn.functional.pad(a.reshape(len(a) // offsets, offsets, -1, positions), (0, 1))  # (J, O, B, p + 1)
    total = own[:, 0][:, :, table[0]]
    for offset in range(1, offsets):
        total += own[:, offset][:, :, table[offset]]
    return total.reshape(len(total), -1)


def _sides(kernel: Sequence[int], padding: Sequence[int] | str, dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after, as torch places it"""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    both = [0] * len(kernel) if isinstance(padding, str) else list(padding)
    return both, both
