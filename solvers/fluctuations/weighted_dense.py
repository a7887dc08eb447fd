"""WeightedDense: a Gaussian matrix between neurons that have a weight each, as a function of these weights (equations 100 and 101).

All is in operations that autograd can follow and that change nothing in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from solvers.dmft.neurons import Neurons
from solvers.dmft.places import Places, gathered, spread

Known = tuple[Tensor, Tensor, Tensor, Tensor]  # E, R, F, U

_TOGETHER = 512  # fields that extend a basis at a time


@dataclass
class Turns:
    """Combinations of fields (k, n) by which a basis was extended, call by call: chosen by one pass, the same in those after it"""

    made: list[Tensor | None] = field(default_factory=list)
    at: int = 0

    def next(self, choose: Callable[[], Tensor | None]) -> Tensor | None:
        """Those of this call, None if nothing sticks out of the basis"""
        if self.at == len(self.made):
            self.made.append(choose())
        self.at += 1
        return self.made[self.at - 1]


@dataclass
class Side:
    """What is known of a matrix on one side: orthonormal directions e (k, S) and Gaussian images (k O, S) of those of the other side"""

    neurons: Neurons
    m: Tensor  # (S,) weights of the neurons, of sum 1
    e: Tensor
    images: Tensor
    turns: Turns = field(default_factory=Turns)

    @property
    def samples(self) -> int:
        return len(self.m)

    @staticmethod
    def of(neurons: Neurons, m: Tensor) -> Side:
        """Of which nothing is known"""
        nothing = m.detach().new_empty(0, len(m))
        return Side(neurons, m, nothing, nothing)


class WeightedDense:
    """InfiniteDense between neurons with the weights m: <a, b> = sum_r m_r a_r b_r, and draws that are projected only (equation 100).

    offsets: of a filter, as of InfiniteDense.
    """

    def __init__(self, below: Side, above: Side, tolerance: float, offsets: int = 1) -> None:
        self.below, self.above, self.tolerance, self.offsets = below, above, tolerance, offsets
        self.ratio = math.sqrt(len(below.m) / len(above.m))

    @property
    def learned_shape(self) -> tuple[int, int]:
        """Of L at the start"""
        return 0, 0

    @property
    def known(self) -> Known:
        own = self.below.e, self.below.images, self.above.e, self.above.images
        return own if torch.is_grad_enabled() else tuple(t.detach() for t in own)  # type: ignore[return-value]

    def know(self, known: Known) -> None:
        self.below.e, self.below.images, self.above.e, self.above.images = known

    def forward(
        self, v: Tensor, learned: Tensor, scale: float, where: Places | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(W v (n', S'), coefficients <E, v> (K, n), what each offset sees of them (K O, n')) of features v (n, S)"""
        c, along = self._known(self.below, self.above, v, 1.0)
        seen = c
        if where is not None:
            inputs = where.writes.shape[1]
            seen, along = spread(c, where.reads, inputs), gathered(along, where.reads, inputs)
        along = plus(scale * along, learned @ seen[: learned.shape[1]])
        return (scale * seen).T @ self.above.images + along.T @ self.above.e, c, seen

    def backward(self, g: Tensor, learned: Tensor, scale: float, where: Places | None = None) -> tuple[Tensor, Tensor]:
        """(W* g (n, S), coefficients <F, g> (J, n')) of gradients g (n', S')"""
        d, along = self._known(self.above, self.below, g, self.ratio)
        heard, along = d, plus(scale * along, learned.T @ d[: len(learned)])
        if where is not None:
            outputs = where.reads.shape[1]
            along, heard = gathered(along, where.writes, outputs), spread(d, where.writes, outputs)
        return (scale * heard).T @ self.below.images + along.T @ self.below.e, d

    def _known(self, own: Side, other: Side, v: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """Coefficients of fields v in the basis, which they extend, and in the images on their side; size: of the images that this draws"""
        for some in v.split(_TOGETHER):
            turn = own.turns.next(lambda some=some: _chosen(own, some, self.tolerance))
            if turn is None:
                continue
            new, kept = _extension(own, some, turn)
            draws = other.neurons.fresh(len(turn) * self.offsets)  # as many as in the pass that chose the turn
            draws = size * draws.unflatten(0, (len(turn), self.offsets))[kept].flatten(0, 1)
            draws = draws - ((draws * other.m) @ other.e.T) @ other.e
            own.e, other.images = torch.cat([own.e, new]), torch.cat([other.images, draws])
        weighted = (v * own.m).T
        return own.e @ weighted, own.images @ weighted


class Weighted:
    """What networks of weighted neurons have in common: matrices whose knowledge can be taken and given back, and draws that come again."""

    maps: Sequence[WeightedDense]
    drawn: Sequence[Neurons]  # every source of Gaussians once

    @property
    def known(self) -> list[Known]:
        return [one.known for one in self.maps]

    def know(self, known: Sequence[Known]) -> None:
        """(E, R, F, U) of each matrix; none at all: nothing"""
        for i, one in enumerate(self.maps):
            empty = [t.detach()[:0] for t in one.known]
            one.know(known[i] if known else tuple(empty))  # type: ignore[arg-type]

    def mark(self) -> list[object]:
        """Where draws and choices are, for `back_to`"""
        return [[neurons.mark() for neurons in self.drawn], [turns.at for turns in self._turns]]

    def back_to(self, mark: list[object]) -> None:
        draws, at = mark
        for neurons, to in zip(self.drawn, draws, strict=True):  # type: ignore[arg-type]
            neurons.back_to(to)
        for turns, to in zip(self._turns, at, strict=True):  # type: ignore[arg-type]
            turns.at = to

    def follow(self, other: Weighted) -> None:
        """To extend bases by the combinations of fields that another network chose"""
        for own, theirs in zip(self._turns, other._turns, strict=True):
            own.made, own.at = theirs.made, 0

    @property
    def _turns(self) -> list[Turns]:
        return [side.turns for side in self.sides]

    @property
    def sides(self) -> list[Side]:
        return [side for one in self.maps for side in (one.below, one.above)]


def plus(a: Tensor, b: Tensor) -> Tensor:
    """Their sum, what one of them has not being zero"""
    rows, columns = (max(pair) for pair in zip(a.shape, b.shape, strict=True))
    a, b = (pad(t, (0, columns - t.shape[1], 0, rows - len(t))) for t in (a, b))
    return a + b


def _free(side: Side, rows: Tensor) -> Tensor:
    """What of fields sticks out of the basis"""
    return rows - ((rows * side.m) @ side.e.T) @ side.e


def _extension(side: Side, v: Tensor, turn: Tensor) -> tuple[Tensor, list[int]]:
    """Orthonormal rows (k, S) out of the basis that combinations of the fields v give, and which combinations these are.

    No more than there are neurons; neurons fewer than those that chose the turn, or saturated ones, may leave some that depend on others.
    """
    turn = turn[: len(side.m) - len(side.e)]
    new = _free(side, turn @ _free(side, v))  # once more, for rounding
    kept, root = _independent((new * side.m) @ new.T)
    return torch.linalg.solve_triangular(root, new[kept], upper=False), kept


def _independent(gram: Tensor) -> tuple[list[int], Tensor]:
    """Rows that do not depend on those before them, and the Cholesky factor of their Gram matrix"""
    kept = list(range(len(gram)))
    while True:
        root, failed = torch.linalg.cholesky_ex(gram[kept][:, kept])
        small = (root.diagonal() < 1e-7 * gram.diagonal()[kept].sqrt()).nonzero().flatten().tolist()
        if not int(failed) and not small:
            return kept, root
        kept.pop(int(failed) - 1 if int(failed) else small[0])


def _chosen(side: Side, v: Tensor, tolerance: float) -> Tensor | None:
    """Combinations (k, n) of fields that leave the part `tolerance` of them, each of unit square out of the basis"""
    with torch.no_grad():
        rest = _free(side, v)
        values, vectors = torch.linalg.eigh((rest * side.m) @ rest.T)
        allowed = tolerance**2 * float(((v * side.m) * v).sum())
        keep = (values.clamp(min=0).cumsum(0) > allowed) & (values > 1e-12 * values[-1])
        return (vectors[:, keep] / values[keep].sqrt()).flip(1).T if bool(keep.any()) else None
