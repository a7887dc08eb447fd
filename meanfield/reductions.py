"""The two sums of a two-layer network, over particles and over data, with memory O(N + P) (equations 8 and 9).

    outputs:  f_mu = sum_r m_r a_r phi(w_r . x_mu)                                                  (P, C)
    velocity: (1/P) sum_mu [ Delta_mu phi(h_r,mu),  (a_r . Delta_mu) phi'(h_r,mu) x_mu ]            (N, C), (N, D)
    step:     both, Delta being made of the outputs on the way

Three engines give the same numbers to rounding, gradients included: `dense` (one N x P matrix), `chunked` (tiles that stay in
cache, see tiles.py), `keops` (compiled reductions, for GPUs at small D). `auto` chooses by shape and device. This is the only file
that imports pykeops.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from meanfield import checks, tiles
from meanfield import differentiable_sums as sums
from meanfield.activations import Activation

Engine = Literal["auto", "dense", "chunked", "keops"]

_DENSE_PAIRS = {"cpu": 2**17, "cuda": 2**26}  # N P up to which one matrix takes no longer than tiles (measured)
_GRAM_BLOCK = 128  # least columns of a block of `gram`: narrower products are slower than the half that they save
_KEOPS_LARGEST_DIMENSION = 100  # above it, matrix products win on every card tried by the KeOps authors

_CUDA_ROWS, _CUDA_TERMS = (
    2**18,
    2**10,
)  # rows that fill a GPU, least terms of each (not measured: KeOps did not run there)


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


def choose(particles: int, samples: int, inputs: int, device: torch.device, activation: Activation) -> Engine:
    """The engine that `auto` takes: dense for few pairs, KeOps on CUDA at small D, tiles otherwise."""
    if particles * samples <= _DENSE_PAIRS["cuda" if device.type == "cuda" else "cpu"]:
        return "dense"
    if device.type == "cuda" and activation.keops and inputs <= _KEOPS_LARGEST_DIMENSION and keops_works(device):
        return "keops"
    return "chunked"


def serving(engine: Engine, particles: int, x: Tensor, activation: Activation) -> Engine:
    """The engine that serves when `engine` is asked for, with so many particles and the inputs x (P, D): for "auto" the one of `choose`,
    and tiles for a KeOps that has failed here or cannot do it. ValueError for an unknown engine.
    """
    if engine not in get_args(Engine):
        checks.lookup("engine", engine, dict.fromkeys(get_args(Engine)))
    if engine == "auto":
        engine = choose(particles, len(x), x.shape[1], x.device, activation)
    if engine == "keops" and not (x.dtype in (torch.float32, torch.float64) and _keops_serves(activation, x.device)):
        return "chunked"
    return engine


def _serve(which: str, engine: Engine, activation: Activation, *tensors: Tensor) -> Any:
    _check_shapes(which, *tensors)
    served = serving(engine, len(tensors[1]), tensors[3] if which == "outputs" else tensors[2], activation)
    if served == "keops":
        try:
            return _Keops.apply(which, activation, *tensors)
        except Exception as error:  # no compiler, a broken installation: the tiles serve
            _keops_failed(error)
    if served == "dense":
        return {"outputs": sums.dense_outputs, "velocity": sums.dense_velocity}[which](activation, *tensors)
    return _by_tiles(which, activation, *tensors)


def _by_tiles(which: str, activation: Activation, *tensors: Tensor) -> Any:
    by = sums if sums.differentiated(*tensors) else tiles
    return {"outputs": by.outputs, "velocity": by.velocity}[which](activation, *tensors)


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


# ---- KeOps -----------------------------------------------------------------------------------------------------------

_lock = threading.Lock()  # concurrent KeOps calls return silently wrong values
_state = {"broken": False}


def keops_works(device: torch.device) -> bool:
    """Whether pykeops can be imported here and, for a GPU, survives there; its absence is warned of once."""
    if device.type == "cuda" and not _state["broken"] and not _survives():
        _keops_failed(RuntimeError("a process of its own that compiled a formula for the GPU died"))
    return not _state["broken"] and _genred() is not None


def _keops_serves(activation: Activation, device: torch.device) -> bool:
    if activation.keops is None:
        _warn_once(f"the activation {activation.name!r} has no KeOps formula")
        return False
    return keops_works(device)


@cache
def _survives() -> bool:
    """Whether a process of its own can compile and run a formula on the GPU: where KeOps' compiler does not suit the libraries that are
    loaded it crashes, which would end this one (seen: docs/performance_gpu.md). Some ten seconds, once.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "from meanfield import reductions; reductions.probe()"]
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def probe() -> None:
    """Compile and run one KeOps sum on the GPU; the process ends with a status other than 0, or dies, where that does not work."""
    x = torch.linspace(-1, 1, 300, device="cuda").view(150, 2)
    found = _genred()("Square((w|x))*a", ["w=Vj(2)", "a=Vj(1)", "x=Vi(2)"], reduction_op="Sum", axis=1)(
        x, x[:, :1].contiguous(), x
    )
    torch.testing.assert_close(found, (x @ x.T).square() @ x[:, :1])


