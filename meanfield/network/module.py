"""A perceptron (equation 1) as a module, and as an architecture of any width."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from meanfield.network.architecture import Architecture
from meanfield.network.layered import branch
from meanfield.network.perceptron import Network


class Perceptron(nn.Module):
    """The network of equation 1 but for its multipliers, which are those of equation 79."""

    def __init__(self, n: int, network: Network, inputs: int, outputs: int) -> None:
        super().__init__()
        bias, depth = network.bias_std > 0, network.depth
        self.phi = network.nonlinearity.phi
        self.skip, self.branch = network.residual is not None, branch(network)
        self.read = nn.Linear(inputs, n, bias)
        self.mix = nn.ModuleList(nn.Linear(n, n, bias) for _ in range(depth - 1))
        self.out = nn.Linear(n, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        for layer in self.mix:
            new = layer(self.phi(h))
            h = h + self.branch * new if self.skip else new
        return self.out(self.phi(h))


def perceptron(network: Network, inputs: int, outputs: int) -> Architecture:
    """The architecture of a Network for data of so many inputs and outputs"""
    std = {"*.weight": network.weight_std} | ({"*.bias": network.bias_std} if network.bias_std else {})
    return Architecture(partial(Perceptron, network=network, inputs=inputs, outputs=outputs), std, name="perceptron")
