"""Runs in stretches: equal to uninterrupted ones, also after a kill at any moment, and never from a wrong file."""

import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
import xarray as xr

import meanfield as mf
from meanfield.files import storage
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    Interrupted,
    TangentKernelLimit,
    WassersteinFlow,
    checkpointed,
)
from solvers.dmft.dmft_window import Window
from solvers.finite.networks import Networks
from solvers.running import checkpoints
from tests.running import environment

pytestmark = pytest.mark.processes  # equality is asked of any number of threads


def problem(depth=1, scaling=None, loss="squared", **training):
    data = mf.digits(n_train=4, n_test=2)
    return mf.Problem(data, mf.Network(depth), scaling or mf.mean_field(1.0), mf.Training(0.2, 9, **training), loss)


CASES = {
    "flow": (WassersteinFlow(64, snapshots=(0, 5, -1)), problem(momentum=0.5, batch_size=2)),
    "gradient flow": (WassersteinFlow(64), problem(optimiser="gradient_flow")),
    "dmft": (CausalDMFT(128, snapshots=(0, 5, -1)), problem(2, weight_decay=0.1)),
    "dmft, plain, flow": (CausalDMFT(128, draws="plain"), problem(3, optimiser="gradient_flow")),
    "dmft, linear": (CausalDMFT(128), replace(problem(2), network=mf.Network(2, "linear"))),
    "dmft, groups": (CausalDMFT(64, groups=2), problem(2)),
    "net": (FiniteWidth(16, seed=2, snapshots=(0, 5, -1)), problem(3, momentum=0.9)),
    "lazy": (TangentKernelLimit(seed=1), problem(2, mf.ntk(), momentum=0.5)),
    "fixed point": (FixedPointDMFT(256), problem(2)),
    "fixed point, linear": (FixedPointDMFT(), replace(problem(2), network=mf.Network(2, "linear"))),
    "logits": (InfiniteLogitsLimit(64), problem(1, mf.default(4), "logistic")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_in_stretches_equals_an_uninterrupted_one(name, tmp_path):
    solver, asked = CASES[name]
    whole = solver(asked)
    assert checkpointed(solver, asked, tmp_path / "run.nc", every=4) == whole


@pytest.mark.parametrize("name", ["flow", "dmft", "net"])
def test_a_run_that_died_goes_on(name, tmp_path, monkeypatch):
    solver, asked = CASES[name]
    kept, path = [], tmp_path / "run.nc"

    def die(solution, path):
        keep(solution, path)
        kept.append(solution.steps)
        if len(kept) == 2:
            raise KeyboardInterrupt

    keep = checkpoints._keep
    monkeypatch.setattr(checkpoints, "_keep", die)
    with pytest.raises(KeyboardInterrupt):
        checkpointed(solver, asked, path, every=3)
    assert kept == [3, 6]
    found = checkpointed(solver, asked, path, every=3)
    assert kept == [3, 6, 9]
    assert found == solver(asked)
    assert checkpointed(solver, asked, path, every=3).f.equal(found.f)
    assert kept == [3, 6, 9]  # a finished run is only read


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    solver, asked = CASES["flow"]
    path = tmp_path / "run.nc"
    checkpointed(solver, asked.with_steps(6), path, every=3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"run.nc cannot be read and is passed over"):
        found = checkpointed(solver, asked, path, every=3)
    assert found == solver(asked)
    for name in ("run.nc", "run.previous.nc"):
        (tmp_path / name).write_bytes(b"not a file of ours")
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpointed(solver, asked, path, every=3) == solver(asked)


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    solver, asked = CASES["flow"]
    path = tmp_path / "run.nc"
    checkpointed(replace(solver, snapshots=(0, -1)), asked.with_steps(3), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"belongs to another problem.*remove this one to start anew"):
        checkpointed(solver, replace(asked, scaling=mf.mean_field(2.0)), path)
    with pytest.raises(ValueError, match=r"other settings \(seed=0 there, 1 here\)"):
        checkpointed(replace(solver, seed=1), asked, path)
    with pytest.raises(ValueError, match="solver must be a Solver: received"):
        checkpointed(object(), asked, tmp_path / "other.nc")
    with pytest.raises(ValueError, match="every must be at least 1"):
        checkpointed(solver, asked, path, every=0)
    assert path.read_bytes() == before


def test_ctrl_c_keeps_the_stretch(tmp_path, monkeypatch):
    solver, asked = CASES["net"]
    path, backward, calls = tmp_path / "run.nc", Networks.backward, []

    def interrupt(self, *args):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return backward(self, *args)

    monkeypatch.setattr(Networks, "backward", interrupt)
    with pytest.raises(Interrupted):
        checkpointed(solver, asked, path, every=9)
    assert storage.load(path).steps == 5
    assert checkpointed(solver, asked, path, every=9).f.equal(solver(asked).f)


def test_ctrl_c_keeps_the_windows_that_a_fixed_point_has_solved(tmp_path, monkeypatch):
    solver, asked = CASES["fixed point"]
    path, image, calls = tmp_path / "run.nc", Window.image, []

    def interrupt(self, *args, **kwargs):
        calls.append(self.times)
        if self.times == 6:
            signal.raise_signal(signal.SIGINT)
        return image(self, *args, **kwargs)

    monkeypatch.setattr(Window, "image", interrupt)
    with pytest.raises(Interrupted, match="after step 3 of 9"):
        checkpointed(solver, asked, path)
    monkeypatch.setattr(Window, "image", image)
    assert calls.count(6) == 1
    assert storage.load(path).steps == 3
    assert checkpointed(solver, asked, path) == solver(asked)
    with pytest.raises(ValueError, match="keep_state=True"):
        solver.resume(solver(asked), 3)


def test_a_killed_process_leaves_a_checkpoint(tmp_path):
    """SIGKILL at any moment; the next call ends the run with the numbers of an uninterrupted one on as many threads."""
    code = textwrap.dedent(f"""
        import meanfield as mf
        from solvers import CausalDMFT, checkpointed
        data = mf.digits(n_train=4, n_test=2)
        asked = mf.Problem(data, mf.Network(2), mf.mean_field(1.0), mf.Training(0.1, 400))
        checkpointed(CausalDMFT(256), asked, {str(tmp_path / "run.nc")!r}, every=5)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment())
    deadline = time.monotonic() + 120
    while not (tmp_path / "run.previous.nc").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    data = mf.digits(n_train=4, n_test=2)
    asked = mf.Problem(data, mf.Network(2), mf.mean_field(1.0), mf.Training(0.1, 400))
    reached = storage.load(tmp_path / "run.nc").steps if (tmp_path / "run.nc").exists() else 5
    assert 5 <= reached < 400
    shorter = asked.with_steps(reached + 3)
    found = checkpointed(CausalDMFT(256), shorter, tmp_path / "run.nc", every=5)
    assert torch.equal(found.f, CausalDMFT(256)(shorter).f)


# how far f may move: rounding, in float32 for the sweep; the fixed point's iterations stop within 1e-3
OTHER_THREADS = {"flow": 1e-12, "net": 1e-12, "lazy": 1e-12, "dmft": 1e-5, "fixed point": 1e-3}


@pytest.fixture(scope="module")
def with_other_threads(tmp_path_factory):
    """A folder with five steps of each, made by a process with one thread more than this one"""
    folder, code = tmp_path_factory.mktemp("threads"), "from tests.test_checkpoints import *; begin(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment(), check=True, timeout=120)
    return folder


def begin(folder):
    torch.set_num_threads(torch.get_num_threads() + 1)  # more than there are cores, if need be
    for name in OTHER_THREADS:
        solver, asked = CASES[name]
        part = checkpoints._part(solver, tuple(step for step in solver.snapshots if step >= 0))
        checkpointed(part, asked.with_steps(5), f"{folder}/{name}.nc")


@pytest.mark.parametrize("name", OTHER_THREADS)
def test_other_threads_are_told_of_once_and_change_the_rounding_only(with_other_threads, name):
    (solver, asked), path, own = CASES[name], with_other_threads / f"{name}.nc", torch.get_num_threads()
    with xr.open_dataset(path, engine="h5netcdf") as file:
        assert file.attrs["threads"] == own + 1
    with pytest.warns(UserWarning, match=f"made with {own + 1} threads and goes on with {own}, which round") as told:
        found = checkpointed(solver, asked, path, every=2)
    assert len(told) == 1
    whole = solver(asked)
    torch.testing.assert_close(found.f, whole.f, rtol=0, atol=OTHER_THREADS[name] * float(whole.f.abs().max()))
    assert found.stats["threads"] == storage.load(path).stats["threads"] == own


def test_a_file_that_does_not_tell_its_threads_goes_on_without_a_word():
    solver, asked = FiniteWidth(16), problem()
    old = replace(solver(asked.with_steps(5)), stats={})
    assert solver.resume(old, 4) == solver(asked)
