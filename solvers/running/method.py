"""What the loop through training time asks of a method: passes, velocities, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from solvers.running.inputs import Rows
from solvers.running.integrator import State


class Pass(Protocol):
    """A forward pass: the outputs at some points, and what its backward pass needs."""

    @property
    def f(self) -> Tensor:
        """(..., n, .., C) the outputs at the n points that were asked for; leading dimensions (the seeds of an ensemble) are its own"""
        ...


class Method(Protocol):
    """What a solver knows that leaves the way through time to the loop. A state is all that training changes.

    step_sizes: by how much an optimiser that acts entry by entry moves the numbers of each of the state's tensors at the rate 1, 0 for
    those that it leaves alone (equation 112). matrix_steps: by how much one that orthogonalises moves those that are matrices between
    wide axes along a map of norm 1, 0 for others (equation 114). still: which stay as they start, without decay and noise; empty for
    none. decays: what multiplies the weight decay of each, one number or one for each column (equation 120); empty for 1.
    """

    step_sizes: Sequence[float] = ()
    still: Sequence[bool] = ()
    matrix_steps: Sequence[float] = ()
    decays: Sequence[float | Tensor] = ()

    def forward(self, state: State, rows: Rows, differentiated: bool) -> Pass:
        """The outputs at these points; differentiated: whether `backward` will be asked for"""
        ...

    def backward(self, passed: Any) -> State:
        """d state / d(training time), the loss being the mean over the training samples of the pass; the next call may overwrite it"""
        ...

    def fall(self, passed: Any, velocity: State) -> Tensor:
        """(..) - d loss / d(training time) of each seed, by the velocity of this pass (equation 111)"""
        del passed, velocity
        raise TypeError(f"{type(self).__name__} knows no norm of a gradient")

    def diffused(self, passed: Any, state: State, size: float, at: int) -> State:
        """The state that step `at` has made of that of the pass, with Langevin noise of standard deviation `size` (equation 113)"""
        del passed, state, size, at
        raise TypeError(f"{type(self).__name__} knows no noise")

    def finished(self, state: State, eta: float, at: int) -> State:
        """The state that step `at` of descent ends with, of the rate `eta`: what a method adds that is no gradient"""
        del eta, at
        return state

    def noted(self, passed: Any) -> dict[str, Tensor]:
        """What is kept of a recorded step beside its outputs, `passed` being the pass over all points"""
        del passed
        return {}

    def capture(self, state: State, passed: Any) -> Any:
        """What a snapshot keeps, `passed` being the pass over all points; must not alias the state, which is advanced in place"""
        ...

    def mark(self) -> Any:
        """Where a method is that learns of its random numbers only as it uses them, for `back_to`"""

    def back_to(self, mark: Any) -> None:
        """Forget what was learnt since"""
        del mark


class Growing(Method, Protocol):
    """A method of which parts grow as they are used, each of which can be marked and taken back"""

    def growing(self) -> dict[str, Any]:
        """All that grows, by name"""
        ...

    def mark(self) -> list[Any]:
        return [part.mark() for part in self.growing().values()]

    def back_to(self, mark: list[Any]) -> None:
        for part, to in zip(self.growing().values(), mark, strict=True):
            part.back_to(to)


@dataclass(frozen=True)
class Underway:
    """How a step that takes long stays in touch with the loop"""

    stopped: Callable[[], bool]
    told: Callable[[float], object]  # the part of the step that is done


class Step(Protocol):
    """A way from one step to the next, with what it remembers of earlier ones"""

    @property
    def memory(self) -> State:
        """Shaped like the state; empty for a way without memory"""
        ...

    def __call__(self, method: Any, state: State, passed: Any, at: int, underway: Underway) -> State:
        """The state a step after step `at`, in the memory of `state` where it may be; passed: the pass there, over the training samples or
        a batch
        """
        ...
