"""Modules as their builder makes them, but for tensors too large to be made: those stay on torch's meta device, without numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from meanfield.checking import checks

Build = Callable[[int], nn.Module]


def made(build: Build, width: int, least: float = 1, seed: int = 0) -> nn.Module:
    """build(width) on the CPU, in which tensors of `least` numbers or more have none; the random numbers of its start come from the seed.

    ValueError for what is no builder of modules. One that looks at numbers which are not there is asked for all of them.
    """
    if isinstance(build, nn.Module):
        raise ValueError(
            f"network must make a module for every width, but is one of a fixed width: received a {type(build).__name__}; give its class, "
            "or a function of the width, e.g. lambda n: nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 1))"
        )
    if not callable(build):
        raise ValueError(
            f"network must be a function of the width that returns a torch.nn.Module: received {checks.shown(build)}"
        )
    try:
        with torch.device("cpu"), _Thin(least, seed):
            net = build(width)
    except (NotImplementedError, RuntimeError):
        try:
            with torch.device("cpu"), _Thin(math.inf, seed):
                net = build(width)
        except Exception as error:
            raise ValueError(_failed(width, error)) from error
    except Exception as error:
        raise ValueError(_failed(width, error)) from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"build({width}) must return a torch.nn.Module: received {checks.shown(net)}")
    return net


def thinly_made(build: Build, width: int) -> nn.Module | None:
    """build(width) without any numbers; None for a builder that looks at them, or that does not take this width"""
    try:
        with torch.device("cpu"), _Thin(1, 0):
            return build(width)
    except Exception:
        return None


def _failed(width: int, error: Exception) -> str:
    return f"network must make a torch.nn.Module of a width: build({width}) failed ({type(error).__name__}: {error})"


class _Thin(TorchDispatchMode):
    """New tensors of `least` numbers or more are made on the meta device, where drawing numbers does nothing (torch would import for
    seconds before it does the same). Others draw from a generator of this mode: torch's own stands still.
    """

    def __init__(self, least: float, seed: int) -> None:
        super().__init__()
        self.least, self.generator = least, torch.Generator().manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, for seconds, to do so"""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, takes = kwargs or {}, {argument.name for argument in func._schema.arguments}
        sized = args and isinstance(args[0], (list, tuple)) and "pin_memory" in takes
        if sized and all(isinstance(n, int) for n in args[0]) and math.prod(args[0]) >= self.least:
            return torch.empty(args[0], dtype=kwargs.get("dtype"), device="meta")
        func = _WITH_GENERATOR.get(func, func)
        if "generator" in takes or func in _WITH_GENERATOR.values():
            if args and isinstance(args[0], Tensor) and args[0].is_meta:
                return args[0]
            kwargs = {"generator": self.generator} | {k: v for k, v in kwargs.items() if v is not None}
        return func(*args, **kwargs)


_WITH_GENERATOR = {
    torch.ops.aten.rand.default: torch.ops.aten.rand.generator,
    torch.ops.aten.randn.default: torch.ops.aten.randn.generator,
    torch.ops.aten.randint.default: torch.ops.aten.randint.generator,
    torch.ops.aten.randint.low: torch.ops.aten.randint.low_generator,
    torch.ops.aten.randperm.default: torch.ops.aten.randperm.generator,
}


class _Alike(TorchFunctionMode):
    """New tensors lie where `like` lies, and real ones whose kind nobody names are of its kind. Torch's own defaults stay as they are."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.like = like

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _NEW:
            return func(*args, **kwargs)
        made = func(*args, **({"device": self.like.device} | kwargs))
        return made.to(self.like.dtype) if made.is_floating_point() and kwargs.get("dtype") is None else made


_NEW = {torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace, torch.logspace}
_NEW |= {torch.rand, torch.randn, torch.tensor, torch.as_tensor, torch.scalar_tensor}


def written_for(like: Tensor) -> AbstractContextManager[Any]:
    """Within it tensors that a module's forward makes for itself are of a kind with its fields"""
    usual = like.device.type == "cpu" and like.dtype == torch.get_default_dtype()
    return nullcontext() if usual else _Alike(like)
