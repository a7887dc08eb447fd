"""The one loop through training time: record outputs, take snapshots, advance; methods supply outputs and velocity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from tqdm import tqdm

from meanfield.problem import Problem, Training
from meanfield.solution import Solution, Status
from meanfield.warning import warn
from solvers import clock
from solvers.failures import NonFiniteError, Watch
from solvers.gradient_flow import Flow, Spent, Stopped
from solvers.inputs import EVERYWHERE, Rows
from solvers.integrator import State, Stuck
from solvers.neurons import RankError

_REHEARSAL = 10.0  # seconds after which a run can tell how long it will take
_MANY_DAYS = 1.0  # beyond which it does


class Pass(Protocol):
    """A forward pass: the outputs at some points, and what its backward pass needs."""

    @property
    def f(self) -> Tensor:
        """(..., n, C) the outputs at the n points that were asked for"""
        ...


Velocity = Callable[[State], State]
Integrate = Callable[
    [Velocity, State, State], State
]  # of the velocity, a state and the velocity there: the state a step later
Advance = Callable[
    [State, Any, Integrate], State
]  # of the state, a pass at it over the training samples or the batch, and `integrate`


class Recorded(Protocol):
    """What the loop records; leading dimensions of f (seeds of an ensemble) are the solver's own affair."""

    def forward(self, state: State, rows: Rows, differentiated: bool) -> Pass:
        """The outputs at these points; differentiated: whether `backward` will be asked for"""
        ...

    def capture(self, state: State, passed: Any) -> Any:
        """What a snapshot keeps, `passed` being the pass over all points; must not alias the state, which is advanced in place"""
        ...


class Method(Recorded, Protocol):
    """What a solver knows that leaves the way through time to the loop."""

    def backward(self, passed: Any) -> State:
        """d state / d(training time), the loss being the mean over the training samples of the pass; the next call may overwrite it"""
        ...


@dataclass
class Trajectory:
    """Records of one run: f[i] is the output at steps[i]."""

    steps: list[int] = field(default_factory=list)
    f: list[Tensor] = field(default_factory=list)
    f_test: list[Tensor] = field(default_factory=list)
    captured: dict[int, Any] = field(default_factory=dict)
    state: State = ()
    status: Status = Status.FINISHED
    stats: dict[str, Any] = field(default_factory=dict)
    momentum: State = ()  # what is left of earlier velocities
    last: int = 0  # the step that was reached
    passed: Any = None  # the pass over all points where the run ended
    bad: Tensor | None = None  # which of an ensemble ended the run, in the shape of f's leading dimensions

    def must_be_finite(self, f: Tensor, loss: Tensor) -> None:
        """_BlewUp for outputs (..., n, C) or losses (...) that are not"""
        bad = ~(torch.isfinite(f).flatten(-2).all(-1) & torch.isfinite(loss))
        if bool(bad.any()):
            self.bad = bad
            raise _BlewUp

    def record(self, step: int, f: Tensor, train: int) -> None:
        """Outputs (..., P + P_test, C), the training samples' first"""
        f = f.detach()
        self.steps.append(step)
        self.f.append(f[..., :train, :])
        if f.shape[-2] > train:
            self.f_test.append(f[..., train:, :])

    def recorded_steps(self, previous: Solution | None = None) -> tuple[int, ...]:
        """The steps of `history`"""
        return (*(previous.recorded_steps[: self._earlier(previous)] if previous else ()), *self.steps)

    def _earlier(self, previous: Solution) -> int:
        """How many records of `previous` stay: its last one is repeated here, or belongs to a run that ends there"""
        return len(previous.f) - bool(self.steps)

    def history(self, previous: Solution | None = None) -> tuple[Tensor, Tensor | None]:
        """f and f_test from step 0 on, (R, ..., P, C) on the CPU"""

        def joined(new: list[Tensor], old: Tensor | None) -> Tensor | None:
            recorded = torch.stack(new).cpu() if new else None
            if old is None or previous is None:
                return recorded
            if recorded is None:
                return old
            return torch.cat([old[: self._earlier(previous)], recorded.reshape(-1, *old.shape[1:])])

        f = joined(self.f, previous.f if previous else None)
        if f is None:
            raise NonFiniteError(
                "the outputs or their loss are non-finite at the very first step: check the scale of the data and of the weights, and a "
                "loss of your own"
            )
        return f, joined(self.f_test, previous.f_test if previous else None)


