"""One contract for all solvers: refused before work, the same seed the same run, resumed, kept, seldom or in detail recorded, estimated."""

import inspect
import io
import signal
import sys
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tqdm import tqdm

import meanfield as mf
import solvers
from meanfield import load, save
from solvers import Interrupted
from solvers.dmft.dmft_window import Window
from solvers.running import clock, rehearsal
from solvers.running.clock import Clock, begun
from solvers.running.solver import KeepsState, Solver, settings, stated
from solvers.running.trajectory import Trajectory
from tests.contract import TABLE, Row


@pytest.fixture(params=TABLE)
def row(request) -> Row:
    return TABLE[request.param]


@pytest.fixture
def resumable(row):
    """The solver, keeping what it goes on from, and without a snapshot of an end that is none"""
    solver = replace(row.solver, snapshots=(0,))
    return replace(solver, keep_state=True) if isinstance(solver, KeepsState) else solver


def _no_work(monkeypatch):
    """Loops through time and windows fail."""
    for where, name in ((Trajectory, "record"), (Window, "image")):
        monkeypatch.setattr(where, name, lambda *_, **__: pytest.fail("work was done"))


def test_every_solver_has_a_row_and_the_methods_in_one_order():
    exported = {made for made in vars(solvers).values() if isinstance(made, type) and "resume" in vars(made)}
    assert {type(row.solver) for row in TABLE.values()} == exported
    for row in TABLE.values():
        assert isinstance(row.solver, Solver)
        for method in ("check", "estimate", "__call__", "resume"):
            asked, own = (inspect.signature(getattr(kind, method)).parameters for kind in (Solver, type(row.solver)))
            assert [name for name in own if name in asked] == list(asked)
            assert all(own[name].default is not inspect.Parameter.empty for name in own if name not in asked)


def test_what_it_cannot_solve_is_refused_before_work(row, monkeypatch):
    """By a call, an estimate and `check` alike: another problem, more steps or neurons than memory holds, snapshots beyond the end"""
    _no_work(monkeypatch)
    too_long = row.problem.with_steps(10**12)
    cases = [
        (row.solver, row.refused, ValueError, row.why),
        (row.solver, too_long, MemoryError, r"needs \d+\.\d+ GB \(\d{14,} bytes\).*(fewer|samples or) steps"),
        (replace(row.solver, snapshots=(7,)), row.problem, ValueError, "snapshots must lie in"),
    ]
    if row.large:
        cases.append((replace(row.solver, **row.large), row.problem, MemoryError, "needs"))
    for solver, problem, error, words in cases:
        for call in (solver, solver.estimate, solver.check):
            with pytest.raises(error, match=words):
                call(problem)


@pytest.mark.parametrize("snapshots", ["abc", (1.5,), 3, {0: 1}, (0, None)], ids=str)
def test_snapshots_are_whole_numbers(row, snapshots):
    with pytest.raises(ValueError, match=r"snapshots(\[\d\])? must be a"):
        type(row.solver)(snapshots=snapshots)


def test_the_seed_makes_the_run(row):
    whole = row.solver(row.problem)
    assert row.solver(row.problem) == whole
    assert not replace(row.solver, seed=1)(row.problem).f.equal(whole.f)
    assert (whole.problem, whole.solver) == (stated(row.solver, row.problem), settings(row.solver))
    assert whole.steps == 6


@pytest.mark.parametrize("first", [1, 4])
def test_resumed_it_is_the_uninterrupted_run(row, resumable, first):
    """Also with records every other step, of which the end of the first part may be none; whatever the order of arrays in a file"""
    for every in (1, 2):
        asked = replace(row.problem, training=replace(row.problem.training, record_every=every))
        part = resumable(asked.with_steps(first))
        assert resumable.resume(part, 6 - first) == resumable(asked)
    turned = replace(part, state=dict(reversed(part.state.items())))
    assert resumable.resume(turned, 6 - first) == resumable(asked)
    with pytest.raises(MemoryError, match="needs"):
        resumable.resume(part, 10**12)


