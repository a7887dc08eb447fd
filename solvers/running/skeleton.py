"""A module of some width as it is before training, and its `forward` with other parameters in their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.network.architecture import Architecture
from meanfield.network.making import made, written_for
from meanfield.network.recording import Recorded, Recorder
from meanfield.network.roles import Parameter
from meanfield.scaling.units import Unit

FULLY_MADE = 2**22  # numbers of matrices that are made although nobody looks at them


@dataclass(frozen=True)
class Samples:
    """Inputs x (P, ...) and targets y (P, ..., C); inputs of test points."""

    x: Tensor
    y: Tensor
    x_test: Tensor | None = None

    def to(self, like: Tensor) -> Samples:
        """On a device, real numbers in a precision; integers stay integers"""
        x, x_test = (
            None if t is None else t.to(like.device, like.dtype if t.is_floating_point() else None)
            for t in (self.x, self.x_test)
        )
        return Samples(x, self.y.to(like), x_test)  # type: ignore[arg-type]


class Skeleton:
    """A module of one width for `functional_call`: its buffers are real, of its parameters those that its author's start decides."""

    def __init__(self, network: Architecture, units: Mapping[str, Unit], width: int, seed: int, like: Tensor) -> None:
        sizes = [np.prod(p.shape(width), dtype=float) for p in network.description.having("hidden")]
        least = int(min(sizes, default=np.inf)) if sum(sizes) > FULLY_MADE else FULLY_MADE**2
        net = made(network.builder, width, least, seed)
        network.description.must_describe(net, width)
        undrawn = {name for name, unit in units.items() if not unit.drawn}
        if any(p.is_meta for name, p in net.named_parameters() if name in undrawn) or any(
            b.is_meta for b in net.buffers()
        ):
            net = made(network.builder, width, FULLY_MADE**2, seed)
        self.starts = {name: p.detach().to(like) for name, p in net.named_parameters() if name in undrawn}
        for name, buffer in net.named_buffers():
            owner = net.get_submodule(name.rpartition(".")[0])
            owner._buffers[name.rpartition(".")[2]] = buffer.to(
                like.device, like.dtype if buffer.is_floating_point() else None
            )
        self.module, self.like = net, like

    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Its outputs with these parameters, all of them by name"""
        return torch.func.functional_call(self.module, dict(parameters), (x,))

    def recorded(self, parameters: Mapping[str, Tensor], record: Recorded, x: Tensor) -> dict[str, Tensor]:
        """What is recorded of it with these parameters, by name"""
        if not record:
            return {}
        given = {f"net.{name}": w for name, w in parameters.items()}
        with torch.no_grad(), written_for(self.like):
            return torch.func.functional_call(Recorder(self.module, record), given, (x,))

    def without_padding(self, parameter: Parameter, theta: Tensor) -> Tensor:
        """theta, in which the row of an embedding that stands for no token is zero"""
        index = getattr(self.module.get_submodule(parameter.name.rpartition(".")[0]), "padding_idx", None)
        if parameter.kind == "embedding" and index is not None:
            theta[index] = 0
        return theta
