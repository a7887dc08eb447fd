"""Schedules: what multiplies the learning rate in each step (equation 110)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.problem.words import worded

Shape = Literal["constant", "linear", "cosine", "inverse_sqrt", "step"]


@checked
@dataclass(frozen=True)
class Schedule:
    """A course of the learning rate: `Training(schedule=mf.Schedule("cosine", final=0.1), warmup=10)` (equation 110).

    Example:
        >>> import meanfield as mf
        >>> mf.Training(0.1, 100, schedule="cosine").schedule == mf.Schedule("cosine")
        True
        >>> halves = mf.Training(0.1, 100, schedule=mf.Schedule("step", every=20, factor=0.5), warmup=5)
    """

    shape: Shape = "constant"
    """linear and cosine fall to `final` at the end of the run, inverse_sqrt as 1/sqrt(step) after the warm-up, step by `factor` after each
    `every` steps"""
    final: float = 0.0
    """Of linear and cosine: what is left at their end"""
    every: int = 30
    """Of step: steps between two falls"""
    factor: float = 0.1
    """Of step: what each fall leaves"""
    over: int | None = None
    """Of linear and cosine: steps until the end, at which they stay; the run's if left out"""

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"unknown schedule: received {self.shape!r}; known: {', '.join(get_args(Shape))}")
        for f in fields(self)[1:]:
            if self.shape not in _TAKEN_BY[f.name] and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"{f.name} belongs to schedules of the shapes {', '.join(_TAKEN_BY[f.name])}: received {f.name}="
                    f"{getattr(self, f.name)} for {self.shape!r}"
                )
        checks.normalise(self, every=1, over=1)
        checks.positive("final", self.final, zero=True)
        checks.positive("factor", self.factor)

    def factors(self, steps: int, warmup: int = 0) -> Tensor:
        """(steps,) float64, of the steps 0, 1, .. of a run, after a linear rise over the first `warmup` of them"""
        steps = checks.integer("steps", steps, 0)
        checks.memory(f"the factors of steps={steps}", 40.0 * steps, "take fewer steps")
        at = torch.arange(steps, dtype=torch.float64)
        past = (at - checks.integer("warmup", warmup, 0)).clamp(min=0)
        share = (past / max((self.over or steps) - warmup, 1)).clamp(max=1)
        start = max(warmup, 1)
        if self.shape == "linear":
            past = 1 - (1 - self.final) * share
        elif self.shape == "cosine":
            past = self.final + (1 - self.final) * (1 + torch.cos(math.pi * share)) / 2
        elif self.shape == "inverse_sqrt":
            past = (start / (start + past)).sqrt()
        else:
            past = self.factor ** (past // self.every) if self.shape == "step" else torch.ones_like(at)
        return past * rise(at, warmup)

    def lasting(self, steps: int) -> Schedule:
        """The same course for runs of any length, as it is for one of so many steps"""
        bends = self.shape in _TAKEN_BY["over"] and not self.over
        return replace(self, over=max(steps, 1)) if bends else self


_TAKEN_BY = {"final": ("linear", "cosine"), "over": ("linear", "cosine"), "every": ("step",), "factor": ("step",)}


def rise(at: Tensor, warmup: int) -> Tensor:
    """At steps `at`: linear to 1 at the step `warmup`"""
    return ((at + 1) / (warmup + 1)).clamp(max=1)


def schedule(given: Schedule | str | Sequence[float]) -> Schedule | tuple[float, ...]:
    """By its shape's name, "cosine" or "cosine(final=0.1)", or as it is; numbers as a factor for each step. ValueError for what is
    neither, and for factors below 0
    """
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str):
        takes = {shape: [name for name, by in _TAKEN_BY.items() if shape in by] for shape in get_args(Shape)}
        shape, own = worded("schedule", given, takes) or (given, {})
        return Schedule(shape, **own)  # type: ignore[arg-type]
    return tuple(checks.positive(f"schedule[{i}]", value, zero=True) for i, value in enumerate(given))
