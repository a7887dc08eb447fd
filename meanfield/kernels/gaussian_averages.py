"""Averages <phi(u) phi(v)> and <phi'(u) phi'(v)> over two Gaussians with variances p, q and covariance c (equations 41 and 42).

Closed forms stand in one table, by the activation's name: add yours with `register_closed_form`. What is made of two straight lines
that meet at 0 needs no name. All others go by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.kernels.averages_table import prepared
from meanfield.kernels.gaussian_quadrature import Quadrature
from meanfield.network.activations import Activation, activation, names

_PLACES = 10 ** torch.linspace(
    -8, 8, 49, dtype=torch.float64
)  # where a function is looked at for being two straight lines
Pair = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Single = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ClosedForm:
    """(p, q, c), which broadcast, -> <phi phi>, <phi' phi'>; and the same at u = v from the variance p alone, free of rounding in c."""

    pair: Pair
    single: Single


@dataclass(frozen=True)
class GaussianAverages:
    """Averages of one activation.

    `pair(p (.., n), q (.., m), c (.., n, m))` and `single(p)` each give (<phi phi>, <phi' phi'>) of the shape of c and p, in float64.
    `prepare(p, q, pairs)` gives a `pair` that is fast for so many pairs with variances among p and q.
    """

    pair: Pair
    single: Single
    prepare: Callable[[Tensor, Tensor, int], Pair]
    exact: bool


def gaussian_averages(which: str | Activation, quadrature: bool = False) -> GaussianAverages:
    """The averages of an activation, in closed form if one is known and quadrature is not asked for."""
    phi = activation(which)
    closed = None if quadrature else closed_form(phi)
    if closed is None:
        numerical = Quadrature(phi)
        return GaussianAverages(
            numerical.pair, numerical.single, lambda p, q, pairs: prepared(numerical, p, q, pairs), exact=False
        )

    def pair(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return closed.pair(p[..., :, None], q[..., None, :], c)

    return GaussianAverages(pair, closed.single, lambda p, q, pairs: pair, exact=True)


def gaussian_mean(function: Callable[[Tensor], Tensor], phi: Activation, p: Tensor) -> Tensor:
    """<f(h)> of h ~ N(0, p), for a function with the kinks of phi"""
    if p.requires_grad:
        raise ValueError(f"the mean of {phi.name!r} over neurons has no derivative in the inputs here: give x.detach()")
    rule, s = Quadrature(phi), p.reshape(-1).sqrt()
    unique, back = torch.unique(s, return_inverse=True)
    level = rule.level(unique)
    parts = []
    for some in unique.split(256):
        z, weight = rule.nodes(torch.zeros_like(some), some, rule.kinks(some), level)
        parts.append((function(some[:, None] * z) * weight).sum(-1))
    return torch.cat(parts)[back].reshape(p.shape)


def closed_form(which: str | Activation) -> ClosedForm | None:
    """The closed form of this very activation, by its name (another activation of the same name has none) or since it is made of two
    straight lines; None if there is none."""
    phi = activation(which)
    if phi.name in _CLOSED and phi.name in names():
        known = activation(phi.name)
        if (known.phi, known.dphi) == (phi.phi, phi.dphi):
            return _CLOSED[phi.name]
    lines = two_lines(phi.phi, [at for at, _ in phi.kinks])
    return None if lines is None else _of_two_lines(*lines)


def two_lines(function: Callable[[Tensor], Tensor], kinks: Sequence[float]) -> tuple[float, float] | None:
    """The slopes (a, b) of a function that is a h above 0 and b h below it, as leaky relu or |h|; None for others"""
    if any(kinks):
        return None
    found = function(torch.cat([_PLACES, -_PLACES])).reshape(2, -1) / torch.stack([_PLACES, -_PLACES])
    if not bool(((found - found[:, :1]).abs() <= 1e-14 * found[:, :1].abs()).all()):
        return None
    above, below = found[:, 0].tolist()
    return above, below


def by_two_lines(relu: Pair, above: float, below: float) -> Pair:
    """The averages of phi(h) = (above - below) relu(h) + below h from those of relu (equation 41)"""
    square, product = (above - below) ** 2, above * below

    def pair(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if not square:
            return product * c, torch.full_like(c, product)
        features, slopes = relu(p, q, c)
        return square * features + product * c, square * slopes + product

    return pair


def _of_two_lines(above: float, below: float) -> ClosedForm:
    half = (above**2 + below**2) / 2
    return ClosedForm(by_two_lines(_relu, above, below), lambda p: (half * p, torch.full_like(p, half)))


def register_closed_form(name: str, pair: Pair, single: Single) -> None:
    """Give the activation called `name` closed averages; ValueError if it is unknown or has them already."""
    activation(name)
    if name in _CLOSED:
        raise ValueError(f"the activation {name!r} has a closed form already: register another name")
    _CLOSED[name] = ClosedForm(pair, single)


def _linear(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return c.clone(), torch.ones_like(c)


def _relu(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The arc-cosine kernels. A correlation within rounding of +-1 is taken as +-1: an angle below 4e-8 cannot be seen in c."""
    norm = p.sqrt() * q.sqrt()
    rho = (c / norm.clamp_min(torch.finfo(c.dtype).tiny)).clamp_(-1, 1)
    rho = torch.where(1 - rho.abs() < 8 * torch.finfo(c.dtype).eps, rho.sign(), rho)
    rest = math.pi - torch.acos(rho)
    sine = ((1 - rho) * (1 + rho)).sqrt_()
    return norm * (sine + rest * rho) / (2 * math.pi), rest / (2 * math.pi)


