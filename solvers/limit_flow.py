"""Gradient flow of a LimitNetwork from one record to the next: what its parameters have moved since is the state (equation 33)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from solvers.evolve import Integrate
from solvers.infinite_dense import Known, Rows
from solvers.integrator import State, weighted

if TYPE_CHECKING:
    from solvers.limit_network import LimitNetwork, LimitPass


def flow(network: LimitNetwork, passed: LimitPass, integrate: Integrate) -> None:
    """Move the network from the pass that it made last to the next step; where that fails it is left where it was, bit for bit."""
    start, points = Here(network), slice(0, network.train)

    def velocity(moved: State) -> State:
        start.move(moved)
        return start.velocity(network.pass_over(points))

    try:
        start.move(integrate(velocity, start.unmoved(), start.velocity(passed)))
    except BaseException:
        (network.here or start).restore()
        raise


def norm(network: LimitNetwork, moved: State) -> Tensor:
    """The largest root mean square over neurons of what moved, of a matrix of what it does to fields in all directions of its basis"""
    count = len(network.layers)
    *fields, bias = moved[count:]
    sums = network.shard.sum(torch.stack([field.square().sum(dtype=torch.float64) for field in fields]))
    means = [total / max(1, len(field)) / network.shard.size for total, field in zip(sums, fields, strict=True)]
    matrices = [matrix.square().sum(dtype=torch.float64) for matrix in moved[:count]]
    return torch.stack([*matrices, *means, bias.double().square().mean()]).max().sqrt()


class Here:
    """A network at one moment: how to move it from there, and how to put it back although bases have grown."""

    def __init__(self, network: LimitNetwork) -> None:
        self.network, self.parameters = network, dict(network.parameters)
        # the readout bias, which no process shares, last
        self.names = [*(name for name in self.parameters if name != "b"), "b"]
        self.learned = [layer.learned for layer in network.layers]
        self.lengths = {rows: len(rows) for _, rows in matrices(network)}
        self.waiting = {known: list(known.waiting) for known in known_draws(network)}
        self.draws = {neurons: neurons.mark() for neurons in network.neurons}

    def unmoved(self) -> State:
        """Matrices first, then parameters of the neurons' own"""
        return tuple(
            torch.zeros_like(tensor) for tensor in (*self.learned, *(self.parameters[name] for name in self.names))
        )

    def velocity(self, passed: LimitPass) -> State:
        found = self.network.backward(passed)
        return (*(d @ c.T for d, c in found.matrices), *(found.own[name] for name in self.names))

    def move(self, moved: State) -> None:
        layers = self.network.layers
        for layer, learned, by in zip(layers, self.learned, moved, strict=False):
            layer.learned = weighted((1.0, 1.0), ((learned,), (by,)))[0]
        for name, by in zip(self.names, moved[len(layers) :], strict=True):
            self.network.parameters[name] = self.parameters[name] + by

    def restore(self) -> None:
        network = self.network
        network.parameters = self.parameters
        for rows, length in self.lengths.items():
            rows.cut(length)
        for layer, learned in zip(network.layers, self.learned, strict=True):
            layer.learned = learned
        for known, waiting in self.waiting.items():
            known.waiting = waiting
        for neurons, mark in self.draws.items():
            neurons.back_to(mark)


def matrices(network: LimitNetwork) -> Iterator[tuple[str, Rows]]:
    for l, layer in enumerate(network.layers, 1):
        yield f"layer{l}_e", layer.e.fields
        yield f"layer{l}_f", layer.f.fields
        yield f"layer{l}_u", layer.u
        yield f"layer{l}_r", layer.r
    for i, known in enumerate(known_draws(network)):
        yield f"known{i}", known.fields
    yield "last_features", network.last_features.fields
    yield "first_gradients", network.first_gradients.fields


def known_draws(network: LimitNetwork) -> list[Known]:
    return [known for layer in network.layers for known in (layer.known_below, layer.known_above)]
