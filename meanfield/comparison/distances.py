"""Distances between distributions of neurons: preactivation marginals and whole particle measures (equation 17)."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.solution.solution import Solution

_EXACT = 2**26  # pairs up to which the exact problem is solved: the cheaper one there, until its memory sets the end
_BYTES = 60.0  # that it holds for each pair
_MARGINALS = 4  # training samples over which the marginal distance is averaged
_REACH = 64.0  # times the largest squared distance to a nearest neighbour: longer ones are told apart only if needed
_ROUNDING = 1e-13  # of a cloud's mass: less is the rounding of its masses
_ITERATIONS = 500  # of Sinkhorn
_CONVERGED = 1e-4  # relative change of the potentials, in which the value is of second order
_WATCHED = 8  # iterations from which their rate is read
_TILE = 2**17  # pairs at a time, which stay in a processor's cache


@checked
def marginal_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """1-D Wasserstein distance of preactivations, each given as (h (N, P), weights (N,)), averaged over the first samples.

    In units of b's standard deviation, to rounding. ValueError for shapes that do not belong together, numbers that are not finite,
    negative weights, and a b that does not vary.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> h = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> equal = torch.tensor([0.5, 0.5], dtype=torch.float64)
        >>> mf.marginal_distance((h + 0.25, equal), (h, equal))  # a shift, in standard deviations
        0.25
    """
    from scipy.stats import wasserstein_distance

    (h, m), (k, n) = _neurons("the first", *a), _neurons("the second", *b)
    if h.shape[1] != k.shape[1]:
        raise ValueError(f"preactivations must be on the same samples: received {h.shape[1]} and {k.shape[1]} columns")
    count = min(_MARGINALS, h.shape[1])
    h, k = h[:, :count], k[:, :count]
    apart = k - k[0]  # zero, without rounding, where all are the same
    unit = float(apart.abs().max())
    if not unit:
        raise ValueError(
            "the second preactivations are the same for all neurons: they have no standard deviation as unit"
        )
    apart /= unit  # no square of it overflows
    spread = unit * float((n @ (apart - n @ apart).square()).mean()) ** 0.5
    pairs = zip(h.T.numpy(), k.T.numpy(), strict=True)
    return float(np.mean([wasserstein_distance(u, v, m.numpy(), n.numpy()) for u, v in pairs])) / spread


@checked
def measure_distance(p: ParticleMeasure, q: ParticleMeasure, regularisation: float | None = None) -> float:
    """2-Wasserstein distance of two clouds in (a, w), any positions and scale (equation 17).

    Exact up to 2^26 pairs of particles: a relative error below 1e-9, and 0 between a cloud and itself. Else (or with a `regularisation`,
    relative to the median squared distance; 0.05 if none is given) the debiased Sinkhorn distance, with memory O(N), which sees no
    detail finer than the root of the regularisation: clouds nearer than that come out too near. ValueError for clouds of different
    dimensions and for parameters that are not finite; MemoryError, before any work, where 60 bytes for each pair of the exact problem are
    not free; a warning if Sinkhorn's iteration does not converge.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> def at(a):
        ...     return mf.ParticleMeasure(torch.tensor([[a]]), torch.zeros(1, 2), torch.ones(1))
        >>> round(mf.measure_distance(at(0.0), at(3.0)), 6)
        3.0
    """
    (x, m), (y, n) = _points("the first cloud", p), _points("the second cloud", q)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"measures live in different dimensions: {x.shape[1]} and {y.shape[1]}")
    size = 2.0 ** math.frexp(max(float(x.abs().max()), float(y.abs().max())))[1]  # a power of 2 rounds nothing off
    x, y = x / size, y / size
    if regularisation is None and len(x) * len(y) <= _EXACT:
        checks.memory(
            f"the exact distance between {len(x)} and {len(y)} particles",
            _BYTES * len(x) * len(y),
            "give fewer, or regularisation=0.05, which takes little memory",
        )
        return size * _transport(m.numpy(), n.numpy(), _squares(x, y).numpy()) ** 0.5
    relative = 0.05 if regularisation is None else checks.positive("regularisation", regularisation)
    some = [t[:: -(-len(t) // 1024)] for t in (x, y)]
    scale = float(_squares(*some).median()) or float(_squares(*some).mean()) or 1.0
    return size * max(0.0, _sinkhorn((x, m), (y, n), relative * scale)) ** 0.5


def sample_of(solution: Solution, neurons: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """Indices of `neurons` draws from the solution's neurons at its last snapshot, and equal weights."""
    weights = solution.preactivations()[1].double()
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(weights, neurons, replacement=True, generator=generator)
    return index.numpy(), torch.full((neurons,), 1 / neurons, dtype=torch.float64)


