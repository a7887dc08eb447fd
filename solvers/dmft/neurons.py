"""Neurons: the S neurons that stand for a layer, of which a process may hold a part, and the source of their Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meanfield.measures.particle_measure import SobolPoints
from solvers.running.failures import RankError
from solvers.running.sharding import Shard, normal_part

_BLOCK = 32  # Sobol dimensions drawn together: of more, some pairs correlate far beyond chance
_POINTS = 2**13  # Sobol points drawn together where only some are kept


Draws = Literal["sobol", "plain", "exact", "finite"]


@dataclass(frozen=True)
class Population:
    """How the neurons of each layer are represented: `samples` of them, of which this process holds the shard's, in the kind and on the
    device of `like`. finite: as a network of that width has them (equation 100), not as the limit.
    """

    samples: int
    seed: int
    draws: Draws
    like: Tensor
    shard: Shard

    @property
    def exact(self) -> bool:
        """Whether averages over neurons carry no sampling error (linear networks)"""
        return self.draws == "exact"

    @property
    def finite(self) -> bool:
        """Whether averages over neurons fluctuate as in a network of `samples` neurons (equation 100)"""
        return self.draws == "finite"

    @property
    def sampled(self) -> bool:
        """Whether neurons are samples of infinitely many, whose averages are to carry as little noise as can be"""
        return not (self.exact or self.finite)

    def neurons(self, layer: int) -> Neurons:
        """Those of a layer, with a source of Gaussians of their own"""
        where = (self.like.dtype, str(self.like.device), self.shard)
        if self.exact:
            return exact_neurons(self.samples, *where)
        own = [self.samples] if self.finite else []  # networks of two widths have nothing in common
        seed = int(np.random.SeedSequence([self.seed, layer, *own]).generate_state(1)[0])
        if self.finite:
            return plain_neurons(self.samples, seed, *where, finite=True)
        return (sobol_neurons if self.draws == "sobol" else plain_neurons)(self.samples, seed, *where)


class Neurons:
    """S neurons of one layer with the source of every Gaussian they will ever need."""

    def __init__(
        self,
        samples: int,
        draw: Callable[[int, int], Tensor],
        exact: bool = False,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
        finite: bool = False,
    ) -> None:
        self.samples, self.exact, self._draw, self.used, self.generator = samples, exact, draw, 0, generator
        self.finite = finite
        self.shard = shard or Shard(samples)

    def fresh(self, count: int) -> Tensor:
        """(count, S) independent unit Gaussians"""
        e = self._draw(self.used, count)
        self.used += count
        return e

    def mark(self) -> tuple[int, Tensor | None]:
        """Where the source is, for `back_to`"""
        return self.used, None if self.generator is None else self.generator.get_state()

    def back_to(self, mark: tuple[int, Tensor | None]) -> None:
        """The Gaussians that were drawn since come again"""
        self.used, state = mark
        if self.generator is not None and state is not None:
            self.generator.set_state(state)

    def tensors(self) -> dict[str, Tensor]:
        """Where the source is, by the end of a name"""
        source = {} if self.generator is None else {"_generator": self.generator.get_state()}
        return {"_used": torch.tensor([self.used])} | source

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.back_to((int(tensors["_used"]), tensors.get("_generator")))


def sobol_neurons(samples: int, seed: int, dtype: torch.dtype, device: str, shard: Shard | None = None) -> Neurons:
    """Each neuron's Gaussians are the coordinates of scrambled Sobol points (equation 29), in blocks of 32 dimensions.

    Each block has its own scrambling and its own order: without the latter, points of equal number correlate across scramblings.
    """
    blocks: dict[int, Tensor] = {}
    own = shard or Shard(samples)

    def block(index: int) -> Tensor:
        if index not in blocks:
            g = torch.Generator().manual_seed(seed * 1_000_003 + index)
            engine = SobolPoints(_BLOCK, int(torch.randint(2**31, (1,), generator=g)))
            order = torch.randperm(samples, generator=g)
            u = engine.draw(samples, dtype=torch.float64)[order] if own.whole else _some(engine, order[own.rows])
            blocks.clear()
            # exact; erfinv takes a third of ndtri's time
            centred = u.clamp_(0, 1 - 2.0**-30).add_(2.0**-31).mul_(2).sub_(1)
            blocks[index] = centred.erfinv_().mul_(2**0.5).to(dtype=dtype, device=device).T.contiguous()
        return blocks[index]

    def draw(start: int, count: int) -> Tensor:
        pieces = []
        while count:
            index, offset = divmod(start, _BLOCK)
            take = min(count, _BLOCK - offset)
            pieces.append(block(index)[offset : offset + take])
            start, count = start + take, count - take
        return torch.cat(pieces)

    return Neurons(samples, draw, shard=own)


def _some(engine: SobolPoints, wanted: Tensor) -> Tensor:
    """The points of a fresh engine with the numbers `wanted`, in that order; few others are in memory at a time."""
    ordered, place = wanted.sort()
    u = torch.empty(len(wanted), engine.dimension, dtype=torch.float64)
    for start in range(0, int(ordered[-1]) + 1, _POINTS):
        points = engine.draw(_POINTS, dtype=torch.float64)
        low, high = torch.searchsorted(ordered, torch.tensor([start, start + _POINTS])).tolist()
        u[place[low:high]] = points[ordered[low:high] - start]
    return u


def plain_neurons(
    samples: int, seed: int, dtype: torch.dtype, device: str, shard: Shard | None = None, finite: bool = False
) -> Neurons:
    """Independent pseudo-random Gaussians."""
    g = torch.Generator().manual_seed(seed)
    own = shard or Shard(samples)

    def draw(start: int, count: int) -> Tensor:
        del start  # the generator remembers
        e = normal_part(count, samples, g, torch.float64, columns=own.rows)
        return e.to(dtype=dtype, device=device)

    return Neurons(samples, draw, generator=g, shard=own, finite=finite)


def exact_neurons(capacity: int, dtype: torch.dtype, device: str, shard: Shard | None = None) -> Neurons:
    """For linear networks: "neurons" are the coefficients of independent unit Gaussians, so that averages carry no sampling error."""
    own = shard or Shard(capacity)

    def draw(start: int, count: int) -> Tensor:
        if start + count > capacity:
            raise RankError(start + count, capacity)
        e = torch.zeros(count, own.local, dtype=dtype, device=device)
        mine = range(max(start, own.rows.start), min(start + count, own.rows.stop))
        e[[s - start for s in mine], [s - own.rows.start for s in mine]] = capacity**0.5
        return e

    return Neurons(capacity, draw, exact=True, shard=own)
