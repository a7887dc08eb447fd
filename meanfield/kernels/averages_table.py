"""Gaussian averages of many pairs, by a basis for the deviations and interpolation in the correlation (equation 42)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanfield.kernels.gaussian_quadrature import SCALE, Averages, Quadrature, standard_form

MOST = 20_000  # pairs of an activation with kinks, each of which needs a quadrature of its own
TAIL = 1e-13  # what is left out, relative to the size of an average
_FEW = 256  # deviations that are taken as they are

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AveragesTable:
    """<f(u) f(v)> = sum_ij a_i(s) M_ij(rho) a_j(t) for f = phi and phi', since the functions f(s z) of z, at all deviations s, lie in a
    space of few dimensions (`spans`). M is interpolated in artanh(k rho), which draws out the change within 1/s of rho = +-1."""

    source: Quadrature
    at: Tensor  # (A,) nodes z at which f(s z) is looked at
    spans: list[Tensor]  # (A, r) for phi, phi'
    series: list[Tensor]  # (M, r, r) Chebyshev coefficients of M, for phi, phi'
    reach: float  # artanh(k)

    def pair(self, p: Tensor, q: Tensor, c: Tensor) -> Averages:
        """The averages for p (.., n), q (.., m), c (.., n, m)"""
        s, t, rho, gap = standard_form(p, q, c)
        x = _drawn_out(rho, gap, self.reach)
        averages = []
        for f, span, series in zip((self.source.phi.phi, self.source.phi.dphi), self.spans, self.series, strict=True):
            left, right = f(s * self.at) @ span, f(t.mT * self.at) @ span
            averages.append(_clenshaw(x, left, right.mT, series))
        return averages[0], averages[1]


def prepared(source: Quadrature, p: Tensor, q: Tensor, pairs: int) -> Callable[[Tensor, Tensor, Tensor], Averages]:
    """What serves `pairs` pairs with variances among p and q: a table for smooth activations, one quadrature per pair with kinks.

    ValueError for too many pairs of the latter, and where quadrature or interpolation do not converge.
    """
    if source.phi.kinks:
        if pairs > MOST:
            raise ValueError(
                f"{pairs} pairs of the activation {source.phi.name!r}, with kinks and no closed form, would each need a "
                f"quadrature, some milliseconds: at most {MOST}; give it one with gaussian_averages.register_closed_form or take fewer"
            )
        return source.pair
    given = torch.cat([p.reshape(-1), q.reshape(-1)]).sqrt()
    with torch.device("cpu"):
        return _made(source, given.cpu(), given)


def _made(source: Quadrature, s: Tensor, given: Tensor) -> Callable[[Tensor, Tensor, Tensor], Averages]:
    """For the deviations s, on the CPU; the table goes to where `given` lies"""
    if not float(s.max()):
        at_zero = [float(f(s[:1]).square()) for f in (source.phi.phi, source.phi.dphi)]
        return lambda p, q, c: (torch.full_like(c, at_zero[0]), torch.full_like(c, at_zero[1]))
    level, steep = source.level(s), s.max().reshape(1)
    at, weight = (v[0] for v in source.nodes(0 * steep, steep, source.kinks(steep), level))
    bases = [_basis(source, f, s, at, weight) for f in (source.phi.phi, source.phi.dphi)]
    reach = math.asinh(max(float(steep), 1e-3))
    series = [v.to(given) for v in _series(source, bases, steep, level, reach)]
    spans = [(weight.sqrt()[:, None] * basis.span).to(given) for basis in bases]
    return AveragesTable(source, at.to(given), spans, series, reach).pair


@dataclass(frozen=True, eq=False)
class _Basis:
    """Functions f(s z) that span those of all deviations: s (r,), divided by their sizes (r,), are span (A, r) @ factor (r, r) where
    the density's root is part of them; the columns of span are orthonormal"""

    f: Function
    s: Tensor
    size: Tensor
    span: Tensor
    factor: Tensor


def _basis(source: Quadrature, f: Function, s: Tensor, at: Tensor, weight: Tensor) -> _Basis:
    """From the deviations themselves, or if they are many from others, so dense that those between them are mixtures with small weights"""
    from scipy.linalg import qr

    missed = math.nan
    for density in (48, 96):  # for each factor e between deviations
        some, others = _sample(torch.unique(s), density)
        (rows, size), (between, _) = (_functions(f, few, at, weight) for few in (some, others))
        decomposed: Any = qr(rows.T.numpy(), mode="economic", pivoting=True)
        span, factor, order = decomposed
        rank = max(1, int((np.abs(np.diag(factor)) > TAIL * abs(factor[0, 0])).sum()))
        span, factor = (torch.from_numpy(np.ascontiguousarray(v)) for v in (span[:, :rank], factor[:rank, :rank]))
        missed = max((between - between @ span @ span.T).norm(dim=1).tolist(), default=0.0)
        if missed <= 10 * TAIL:
            chosen = torch.from_numpy(order[:rank].astype(np.int64))
            return _Basis(f, some[chosen], size[chosen], span, factor)
    raise ValueError(
        f"the Gaussian averages of the activation {source.phi.name!r} do not converge in the standard deviation, from {float(s.min()):.3g} "
        f"to {float(s.max()):.3g}: {missed:.1e} (relative) is missed; {SCALE}"
    )


