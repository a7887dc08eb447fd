"""What is asked: Problem = Dataset + Network + Scaling + Training + Loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield import checks
from meanfield.activations import Activation, activation
from meanfield.data import Dataset
from meanfield.losses import Loss, loss
from meanfield.scaling import Scaling, mean_field

Optimiser = Literal["gradient_descent", "gradient_flow"]


@dataclass(frozen=True)
class Network:
    """A fully connected network with `depth` hidden layers (a two-layer network has depth 1), equation 1.

    All weights start as N(0, 1) and are multiplied by weight_std, the readout included. bias_std > 0 adds trained biases, drawn
    N(0, 1) and multiplied by bias_std; 0 means no biases. residual=beta: h^{l+1} = h^l + (beta / sqrt(depth)) W^l phi(h^l) / sqrt(N).
    """

    depth: int = 1
    activation: Activation | str = "tanh"
    weight_std: float = 1.0
    bias_std: float = 0.0
    residual: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", checks.integer("depth", self.depth, 1))
        object.__setattr__(self, "activation", activation(self.activation))
        object.__setattr__(self, "weight_std", checks.positive("weight_std", self.weight_std))
        object.__setattr__(self, "bias_std", checks.positive("bias_std", self.bias_std, zero=True))
        if self.residual is not None:
            object.__setattr__(self, "residual", checks.positive("residual", self.residual))

    @property
    def nonlinearity(self) -> Activation:
        return activation(self.activation)

    def inputs(self, x: Tensor) -> Tensor:
        """What the first layer's weights multiply: weight_std x / sqrt(D), and a column of bias_std if there are biases."""
        scaled = x * (self.weight_std / math.sqrt(x.shape[1]))
        return torch.cat([scaled, scaled.new_full((len(x), 1), self.bias_std)], 1) if self.bias_std else scaled


@dataclass(frozen=True)
class Training:
    """Full-batch training on the mean loss, recorded at the times k * learning_rate, k = 0..steps.

    gradient_descent takes one step of size learning_rate between two records; gradient_flow follows dtheta/dt = -grad exactly.
    """

    learning_rate: float = 0.1
    steps: int = 100
    optimiser: Optimiser = "gradient_descent"

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", checks.positive("learning_rate", self.learning_rate))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, 0))
        if self.optimiser not in get_args(Optimiser):
            raise ValueError(f"unknown optimiser: received {self.optimiser!r}; known: {', '.join(get_args(Optimiser))}")

    @property
    def times(self) -> Tensor:
        """(T+1,) training time eta k of each record"""
        return self.learning_rate * torch.arange(self.steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Problem:
    """One learning problem; every solver takes it and answers with a Solution on its time grid."""

    data: Dataset
    network: Network = field(default_factory=Network)
    scaling: Scaling = field(default_factory=mean_field)
    training: Training = field(default_factory=Training)
    loss: Loss | str = "squared"

    def __post_init__(self) -> None:
        for key, kind in (("data", Dataset), ("network", Network), ("scaling", Scaling), ("training", Training)):
            if not isinstance(getattr(self, key), kind):
                raise ValueError(f"{key} must be a {kind.__name__}: received {type(getattr(self, key)).__name__}")
        object.__setattr__(self, "loss", loss(self.loss))
        self.loss_function.check(self.data.y)
        if self.data.y_test is not None:
            self.loss_function.check(self.data.y_test)

    @property
    def loss_function(self) -> Loss:
        return loss(self.loss)

    def with_steps(self, steps: int) -> Problem:
        return replace(self, training=replace(self.training, steps=steps))
