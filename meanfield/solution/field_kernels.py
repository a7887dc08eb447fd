"""Kernels of a finite network, made from the fields of its neurons when they are looked at (equations 10 and 11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.network.keys import Key
from meanfield.problem.problem import Problem
from meanfield.solution.two_time import NeuronAverages, TwoTimeKernel, same, tangent_of


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

    @cached_property
    def kernels(self) -> dict[str, TwoTimeKernel]:
        """Phi1, G1, .. at every pair of snapshots"""
        keys = self.problem.keys("Phi", "G")
        return {key: TwoTimeKernel(self.steps, partial(self._neurons, key)) for key in keys}

    def __call__(self) -> Tensor:
        return torch.stack([self._tangent(step) for step in self.steps]).cpu()

    def _tangent(self, step: int) -> Tensor:
        """Sum over parameters of their learning rate times grad f . grad f: in a dense layer a product of two Gram matrices."""
        network, outputs = self.problem.perceptron, self.problem.data.y.numel()
        n = next(iter(self.fields.values())).shape[1]
        checks.memory(f"a tangent kernel of {outputs} outputs", 24.0 * outputs**2, "take fewer samples")

        def gram(q: Tensor) -> Tensor:
            scaled = q / math.sqrt(n)
            return scaled.T @ scaled

        phi = [gram(network.nonlinearity.phi(self._field(key, step))) for key in network.keys("h")]
        g = (gram(self._field(key, step)) for key in network.keys("g"))  # one at a time
        return tangent_of(self.problem, self.problem.scaling.products(n), phi, g)

    def _field(self, key: Key, step: int) -> Tensor:
        return self.fields[key][list(self.steps).index(step)].to(self.device)

    def _neurons(self, key: Key, *steps: int) -> NeuronAverages:
        """Of phi(h) (P columns), or of g (P C columns), in one layer"""
        field, feature = ("h", self.problem.perceptron.nonlinearity.phi) if key.kind == "Phi" else ("g", same)
        fields = [self._field(Key(field, key.layer), step) for step in steps]
        n, columns = fields[0].shape
        return NeuronAverages(fields[0].new_full((n,), 1 / n), fields, columns, feature)
