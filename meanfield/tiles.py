"""The two sums of a two-layer network in tiles that stay in cache (equations 8 and 9), with memory O(N + P).

Each tile h = x w^T is formed in one buffer and overwritten: by phi, then by phi' where that follows from phi
(tanh: 1 - phi^2, relu: phi > 0). Delta, and for few outputs a, are taken out of the elementwise work: with R = Delta x,

    v_w[r] = sum_c a_rc (phi'_r @ R_c),   and v_a[r] = w_r . (phi'_r @ R) where phi(h) = h phi'(h), as for relu.

`outputs` and `velocity` form h twice in a step, 6 N P D operations; at large D, and for costly phi at small, `step` goes over blocks of
data, keeps phi of one block and takes 4; so it does where all pairs fit one tile. Sums over tiles of particles are kept in float64.
Nothing here has gradients: see differentiable_sums.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from meanfield.activations import Activation, activation

Delta = Callable[[Tensor, slice], Tensor]

_CPU_TILE = 2**22  # bytes: 2 and 4 MB were alike, less and more slower
_CUDA_TILE = 2**28
# `step` keeps phi from this D on: below, storing it costs more than forming it again, ..
_ONE_PASS = 128
# .. except for costly activations up to these D, if so many bytes, part of the outermost cache, have room for eight points
_COSTLY, _KEPT = {"tanh": 4, "relu": 0, "any": 32}, 6_400_000
_BLOCK = 512  # most data points of which it keeps phi, and at most D, so that phi needs no more room than the particles
_NARROW = 32  # largest D at which sums are kept as (D, N), which products with few columns fill faster
_FEW = 64  # .. with so few points, though, the particles' arrays cost more than the products
_FOLDED = 32  # largest (C - 1) D at which products with all R_c cost less than one more elementwise factor (estimated)


class Room:
    """Memory that `step` takes again in every call: new pages cost a seventh of a step at D = 784"""

    def __init__(self) -> None:
        self.taken: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Not filled; what an earlier call was given under this name is overwritten"""
        size, old = math.prod(shape), self.taken.get(name)
        if old is None or len(old) < size or (old.dtype, old.device) != (like.dtype, like.device):
            old = self.taken[name] = like.new_empty(size)
        return old[:size].view(shape)


