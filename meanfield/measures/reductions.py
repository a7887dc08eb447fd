"""The two sums of a two-layer network, over particles and over data, with memory O(N + P) (equations 8 and 9).

    outputs:  f_mu = sum_r m_r a_r phi(w_r . x_mu)                                                  (P, C)
    velocity: (1/P) sum_mu [ Delta_mu phi(h_r,mu),  (a_r . Delta_mu) phi'(h_r,mu) x_mu ]            (N, C), (N, D)
    step:     both, Delta being made of the outputs on the way

Three engines give the same numbers to rounding, gradients included: `dense` (one N x P matrix), `chunked` (tiles that stay in
cache, see tiles.py), `keops` (compiled reductions, for GPUs at small D, see keops.py). `auto` chooses by shape and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.measures import differentiable_sums as sums
from meanfield.measures import keops, tiles
from meanfield.network.activations import Activation

Engine = Literal["auto", "dense", "chunked", "keops"]

_DENSE_PAIRS = {"cpu": 2**17, "cuda": 2**26}  # N P up to which one matrix takes no longer than tiles (measured)
_GRAM_BLOCK = 128  # least columns of a block of `gram`: narrower products are slower than the half that they save
_KEOPS_LARGEST_DIMENSION = {
    torch.float32: 32,
    torch.float64: 16,
}  # D above which tiles are faster (docs/performance_gpu.md)


def outputs(a: Tensor, w: Tensor, m: Tensor, x: Tensor, activation: Activation, engine: Engine = "auto") -> Tensor:
    """f (P, C) of the particles a (N, C), w (N, D), m (N,) at the inputs x (P, D) (equation 8)."""
    return _serve("outputs", engine, activation, a, w, m, x)


def velocity(
    a: Tensor, w: Tensor, x: Tensor, delta: Tensor, activation: Activation, engine: Engine = "auto"
) -> tuple[Tensor, Tensor]:
    """Means over the data of (Delta phi, (a . Delta) phi' x), shapes (N, C) and (N, D); delta is (P, C) (equation 9)."""
    return _serve("velocity", engine, activation, a, w, x, delta)


def step(
    a: Tensor,
    w: Tensor,
    m: Tensor,
    x: Tensor,
    delta: tiles.Delta,
    activation: Activation,
    engine: Engine = "auto",
    train: int | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    room: tiles.Room | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """f (P, C), v_a (N, C), v_w (N, D): the outputs at all of x and the velocity due to its first `train` points (None: all).

    delta(f_block, rows) returns Delta (rows, C) of the data points rows (a slice of 0..train); it may be called block by block. total
    completes a block of outputs where these particles are not all (the sum over processes). room: memory for all calls that are given
    the same; the velocities may be in it, so the next call overwrites them. By tiles that is one pass over the data where it
    pays (few pairs, D from 128 on, costly activations at small D: tiles.kept_points), which forms h once and costs 4 N P D operations
    instead of 6; otherwise, and with gradients, `outputs` and `velocity`. ValueError for shapes that do not fit.
    """
    train = len(x) if train is None else checks.integer("train", train, 1)
    _check_shapes("outputs", a, w, m, x)
    if train > len(x):
        raise ValueError(f"train must be at most the number of data points: received {train} of {len(x)}")
    served = serving(engine, len(w), x, activation)
    if served == "dense":
        return sums.dense_step(activation, a, w, m, x, delta, train, total)
    if served == "chunked" and not sums.differentiated(a, w, m, x):
        found = tiles.step(activation, a, w, m, x, delta, train, total, room)
        if found is not None:
            return found
    f = outputs(a, w, m, x, activation, engine)
    f = f if total is None else total(f)
    return f, *velocity(a, w, x[:train], delta(f[:train], slice(0, train)), activation, engine)


def gram(features: Callable[..., Tensor], m: Tensor, *fields: Tensor, columns: int) -> Tensor:
    """sum_r m_r q_r q_r^T (K, K) in float64, K = columns; q = features(*fields) (n, K) is formed for a tile of the N rows at a time."""
    total = torch.zeros(columns, columns, dtype=torch.float64, device=m.device)
    width = max(_GRAM_BLOCK, -(-columns // 6))
    blocks = [slice(start, min(start + width, columns)) for start in range(0, columns, width)]
    for mt, *tile in tiles.over(columns, m, m, *fields):
        q = features(*tile)
        weighted = mt[:, None] * q
        for i, rows in enumerate(blocks):  # the upper half: with six blocks 7/12 of all products
            for others in blocks[i:]:
                total[rows, others] += (q[:, rows].T @ weighted[:, others]).double()
    for i, rows in enumerate(blocks):
        for others in blocks[i + 1 :]:
            total[others, rows] = total[rows, others].T
    return total


def choose(particles: int, samples: int, inputs: int, like: Tensor, activation: Activation) -> Engine:
    """The engine that `auto` takes for numbers of `like`'s dtype and device: dense for few pairs, KeOps on CUDA at small D, else tiles"""
    cuda = like.device.type == "cuda"
    if particles * samples <= _DENSE_PAIRS["cuda" if cuda else "cpu"]:
        return "dense"
    if cuda and activation.keops and inputs <= _KEOPS_LARGEST_DIMENSION.get(like.dtype, 0) and keops.works(like.device):
        return "keops"
    return "chunked"


def serving(engine: Engine, particles: int, x: Tensor, activation: Activation) -> Engine:
    """The engine that serves when `engine` is asked for, with so many particles and the inputs x (P, D): for "auto" the one of `choose`,
    and tiles for a KeOps that has failed here or cannot do it. ValueError for an unknown engine.
    """
    if engine not in get_args(Engine):
        checks.lookup("engine", engine, dict.fromkeys(get_args(Engine)))
    if engine == "auto":
        engine = choose(particles, len(x), x.shape[1], x, activation)
    if engine == "keops" and not (x.dtype in (torch.float32, torch.float64) and keops.serves(activation, x.device)):
        return "chunked"
    return engine


def _serve(which: str, engine: Engine, activation: Activation, *tensors: Tensor) -> Any:
    _check_shapes(which, *tensors)
    served = serving(engine, len(tensors[1]), tensors[3] if which == "outputs" else tensors[2], activation)
    if served == "keops":
        try:
            return keops.sums(which, activation, *tensors)
        except Exception as error:  # no compiler, a broken installation: the tiles serve
            keops.failed(error)
    if served == "dense":
        return {"outputs": sums.dense_outputs, "velocity": sums.dense_velocity}[which](activation, *tensors)
    return sums.by_tiles(which, activation, *tensors)


def _check_shapes(which: str, a: Tensor, w: Tensor, *rest: Tensor) -> None:
    m, x, delta = (rest[0], rest[1], None) if which == "outputs" else (None, rest[0], rest[1])
    shapes = {"a": a, "w": w, "m": m, "x": x, "delta": delta}
    fits = a.ndim == w.ndim == x.ndim == 2 and len(a) == len(w) and w.shape[1] == x.shape[1]
    fits = fits and (m is None or m.shape == w.shape[:1]) and (delta is None or delta.shape == (len(x), a.shape[1]))
    if not fits:
        received = ", ".join(f"{k} {tuple(t.shape)}" for k, t in shapes.items() if t is not None)
        raise ValueError(f"{which} needs a (N, C), w (N, D), m (N,), x (P, D), delta (P, C): received {received}")
    kinds = {(t.dtype, t.device) for t in shapes.values() if t is not None}
    if len(kinds) > 1:
        raise ValueError(f"{which} needs tensors of one dtype on one device: received {sorted(map(str, kinds))}")