def snapshot_steps(snapshots: Sequence[int], training: Training) -> tuple[int, ...]:
    """Sorted distinct steps; -1 stands for the last. ValueError for one outside 0..steps, or at which nothing is recorded."""
    steps, every = training.steps, training.record_every
    resolved = sorted({steps if s == -1 else s for s in snapshots})
    if resolved and not (resolved[0] >= 0 and resolved[-1] <= steps):
        raise ValueError(f"snapshots must lie in 0..{steps} (or be -1, the last step): received {tuple(snapshots)}")
    if between := [s for s in resolved if not training.records(s)]:
        raise ValueError(
            f"snapshots must be recorded steps, multiples of record_every={every} or the last: received {', '.join(map(str, between))}"
        )
    return tuple(resolved)


def evolve(
    method: Recorded,
    state: State,
    problem: Problem,
    *,
    previous: Solution | None = None,
    snapshots: Sequence[int] = (),
    captured: Mapping[int, Any] | None = None,
    flow: Flow | None = None,
    progress: bool | None = None,
    label: str = "",
    momentum: State = (),
    advance: Advance | None = None,
    passed: Any = None,
    before_extra: Callable[[Trajectory], None] = lambda run: None,
    agree: Callable[[bool], bool] = bool,
) -> Trajectory:
    """Advance `state` (in place) from the step where `previous` ended (0) to the problem's last, with a record at each that asks for one.

    gradient_descent: state += eta velocity, exactly. gradient_flow: integrated over each step as `flow` says. A solver with a way of its
    own gives `advance(state, passed, integrate)`. momentum, captured, passed: velocities, snapshots and the pass over all points that a
    resumed run goes on with. before_extra: called before a record that a longer run would not make. agree: for processes that share a
    run, whether any of them was interrupted, so that all end at the same step. Ends early, with a status, at outputs or losses that are
    not finite, at a loss beyond recovery (`Watch`), where a step of the flow takes too many evaluations, and at Ctrl-C. progress=None
    shows a bar on terminals after two seconds.
    """
    training, first, start = problem.training, previous.steps if previous else 0, time.perf_counter()
    run, watch, train = Trajectory(state=state, momentum=momentum), Watch(problem, previous), problem.data.samples
    run.captured = {step: kept for step, kept in (captured or {}).items() if step in snapshots}
    if advance is None:
        descends, moved = training.optimiser == "gradient_descent", cast(Method, method)
        advance = _descent(moved, training, run) if descends else _flow(moved, train)
    batches = training.batches(train, first)
    disable, told = None if progress is None else not progress, False
    bar = tqdm(total=training.steps, initial=first, desc=label, delay=2, leave=False, disable=disable)
    with torch.no_grad(), bar, clock.postponed_interrupt() as interrupted, _named_end(run):
        integrate = _integrate(flow or Flow(), training.learning_rate, bar, interrupted, agree)

        def recorded(step: int, passed: Any, differentiated: bool) -> Any:
            if step % training.record_every:
                before_extra(run)
            passed = passed or method.forward(run.state, EVERYWHERE, differentiated)
            loss = watch.loss(passed.f[..., :train, :])
            run.must_be_finite(passed.f, loss)
            run.record(step, passed.f, train)
            if step in snapshots:
                run.captured[step] = method.capture(run.state, passed)
            if bool((far := watch.beyond(loss)).any()):
                run.status, run.bad = Status.DIVERGED, far
            return passed

        for step in range(first, training.steps + 1):
            run.last, ends = step, step == training.steps
            batch = None if ends else next(batches)
            asked = training.records(step)
            stopped = not asked and agree(interrupted())
            if stopped or asked:
                passed = recorded(step, passed, batch is None and not ends)
                if run.status is Status.DIVERGED:
                    break
                stopped = stopped or agree(interrupted())
            if stopped or ends:
                run.passed = passed
                run.status = Status.INTERRUPTED if stopped else run.status
                break
            if batch is not None or passed is None:
                passed = None  # its memory serves the next one
                passed = method.forward(run.state, slice(0, train) if batch is None else batch, True)
                run.must_be_finite(passed.f, watch.loss(passed.f, batch))
            try:
                run.state = advance(run.state, passed, integrate)
            except (Stopped, Spent) as cut:
                run.passed = passed if asked else recorded(step, None, False)
                run.status = Status.INTERRUPTED if isinstance(cut, Stopped) else Status.OUT_OF_EVALUATIONS
                run.stats["reason"] = str(cut)
                break
            passed = None
            bar.update(step + 1 - bar.n)
            each = (time.perf_counter() - start) / (step + 1 - first)
            told = told or _told_of_length(label, step + 1 - first, training.steps - step - 1, each)
    run.stats |= {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads(), "reached": run.last}
    return run


