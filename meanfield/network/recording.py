"""Tensors of a network that a user names, to be kept beside its outputs: attention weights, averages over neurons, .."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meanfield.checking import checks

What = str | Callable[[nn.Module, Tensor], Tensor]
Recorded = tuple[tuple[str, What], ...]  # the path of a submodule, whose output is meant, or a function of (module, x)


class Recorder(nn.Module):
    """Of inputs x what is recorded of the network, by name: as a module, for `functional_call`"""

    def __init__(self, net: nn.Module, record: Recorded) -> None:
        super().__init__()
        self.net, self.record = net, record

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        paths = {name: what for name, what in self.record if isinstance(what, str)}

        def keep(name: str, module: nn.Module, given: Any, out: Tensor) -> None:
            found[name] = out

        hooks = [
            _submodule(self.net, name, path).register_forward_hook(partial(keep, name)) for name, path in paths.items()
        ]
        try:
            if paths:
                self.net(x)
        finally:
            for hook in hooks:
                hook.remove()
        for name, what in self.record:
            if not isinstance(what, str):
                found[name] = _asked(name, what, self.net, x)
        return {name: _tensor(name, found.get(name)) for name, _ in self.record}


def recorded(net: nn.Module, record: Recorded, x: Tensor) -> dict[str, Tensor]:
    """By name; ValueError for a path that there is not, and for what is no tensor of real numbers"""
    with torch.no_grad():
        return Recorder(net, record)(x)


def _submodule(net: nn.Module, name: str, path: str) -> nn.Module:
    known = dict(net.named_modules())
    if path not in known:
        raise ValueError(
            f"record[{name!r}] must be the path of a module: received {path!r}; known: {', '.join(filter(None, known))}"
        )
    return known[path]


def _asked(name: str, what: Callable[[nn.Module, Tensor], Tensor], net: nn.Module, x: Tensor) -> Tensor:
    try:
        return what(net, x)
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"record[{name!r}] failed ({type(error).__name__}: {error}): it is a function of (module, x)"
        ) from error


def _tensor(name: str, found: Any) -> Tensor:
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ValueError(
            f"what is recorded as {name!r} must be a tensor of real numbers: received {checks.shown(found)}"
        )
    return found.detach()
