"""Solver: what every solver is, and what some can do besides, as types; the settings and the estimate that all of them have.

Nothing inherits from these protocols: a frozen dataclass with the methods is a solver, and pyright says so where it is used as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Given, Solution


@checked
@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 5))
        >>> found = WassersteinFlow(particles=64).estimate(problem)
        >>> found.seconds < 60, found.bytes < 2**30
        (True, True)
    """

    seconds: float
    """Expected wall time"""
    bytes: float
    """A bound on its memory, beyond what Python and the libraries take"""
    how: str = ""
    """What the time was found from"""

    def __str__(self) -> str:
        how = f"; the time is found from {self.how}" if self.how else ""
        return f"about {self.seconds:.2g} s, at most {self.bytes / 1e9:.2g} GB{how}"


@runtime_checkable
class Solver(Protocol):
    """Numerical settings, a frozen dataclass; `solver(problem) -> Solution`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seed(self) -> int: ...

    @property
    def snapshots(self) -> Sequence[int]:
        """Steps that are recorded in detail; -1 is the last"""
        ...

    def check(self, problem: Problem) -> None:
        """ValueError or MemoryError, before any work, for a problem that it cannot solve"""
        ...

    def estimate(self, problem: Problem, *, seconds: float = ...) -> Estimate:
        """Time and memory of a run, found in about so many `seconds`; errors as of the run"""
        ...

    def __call__(self, problem: Problem) -> Solution: ...

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps, to the bits of an uninterrupted run"""
        ...


@runtime_checkable
class Ensemble(Solver, Protocol):
    """A solver that advances many seeds at once"""

    def ensemble(self, problem: Problem, seeds: int | Sequence[int] = ...) -> list[Solution]: ...

    def estimate(self, problem: Problem, seeds: int = ..., *, seconds: float = ...) -> Estimate: ...


@runtime_checkable
class Started(Solver, Protocol):
    """A solver that can be given f0, the outputs at step 0, instead of drawing them by its seed"""

    @property
    def f0(self) -> Tensor | Solution | None: ...


@runtime_checkable
class Grouped(Solver, Protocol):
    """A solver whose solution may be a mean over independent runs"""

    def alone(self, problem: Problem) -> Sequence[Solver]:
        """The solvers of these runs"""
        ...


@runtime_checkable
class KeepsState(Solver, Protocol):
    """A solver that keeps what `resume` needs only if it is asked to; others always do"""

    @property
    def keep_state(self) -> bool: ...


@runtime_checkable
class Restating(Solver, Protocol):
    """A solver whose solutions have another problem than the one that was asked"""

    def stated(self, problem: Problem) -> Problem: ...


def stated(solver: Solver, problem: Problem) -> Problem:
    """`problem` as the solver's solutions have it"""
    return solver.stated(problem) if isinstance(solver, Restating) else problem


def settings(solver: Solver) -> dict[str, Any]:
    """Name and settings of a solver, as plain values; what does not change the numbers is left out."""
    idle = {"progress", "raise_on_failure", "evaluations"}
    values = {f.name: getattr(solver, f.name) for f in fields(solver) if f.name not in idle}
    plain = (int, float, str, tuple, type(None))
    return {"name": type(solver).__name__} | {
        k: v if isinstance(v, plain) else Given(type(v).__name__) for k, v in values.items()
    }
