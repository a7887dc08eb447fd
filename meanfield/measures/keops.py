"""The two sums of a two-layer network by KeOps (equations 8 and 9): compiled reductions without the N x P matrix, for GPUs at small D.

This is the only file that imports pykeops.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from meanfield.checking.warning import warn
from meanfield.measures.differentiable_sums import by_tiles
from meanfield.network.activations import Activation

# rows that fill a GPU (within 1.2 of the best on an H200), least terms of each
_CUDA_ROWS = 2**18
_CUDA_TERMS = 2**10
_UNSAFE = {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"}  # flags that flush to zero in the whole process
# A C++ library that goes into KeOps' helper whole would mix with the one that torch has loaded, and end the process. KeOps 2.3 compiles
# that helper with no flags but its own, so its compiler is a script that adds one; what other compilers made stays in another folder.
_APART = "-Wl,--exclude-libs,ALL"
_CACHE = Path.home() / ".cache" / "meanfield" / "keops"

_lock = threading.Lock()  # concurrent KeOps calls return silently wrong values
_state = {"broken": False}


def works(device: torch.device) -> bool:
    """Whether pykeops can be imported here and, for a GPU, survives there; its absence is warned of once."""
    if device.type == "cuda" and not _state["broken"] and (died := end_of_trial()):
        failed(RuntimeError(f"a process of its own that compiled a formula for the GPU {died}"))
    return not _state["broken"] and _genred() is not None


def serves(activation: Activation, device: torch.device) -> bool:
    """Whether KeOps works and the activation has a formula; if not, that is warned of once."""
    if activation.keops is None:
        _warn_once(f"the activation {activation.name!r} has no KeOps formula")
        return False
    return works(device)


def failed(error: Exception) -> None:
    """From now on the tiles serve"""
    _state["broken"] = True
    _warn_once(f"KeOps failed here ({type(error).__name__}: {str(error).strip()[:200]})")


def sums(which: str, activation: Activation, *tensors: Tensor) -> Any:
    """f of (a, w, m, x), or v_a and v_w of (a, w, x, delta), with gradients"""
    return _Sums.apply(which, activation, *tensors)


@cache
def end_of_trial() -> str:
    """How a process of its own ended that compiled and ran a formula on the GPU; empty if all went well. Where KeOps' compiler does not
    suit the libraries that are loaded it crashes, which would end this one (seen: docs/performance_gpu.md). Some ten seconds, once.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"from {__name__} import probe; probe()"]
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"did not end: {error}"
    if ended.returncode == 0:
        return ""
    last = ended.stderr.strip().rpartition("\n")[2][:120]
    return f"ended with status {ended.returncode}{last and ': '}{last}"


def probe() -> None:
    """Compile and run one KeOps sum on the GPU; the process ends with a status other than 0, or dies, where that does not work."""
    x = torch.linspace(-1, 1, 300, device="cuda").view(150, 2)
    a = x[:, :1].abs().contiguous()  # of one sign, as all terms: a sum that cancels would show its rounding
    reduction = _genred()("Square((w|x))*a", ["w=Vj(2)", "a=Vj(1)", "x=Vi(2)"], reduction_op="Sum", axis=1)
    torch.testing.assert_close(reduction(x, a, x), (x @ x.T).square() @ a)


@cache
def _warn_once(reason: str) -> None:
    message = f"{reason}: the chunked engine serves instead, with the same numbers to rounding"
    warn(message, RuntimeWarning)


@cache
def _genred() -> Any:
    """pykeops' Genred, or None. Imported late and quietly: the import can fail in many ways and breaks fork + CUDA."""
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    os.environ.setdefault("KEOPS_VERBOSE", os.environ["PYKEOPS_VERBOSE"])  # pykeops 2.3 hands it on too late
    compiling = _compiling()
    before = {name: os.environ.get(name) for name in compiling}
    os.environ.update(compiling)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pykeops.torch import Genred
    except Exception as error:  # TypeError where libcudart is missing, OSError, ImportError, ...
        failed(error)
        return None
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ.update({} if value is None else {name: value})
    return Genred


def _compiling() -> dict[str, str]:
    """The variables that KeOps reads when it is imported: flags and, beside a GPU, a compiler that keeps its C++ library apart"""
    flags = [flag for flag in os.environ.get("CXXFLAGS", "").split() if flag not in _UNSAFE]
    found = {"CXXFLAGS": " ".join(flags)}
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if sys.platform == "linux" and torch.cuda.is_available() and compiler:
        folder = Path(os.environ.get("KEOPS_CACHE_FOLDER", _CACHE))
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "c++"
        fresh = script.with_name(f"c++.{os.getpid()}")  # whole or not there, for processes that start at once
        fresh.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" {_APART}\n')
        fresh.chmod(0o755)
        fresh.replace(script)
        found |= {"CXX": str(script), "KEOPS_CACHE_FOLDER": str(folder)}
    return found


