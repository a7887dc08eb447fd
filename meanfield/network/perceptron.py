"""Network: a fully connected network of any width: depth, activation, biases, residual branches (equation 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.network.activations import Activation, activation
from meanfield.network.keys import Key


@checked
@dataclass(frozen=True)
class Network:
    """A fully connected network (equation 1).

    Example:
        >>> import meanfield as mf
        >>> mf.Network(depth=3, activation="relu", bias_std=0.5)
        Network(depth=3, activation=Activation(name='relu'), bias_std=0.5)
    """

    depth: int = 1
    """Hidden layers; a two-layer network has one"""
    activation: Activation | str = "tanh"
    """The nonlinearity of the hidden layers"""
    weight_std: float = 1.0
    """Multiplies all weights, the readout's too, which start as N(0, 1)"""
    bias_std: float = 0.0
    """Multiplies trained biases, which start as N(0, 1); 0 means no biases"""
    residual: float | None = None
    """beta of h^{l+1} = h^l + (beta / sqrt(depth)) W^l phi(h^l) / sqrt(N); plain layers if left out"""

    _always_told = ("depth", "activation")
    __repr__ = brief
    _repr_html_ = html

    def __post_init__(self) -> None:
        checks.normalise(self, depth=1)
        object.__setattr__(self, "activation", activation(self.activation))

    @property
    def nonlinearity(self) -> Activation:
        return activation(self.activation)

    @property
    def is_linear(self) -> bool:
        """Whether its limit closes in matrices, without sampling"""
        return self.nonlinearity.name == "linear"

    def keys(self, *kinds: str) -> list[Key]:
        """Of each kind one for each hidden layer"""
        return [Key(kind, l) for kind in kinds for l in range(1, self.depth + 1)]

    def inputs(self, x: Tensor) -> Tensor:
        """What the first layer's weights multiply: weight_std x / sqrt(D), and a column of bias_std if there are biases."""
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"x must have shape (P, D): received {tuple(x.shape)}")
        scaled = x * (self.weight_std / math.sqrt(x.shape[1]))
        return torch.cat([scaled, scaled.new_full((len(x), 1), self.bias_std)], 1) if self.bias_std else scaled
