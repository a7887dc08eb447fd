"""The particles with which a flow starts, or the part of them that one process holds (equations 6 and 12)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield import checks, reductions
from meanfield.measure import ParticleMeasure, sobol_particles
from meanfield.problem import Problem
from solvers.neurons import normal_part
from solvers.sharding import Shard


@dataclass(frozen=True)
class Cloud:
    """a (n, C), w (n, D) and m (n,) of the particles of one process; their weights m sum to 1 with those of the others only."""

    a: Tensor
    w: Tensor
    m: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.w, self.m

    def gathered(self, shard: Shard) -> ParticleMeasure | None:
        """All particles, on the first process; None on the others"""
        whole = [shard.gather(tensor) for tensor in self.tensors]
        return ParticleMeasure(*whole) if shard.ranks.first else None


def random_part(
    draws: str, particles: int, sizes: tuple[int, int], seed: int, dtype: str, directions: Tensor, shard: Shard
) -> Cloud:
    """The shard's rows of ParticleMeasure.sobol or .iid, the same numbers; sizes: inputs D and outputs C"""
    (d, c), kind = sizes, checks.DTYPES[dtype]
    if draws == "sobol":
        a, w = sobol_particles(particles, d, c, seed, dtype, directions, shard.rows)
    else:
        g = torch.Generator().manual_seed(seed)
        a, w = (normal_part(particles, n, g, kind, rows=shard.rows) for n in (c, d))
    return Cloud(a, w, torch.full((shard.local,), 1 / particles, dtype=kind))


def balance(cloud: ParticleMeasure | Cloud, x: Tensor, problem: Problem, shard: Shard | None = None) -> None:
    """Move the cloud's a, by as little as possible, to give f = 0 at every row of x (P, D) (equation 12)."""
    phi, m, p = problem.network.nonlinearity.phi, cloud.m, len(x)
    shard = shard or Shard(len(m))
    gram = reductions.gram(lambda w: phi(w @ x.T), m, cloud.w, columns=p)  # (P, P)
    f = reductions.outputs(cloud.a, cloud.w, m, x, problem.network.nonlinearity)  # (P, C)
    gram, f = shard.sum(gram, f)
    coefficients = torch.linalg.lstsq(gram.cpu(), f.double().cpu(), driver="gelsd").solution.to(f)
    coefficients = shard.ranks.same(coefficients)
    for a, w in zip(cloud.a.split(2**12), cloud.w.split(2**12), strict=True):
        a.sub_(phi(w @ x.T) @ coefficients)