def _keops_failed(error: Exception) -> None:
    _state["broken"] = True
    _warn_once(f"KeOps failed here ({type(error).__name__}: {str(error).strip()[:200]})")


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"{reason}: the chunked engine serves instead, with the same numbers to rounding", RuntimeWarning, stacklevel=2
    )


@cache
def _genred() -> Any:
    """pykeops' Genred, or None. Imported late and quietly: the import can fail in many ways and breaks fork + CUDA."""
    flags = os.environ.get("CXXFLAGS")
    unsafe = {
        "-ffast-math",
        "-Ofast",
        "-funsafe-math-optimizations",
    }  # they turn on flush-to-zero for the whole process
    os.environ["CXXFLAGS"] = " ".join(flag for flag in (flags or "").split() if flag not in unsafe)
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    os.environ.setdefault("KEOPS_VERBOSE", os.environ["PYKEOPS_VERBOSE"])  # pykeops 2.3 hands it on too late
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pykeops.torch import Genred
    except Exception as error:  # TypeError where libcudart is missing, OSError, ImportError, ...
        _keops_failed(error)
        return None
    finally:
        os.environ.pop("CXXFLAGS") if flags is None else os.environ.__setitem__("CXXFLAGS", flags)
    return Genred


def formula(activation: Activation, which: Literal["phi", "dphi"], h: str) -> str:
    """phi or phi' of the KeOps expression h; constants are the parameter k."""
    assert activation.keops is not None
    constants = [f"Elem(k,{i})" for i in range(len(activation.keops_constants()))]
    return activation.keops[which == "dphi"].format(h=h, k=constants)


def _parts(particles: int, samples: int, device: torch.device) -> int:
    """Into how many sums KeOps' sum over particles is split on a GPU, where one thread makes one row of the result."""
    if device.type != "cuda":
        return 1
    return max(1, min(_CUDA_ROWS // samples, particles // _CUDA_TERMS))


def _in_parts(t: Tensor, parts: int) -> Tensor:
    """(parts, rows, columns) of t (N, columns), filled up with zeros, which add nothing where they multiply as a does"""
    rows = -(-len(t) // parts)
    return torch.nn.functional.pad(t, (0, 0, 0, parts * rows - len(t))).view(parts, rows, t.shape[1])


def _reduction(which: str, activation: Activation, inputs: int, outs: int) -> Callable:
    phi, dphi = formula(activation, "phi", "(w|x)"), formula(activation, "dphi", "(w|x)")
    return _compiled(which, phi, dphi, len(activation.keops_constants()), inputs, outs)


@cache
def _compiled(which: str, phi: str, dphi: str, constants: int, inputs: int, outs: int) -> Callable:
    sides = ("Vj", "Vi") if which == "outputs" else ("Vi", "Vj")  # (particles, data); the sum runs over j
    aliases = [f"w={sides[0]}({inputs})", f"a={sides[0]}({outs})", f"x={sides[1]}({inputs})"]
    if which == "outputs":
        text = f"{phi}*a"  # m is folded into a
    else:
        aliases.append(f"d={sides[1]}({outs})")
        text = f"Concat({phi}*d, ({dphi}*(a|d))*x)"
    if constants:
        aliases.append(f"k=Pm({constants})")
    return _genred()(text, aliases, reduction_op="Sum", axis=1)


class _Keops(torch.autograd.Function):
    """KeOps forward; backward by tiles with explicit phi', since KeOps' own derivative of exponential forms gives NaN."""

    @staticmethod
    def forward(ctx: Any, which: str, activation: Activation, *tensors: Tensor) -> Any:
        ctx.which, ctx.activation = which, activation
        ctx.save_for_backward(*tensors)
        a, w = tensors[:2]
        x = tensors[3] if which == "outputs" else tensors[2]
        fields = [w, tensors[2][:, None] * a, x] if which == "outputs" else [w, a, x, tensors[3]]
        if constants := activation.keops_constants():
            fields.append(w.new_tensor(constants))
        backend = "CPU" if w.device.type == "cpu" else "auto"
        if which == "outputs" and (parts := _parts(len(w), len(x), w.device)) > 1:
            fields[:3] = _in_parts(fields[0], parts), _in_parts(fields[1], parts), x[None]
            fields[3:] = [t[None] for t in fields[3:]]
        with _lock:
            result = _reduction(which, activation, w.shape[1], a.shape[1])(
                *(t.contiguous() for t in fields), backend=backend
            )
        if which == "outputs" and result.ndim == 3:
            result = result.sum(0, dtype=torch.float64).to(a.dtype)
        return result if which == "outputs" else (result[:, : a.shape[1]] / len(x), result[:, a.shape[1] :] / len(x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        needed = ctx.needs_input_grad[2:]
        inputs = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            result = _by_tiles(ctx.which, ctx.activation, *inputs)
        results = (result,) if ctx.which == "outputs" else result
        wanted = [t for t in inputs if t.requires_grad]
        reached = [
            (r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad
        ]  # v_a does not depend on a
        grads = iter(torch.autograd.grad([r for r, _ in reached], wanted, [c for _, c in reached], allow_unused=True))
        return None, None, *(next(grads) if n else None for n in needed)
