"""The one loop through training time: record outputs, take snapshots, go a step on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from meanfield.checking.warning import warn
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.training import Training
from meanfield.solution.solution import Solution, Status
from solvers.running import clock
from solvers.running.failures import RankError, Watch
from solvers.running.gradient_flow import Spent, Stopped
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import State, Stuck
from solvers.running.method import Method, Pass, Step, Underway
from solvers.running.trajectory import BlewUp, Trajectory

_REHEARSAL = 10.0  # seconds after which a run can tell how long it will take
_MANY_DAYS = 1.0  # beyond which it does


def evolve(
    method: Method,
    state: State,
    problem: Problem,
    step: Step,
    *,
    previous: Solution | None = None,
    snapshots: Sequence[int] = (),
    captured: Mapping[int, Any] | None = None,
    progress: bool | None = None,
    label: str = "",
    agree: Callable[[bool], bool] = bool,
) -> Trajectory:
    """Take `state` (whose memory is used again) from where `previous` ended (step 0) to the problem's last, with a record at each step that
    asks for one.

    captured: snapshots that a resumed run goes on with. agree: for processes that share a run, whether any of them was interrupted, so
    that all end at the same step. Ends early, with a status, at outputs or losses that are not finite, at a loss beyond recovery
    (`Watch`), where a step of the flow takes too many evaluations, and at Ctrl-C; a run that goes on repeats the pass where it ended, so
    the method is left as it was before. progress=None shows a bar on terminals after two seconds.
    """
    training, first = problem.training, previous.steps if previous else 0
    run, batches = Trajectory(state=state), problem.batches(first)
    run.captured = {at: kept for at, kept in (captured or {}).items() if at in snapshots}
    passes = _Passes(method, problem, run, Watch(problem, previous), snapshots)
    bar = clock.progress_bar(label, progress, total=training.steps, initial=first)
    length = _Length(label, first, training.steps)
    with torch.no_grad(), bar, clock.postponed_interrupt() as interrupted, _named_end(run, training):
        underway = _underway(bar, interrupted, agree)
        for at in range(first, training.steps + 1):
            run.last, ends, mark, passed = at, at == training.steps, method.mark(), None
            batch = None if ends else next(batches)
            asked = training.records(at)
            stopped = not asked and agree(interrupted())
            if stopped or asked:
                passed = passes.recorded(at, batch is None and not ends)
                if run.status is Status.DIVERGED:
                    break
                stopped = stopped or agree(interrupted())
            if stopped:
                run.status = Status.INTERRUPTED
            elif not ends:
                if batch is not None or passed is None:
                    passed = None  # its memory serves the next one
                    passed = passes.of(batch)
                passes.advance(step, passed, underway)
            if ends or run.status is not Status.FINISHED:
                method.back_to(mark)
                break
            bar.update(at + 1 - bar.n)
            length.tell(at + 1)
    run.memory = step.memory
    run.stats |= {"seconds": length.seconds, "threads": torch.get_num_threads(), "reached": run.last}
    return run


@dataclass(frozen=True)
class _Passes:
    """Forward passes at the state of a run, whose outputs must be finite, and the steps from there"""

    method: Method
    problem: Problem
    run: Trajectory
    watch: Watch
    snapshots: Sequence[int]

    def of(self, batch: Tensor | Dataset | None) -> Pass:
        """Over a batch of the training samples, all of them, or fresh ones"""
        rows = slice(0, self.problem.data.samples) if batch is None else batch
        passed = self.method.forward(self.run.state, rows, True)
        self.run.must_be_finite(passed.f, self.watch.loss(passed.f, batch))
        return passed

    def recorded(self, at: int, differentiated: bool) -> Pass:
        """Over all points, with what a record and a snapshot keep of it; whether the loss has diverged stands in the run's status"""
        run, data = self.run, self.problem.data
        passed = self.method.forward(run.state, EVERYWHERE, differentiated)
        f, f_test = passed.f.tensor_split([data.samples], -data.y.ndim)
        loss = self.watch.loss(f)
        run.must_be_finite(passed.f, loss)
        run.record(at, f, f_test, self.method.noted(passed))
        if at in self.snapshots:
            run.captured[at] = self.method.capture(run.state, passed)
        if bool((far := self.watch.beyond(loss)).any()):
            run.status, run.bad = Status.DIVERGED, far
        return passed

    def advance(self, step: Step, passed: Pass, underway: Underway) -> None:
        """A step on; one that is cut short leaves a record of where it began, and its reason as the run's status"""
        run = self.run
        try:
            run.state = step(self.method, run.state, passed, run.last, underway)
        except (Stopped, Spent) as cut:
            if not self.problem.training.records(run.last):
                self.recorded(run.last, False)
            run.status = Status.INTERRUPTED if isinstance(cut, Stopped) else Status.OUT_OF_EVALUATIONS
            run.stats["reason"] = str(cut)


def _underway(bar: tqdm, interrupted: Callable[[], bool], agree: Callable[[bool], bool]) -> Underway:
    rehearsing = clock.current()

    def told(share: float) -> None:
        bar.update(int(bar.n + 1e-6) + round(min(share, 0.99), 2) - bar.n)
        if rehearsing is not None and agree(rehearsing.within(share)):
            raise clock.Enough

    return Underway(lambda: rehearsing is None and agree(interrupted()), told)


@contextmanager
def _named_end(run: Trajectory, training: Training) -> Iterator[None]:
    """A run that ends by an exception within has a status instead, and what was recorded until then"""
    try:
        yield
    except (BlewUp, Stuck):
        run.status = Status.NON_FINITE
    except RankError as error:
        if not run.f:
            raise
        if training.temperature:
            error.by_end = math.ceil(error.needed * training.steps / max(1, run.last))
        run.status, run.stats["reason"] = Status.OUT_OF_ROOM, str(error)


class _Length:
    """How long a run takes; one that will take days says so once, when it can be known."""

    def __init__(self, label: str, first: int, steps: int) -> None:
        self.label, self.first, self.steps = label, first, steps
        self.start, self.told = time.perf_counter(), False

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def tell(self, at: int) -> None:
        """A step has been reached"""
        if self.told or (spent := self.seconds) < _REHEARSAL:
            return
        self.told, left, each = True, self.steps - at, spent / (at - self.first)
        days = each * left / 86_400
        if days > _MANY_DAYS:
            warn(
                f"{self.label}: {left} steps are left and will take about {days:.2g} days at {each:.2g} s a step; "
                "Ctrl-C ends the run and keeps what was computed, solvers.checkpointed keeps it in a file on the way",
                RuntimeWarning,
            )