def formula(activation: Activation, which: Literal["phi", "dphi"], h: str) -> str:
    """phi or phi' of the KeOps expression h; constants are the parameter k."""
    assert activation.keops is not None
    constants = [f"Elem(k,{i})" for i in range(len(activation.keops_constants()))]
    return activation.keops[which == "dphi"].format(h=h, k=constants)


def _reduction(which: str, activation: Activation, inputs: int, outs: int) -> Callable:
    phi, dphi = formula(activation, "phi", "(w|x)"), formula(activation, "dphi", "(w|x)")
    return _compiled(which, phi, dphi, len(activation.keops_constants()), inputs, outs)


@cache
def _compiled(which: str, phi: str, dphi: str, constants: int, inputs: int, outs: int) -> Callable:
    particles, data = ("Vj", "Vi") if which == "outputs" else ("Vi", "Vj")  # the sum runs over j
    aliases = [f"w={particles}({inputs})", f"a={particles}({outs})", f"x={data}({inputs})"]
    if which == "outputs":
        text = f"{phi}*a"  # m is folded into a
    else:
        aliases.append(f"d={data}({outs})")
        text = f"Concat({phi}*d, ({dphi}*(a|d))*x)"
    if constants:
        aliases.append(f"k=Pm({constants})")
    return _genred()(text, aliases, reduction_op="Sum", axis=1)


def _outputs(activation: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor) -> Tensor:
    ma = m[:, None] * a
    parts = _parts(len(w), len(x), w.device)
    if parts == 1:
        return _reduced("outputs", activation, w, ma, x)
    sums = _reduced("outputs", activation, _in_parts(w, parts), _in_parts(ma, parts), x[None])  # (parts, P, C)
    return sums.sum(0, dtype=torch.float64).to(a.dtype)


def _velocity(activation: Activation, a: Tensor, w: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    both = _reduced("velocity", activation, w, a, x, delta)  # (N, C + D)
    c = a.shape[1]
    return both[:, :c] / len(x), both[:, c:] / len(x)


def _reduced(which: str, activation: Activation, w: Tensor, a: Tensor, *data: Tensor) -> Tensor:
    fields = [w, a, *data]
    if constants := activation.keops_constants():
        k = w.new_tensor(constants)
        fields.append(k[None] if w.ndim == 3 else k)
    backend = "CPU" if w.device.type == "cpu" else "auto"
    with _lock:
        reduction = _reduction(which, activation, w.shape[-1], a.shape[-1])
        return reduction(*(t.contiguous() for t in fields), backend=backend)


def _parts(particles: int, samples: int, device: torch.device) -> int:
    """Into how many sums KeOps' sum over particles is split on a GPU, where one thread makes one row of the result."""
    if device.type != "cuda":
        return 1
    return max(1, min(_CUDA_ROWS // samples, particles // _CUDA_TERMS))


def _in_parts(t: Tensor, parts: int) -> Tensor:
    """(parts, rows, columns) of t (N, columns), filled up with zeros, which add nothing where they multiply as a does"""
    rows = -(-len(t) // parts)
    return torch.nn.functional.pad(t, (0, 0, 0, parts * rows - len(t))).view(parts, rows, t.shape[1])


class _Sums(torch.autograd.Function):
    """KeOps forward; backward by tiles with explicit phi', since KeOps' own derivative of exponential forms gives NaN."""

    @staticmethod
    def forward(ctx: Any, which: str, activation: Activation, *tensors: Tensor) -> Any:
        ctx.which, ctx.activation = which, activation
        ctx.save_for_backward(*tensors)
        return {"outputs": _outputs, "velocity": _velocity}[which](activation, *tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        needed = ctx.needs_input_grad[2:]
        inputs = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            result = by_tiles(ctx.which, ctx.activation, *inputs)
        results = (result,) if ctx.which == "outputs" else result
        wanted = [t for t in inputs if t.requires_grad]
        # v_a does not depend on a
        reached = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad]
        grads = iter(torch.autograd.grad([r for r, _ in reached], wanted, [c for _, c in reached], allow_unused=True))
        return None, None, *(next(grads) if n else None for n in needed)
