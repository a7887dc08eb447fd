"""Input checks. Every message says what is wrong, what was received and what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from meanfield import array_input

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def lookup(kind: str, name: Any, known: Mapping[str, T]) -> T:
    """The entry of `known` called `name`; ValueError listing the known names otherwise."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {kind}: received {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def positive(name: str, value: Any, zero: bool = False) -> float:
    """`value` as a finite float above zero (or at zero, if `zero`)."""
    number = _number(name, value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(
            f"{name} must be {'non-negative' if zero else 'positive'} and finite: received {value!r}; give e.g. {name}=1.0"
        )
    return number


def finite(name: str, value: Any) -> float:
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number: received {value!r}")
    return number


def integer(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`; whole floats and numpy integers pass, booleans do not."""
    number = None if isinstance(value, bool) else _number(name, value)
    if number is None or not math.isfinite(number) or number != int(number):
        raise ValueError(f"{name} must be a whole number: received {value!r}; give e.g. {name}={max(least, 1)}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}: received {value!r}")
    return int(value)


def integers(name: str, values: int | Iterable[int], least: int) -> tuple[int, ...]:
    """A non-empty tuple of distinct integers; a single number n means that one number."""
    many = tuple(values) if isinstance(values, Iterable) else (values,)
    checked = tuple(integer(f"{name}[{i}]", v, least) for i, v in enumerate(many))
    if not checked:
        raise ValueError(f"{name} is empty: give at least one, e.g. {name}=({max(least, 64)},)")
    if len(set(checked)) != len(checked):
        raise ValueError(f"{name} holds the same number twice: received {checked}; each may stand there once")
    return checked


def matrix(name: str, value: Any, vector_is_column: bool = False) -> Tensor:
    """A finite, non-empty float64 CPU matrix, a copy, from anything array-like (float32 stays exact in float64)."""
    array = array_input.numbers(name, value)
    if array.ndim == 1 and vector_is_column:
        array = array[:, None]
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have two dimensions (samples, features): received shape {tuple(array.shape)}"
            + f"; for one feature give {name}[:, None], for one sample {name}[None]" * (array.ndim == 1)
        )
    if 0 in array.shape:
        raise ValueError(
            f"{name} is empty: received shape {tuple(array.shape)}; at least one sample and one column needed"
        )
    return array


def dtype(name: str | torch.dtype) -> str:
    """'float32' or 'float64', from the name or the torch dtype."""
    text = str(name).removeprefix("torch.")
    lookup("dtype", text, DTYPES)
    return text


def device(name: str | torch.device) -> str:
    """A device that exists here, as text."""
    try:
        asked = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device: received {name!r}; known: {', '.join(_devices())}") from error
    if str(asked) not in _devices() and asked.type not in _devices():
        raise ValueError(f"the device {str(asked)!r} is absent on this machine: present are {', '.join(_devices())}")
    if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"the device {str(asked)!r} is absent: there are {torch.cuda.device_count()} CUDA devices")
    return str(asked)


def normalise(settings: Any, **least: int) -> None:
    """Check the numerical settings that solvers share and put them in plain form: for `__post_init__` of a frozen dataclass.

    Its fields dtype, device, snapshots, rtol and tolerance, where it has them, and those named in `least`: whole numbers of at least so
    much. None passes where it is the default. ValueError for the first that will not do.
    """
    forms: dict[str, Callable[[Any], Any]] = {"dtype": dtype, "device": device, "snapshots": tuple}
    forms |= {name: partial(positive, name) for name in ("rtol", "tolerance")}
    forms |= {name: partial(integer, name, least=number) for name, number in least.items()}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in forms and not (value is None and field.default is None):
            object.__setattr__(settings, field.name, forms[field.name](value))


def memory(what: str, needed: float, remedy: str, limit: float | None = None) -> None:
    """MemoryError before allocation when `needed` bytes exceed `limit` (default: the machine's free memory)."""
    available = free_memory() if limit is None else limit
    if needed > available:
        raise MemoryError(
            f"{what} needs {needed / 1e9:.2f} GB ({needed:.0f} bytes); {available / 1e9:.2f} GB are available: {remedy}"
        )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            value = getattr(value, "item")()  # noqa: B009  numpy and torch scalars
        except (AttributeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be a number: received {value!r}") from None
    try:
        return float(value)
    except (TypeError, OverflowError) as error:  # complex, or beyond what floats hold
        raise ValueError(f"{name} must be a real number of floating-point size: received {str(value)[:40]}") from error


def _devices() -> list[str]:
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def free_memory(device: str = "cpu") -> float:
    """Bytes that are free on a device; infinity if the system does not tell."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf
