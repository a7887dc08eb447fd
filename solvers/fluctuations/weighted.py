"""WeightedNetwork: the perceptron of N neurons as a function of the weight of each neuron in every average (equations 100 and 101).

It is LimitNetwork with the exact law of finite networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from meanfield.problem.problem import Problem
from solvers.dmft.neurons import Population
from solvers.dmft.perceptron import LimitNetwork, Parameters
from solvers.fluctuations.weighted_dense import Side, Weighted, WeightedDense
from solvers.running.integrator import State


class WeightedNetwork(Weighted, LimitNetwork):
    """weights: m^l (S,) of each layer's neurons, each of sum 1; the same tensor for layers that share their neurons."""

    def __init__(self, problem: Problem, population: Population, tolerance: float, weights: Sequence[Tensor]) -> None:
        super().__init__(problem, population, (tolerance, tolerance), population.samples)
        self.weights, self.drawn = list(weights), list(dict.fromkeys(self.neurons))
        self.maps = [
            WeightedDense(Side.of(*below), Side.of(*above), tolerance)
            for below, above in pairwise(zip(self.neurons, self.weights, strict=True))
        ]
        self.layers = self.maps  # type: ignore[assignment]
        self.decays = [1.0] * len(self.still)

    def readout(self, phi: Tensor, a: Tensor) -> Tensor:
        return self.gain * self.std * (phi * self.weights[-1]) @ a.T

    def initial_state(self) -> State:
        """Of networks: f(0) is random, and so is the readout's bias, a mean over neurons"""
        first, *later = self.neurons
        w, biases = first.fresh(self.x.shape[1]), [neurons.fresh(1) for neurons in later] if self.bias else []
        a = self.neurons[-1].fresh(self.c_out)
        return self.started(w, biases, a)

    def started(self, w: Tensor, biases: list[Tensor], a: Tensor) -> State:
        """The state with these of the neurons' own"""
        like, matrices = self.population.like, len(self.layers)
        b = like.new_zeros(self.c_out)
        if self.bias:
            b = self.gain * self.bias * (self.neurons[-1].fresh(self.c_out) @ self.weights[-1])
        learned = [like.new_empty(0, 0) for _ in range(matrices)]
        return Parameters(learned, w, biases, a, b, torch.ones(matrices, dtype=torch.float64)).flat()