def _neurons(which: str, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """(h, m) in float64 on the CPU, m of sum 1; ValueError for what is no weighted set of preactivations"""
    if h.ndim != 2 or m.shape != h.shape[:1] or not h.numel():
        raise ValueError(
            f"preactivations are h (N, P) with weights (N,): received {tuple(h.shape)} and {tuple(m.shape)} as {which}"
        )
    h, m = (array_input.untracked(f"{which} set", t).to("cpu", torch.float64) for t in (h, m))
    for name, t in (("preactivations", h), ("weights", m)):
        if not torch.isfinite(t).all():
            raise ValueError(f"{which} {name} hold NaN or infinity: a distance needs finite ones")
    if bool((m < 0).any()) or not float(m.sum()):
        raise ValueError(f"{which} weights must be non-negative with a positive sum: received the least {m.min():g}")
    return h, m / m.sum()


def _points(which: str, cloud: ParticleMeasure) -> tuple[Tensor, Tensor]:
    """(points (N, C + D), masses (N,) of sum 1) in float64 on the CPU"""
    x, m = (array_input.untracked(which, t).to("cpu", torch.float64) for t in (cloud.points, cloud.m))
    if not (torch.isfinite(x).all() and torch.isfinite(m).all()):  # tensors may change after the measure was made
        raise ValueError(f"{which} holds NaN or infinity: a distance needs finite parameters and masses")
    return x, m / m.sum()


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared distances from differences; a matrix product would lose those of near points far from the origin"""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _transport(m: np.ndarray, n: np.ndarray, cost: np.ndarray) -> float:
    """The least cost of moving masses m (N,) to n (M,).

    The solver's tolerance is absolute, so costs are cut off at a few times the largest that cannot be avoided and put in its units: a plan
    that uses none that was cut is optimal for all. Otherwise the limit is raised.
    """
    with warnings.catch_warnings():  # POT's sources hold escapes that Python warns of when it compiles them
        warnings.simplefilter("ignore")
        import ot
    top, limit = float(cost.max()), _REACH * max(float(cost.min(0).max()), float(cost.min(1).max()))
    limit = limit or float(np.median(cost)) or top  # the same points, perhaps with other masses
    if not top:
        return 0.0
    while True:
        plan = np.asarray(ot.emd(m, n, np.minimum(cost, limit) / limit, numItermax=2_000_000))
        beyond = cost > limit
        if limit >= top or float(plan[beyond].sum()) < _ROUNDING:
            plan[beyond & (plan < _ROUNDING)] = 0
            return float((plan * cost).sum())
        limit *= _REACH


def _sinkhorn(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], epsilon: float) -> float:
    """Entropic transport with squared cost between points with masses, less the mean of that between each cloud and itself.

    Successive over-relaxation, which takes the root of the iterations: omega = 2 / (1 + sqrt(1 - eta)) for a plain rate eta, which the
    relaxed rate r tells by (r + omega - 1)^2 = r omega^2 eta (Thibault, Chizat, Dossal, Papadakis 2021).
    """
    (x, m), (y, n) = p, q
    own_u, own_v = _own_potential(x, m, epsilon), _own_potential(y, n, epsilon)
    u, v = own_u, own_v  # near clouds start near the end
    omega, most, changes = 1.0, 1.9, []
    for _ in range(_ITERATIONS):
        before = u
        u = u + omega * (_soft_min(x, y, n.log() + v / epsilon, epsilon) - u)
        v = v + omega * (_soft_min(y, x, m.log() + u / epsilon, epsilon) - v)
        changes.append(float((u - before).abs().max()))
        if changes[-1] < _CONVERGED * epsilon:
            break
        if len(changes) > _WATCHED:
            rate = (changes[-1] / changes[_WATCHED // 2]) ** (2 / _WATCHED)
            most = most if rate < 1 else (1 + omega) / 2
            omega, changes = min(_relaxed(omega, min(rate, 1.0)), most), []
    else:
        warn(
            f"Sinkhorn's iteration did not converge in {_ITERATIONS} steps: the distance may be too small; raise the regularisation, or "
            f"take clouds of at most {_EXACT} pairs without one",
            RuntimeWarning,
        )
    v = _soft_min(y, x, m.log() + u / epsilon, epsilon)
    return float(m @ (u - own_u) + n @ (v - own_v))


def _relaxed(omega: float, rate: float) -> float:
    """The best relaxation for iterations that went at this rate under omega"""
    eta = (rate + omega - 1) ** 2 / (rate * omega**2)
    return max(omega, 2 / (1 + math.sqrt(max(0.0, 1 - eta))))


def _own_potential(x: Tensor, m: Tensor, epsilon: float) -> Tensor:
    """(N,) of a cloud and itself, where both potentials are one: the mean of old and new converges in a few steps"""
    u = torch.zeros_like(m)
    for _ in range(_ITERATIONS):
        before = u
        u = (u + _soft_min(x, x, m.log() + u / epsilon, epsilon)) / 2
        if float((u - before).abs().max()) < 1e-3 * _CONVERGED * epsilon:
            break
    return u


def _soft_min(x: Tensor, y: Tensor, log_weights: Tensor, epsilon: float) -> Tensor:
    """-epsilon log sum_j exp(log_weights_j - |x_i - y_j|^2 / epsilon), rows of x in tiles."""

    def some(rows: Tensor) -> Tensor:
        each = _squares(rows, y).mul_(-1 / epsilon).add_(log_weights)
        top = each.amax(1)
        return each.sub_(top[:, None]).exp_().sum(1).log_().add_(top).mul_(-epsilon)

    return torch.cat([some(rows) for rows in x.split(max(1, _TILE // len(y)))])