def _erf(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    s, t = 1 + 2 * p, 1 + 2 * q
    size = s.sqrt() * t.sqrt()
    rest = (1 / s + 2 * p / s / t + 4 * _determinant(p, q, c, size)).sqrt_()
    return torch.atan(2 * c / size / rest).mul_(2 / math.pi), (4 / math.pi) / (size * rest)


def _erf_alone(p: Tensor) -> tuple[Tensor, Tensor]:
    root = (1 + 4 * p).sqrt()
    return torch.atan(2 * p / root).mul_(2 / math.pi), (4 / math.pi) / root


def _sin(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    mean = (p + q) / 2
    near, far = torch.exp(c - mean), torch.exp(-c - mean)
    return (near - far) / 2, (near + far) / 2


def _gelu(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """With Delta = s t (1 - r^2), r = c / sqrt(s t), so that products of two variances, which may overflow, do not occur"""
    s, t = 1 + p, 1 + q
    size, shares = s.sqrt() * t.sqrt(), 1 / s + 1 / t
    gap, r = _determinant(p, q, c, size), c / size
    rest = 1 / s + p / s / t + gap  # Delta / (s t)
    scale = 1 / (2 * math.pi * rest.sqrt())
    both = 0.25 + torch.atan(r / rest.sqrt()) / (2 * math.pi)  # <Phi(u) Phi(v)>
    return c * both + scale * (gap + r * r * shares) * size, both + scale * r * (shares + 1 / s / rest / t)


def _gelu_alone(p: Tensor) -> tuple[Tensor, Tensor]:
    root = (1 + 2 * p).sqrt()
    both, scale = 0.25 + torch.atan(p / root) / (2 * math.pi), p / (2 * math.pi * root)
    return p * (both + scale * 2 / (1 + p)), both + scale * (2 / (1 + p) + 1 / (1 + 2 * p))


def _determinant(p: Tensor, q: Tensor, c: Tensor, size: Tensor) -> Tensor:
    """(p q - c^2) / size^2 >= 0, as a product of differences"""
    norm = p.sqrt() * q.sqrt()
    return ((norm - c) / size * ((norm + c) / size)).clamp_(min=0)


def _by_pair(pair: Pair) -> Single:
    return lambda p: pair(p, p, p)


_CLOSED: dict[str, ClosedForm] = {
    "linear": ClosedForm(_linear, _by_pair(_linear)),
    "relu": ClosedForm(_relu, lambda p: (p / 2, torch.full_like(p, 0.5))),
    "erf": ClosedForm(_erf, _erf_alone),
    "sin": ClosedForm(_sin, _by_pair(_sin)),
    "gelu": ClosedForm(_gelu, _gelu_alone),
}
