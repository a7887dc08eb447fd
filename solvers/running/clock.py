"""Clock: under which the beginning of a run is solved and timed. Solvers' loops through time are interrupted by it as by Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution
from solvers.running.failures import Interrupted

LONGEST = 10.0  # times the seconds of a rehearsal, which what cannot be shorter may take

Now = Callable[[], float]


class Enough(Exception):
    """A rehearsal ends within a step."""


@dataclass
class Clock:
    """Notes when each step was reached, and interrupts the run when `seconds` have passed.

    Where set-up took longer, steps go on for a tenth of its time, or three of them, whichever is more. least: steps that are taken
    unless they last LONGEST times the seconds.
    """

    seconds: float
    now: Now = time.perf_counter
    least: int = 1
    laps: list[tuple[float, float]] = field(default_factory=list)  # steps that were taken, and when
    begun: float = 0.0

    def __post_init__(self) -> None:
        self.start = self.time()

    def begin(self) -> None:
        """Set-up is over."""
        self.begun = self.time()
        self.laps.clear()

    def lap(self) -> bool:
        """Another step was reached, the first time step 0; whether that is enough"""
        done = int(self.laps[-1][0]) + 1 if self.laps else 0
        self.laps.append((float(done), self.time()))
        return done > 0 and self._over(done)

    def within(self, part: float) -> bool:
        """A part of the next step was taken; whether that is enough"""
        done = int(self.laps[-1][0])
        self.laps.append((done + min(part, 0.999), self.time()))
        return self._over(done)

    def _over(self, done: int) -> bool:
        passed, stepped = (self.laps[-1][1] - since for since in (self.start, self.begun))
        if done < self.least:
            return stepped > LONGEST * self.seconds
        return passed > self.seconds and stepped > (0.1 * passed if done > 2 else self.seconds)

    def time(self) -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self.now()


_current: ContextVar[Clock | None] = ContextVar("clock", default=None)


def current() -> Clock | None:
    """The clock of the rehearsal that is going on here, if one is"""
    return _current.get()


@contextmanager
def under(clock: Clock) -> Iterator[None]:
    """Runs in here are rehearsed, without warnings: the run itself will give them."""
    token = _current.set(clock)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _current.reset(token)


@dataclass(frozen=True)
class Beginning:
    """Of a run, as far as it was solved: seconds of set-up and after the steps, and laps (n, 2), steps taken and seconds since set-up"""

    setup: float
    laps: np.ndarray
    end: float
    solution: Solution | None
    whole: bool

    @property
    def steps(self) -> float:
        return float(self.laps[-1, 0]) if len(self.laps) else 0.0

    @property
    def spent(self) -> float:
        """Seconds in steps"""
        return float(self.laps[-1, 1]) if len(self.laps) else 0.0

    def costs(self) -> np.ndarray:
        """Seconds of each whole step that was taken"""
        return np.diff(self.laps[self.laps[:, 0] % 1 == 0, 1])


def begun(run: Callable[[Problem], Any], problem: Problem, clock: Clock) -> Beginning:
    """`run(problem)` until its end or until the clock says that it is enough"""
    solution, whole = None, False
    with under(clock):
        try:
            solution = run(problem)
            whole = True
        except Interrupted as error:
            solution = error.solution
        except Enough:
            pass
    last = clock.laps[-1][1] if clock.laps else clock.begun
    laps = np.array(clock.laps).reshape(-1, 2) - [0.0, clock.begun]
    return Beginning(clock.begun - clock.start, laps, clock.time() - last, solution, whole)


def progress_bar(label: str, shown: bool | None, **extent: Any) -> tqdm:
    """A bar over `extent`, an iterable or total and initial; None shows it on terminals after two seconds."""
    return tqdm(desc=label, delay=2, leave=False, disable=None if shown is None else not shown, **extent)


@contextmanager
def postponed_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag, so that no step is left half done; a second one acts at once. A rehearsal's clock stands in for it."""
    if (rehearsing := current()) is not None:
        rehearsing.begin()
        yield rehearsing.lap
        return
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
