"""Gaussian averages of many pairs of a smooth activation, by Hermite coefficients and interpolation in the angle (equation 42)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.gaussian_quadrature import Averages, Quadrature, standard_form

MOST = 20_000  # pairs of an activation with kinks, each of which needs a quadrature of its own
TERMS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of the Hermite series
ANGLES = (16, 24, 32, 48, 64, 96, 128, 192, 256)  # nodes of the interpolation
WIDEST = 1e3  # standard deviation, beyond which no series of so many terms ends
TAIL = 1e-13  # what is left out, relative to the whole
_SAMPLE = 48  # deviations that span the coefficients of all between them


@dataclass(frozen=True, eq=False)
class HermiteTable:
    """<phi(u) phi(v)> = sum_k rho^k a_k(s) a_k(t), with a_k(s) = <phi(s z) He_k(z)> / sqrt(k!), and the same for phi'.

    The vectors a(s) of all deviations lie in a space of few dimensions (`spans`), in which the sum is a small matrix for each angle.
    """

    source: Quadrature
    grid: tuple[Tensor, Tensor]
    spans: tuple[Tensor, Tensor]  # (K, r) for phi, phi'
    angles: tuple[Tensor, Tensor]  # (M, r, r) Chebyshev coefficients in the angle

    def pair(self, p: Tensor, q: Tensor, c: Tensor) -> Averages:
        """The averages for p (.., n), q (.., m), c (.., n, m)"""
        x = standard_form(p, q, c)[2].mul_(2 / math.pi).sub_(1)
        found = []
        for f, span, angles in zip((self.source.phi.phi, self.source.phi.dphi), self.spans, self.angles, strict=True):
            left, right = (_coefficients(f, v.sqrt(), *self.grid) @ span for v in (p, q))
            found.append(_clenshaw(x, left, right.transpose(-1, -2), angles))
        return found[0], found[1]


def prepared(source: Quadrature, p: Tensor, q: Tensor, pairs: int) -> Callable[[Tensor, Tensor, Tensor], Averages]:
    """What serves `pairs` pairs with variances among p and q: a table for smooth activations, one quadrature per pair with kinks.

    ValueError for too many pairs of the latter, and where the Hermite series does not end within 4096 terms.
    """
    if source.phi.kinks:
        if pairs > MOST:
            raise ValueError(
                f"{pairs} pairs of the activation {source.phi.name!r}, with kinks and no closed form, would each need a "
                f"quadrature, about a millisecond: at most {MOST}; give it one with gaussian_averages.register_closed_form or take fewer"
            )
        return source.pair
    s = torch.cat([p.reshape(-1), q.reshape(-1)]).sqrt()
    low, high = (float(v) for v in torch.aminmax(s))
    sample = torch.unique(s)
    if len(sample) > 4 * _SAMPLE:
        even = torch.linspace(low, high, 2 * _SAMPLE, dtype=s.dtype, device=s.device)
        ends = math.log10(max(low, 1e-3 * high)), math.log10(high)
        sample = torch.cat([even, torch.logspace(*ends, 2 * _SAMPLE, dtype=s.dtype, device=s.device)])
    for terms in TERMS if high < WIDEST else ():
        grid = _grid(terms, high)
        vectors = [_coefficients(f, sample, *grid) for f in (source.phi.phi, source.phi.dphi)]
        if all(_ended(a, exact) for a, exact in zip(vectors, source.single(sample.square()), strict=True)):
            spans = [_span(a) for a in vectors]
            small = [_in_angle(span) for span in spans]
            return HermiteTable(source, grid, (spans[0], spans[1]), (small[0], small[1])).pair
    raise ValueError(
        f"the Hermite series of the activation {source.phi.name!r} at a standard deviation of {high:.3g} does not end within "
        f"{TERMS[-1]} terms: declare its kinks, Activation(.., kinks=((location, jump of phi'), ..)), or take a smaller weight_std"
    )


def _grid(terms: int, scale: float) -> tuple[Tensor, Tensor]:
    """Nodes z (Q,) and He_k(z) / sqrt(k!) times the weight of the node (Q, K): equidistant, fine enough for He_K and for phi(scale z)"""
    reach = 13.0
    count = 2 * math.ceil(reach * max(2.0 * math.sqrt(terms), 8.0 * scale, 12.0) / 2) + 1
    z = torch.linspace(-reach, reach, count, dtype=torch.float64)
    root = torch.exp(-0.25 * z * z) / (2 * math.pi) ** 0.25  # Hermite functions stay bounded, polynomials do not
    rows = [root, z * root]
    for k in range(1, terms - 1):
        rows.append((z * rows[-1] - math.sqrt(k) * rows[-2]) / math.sqrt(k + 1))
    return z, torch.stack(rows, 1) * (root * (z[1] - z[0]))[:, None]


def _coefficients(f: Callable[[Tensor], Tensor], s: Tensor, z: Tensor, hermite: Tensor) -> Tensor:
    """a_k(s) (.., n, K)"""
    return f(s[..., None] * z.to(s)) @ hermite.to(s)


def _ended(a: Tensor, exact: Tensor) -> bool:
    """Whether the terms left out of the series are negligible: at u = v it must give the average"""
    total = a.square().sum(1)
    return bool(
        ((total - exact).abs() <= TAIL * exact + 1e-300).all()
        & (a[:, -4:].square().sum(1) <= TAIL / 10 * exact + 1e-300).all()
    )


def _span(a: Tensor) -> Tensor:
    """(K, r) orthonormal, of all rows of a (n, K), each taken as a direction"""
    norm = a.norm(dim=1, keepdim=True)
    _, values, right = torch.linalg.svd(a / norm.clamp_min(1e-150), full_matrices=False)
    return right[values > 1e-14 * values[0]].T.contiguous()


def _in_angle(span: Tensor) -> Tensor:
    """(M, r, r) Chebyshev coefficients in the angle of span^T diag(cos^k angle) span"""
    k = torch.arange(len(span)).to(span)
    coefficients = span.new_zeros(1, 1, 1)
    for count in ANGLES:
        nodes = torch.arange(count).to(span) + 0.5
        rho = torch.cos((torch.cos(math.pi * nodes / count) + 1) * (math.pi / 2))
        values = torch.stack([span.T @ (span * (r**k)[:, None]) for r in rho])
        transform = torch.from_numpy(
            2 / count * np.cos(np.pi / count * np.outer(np.arange(count), nodes.cpu().numpy()))
        )
        transform[0] /= 2
        coefficients = torch.einsum("ma,aij->mij", transform.to(span), values)
        if float(coefficients[-3:].abs().max()) <= TAIL:
            break
    keep = (coefficients.abs().amax((1, 2)) > 1e-16).nonzero().max() + 1
    return coefficients[: int(keep)]


def _clenshaw(x: Tensor, left: Tensor, right: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k T_k(x) (left C_k right)"""
    one, two = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(len(coefficients) - 1, -1, -1):
        new = ((left @ coefficients[k]) @ right).addcmul_(x, one, value=2.0 if k else 1.0).sub_(two)
        one, two = new, one
    return one
