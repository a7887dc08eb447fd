"""Runs that end before their end: exceptions that carry what was computed until then, and when they are raised."""

from __future__ import annotations

from collections.abc import Sequence

from meanfield.solution import Solution, Status


class _Carrier(BaseException):
    """An exception that carries what was computed: `solutions`, and the one that it is about as `solution`."""

    def __init__(self, message: str, solutions: Sequence[Solution] = ()) -> None:
        super().__init__(message)
        self.solutions = list(solutions)

    @property
    def solution(self) -> Solution | None:
        return _culprit(self.solutions)


class SolverError(_Carrier, RuntimeError):
    """A run that could not finish; `solutions` hold what was computed until then."""


class NonFiniteError(SolverError):
    """Outputs became NaN or infinite; `solution` ends at the last finite step."""


class Interrupted(_Carrier, KeyboardInterrupt):
    """Ctrl-C during a run; `solutions` can be saved and resumed."""


def conclude(solutions: list[Solution], raise_on_failure: bool) -> list[Solution]:
    """The solutions; raises, with all of them attached, if a run among them was interrupted or (if so asked) failed."""
    bad = _culprit(solutions)
    if bad is None or bad.status in (Status.FINISHED, Status.CONVERGED):
        return solutions
    if bad.status is Status.INTERRUPTED:
        raise Interrupted(f"{bad.status.value} (after step {bad.steps} of {bad.problem.training.steps})", solutions)
    if raise_on_failure and bad.status is Status.OUT_OF_ROOM:
        raise SolverError(
            f"{bad.stats['reason']} (after step {bad.steps} of {bad.problem.training.steps}). "
            "What was computed is in this error's .solutions",
            solutions,
        )
    if raise_on_failure:
        failed = [s.solver["seed"] for s in solutions if s.status is Status.NON_FINITE]
        raise NonFiniteError(
            f"{bad.status.value}. It happened at step {bad.steps + 1} of {bad.problem.training.steps} with "
            f"learning_rate={bad.problem.training.learning_rate:g} (seed {', '.join(map(str, failed))}; last finite loss "
            f"{float(bad.loss[-1]):.4g}). What was computed is in this error's .solutions",
            solutions,
        )
    return solutions


def _culprit(solutions: Sequence[Solution]) -> Solution | None:
    worst = [
        Status.INTERRUPTED,
        Status.NON_FINITE,
        Status.OUT_OF_ROOM,
        Status.NOT_CONVERGED,
        Status.CONVERGED,
        Status.FINISHED,
    ]
    return min(solutions, key=lambda s: worst.index(s.status), default=None)
