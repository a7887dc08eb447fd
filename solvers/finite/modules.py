"""Real networks of one width from any module: seeds batched by torch.func, derivatives by autograd (equations 79 and 80)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from meanfield.checking.seeding import seeded
from meanfield.network.architecture import Architecture
from meanfield.network.making import written_for
from meanfield.problem.losses import Loss, averaged
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard
from meanfield.scaling.units import units
from solvers.finite.module_fields import fields, tangents
from solvers.running.apart import Passes, passes_of
from solvers.running.inputs import EVERYWHERE, Rows, at
from solvers.running.integrator import State
from solvers.running.skeleton import Samples, Skeleton
from solvers.running.tangents import tangent_kernel


@dataclass(frozen=True)
class ModulePass:
    """Outputs f (E, n, ..., C), which remember the `leaves` they came from, and targets y of the training samples, which are first."""

    f: Tensor
    leaves: State
    y: Tensor


class ModuleNetworks:
    """A batch of E independent networks. The state is theta of every trained parameter, each with a leading axis of seeds."""

    def __init__(
        self,
        network: Architecture,
        scaling: Scaling | Standard,
        width: int,
        seeds: Sequence[int],
        data: Samples,
        loss: Loss,
        like: Tensor,
    ) -> None:
        self.network, self.width, self.loss, self.like, self.seeds = network, width, loss, like, tuple(seeds)
        self.data, self.units = data.to(like), units(network, scaling, width)
        self.skeleton = Skeleton(network, self.units, width, seeded(self.seeds[0], width), like)
        self.sigma = scaling.output_multiplier(width)
        self.names = tuple(name for name, unit in self.units.items() if unit.rate)
        self.rates = tuple(self.units[name].rate for name in self.names)
        self.step_sizes = tuple(self.units[name].step for name in self.names)
        self.matrix_steps = tuple(self.units[name].matrix for name in self.names)
        self.decays = tuple(self.units[name].decay for name in self.names)
        self.frozen: dict[str, Tensor] = {}
        self.together = True  # whether seeds run in one batch

    def initial_state(self) -> State:
        return self.drawn(self.seeds)

    def drawn(self, seeds: Sequence[int]) -> State:
        """The start of networks of these seeds, in whose passes what is not trained is theirs"""
        each = [self._draw(seed) for seed in seeds]
        every = {name: torch.stack([one[name] for one in each]) for name in self.units}
        self.frozen = {name: theta for name, theta in every.items() if name not in self.names}
        return tuple(every[name] for name in self.names)

    def _draw(self, seed: int) -> dict[str, Tensor]:
        """theta of each parameter: of (seed, width) alone"""
        entropy = seeded(seed, self.width)
        g = torch.Generator().manual_seed(entropy)
        skeleton, found = Skeleton(self.network, self.units, self.width, entropy, self.like), {}
        for parameter in self.network.description:
            unit = self.units[parameter.name]
            if unit.law is not None:
                theta = unit.law.of(torch.randn(parameter.shape(self.width), generator=g, dtype=torch.float64))
                found[parameter.name] = skeleton.without_padding(parameter, theta.to(self.like))
            else:
                found[parameter.name] = skeleton.starts[parameter.name] / unit.multiplier
        return found

    def forward(self, state: State, rows: Rows, differentiated: bool) -> ModulePass:
        leaves = tuple(tensor.detach().requires_grad_(differentiated) for tensor in state)
        with torch.set_grad_enabled(differentiated):
            if not isinstance(rows, slice):
                x, y = at(rows, self.data.x, "x"), at(rows, self.data.y, "y")
                return ModulePass(self.outputs(leaves, x), leaves, y)
            f = self.outputs(leaves, self.data.x)
            if rows == EVERYWHERE and self.data.x_test is not None:
                with torch.no_grad():
                    f_test = self.outputs(state, self.data.x_test)
                f = torch.cat([f, f_test], 1)
        return ModulePass(f, leaves, self.data.y)

    def backward(self, passed: ModulePass) -> State:
        with torch.enable_grad():
            f = passed.f[:, : len(passed.y)]
            loss = averaged(self.loss, f, passed.y).sum()  # seeds do not interact
        gradients = torch.autograd.grad(loss, passed.leaves, allow_unused=True)
        pairs = zip(gradients, passed.leaves, self.rates, strict=True)
        return tuple(torch.zeros_like(leaf) if g is None else g.mul_(-rate) for g, leaf, rate in pairs)

    def outputs(self, state: Sequence[Tensor], x: Tensor) -> Tensor:
        """f (E, n, ..., C) of the points x (n, ...)"""
        theta = dict(zip(self.names, state, strict=True)) | self.frozen
        weights = {name: t * self.units[name].multiplier for name, t in theta.items()}
        with written_for(self.like):
            if len(self.seeds) == 1:
                return self.skeleton({name: w[0] for name, w in weights.items()}, x)[None]
            if self.together:
                try:
                    return torch.func.vmap(lambda own: self.skeleton(own, x))(weights)
                except RuntimeError:  # vmap does not know what this module does
                    self.together = False
            each = range(len(self.seeds))
            return torch.stack([self.skeleton({name: w[e] for name, w in weights.items()}, x) for e in each])

    def fields(self, state: Sequence[Tensor], seed: int, gradients: bool = True) -> dict[str, Tensor]:
        """Of the network of the seed-th of the seeds what enters and leaves each weight at the training points (equation 88)"""
        weights = self._weights(state, seed)
        given = (self.skeleton, weights, self.network.description, self.data.x, self.sigma)
        return fields(*given, gradients, self.network.averages)

    def recorded(self, state: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
        """What the architecture records at the training points, by name"""
        return self.skeleton.recorded(self._weights(state, seed), self.network.recordings, self.data.x)

    def tangent_kernel(self, state: Sequence[Tensor], seed: int, rates: Mapping[str, float] | None = None) -> Tensor:
        """K (P, C, P, C) of the network of the seed-th of the seeds at the training points, for the C outputs of a sample in the order of
        f.flatten(1) (equation 90), with these rates of theta, if given, in place of its own. Derivatives take at most MOST bytes
        (tangents.py).
        """
        weights, x, own = self._weights(state, seed), self.data.x, self.units
        rates = {name: own[name].rate for name in self.names} if rates is None else rates
        scales = {name: own[name].multiplier * math.sqrt(rate) for name, rate in rates.items()}
        given = (self.skeleton, weights, self.network.description, scales, x, self._passes)
        with torch.no_grad(), written_for(self.like):
            shape = self.skeleton(weights, x).flatten(1).shape
        return tangent_kernel(lambda: tangents(*given), shape.numel(), self.like).reshape(*shape, *shape)

    def _weights(self, state: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
        theta = dict(zip(self.names, state, strict=True)) | self.frozen
        return {name: t[seed].detach() * self.units[name].multiplier for name, t in theta.items()}

    @cached_property
    def _passes(self) -> Passes:
        return passes_of(self.network.builder, self.network.description, self.names, self.data.x)


def must_suit_modules(network: Architecture, scaling: Scaling | Standard, width: int) -> None:
    """ValueError for a scaling or a width n that modules, or this one, cannot have"""
    if isinstance(scaling, Scaling) and scaling.frozen != "none":
        raise ValueError(
            f"the scaling {scaling.name!r} keeps a part of the outputs as it starts, which is known for perceptrons: received the "
            f"module {network.name!r}; take mf.mean_field(gamma0)"
        )
    for parameter in network.description:
        parameter.shape(width)
