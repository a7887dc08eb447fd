"""Networks of which the neurons of one layer alone are drawn anew: input weights, biases, readouts, and every Gaussian that its side of a
matrix will ever need (equation 100).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import meanfield as mf
from solvers.dmft.neurons import Neurons, Population
from solvers.fluctuations.observed import Observables
from solvers.fluctuations.unrolled import Unrolled
from solvers.fluctuations.weighted import WeightedNetwork
from solvers.running.sharding import Shard


@dataclass(frozen=True)
class Frozen(Population):
    """Neurons of the layer `varied` of a network of its own seed, of the others of the seed `others`"""

    varied: int
    others: int

    def neurons(self, layer: int) -> Neurons:
        seed = self.seed if layer == self.varied else self.others
        return replace(Population(self.samples, seed, "finite", self.like, self.shard)).neurons(layer)


def final_outputs(problem: mf.Problem, width: int, varied: int, others: int, seeds: int) -> Tensor:
    """(seeds, P + P_test) f_T of networks that differ in the neurons of the layer `varied`, counted from 0; the first one chooses which
    combinations of fields extend the bases of all, as the derivative holds them fixed.
    """
    names, last = ("f", "f_test"), problem.training.steps
    like, found = torch.empty(0, dtype=torch.float64), []
    first: WeightedNetwork | None = None
    for seed in range(1, seeds + 1):
        population = Frozen(width, 1000 * others + seed, "finite", like, Shard(width), varied, 10**6 + others)
        equal = [torch.full((width,), 1 / width, dtype=like.dtype)] * problem.perceptron.depth
        network = WeightedNetwork(problem, population, 1e-3, equal)
        if first is not None:
            network.follow(first)
        observed = Observables(problem, names, None)
        with torch.no_grad():
            found.append(torch.cat(Unrolled(problem, network, network.initial_state, observed, (last,)).seen()))
        first = first or network
    return torch.stack(found)
