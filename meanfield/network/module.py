"""A perceptron (equation 1) as a module, whose layers are called input, hidden.1, hidden.2, .. and readout."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from meanfield.network.layered import branch
from meanfield.network.making import Build
from meanfield.network.perceptron import Network


class Perceptron(nn.Module):
    """The network of equation 1 but for its multipliers, which are those of equation 79."""

    def __init__(self, n: int, network: Network, inputs: int, outputs: int) -> None:
        super().__init__()
        bias, depth = network.bias_std > 0, network.depth
        self.phi = network.nonlinearity.phi
        self.skip, self.branch = network.residual is not None, branch(network)
        self.input = nn.Linear(inputs, n, bias)
        self.hidden = nn.ModuleDict({str(l): nn.Linear(n, n, bias) for l in range(1, depth)})
        self.readout = nn.Linear(n, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x)
        for layer in self.hidden.values():
            new = layer(self.phi(h))
            h = h + self.branch * new if self.skip else new
        return self.readout(self.phi(h))


def made_of(network: Network, inputs: int, outputs: int) -> Build:
    """Of the module for data of so many inputs and outputs"""
    return partial(Perceptron, network=network, inputs=inputs, outputs=outputs)


def built(build: Build) -> Network | None:
    """The perceptron of which this is a builder; None for any other builder"""
    return build.keywords["network"] if isinstance(build, partial) and build.func is Perceptron else None
