"""Sweeps: any executor, nothing finished is lost, and they go on from where they stopped."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import meanfield as mf
from meanfield.files import storage
from solvers import FiniteWidth, Interrupted, SolverError, width_sweep
from solvers.finite.finite_width import FiniteWidth as Solver
from tests.running import dask_workers, environment

PROBLEM = mf.Problem(mf.digits(n_train=5, n_test=2), mf.Network(1, "tanh"), training=mf.Training(0.2, 3))
ASK = dict(problem=PROBLEM, widths=(4, 8), seeds=3)


def pool(workers):
    """Processes with as many threads as this one"""
    return ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),))


def test_networks_come_by_width_and_seed():
    nets = width_sweep(**ASK)
    assert [(s.width, s.solver["seed"]) for s in nets] == [(n, e) for n in (4, 8) for e in range(3)]
    assert float((nets[4].f - FiniteWidth(8, seed=1)(PROBLEM).f).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, pytest.param(pool, marks=pytest.mark.processes)])
def test_any_executor_gives_the_same_numbers(kind):
    """To rounding, since it changes the batches; without batches to the last bit"""
    with kind(2) as executor:
        shared = width_sweep(**ASK, executor=executor)
        alone = width_sweep(**ASK, solver=FiniteWidth(batch=1), executor=executor)
    for a, b in zip(shared, width_sweep(**ASK), strict=True):
        assert a.solver == b.solver
        assert float((a.f - b.f).abs().max()) < 1e-12
    assert alone == [FiniteWidth(width, seed, batch=1)(PROBLEM) for width in (4, 8) for seed in range(3)]


def test_a_sweep_goes_on_from_its_folder(tmp_path, monkeypatch):
    first = width_sweep(PROBLEM, (4,), 2, folder=tmp_path)
    trained = []
    original = Solver.ensemble
    monkeypatch.setattr(
        Solver,
        "ensemble",
        lambda self, problem, seeds: trained.append((self.width, seeds)) or original(self, problem, seeds),
    )
    everything = width_sweep(**ASK, folder=tmp_path)
    assert sorted(trained) == [(4, (2,)), (8, (0, 1, 2))]
    assert everything[:2] == first
    trained.clear()
    assert width_sweep(**ASK, folder=tmp_path) == everything
    assert trained == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("threads", [False, True])
def test_a_failed_or_interrupted_sweep_keeps_what_is_finished(tmp_path, monkeypatch, failure, threads):
    original = Solver.ensemble

    def failing(self, problem, seeds):
        if self.width == 4:
            raise failure
        return original(self, problem, seeds)

    monkeypatch.setattr(Solver, "ensemble", failing)
    executor = ThreadPoolExecutor(1) if threads else None
    with pytest.raises(Interrupted if isinstance(failure, KeyboardInterrupt) else SolverError) as caught:
        width_sweep(**ASK, folder=tmp_path, executor=executor)
    assert [s.width for s in caught.value.solutions] == [8, 8, 8]
    assert len(list(tmp_path.glob("*.nc"))) == 3
    monkeypatch.undo()
    assert len(width_sweep(**ASK, folder=tmp_path)) == 6


def test_networks_that_blow_up_are_named_and_the_others_kept(tmp_path):
    hot = mf.Problem(mf.digits(n_train=8), mf.Network(1, "tanh"), training=mf.Training(4.0, 150))
    with pytest.raises(
        SolverError, match=r"\d of 8 networks failed.*width 2, seed \d: diverged: .*lower learning_rate"
    ) as caught:
        width_sweep(hot, (2,), 8, FiniteWidth(snapshots=()), folder=tmp_path)
    assert 0 < len(caught.value.solutions) < 8
    assert all(s.status is mf.Status.FINISHED for s in caught.value.solutions)
    assert len(list(tmp_path.glob("*.nc"))) == len(caught.value.solutions)


def test_a_folder_that_holds_another_run_is_refused_before_any_work(tmp_path):
    width_sweep(PROBLEM, (4,), 2, folder=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"holds another run: .* solves another problem; give an empty folder"):
        width_sweep(PROBLEM.with_steps(4), (4,), 2, folder=tmp_path)
    with pytest.raises(ValueError, match="was made with dtype='float64'"):
        width_sweep(PROBLEM, (4,), 2, FiniteWidth(dtype="float32"), folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    blocked = tmp_path / "file"
    blocked.write_text("text")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        width_sweep(PROBLEM, (4,), 2, folder=blocked)


def test_damaged_networks_are_trained_again(tmp_path):
    whole = width_sweep(PROBLEM, (4,), 3, folder=tmp_path)
    for path in sorted(tmp_path.glob("*.nc"))[:2]:
        damaged = bytearray(path.read_bytes())
        damaged[3000] ^= 1
        path.write_bytes(damaged)
    with pytest.warns(
        UserWarning, match=r"seed000[01].nc is damaged.*: where this network is asked for, it is trained again"
    ):
        again = width_sweep(PROBLEM, (4,), 3, folder=tmp_path)
    for a, b in zip(again, whole, strict=True):
        assert float((a.f - b.f).abs().max()) < 1e-12  # in another batch
    assert width_sweep(PROBLEM, (4,), 3, folder=tmp_path) == again


def test_a_folder_that_is_gone_costs_no_network(tmp_path, monkeypatch):
    folder, elsewhere, original = tmp_path / "nets", tmp_path / "temporary", Solver.ensemble
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(Solver, "ensemble", lambda self, *asked: folder.rmdir() or original(self, *asked))
    with pytest.warns(UserWarning, match=r"does not exist: .*; kept in .*temporary.width000004_seed000[01].nc"):
        nets = width_sweep(PROBLEM, (4,), 2, folder=folder)
    assert [storage.load(path) for path in sorted(elsewhere.iterdir())] == nets


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """Though they are at work"""
    flags = f"--out {tmp_path} --widths 8 --seeds 2 --training.steps 10000000 --workers 2 --data.n-train 4"
    command = [sys.executable, "-m", "solvers.command_line.main", "sweep", *flags.split()]
    parent = subprocess.Popen(command, env=environment())
    try:
        deadline = time.monotonic() + 100
        while (
            len(workers := _python_children(parent.pid)) < 2 and time.monotonic() < deadline
        ):  # and the tracker of resources
            time.sleep(0.1)
        assert len(workers) >= 2
        time.sleep(5)  # they import torch
    finally:
        parent.kill()
        parent.wait()
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_lives, workers))


def _stat(pid):
    """State and parent"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return ["X", "0"]


