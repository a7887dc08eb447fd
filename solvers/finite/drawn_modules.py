"""Kernels at the start of modules that are drawn for each seed (equation 47)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.network.architecture import Architecture
from meanfield.network.making import made
from meanfield.network.trial import must_be_trained, outputs_of
from meanfield.problem.losses import loss
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard
from solvers.finite.modules import ModuleNetworks, must_suit_modules
from solvers.running.integrator import State
from solvers.running.skeleton import Samples

_ROUNDING = 1e-9  # of sums of outputs, relative to their size


class DrawnModules(ModuleNetworks):
    """Networks of width n at the samples x (P, ..), one seed after the other."""

    def __init__(self, network: Architecture, scaling: Scaling | Standard, x: Tensor, n: int) -> None:
        must_suit_modules(network, scaling, n)
        must_be_trained(made(network.builder, n, least=2**62).to(torch.float64), x[:3])
        samples = Samples(x, torch.zeros(len(x), 1))
        super().__init__(network, scaling, n, (0,), samples, loss("squared"), torch.empty(0, dtype=torch.float64))
        self.readouts = {
            p.name: 1.0
            for p in network.description.having("readout", "output bias")
            if (law := self.units[p.name].law) is not None and not law.zero
        }

    def kernels(self, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(nngp, ntk) of each, (P, positions, P, positions) in the mean over outputs, and f; ValueError for x that the module does not
        take"""
        start = self.drawn(seeds[:1])
        shape = outputs_of(lambda some: self.outputs(start, some)[0], self.data.x[:3]).shape[1:]
        self._must_fit(math.prod(shape))
        linear = self._linear_in_readouts(start)
        for seed in seeds:
            state = self.drawn((seed,))
            f = self.outputs(state, self.data.x)[0]
            nngp = self.tangent_kernel(state, 0, self.readouts) if linear else _products(f)
            yield _over_outputs(nngp, shape), _over_outputs(self.tangent_kernel(state, 0), shape), f.detach()

    def _must_fit(self, outputs: int) -> None:
        checks.memory(
            f"the kernels of {outputs} outputs of {len(self.data.x)} samples",
            3 * 8.0 * (outputs * len(self.data.x)) ** 2,
            "give fewer samples",
        )

    def _linear_in_readouts(self, state: State) -> bool:
        """Whether outputs change by sums where readouts do, up to what does not depend on them"""
        if not self.readouts:
            return False
        theta = dict(zip(self.names, state, strict=True)) | self.frozen
        other = dict(zip(self.names, self.drawn((1,)), strict=True)) | self.frozen

        def f(one: float, two: float) -> Tensor:
            own = {name: one * theta[name] + two * other[name] for name in self.readouts}
            self.frozen = {name: (theta | own)[name] for name in self.units if name not in self.names}
            return self.outputs([(theta | own)[name] for name in self.names], self.data.x[:3])

        with torch.no_grad():
            whole, parts, nothing = f(1, 1), (f(1, 0), f(0, 1)), f(0, 0)
            f(1, 0)  # which leaves what is frozen as it was
        off = whole - parts[0] - parts[1] + nothing
        return float(off.abs().max()) <= _ROUNDING * max(float(t.abs().max()) for t in (whole, *parts, nothing))


def _products(f: Tensor) -> Tensor:
    """(P, C, P, C) of outputs (P, .., O)"""
    flat = f.detach().flatten(1)
    return torch.einsum("pc,qd->pcqd", flat, flat)


def _over_outputs(kernel: Tensor, shape: Sequence[int]) -> Tensor:
    """(P, positions, P, positions) the mean over outputs of (P, C, P, C), of which each sample has (positions, O)"""
    p, places = len(kernel), tuple(shape[:-1])
    q, o = math.prod(places), shape[-1]
    return kernel.view(p, q, o, p, q, o).diagonal(dim1=2, dim2=5).mean(-1).reshape(p, *places, p, *places)
