"""Tensors of a network that a user names, to be kept beside its outputs: attention weights, averages over neurons, .."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meanfield.checking import checks
from meanfield.network.calls import Log
from meanfield.network.failing import failed
from meanfield.network.keys import Key

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


def neurons_of(
    small: Mapping[str, tuple[int, ...]], large: Mapping[str, tuple[int, ...]], samples: int
) -> dict[str, int]:
    """The axis of neurons of what is recorded, for what has one, by its shapes at two widths; ValueError for several, and for one before
    that of the samples
    """
    found = {}
    for name, shape in small.items():
        other = large[name]
        wide = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
        if len(shape) != len(other) or len(wide) > 1 or (wide and (wide[0] == 0 or shape[0] != samples)):
            raise ValueError(
                f"what is recorded as {name!r} must have one axis of neurons or none, behind that of the samples: received the shapes "
                f"{shape} and {other} at two widths; average over neurons"
            )
        if wide:
            found[name] = wide[0]
    return found


def neuron_by_neuron(found: Mapping[str, Tensor], neurons: Mapping[str, tuple[int, float]]) -> dict[str, Tensor]:
    """What was recorded, by name; what has an axis of neurons (N, rows) by the keys of preactivations"""
    kept = dict(found)
    for name, (axis, _) in neurons.items():
        if name in kept:
            kept[Key("h", name)] = kept.pop(name).movedim(axis, 0).flatten(1)
    return kept


def parted(snapshots: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What snapshots recorded, as `recorded` and as `fields` of a solution"""
    names = snapshots[0] if snapshots else ()
    stacked = {name: torch.stack([found[name].cpu() for found in snapshots]) for name in names}
    fields = {name: tensor for name, tensor in stacked.items() if "[" in name}  # names of others are words
    return {name: tensor for name, tensor in stacked.items() if name not in fields}, fields


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
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        log = Log()
        with suppress(Exception), log:  # again, to see where
            what(net, x)
        told = failed(net, x, error, log.failed, f"record[{name!r}], a function of (module, x), fails")
        raise ValueError(told) from error


def _tensor(name: str, found: Any) -> Tensor:
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ValueError(
            f"what is recorded as {name!r} must be a tensor of real numbers: received {checks.shown(found)}"
        )
    return found.detach()
