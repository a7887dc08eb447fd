"""InfiniteMap: infinitely wide Gaussian matrices between two wide axes, one for each offset of a filter (equations 81 to 83).

InfiniteDense for axes of different widths, and for several matrices that see the same features: they share the bases E and F.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solvers.dmft.basis import Basis, Rows, combination
from solvers.dmft.infinite_dense import Known
from solvers.dmft.neurons import Neurons
from solvers.dmft.places import Places, gathered, spread

_TOGETHER = 512  # fields that extend a basis at a time: the work grows with their cube


class InfiniteMap:
    """W_o = W0_o + F^T L_o E, W0_o infinite matrices of N(0, 1/n_below) entries from the neurons `below` to the neurons `above`.

    Rows of U and of R, and columns of L (J, K O), count directions first and offsets then.
    """

    def __init__(
        self,
        below: Neurons,
        above: Neurons,
        tolerance: float,
        like: Tensor,
        offsets: int = 1,
        limit: int | None = None,
        coarser: float | None = None,
    ) -> None:
        self.below, self.above, self.offsets = below, above, offsets
        self.e = Basis(below.samples, tolerance, like, limit, below.shard)
        self.f = Basis(above.samples, coarser or tolerance, like, limit, above.shard)
        self.u, self.r = Rows(above.shard.local, like), Rows(below.shard.local, like)
        self.known_below = [Known(below, like) for _ in range(offsets)]  # of each matrix its own
        self.known_above = [Known(above, like) for _ in range(offsets)]
        self.ratio = math.sqrt(below.samples / above.samples)

    def forward(
        self, v: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(W v (n', S'), coefficients <E, v> (K, n), what each offset sees of them (K O, n')) of features v (n, S)

        learned: L, at most (J, K O). where: for convolutions, whose n rows are samples times positions.
        """
        c, new, pulled = _revealed(self.e, v, self.r.rows)
        if new is not None:
            self.u.append(_images(self.known_above, len(new)))
            _learn(self.known_below, new)
        seen = c
        if where is not None:
            inputs = where.writes.shape[1]
            seen, pulled = spread(c, where.reads, inputs), gathered(pulled, where.reads, inputs)
        rows, columns = learned.shape
        along = scale * pulled
        along[:rows] += learned @ seen[:columns]
        return combination(along, self.f.fields.rows, combination(scale * seen, self.u.rows)), c, seen

    def backward(
        self, g: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor]:
        """(W* g (n, S), coefficients <F, g> (J, n')) of gradients g (n', S'), W* = (n_below / n_above) W^T (equation 81)"""
        d, new, pushed = _revealed(self.f, g, self.u.rows)
        if new is not None:
            self.r.append(self.ratio * _images(self.known_below, len(new)))
            _learn(self.known_above, new)
        rows, columns = learned.shape
        along, heard = scale * pushed, d
        along[:columns] += learned.T @ d[:rows]
        if where is not None:
            outputs = where.reads.shape[1]
            along, heard = gathered(along, where.writes, outputs), spread(d, where.writes, outputs)
        return combination(scale * heard, self.r.rows, combination(along, self.e.fields.rows)), d

    def growing(self) -> dict[str, Rows | Known]:
        """All that is known of the matrices, by name"""
        rows: dict[str, Rows | Known] = {"e": self.e.fields, "f": self.f.fields, "u": self.u, "r": self.r}
        below, above = self.known_below, self.known_above
        return rows | {f"below{o}": k for o, k in enumerate(below)} | {f"above{o}": k for o, k in enumerate(above)}


def _images(known: list[Known], directions: int) -> Tensor:
    """Gaussians of each matrix for new directions, which come first in the order of rows"""
    if len(known) == 1:
        return known[0].fresh(directions)
    return torch.stack([one.fresh(directions) for one in known], 1).flatten(0, 1)


def _learn(known: list[Known], directions: Tensor) -> None:
    for one in known:
        one.learn(directions)


def _revealed(basis: Basis, v: Tensor, others: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """`reveal_beside`, of some fields at a time"""
    if len(v) <= _TOGETHER:
        return basis.reveal_beside(v, others)
    start = len(basis)
    for some in v.split(_TOGETHER):
        basis.reveal(some)
    c, beside = basis.shard.sum(basis.fields.rows @ v.T / basis.size, others @ v.T / basis.size)
    return c, basis.fields.rows[start:] if len(basis) > start else None, beside
