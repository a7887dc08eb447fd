"""One contract for all solvers and their commands: killed, interrupted, called again, extended, on a full disk. Nothing is lost."""

import errno
import io
import signal
import sys
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

import meanfield as mf
from meanfield.files import sealed
from meanfield.files.storage import load
from solvers import WassersteinFlow, checkpointed, width_sweep
from solvers.command_line.main import main
from solvers.dmft.dmft_window import Window
from solvers.running import checkpoints
from solvers.running.trajectory import Trajectory
from tests.contract import MEAN_FIELD, TABLE

TRAINING = "--data.n-train 4 --data.n-test 2 --training.learning-rate 0.2 --training.steps 6"


class Killed(BaseException):
    """What nobody catches"""


@pytest.fixture(params=TABLE)
def case(request, tmp_path, capsys):
    """(whole solution, solver, problem, run(*flags) -> (exit status, text))"""
    row = TABLE[request.param]
    solver, problem, flags = row.solver, row.problem, row.flags

    usual = (request.param.split()[-1], "--out", tmp_path / "run.nc", *TRAINING.split(), *flags.split())

    def run(*more, command=usual):
        capsys.readouterr()
        status = main([str(word) for word in (*command, *more)])
        return status, "".join(capsys.readouterr())

    return solver(problem), solver, problem, run


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _kill_at(monkeypatch, count):
    """At the end of writing that many checkpoints"""
    keep, kept = checkpoints._keep, []

    def then_die(solution, path):
        keep(solution, path)
        kept.append(solution)
        if len(kept) == count:
            raise Killed

    monkeypatch.setattr(checkpoints, "_keep", then_die)


def _interrupt_at(monkeypatch, step):
    """By Ctrl-C, in the loop through time or in the window that reaches beyond `step`"""
    record, image, seen = Trajectory.record, Window.image, []

    def recording(self, now, *f):
        if now == step:
            signal.raise_signal(signal.SIGINT)
        record(self, now, *f)

    def imaging(self, *args, **kwargs):
        if self.times > step + 1 and not seen:
            seen.append(self.times)
            signal.raise_signal(signal.SIGINT)
        return image(self, *args, **kwargs)

    monkeypatch.setattr(Trajectory, "record", recording)
    monkeypatch.setattr(Window, "image", imaging)


def test_killed_the_same_command_goes_on_and_called_again_it_knows_its_result(case, tmp_path, monkeypatch):
    whole, _, _, run = case
    with monkeypatch.context() as patch:
        _kill_at(patch, 2)
        with pytest.raises(Killed):
            run("--checkpoint", 2)
    assert _names(tmp_path) == ["run.checkpoint.nc", "run.checkpoint.previous.nc"]
    assert load(tmp_path / "run.checkpoint.nc").steps == 4
    with monkeypatch.context() as patch:
        patch.setattr(type(case[1]), "__call__", lambda *_: pytest.fail("begun anew"))
        assert run("--checkpoint", 2)[0] == 0
        assert _names(tmp_path) == ["run.nc"]
        assert load(tmp_path / "run.nc") == whole
        status, told = run()
    assert status == 0
    assert "already kept" in told


def test_a_checkpoint_is_an_unfinished_run_that_resume_ends(case, tmp_path, monkeypatch):
    whole, _, _, run = case
    with monkeypatch.context() as patch:
        _kill_at(patch, 1)
        with pytest.raises(Killed):
            run("--checkpoint", 2)
    kept = load(tmp_path / "run.checkpoint.nc")
    assert (kept.status, kept.steps, kept.problem) == (mf.Status.INTERRUPTED, 2, whole.problem)
    assert run(command=("resume", str(tmp_path / "run.checkpoint.nc")))[0] == 0
    assert load(tmp_path / "run.nc") == whole


def test_interrupted_with_checkpoints_it_says_how_to_go_on(case, tmp_path, monkeypatch):
    whole, _, _, run = case
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 3)
        status, told = run("--checkpoint", 6)
    assert status == 130
    assert "of 6" in told
    reached = load(tmp_path / "run.checkpoint.nc").steps
    assert 0 < reached < 6
    assert f"{reached} steps are kept in {tmp_path / 'run.checkpoint.nc'}: the same command goes on from there" in told
    assert _names(tmp_path) == ["run.checkpoint.nc"]
    assert run("--checkpoint", 6)[0] == 0
    assert load(tmp_path / "run.nc") == whole


def test_interrupted_without_checkpoints_resume_goes_on_and_nothing_stale_is_left(case, tmp_path, monkeypatch):
    whole, _, _, run = case
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 3)
        status, told = run()
    assert status == 130
    partial = tmp_path / "run.partial.nc"
    assert f"go on with: meanfield resume {partial}" in told
    for _ in range(2):  # called again, it says where its result is
        status, told = run(command=("resume", str(partial)))
        assert status == 0
        assert f"kept in {tmp_path / 'run.nc'}" in told
        assert _names(tmp_path) == ["run.nc"]
    assert load(tmp_path / "run.nc") == whole
    assert "already kept" in run()[1]


def test_a_finished_run_goes_on_for_more_steps(case, tmp_path):
    whole, solver, problem, _ = case
    path = tmp_path / "steps.nc"
    assert checkpointed(solver, problem, path, every=4) == whole
    longer = problem.with_steps(8)
    assert checkpointed(solver, longer, path, every=4) == solver(longer)
    with pytest.raises(ValueError, match="snapshot 2 lies in the past"):
        checkpointed(replace(solver, snapshots=(0, 2, -1)), longer, path)


def test_on_a_full_disk_the_run_goes_on_and_is_kept_elsewhere(case, tmp_path, monkeypatch):
    whole, _, _, run = case
    elsewhere, write = tmp_path / "elsewhere", sealed.write
    elsewhere.mkdir()

    def full(path, content):
        if path.parent == tmp_path:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(sealed, "write", full)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    with pytest.warns(UserWarning, match="No space left on device") as told:
        status, text = run("--checkpoint", 4)
    assert status == 3
    assert any("the run goes on, but its checkpoint" in str(w.message) for w in told)
    assert f"kept in {elsewhere / 'run.nc'}" in text
    assert load(elsewhere / "run.nc") == whole
    assert _names(tmp_path) == ["elsewhere"]


def test_a_folder_that_is_deleted_during_the_run_costs_no_result(case, tmp_path, monkeypatch):
    whole, _, _, run = case
    out, elsewhere, settings = tmp_path / "out", tmp_path / "elsewhere", checkpoints.settings
    for folder in (out, elsewhere):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(checkpoints, "settings", lambda solver: (out.exists() and out.rmdir()) or settings(solver))
    with pytest.warns(UserWarning, match="does not exist"):
        status, _ = run("--checkpoint", 6, "--out", out / "run.nc")
    assert status == 3
    assert load(elsewhere / "run.nc") == whole


def test_a_terminal_without_our_signs_costs_no_result(tmp_path, monkeypatch):
    width_sweep(MEAN_FIELD, (4, 8), 2, folder=tmp_path / "nets")
    limit = mf.save(WassersteinFlow(16)(MEAN_FIELD), tmp_path / "limit.nc")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(mf.plot, "save", lambda *_: None)
    words = ("compare", tmp_path / "nets", "--limits", limit, "--out", tmp_path / "report.nc")
    assert main([str(word) for word in words]) == 0
    terminal.flush()
    assert b"?" in terminal.buffer.getvalue()  # where a sign of ours stood
    assert "±" in load(tmp_path / "report.nc").table()
    plt.close("all")
