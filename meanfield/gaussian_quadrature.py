"""Gaussian averages by quadrature, for activations without a closed form (equation 42).

Gauss-Legendre panels that are cut at the kinks, or equidistant nodes without kinks, refined until nothing changes; many pairs are
served by `averages_table`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.activations import Activation

RANGE = 9.0  # in standard deviations: exp(-RANGE^2 / 2) = 3e-18
ORDER = 16  # Gauss-Legendre nodes of a panel
LEVELS = 12  # of refinement
TOLERANCE = (
    1e-10  # change between two levels; that of the finer one is far smaller, since both rules converge exponentially
)
AT_ONCE = 2**20  # evaluations kept in memory
_WINDOW = (-9.0, -6.0, -3.0, -1.5, 0.0, 1.5, 3.0, 6.0, 9.0)

Averages = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Quadrature:
    """<phi phi> and <phi' phi'> of any activation; kinks must be declared in `Activation.kinks`.

    ValueError when the rule does not converge: phi then has a kink that was not declared, or grows too fast for a Gaussian average.
    """

    phi: Activation

    def single(self, p: Tensor) -> Averages:
        """The averages at u = v with variances p, of any shape"""
        s = p.reshape(-1).sqrt()
        found = self._converged(self._singles, (s,), (_spread(s),))
        return found[0].reshape(p.shape), found[1].reshape(p.shape)

    def pair(self, p: Tensor, q: Tensor, c: Tensor) -> Averages:
        """The averages for p (.., n), q (.., m), c (.., n, m)"""
        found = self.angled(*(x.reshape(-1) for x in torch.broadcast_tensors(*standard_form(p, q, c))))
        return found[0].reshape(c.shape), found[1].reshape(c.shape)

    def angled(self, s: Tensor, t: Tensor, angle: Tensor) -> Averages:
        """The averages for deviations s, t (B,) and the angle (B,) between u and v"""
        probes = torch.cartesian_prod(_spread(torch.cat([s, t])), s.new_tensor([0.0, 0.4, math.pi / 2, 2.7, math.pi]))
        return self._converged(self._pairs, (s, t, angle), (probes[:, 0], probes[:, 0], probes[:, 1]))

    def _converged(
        self, rule: Callable[..., Averages], data: tuple[Tensor, ...], probes: tuple[Tensor, ...]
    ) -> Averages:
        """The rule on all data, at a level that suffices on probes with the largest and the smallest deviations."""
        before, now = None, None
        for level in range(LEVELS):
            before, now = now, rule(*probes, level)
            if before is not None and all(_close(n, b) for n, b in zip(now, before, strict=True)):
                return rule(*data, level)
        assert now is not None
        assert before is not None
        change = max(float((n - b).abs().max() / n.abs().max()) for n, b in zip(now, before, strict=True))
        raise ValueError(
            f"the Gaussian averages of the activation {self.phi.name!r} do not converge: the last refinement changed them by {change:.1e} "
            "(relative). Declare its kinks, Activation(.., kinks=((location, jump of phi'), ..)); phi must grow slower than exp(h^2/4)"
        )

    def _singles(self, s: Tensor, level: int) -> Averages:
        parts, step = [], max(1, AT_ONCE // 4096)
        for i in range(0, len(s), step):
            z, weight = self._nodes(self._kinks(s[i : i + step]), level)
            u = s[i : i + step, None] * z
            parts.append([(f(u).square() * weight).sum(-1) for f in (self.phi.phi, self.phi.dphi)])
        return _joined(parts)

    def _pairs(self, s: Tensor, t: Tensor, angle: Tensor, level: int) -> Averages:
        """u = s (cos(angle/2) a + sin(angle/2) b), v = t (cos(angle/2) a - sin(angle/2) b) with independent a, b ~ N(0, 1); beyond a
        right angle v is minus that at pi - angle, which keeps the dependence on a at fixed b mild."""
        parts, done = [], 0
        while done < len(s):
            step = max(1, AT_ONCE // self._evaluations(level))
            some = slice(done, done + step)
            parts.append(self._some_pairs(s[some], t[some], angle[some], level))
            done += step
        return _joined(parts)

    def _some_pairs(self, s: Tensor, t: Tensor, angle: Tensor, level: int) -> Averages:
        sign = torch.where(angle > math.pi / 2, -1.0, 1.0).to(angle)
        half = torch.where(sign < 0, math.pi - angle, angle) / 2
        cosine, sine = half.cos(), half.sin()
        at_u, at_v = self._kinks(s), sign[:, None] * self._kinks(t)  # (B, K) in units of s and t
        centres = torch.cat([at_u, at_v], 1) / cosine[:, None]
        windows = centres[:, :, None] + (sine / cosine)[:, None, None] * centres.new_tensor(_WINDOW)
        crossings = (at_u[:, :, None] + at_v[:, None, :]) / (2 * cosine[:, None, None])
        a, outer = self._nodes(torch.cat([windows.flatten(1), crossings.flatten(1)], 1), level)  # (B, A) or (A,)
        along, across = cosine[:, None] * a, sine[:, None, None]
        cuts = torch.cat([at_u[:, None, :] - along[:, :, None], along[:, :, None] - at_v[:, None, :]], 2) / across
        b, inner = self._nodes(torch.nan_to_num(cuts, RANGE), level)  # (B, A, I) or (I,)
        u, v = s[:, None, None] * (along[:, :, None] + across * b), t[:, None, None] * (along[:, :, None] - across * b)
        v = sign[:, None, None] * v
        both = ((f(u).mul_(f(v)) * inner).sum(-1) for f in (self.phi.phi, self.phi.dphi))
        first, second = ((x * outer).sum(-1) for x in both)
        return first, second

    def _kinks(self, s: Tensor) -> Tensor:
        """(B, K) where s z meets a kink"""
        return s.new_tensor([at for at, _ in self.phi.kinks]) / s[:, None].clamp_min(1e-150)

    def _evaluations(self, level: int) -> int:
        if not self.phi.kinks:
            return _trapezoid_nodes(level) ** 2
        k, panels = len(self.phi.kinks), 4 * 2**level
        return (panels + 2 * k * len(_WINDOW) + k * k) * (panels + 2 * k) * ORDER**2

    def _nodes(self, cuts: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Nodes z and weights of an average over N(0, 1): equidistant for smooth phi, else (.., n) from panels that end at the cuts."""
        if not self.phi.kinks:
            z = torch.linspace(-RANGE, RANGE, _trapezoid_nodes(level), dtype=cuts.dtype, device=cuts.device)
            return z, _density(z) * (z[1] - z[0])
        even = torch.linspace(-RANGE, RANGE, 4 * 2**level + 1, dtype=cuts.dtype, device=cuts.device)
        edges = torch.cat([even.expand(*cuts.shape[:-1], -1), cuts.clamp(-RANGE, RANGE)], -1).sort(-1).values
        nodes, weights = (torch.from_numpy(x).to(cuts) for x in np.polynomial.legendre.leggauss(ORDER))
        middle, radius = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
        z = (middle[..., None] + radius[..., None] * nodes).flatten(-2)
        return z, (radius[..., None] * weights).flatten(-2) * _density(z)


def standard_form(p: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviations (.., n, 1), (.., 1, m) and the angle (.., n, m) between u and v; within rounding of 0 and pi it is 0 and pi."""
    s, t = p.sqrt()[..., :, None], q.sqrt()[..., None, :]
    rho = (c / (s * t).clamp_min(torch.finfo(c.dtype).tiny)).clamp_(-1, 1)
    return s, t, torch.acos(torch.where(1 - rho.abs() < 8 * torch.finfo(c.dtype).eps, rho.sign(), rho))


def _trapezoid_nodes(level: int) -> int:
    return round(28 * 1.4**level)


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _spread(s: Tensor) -> Tensor:
    """Largest, middle and smallest deviation"""
    return torch.unique(torch.stack([s.max(), s.median(), s.min()]))


def _close(now: Tensor, before: Tensor) -> bool:
    return bool(((now - before).abs() <= TOLERANCE * now.abs().amax()).all())


def _joined(parts: list) -> Averages:
    first, second = (torch.cat(x) for x in zip(*parts, strict=True))
    return first, second