def _lives(pid):
    return _stat(pid)[0] not in "XZ"


def _python_children(pid):
    return [p.name for p in Path("/proc").iterdir() if p.name.isdecimal() and _stat(p.name)[1] == str(pid)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(widths=()), "widths is empty"),
        (dict(widths=(8, -8)), r"widths\[1\] must be at least 1: received -8"),
        (dict(widths=(8, 8)), "same number twice"),
        (dict(seeds=0), "seeds must be at least 1: received 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        width_sweep(**(ASK | change))


class Fatal(FiniteWidth):
    """Networks of width 4 take their process with them."""

    def ensemble(self, problem, seeds):
        if self.width == 4:
            os._exit(1)
        return FiniteWidth(self.width).ensemble(problem, seeds)


@pytest.mark.processes
def test_a_worker_that_dies_costs_a_process_pool_but_no_result(tmp_path):
    """The widest run first, so their results are there when the pool breaks; the next call runs what is missing."""
    with pool(1) as executor:
        for width in (8, 16):
            width_sweep(PROBLEM, (width,), 2, folder=tmp_path, executor=executor)
        with pytest.raises(
            SolverError, match=r"width 4, .*BrokenProcessPool: .*call again with a new executor"
        ) as caught:
            width_sweep(PROBLEM, (4, 8, 16), 2, Fatal(), executor=executor)
        with pytest.raises(
            SolverError, match=r"2 of 2 networks failed, 0 are finished.*call again with a new executor"
        ):
            width_sweep(PROBLEM, (8,), 2, executor=executor)  # refuses new tasks
    assert {s.width for s in caught.value.solutions} <= {8, 16}
    assert len(width_sweep(PROBLEM, (4, 8, 16), 2, folder=tmp_path)) == 6


@pytest.mark.processes
def test_dask_loses_nothing_when_a_worker_is_killed(tmp_path):
    """Killed when the first result is there: dask gives the lost tasks to the other worker."""
    asked, killed = PROBLEM.with_steps(60), threading.Event()

    def kill(pid):
        while not any(tmp_path.glob("*.nc")):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    with dask_workers(2) as client:
        victim = min(client.run(os.getpid).values())
        threading.Thread(target=kill, args=(victim,), daemon=True).start()
        nets = width_sweep(asked, (64, 128), 16, executor=client.get_executor(), folder=tmp_path)
        assert killed.wait(5)
        assert victim not in client.run(os.getpid).values()
    assert [(s.width, s.solver["seed"]) for s in nets] == [(n, e) for n in (64, 128) for e in range(16)]
    assert float((nets[20].f - FiniteWidth(128, seed=4)(asked).f).abs().max()) < 1e-12
    assert len(list(tmp_path.glob("*.nc"))) == 32
