"""The one loop through training time: record outputs, take snapshots, advance; methods supply outputs and velocity."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from tqdm import tqdm

from meanfield.activations import Activation
from meanfield.problem import Problem, Training
from meanfield.solution import Solution, Status
from solvers.failures import NonFiniteError, Watch
from solvers.neurons import RankError

State = tuple[Tensor, ...]
Outputs = tuple[Tensor, Tensor | None]  # f (..., P, C), f_test (..., P_test, C)
_REHEARSAL = 10.0  # seconds after which a run can tell how long it will take
_MANY_DAYS = 1.0  # beyond which it does
Advance = Callable[[State, Tensor, Tensor | None], State]


class Recorded(Protocol):
    """What the loop records; leading dimensions of f (seeds of an ensemble) are the solver's own affair."""

    def outputs(self, state: State) -> Outputs:
        """f (..., P, C) and f_test (..., P_test, C)"""
        ...

    def capture(self, state: State) -> Any:
        """What a snapshot keeps; must not alias the state, which is advanced in place"""
        ...


class Method(Recorded, Protocol):
    """What a solver knows that leaves the way through time to the loop."""

    def velocity(self, state: State, f: Tensor, weights: Tensor | None) -> State:
        """d state / d(training time), which the next call may overwrite; f = outputs(state)[0], weights (P,) of the samples on the CPU or
        None: all 1
        """
        ...


@dataclass
class Trajectory:
    """Records of one run from step `first`: f[k - first] is the output at step k."""

    first: int
    f: list[Tensor] = field(default_factory=list)
    f_test: list[Tensor] = field(default_factory=list)
    captured: dict[int, Any] = field(default_factory=dict)
    state: State = ()
    status: Status = Status.FINISHED
    stats: dict[str, Any] = field(default_factory=dict)
    momentum: State = ()  # what is left of earlier velocities
    bad: Tensor | None = None  # which of an ensemble ended the run, in the shape of f's leading dimensions

    def record(self, f: Tensor, f_test: Tensor | None, loss: Tensor) -> None:
        """_BlewUp for outputs or losses (...) that are not finite"""
        both = f if f_test is None else torch.cat([f, f_test], -2)
        bad = ~(torch.isfinite(both).flatten(-2).all(-1) & torch.isfinite(loss))
        if bool(bad.any()):
            self.bad = bad
            raise _BlewUp
        self.f.append(f.detach())
        if f_test is not None:
            self.f_test.append(f_test.detach())

    def history(self, previous: Solution | None = None) -> tuple[Tensor, Tensor | None]:
        """f and f_test from step 0 on, (steps, ..., P, C) on the CPU; a resumed run repeats the step at which `previous` ended."""

        def joined(new: list[Tensor], old: Tensor | None) -> Tensor | None:
            recorded = torch.stack(new).cpu() if new else None
            if old is None or recorded is None:
                return recorded
            return torch.cat([old[: self.first], recorded.reshape(-1, *old.shape[1:])])

        f = joined(self.f, previous.f if previous else None)
        if f is None:
            raise NonFiniteError(
                "the outputs or their loss are non-finite at the very first step: check the scale of the data and of the weights, and a "
                "loss of your own"
            )
        return f, joined(self.f_test, previous.f_test if previous else None)


def snapshot_steps(snapshots: Sequence[int], steps: int) -> tuple[int, ...]:
    """Sorted distinct steps; -1 stands for the last. ValueError outside 0..steps."""
    resolved = sorted({steps if s == -1 else s for s in snapshots})
    if resolved and not (resolved[0] >= 0 and resolved[-1] <= steps):
        raise ValueError(f"snapshots must lie in 0..{steps} (or be -1, the last step): received {tuple(snapshots)}")
    return tuple(resolved)


def tolerance(asked: float | None, activation: Activation, dtype: str) -> float:
    """The relative tolerance of gradient flow: as asked, else 1e-7.

    At least 1e-5 in float32, and 1e-4 for activations with kinks, whose particles each cost the integrator a refined step.
    """
    if asked is not None:
        return asked
    return 1e-4 if activation.kinks else 1e-5 if dtype == "float32" else 1e-7


