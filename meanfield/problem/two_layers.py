"""A two-layer perceptron with settings by layer as one neuron knows them: (a, w) with w the input weights and, if there are biases, one
more (equations 6 and 120)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meanfield.network.activations import Activation
from meanfield.network.laws import NORMAL, Law
from meanfield.network.perceptron import Network
from meanfield.problem.problem import Problem


@dataclass(frozen=True)
class TwoLayers:
    """std and bias: what multiplies the readout's weights and its bias. inner: whose `inputs` the first layer's weights multiply.

    rates and decays: what multiplies those of a, of w and of the output bias; of w the last number of decays belongs to its bias. laws: of
    a, of the input weights and of their biases.
    """

    inner: Network
    std: float
    bias: float
    rates: tuple[float, float, float] = (1.0, 1.0, 1.0)
    decays: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    laws: tuple[Law, Law, Law] = (NORMAL, NORMAL, NORMAL)

    @property
    def activation(self) -> Activation:
        return self.inner.nonlinearity

    @property
    def gaussian(self) -> bool:
        """Whether (a, w) starts as N(0, I)"""
        return all(law.gaussian for law in self.laws)

    @property
    def isotropic(self) -> bool:
        """Whether w does"""
        return all(law.gaussian for law in self.laws[1:])

    def decays_of(self, like: Tensor) -> tuple[float | Tensor, ...]:
        """Of a, w and the output bias, for inputs `like` (n, D)"""
        a, w, inner, outer = self.decays
        if not self.inner.bias_std or w == inner:
            return a, w, outer
        columns = like.new_full(like.shape[1:], w)
        columns[-1] = inner
        return a, columns, outer

    def drawn(self, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Of Gaussian particles (n, C) and (n, D) those of the laws"""
        of_a, of_w, of_bias = self.laws
        if not self.inner.bias_std:
            return of_a.of(a), of_w.of(w)
        return of_a.of(a), torch.cat([of_w.of(w[:, :-1]), of_bias.of(w[:, -1:])], 1)


def two_layers(problem: Problem) -> TwoLayers:
    """Of a perceptron of depth 1; ValueError for a module, and for rates that differ within a neuron's input weights"""
    if problem.trial is None:
        network = problem.perceptron
        return TwoLayers(network, network.weight_std, network.bias_std)
    network, own = problem.layered, problem.architecture
    if network is None:
        network = problem.perceptron_for("a flow of particles")
    by_name = {p.name: p for p in own.description}
    names = ("readout.weight", "input.weight", "input.bias", "readout.bias")
    a, w, inner, outer = (by_name.get(name) for name in names)
    assert a is not None
    assert w is not None

    def std(p: object) -> float:
        return 0.0 if p is None else own.std(p) or 0.0  # type: ignore[arg-type]

    rates = [1.0 if p is None else own.rate_of(p) for p in (a, w, inner, outer)]
    if inner is not None and rates[1] != rates[2]:
        raise ValueError(
            "particles move as (a, w), with the input weights and their bias in w: received the rates "
            f"{rates[1]:g} and {rates[2]:g}; give the layer 'input' one, or take CausalDMFT"
        )
    decays = [1.0 if p is None else own.decay_of(p) for p in (a, w, inner, outer)]
    laws = [NORMAL if p is None else own.law_of(p) or NORMAL for p in (a, w, inner)]
    return TwoLayers(
        replace(network, weight_std=std(w), bias_std=std(inner)),
        std(a),
        std(outer),
        (rates[0], rates[1], rates[3]),
        (decays[0], decays[1], decays[2], decays[3]),
        (laws[0], laws[1], laws[2]),
    )
