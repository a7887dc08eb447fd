"""The particles with which a flow starts, or the part of them that one process holds (equations 6 and 12)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.measures import reductions
from meanfield.measures.particle_measure import ParticleMeasure, sobol_particles
from meanfield.problem.problem import Problem
from meanfield.problem.two_layers import TwoLayers, two_layers
from solvers.running.inputs import EVERYWHERE, Inputs
from solvers.running.sharding import Shard, normal_part


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
    draws: str,
    particles: int,
    sizes: tuple[int, int],
    seed: int,
    dtype: str,
    directions: Tensor | None,
    shard: Shard,
    network: TwoLayers,
) -> Cloud:
    """The shard's rows of ParticleMeasure.sobol or .iid, the same numbers, in the network's laws; sizes: inputs D and outputs C"""
    (d, c), kind = sizes, checks.DTYPES[dtype]
    if draws == "sobol":
        a, w = sobol_particles(particles, d, c, seed, dtype, directions, shard.rows)
    else:
        g = torch.Generator().manual_seed(seed)
        a, w = (normal_part(particles, n, g, kind, rows=shard.rows) for n in (c, d))
    return Cloud(*network.drawn(a, w), torch.full((shard.local,), 1 / particles, dtype=kind))


PER_POINT = 4  # particles a point from which a start is balanced: it takes (P / N)^(1/2) of the readouts' randomness


def balance(cloud: ParticleMeasure | Cloud, problem: Problem, shard: Shard | None = None) -> None:
    """Move the cloud's a, by as little as possible, to give f = 0 at every training and test point (equation 12).

    N >= 4 P only: fewer particles would give up most of their a, and all of it at N = P; f(0) then keeps the error of the draw.
    Not where sums over the particles overflow, either. O(N P^2), about P / 100 steps.
    """
    activation, m = two_layers(problem).activation, cloud.m
    phi = activation.phi
    shard = shard or Shard(len(m))
    if shard.size < PER_POINT * problem.data.points or two_layers(problem).laws[0].zero:
        return
    x = Inputs(problem, m)(EVERYWHERE)
    gram = reductions.gram(lambda w: phi(w @ x.T), m, cloud.w, columns=len(x))  # (P, P)
    f = reductions.outputs(cloud.a, cloud.w, m, x, activation)  # (P, C)
    gram, f = shard.sum(gram, f)
    if not (gram.isfinite().all() and f.isfinite().all()):
        return  # the solver names what is not finite at its first step
    coefficients = shard.ranks.same(_solved(gram, f.double(), torch.finfo(f.dtype).eps).to(f))
    for a, w in zip(cloud.a.split(2**12), cloud.w.split(2**12), strict=True):
        a.sub_(phi(w @ x.T) @ coefficients)


def _solved(gram: Tensor, f: Tensor, eps: float) -> Tensor:
    """c (P, C) with gram c = f up to directions that rounding hides. Each refinement with the shifted factor takes such a direction
    by its eigenvalue over the shift."""
    shift = eps * float(gram.trace()) or 1.0  # 0 where every row of x is: f is 0 as it stands
    identity = torch.eye(len(gram)).to(gram)
    lower, failed = torch.linalg.cholesky_ex(gram + shift * identity)
    while int(failed):
        shift *= 10
        lower, failed = torch.linalg.cholesky_ex(gram + shift * identity)
    solution = torch.cholesky_solve(f, lower)
    for _ in range(3):
        solution = solution + torch.cholesky_solve(f - gram @ solution, lower)
    return solution
