"""Kernels of a two-layer network's measure, made from its particles when they are looked at (equations 10 and 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from meanfield.checking.short import brief
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.problem import Problem
from meanfield.problem.two_layers import two_layers
from meanfield.scaling.scaling import MeasureLimit
from meanfield.solution.two_time import NeuronAverages, TwoTimeKernel, tangent_of


@dataclass(frozen=True)
class MeasureKernels:
    """Phi1 and G1 of the particles at each snapshot, and, called, their tangent kernels (snapshots, P, C, P, C).

    device: where they are made. A sum over P^2 pairs of samples and all particles takes as long as many steps, so nothing is made
    before it is looked at. total: completes sums of which other processes hold the rest; then all is made at once, since all must
    take part.
    """

    problem: Problem
    particles: Mapping[int, ParticleMeasure]
    limit: MeasureLimit
    device: str = "cpu"
    total: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    __repr__ = brief

    @cached_property
    def kernels(self) -> dict[str, TwoTimeKernel]:
        """Phi1 and G1 at every pair of snapshots; nothing without snapshots"""
        keys = self.problem.keys("Phi", "G") if self.steps else []
        made: dict[str, TwoTimeKernel] = {
            key: TwoTimeKernel(self.steps, partial(self._neurons, key.kind)) for key in keys
        }
        return made if self.total is None else {k: TwoTimeKernel(self.steps, v.factor) for k, v in made.items()}

    @property
    def steps(self) -> list[int]:
        return sorted(self.particles)

    def __call__(self) -> Tensor:
        pairs = ([kernel.at(t).double() for kernel in self.kernels.values()] for t in self.steps)
        return torch.stack([tangent_of(self.problem, self.limit, [phi], [g]) for phi, g in pairs])

    def _neurons(self, kind: str, *steps: int) -> NeuronAverages:
        """Of phi(h) (P columns), or of a phi'(h) (P C columns)"""
        measures, data = [self.particles[step] for step in steps], self.problem.data
        points = [torch.cat(measure.tensors[:2], 1).to(self.device) for measure in measures]  # (N, C + D) each
        columns = data.y.numel() if kind == "G" else data.samples
        return NeuronAverages(measures[0].m.to(self.device), points, columns, partial(self._feature, kind), self.total)

    def _feature(self, kind: str, q: Tensor) -> Tensor:
        """(n, columns) of the particles q (n, C + D)"""
        network, c = two_layers(self.problem), self.problem.data.outputs
        h = q[:, c:] @ network.inner.inputs(self.problem.data.x).to(q).T
        if kind == "Phi":
            return network.activation.phi(h)
        slope = network.std * network.activation.dphi(h)  # (n, P)
        return (slope[:, :, None] * q[:, None, :c]).flatten(1)  # (n, P C)
