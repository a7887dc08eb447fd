"""Training: learning rate, steps, optimiser, batches in their order, and the steps that are recorded (equation 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.problem.optimisers import Entrywise, named
from meanfield.problem.schedules import Schedule, Shape, rise, schedule

_BESIDE = ("momentum", "weight_decay", "batch_size", "schedule", "warmup", "clip", "temperature")
Optimiser = Literal["gradient_descent", "gradient_flow", "adam", "adamw", "muon", "rmsprop", "sign_descent"]


@checked
@dataclass(frozen=True)
class Training:
    """Descent or flow on the mean loss (equations 2 and 110 to 114).

    Example:
        >>> import meanfield as mf
        >>> adam = mf.Training(learning_rate=0.01, steps=50, optimiser="adam", schedule="cosine", warmup=5)
        >>> mf.Training(learning_rate=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: learning_rate must be positive and finite: received -1.0; give e.g. learning_rate=1.0
    """

    learning_rate: float = 0.1
    """Training time a step"""
    steps: int = 100
    """How many steps; outputs are recorded before the first one, too"""
    optimiser: Optimiser | Entrywise = "gradient_descent"
    """gradient_descent takes discrete steps; gradient_flow follows d theta/dt = -grad in continuous time; the others act on each number by
    itself, with numbers of its own as in "adam(beta1=0.8)" (in Python also mf.Adam(..) and the like)"""
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
    schedule: Shape | Schedule | Sequence[float] = "constant"
    """What multiplies the learning rate in each step: a shape, with numbers of its own as in "cosine(final=0.1)"; in Python also
    mf.Schedule(..), or a factor for each step"""
    warmup: int = 0
    """Steps over which the learning rate rises linearly, before the schedule"""
    clip: float | None = None
    """The largest norm of the gradient, sqrt(-d loss / d time) as of gradient flow; a longer one is shortened"""
    temperature: float = 0.0
    """tau of Langevin descent: each step adds noise of variance 2 eta tau to every N(0, 1) parameter, eta being its rate"""
    noise_seed: int = 0
    """Of that noise, with the seed of the start"""

    _always_told = ("learning_rate", "steps")
    __repr__ = brief
    _repr_html_ = html

    def __post_init__(self) -> None:
        checks.normalise(self, steps=0, batch_size=1, record_every=1, warmup=0)
        if isinstance(self.optimiser, str):
            object.__setattr__(self, "optimiser", named(self.optimiser))
        if self.optimiser not in get_args(Optimiser) and not isinstance(self.optimiser, Entrywise):
            raise ValueError(
                f"unknown optimiser: received {self.optimiser!r}; known: {', '.join(get_args(Optimiser))}, or one with numbers of its "
                "own, e.g. 'adam(beta2=0.95)' or mf.Adam(beta2=0.95)"
            )
        course = schedule(self.schedule)
        object.__setattr__(self, "schedule", course)
        if isinstance(self.schedule, tuple) and len(self.schedule) < self.steps:
            raise ValueError(
                f"schedule needs a factor for each of the {self.steps} steps: received {len(self.schedule)}; give more "
                "than a run needs if it is to go on, or a shape, e.g. 'cosine'"
            )
        largest = self.learning_rate * max((1.0, course.final) if isinstance(course, Schedule) else course, default=1.0)
        if not math.isfinite(largest):
            raise ValueError(
                f"learning_rate={self.learning_rate:g} times the schedule's largest factor is no finite number"
            )
        if largest * self.weight_decay >= 1:
            scheduled = f", {largest:g} being the largest rate of the schedule" if largest != self.learning_rate else ""
            raise ValueError(
                f"learning_rate * weight_decay must be below 1: received {largest * self.weight_decay:g}{scheduled}"
            )
        self._must_fit_the_optimiser()

    def _must_fit_the_optimiser(self) -> None:
        if self.optimiser == "gradient_flow" and not self.plain:
            raise ValueError(
                f"momentum, weight_decay, batch_size and the like belong to gradient_descent: received {self.other_than('optimiser')}; "
                "leave them out of gradient_flow"
            )
        if self.entrywise is None:
            return
        if self.momentum:
            raise ValueError(
                f"momentum={self.momentum:g} belongs to gradient_descent: {self.entrywise.name} averages gradients by beta1"
            )
        if self.temperature:
            raise ValueError(
                f"temperature={self.temperature:g} belongs to gradient_descent, of which the noise makes a posterior of Bayes: "
                f"leave it out of {self.entrywise.name}"
            )

    def __eq__(self, other: object) -> bool:
        """The same steps; whether a schedule says where it ends, or the run's end does, is no difference"""
        return self._resolved() == other._resolved() if isinstance(other, Training) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._resolved())

    def _resolved(self) -> tuple[object, ...]:
        return tuple(self._lasting if f.name == "schedule" else getattr(self, f.name) for f in fields(self))

    @property
    def _lasting(self) -> str | Schedule | Sequence[float]:
        """The schedule of this run, whatever the steps of another"""
        return self.schedule.lasting(self.steps) if isinstance(self.schedule, Schedule) else self.schedule

    @property
    def entrywise(self) -> Entrywise | None:
        """The optimiser, if it acts entry by entry"""
        return self.optimiser if isinstance(self.optimiser, Entrywise) else None

    @property
    def memories(self) -> int:
        """How many numbers a step remembers of each parameter"""
        return self.entrywise.memories if self.entrywise else int(bool(self.momentum))

    def other_than(self, *taken: str) -> str:
        """What was asked for beside the gradient over all samples at the learning rate and what is taken: fields by name, "entrywise" for
        optimisers of that kind. Empty if there is nothing
        """
        kind = "optimiser" if self.optimiser == "gradient_flow" else "entrywise"
        found = {} if self.optimiser == "gradient_descent" else {kind: f"optimiser={self.optimiser!r}"}
        usual = {f.name: f.default for f in fields(self) if f.name in _BESIDE} | {"schedule": Schedule()}
        found |= {name: f"{name}={value!r}" for name in usual if (value := getattr(self, name)) != usual[name]}
        return ", ".join(text for name, text in found.items() if name not in taken)

    @property
    def plain(self) -> bool:
        """Whether every step uses all samples, one rate, and nothing but the gradient"""
        return not self.other_than("optimiser")

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
    def rates(self) -> Tensor:
        """(T,) float64, the learning rate of each step (equation 110)"""
        checks.memory(f"the rates of steps={self.steps}", 40.0 * self.steps, "take fewer steps")
        if isinstance(self.schedule, Schedule):
            factors = self.schedule.factors(self.steps, self.warmup)
        else:
            steps = torch.arange(self.steps, dtype=torch.float64)
            factors = torch.tensor(self.schedule[: self.steps], dtype=torch.float64) * rise(steps, self.warmup)
        return self.learning_rate * factors

    @property
    def times(self) -> Tensor:
        """(R,) training time of each record, the sum of the rates until then"""
        return self.times_of(self.recorded_steps)

    def times_of(self, steps: Sequence[int]) -> Tensor:
        """(n,) training time of some steps of the run"""
        at = torch.tensor(tuple(steps), dtype=torch.int64)
        if not self.changing:
            return self.learning_rate * at.double()
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.rates.cumsum(0)])[at]

    def rate_by_step(self) -> Callable[[int], float]:
        """The learning rate of a step"""
        if not self.changing:
            return lambda at: self.learning_rate
        return self.rates.tolist().__getitem__

    @property
    def changing(self) -> bool:
        """Whether steps have different rates"""
        return self.warmup > 0 or self.schedule != Schedule()

    def of_length(self, steps: int) -> Training:
        """The same course of training for another number of steps, as a run that is cut short or goes on takes it"""
        return replace(self, steps=steps, schedule=self._lasting)
