"""The recursion of ReLU networks in terms of angles, which keeps all digits where points nearly coincide (equation 42b).

A correlation near 1 has lost the angle: 1 - rho = 1e-16 is an angle of 1e-8. What is carried instead is h = sin^2(angle / 2), beside
it the tangent kernel in units of the layer's standard deviations. `h` is that of preactivations, `h_phi` that of their features.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from meanfield.kernels.kernel_range import layers_in_range
from meanfield.kernels.weights import KernelWeights
from meanfield.network.layered import branch2
from meanfield.network.perceptron import Network

NEAR = 0.022  # half chords below this are taken from differences: there a correlation gives them to 1e-14 only
AT_ONCE = 2**22  # numbers in memory

Sides = tuple[Tensor, Tensor]  # a number for each row and for each column
At = tuple[slice, slice]  # rows and columns of a tile


class ReluLayers:
    """Equations 42b and 43 on tiles of first-layer correlations, in place."""

    def __init__(self, network: Network, weights: KernelWeights, z: Tensor, z2: Tensor) -> None:
        self.network = network
        self.weights = weights
        self.same = z is z2
        self.branch = branch2(network)
        self.z, norm = _directions(z)
        self.z2, norm2 = (self.z, norm) if self.same else _directions(z2)
        self.p = self._variances(norm.square())
        q = self.p if self.same else self._variances(norm2.square())
        self.sizes: list[Sides] = [(a.sqrt(), b.sqrt()) for a, b in zip(self.p, q, strict=True)]
        both = zip(self._parts(self.p), self._parts(q), strict=True)
        self.parts = [list(zip(*sides, strict=True)) for sides in both]
        self.buffers: dict[torch.Size, list[Tensor]] = {}

    def panel(self, rows: slice, columns: slice) -> Tensor:
        """Correlations of the first layer"""
        return self.z[rows] @ self.z2[columns].T

    def __call__(self, rows: slice, columns: slice, rho: Tensor) -> Sides:
        """nngp and ntk of a tile, which the next call overwrites."""
        at = (rows, columns)
        h, ntk, half, h_phi, work = self._buffers(rho)
        self._first_angle(rho, at, h, half, work)
        self._first_ntk(h, at, ntk)
        for l in range(self.network.depth):
            if l:
                self._angle(h, half, work)
            self._features(h, half, h_phi, work)
            self._next_ntk(l, at, half, h_phi, ntk)
            if l < self.network.depth - 1:
                self._joined(l, at, h, h_phi, work)
        std2, bias2, prior = self.network.weight_std**2, self.network.bias_std**2, self.weights.prior
        nngp = torch.mul(h_phi, -std2 * prior, out=work).add_(std2 / 2 * prior)
        _times(nngp, self.sizes[-1], at)
        _times(ntk, self.sizes[-1], at)
        if bias2:
            nngp.add_(prior * bias2)
            ntk.add_(self.weights.readout * self.weights.layers[-1][1])
        return nngp, ntk

    def _first_ntk(self, h: Tensor, at: At, ntk: Tensor) -> None:
        """Theta^1 from Sigma^1 = 1 - 2 h, of which the biases' part has a weight of its own"""
        std2, bias2 = self.network.weight_std**2, self.network.bias_std**2
        feature, bias = self.weights.layers[0]
        torch.mul(h, -2 * feature / std2, out=ntk).add_(feature / std2)
        self._add_constant(ntk, bias - bias2 * (feature / std2), 0, at)

    def _next_ntk(self, l: int, at: At, half: Tensor, h_phi: Tensor, ntk: Tensor) -> None:
        """From Theta of a layer the next, or at last K, by <phi phi> = 1/2 - h_phi and <phi' phi'> = 1/2 - half / pi; overwrites half"""
        std2, bias2, last = self.network.weight_std**2, self.network.bias_std**2, l == self.network.depth - 1
        feature, bias = self.weights.layers[l + 1]
        add, through = (self.weights.readout, self.weights.hidden) if last else (self.branch, self.branch)
        # of the two layers' variances; without biases it is the same for all points
        ratio = 1.0 if last or bias2 else float((self.p[l][:1] / self.p[l + 1][:1]).item())
        stay = 0.0 if last or self.network.residual is None else ratio
        ntk.mul_(half.mul_(-std2 / math.pi * through * ratio).add_(std2 / 2 * through * ratio + stay))
        ntk.add_(h_phi, alpha=-feature * add * ratio).add_(feature / 2 * add * ratio)
        if bias2 and not last:
            _times(ntk, self.parts[l][-1], at)
            self._add_constant(ntk, bias * add, l + 1, at)

    def diagonal(self) -> Sides:
        """The kernels of each point with itself, where every angle is 0"""
        std2, bias2 = self.network.weight_std**2, self.network.bias_std**2
        feature, bias = self.weights.layers[0]
        ntk = (self.p[0] - bias2) * (feature / std2) + bias
        for p, (feature, bias) in zip(self.p[:-1], self.weights.layers[1:-1], strict=True):
            branch = self.branch * (feature * p / 2 + bias + std2 / 2 * ntk)
            ntk = branch if self.network.residual is None else ntk + branch
        feature, bias = self.weights.layers[-1]
        nngp = self.weights.prior * (std2 * self.p[-1] / 2 + bias2)
        ntk = self.weights.readout * (feature * self.p[-1] / 2 + bias) + self.weights.hidden * std2 / 2 * ntk
        return nngp, ntk

    def _first_angle(self, rho: Tensor, at: At, h: Tensor, half: Tensor, work: Tensor) -> None:
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
    def _features(h: Tensor, half: Tensor, h_phi: Tensor, work: Tensor) -> None:
        """h_phi = h - [sin(angle) - angle cos(angle)] / 2 pi, with cos(angle) = 1 - 2 h"""
        torch.addcmul(h, h, half, value=-2 / math.pi, out=h_phi)
        h_phi.add_(half, alpha=1 / math.pi)
        h_phi.sub_(work, alpha=1 / math.pi)

    def _joined(self, l: int, at: At, h: Tensor, h_phi: Tensor, work: Tensor) -> None:
        """h of the next layer, sum_k A_k A'_k h_k + (A_k - A'_k)^2 / 4 over its parts: features, biases (h = 0), the layer before."""
        parts = self.parts[l]
        if len(parts) == 1:
            h.copy_(h_phi)
            return
        features = _times(h_phi, parts[0], at)
        if self.network.residual is None:
            h.copy_(features)
        else:
            _times(h, parts[-1], at).add_(features)
        present = parts[:2] if self.network.residual is None else parts
        for mine, others in present if self.network.bias_std else ():
            torch.sub(mine[at[0], None], others[at[1]], out=work)
            h.add_(work.mul_(work), alpha=0.25)
        h.clamp_(0, 1)

    def _add_constant(self, ntk: Tensor, value: float, layer: int, at: At) -> None:
        if value:
            left, right = self.sizes[layer]
            ntk.add_((value / left[at[0]])[:, None] * (1 / right[at[1]]))

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
        network = self.network
        parts = []
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


def _times(tensor: Tensor, sides: Sides, at: At) -> Tensor:
    return tensor.mul_(sides[0][at[0], None]).mul_(sides[1][at[1]])
