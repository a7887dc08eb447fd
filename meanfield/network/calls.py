"""What a module's forward asks of torch: the functions that it calls, on what, in turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    name: str
    given: tuple[Shape, ...]  # of the tensors among its arguments
    found: tuple[Shape, ...]  # of its results
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    sizes: tuple[float, ...]  # root mean squares of its results, of what is finite in them


@dataclass(frozen=True)
class Failed:
    """A function that raised, and the tensors among its arguments"""

    name: str
    given: tuple[Tensor, ...]


def words(*lines: str) -> frozenset[str]:
    """Names of torch's functions"""
    return frozenset(word for line in lines for word in line.split())


class Log(TorchFunctionMode):
    """Keeps all calls within it, and the first that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.failed: Failed | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.failed = self.failed or Failed(name, tuple(tensors((args, list(kwargs.values())))))
            raise
        if name != "__get__":
            plain = tuple(None if isinstance(a, Tensor) else a for a in args)
            found = tuple(tensors(result))
            call = Call(name, shapes(args), shapes(found), plain, dict(kwargs), tuple(map(size, found)))
            self.calls.append(call)
        self.seen(name, func, args, kwargs, result)
        return result

    def seen(self, name: str, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """After a call, the last of `calls` unless it read a property (`__get__`)"""


class Untrained(TorchFunctionMode):
    """Notes the first of these parameters that is used within torch.no_grad"""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in parameters}
        self.found = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.found and not torch.is_grad_enabled() and getattr(func, "__name__", "") != "__get__":
            used = (self.names.get(id(t), "") for t in tensors((args, list(kwargs.values()))))
            self.found = next(filter(None, used), "")
        return func(*args, **kwargs)


def tensors(values: Any) -> Iterator[Tensor]:
    """Those in nested lists and tuples"""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)


def shapes(values: Any) -> tuple[Shape, ...]:
    """Of the tensors among them"""
    return tuple(tuple(tensor.shape) for tensor in tensors(values))


def wide(small: Shape, large: Shape) -> tuple[int, ...]:
    """The axes that grow"""
    return tuple(i for i, (a, b) in enumerate(zip(small, large, strict=False)) if a != b)


def size(found: Tensor) -> float:
    """The root mean square of what is finite; 0 for integers"""
    if not found.is_floating_point() or not found.numel():
        return 0.0
    norm = float(torch.linalg.vector_norm(found.detach()))
    if not math.isfinite(norm):
        own = found.detach()[torch.isfinite(found.detach())]
        return size(own) if own.numel() < found.numel() else 0.0
    return norm / math.sqrt(found.numel())