def _sample(s: Tensor, density: int) -> tuple[Tensor, Tensor]:
    """Deviations and others between them; of few all and none"""
    if len(s) <= _FEW:
        return s, s[:0]
    low, high = float(s[0]), float(s[-1])
    start = max(low, 1e-8 * high)
    count = 12 + math.ceil(density * math.log(high / start))
    even = torch.logspace(math.log10(start), math.log10(high), 2 * count - 1, dtype=s.dtype)
    return torch.cat([s[:1], even[::2]]), even[1::2]


def _functions(f: Function, s: Tensor, at: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """f(s z) (n, A), with the density's root, divided by its size (n,)"""
    rows = f(s[:, None] * at) * weight.sqrt()
    size = rows.norm(dim=1).clamp_min(1e-150)
    return rows / size[:, None], size


def _series(source: Quadrature, bases: list[_Basis], steep: Tensor, level: int, reach: float) -> list[Tensor]:
    """(M, r, r) Chebyshev coefficients of both averages, in the bases"""
    left_out = math.nan
    for grow in (1.0, 1.25, 1.6, 2.2, 3.3):
        count = 2 * math.ceil(grow * (6 + 8 * reach))
        places = (torch.arange(count, dtype=steep.dtype) + 0.5) / count
        rho, gap = _drawn_in(torch.cos(math.pi * places[: count // 2]), reach)  # positive ones; the others mirror them
        both = [_matrices(source, bases, *at, steep, level) for at in zip(rho.split(1), gap.split(1), strict=True)]
        transform = 2 / count * torch.cos(math.pi * torch.arange(count, dtype=steep.dtype)[:, None] * places)
        transform[0] /= 2
        series = []
        for k in range(len(bases)):
            positive, negative = (torch.stack([pair[k][sign] for pair in both]) for sign in range(2))
            series.append(torch.einsum("ma,aij->mij", transform, torch.cat([positive, negative.flip(0)])))
        left_out = max(float(c[-2:].abs().max()) for c in series)
        if left_out <= 2 * TAIL:
            return [_in_basis(c, basis) for c, basis in zip(series, bases, strict=True)]
    raise ValueError(
        f"the Gaussian averages of the activation {source.phi.name!r} do not converge in the correlation at standard deviations up to "
        f"{float(steep):.3g}: {left_out:.1e} (relative) is left out; {SCALE}"
    )


def _matrices(
    source: Quadrature, bases: list[_Basis], rho: Tensor, gap: Tensor, steep: Tensor, level: int
) -> list[tuple[Tensor, Tensor]]:
    """(r, r) averages between the functions of a basis at +rho and at -rho, of phi and phi'; rho, gap and steep (1,)"""
    kinks = source.kinks(steep)
    x, weight = source.shared(rho, gap, steep, kinks, level)
    y, share = (v[0] for v in source.own(x, rho, gap, steep, kinks, level))
    pairs = []
    for basis in bases:
        g = torch.stack([(basis.f(s * y) * share).sum(1) for s in basis.s]) / basis.size[:, None]
        pairs.append(((g * weight) @ g.T, (g * weight) @ g.flip(1).T))
    return pairs


def _in_basis(c: Tensor, basis: _Basis) -> Tensor:
    """factor^-T c factor^-1, without the last coefficients that do not count"""
    keep = int((c.abs().amax((1, 2)) > TAIL / 10).nonzero().max()) + 1
    half = torch.linalg.solve_triangular(basis.factor.T, c[:keep], upper=False)
    return torch.linalg.solve_triangular(basis.factor.T, half.mT, upper=False).mT.contiguous()


def _drawn_out(rho: Tensor, gap: Tensor, reach: float) -> Tensor:
    """x = artanh(k rho) / artanh(k) in [-1, 1], from |rho| = 1 - gap"""
    k, rest = math.tanh(reach), 2 / (math.exp(2 * reach) + 1)
    return torch.log1p(2 * k * (1 - gap) / (rest + k * gap)).mul_(0.5 / reach).copysign_(rho)


def _drawn_in(x: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """rho and 1 - rho at x > 0"""
    eta = reach * x
    return torch.tanh(eta) / math.tanh(reach), torch.sinh(reach - eta) / (torch.cosh(eta) * math.sinh(reach))


def _clenshaw(x: Tensor, left: Tensor, right: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k T_k(x) (left C_k right)"""
    one, two = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(len(coefficients) - 1, -1, -1):
        new = ((left @ coefficients[k]) @ right).addcmul_(x, one, value=2.0 if k else 1.0).sub_(two)
        one, two = new, one
    return one
