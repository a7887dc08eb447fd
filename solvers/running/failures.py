"""Runs that end before their end: how divergence is told, exceptions that carry what was computed until then, when they are raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from meanfield.problem.dataset import Dataset
from meanfield.problem.losses import averaged
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution, Status

WHERE = " What was computed is in this error's .solutions"
_FAR = 1e12  # outputs a million times their scale; a catapult peaks near 0.2 / gamma0^2, and 4e7 at gamma0 = 1e-4


class _Carrier(BaseException):
    """An exception that carries what was computed: `solutions`, and the one that it is about as `solution`.

    reason: its message but for `where`, which says to a program where the solutions are.
    """

    def __init__(self, reason: str, solutions: Sequence[Solution] = (), where: str = "") -> None:
        super().__init__(reason + where)
        self.reason, self.solutions = reason, list(solutions)

    @property
    def solution(self) -> Solution | None:
        return _culprit(self.solutions)


class SolverError(_Carrier, RuntimeError):
    """A run that could not finish; `solutions` hold what was computed until then.

    Example:
        >>> import meanfield as mf
        >>> from solvers import SolverError, WassersteinFlow
        >>> too_fast = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(learning_rate=200.0, steps=50))
        >>> try:
        ...     run = WassersteinFlow(particles=64)(too_fast)
        ... except SolverError as error:
        ...     run = error.solution  # what was computed until then
        >>> run.status is mf.Status.FINISHED
        False
    """


class NonFiniteError(SolverError):
    """Outputs became NaN or infinite; `solution` ends at the last finite step."""


class DivergedError(SolverError):
    """The loss grew beyond recovery; `solution` ends at the step that showed it.

    Example:
        >>> import meanfield as mf
        >>> from solvers import DivergedError, WassersteinFlow
        >>> too_fast = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(learning_rate=200.0, steps=50))
        >>> try:
        ...     run = WassersteinFlow(particles=64)(too_fast)
        ... except DivergedError as error:
        ...     run = error.solution  # what was computed until then
        >>> run.status.name, run.f.shape[0] < 51
        ('DIVERGED', True)
    """


class Interrupted(_Carrier, KeyboardInterrupt):
    """Ctrl-C during a run; `solutions` can be saved and resumed."""


class Watch:
    """Tells a run that diverges, its loss beyond 1e12 times its scale, from one that rises and falls (catapults, the edge of stability).

    The scale is the larger of the loss at step 0 (also for a run that goes on) and of outputs that miss their targets by 2 |y| + 1, so
    that neither small targets nor a start without loss make it small.
    """

    def __init__(self, problem: Problem, previous: Solution | None = None) -> None:
        self._loss, self._y = problem.loss_function, problem.data.y
        self._start = None if previous is None else averaged(self._loss, previous.f[0].double(), self._y)
        self._limit: Tensor | None = None

    def loss(self, f: Tensor, batch: Tensor | Dataset | None = None) -> Tensor:
        """(...) the training loss of outputs f (..., P, .., C), or of those of a batch, or of fresh samples"""
        self._y = self._y.to(f.device)
        y = batch.y.to(f.device) if isinstance(batch, Dataset) else self._y
        y = y[batch.to(f.device)] if isinstance(batch, Tensor) else y
        return averaged(self._loss, f.detach().double(), y)

    def beyond(self, loss: Tensor) -> Tensor:
        """(...) whether the run is lost, from the losses (...) of each step in turn"""
        if self._limit is None:
            wrong = averaged(self._loss, torch.where(self._y < 0, 1.0, -1.0) - self._y, self._y)
            start = loss if self._start is None else self._start.to(loss.device)
            scale = torch.maximum(start.abs(), wrong.abs())
            self._limit = torch.where(scale > 0, _FAR * scale, torch.inf)
        return loss > self._limit

    def lost(self, losses: Tensor) -> Status | None:
        """How a run with these losses (T+1,) blew up, None if it did not"""
        if not bool(torch.isfinite(losses).all()):
            return Status.NON_FINITE
        self.beyond(losses[0])
        return Status.DIVERGED if bool(self.beyond(losses).any()) else None


def conclude(solutions: list[Solution], raise_on_failure: bool) -> list[Solution]:
    """The solutions; raises, with all of them attached, if a run among them was interrupted or (if so asked) failed."""
    bad = _culprit(solutions)
    if bad is None or bad.status in (Status.FINISHED, Status.CONVERGED):
        return solutions
    if bad.status is Status.INTERRUPTED:
        raise Interrupted(f"{bad.status.value} (after step {bad.steps} of {bad.problem.training.steps})", solutions)
    if raise_on_failure and bad.status in (Status.OUT_OF_ROOM, Status.OUT_OF_EVALUATIONS):
        raise SolverError(
            f"{bad.stats['reason']} (after step {bad.steps} of {bad.problem.training.steps}).", solutions, WHERE
        )
    if raise_on_failure:
        late, end = bad.status is Status.DIVERGED, float(bad.loss[-1])
        step = bad.stats.get("reached", bad.steps + (not late))
        failed = [s.solver["seed"] for s in solutions if s.status is bad.status]
        raise (DivergedError if late else NonFiniteError)(
            f"{bad.status.value}. It happened at step {step} of {bad.problem.training.steps} with "
            f"learning_rate={bad.problem.training.learning_rate:g} ({_seeds(failed)}; "
            + (f"loss {float(bad.loss[0]):.4g} -> {end:.4g}" if late else f"last finite loss {end:.4g}")
            + ").",
            solutions,
            WHERE,
        )
    return solutions


def _seeds(failed: Sequence[int]) -> str:
    """The first of them by name"""
    named = ", ".join(map(str, failed[:8]))
    return f"seed {named}" + (f" and {len(failed) - 8} more" if len(failed) > 8 else "")


def _culprit(solutions: Sequence[Solution]) -> Solution | None:
    worst = [
        Status.INTERRUPTED,
        Status.NON_FINITE,
        Status.DIVERGED,
        Status.OUT_OF_ROOM,
        Status.OUT_OF_EVALUATIONS,
        Status.NOT_CONVERGED,
        Status.CONVERGED,
        Status.FINISHED,
    ]
    return min(solutions, key=lambda s: worst.index(s.status), default=None)


class RankError(ValueError):
    """More directions of fields than neurons can represent, or than a limit admits.

    needed: directions of the moment, later ones need more. neurons: of the axis, which are `samples` times a number of its own (as many if
    left out). admitted: the limit, None if there are too few neurons. layer: in words. by_end: directions at the end of a run whose steps
    add as many each, as noise does.
    """

    by_end = 0

    def __init__(
        self,
        needed: int,
        neurons: int,
        admitted: int | None = None,
        layer: str = "a layer",
        samples: int | None = None,
    ) -> None:
        super().__init__(needed, neurons, admitted, layer, samples)
        self.needed, self.neurons, self.admitted, self.layer, self.samples = needed, neurons, admitted, layer, samples

    def __str__(self) -> str:
        fields, samples = (
            f"the fields of {self.layer} span {self.needed} directions or more",
            self.samples or self.neurons,
        )
        if self.admitted is not None:
            return (
                f"{fields}, where max_rank, or what fits in memory, admits {self.admitted}: take a larger max_rank, a larger tolerance, "
                "or fewer samples if it is the memory"
            )
        others = f"some {self.by_end} of them by the end" if self.by_end else "others"
        return (
            f"{fields}, which take more than the {self.neurons} neurons of its axis: take "
            f"samples={enough(samples, self.neurons, max(self.needed, self.by_end))} or more instead of {samples}, since training adds "
            f"{others}, or a larger tolerance"
        )


@contextmanager
def in_layer(layer: str, samples: int) -> Iterator[None]:
    """A RankError within is told of this layer, in words, of a network of so many samples"""
    try:
        yield
    except RankError as error:
        raise RankError(error.needed, error.neurons, error.admitted, layer, samples) from None


def enough(samples: int, neurons: int, directions: int) -> int:
    """The samples, doubled until an axis that now has so many neurons has more than `directions`"""
    return samples * 2 ** max(0, directions // neurons).bit_length()
