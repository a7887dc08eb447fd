"""Derivatives of kernels with respect to their inputs, from closed Gaussian averages, recomputed tile by tile (equation 42c)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from meanfield.kernels.gaussian_averages import GaussianAverages, Pair, by_two_lines, closed_form, two_lines
from meanfield.network.activations import Activation

Kernels = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TILE = 256  # points


def differentiable_pair(phi: Activation) -> Pair | None:
    """(p, q, c), which broadcast, -> <phi phi>, <phi' phi'> for autograd, finite at correlations of +-1; None if they are not known"""
    lines = two_lines(phi.phi, [at for at, _ in phi.kinks])
    if lines is not None:
        return by_two_lines(_relu, *lines)
    closed = closed_form(phi)
    return None if closed is None else closed.pair if phi.name in _SMOOTH else _FORMS.get(phi.name)


def differentiable(phi: Activation) -> GaussianAverages:
    """Averages for autograd; ValueError where they are not known"""
    form = differentiable_pair(phi)
    if form is None:
        raise ValueError(no_derivatives(phi))

    def pair(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return form(p[..., :, None], q[..., None, :], c)

    return GaussianAverages(pair, lambda p: form(p, p, p), lambda p, q, pairs: pair, exact=True)


def no_derivatives(phi: Activation) -> str:
    """What to tell of an activation whose averages autograd cannot follow"""
    return (
        f"the inputs require gradients, which are not known for the activation {phi.name!r}: received one without closed averages "
        "of the library; give x.detach(), or take linear, relu, leaky relu, abs, erf, sin or gelu"
    )


class Differentiable(torch.autograd.Function):
    """nngp and ntk of x (P, ..) and x2 (P2, ..), or of x alone, by `values`; their derivatives by autograd of `pairs`, tile by tile."""

    @staticmethod
    def forward(ctx: Any, values: Callable[..., Any], pairs: Kernels, tile: int, x: Tensor, x2: Tensor | None) -> Any:
        ctx.pairs, ctx.alone, ctx.tile = pairs, x2 is None, tile
        ctx.save_for_backward(x, x if x2 is None else x2)
        return values(x.detach(), None if x2 is None else x2.detach())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("kernels have derivatives of first order only: received create_graph=True; leave it out")
        x, x2 = (t.detach().double() for t in ctx.saved_tensors)
        found = torch.zeros_like(x), torch.zeros_like(x2)
        for i in range(0, len(x), ctx.tile):
            for j in range(0, len(x2), ctx.tile):
                tile = (slice(i, i + ctx.tile), slice(j, j + ctx.tile))
                ends = [t[some].clone().requires_grad_() for t, some in zip((x, x2), tile, strict=True)]
                with torch.enable_grad():
                    kernels = ctx.pairs(*ends)
                given = [cotangent[tile].double() for cotangent in cotangents]
                for total, some, part in zip(found, tile, torch.autograd.grad(kernels, ends, given), strict=True):
                    total[some] += part
        kinds = [t.dtype for t in ctx.saved_tensors]
        if ctx.alone:
            return None, None, None, (found[0] + found[1]).to(kinds[0]), None
        return None, None, None, found[0].to(kinds[0]), found[1].to(kinds[1])


class _Angle(torch.autograd.Function):
    """kappa_1 = (sin + (pi - angle) cos) / pi and kappa_0 = (pi - angle) / pi of a correlation, the cosine of the angle

    kappa_0 has a cusp at +-1, where its derivative is taken as 0: the mean of both sides, and right for a point and itself.
    """

    @staticmethod
    def forward(ctx: Any, rho: Tensor) -> tuple[Tensor, Tensor]:
        rho = torch.where(1 - rho.abs() < 8 * torch.finfo(rho.dtype).eps, rho.sign(), rho)
        sine, rest = ((1 - rho) * (1 + rho)).sqrt(), 1 - torch.acos(rho) / math.pi
        ctx.save_for_backward(sine, rest)
        return sine / math.pi + rest * rho, rest

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        sine, rest = ctx.saved_tensors
        return cotangents[0] * rest + cotangents[1] * torch.where(sine > 0, 1 / (math.pi * sine), 0.0)


def _relu(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    norm = p.sqrt() * q.sqrt()
    features, slopes = _Angle.apply(c / norm)  # pyright: ignore[reportGeneralTypeIssues]
    return norm * features / 2, slopes / 2


def _erf(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    root = (1 + 2 * (p + q) + 4 * (p * q - c * c)).sqrt()
    return torch.atan(2 * c / root) * (2 / math.pi), (4 / math.pi) / root


def _gelu(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    s, t, gap = 1 + p, 1 + q, p * q - c * c
    root = (1 + p + q + gap).sqrt()
    both = 0.25 + torch.atan(c / root) / (2 * math.pi)  # <Phi(u) Phi(v)>
    scale = 1 / (2 * math.pi * root)
    return c * both + scale * (gap + c * c * (1 / s + 1 / t)), both + scale * c * (1 / s + 1 / t + 1 / root.square())


_FORMS: dict[str, Pair] = {"erf": _erf, "gelu": _gelu}
_SMOOTH = ("sin",)  # whose closed averages serve autograd as they are
