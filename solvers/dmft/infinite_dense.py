"""InfiniteDense: an infinitely wide Gaussian matrix between two layers of neurons, or a filter of several, revealed as it is used
(equations 23 to 27 and 81 to 83).

A layer is represented by S neurons; a field is a vector over them, kept as a row, with the inner product <a, b> = sum_s a_s b_s / S.
Where the neurons are divided over processes (a Shard), each keeps its part of every field, and inner products are summed over all.
Nothing here knows a network, a loss or a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from solvers.dmft.basis import Basis, Rows, combination
from solvers.dmft.neurons import Neurons
from solvers.dmft.places import Places, gathered, spread
from solvers.running.failures import RankError
from solvers.running.sharding import normal_part


class Known:
    """What a layer's fresh draws must be orthogonal to: otherwise each injects noise of size 1/sqrt(S).

    Directions wait until the next draw, so that one pass over all that is known serves both.
    """

    def __init__(self, neurons: Neurons, like: Tensor) -> None:
        self.neurons, self.fields, self.waiting = neurons, Rows(neurons.shard.local, like), []
        self._fine = (1e-3 if like.dtype == torch.float32 else 1e-6) ** 2

    def learn(self, directions: Tensor) -> None:
        """Orthonormal rows (k, S) that later draws must avoid"""
        if not self.neurons.exact:
            self.waiting.append(directions)

    def fresh(self, count: int) -> Tensor:
        """(count, S) unit Gaussians, orthonormal and orthogonal to all that was learnt or drawn here"""
        if self.neurons.exact:
            return self.neurons.fresh(count)
        size, waiting, shard = self.neurons.samples, sum(map(len, self.waiting)), self.neurons.shard
        if (needed := len(self.fields) + waiting + count) >= size:
            raise RankError(needed, size)
        rows, self.waiting = torch.cat([*self.waiting, self.neurons.fresh(count)]), []
        if len(self.fields):
            combination(-shard.sum(self.fields.rows @ rows.T / size), self.fields.rows, rows)
        turn = shard.ranks.same(self._turn(shard.sum((rows @ rows.T).double() / size), waiting))
        self.fields.append(turn[turn.any(1)].to(rows.dtype) @ rows)
        return self.fields.rows[-count:]

    def mark(self) -> tuple[int, list[Tensor]]:
        """Where it is, for `back_to`"""
        return len(self.fields), list(self.waiting)

    def back_to(self, mark: tuple[int, list[Tensor]]) -> None:
        count, waiting = mark
        self.fields.back_to(count)
        self.waiting = list(waiting)

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, over the neurons of this process, by the end of a name"""
        return {"": self.fields.rows} | {f"_waiting{k}": rows for k, rows in enumerate(self.waiting)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Of a fresh one, to hold what `tensors` gave"""
        self.fields.restore(tensors)
        self.waiting = [tensors[name] for k in range(len(tensors)) if (name := f"_waiting{k}") in tensors]

    def _turn(self, gram: Tensor, waiting: int) -> Tensor:
        """Makes rows with these inner products orthonormal, the `waiting` first among themselves; zero for rows of which nothing is left"""
        values, vectors = torch.linalg.eigh(gram[:waiting, :waiting])
        keep = values > self._fine
        learnt = (keep / torch.where(keep, values, 1).sqrt() * vectors).T
        shared = learnt @ gram[:waiting, waiting:]
        values, vectors = torch.linalg.eigh(gram[waiting:, waiting:] - shared.T @ shared)
        drawn = (vectors / values.clamp(min=1e-30).sqrt()) @ vectors.T
        return torch.cat(
            [torch.nn.functional.pad(learnt, (0, len(drawn))), torch.cat([-drawn @ shared.T @ learnt, drawn], 1)]
        )


class Conditioned(Known):
    """Draws of a network that has S neurons: Gaussian but for what is known of them, so projected and nothing more (equation 100)."""

    def __init__(self, neurons: Neurons, basis: Basis) -> None:
        self.neurons, self.basis = neurons, basis

    def learn(self, directions: Tensor) -> None:
        """The basis has them"""

    def fresh(self, count: int) -> Tensor:
        """(count, S) independent unit Gaussians less their part in the span of the basis"""
        rows = self.neurons.fresh(count).clone()
        return combination(-self.basis.coefficients(rows), self.basis.fields.rows, rows)

    def mark(self) -> tuple[int, list[Tensor]]:
        return 0, []

    def back_to(self, mark: tuple[int, list[Tensor]]) -> None:
        pass

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        pass


class InfiniteDense:
    """W = scale W0 + F L E^T, W0 an infinite matrix of N(0, 1/n_below) entries from the neurons `below` to the neurons `above`.

        W0 v  = U <E, v> + F <R, v>         E: orthonormal directions pushed forward, U: their Gaussian images
        W0* g = R <F, g> + E <U, g>         F: orthonormal directions pulled back, R: their Gaussian images

    W* = (n_below / n_above) W^T (equation 81), W^T where both layers have as many neurons. The second terms are the responses A and B.
    What W has learned is a small matrix L (equation 26), that of a time when the bases were smaller being zero beyond. Here is only what
    is known of W0, which grows as it is used. coarser: the tolerance of gradients, if it is another.

    offsets: for filters, so many matrices that see the same features share the bases (equations 82 and 83); rows of U and of R, and
    columns of L (J, K O), count directions first and offsets then. together: fields that extend a basis at a time, None for all.
    """

    def __init__(
        self,
        below: Neurons,
        above: Neurons,
        tolerance: float,
        like: Tensor,
        limit: int | None = None,
        coarser: float | None = None,
        offsets: int = 1,
        together: int | None = None,
    ) -> None:
        self.below, self.above, self.offsets, self.together = below, above, offsets, together
        self.e = Basis(below.samples, tolerance, like, limit, below.shard)
        self.f = Basis(above.samples, coarser or tolerance, like, limit, above.shard)
        self.u, self.r = Rows(above.shard.local, like), Rows(below.shard.local, like)
        sides = ((below, self.e), (above, self.f))
        self.known_below, self.known_above = (  # of each matrix its own
            [Conditioned(*side) if side[0].finite else Known(side[0], like) for _ in range(offsets)] for side in sides
        )
        self.ratio = math.sqrt(below.samples / above.samples)

    def forward(
        self, v: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(W v (n', S'), coefficients <E, v> (K, n), what each offset sees of them (K O, n')) of features v (n, S)

        learned: L, at most (J, K O). where: for convolutions, whose n rows are samples times positions.
        """
        c, new, along = self._revealed(self.e, v, self.r.rows)
        if new is not None:
            self.u.append(_images(self.known_above, len(new)))
            _learn(self.known_below, new)
        seen = c
        if where is not None:
            inputs = where.writes.shape[1]
            seen, along = spread(c, where.reads, inputs), gathered(along, where.reads, inputs)
        rows, columns = learned.shape
        along *= scale
        along[:rows] += learned @ seen[:columns]
        return combination(along, self.f.fields.rows, combination(scale * seen, self.u.rows)), c, seen

    def backward(
        self, g: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor]:
        """(W* g (n, S), coefficients <F, g> (J, n')) of gradients g (n', S'); learned and where as in `forward`"""
        d, new, along = self._revealed(self.f, g, self.u.rows)
        if new is not None:
            images = _images(self.known_below, len(new))
            self.r.append(images if self.ratio == 1 else self.ratio * images)
            _learn(self.known_above, new)
        rows, columns = learned.shape
        heard = d
        along *= scale
        along[:columns] += learned.T @ d[:rows]
        if where is not None:
            outputs = where.reads.shape[1]
            along, heard = gathered(along, where.writes, outputs), spread(d, where.writes, outputs)
        return combination(scale * heard, self.r.rows, combination(along, self.e.fields.rows)), d

    @property
    def learned_shape(self) -> tuple[int, int]:
        """Of L at the start"""
        return 0, 0

    @property
    def weight_of_squares(self) -> float:
        """sum theta^2 over sum L^2, theta = sqrt(n_below) W being the N(0, 1) numbers"""
        return self.above.samples

    def left(self, d: Tensor, g: Tensor) -> Tensor:
        """(J, n'): what L learns is a sum over fields of this, of gradients g with coefficients d, times .."""
        del g
        return d

    def right(self, seen: Tensor, v: Tensor, where: Places | None = None) -> Tensor:
        """.. (K O, n'): this, of features v of which offsets see `seen`"""
        del v, where
        return seen

    def diffuse(self, keep: float, size: float, generator: torch.Generator) -> None:
        """What is known of keep W0 + size Xi in the place of W0, Xi white like it and keep^2 + size^2 = 1 (equation 113)"""
        below, above = self.below.shard, self.above.shard
        noise = partial(normal_part, generator=generator, dtype=torch.float64)
        u, r = self.u.rows, self.r.rows
        fresh = noise(len(u), above.size, columns=above.rows).to(u)
        if not self.above.finite:  # in the limit it has no part in what is known there
            combination(-self.f.coefficients(fresh), self.f.fields.rows, fresh)
        u.mul_(keep).add_(fresh, alpha=size)
        fresh = noise(len(r), below.size, columns=below.rows).to(r)
        combination(-self.e.coefficients(fresh), self.e.fields.rows, fresh)  # what U has of it already
        r.mul_(keep).add_(fresh, alpha=size * self.ratio)

    def pulled(self, phi: Tensor) -> Tensor:
        """<R, phi> (J, n) of features phi (n, S)"""
        return self.below.shard.sum(self.r.rows @ phi.T / self.below.samples)

    def pushed(self, g: Tensor) -> Tensor:
        """<U, g> (K, n) of gradients g (n, S')"""
        return self.above.shard.sum(self.u.rows @ g.T / self.above.samples)

    def growing(self) -> dict[str, Rows | Known]:
        """All that is known of W0, by name"""
        rows: dict[str, Rows | Known] = {"e": self.e.fields, "f": self.f.fields, "u": self.u, "r": self.r}
        below, above = self.known_below, self.known_above
        return rows | {f"below{o}": k for o, k in enumerate(below)} | {f"above{o}": k for o, k in enumerate(above)}

    def _revealed(self, basis: Basis, v: Tensor, others: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """`reveal_beside`, of some fields at a time: the work of extending a basis grows with their cube"""
        if self.together is None or len(v) <= self.together:
            return basis.reveal_beside(v, others)
        start = len(basis)
        for some in v.split(self.together):
            basis.reveal(some)
        c, beside = basis.shard.sum(basis.fields.rows @ v.T / basis.size, others @ v.T / basis.size)
        return c, basis.fields.rows[start:] if len(basis) > start else None, beside


def _images(known: list[Known], directions: int) -> Tensor:
    """Gaussians of each matrix for new directions, which come first in the order of rows"""
    if len(known) == 1:
        return known[0].fresh(directions)
    return torch.stack([one.fresh(directions) for one in known], 1).flatten(0, 1)


def _learn(known: list[Known], directions: Tensor) -> None:
    for one in known:
        one.learn(directions)