def elements(like: Tensor) -> int:
    """Numbers in a tile of `like`'s precision and device"""
    return max(1, (_CUDA_TILE if like.device.type == "cuda" else _CPU_TILE) // like.element_size())


def points_per_tile(w: Tensor) -> int:
    """All data points unless even 64 particles overfill a tile"""
    return max(1, elements(w) // 64)


def over(columns: int, like: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in parts of as many rows as fit a tile with `columns` columns"""
    return zip(*(t.split(max(1, elements(like) // columns)) for t in tensors), strict=True)


def outputs(activation: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor) -> Tensor:
    """f (P, C) (equation 8)"""
    work, f = _Work(activation, a, w, len(x)), torch.empty(len(x), a.shape[1], dtype=a.dtype, device=a.device)
    ma = m[:, None] * a
    columns = points_per_tile(w)
    for xt, ft in zip(x.split(columns), f.split(columns), strict=True):
        ft.copy_(work.outputs(ma, xt, work.scratch(len(xt))))
    return f


def velocity(activation: Activation, a: Tensor, w: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the data of (Delta phi, (a . Delta) phi' x), shapes (N, C) and (N, D) (equation 9)"""
    work = _Work(activation, a, w, len(x))
    columns = points_per_tile(w)
    for xt, dt in zip(x.split(columns), delta.split(columns), strict=True):
        work.add_velocity(xt, dt, work.scratch(len(xt)), formed=False)
    return work.means()


def step(
    activation: Activation,
    a: Tensor,
    w: Tensor,
    m: Tensor,
    x: Tensor,
    delta: Delta,
    train: int,
    total: Callable[[Tensor], Tensor] | None = None,
    room: Room | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """f, v_a, v_w in one pass over data, phi of one block of points kept; None where two passes are faster.

    delta(f_block, rows) gives Delta of those data points; only the first `train` points move the particles. total completes a block of
    outputs whose other terms are elsewhere. room: memory of earlier steps, in which the velocities are, too. No gradients.
    """
    block = kept_points(activation, len(w), w.shape[1], w, train, shared=total is not None)
    if not block:
        return None
    room, whole = room or Room(), total or (lambda f: f)
    work, blocks = _Work(activation, a, w, train, room), []
    ma, kept = m[:, None] * a, room("phi", w, len(w) * block)
    for start in range(0, train, block):
        rows = slice(start, min(start + block, train))
        blocks.append(whole(work.outputs(ma, x[rows], kept)))
        work.add_velocity(x[rows], delta(blocks[-1], rows), kept, formed=True)
    if train < len(x):
        blocks.append(whole(outputs(activation, a, w, m, x[train:])))
    return torch.cat(blocks), *work.means()


def kept_points(
    activation: Activation, particles: int, inputs: int, like: Tensor, train: int, shared: bool = False
) -> int:
    """The data points of which `step` keeps phi at a time; 0 where two passes are faster (measured: docs/performance.md).

    shared: processes complete every block together, so that only long ones pay, and as many for each process.
    """
    rule = _rule(activation)
    planes = 1 + (rule == "any")  # phi, and h from which such activations have their slope
    if not shared and particles * train <= elements(like):
        return train
    if inputs >= _ONE_PASS:
        return min(inputs, _BLOCK // planes, train)
    if shared:
        return 0
    block = _KEPT // (planes * particles * like.element_size())
    saves = inputs <= _COSTLY[rule] and like.device.type == "cpu"
    return min(block, train) if saves and block >= 8 else 0


_Rule = Literal["tanh", "relu", "any"]
_RULES: dict[Any, _Rule] = {(act.phi, act.dphi): act.name for act in map(activation, ("tanh", "relu"))}  # pyright: ignore


def _rule(activation: Activation) -> _Rule:
    return _RULES.get((activation.phi, activation.dphi), "any")


@dataclass
class _Work:
    """Sums over tiles (points, particles) of the particles a (N, C), w (N, D), and means over so many points.

    A `store` holds the tiles one after the other; one with room for a single tile is used again and again, and h formed anew.
    """

    activation: Activation
    a: Tensor
    w: Tensor
    points: int
    room: Room = field(default_factory=Room)

    def __post_init__(self) -> None:
        self.rule = _rule(self.activation)
        self.c, self.d = self.a.shape[1], self.w.shape[1]
        self.folded = (self.c - 1) * self.d <= _FOLDED and self.points > self.d
        self.narrow = self.d <= _NARROW and self.points > _FEW
        # v_a from w, not by a product of its own
        self.through_w = self.folded and self.rule == "relu" and self.narrow
        self.va = self.vw = self.constant = None
        self.phis: dict[int, Tensor] = {}  # of tiles whose store keeps h, by first particle

    def sums(self, name: str, columns: int) -> Tensor:
        """(N, columns), not filled"""
        n = len(self.w)
        return self.room(name, self.w, columns, n).T if self.narrow else self.room(name, self.w, n, columns)

    def scratch(self, points: int) -> Tensor:
        """Room for one tile"""
        return self.w.new_empty(min(len(self.w), max(1, elements(self.w) // points)) * points)

    def tiles(self, points: int, store: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Particles and their place (points, particles) in the store"""
        rows, all_fit = max(1, elements(self.w) // points), len(store) >= points * len(self.w)
        for start in range(0, len(self.w), rows):
            stop = min(start + rows, len(self.w))
            first = start * points if all_fit else 0
            yield slice(start, stop), store[first : first + (stop - start) * points].view(points, stop - start)

    def form(self, x: Tensor, rows: slice, h: Tensor, slope_only: bool = False) -> None:
        """h, and phi in its place where phi' follows from phi"""
        torch.mm(x, self.w[rows].T, out=h)
        if self.rule == "tanh":
            h.tanh_()
        elif self.rule == "relu" and not slope_only:
            h.relu_()

    def phi(self, h: Tensor) -> Tensor:
        return self.activation.phi(h) if self.rule == "any" else h

    def outputs(self, ma: Tensor, x: Tensor, store: Tensor) -> Tensor:
        """sum_r m_r a_r phi(w_r . x) (points, C); leaves h or phi in the store if all of it fits there"""
        total = torch.zeros(len(x), self.c, dtype=torch.float64, device=x.device)
        for rows, h in self.tiles(len(x), store):
            self.form(x, rows, h)
            phi = self.phi(h)
            total += phi @ ma[rows]  # sums of many tiles keep float32's last digits
            if self.rule == "any" and len(store) >= len(x) * len(self.w):
                self.phis[rows.start] = phi
        return total.to(x.dtype)

    def add_velocity(self, x: Tensor, delta: Tensor, store: Tensor, formed: bool) -> None:
        """Adds these points to the sums; formed: the store holds what `outputs` left there. Overwrites it."""
        delta = delta / self.points
        products = (delta[:, :, None] * x[:, None, :]).flatten(1) if self.folded else x  # (points, C D): R
        first = self.va is None
        if first:
            self.va, self.vw = self.sums("va", self.c), self.sums("vw", products.shape[1])
        va, vw = self.va, self.vw
        assert va is not None
        assert vw is not None
        for rows, h in self.tiles(len(x), store):
            if not formed:
                self.form(x, rows, h, self.through_w)
            if not self.through_w:
                phi = self.phis.pop(rows.start) if formed and self.rule == "any" else self.phi(h)
                _add_product(va[rows], phi.T, delta, first)
            _add_product(vw[rows], self._factor(h, rows, delta).T, products, first)
        if self.folded and self.rule == "tanh":
            self.constant = products.sum(0) + (0 if self.constant is None else self.constant)

    def _factor(self, h: Tensor, rows: slice, delta: Tensor) -> Tensor:
        """What multiplies R, or x: phi' (of tanh, phi^2 while folded), or phi' (a . Delta)"""
        if self.rule == "any":
            slope = self.activation.dphi(h)
            return slope if self.folded else slope * (delta @ self.a[rows].T)
        slope = h.gt_(0) if self.rule == "relu" else h.mul_(h)
        if self.folded:
            return slope
        pull = delta @ self.a[rows].T
        return pull.mul_(slope) if self.rule == "relu" else pull.addcmul_(pull, slope, value=-1)

    def means(self) -> tuple[Tensor, Tensor]:
        """v_a (N, C) and v_w (N, D)"""
        va, vw = self.va, self.vw
        assert va is not None
        assert vw is not None
        if not self.folded:
            return va.contiguous(), vw.contiguous()
        sums, vw = vw, vw if vw.shape == self.w.shape and vw.is_contiguous() else self.room("v", self.w, *self.w.shape)
        rows = max(1, elements(self.w) // (16 * self.c * self.d))  # some such parts in cache at once
        for at, wt, va_t, g, vw_t in zip(*(t.split(rows) for t in (self.a, self.w, va, sums, vw)), strict=True):
            g = g.unflatten(1, (self.c, self.d))
            if self.through_w:
                torch.sum(g * wt[:, None, :], -1, out=va_t)
            elif self.rule == "tanh":
                assert self.constant is not None
                torch.sub(self.constant.view(self.c, self.d), g, out=g)
            if self.c == 1:
                torch.mul(g[:, 0], at, out=vw_t)
            else:
                torch.sum(g.mul_(at[:, :, None]), 1, out=vw_t)
        return va.contiguous(), vw


def _add_product(target: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    if first:
        torch.mm(left, right, out=target)
    else:
        target.addmm_(left, right)
