"""own_numerics: what a program has set for its own arithmetic (coarse float32 products, autocast, a default device) does not reach ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from meanfield.checking import checks

# of single backends, in torch since 2.9, beside set_float32_matmul_precision
_MKLDNN = getattr(torch.backends.mkldnn, "matmul", None)
_SWITCHES = [_MKLDNN, torch.backends.cuda.matmul] if _MKLDNN else []
_CUDNN: Any = torch.backends.cudnn
_LAYERS = [
    getattr(_CUDNN, layer) for layer in ("conv", "rnn") if hasattr(_CUDNN, layer)
]  # both, or torch cannot tell them as one


class _Thread(threading.local):
    inside = False


class _Process:
    calls = 0  # that go on at this moment, in all threads
    theirs: tuple[str, list[str]] | None = None  # the precision to return to
    layers: tuple[bool, list[Any]] = (False, [])  # and what a GPU's convolutions do


_thread, _process, _lock = _Thread(), _Process(), threading.Lock()


@contextmanager
def own_numerics() -> Iterator[None]:
    """Within it float32 products and convolutions keep all their digits, convolutions of a GPU add in the same order every time, nothing is
    cast, and new tensors lie on the CPU unless their device is named.

    Autocast and the default device belong to a thread, the precision of products to the process: the first of the calls that run side
    by side sets it, the last restores it.
    """
    if _thread.inside:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_full_precision())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(setattr, _thread, "inside", False)
        _thread.inside = True
        yield


def default_device() -> torch.device:
    """Where new tensors lie. torch.get_default_device() up to torch 2.7 does not know of `with torch.device(..)`."""
    return torch.empty(0).device


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Within it torch works on so many threads, afterwards on as many as before; None changes nothing.

    ValueError below 1, and for more than four for each core, which wait for each other.
    """
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    if count is not None:
        count = checks.integer("threads", count, 1)
        if count > 4 * cores:
            raise ValueError(
                f"threads must be at most {4 * cores}, four for each of {cores} core{'s' if cores > 1 else ''}: received {count}; leave it "
                "out for one each"
            )
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _full_precision() -> Iterator[None]:
    with _lock:
        _process.calls += 1
        if _process.calls == 1:
            found = _precision()
            _process.theirs = None if {found[0], *found[1]} <= {"highest", "ieee", "none"} else found
            if _process.theirs:
                torch.set_float32_matmul_precision("highest")  # and with it the switches
            _process.layers = _CUDNN.deterministic, [layer.fp32_precision for layer in _LAYERS] or [_CUDNN.allow_tf32]
            _set_layers(True, ["ieee" for _ in _LAYERS] or [False])
    try:
        yield
    finally:
        with _lock:
            _process.calls -= 1
            if not _process.calls:
                _set_layers(*_process.layers)
            if not _process.calls and _process.theirs:
                torch.set_float32_matmul_precision(_process.theirs[0])
                for switch, value in zip(_SWITCHES, _process.theirs[1], strict=True):
                    switch.fp32_precision = value


def _set_layers(deterministic: bool, precision: list[Any]) -> None:
    """Of cuDNN: by layer in torch since 2.9, before as a whole"""
    _CUDNN.deterministic = deterministic
    for layer, value in zip(_LAYERS, precision, strict=False):
        layer.fp32_precision = value
    if not _LAYERS:
        _CUDNN.allow_tf32 = precision[0]


def _precision() -> tuple[str, list[str]]:
    try:
        whole = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not tell it once a switch was used
        whole = "highest"
    return whole, [switch.fp32_precision for switch in _SWITCHES]
