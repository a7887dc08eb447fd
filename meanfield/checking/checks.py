"""Input checks. Every message says what is wrong, what was received and what would be right."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from types import NoneType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import array_input

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_LARGEST = 2**63 - 1  # that torch and numpy take for a size or a seed


def lookup(kind: str, name: Any, known: Mapping[str, T]) -> T:
    """The entry of `known` called `name`; ValueError listing the known names otherwise."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {kind}: received {shown(name)}; known: {', '.join(sorted(known))}")
    return known[name]


def positive(name: str, value: Any, zero: bool = False, below: float = math.inf, usual: float | None = None) -> float:
    """`value` as a finite float above zero (or at zero, if `zero`) and below `below`; `usual` serves as an example."""
    as_float = number(name, value)
    example = usual if usual is not None else min(1.0, below / 2)
    if not math.isfinite(as_float) or as_float < 0 or (as_float == 0 and not zero):
        raise ValueError(
            f"{name} must be {'non-negative' if zero else 'positive'} and finite: received {shown(value)}; "
            f"give e.g. {name}={example}"
        )
    if as_float >= below:
        raise ValueError(f"{name} must be below {below:g}: received {shown(value)}; give e.g. {name}={example}")
    return as_float


def deviation(name: str, value: Any, zero: bool = False) -> float:
    """A positive float, or 0 if `zero`, whose square is a normal float64 too"""
    as_float = positive(name, value, zero)
    if as_float and not sys.float_info.min <= as_float * as_float < math.inf:
        raise ValueError(
            f"{name} must lie between 1.5e-154 and 1.3e154, where its square is a float64: received {shown(value)}; give e.g. {name}=1.0"
        )
    return as_float


def finite(name: str, value: Any) -> float:
    as_float = number(name, value)
    if not math.isfinite(as_float):
        raise ValueError(f"{name} must be a finite number: received {shown(value)}")
    return as_float


def integer(name: str, value: Any, least: float = -math.inf) -> int:
    """`value` as an int of at least `least`, within 64 bits; whole floats and numpy integers pass, booleans do not."""
    whole = None if isinstance(value, bool) else value if isinstance(value, int) else number(name, value)
    if whole is None or not -math.inf < whole < math.inf or whole != int(whole):
        example = "" if least == -math.inf else f"; give e.g. {name}={int(max(least, 1))}"
        raise ValueError(f"{name} must be a whole number: received {shown(value)}{example}")
    if whole < least:
        raise ValueError(f"{name} must be at least {least}: received {shown(value)}")
    if abs(whole) > _LARGEST:
        raise ValueError(f"{name} must lie within 64 bits: received {shown(value)}")
    return int(whole)


def integers(name: str, values: int | Iterable[int], least: int) -> tuple[int, ...]:
    """A non-empty tuple of distinct integers; a single number n means that one number."""
    many = tuple(values) if isinstance(values, Iterable) else (values,)
    checked = tuple(integer(f"{name}[{i}]", v, least) for i, v in enumerate(many))
    if not checked:
        raise ValueError(f"{name} is empty: give at least one, e.g. {name}=({max(least, 1)},)")
    if len(set(checked)) != len(checked):
        raise ValueError(f"{name} holds the same number twice: received {checked}; each may stand there once")
    return checked


def seed(name: str, value: Any) -> int:
    """A whole number from 0 to 2^32 - 1: of more, torch's generators keep the last 32 bits, so that other seeds would repeat these."""
    number = integer(name, value, 0)
    if number >= 2**32:
        raise ValueError(f"{name} must be below 2^32, since torch's generator keeps no more of it: received {value}")
    return number


def seeds(values: int | Iterable[int], name: str = "seeds") -> tuple[int, ...]:
    """Distinct seeds; a number n means 0..n-1."""
    if not isinstance(values, Iterable):
        count = integer(name, values, 1)
        memory(f"{name}={count}", 100.0 * count, "take fewer")
        values = range(count)
    return tuple(seed(f"{name}[{i}]", value) for i, value in enumerate(integers(name, values, 0)))


def array(name: str, value: Any) -> Tensor:
    """Numbers as a tensor: one as it is, anything array-like in its precision"""
    if not isinstance(value, Tensor):
        return array_input.numbers(name, value).to(array_input.precision(value))
    if value.is_complex():
        raise ValueError(f"{name} must hold real numbers: received complex ones")
    return value


