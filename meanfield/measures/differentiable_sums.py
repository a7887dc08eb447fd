"""The two sums of a two-layer network for autograd (equations 8 and 9): by one matrix of all pairs, or by tiles with memory O(N + P), each
of which is recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from meanfield.measures import tiles
from meanfield.network.activations import Activation


def differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def by_tiles(which: str, activation: Activation, *tensors: Tensor) -> Any:
    """Those of tiles.py where no gradient is asked for"""
    if not differentiated(*tensors):
        return {"outputs": tiles.outputs, "velocity": tiles.velocity}[which](activation, *tensors)
    return {"outputs": outputs, "velocity": velocity}[which](activation, *tensors)


def outputs(activation: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor) -> Tensor:
    """f (P, C) by tiles"""

    def part(a: Tensor, w: Tensor, m: Tensor, x: Tensor) -> Tensor:
        return dense_outputs(activation, a, w, m, x)

    blocks = []
    for xt in x.split(tiles.points_per_tile(w)):
        total = torch.zeros((), dtype=torch.float64, device=a.device)
        for tile in tiles.over(len(xt), w, a, w, m):
            total = total + _remember_little(part, *tile, xt).double()
        blocks.append(total.to(a.dtype))
    return torch.cat(blocks)


def velocity(activation: Activation, a: Tensor, w: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """v_a (N, C) and v_w (N, D) by tiles"""

    def part(a: Tensor, w: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        return dense_velocity(activation, a, w, x, delta)

    blocks = []
    for xt, dt in zip(x.split(tiles.points_per_tile(w)), delta.split(tiles.points_per_tile(w)), strict=True):
        pairs = [_remember_little(part, *tile, xt, dt) for tile in tiles.over(len(xt), w, a, w)]
        blocks.append([torch.cat(rows) * len(xt) for rows in zip(*pairs, strict=True)])
    va, vw = (torch.stack(parts).sum(0) / len(x) for parts in zip(*blocks, strict=True))
    return va, vw


def dense_outputs(activation: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor) -> Tensor:
    """f by one matrix of all pairs"""
    return activation.phi(x @ w.T) @ (m[:, None] * a)


def dense_velocity(activation: Activation, a: Tensor, w: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """v_a and v_w by one matrix of all pairs"""
    h = w @ x.T  # (N, P)
    return activation.phi(h) @ delta / len(x), (activation.dphi(h) * (a @ delta.T)) @ x / len(x)


def dense_step(
    activation: Activation,
    a: Tensor,
    w: Tensor,
    m: Tensor,
    x: Tensor,
    delta: tiles.Delta,
    train: int,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """f, v_a, v_w by one matrix of all pairs, which both share; arguments as of tiles.step"""
    h = x @ w.T  # (P, N)
    phi = activation.phi(h)
    f = phi @ (m[:, None] * a)
    f = f if total is None else total(f)
    pull = delta(f[:train], slice(0, train)) / train
    return f, phi[:train].T @ pull, (activation.dphi(h[:train]) * (pull @ a.T)).T @ x[:train]


def _remember_little(part: Callable, *tensors: Tensor) -> Any:
    """part(*tensors), recomputed in the backward pass instead of remembered."""
    if differentiated(*tensors):
        from torch.utils.checkpoint import checkpoint  # half a second to import, with torch below 2.8

        return checkpoint(part, *tensors, use_reentrant=False, preserve_rng_state=False)
    return part(*tensors)