@contextmanager
def _named_end(run: Trajectory) -> Iterator[None]:
    """A run that ends by an exception within has a status instead, and what was recorded until then"""
    try:
        yield
    except (_BlewUp, Stuck):
        run.status = Status.NON_FINITE
    except RankError as error:
        if not run.f:
            raise
        run.status, run.stats["reason"] = Status.OUT_OF_ROOM, str(error)


def _told_of_length(label: str, done: int, left: int, each: float) -> bool:
    """Warn, once it can be known, of a run that will take days at `each` seconds a step; whether the question is settled"""
    if done * each < _REHEARSAL:
        return False
    days = each * left / 86_400
    if days > _MANY_DAYS:
        warn(
            f"{label}: {left} steps are left and will take about {days:.2g} days at {each:.2g} s a step; "
            "Ctrl-C ends the run and keeps what was computed, solvers.checkpointed keeps it in a file on the way",
            RuntimeWarning,
        )
    return True


class _BlewUp(Exception):
    """Values that are not finite."""


def _descent(method: Method, training: Training, run: Trajectory) -> Advance:
    eta, keep = training.learning_rate, 1 - training.learning_rate * training.weight_decay

    def advance(state: State, passed: Any, integrate: Integrate) -> State:
        del integrate
        velocity = method.backward(passed)
        if training.momentum:
            run.momentum = run.momentum or tuple(torch.zeros_like(v) for v in velocity)
            velocity = tuple(m.mul_(training.momentum).add_(v) for m, v in zip(run.momentum, velocity, strict=True))
        for tensor, v in zip(state, velocity, strict=True):
            tensor.mul_(keep).add_(v, alpha=eta) if keep != 1 else tensor.add_(v, alpha=eta)
        return state

    return advance


def _flow(method: Method, train: int) -> Advance:
    def advance(state: State, passed: Any, integrate: Integrate) -> State:
        return integrate(
            lambda now: method.backward(method.forward(now, slice(0, train), True)), state, method.backward(passed)
        )

    return advance


def _integrate(
    flow: Flow, length: float, bar: tqdm, interrupted: Callable[[], bool], agree: Callable[[bool], bool]
) -> Integrate:
    rehearsing = clock.current()

    def integrate(velocity: Velocity, state: State, there: State) -> State:
        done = bar.n

        def told(share: float) -> None:
            bar.update(round(done + share, 2) - bar.n)
            if rehearsing is not None and agree(rehearsing.within(share)):
                raise clock.Enough

        def stopped() -> bool:
            return rehearsing is None and agree(interrupted())

        return flow.between(velocity, state, there, length, stopped, told)

    return integrate
