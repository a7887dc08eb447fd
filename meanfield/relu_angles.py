"""The recursion of ReLU networks in terms of angles, which keeps all digits where points nearly coincide (equation 42b).

A correlation near 1 has lost the angle: 1 - rho = 1e-16 is an angle of 1e-8. What is carried instead is h = sin^2(angle / 2).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from meanfield.kernel_range import layers_in_range
from meanfield.parameterization import KernelWeights
from meanfield.problem import Network

NEAR = 0.022  # half chords below this are taken from differences: there a correlation gives them to 1e-14 only
AT_ONCE = 2**22  # numbers in memory

Sides = tuple[Tensor, Tensor]  # a number for each row and for each column


class ReluLayers:
    """Equation 43 on tiles of first-layer correlations, in place; Theta is kept in units of the layer's standard deviations."""

    def __init__(self, network: Network, weights: KernelWeights, z: Tensor, z2: Tensor) -> None:
        self.network, self.weights, self.same = network, weights, z is z2
        self.branch = 1.0 if network.residual is None else network.residual**2 / network.depth
        self.z, norm = _directions(z)
        self.z2, norm2 = (self.z, norm) if self.same else _directions(z2)
        p = self._variances(norm.square())
        q = p if self.same else self._variances(norm2.square())
        self.p = p
        self.sizes: list[Sides] = [(a.sqrt(), b.sqrt()) for a, b in zip(p, q, strict=True)]
        self.parts = [list(zip(*sides, strict=True)) for sides in zip(self._parts(p), self._parts(q), strict=True)]
        self.buffers: dict[torch.Size, list[Tensor]] = {}

    def panel(self, rows: slice, columns: slice) -> Tensor:
        """Correlations of the first layer"""
        return self.z[rows] @ self.z2[columns].T

    def __call__(self, rows: slice, columns: slice, rho: Tensor) -> Sides:
        """nngp and ntk of a tile, which the next call overwrites."""
        std2, bias2, at = self.network.weight_std**2, self.network.bias_std**2, (rows, columns)
        h, theta, half, new, work = self._buffers(rho)
        self._first_angle(rho, at, h, half, work)
        feature, bias = self.weights.layers[0]
        torch.mul(h, -2 * feature / std2, out=theta).add_(feature / std2)
        self._add_constant(theta, bias - bias2 * (feature / std2), self.sizes[0], at)
        for l in range(self.network.depth):
            feature, bias = self.weights.layers[l + 1]
            last = l == self.network.depth - 1
            add, through = (self.weights.readout, self.weights.hidden) if last else (self.branch, self.branch)
            if l:
                self._angle(h, half, work)
            self._features(h, half, new, work)
            scale = 1.0 if last or bias2 else float((self.p[l][:1] / self.p[l + 1][:1]).item())
            stay = 0.0 if last or self.network.residual is None else scale
            theta.mul_(half.mul_(-std2 / math.pi * through * scale).add_(std2 / 2 * through * scale + stay))
            theta.add_(new, alpha=-feature * add * scale).add_(feature / 2 * add * scale)
            if not last:
                if bias2:
                    _times(theta, self.parts[l][-1], at)
                    self._add_constant(theta, bias * add, self.sizes[l + 1], at)
                self._joined(l, at, h, new, work)
        sides = self.sizes[-1]
        _times(theta, sides, at)
        _times(torch.mul(new, -std2 * self.weights.prior, out=work).add_(std2 / 2 * self.weights.prior), sides, at)
        return (
            (work.add_(self.weights.prior * bias2), theta.add_(self.weights.readout * bias)) if bias2 else (work, theta)
        )

    def diagonal(self) -> Sides:
        """The kernels of each point with itself, where every angle is 0"""
        std2, bias2 = self.network.weight_std**2, self.network.bias_std**2
        feature, bias = self.weights.layers[0]
        theta = (self.p[0] - bias2) * (feature / std2) + bias
        for l in range(self.network.depth - 1):
            feature, bias = self.weights.layers[l + 1]
            below = self.branch * (feature * self.p[l] / 2 + bias + std2 / 2 * theta)
            theta = below if self.network.residual is None else theta + below
        feature, bias = self.weights.layers[-1]
        prior = self.weights.prior * (std2 * self.p[-1] / 2 + bias2)
        return prior, self.weights.readout * (feature * self.p[-1] / 2 + bias) + self.weights.hidden * std2 / 2 * theta

    def _first_angle(self, rho: Tensor, at: tuple[slice, slice], h: Tensor, half: Tensor, work: Tensor) -> None:
        """h = sin^2(angle / 2), half = angle / 2 and work = sin(angle) / 2 from correlations, from differences where they are near +-1

        The half chord is sin(angle / 2), beyond a right angle cos(angle / 2).
        """
        obtuse = torch.sign(rho).clamp_(max=0).neg_()  # 1 or 0
        torch.abs(rho, out=h).clamp_(max=1).mul_(-0.5).add_(0.5)
        if float(h.min()) < NEAR**2:
            z, z2 = self.z[at[0]], self.z2[at[1]]
            for some in (h < NEAR**2).nonzero().split(max(1, AT_ONCE // z.shape[1])):
                i, j = some.unbind(1)
                sign = 1 - 2 * obtuse[i, j, None]
                h[i, j] = (z[i] - sign * z2[j]).square().sum(1) / 4
        self._angle(h, half, work)
        half.addcmul_(obtuse, math.pi / 2 - 2 * half)
        h.addcmul_(obtuse, 1 - 2 * h)

    @staticmethod
    def _angle(h: Tensor, half: Tensor, work: Tensor) -> None:
        """half = angle / 2 and work = sin(angle) / 2 from h"""
        torch.sqrt(h, out=half)
        torch.sub(1, h, out=work).sqrt_().mul_(half)
        half.asin_()

    @staticmethod
    def _features(h: Tensor, half: Tensor, new: Tensor, work: Tensor) -> None:
        """new = sin^2 of half the angle between features = (1 - kappa_1) / 2, where kappa_1 = (sin + (pi - angle) cos) / pi"""
        torch.addcmul(h, h, half, value=-2 / math.pi, out=new).add_(half, alpha=1 / math.pi).sub_(
            work, alpha=1 / math.pi
        )

    def _joined(self, l: int, at: tuple[slice, slice], h: Tensor, new: Tensor, work: Tensor) -> None:
        """h of the next layer: 1 - cos is additive over independent parts of h^{l+1}, but for a term of their unequal sizes."""
        parts = self.parts[l]
        if len(parts) == 1:
            h.copy_(new)
            return
        features = _times(new, parts[0], at)
        h.copy_(features) if self.network.residual is None else _times(h, parts[-1], at).add_(features)
        present = parts[:2] if self.network.residual is None else parts
        for mine, others in present if self.network.bias_std else ():
            torch.sub(mine[at[0], None], others[at[1]], out=work)
            h.add_(work.mul_(work), alpha=0.25)
        h.clamp_(0, 1)

    @staticmethod
    def _add_constant(theta: Tensor, value: float, sides: Sides, at: tuple[slice, slice]) -> None:
        if value:
            theta.add_((value / sides[0][at[0]])[:, None] * (1 / sides[1][at[1]]))

    def _variances(self, p: Tensor) -> list[Tensor]:
        """Variances of h^1 .. h^L"""
        kept = [p]
        for _ in range(1, self.network.depth):
            new = self.branch * (self.network.weight_std**2 * kept[-1] / 2 + self.network.bias_std**2)
            kept.append(new if self.network.residual is None else kept[-1] + new)
        layers_in_range(self.network, kept)
        return kept

    def _parts(self, p: list[Tensor]) -> list[list[Tensor]]:
        """For each layer but the first the sizes, in its standard deviations, of its parts: features, biases, the layer before."""
        network, parts = self.network, []
        for before, after in itertools.pairwise(p):
            features = (self.branch * network.weight_std**2 / 2 * before / after).sqrt()
            if not network.bias_std and network.residual is None:
                parts.append([features])
                continue
            biases = (self.branch * network.bias_std**2 / after).sqrt()
            parts.append([features, biases, (before / after).sqrt()])
        return parts

    def _buffers(self, like: Tensor) -> list[Tensor]:
        if like.shape not in self.buffers:
            self.buffers[like.shape] = [torch.empty_like(like, memory_format=torch.contiguous_format) for _ in range(5)]
        return self.buffers[like.shape]


def _directions(z: Tensor) -> Sides:
    norm = torch.linalg.vector_norm(z, dim=1)
    return z / norm.clamp_min(torch.finfo(z.dtype).tiny)[:, None], norm


def _times(tensor: Tensor, sides: Sides, at: tuple[slice, slice]) -> Tensor:
    return tensor.mul_(sides[0][at[0], None]).mul_(sides[1][at[1]])