def test_interrupted_it_keeps_what_it_has(row, resumable, monkeypatch):
    """Ctrl-C in the loop through time, or in a window, of which the one before is kept"""
    whole, record, image, seen = resumable(row.problem), Trajectory.record, Window.image, []

    def at(step):
        if step == 3 and not seen:
            seen.append(step)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trajectory, "record", lambda self, step, *f: (at(step), record(self, step, *f))[1])
        patch.setattr(Window, "image", lambda self, *a, **k: (at(self.times - 1), image(self, *a, **k))[1])
        with pytest.raises(Interrupted, match="of 6") as caught:
            resumable(row.problem)
    part = caught.value.solution
    assert part is not None
    assert part.status is mf.Status.INTERRUPTED
    assert 0 < part.steps < 6
    assert part.f.equal(whole.f[: part.steps + 1]) or row.without_loop
    assert resumable.resume(part, 6 - part.steps) == whole


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_each_precision_it_comes_back_from_its_file(row, dtype, tmp_path):
    found = replace(row.solver, dtype=dtype, snapshots=(0, 3, -1))(row.problem)
    right = replace(row.solver, dtype="float64")(row.problem)
    assert str(found.f.dtype) == f"torch.{dtype}" or row.without_loop  # its kernels are in float64
    assert float((found.f.double() - right.f.double()).norm() / right.f.double().norm()) <= row.float32
    assert load(save(found, tmp_path / "run.nc")) == found


def test_records_and_snapshots_change_no_step(row):
    often = row.solver(row.problem)
    asked = replace(row.problem, training=replace(row.problem.training, record_every=4))
    seldom = replace(row.solver, snapshots=())(asked)
    assert seldom.recorded_steps == (0, 4, 6)
    assert float((seldom.f - often.f[[0, 4, 6]]).norm() / often.f.norm()) <= row.seldom
    assert seldom.snapshots == ()
    with pytest.raises(ValueError, match=r"snapshots=\(0, -1\)"):
        seldom.tangent_kernel()
    detailed = replace(row.solver, snapshots=(0, 3, -1))(row.problem)
    assert detailed.f.equal(often.f)
    assert detailed.snapshots == (0, 3, 6)
    torch.testing.assert_close(detailed.tangent_kernel(-1), often.tangent_kernel(-1), rtol=1e-13, atol=0)
    assert bool(torch.isfinite(detailed.tangent_kernel(3)).all())


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_where_it_is_asked_for(row, progress, monkeypatch):
    made = tqdm.__init__
    monkeypatch.setattr(tqdm, "__init__", lambda bar, *args, **how: made(bar, *args, **how | {"delay": 0}))
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    replace(row.solver, progress=progress)(row.problem)
    assert bool(told.getvalue()) == progress


class Ticks:
    """Seconds that count work: one for each step that is recorded, T^2 for an iteration over a window of T times"""

    def __init__(self, monkeypatch):
        self.passed, record, image = 0.0, Trajectory.record, Window.image
        monkeypatch.setattr(Trajectory, "record", lambda of, *a: (self.wait(1), record(of, *a))[1])
        monkeypatch.setattr(Window, "image", lambda of, *a, **k: (self.wait(of.times**2), image(of, *a, **k))[1])

    def wait(self, seconds):
        self.passed += seconds

    def __call__(self):
        return self.passed


def test_an_estimate_is_within_a_factor_of_two(row, monkeypatch):
    """By a clock that counts work, from a quarter of it"""
    now, asked = Ticks(monkeypatch), row.problem.with_steps(11 if row.without_loop else 40)
    solver, where = replace(row.solver, snapshots=(0,)), sys.modules[type(row.solver).__module__]
    for name in {"expected", "by_law"} & vars(where).keys():
        monkeypatch.setattr(where, name, partial(getattr(rehearsal, name), now=now))
    solver(asked)
    took, now.passed = now.passed, 0.0
    found = solver.estimate(asked, seconds=took / 4)
    assert 1 / 2 < found.seconds / took < 2


def test_a_rehearsal_is_the_beginning_of_the_run(row):
    """The same bits, with the method that the command line and studies use; it ends at a step, and is no failure"""
    if row.without_loop:
        return
    asked = row.problem.with_steps(500_000)
    beginning = begun(replace(row.solver, snapshots=()), asked, Clock(1e-3))
    assert not beginning.whole
    assert beginning.solution is not None
    steps = beginning.solution.steps
    assert 1 <= steps < 500_000
    assert torch.equal(beginning.solution.f, row.solver(asked.with_steps(steps)).f)
    assert len(beginning.costs()) == steps
    assert min(beginning.setup, beginning.end, *beginning.costs()) > 0


def test_an_estimate_is_quiet_and_leaves_everything_as_it_was(row, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = 11 if row.without_loop else 500_000
    before, torch_before = [_numpy_state(), signal.getsignal(signal.SIGINT), [*warnings.filters]], torch.get_rng_state()
    found = row.solver.estimate(row.problem.with_steps(steps), seconds=0.01)
    assert found.seconds > 0.01
    assert f"of {steps} steps" in str(found)
    assert str(found).startswith("about ")
    assert torch.equal(torch_before, torch.get_rng_state())
    assert before == [_numpy_state(), signal.getsignal(signal.SIGINT), [*warnings.filters]]
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert clock.current() is None


def _numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002
