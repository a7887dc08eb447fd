"""The two sums of a two-layer network in tiles that stay in cache (equations 8, 9 and 9b), with memory O(N + P).

Letters are those of the equations: a (N, C), w (N, D) and m (N,) of the particles, x (P, D), f and Delta (P, C) of the data, h = x w^T.
A tile is h of some points and some particles, formed in a buffer and overwritten: by phi, then by phi' where that follows from phi
(tanh: 1 - phi^2, relu: phi > 0). Equation 9b takes Delta, and for few outputs a, out of the elementwise work.

`outputs` and `velocity` form h twice in a step, 6 N P D operations; at large D, and for costly phi at small, `step` goes over blocks of
data, keeps phi of one block and takes 4; so it does where all pairs fit one tile. Sums over tiles of particles are kept in float64.
Nothing here has gradients: see differentiable_sums.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from meanfield.network.activations import Activation, activation

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
        size = math.prod(shape)
        old = self.taken.get(name)
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
    tiles = _Tiles(activation, a, w)
    f = torch.empty(len(x), a.shape[1], dtype=a.dtype, device=a.device)
    ma = m[:, None] * a
    columns = points_per_tile(w)
    for some_x, some_f in zip(x.split(columns), f.split(columns), strict=True):
        some_f.copy_(tiles.outputs(ma, some_x, tiles.scratch(len(some_x))))
    return f


def velocity(activation: Activation, a: Tensor, w: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the data of (Delta phi, (a . Delta) phi' x), shapes (N, C) and (N, D) (equation 9)"""
    sums = _Velocity(_Tiles(activation, a, w), len(x), Room())
    columns = points_per_tile(w)
    for some_x, some_delta in zip(x.split(columns), delta.split(columns), strict=True):
        sums.add(some_x, some_delta, sums.tiles.scratch(len(some_x)), formed=False)
    return sums.means()


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

    delta(f_block, points) gives Delta of those data points; only the first `train` points move the particles. total completes a block of
    outputs whose other terms are elsewhere. room: memory of earlier steps, in which the velocities are, too. No gradients.
    """
    block = kept_points(activation, len(w), w.shape[1], w, train, shared=total is not None)
    if not block:
        return None
    room = room or Room()
    tiles = _Tiles(activation, a, w)
    sums = _Velocity(tiles, train, room)
    kept = room("phi", w, len(w) * block)
    ma = m[:, None] * a
    blocks = []
    for start in range(0, train, block):
        points = slice(start, min(start + block, train))
        f = tiles.outputs(ma, x[points], kept)
        blocks.append(f if total is None else total(f))
        sums.add(x[points], delta(blocks[-1], points), kept, formed=True)
    if train < len(x):
        f = outputs(activation, a, w, m, x[train:])
        blocks.append(f if total is None else total(f))
    return torch.cat(blocks), *sums.means()


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


class _Tiles:
    """Tiles (points, particles) of h = x w^T, or of phi.

    A `store` holds the tiles one after the other; one with room for a single tile is used again and again, and h formed anew.
    """

    def __init__(self, activation: Activation, a: Tensor, w: Tensor) -> None:
        self.activation = activation
        self.a = a
        self.w = w
        self.rule = _rule(activation)
        self.phis: dict[int, Tensor] = {}  # of tiles whose store keeps h, by first particle

    def scratch(self, points: int) -> Tensor:
        """Room for one tile"""
        return self.w.new_empty(min(len(self.w), max(1, elements(self.w) // points)) * points)

    def places(self, points: int, store: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Particles and their place (points, particles) in the store"""
        count = max(1, elements(self.w) // points)
        all_fit = len(store) >= points * len(self.w)
        for start in range(0, len(self.w), count):
            stop = min(start + count, len(self.w))
            first = start * points if all_fit else 0
            yield slice(start, stop), store[first : first + (stop - start) * points].view(points, stop - start)

    def form(self, x: Tensor, particles: slice, h: Tensor, slope_only: bool = False) -> None:
        """h, and phi in its place where phi' follows from phi"""
        torch.mm(x, self.w[particles].T, out=h)
        if self.rule == "tanh":
            h.tanh_()
        elif self.rule == "relu" and not slope_only:
            h.relu_()

    def phi(self, h: Tensor) -> Tensor:
        return self.activation.phi(h) if self.rule == "any" else h

    def outputs(self, ma: Tensor, x: Tensor, store: Tensor) -> Tensor:
        """f = sum_r m_r a_r phi(w_r . x) (points, C) (equation 8); leaves h or phi in the store if all of it fits there"""
        f = torch.zeros(len(x), ma.shape[1], dtype=torch.float64, device=x.device)
        for particles, h in self.places(len(x), store):
            self.form(x, particles, h)
            phi = self.phi(h)
            f += phi @ ma[particles]  # sums of many tiles keep float32's last digits
            if self.rule == "any" and len(store) >= len(x) * len(self.w):
                self.phis[particles.start] = phi
        return f.to(x.dtype)


class _Velocity:
    """v_a and v_w, means over so many points: sums over tiles (equation 9), or products with R first (equation 9b), `folded`."""

    def __init__(self, tiles: _Tiles, points: int, room: Room) -> None:
        self.tiles = tiles
        self.points = points
        self.room = room
        particles, inputs = tiles.w.shape
        outputs = tiles.a.shape[1]
        narrow = inputs <= _NARROW and points > _FEW
        self.folded = (outputs - 1) * inputs <= _FOLDED and points > inputs
        self.through_w = self.folded and tiles.rule == "relu" and narrow  # v_a from w, not by a product of its own

        def empty(name: str, columns: int) -> Tensor:
            """(N, columns)"""
            return room(name, tiles.w, columns, particles).T if narrow else room(name, tiles.w, particles, columns)

        self.va = empty("va", outputs)
        self.vw = empty("vw", outputs * inputs if self.folded else inputs)  # phi'^T R (N, C D) where folded
        self.sum_r: Tensor | int = 0  # of R over the points, (C D,)
        self.first = True

    def add(self, x: Tensor, delta: Tensor, store: Tensor, formed: bool) -> None:
        """Adds these points to the sums; formed: the store holds what `outputs` left there. Overwrites it."""
        tiles = self.tiles
        delta = delta / self.points
        r = (delta[:, :, None] * x[:, None, :]).flatten(1) if self.folded else x  # (points, C D)
        for particles, h in tiles.places(len(x), store):
            if not formed:
                tiles.form(x, particles, h, self.through_w)
            if not self.through_w:
                phi = tiles.phis.pop(particles.start) if formed and tiles.rule == "any" else tiles.phi(h)
                _add_product(self.va[particles], phi.T, delta, self.first)
            _add_product(self.vw[particles], self._factor(h, particles, delta).T, r, self.first)
        if self.folded and tiles.rule == "tanh":
            self.sum_r = r.sum(0) + self.sum_r
        self.first = False

    def _factor(self, h: Tensor, particles: slice, delta: Tensor) -> Tensor:
        """What multiplies R: phi' (of tanh phi^2, see `means`); what multiplies x: phi' (a . Delta)"""
        tiles = self.tiles
        if tiles.rule == "any":
            slope = tiles.activation.dphi(h)
            return slope if self.folded else slope * (delta @ tiles.a[particles].T)
        slope = h.gt_(0) if tiles.rule == "relu" else h.mul_(h)
        if self.folded:
            return slope
        pull = delta @ tiles.a[particles].T
        if tiles.rule == "relu":
            return pull.mul_(slope)
        return pull.addcmul_(pull, slope, value=-1)  # (1 - phi^2) (a . Delta)

    def means(self) -> tuple[Tensor, Tensor]:
        """v_a (N, C) and v_w (N, D)"""
        if not self.folded:
            return self.va.contiguous(), self.vw.contiguous()
        a, w = self.tiles.a, self.tiles.w
        shape = (a.shape[1], w.shape[1])
        in_place = self.vw.shape == w.shape and self.vw.is_contiguous()
        vw = self.vw if in_place else self.room("v", w, *w.shape)
        count = max(1, elements(w) // (16 * math.prod(shape)))  # of particles, whose parts lie in cache at once
        for at, wt, va_t, vw_t, sums in zip(*(t.split(count) for t in (a, w, self.va, vw, self.vw)), strict=True):
            slope_r = sums.unflatten(1, shape)  # phi'^T R
            if self.through_w:
                torch.sum(slope_r * wt[:, None, :], -1, out=va_t)
            elif self.tiles.rule == "tanh":  # of phi' = 1 - phi^2 the second term was summed
                assert isinstance(self.sum_r, Tensor)
                torch.sub(self.sum_r.view(shape), slope_r, out=slope_r)
            if len(at.T) == 1:
                torch.mul(slope_r[:, 0], at, out=vw_t)
            else:
                torch.sum(slope_r.mul_(at[:, :, None]), 1, out=vw_t)
        return self.va.contiguous(), vw


def _add_product(target: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    if first:
        torch.mm(left, right, out=target)
    else:
        target.addmm_(left, right)