def matrix(name: str, value: Any, vector_is_column: bool = False) -> Tensor:
    """A finite, non-empty float64 CPU matrix, a copy, from anything array-like (float32 stays exact in float64)."""
    array = array_input.numbers(name, value)
    if array.ndim == 1 and vector_is_column:
        array = array[:, None]
    if array.ndim != 2:
        _wrong_axes(name, array, "")
    return _some(name, array)


def samples(name: str, value: Any, targets: bool = False) -> Tensor:
    """A finite, non-empty CPU tensor (P, ...), a copy: float64, or int64 of an array of integers that are no targets."""
    array = array_input.numbers(name, value, tokens=not targets)
    if array.ndim == 1 and targets:
        array = array[:, None]
    if array.ndim < 2:
        _wrong_axes(name, array, " or more")
    return _some(name, array)


def _wrong_axes(name: str, array: Tensor, more: str) -> NoReturn:
    raise ValueError(
        f"{name} must have two dimensions (samples, features){more}: received shape {tuple(array.shape)}"
        + f"; for one feature give {name}[:, None], for one sample {name}[None]" * (array.ndim == 1)
    )


def _some(name: str, array: Tensor) -> Tensor:
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


_POSITIVE = ("clip", "learning_rate", "rtol", "tolerance")


def normalise(settings: Any, **least: int) -> None:
    """Check settings that mean the same wherever they stand and put them in plain form: for `__post_init__` of a frozen dataclass.

    They are known by the names of their fields, and those named in `least` as whole numbers of at least so much. None passes where it
    is the default. ValueError for the first that will not do.
    """
    forms: dict[str, Callable[[Any], Any]] = {"dtype": dtype, "device": device}
    forms |= {name: partial(seed, name) for name in ("seed", "batch_seed", "noise_seed")}
    forms |= {name: partial(positive, name) for name in _POSITIVE}
    forms |= {name: partial(deviation, name) for name in ("weight_std", "residual", "sigma")}
    forms |= {"bias_std": partial(deviation, "bias_std", zero=True)}
    forms |= {name: partial(positive, name, zero=True) for name in ("weight_decay", "temperature", "eta_a", "eta_w")}
    forms["momentum"] = partial(positive, "momentum", zero=True, below=1)
    forms |= {name: partial(integer, name, least=low) for name, low in least.items()}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in forms and not (value is None and field.default is None):
            object.__setattr__(settings, field.name, forms[field.name](value))


def memory(what: str, needed: float, remedy: str, limit: float | None = None, beside: float = 0.0) -> None:
    """MemoryError before allocation when `needed` bytes, with those `beside`, exceed `limit` (default: the machine's free memory)."""
    available = free_memory() if limit is None else limit
    if needed + beside > available:
        in_all = f", {(needed + beside) / 1e9:.2f} GB with all else" if beside else ""
        raise MemoryError(
            f"{what} needs {needed / 1e9:.2f} GB ({needed:.0f} bytes){in_all}; {available / 1e9:.2f} GB are available: {remedy}"
        )


def memory_in_all(parts: Mapping[str, tuple[float, str]], limit: float | None = None) -> None:
    """MemoryError before allocation when all parts, {what: (bytes, remedy)}, exceed `limit` together; it speaks of the largest."""
    what, (size, remedy) = max(parts.items(), key=lambda part: part[1][0])
    memory(what, size, remedy, limit, sum(other for other, _ in parts.values()) - size)


def number(name: str, value: Any) -> float:
    """`value` as a float, which may be NaN or infinite"""
    plain = array_input.untracked(name, value) if isinstance(value, Tensor) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            plain = getattr(plain, "item")()  # noqa: B009  numpy and torch scalars
        except (AttributeError, ValueError, RuntimeError):
            plain = None
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise ValueError(f"{name} must be a number: received {shown(value)}")
    try:
        return float(plain)
    except OverflowError:
        raise ValueError(f"{name} is beyond the range of floating-point numbers: received {shown(value)}") from None


def shown(value: Any) -> str:
    """A value as messages show it: short ones as they are, of others the kind"""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    short = isinstance(value, (bool, int, float, str, NoneType, np.generic, np.ndarray, Tensor))
    text = repr(value) if short else ""
    return text if 0 < len(text) <= 60 else type(value).__name__


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
