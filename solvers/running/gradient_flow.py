"""A step of gradient flow: integrated within a budget, ended early by Ctrl-C (equations 75 to 78)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.running.integrator import Integrator, State
from solvers.running.method import Method, Pass, Underway

EVALUATIONS = 100_000  # in a step, unless a solver is told otherwise
_MANY = 1e6  # eigenvalue times learning_rate for which some thousand evaluations do


class Stopped(Exception):
    """Ctrl-C within a step."""


class Spent(Exception):
    """The budget did not reach the end of a step; says how far it came and what would help."""


@dataclass(frozen=True)
class Flow:
    """A step of gradient flow, a time `length` long. rtol, norm: see Integrator. evaluations: the most of the velocity."""

    length: float
    samples: int  # of training
    rtol: float = 1e-7
    evaluations: int = EVALUATIONS
    norm: Callable[[State], Tensor] | None = None
    memory: State = ()

    def __call__(self, method: Method, state: State, passed: Pass, at: int, underway: Underway) -> State:
        """Stopped if `underway` says so before an evaluation, Spent when there may be no more, Stuck where none would do."""
        del at
        count, reached, rate = 0, 0.0, 0.0

        def velocity(now: State) -> State:
            nonlocal count
            if underway.stopped():
                raise Stopped
            if count == self.evaluations:
                raise Spent(_told(count, reached, self.length, rate))
            count += 1
            return method.backward(method.forward(now, slice(0, self.samples), True))

        def noted(time: float, fastest: float) -> None:
            nonlocal reached, rate
            reached, rate = time, fastest
            underway.told(time / self.length)

        return Integrator(velocity, self.rtol, self.norm, noted)(state, self.length, method.backward(passed))


def _told(count: int, reached: float, length: float, rate: float) -> str:
    stiff = "scale the inputs down, take a smaller learning_rate (with more steps), a larger rtol, or more evaluations"
    return (
        f"gradient flow needs more than evaluations={count} from one step to the next, learning_rate={length:g} later; they reached "
        f"{reached / length:.2g} of it. The velocity changes at rates of up to about {rate:.2g} there, where it is stiff the largest "
        "eigenvalue of K/P, learning rates included: "
        + (stiff if rate * length > _MANY else "take more evaluations, or a larger rtol")
    )


def tolerance(asked: float | None, kinks: bool, kind: torch.dtype) -> float:
    """The relative tolerance of gradient flow: as asked, else 1e-7.

    At least 1e-5 in float32, and 1e-4 for activations with kinks, whose particles each cost the integrator a refined step.
    """
    if asked is not None:
        return asked
    return 1e-4 if kinks else 1e-5 if kind == torch.float32 else 1e-7
