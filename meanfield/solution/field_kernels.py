"""Kernels of a finite network, made from the fields of its neurons when they are looked at (equations 10 and 11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.short import brief
from meanfield.network.keys import Key
from meanfield.network.layered import branch2
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.units import layers
from meanfield.solution.two_time import NeuronAverages, TwoTimeKernel, same, summed, tangent_of


@dataclass(frozen=True)
class FieldKernels:
    """Phi and G of each layer at the recorded steps, and, called, their tangent kernels (snapshots, P, C, P, C).

    fields: h1.. (snapshots, N, P) and g1.. = (df / dh) / sigma (snapshots, N, P C). device: where they are made. The tangent kernel of
    P C outputs takes as long as many steps of a narrow network, so nothing is made before it is looked at.
    """

    problem: Problem
    steps: Sequence[int]
    fields: Mapping[str, Tensor]
    device: str = "cpu"

    __repr__ = brief

    @cached_property
    def kernels(self) -> dict[str, TwoTimeKernel]:
        """Phi1, G1, .. at every pair of snapshots"""
        keys = self.problem.keys("Phi", "G")
        return {key: TwoTimeKernel(self.steps, partial(self._neurons, key)) for key in keys}

    def __call__(self) -> Tensor:
        return torch.stack([self._tangent(step) for step in self.steps]).cpu()

    def _tangent(self, step: int) -> Tensor:
        """Sum over parameters of their learning rate times grad f . grad f: in a dense layer a product of two Gram matrices."""
        network, scaling, outputs = self.problem.perceptron, self.problem.scaling, self.problem.data.y.numel()
        n = self.fields[network.keys("g")[-1]].shape[1]
        checks.memory(f"a tangent kernel of {outputs} outputs", 24.0 * outputs**2, "take fewer samples")

        def gram(q: Tensor, n: int) -> Tensor:
            scaled = q / math.sqrt(n)
            return scaled.T @ scaled

        fields = (self._field(key, step) for key in network.keys("h"))
        phi = [gram(network.nonlinearity.phi(h), len(h)) for h in fields]
        g = (gram(self._field(key, step), n) for key in network.keys("g"))  # one at a time; sigma^2 n is their scale
        if isinstance(scaling, Scaling):
            return tangent_of(self.problem, scaling.products(n), phi, g)
        rates = layers(network, scaling, self.problem.data.inputs, n // scaling.layers(network)[-1]).rates
        return summed(self.problem, partial(self._share, rates), phi, g)

    def _share(self, rates: Mapping[str, float], l: int, below: Tensor) -> Tensor:
        """In a standard parameterization, whose sigma^2 n is 1"""
        network, last = self.problem.perceptron, l == self.problem.perceptron.depth
        weights = rates["a" if last else f"W{l}"] * network.weight_std**2 * below
        biases = rates["b" if last else f"b{l}"] * network.bias_std**2 if network.bias_std else 0.0
        return (branch2(network) if 0 < l < network.depth else 1.0) * (weights + biases)

    def _field(self, key: Key, step: int) -> Tensor:
        return self.fields[key][list(self.steps).index(step)].to(self.device)

    def _neurons(self, key: Key, *steps: int) -> NeuronAverages:
        """Of phi(h) (P columns), or of g (P C columns), in one layer"""
        field, feature = ("h", self.problem.perceptron.nonlinearity.phi) if key.kind == "Phi" else ("g", same)
        fields = [self._field(Key(field, key.layer), step) for step in steps]
        n, columns = fields[0].shape
        return NeuronAverages(fields[0].new_full((n,), 1 / n), fields, columns, feature)
