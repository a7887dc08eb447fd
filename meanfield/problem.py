"""What is asked: Problem = Dataset + Network + Scaling + Training + Loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield import checks
from meanfield.activations import Activation, activation
from meanfield.arguments import checked
from meanfield.data import Dataset
from meanfield.keys import Key
from meanfield.losses import Loss, loss
from meanfield.scaling import Scaling, mean_field

Optimiser = Literal["gradient_descent", "gradient_flow"]


@checked
@dataclass(frozen=True)
class Network:
    """A fully connected network (equation 1)."""

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


@checked
@dataclass(frozen=True)
class Training:
    """Gradient descent or flow on the mean loss (equation 2)."""

    learning_rate: float = 0.1
    """Training time a step"""
    steps: int = 100
    """How many steps; outputs are recorded before the first one, too"""
    optimiser: Optimiser = "gradient_descent"
    """gradient_descent takes discrete steps; gradient_flow follows d theta/dt = -grad in continuous time"""
    momentum: float = 0.0
    """Of heavy-ball descent, below 1"""
    weight_decay: float = 0.0
    """Parameters shrink by the learning rate times this in each step"""
    batch_size: int | None = None
    """Training samples a step, in a new order each epoch, a shorter rest left out; all of them if left out"""
    batch_seed: int = 0
    """Of the order of samples, which is the same for every solver"""
    record_every: int = 1
    """Steps between two records of the outputs on all samples (the last step is one); in between a step costs its batch alone"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", checks.positive("learning_rate", self.learning_rate))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, 0))
        if self.optimiser not in get_args(Optimiser):
            adam = "adam" in str(self.optimiser).lower()
            why = "; Adam normalises by gradients that vanish with the width: its limit is another one" if adam else ""
            raise ValueError(
                f"unknown optimiser: received {self.optimiser!r}; known: {', '.join(get_args(Optimiser))}{why}"
            )
        object.__setattr__(self, "momentum", checks.positive("momentum", self.momentum, zero=True, below=1))
        object.__setattr__(self, "weight_decay", checks.positive("weight_decay", self.weight_decay, zero=True))
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate * weight_decay must be below 1: received {self.learning_rate * self.weight_decay:g}"
            )
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", checks.integer("batch_size", self.batch_size, 1))
        object.__setattr__(self, "batch_seed", checks.seed("batch_seed", self.batch_seed))
        object.__setattr__(self, "record_every", checks.integer("record_every", self.record_every, 1))
        if self.optimiser == "gradient_flow" and not self.plain:
            raise ValueError(
                "momentum, weight_decay and batch_size belong to gradient_descent: leave them out of gradient_flow"
            )

    @property
    def plain(self) -> bool:
        """Whether every step uses all samples and nothing but the gradient"""
        return not self.momentum and not self.weight_decay and self.batch_size is None

    def batches(self, samples: int, first: int = 0) -> Iterator[Tensor | None]:
        """Of each step from `first` on the training samples (batch_size,) of its batch; None: all.

        Each epoch is a permutation cut into batches, a shorter remainder left out. Drawn as they are asked for, one epoch at a time.
        """
        samples, first = checks.integer("samples", samples, 1), checks.integer("first", first, 0)
        if self.batch_size is None:
            return repeat(None, max(0, self.steps - first))
        if self.batch_size > samples:
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {samples} training samples: take a smaller one, or None for all"
            )
        checks.memory(f"a permutation of samples={samples}", 24.0 * samples, "take fewer samples")
        return self._permuted(self.batch_size, samples, first)

    def _permuted(self, batch_size: int, samples: int, first: int) -> Iterator[Tensor]:
        generator, order = torch.Generator().manual_seed(self.batch_seed), torch.empty(0, dtype=torch.int64)
        per_epoch = samples // batch_size
        for step in range(self.steps):
            if step % per_epoch == 0:
                order = torch.randperm(samples, generator=generator)
            if step >= first:
                start = (step % per_epoch) * batch_size
                yield order[start : start + batch_size]

    def records(self, step: int) -> bool:
        """Whether outputs are recorded at a step of the run"""
        step = checks.integer("step", step, 0)
        return step % self.record_every == 0 or step == self.steps

    @property
    def record_count(self) -> int:
        """R, how many steps are recorded"""
        return 1 + -(-self.steps // self.record_every)

    @property
    def recorded_steps(self) -> tuple[int, ...]:
        """The steps at which outputs are recorded: 0, record_every, 2 record_every, .. and the last"""
        grid = range(0, self.steps + 1, self.record_every)
        return (*grid, *([self.steps] if self.steps % self.record_every else []))

    @property
    def times(self) -> Tensor:
        """(R,) training time eta k of each record"""
        return self.learning_rate * torch.tensor(self.recorded_steps, dtype=torch.float64)


@checked
@dataclass(frozen=True)
class Problem:
    """One learning problem; every solver takes it and answers with a Solution on its time grid."""

    data: Dataset
    """Samples to train on, and others to watch"""
    network: Network = field(default_factory=Network)
    """Fully connected layers, whose width goes to infinity (equation 1)"""
    scaling: Scaling = field(default_factory=mean_field)
    """How the output and the learning rates depend on the width"""
    training: Training = field(default_factory=Training)
    """On the mean loss, recorded at times that are the same for every solver (equation 2)"""
    loss: Loss | str = "squared"
    """Averaged over the training samples"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", loss(self.loss))
        self.training.batches(self.data.samples)
        self.loss_function.fits(self.data.y, *([] if self.data.y_test is None else [self.data.y_test]))

    @property
    def loss_function(self) -> Loss:
        return loss(self.loss)

    def with_steps(self, steps: int) -> Problem:
        return replace(self, training=replace(self.training, steps=steps))
