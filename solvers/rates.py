"""What this machine takes for the operations that solvers are made of, measured when first asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from meanfield import checks

# seconds per Gaussian of a scrambled Sobol point and of a generator, as seen, not measured anew
SOBOL, RANDOM = 8e-8, 5e-8


@dataclass(frozen=True)
class Rates:
    """Seconds per multiply-and-add of a large product, per byte of a product too narrow to be worth its reading, per byte of a large sum
    (update), per element of an activation, and per small operation"""

    product: float
    byte: float
    update: float
    element: float
    operation: float


@cache
def rates(dtype: str, device: str = "cpu", activation: str = "tanh") -> Rates:
    """Measured once per process, in about a quarter of a second"""
    from meanfield.activations import activation as named

    act, kind = named(activation), checks.DTYPES[dtype]
    g = torch.Generator().manual_seed(0)
    tall, wide, narrow, small = (
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype=kind, device=device)
        for shape in ((512, 4096), (4096, 128), (4096, 4), (16, 16))
    )
    tile = tall[:32].contiguous()
    return Rates(
        product=_seconds(lambda: tall @ wide, device) / (512 * 4096 * 128),
        byte=_seconds(lambda: tall @ narrow, device) / (tall.nbytes + narrow.nbytes),
        update=_seconds(lambda: tall + tall, device) / tall.nbytes,
        element=_seconds(lambda: act.phi(tile), device) / tile.numel(),
        operation=_seconds(lambda: small + small, device),
    )


def measure_again() -> None:
    """Forget what was measured, as where the load of the machine has changed"""
    rates.cache_clear()
    _eigh.cache_clear()


_SIZES = (16, 64, 256, 512)


def eigh_seconds(n: int) -> float:
    """Of one torch.linalg.eigh of a float64 matrix (n, n) on the CPU: a power law between measured sizes, and beyond them n^2.8, with which
    it was seen to grow from 512 to 2048
    """
    if n <= _SIZES[0]:
        return _eigh(_SIZES[0])
    if n >= _SIZES[-1]:
        return _eigh(_SIZES[-1]) * (n / _SIZES[-1]) ** 2.8
    low, high = next((a, b) for a, b in pairwise(_SIZES) if n < b)
    power = math.log(_eigh(high) / _eigh(low)) / math.log(high / low)
    return _eigh(low) * (n / low) ** power


@cache
def _eigh(n: int) -> float:
    a = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    gram = a @ a.T
    return _seconds(lambda: torch.linalg.eigh(gram), "cpu", least=1)


def _seconds(work: Callable[[], Any], device: str, least: int = 4) -> float:
    """The median of five times `least` repetitions, or of so many more that reading the clock does not count"""

    def together(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / count

    together(1)
    count = max(least, int(2e-3 / max(together(least), 1e-7)))
    return sorted(together(count) for _ in range(5))[2]
