"""EntryDense: an infinite matrix that was trained entry by entry, so that what it learned has no low rank (equation 112)."""

from __future__ import annotations

from torch import Tensor

from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.places import Places, gathered, spread


class EntryDense(InfiniteDense):
    """W v = scale W0 v + <M, v>, M (S', S O) one number for each pair of sampled neurons and offset, the average over those below."""

    @property
    def learned_shape(self) -> tuple[int, int]:
        return self.above.shard.local, self.below.shard.local * self.offsets

    @property
    def weight_of_squares(self) -> float:
        return 1 / self.below.samples

    def forward(
        self, v: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        image, c, seen = super().forward(v, learned[:0, :0], scale, where)
        return image.addmm_(self.right(seen, v, where).T, learned.T, alpha=1 / self.below.samples), c, seen

    def backward(
        self, g: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor]:
        z, d = super().backward(g, learned[:0, :0], scale, where)
        along = learned.T @ g.T
        if where is not None:
            along = gathered(along, where.writes, where.reads.shape[1])
        return z.add_(along.T, alpha=1 / self.above.samples), d

    def left(self, d: Tensor, g: Tensor) -> Tensor:
        return g.T

    def right(self, seen: Tensor, v: Tensor, where: Places | None = None) -> Tensor:
        return v.T if where is None else spread(v.T, where.reads, where.writes.shape[1])
