"""Estimates before a run: exact on a made-up clock, from the true beginning of the run, quiet; bounds on memory against measured peaks."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import CausalDMFT, Estimate, FiniteWidth, WassersteinFlow
from solvers.finite import finite_width
from solvers.running import clock
from solvers.running.clock import Clock, begun, postponed_interrupt
from solvers.running.failures import Interrupted
from solvers.running.rehearsal import by_law, expected, fewer, together
from tests import memory
from tests.benchmarks import estimates


def problem(depth=1, activation="tanh", samples=8, steps=100, **training):
    data = mf.digits(n_train=samples, n_test=4)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps, **training))


def many(samples, steps=100, tests=0):
    """As many samples as are asked for, made of nothing"""
    x, held = torch.ones(samples, 1), {"x_test": torch.ones(tests, 1)} if tests else {}
    return mf.Problem(mf.Dataset(x, x, **held), training=mf.Training(0.1, steps))


class Time:
    """Stands until it is moved"""

    def __init__(self):
        self.passed = 0.0

    def __call__(self):
        return self.passed


@dataclass(frozen=True)
class Slow:
    """A solver whose parts take known times, for P samples and at each step"""

    time: Time
    setup: Callable[[int], float] = lambda p: 0.5
    step: Callable[[int, int], float] = lambda p, step: 0.01
    end: float = 0.25
    capture: float = 0.03
    record: float = 0.0
    snapshots: tuple[int, ...] = (0, -1)
    progress: bool | None = None
    raise_on_failure: bool = True

    def __call__(self, asked):
        self.time.passed += self.setup(asked.data.samples)
        with postponed_interrupt() as interrupted:
            for step in range(asked.training.steps + 1):
                self.time.passed += self.record * asked.training.records(step)
                self.time.passed += self.capture * (step in self.snapshots)
                if interrupted():
                    self.time.passed += self.end
                    raise Interrupted("the time is over")
                if step < asked.training.steps:
                    self.time.passed += self.step(asked.data.samples, step)
        self.time.passed += self.end


def seconds_of(solver, asked, seconds=1.0, **more):
    """(expected seconds, from what, seconds of the rehearsal)"""
    before = solver.time.passed
    found, how, _ = expected(solver, asked, seconds, now=solver.time, **more)
    return found, how, solver.time.passed - before


@pytest.mark.parametrize("steps", [200, 1000, 10**6])
def test_steps_that_cost_alike_are_estimated_exactly(steps):
    """0.5 s of set-up, two snapshots, and steps of 0.01 s until 1.005 s have passed"""
    found, how, took = seconds_of(Slow(Time()), many(8, steps), 1.005)
    assert found == pytest.approx(0.5 + 2 * 0.03 + 0.01 * steps + 0.25, rel=1e-9)
    assert how == f"the first 45 of {steps} steps"
    assert took == pytest.approx(0.5 + 2 * 0.03 + 0.45 + 0.25)


def test_a_short_run_is_its_own_rehearsal():
    found, how, took = seconds_of(Slow(Time()), many(8, 20))
    assert found == took == pytest.approx(0.5 + 2 * 0.03 + 0.2 + 0.25)
    assert how == "the whole run"


def test_one_long_step_is_the_rehearsal():
    """The cost of its snapshot is not taken for one of the step"""
    found, how, took = seconds_of(Slow(Time(), step=lambda p, s: 100.0), many(8, 50))
    assert how == "the first 1 of 50 steps"
    assert took < 102
    assert found == pytest.approx(5000, rel=0.01)
    costly, how, _ = seconds_of(Slow(Time(), step=lambda p, s: 0.1, capture=3.0), many(8, 50))
    assert costly == pytest.approx(0.5 + 2 * 3.0 + 50 * 0.1 + 0.25, rel=1e-9)


def test_a_long_set_up_is_followed_by_steps_for_a_tenth_of_its_time():
    found, _, took = seconds_of(Slow(Time(), setup=lambda p: 8.0, step=lambda p, s: 1e-3), many(8, 10**5))
    assert found == pytest.approx(8.0 + 100.0 + 2 * 0.03 + 0.25, rel=1e-9)
    assert 8.8 < took < 9.5


def test_snapshots_that_were_not_reached_count():
    """At every step: each costs its capture, and the end grows with their number"""
    solver = Slow(Time(), snapshots=tuple(range(1001)))
    found, how, _ = seconds_of(solver, many(8, 1000))
    taken = int(how.split()[2]) + 1
    assert found == pytest.approx(0.5 + 1001 * 0.03 + 1000 * 0.01 + 0.25 * 1001 / taken, rel=1e-9)


def test_records_that_are_rarer_than_steps_count_by_their_number():
    """Whether some fall into the rehearsal or none"""
    for every in (7, 1000):
        asked = replace(many(8), training=mf.Training(0.1, 10**5, record_every=every))
        found, _, _ = seconds_of(Slow(Time(), capture=0.0, end=0.0, record=0.5), asked)
        assert found == pytest.approx(0.5 + 0.01 * 10**5 + 0.5 * (1 + -(-(10**5) // every)), rel=1e-6)


def test_steps_that_grow_are_estimated_by_the_sizes_that_are_expected():
    sizes = 10 + 5 * np.sqrt(np.arange(501))
    solver = Slow(Time(), step=lambda p, s: 1e-3 + 1e-4 * sizes[s + 1])
    found, _, _ = seconds_of(solver, many(8, 500), growth=lambda asked, beginning: sizes)
    assert found == pytest.approx(0.5 + 2 * 0.03 + 0.25 + 500 * 1e-3 + 1e-4 * sizes[1:].sum(), rel=1e-6)


def test_what_begins_too_slowly_is_estimated_from_fewer_samples():
    """A set-up of P^3 and steps of P, as far as set-up and a step last ten times the seconds; longer ones are found by their power"""
    solver = Slow(Time(), setup=lambda p: 1e-9 * p**3, step=lambda p, s: 1e-5 * p)
    found, how, took = seconds_of(solver, many(100_000, 300))
    assert found == pytest.approx(1e6 + 300.0, rel=0.01)
    assert took < 11  # 1e-9 2048^3 s, and little else
    assert how.endswith("steps with 512 and 2048 of 100000 samples")
    near, how, took = seconds_of(Slow(Time(), setup=solver.setup, step=solver.step), many(2000, 3000))
    assert near == pytest.approx(8.0 + 60.0 + 0.31, rel=1e-3)  # at full size
    assert "samples" not in how


def test_given_outputs_belong_to_their_samples():
    """So that fewer samples cannot stand for them"""

    @dataclass(frozen=True)
    class Given(Slow):
        f0: Any = None

    seen = []
    solver = Given(Time(), setup=lambda p: seen.append(p) or 1.0, f0=torch.ones(5000, 1))
    seconds_of(solver, many(5000, 10))
    assert seen == [5000]


def test_within_a_long_step_the_part_that_was_reached_counts():
    """A flow whose time costs less the later it is: seconds go as its square root"""
    time = Time()

    @dataclass(frozen=True)
    class Flow(Slow):
        def __call__(self, asked):
            with postponed_interrupt() as interrupted:
                for step in range(asked.training.steps + 1):
                    interrupted()
                    for part in np.linspace(0.001, 1, 1000):
                        time.passed += 30 * (np.sqrt(step + part) - np.sqrt(step + part - 0.001))
                        rehearsing = clock.current()
                        assert rehearsing is not None
                        if rehearsing.within(part):
                            raise clock.Enough

    found, how, took = seconds_of(Flow(time), many(8, 16))
    assert took == pytest.approx(10.0, rel=0.05)  # a whole step would take 30 s, two as snapshots ask 42 s
    assert how.startswith("the first 0.1")
    assert found == pytest.approx(30 * 4, rel=0.05)


def test_windows_are_extrapolated_by_their_polynomial():
    time, runs = Time(), []

    def run(n):
        runs.append(n)
        time.passed += 0.01 + 2e-3 * (n + 1) ** 2 + 1e-5 * (n + 1) ** 3

    law, last = by_law(run, 200, 1.0, time)
    n = np.arange(201) + 1.0
    np.testing.assert_allclose(
        law[[2**k for k in range(5)]], 0.01 + 2e-3 * n[[1, 2, 4, 8, 16]] ** 2 + 1e-5 * n[[1, 2, 4, 8, 16]] ** 3
    )
    np.testing.assert_allclose(law[1:], (0.01 + 2e-3 * n**2 + 1e-5 * n**3)[1:], rtol=1e-6)
    assert last == 16
    assert max(runs) == 16
    assert by_law(run, 3, 100.0, time)[1] == 3
    assert by_law(run, 0, 1.0, time)[0] == pytest.approx([0.012 + 1e-5])


def test_a_run_that_blows_up_is_estimated_to_its_end():
    asked = replace(problem(steps=1000), training=mf.Training(1e9, 10**6))
    found = WassersteinFlow(64).estimate(asked)
    assert re.fullmatch(r"the whole run, which ends after step \d+: (diverged|non-finite).*", found.how)
    assert found.seconds < 100


def test_groups_seeds_and_widths_multiply(monkeypatch):
    monkeypatch.setattr(finite_width, "expected", lambda solver, asked, seconds, run: (2.0, "a batch", None))
    net, asked = FiniteWidth(64, batch=8), problem(2)
    many = net.estimate(asked, seeds=32)
    assert (many.seconds, many.how) == (8.0, "a batch of 8 of 32 networks")
    assert (net.estimate(asked, 8).seconds, net.estimate(asked, 8).how) == (2.0, "a batch")
    assert many.bytes > net.estimate(asked, 8).bytes  # their kernels
    tiny = problem(2, steps=2)
    assert CausalDMFT(64, groups=3).estimate(tiny).how == "the whole run, 3 times"
    both = together([Estimate(1.0, 5.0, "a"), Estimate(2.0, 3.0, "a"), Estimate(3.0, 4.0, "b")], at_once=2)
    assert both == Estimate(3.0, 10.0, "a; b")


@pytest.mark.parametrize(
    ("activation", "steps", "within"), [("tanh", 100, 0.15), ("relu", 30, 0.1), ("linear", 60, 0.3)]
)
def test_bases_grow_as_those_of_few_samples_do(activation, steps, within):
    """Directions of all bases after 8 steps and then, summed over the steps that follow: a quarter of the samples shows them. Without any
    growth they would be missed by more.
    """
    asked, solver = problem(2, activation, 16, steps), CausalDMFT(512 if activation != "relu" else 1024)
    true = solver._sizes(solver(asked))
    beginning = begun(solver, asked.with_steps(8), Clock(1e9))
    found = solver._expected_sizes(asked, beginning, 1e9)
    assert len(found) == steps + 1
    np.testing.assert_array_equal(found[:9], true[:9])
    assert found[9:].sum() / true[9:].sum() == pytest.approx(1, abs=within)
    assert true[8] * (steps - 8) / true[9:].sum() < 1 - within


def test_fewer_samples_are_spread_over_all_and_keep_the_part_of_the_test_samples():
    x = torch.arange(100.0)[:, None]
    whole = mf.Problem(mf.Dataset(x, x, x[:50], x[:50]), training=mf.Training(batch_size=20))
    few = fewer(whole, 10)
    assert few.data.x[:, 0].tolist() == np.linspace(0, 99, 10).round().tolist()
    assert len(few.data.x_test) == len(few.data.y_test) == 5
    assert few.training.batch_size == 10
    assert fewer(replace(whole, training=mf.Training()), 10).training.batch_size is None


@pytest.mark.processes
@pytest.mark.skipif(not memory.AVAILABLE, reason="the system does not tell a process its memory")
@pytest.mark.parametrize(
    "name",
    [
        "flow, N = 2^18, no snapshots, momentum",
        "DMFT, S = 2^15, linear, L = 2, P = 16",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "network, N = 4096, L = 2",
                "fixed point, S = 2^15, L = 2, P = 8",
                "lazy, P = 1750, no snapshots",
            )
        ),
    ],
)
def test_the_bound_on_memory_holds_and_is_hardly_more_than_twice_what_is_used(name):
    """Peak of a process alone, which other processes do not change."""
    run = estimates.in_its_own_process(*estimates.MEMORY[name])
    used = (run["peak_gb"] - run["before_gb"]) / run[
        "bound"
    ]  # 0.487 to 0.69 of the linear case, by what was imported before
    assert 0.45 < used < 1
    assert run["bound"] > 0.1  # else what a process has anyway would count


def test_snapshots_momentum_and_the_integrator_take_memory():
    flow, net, asked = WassersteinFlow(2**16, snapshots=()), FiniteWidth(4096), problem()

    def size(solver, **training):
        parts = solver.parts(replace(asked, training=replace(asked.training, **training)))
        return sum(size for size, _ in parts.values())

    for solver in (flow, net):
        assert size(solver) < size(solver, momentum=0.9) < size(solver, optimiser="gradient_flow") / 2
    assert size(flow) < size(replace(flow, snapshots=(0, -1))) < size(replace(flow, snapshots=range(0, 100, 10))) / 2
