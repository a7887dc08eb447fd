"""Distances between distributions of neurons: preactivation marginals and whole particle measures (equation 17)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from meanfield import checks
from meanfield.measure import ParticleMeasure
from meanfield.solution import Solution

_EXACT = 2**22  # entries of the cost matrix up to which the exact problem is solved
_MARGINALS = 4  # training samples over which the marginal distance is averaged


def marginal_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """1-D Wasserstein distance of preactivations, each given as (h (N, P), weights (N,)), averaged over the first samples.

    In units of b's standard deviation.
    """
    from scipy.stats import wasserstein_distance

    (h, m), (k, n) = a, b
    if h.shape[1] != k.shape[1]:
        raise ValueError(f"preactivations must be on the same samples: received {h.shape[1]} and {k.shape[1]} columns")
    count = min(_MARGINALS, h.shape[1])
    pairs = zip(h[:, :count].T.numpy(), k[:, :count].T.numpy(), strict=True)
    mean = float(np.mean([wasserstein_distance(u, v, m.numpy(), n.numpy()) for u, v in pairs]))
    centred = k[:, :count] - (n[:, None] * k[:, :count]).sum(0)
    return mean / float((n[:, None] * centred.square()).sum(0).mean()) ** 0.5


def measure_distance(p: ParticleMeasure, q: ParticleMeasure, regularisation: float | None = None) -> float:
    """2-Wasserstein distance of two clouds in (a, w): exact up to 2^22 pairs of particles, else (or with a
    `regularisation`, relative to the mean squared distance) the debiased Sinkhorn distance, with memory O(N).
    """
    if p.points.shape[1] != q.points.shape[1]:
        raise ValueError(f"measures live in different dimensions: {p.points.shape[1]} and {q.points.shape[1]}")
    p, q = p.to("cpu", torch.float64), q.to("cpu", torch.float64)
    if regularisation is None and len(p) * len(q) <= _EXACT:
        with warnings.catch_warnings():  # POT's sources hold escapes that Python warns of when it compiles them
            warnings.simplefilter("ignore")
            import ot
        cost = torch.cdist(p.points, q.points).square().numpy()
        transport = ot.emd2(p.m.numpy(), q.m.numpy(), cost, numItermax=2_000_000)
        return max(0.0, float(np.asarray(transport))) ** 0.5
    relative = 0.05 if regularisation is None else checks.positive("regularisation", regularisation)
    scale = (p.points.square().sum(1) @ p.m + q.points.square().sum(1) @ q.m).item()
    epsilon = relative * scale
    value = _sinkhorn(p, q, epsilon) - 0.5 * _sinkhorn(p, p, epsilon) - 0.5 * _sinkhorn(q, q, epsilon)
    return float(max(0.0, value)) ** 0.5


def sample_of(solution: Solution, neurons: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """Indices of `neurons` draws from the solution's neurons at its last snapshot, and equal weights."""
    weights = solution.preactivations()[1].double()
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(weights, neurons, replacement=True, generator=generator)
    return index.numpy(), torch.full((neurons,), 1 / neurons, dtype=torch.float64)


def _sinkhorn(
    p: ParticleMeasure, q: ParticleMeasure, epsilon: float, iterations: int = 500, tolerance: float = 1e-6
) -> float:
    """Dual value of entropic transport with squared cost, tile by tile in the log domain."""
    x, y, log_m, log_n = p.points, q.points, p.m.log(), q.m.log()
    u, v = torch.zeros_like(p.m), torch.zeros_like(q.m)
    for _ in range(iterations):
        before = u
        v = _soft_min(y, x, log_m + u / epsilon, epsilon)
        u = _soft_min(x, y, log_n + v / epsilon, epsilon)
        if float((u - before).abs().max()) < tolerance * epsilon:
            break
    return float(p.m @ u + q.m @ v)


def _soft_min(x: Tensor, y: Tensor, log_weights: Tensor, epsilon: float) -> Tensor:
    """-epsilon log sum_j exp(log_weights_j - |x_i - y_j|^2 / epsilon), rows of x in tiles."""
    rows = max(1, 2**22 // len(y))
    return torch.cat(
        [-epsilon * torch.logsumexp(log_weights - torch.cdist(t, y).square() / epsilon, 1) for t in x.split(rows)]
    )
