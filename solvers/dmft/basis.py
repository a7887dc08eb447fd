"""Basis: orthonormal fields over the neurons of a layer, extended by what of a field sticks out of them (equations 27 and 28)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from solvers.running.failures import RankError
from solvers.running.sharding import Shard

_ROUNDING = 3e-4  # how far from orthonormal rounding may leave a basis; a second pass mends more

_FEW = ((24, 48), (128, 96))  # up to so many fields, so many rows of a basis at a time


class Rows:
    """A matrix (n, S) that grows by rows, in a buffer of doubling size."""

    def __init__(self, size: int, like: Tensor) -> None:
        self._buffer, self._count = like.new_empty(0, size), 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        return self._buffer[: self._count]

    def append(self, new: Tensor) -> None:
        total = self._count + len(new)
        if total > len(self._buffer):
            grown = self._buffer.new_empty(max(total, 2 * len(self._buffer), 64), self._buffer.shape[1])
            grown[: self._count] = self.rows
            self._buffer = grown
        self._buffer[self._count : total] = new
        self._count = total

    def mark(self) -> int:
        """Where it is, for `back_to`"""
        return self._count

    def back_to(self, mark: int) -> None:
        """Leave the rows that were there then"""
        self._count = mark

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, over the neurons of this process, by the end of a name"""
        return {"": self.rows}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Of a fresh one, to hold what `tensors` gave"""
        self.append(tensors.get("", self.rows))


class Basis:
    """Orthonormal fields, extended whenever the fields of a call stick out by more than the tolerance.

    tolerance: of the fields' root mean square, taken over the fields of a call and the neurons, the part that may be dropped.
    limit: the most directions, RankError beyond it; None for as many as there are neurons, which represent any field.
    """

    def __init__(
        self, size: int, tolerance: float, like: Tensor, limit: int | None = None, shard: Shard | None = None
    ) -> None:
        self.shard = shard or Shard(size)
        self.size, self.tolerance, self.fields = size, tolerance, Rows(self.shard.local, like)
        self.limit = size if limit is None else min(limit, size)

    def __len__(self) -> int:
        return len(self.fields)

    def coefficients(self, v: Tensor) -> Tensor:
        """<E, v> (K, n) of the fields v (n, S)"""
        return self.shard.sum(self.fields.rows @ v.T / self.size)

    def reveal(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """(coefficients (K, n) of v (n, S), new rows of the basis or None)"""
        return self.reveal_beside(v, v[:0])[:2]

    def reveal_beside(self, v: Tensor, others: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """`reveal`, and the inner products (k, n) of `others` (k, S) with v"""
        c, beside, squares = self.shard.sum(
            self.fields.rows @ v.T / self.size,
            others @ v.T / self.size,
            torch.linalg.vector_norm(v, dim=1).square().sum() / self.size,
        )
        return *self._extended(v, c, float(squares)), beside

    def _extended(self, v: Tensor, c: Tensor, total: float) -> tuple[Tensor, Tensor | None]:
        eps = torch.finfo(v.dtype).eps
        if (
            not math.isfinite(total) or len(self) == self.size
        ):  # a blow-up shows in the outputs; beyond all nothing sticks out
            return c, None
        allowed = max(self.tolerance, 30 * eps) ** 2 * total  # finer than rounding there is nothing to reveal
        cheap = self.tolerance**2 > 100 * eps  # then Pythagoras tells how much sticks out
        if cheap and total - float(c.double().square().sum()) <= allowed:
            return c, None
        start, residual = len(self), combination(-c, self.fields.rows, v.clone())
        while True:
            gram = self.shard.sum((residual @ residual.T).double() / self.size)
            values, vectors = self.shard.ranks.eigh(gram)
            keep = values.clamp(min=0).cumsum(0) > allowed  # the smallest are dropped while their sum is allowed
            if not bool(keep.any()):
                break
            keep &= values > 1e3 * eps * values[-1]  # a pass resolves down to rounding of the largest it finds
            if (count := len(self) + int(keep.sum())) > self.limit:
                raise RankError(count, self.size, self.limit)
            found = values[keep].flip(0)  # the largest gets the best draws
            turn = vectors[:, keep].flip(1).T / found.sqrt()[:, None]
            new, own = turn.to(v.dtype) @ residual, (turn @ gram).to(v.dtype)
            # without this projection a new direction would keep 1 / sqrt(found) times the rounding of the older ones, and so on
            combination(-self.coefficients(new), self.fields.rows, new)
            off = eps * max(float(found[0]), eps * total) / float(found[-1])  # from orthonormal, by rounding
            if off > min(_ROUNDING, 0.1 * self.tolerance):
                new = orthonormal(new, new[:0], self.shard)
                own = self.shard.sum(new @ v.T / self.size)
            self.fields.append(new)
            c = torch.cat([c, own])
            if float(values[~keep].clamp(min=0).sum()) <= allowed:
                break
            residual = residual - own.T @ new
        return c, self.fields.rows[start:] if len(self) > start else None


def orthonormal(e: Tensor, known: Tensor, shard: Shard | None = None) -> Tensor:
    """Rows e (k, S) without their part in the span of the orthonormal rows `known` (n, S), made orthonormal."""
    shard = shard or Shard(e.shape[1])
    if len(known):
        e = combination(-shard.sum(known @ e.T / shard.size), known, e.clone())
    values, vectors = shard.ranks.eigh(shard.sum((e @ e.T).double() / shard.size))
    return (vectors / values.clamp(min=1e-30).sqrt() @ vectors.T).to(e.dtype) @ e


def without_part_in(fields: Tensor, rows: Tensor, shard: Shard | None = None, together: int | None = None) -> Tensor:
    """Rows (k, S), in their own memory, without their part in the span of fields (n, S), so many of which extend a basis at a time"""
    span = Basis((shard or Shard(rows.shape[1])).size, 1e-3, rows, shard=shard)
    for some in fields.split(together or max(len(fields), 1)):
        span.reveal(some)
    return combination(-span.coefficients(rows), span.fields.rows, rows)


def combination(c: Tensor, rows: Tensor, onto: Tensor | None = None) -> Tensor:
    """onto + c^T rows (n, S), written into `onto`, from c (K, n) and rows (K, S)

    A few rows at a time: for few n, CPUs multiply a long matrix that way in half of the time (docs/performance.md).
    """
    n, block = c.shape[1], len(rows)
    if n <= _FEW[-1][0] and rows.device.type == "cpu":
        block = next(size for most, size in _FEW if n <= most)
    out = c[:block].T @ rows[:block] if onto is None else onto
    for start in range(block if onto is None else 0, len(rows), max(block, 1)):
        out.addmm_(c[start : start + block].T, rows[start : start + block])
    return out
