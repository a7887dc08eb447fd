"""Gaussian averages by quadrature, for activations without a closed form (equation 42).

Nodes are dense where the activation is steep and sparse elsewhere, so that deviations may have any size: equidistant in a stretched
coordinate, or Gauss-Legendre panels in it that are cut at the kinks, refined until nothing changes. `averages_table` serves many pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.network.activations import Activation

RANGE = 9.0  # in standard deviations: exp(-RANGE^2 / 2) = 3e-18
STEEP = 2.0  # an activation of slopes on a scale of 1 is looked at on a scale of 1 / STEEP
ORDER = 16  # Gauss-Legendre nodes of a panel
LEVELS = 12  # of refinement
TOLERANCE = 1e-10  # change between two levels; the finer one is far closer, since both rules converge exponentially
AT_ONCE = 2**20  # evaluations kept in memory
SCALE = (
    "away from its kinks phi must vary on a scale of 1 near 0 and of |h| beyond, and grow slower than exp(h^2/4): declare kinks, if it has "
    "any, Activation(.., kinks=((location, jump of phi', 0 where only phi'' jumps), ..)), give the averages with "
    "gaussian_averages.register_closed_form, or take a smaller weight_std"
)
_WINDOW = (-9.0, -6.0, -3.0, -1.5, 0.0, 1.5, 3.0, 6.0, 9.0)

Averages = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Quadrature:
    """<phi phi> and <phi' phi'> of any activation that varies on a scale of 1 near 0 and of |h| beyond; kinks must be declared.

    ValueError when the rule does not converge: phi then has a kink that was not declared, oscillates, or grows too fast.
    """

    phi: Activation

    def single(self, p: Tensor) -> Averages:
        """The averages at u = v with variances p, of any shape"""
        s = p.reshape(-1).sqrt()
        probes = _spread(s)
        level = self._level(self._singles, (probes,), torch.arange(len(probes)), s)
        averages = self._singles(s, level)
        return averages[0].reshape(p.shape), averages[1].reshape(p.shape)

    def pair(self, p: Tensor, q: Tensor, c: Tensor) -> Averages:
        """The averages for p (.., n), q (.., m), c (.., n, m)"""
        s, t, rho, gap = (x.reshape(-1) for x in torch.broadcast_tensors(*standard_form(p, q, c)))
        averages = self._pairs(s, t, rho, gap, self.level(torch.cat([s, t])))
        return averages[0].reshape(c.shape), averages[1].reshape(c.shape)

    def level(self, s: Tensor) -> int:
        """The refinement that suffices for pairs with deviations among s, as seen at the largest, middle and smallest of them"""
        spread = _spread(s)[:, None]
        near = 0.5 / (1 + spread.square())  # where a steep activation feels that u and v differ
        gap = torch.cat([0 * spread, near, near, 0 * spread + spread.new_tensor([0.08, 0.5, 0.9, 1.0])], 1)
        rho = (1 - gap) * gap.new_tensor([1, 1, -1, 1, -1, 1, 1])
        whole = len(gap[0]) * torch.arange(len(gap)).repeat_interleave(len(gap[0]))
        rows = spread.expand_as(gap).flatten()
        return self._level(self._pairs, (rows, rows, rho.flatten(), gap.flatten()), whole, s)

    def _level(self, rule: Callable[..., Averages], probes: tuple[Tensor, ...], whole: Tensor, s: Tensor) -> int:
        """The first level at which no probe changes, relative to its size at u = v, which is that of the probes `whole`"""
        before, change = None, math.nan
        for level in range(LEVELS):
            now = rule(*probes, level)
            if before is not None:
                sizes = [n[whole].abs().clamp_min(1e-300) for n in now]
                change = max(float(((n - b).abs() / size).max()) for n, b, size in zip(now, before, sizes, strict=True))
                if change <= TOLERANCE:
                    return level
            before = now
        raise ValueError(
            f"the Gaussian averages of the activation {self.phi.name!r} do not converge at standard deviations up to {float(s.max()):.3g}: "
            f"the last refinement changed them by {change:.1e} (relative); {SCALE}"
        )

    def _singles(self, s: Tensor, level: int) -> Averages:
        parts = []
        for some in s.split(AT_ONCE // 4096):
            z, weight = self.nodes(torch.zeros_like(some), some, self.kinks(some), level)
            u = some[:, None] * z
            parts.append([(f(u).square() * weight).sum(-1) for f in (self.phi.phi, self.phi.dphi)])
        return _joined(parts)

    def _pairs(self, s: Tensor, t: Tensor, rho: Tensor, gap: Tensor, level: int) -> Averages:
        """u = s (sqrt(r) x + sqrt(1 - r) y) and v = t (+-sqrt(r) x + sqrt(1 - r) z) with r = |rho| and independent x, y, z ~ N(0, 1): at
        fixed x the averages over y and z are independent."""
        step = max(1, AT_ONCE // self._evaluations(level))
        parts = []
        for some in zip(s.split(step), t.split(step), rho.split(step), gap.split(step), strict=True):
            parts.append(self._some_pairs(*some, level))
        return _joined(parts)

    def _some_pairs(self, s: Tensor, t: Tensor, rho: Tensor, gap: Tensor, level: int) -> Averages:
        sign = torch.where(rho < 0, -1.0, 1.0).to(rho)[:, None]
        kinks, r = torch.cat([self.kinks(s), sign * self.kinks(t)], 1), rho.abs()
        x, weight = self.shared(r, gap, torch.maximum(s, t), kinks, level)
        (first, first_weight), (second, second_weight) = (
            self.own(way * x, r, gap, d, self.kinks(d), level) for d, way in ((s, 1.0), (t, sign))
        )
        u, v = s[:, None, None] * first, t[:, None, None] * second
        products = [
            (f(u) * first_weight).sum(-1) * (f(v) * second_weight).sum(-1) for f in (self.phi.phi, self.phi.dphi)
        ]
        return (products[0] * weight).sum(1), (products[1] * weight).sum(1)

    def shared(self, r: Tensor, gap: Tensor, steep: Tensor, kinks: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Nodes x and weights (B, A) for correlations r = 1 - gap (B,) >= 0, deviations up to `steep` (B,) and kinks (B, K) of u/s"""
        along = r.sqrt().clamp_min(1e-150)[:, None]
        width = gap.sqrt()[:, None, None] / along[:, :, None]
        windows = (kinks / along)[:, :, None] + width * kinks.new_tensor(_WINDOW)
        return self.nodes(torch.zeros_like(r), steep, windows.flatten(1), level)

    def own(self, x: Tensor, r: Tensor, gap: Tensor, steep: Tensor, kinks: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Nodes u/s (B, A, I) and weights of the averages over y at fixed x (B, A); the others as in `shared`"""
        mean, across = r.sqrt()[:, None] * x, gap.sqrt()[:, None]
        centre = -mean / across.clamp_min(1e-150)  # of y, where u = 0
        cuts = (kinks[:, None, :] - mean[:, :, None]) / across.clamp_min(1e-150)[:, :, None]
        y, weight = self.nodes(centre, (steep[:, None] * across).expand_as(centre), cuts, level)
        return mean[:, :, None] + across[:, :, None] * y, weight

    def nodes(self, centre: Tensor, steep: Tensor, cuts: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Nodes z and weights (.., n) of averages over N(0, 1) of what varies on a scale of 1/steep (..) at `centre` (..), and has its
        kinks at the cuts (.., k)"""
        centre, small = centre.clamp(-RANGE, RANGE)[..., None], 1 / (STEEP * steep).clamp_min(1.0)[..., None]
        low, high = (_stretched(end - centre, small) for end in (-RANGE, RANGE))
        if self.phi.kinks:
            even = torch.linspace(0, 1, 4 * 2**level + 1, dtype=low.dtype, device=low.device)
            edges = _stretched(cuts.nan_to_num(0.0).clamp(-RANGE, RANGE) - centre, small)
            x, weight = _panels(torch.cat([low + (high - low) * even, edges], -1).sort(-1).values)
        else:
            count = _equidistant(level)
            x = low + (high - low) * torch.linspace(0, 1, count, dtype=low.dtype, device=low.device)
            weight = (high - low) / (count - 1)
        up, down = small * x.exp(), small * (-x).exp()
        z = centre + up.log1p() - down.log1p()
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return z, weight * (up / (1 + up) + down / (1 + down)) * density

    def kinks(self, s: Tensor) -> Tensor:
        """(B, K) where s z meets a kink"""
        return s.new_tensor([at for at, _ in self.phi.kinks]) / s[:, None].clamp_min(1e-150)

    def _evaluations(self, level: int) -> int:
        """Of one pair"""
        k, panels = len(self.phi.kinks), 4 * 2**level
        if not k:
            return 2 * _equidistant(level) ** 2
        return 2 * (panels + 2 * k * len(_WINDOW)) * (panels + k) * ORDER**2


def _stretched(z: Tensor, small: Tensor) -> Tensor:
    """x with z = log((1 + small e^x) / (1 + small e^-x)), which is 2 small sinh(x) near 0 and x - sign(x) log(1/small) far out"""
    return z / 2 + torch.asinh(torch.sinh(z / 2) / small)


def _panels(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights (.., n) between edges (.., k)"""
    nodes, weights = (torch.from_numpy(v).to(edges) for v in np.polynomial.legendre.leggauss(ORDER))
    middle, radius = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    return (middle[..., None] + radius[..., None] * nodes).flatten(-2), (radius[..., None] * weights).flatten(-2)


def standard_form(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standard deviations (.., n, 1), (.., 1, m), the correlation rho (.., n, m) and 1 - |rho|, which is 0 if it is so within rounding"""
    s, t = p.sqrt()[..., :, None], q.sqrt()[..., None, :]
    rho = (c / (s * t).clamp_min(torch.finfo(c.dtype).tiny)).clamp_(-1, 1)
    gap = 1 - rho.abs()
    return s, t, rho, gap.masked_fill_(gap < 8 * torch.finfo(c.dtype).eps, 0.0)


def _equidistant(level: int) -> int:
    return round(28 * 1.4**level)


def _spread(s: Tensor) -> Tensor:
    """Smallest, middle and largest deviation"""
    return torch.unique(torch.stack([s.min(), s.median(), s.max()]))


def _joined(parts: list) -> Averages:
    first, second = (torch.cat(x) for x in zip(*parts, strict=True))
    return first, second
