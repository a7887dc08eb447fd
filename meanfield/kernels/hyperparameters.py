"""The numbers of a network that its kernels depend on, and derivatives in them by differences of known error (equation 96)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any, cast

from meanfield.checking import checks
from meanfield.network.architecture import Architecture, architecture

_WIDEST = 2.0**-4  # step of the first difference, in the logarithm of a hyperparameter
_LEVELS = 6


def varied(network: Any, name: str, value: float) -> Any:
    """The network with another value of this field, or, of an Architecture, of the pattern of weight_std that bears this name"""
    network, patterns = _carrying(network)
    if name in patterns:
        return replace(network, weight_std=patterns | {name: value})
    return replace(network, **{name: value})


def value_of(network: Any, name: str) -> float:
    """The value that `varied` would change; ValueError, with what is there, if the network has no such positive number"""
    network, patterns = _carrying(network)
    fields = [
        field for field in ("weight_std", "bias_std", "residual") if isinstance(getattr(network, field, None), float)
    ]
    known = {field: getattr(network, field) for field in fields} | patterns
    value = checks.lookup("hyperparameter in over", name, {"noise": math.nan} | known)
    if not value > 0:
        raise ValueError(
            f"{name} is 0, from where the likelihood does not lead away: received over with {name!r}; give the network a positive one, "
            "or leave it out of over"
        )
    return value


def known_of(network: Any) -> tuple[str, ...]:
    """Those of weight_std and bias_std that the network has, above 0, or an Architecture's patterns"""
    network, patterns = _carrying(network)
    return tuple(patterns) or tuple(name for name in ("weight_std", "bias_std") if _number(network, name) > 0)


def log_derivative(g: Callable[[float], float], size: float, tolerance: float) -> float:
    """g'(0) by central differences at halved steps, extrapolated, until two in turn differ by `tolerance` times `size` (equation 96)."""
    step, before = _WIDEST, list[float]()
    for _ in range(_LEVELS):
        row = [(g(step) - g(-step)) / (2 * step)]
        for k, coarser in enumerate(before, 1):
            row.append(row[-1] + (row[-1] - coarser) / (4**k - 1))
        if before and abs(row[-1] - before[-1]) <= tolerance * size:
            return row[-1]
        step, before = step / 2, row
    return before[-1]


def _carrying(network: Any) -> tuple[Any, dict[str, float]]:
    """The network as an object with fields, and the numbers that an Architecture keeps by pattern"""
    network = network if is_dataclass(network) or not callable(network) else architecture(cast(Any, network))
    given = network.weight_std if isinstance(network, Architecture) else None
    return network, {pattern: float(std) for pattern, std in given} if isinstance(given, tuple) else {}


def _number(network: Any, name: str) -> float:
    value = getattr(network, name, None)
    return value if isinstance(value, float) else 0.0
