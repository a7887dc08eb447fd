"""What a forward pass of a module calls, and which axes of each result grow with the width, which with samples (equation 99)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

_SAMPLES = (2, 3)  # of the real ones, whose widths are a unit and its double


def words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


OF_GRADIENTS = words("_set_grad_enabled set_grad_enabled is_grad_enabled")


@dataclass(frozen=True)
class Sizes:
    """An axis: number n^wide b^sample"""

    number: Fraction
    wide: bool
    sample: bool

    def at(self, width: int, samples: int) -> int:
        return int(self.number * (width if self.wide else 1) * (samples if self.sample else 1))


@dataclass(frozen=True)
class Call:
    """A function of torch that a forward pass calls, and the axes of each tensor that it returns"""

    name: str
    results: tuple[tuple[Sizes, ...], ...]


def name_of(func: Any) -> str:
    """Of a function of torch, or of a property that is asked for"""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


class _Log(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if name_of(func) in OF_GRADIENTS:
            return result
        found = [tuple(t.shape) for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        self.calls.append((name_of(func), found))
        return result


def plan(build: Any, x: Tensor, make: Any, unit: int) -> list[Call]:
    """The calls of a forward pass of inputs x (P, ..), from real networks make(build, width), whose widths are multiples of a unit"""
    logs, net, few, f = [], nn.Module(), x, x
    x = torch.cat([x[:3], x[:1].flip(-1) * 2 + 1]) if x.is_floating_point() else x  # others, if there are few
    passes = tuple(zip((unit, 2 * unit), _SAMPLES, strict=True))
    for width, samples in passes:
        net = make(build, width)
        few = x[torch.arange(samples) % len(x)]
        with torch.no_grad(), _Log() as log:
            f = net(few)
        logs.append(log.calls)
    _must_keep_samples_apart(net, few, f)
    if [name for name, _ in logs[0]] != [name for name, _ in logs[1]]:
        raise ValueError(
            "the network's forward does other things at another width or for other samples: no kernel is known"
        )
    return [
        Call(name, tuple(tuple(map(partial(_sizes, passes), a, b)) for a, b in zip(small, large, strict=True)))
        for (name, small), (_, large) in zip(*logs, strict=True)
    ]


def _must_keep_samples_apart(net: nn.Module, x: Tensor, f: Tensor) -> None:
    try:
        with torch.no_grad():
            alone = torch.cat([net(one) for one in x.split(1)])
    except Exception as error:
        raise ValueError(
            f"the forward fails for one sample alone ({type(error).__name__}: {error}): the outputs for a sample depend on the others, as "
            "behind a norm over samples; take norms over neurons or positions"
        ) from error
    if float((alone - f).abs().max()) > 1e-7 * float(f.abs().max()):
        raise ValueError(
            "the outputs for a sample depend on the others: the forward mixes samples, e.g. x - x.mean(0); prepare the data before, "
            "and take norms over neurons or positions"
        )


def _sizes(passes: Sequence[tuple[int, int]], small: int, large: int) -> Sizes:
    (n, b), (m, c) = passes
    for wide in (False, True):
        for sample in (False, True):
            number = Fraction(small, (n if wide else 1) * (b if sample else 1))
            if number * (m if wide else 1) * (c if sample else 1) == large:
                return Sizes(number, wide, sample)
    raise ValueError(
        f"an axis of {small} at width {n} and {large} at width {m} is no multiple of the width: no kernel is known"
    )
