"""Training: learning rate, steps, optimiser, batches in their order, and the steps that are recorded (equation 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked

Optimiser = Literal["gradient_descent", "gradient_flow"]


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
        checks.normalise(self, steps=0, batch_size=1, record_every=1)
        if self.optimiser not in get_args(Optimiser):
            adam = "adam" in str(self.optimiser).lower()
            why = "; Adam normalises by gradients that vanish with the width: its limit is another one" if adam else ""
            raise ValueError(
                f"unknown optimiser: received {self.optimiser!r}; known: {', '.join(get_args(Optimiser))}{why}"
            )
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate * weight_decay must be below 1: received {self.learning_rate * self.weight_decay:g}"
            )
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