def evolve(
    method: Recorded,
    state: State,
    problem: Problem,
    *,
    previous: Solution | None = None,
    snapshots: Sequence[int] = (),
    captured: Mapping[int, Any] | None = None,
    rtol: float = 1e-7,
    norm: Callable[[State], Tensor] | None = None,
    progress: bool | None = None,
    label: str = "",
    momentum: State = (),
    advance: Advance | None = None,
    ahead: Callable[[State, Tensor | None], Outputs] | None = None,
    agree: Callable[[bool], bool] = bool,
) -> Trajectory:
    """Advance `state` (in place) from the step where `previous` ended (0) to the problem's last and record every step.

    gradient_descent: state += eta velocity, exactly. gradient_flow: Dormand-Prince 5(4) with error control (rtol, norm) over each
    interval. A solver with a way of its own gives `advance(state, f, weights)`. momentum, captured: velocities and snapshots that a
    resumed run goes on with. ahead(state, weights): takes the place of method.outputs where the velocity at the same state, with these
    weights of the samples, is asked for next. agree: for processes that share a run, whether any of them was interrupted, so that
    all end at the same step. Ends early, with a status, at outputs or losses that are not finite, at a loss beyond recovery (`Watch`),
    and at Ctrl-C. progress=None shows a bar on terminals after two seconds.
    """
    training, first, start = problem.training, previous.steps if previous else 0, time.perf_counter()
    run, watch = Trajectory(first, state=state, momentum=momentum), Watch(problem, previous)
    run.captured = {step: kept for step, kept in (captured or {}).items() if step in snapshots}
    ahead = ahead or (lambda state, weights: method.outputs(state))
    descends = advance is None and training.optimiser == "gradient_descent"
    if advance is None:
        moved = cast(Method, method)
        advance = _descent(moved, training, run) if descends else _flow(moved, ahead, training, rtol, norm)
    batches = training.sample_weights(problem.data.samples, first)
    disable, told = None if progress is None else not progress, False
    bar = tqdm(total=training.steps, initial=first, desc=label, delay=2, leave=False, disable=disable)
    with torch.no_grad(), bar, postponed_interrupt() as interrupted:
        try:
            for step in range(first, training.steps + 1):
                last = step == training.steps
                weights = None if last else next(batches)
                f, f_test = ahead(run.state, weights) if descends and not last else method.outputs(run.state)
                loss = watch.loss(f)
                run.record(f, f_test, loss)
                if step in snapshots:
                    run.captured[step] = method.capture(run.state)
                if bool((far := watch.beyond(loss)).any()):
                    run.status, run.bad = Status.DIVERGED, far
                    break
                if agree(interrupted()):
                    run.status = Status.INTERRUPTED
                    break
                if not last:
                    run.state = advance(run.state, f, weights)
                    bar.update()
                    each = (time.perf_counter() - start) / (step + 1 - first)
                    told = told or _told_of_length(label, step + 1 - first, training.steps - step - 1, each)
        except _BlewUp:
            run.status = Status.NON_FINITE
        except RankError as error:
            if not run.f:
                raise
            run.status, run.stats["reason"] = Status.OUT_OF_ROOM, str(error)
    run.stats |= {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}
    return run


def _told_of_length(label: str, done: int, left: int, each: float) -> bool:
    """Warn, once it can be known, of a run that will take days at `each` seconds a step; whether the question is settled"""
    if done * each < _REHEARSAL:
        return False
    days = each * left / 86_400
    if days > _MANY_DAYS:
        warnings.warn(
            f"{label}: {left} steps are left and will take about {days:.2g} days at {each:.2g} s a step; "
            "Ctrl-C ends the run and keeps what was computed, solvers.checkpointed keeps it in a file on the way",
            RuntimeWarning,
            stacklevel=3,
        )
    return True


class _BlewUp(Exception):
    """Values that are not finite."""


@contextmanager
def postponed_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag, so that no step is left half done; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, previous)


def _descent(method: Method, training: Training, run: Trajectory) -> Advance:
    eta, keep = training.learning_rate, 1 - training.learning_rate * training.weight_decay

    def advance(state: State, f: Tensor, weights: Tensor | None) -> State:
        velocity = method.velocity(state, f, weights)
        if training.momentum:
            run.momentum = run.momentum or tuple(torch.zeros_like(v) for v in velocity)
            velocity = tuple(m.mul_(training.momentum).add_(v) for m, v in zip(run.momentum, velocity, strict=True))
        for tensor, v in zip(state, velocity, strict=True):
            tensor.mul_(keep).add_(v, alpha=eta) if keep != 1 else tensor.add_(v, alpha=eta)
        return state

    return advance


def _flow(
    method: Method,
    outputs: Callable[[State, Tensor | None], Outputs],
    training: Training,
    rtol: float,
    norm: Callable[[State], Tensor] | None,
) -> Advance:
    def advance(state: State, f: Tensor, weights: Tensor | None) -> State:
        del f, weights  # the integrator evaluates f with its own stages; there are no batches
        from torchdiffeq import odeint

        def rhs(t: Tensor, now: State) -> State:
            del t
            return method.velocity(now, outputs(now, None)[0], None)

        times = torch.tensor([0.0, training.learning_rate], dtype=torch.float64, device=state[0].device)
        try:
            path = odeint(
                rhs, state, times, rtol=rtol, atol=rtol / 100, method="dopri5", options={"norm": norm} if norm else None
            )
        except AssertionError as error:  # "underflow in dt", "non-finite values in state"
            raise _BlewUp from error
        return tuple(tensor[-1].clone() for tensor in path)

    return advance


def settings(solver: Any) -> dict[str, Any]:
    """Name and settings of a solver, as plain values; what does not change the numbers is left out."""
    idle = {"progress", "raise_on_failure"}
    values = {f.name: getattr(solver, f.name) for f in fields(solver) if f.name not in idle}
    plain = {
        k: v if isinstance(v, (int, float, str, tuple, type(None))) else f"given ({type(v).__name__})"
        for k, v in values.items()
    }
    return {"name": type(solver).__name__, **plain}
