"""Modules as their builder makes them, but for tensors too large to be made: those stay on torch's meta device, without numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from meanfield import checks

Build = Callable[[int], nn.Module]
_DRAWING = ("normal_", "uniform_", "exponential_", "bernoulli_", "random_", "log_normal_", "cauchy_", "geometric_")


def made(build: Build, width: int, least: int = 1, seed: int = 0) -> nn.Module:
    """build(width), in which tensors of `least` numbers or more have none; random numbers of its own come from the seed.

    ValueError for what is no builder of modules. One that looks at numbers which are not there is asked for all of them.
    """
    if not callable(build):
        raise ValueError(
            f"network must be a function of the width that returns a torch.nn.Module: received {checks.shown(build)}"
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        try:
            with _Thin(least):
                net = build(width)
        except (NotImplementedError, RuntimeError):
            torch.manual_seed(seed)
            net = build(width)
    if not isinstance(net, nn.Module):
        raise ValueError(f"build({width}) must return a torch.nn.Module: received {checks.shown(net)}")
    return net


class _Thin(TorchDispatchMode):
    """New tensors of `least` numbers or more are made on the meta device, where drawing numbers does nothing.

    Torch would import for seconds before it does the same.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        if name in _DRAWING and args[0].is_meta:
            return args[0]
        sized = args and isinstance(args[0], (list, tuple)) and "pin_memory" in kwargs | _takes(func)
        if sized and all(isinstance(n, int) for n in args[0]) and math.prod(args[0]) >= self.least:
            return torch.empty(args[0], dtype=kwargs.get("dtype"), device="meta")
        return func(*args, **kwargs)


def _takes(func: Any) -> dict[str, None]:
    return {argument.name: None for argument in func._schema.arguments}
