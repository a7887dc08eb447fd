"""Trajectory: the records of one run, on their own or behind those of the run that it continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meanfield.problem.training import Training
from meanfield.solution.solution import Solution, Status
from solvers.running.failures import NonFiniteError
from solvers.running.integrator import State


class BlewUp(Exception):
    """Values that are not finite."""


@dataclass
class Trajectory:
    """Records of one run: f[i] is the output at steps[i]."""

    steps: list[int] = field(default_factory=list)
    f: list[Tensor] = field(default_factory=list)
    f_test: list[Tensor] = field(default_factory=list)
    noted: list[dict[str, Tensor]] = field(default_factory=list)  # beside the outputs, on the CPU
    captured: dict[int, Any] = field(default_factory=dict)
    state: State = ()
    status: Status = Status.FINISHED
    stats: dict[str, Any] = field(default_factory=dict)
    memory: State = ()  # of the way from step to step: what is left of earlier velocities
    last: int = 0  # the step that was reached
    bad: Tensor | None = None  # which of an ensemble ended the run, in the shape of f's leading dimensions

    def must_be_finite(self, f: Tensor, loss: Tensor) -> None:
        """BlewUp for outputs (..., n, .., C) or losses (...) that are not"""
        bad = ~(torch.isfinite(f).flatten(loss.ndim).all(-1) & torch.isfinite(loss))
        if bool(bad.any()):
            self.bad = bad
            raise BlewUp

    def record(self, step: int, f: Tensor, f_test: Tensor, noted: Mapping[str, Tensor]) -> None:
        """Outputs (..., P, .., C) and (..., P_test, .., C), which may be empty, and what is kept beside them"""
        self.steps.append(step)
        self.noted.append({name: tensor.cpu() for name, tensor in noted.items()})
        self.f.append(f.detach())
        if f_test.numel():
            self.f_test.append(f_test.detach())

    def named_state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The state by name, and what a step remembers: what `kept_momentum` finds again"""
        memory = zip(remembered(names), self.memory, strict=False)
        return dict(zip(names, self.state, strict=True)) | dict(memory)

    def recorded_steps(self, previous: Solution | None = None) -> tuple[int, ...]:
        """The steps of all records"""
        return (*(previous.recorded_steps[: self.earlier(previous)] if previous else ()), *self.steps)

    def earlier(self, previous: Solution) -> int:
        """How many records of `previous` stay: its last one is repeated here, or belongs to a run that ends there"""
        return len(previous.f) - bool(self.steps)

    def answers(self, previous: Solution | None, seeds: int) -> list[dict[str, Any]]:
        """`answer` for each of so many seeds; a run that goes on is alone, and has lost its axis of seeds"""
        whole = self.answer(previous)
        outputs = {name: whole[name] for name in ("f", "f_test") if whole[name] is not None}
        each = [whole | {name: f[:, e] for name, f in outputs.items()} for e in range(seeds if previous is None else 0)]
        return each or [whole]

    def answer(self, previous: Solution | None = None) -> dict[str, Any]:
        """What a Solution says of the run, by field: its outputs from step 0 on, on the CPU, and how it ended"""

        def joined(new: list[Tensor], old: Tensor | None) -> Tensor | None:
            recorded = torch.stack(new).cpu() if new else None
            if old is None or previous is None:
                return recorded
            if recorded is None:
                return old
            return torch.cat([old[: self.earlier(previous)], recorded.reshape(-1, *old.shape[1:])])

        f = joined(self.f, previous.f if previous else None)
        if f is None:
            raise NonFiniteError(
                "the outputs or their loss are non-finite at the very first step: check the scale of the data and of the weights, and a "
                "loss of your own"
            )
        f_test = joined(self.f_test, previous.f_test if previous else None)
        return {"f": f, "f_test": f_test, "recorded_steps": self.recorded_steps(previous), "status": self.status}


def remembered(names: Sequence[str]) -> list[str]:
    """What a step remembers of the state's tensors is called so: first what replaces the gradient, then averaged squares"""
    return [f"{kind}_{name}" for kind in ("momentum", "square") for name in names]


def snapshot_steps(snapshots: Sequence[int], training: Training, name: str = "snapshots") -> tuple[int, ...]:
    """Sorted distinct steps; -1 stands for the last. ValueError for one outside 0..steps, or at which nothing is recorded."""
    steps, every = training.steps, training.record_every
    resolved = sorted({steps if s == -1 else s for s in snapshots})
    if resolved and not (resolved[0] >= 0 and resolved[-1] <= steps):
        raise ValueError(f"{name} must lie in 0..{steps} (or be -1, the last step): received {tuple(snapshots)}")
    if between := [s for s in resolved if not training.records(s)]:
        raise ValueError(
            f"{name} must be recorded steps, multiples of record_every={every} or the last: received {', '.join(map(str, between))}"
        )
    return tuple(resolved)
