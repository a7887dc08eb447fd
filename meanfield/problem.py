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
    """Training on the mean loss, recorded at the times k * learning_rate, k = 0..steps.

    gradient_descent takes one step of size learning_rate between two records; gradient_flow follows dtheta/dt = -grad exactly.
    Descent may have heavy-ball momentum, weight decay (theta <- (1 - learning_rate weight_decay) theta - ..) and mini-batches: batch_size
    samples a step in a sequence fixed by batch_seed, the same for every solver (equation 2).
    """

    learning_rate: float = 0.1
    steps: int = 100
    optimiser: Optimiser = "gradient_descent"
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = None
    batch_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", checks.positive("learning_rate", self.learning_rate))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, 0))
        if self.optimiser not in get_args(Optimiser):
            adam = "adam" in str(self.optimiser).lower()
            why = "; Adam normalises by gradients that vanish with the width: its limit is another one" if adam else ""
            raise ValueError(
                f"unknown optimiser: received {self.optimiser!r}; known: {', '.join(get_args(Optimiser))}{why}"
            )
        object.__setattr__(self, "momentum", checks.positive("momentum", self.momentum, zero=True))
        object.__setattr__(self, "weight_decay", checks.positive("weight_decay", self.weight_decay, zero=True))
        if self.momentum >= 1:
            raise ValueError(f"momentum must be below 1: received {self.momentum:g}")
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate * weight_decay must be below 1: received {self.learning_rate * self.weight_decay:g}"
            )
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", checks.integer("batch_size", self.batch_size, 1))
        checks.integer("batch_seed", self.batch_seed, 0)
        if self.optimiser == "gradient_flow" and not self.plain:
            raise ValueError(
                "momentum, weight_decay and batch_size belong to gradient_descent: leave them out of gradient_flow"
            )

    @property
    def plain(self) -> bool:
        """Whether every step uses all samples and nothing but the gradient"""
        return not self.momentum and not self.weight_decay and self.batch_size is None

    def sample_weights(self, samples: int) -> Tensor | None:
        """(steps, P) weight of each sample in the mean of each step: P / batch_size in the batch, else 0; None for full batches.

        Each epoch is a permutation cut into batches, a shorter remainder left out.
        """
        if self.batch_size is None:
            return None
        if self.batch_size > samples:
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {samples} training samples: take a smaller one, or None for all"
            )
        generator, weights = (
            torch.Generator().manual_seed(self.batch_seed),
            torch.zeros(self.steps, samples, dtype=torch.float64),
        )
        per_epoch, order = samples // self.batch_size, torch.empty(0, dtype=torch.int64)
        for step in range(self.steps):
            if step % per_epoch == 0:
                order = torch.randperm(samples, generator=generator)
            first = (step % per_epoch) * self.batch_size
            weights[step, order[first : first + self.batch_size]] = samples / self.batch_size
        return weights

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
        self.training.sample_weights(self.data.samples)
        self.loss_function.check(self.data.y)
        if self.data.y_test is not None:
            self.loss_function.check(self.data.y_test)

    @property
    def loss_function(self) -> Loss:
        return loss(self.loss)

    def with_steps(self, steps: int) -> Problem:
        return replace(self, training=replace(self.training, steps=steps))
