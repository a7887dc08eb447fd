"""The shell beyond the flags of one command: what is printed by task, many values, files of flags, own pieces, words of errors."""

import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.files import storage
from meanfield.files.storage import load, opened
from solvers import WassersteinFlow
from solvers.command_line import asking, overview, words
from solvers.command_line import main as cli
from solvers.command_line.main import main
from tests.running import environment

TINY = shlex.split("--data single-index --data.n-train 5 --data.n-test 3 --data.inputs 3 --training.steps 4")
FLOW = ["flow", *TINY, "--solver.particles", "16"]
PROBLEM = mf.Problem(mf.single_index_teacher(n_train=5, n_test=3, inputs=3), training=mf.Training(steps=4))


@pytest.fixture
def shell(capsys, tmp_path, monkeypatch):
    """(stdout, stderr) of a command in a folder of its own that must end with `code`"""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        capsys.readouterr()
        found = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert found == code, err
        assert "Traceback" not in err
        return out, err

    return run


def test_meanfield_alone_tells_every_command_by_task(shell):
    named = [name for names in overview.TASKS.values() for name in names]
    assert sorted(named) == sorted(c.__name__.lower() for c in cli.COMMANDS)
    out, _ = shell()
    assert all(f"\n  {name} " in out for name in named)
    assert max(map(len, out.splitlines())) <= 150
    assert shell("--version")[0].startswith("meanfield 0.")


@pytest.mark.parametrize(
    "command", ["flow", "dmft", "lazy", "logits", "fixedpoint", "revealed", "net", "predict", "proxy"]
)
def test_every_command_that_solves_takes_its_own_defaults(command, monkeypatch):
    """Its problem, as nothing asks for it, is one that the solver would begin with"""
    seen = []
    monkeypatch.setattr(cli, "COMMANDS", dict.fromkeys(cli.COMMANDS, seen.append))
    assert main([command, "--out", "run.nc"]) == 0
    if command == "predict":
        assert seen[0].problem.scaling == mf.ntk()
    elif command == "proxy":
        assert seen[0].problem.loss_function.name == "logistic"
    else:
        seen[0].solver.check(seen[0].problem)


def test_scalings_that_a_solver_does_not_take_are_not_offered(shell):
    _, err = shell("flow", "--out", "run.nc", "--scaling", "ntk", code=2)
    assert "--scaling ntk has another limit: this command takes mean_field and ic_mean_field" in err
    assert (
        "unknown scaling: received 'mup'; known: default, sym_default"
        in shell("logits", "--out", "a.nc", "--scaling", "mup", code=2)[1]
    )


def test_vary_runs_once_for_each_value_and_goes_on_with_what_is_missing(shell, tmp_path):
    vary = ["--vary", "scaling.gamma0", 0.5, 2, "--vary", "network.activation", "tanh", "relu", "--out", "runs"]
    out, _ = shell(*FLOW, *vary)
    found = {path.name: load(path) for path in (tmp_path / "runs").iterdir()}
    assert len(found) == 4
    for gamma0 in (0.5, 2):
        for activation in ("tanh", "relu"):
            problem = mf.Problem(PROBLEM.data, mf.Network(1, activation), mf.mean_field(gamma0), PROBLEM.training)
            assert found[f"gamma0={gamma0:g},activation={activation}.nc"] == WassersteinFlow(16)(problem)
    (tmp_path / "runs" / "gamma0=2,activation=relu.nc").unlink()
    again, _ = shell(*FLOW, *vary)
    assert again.count("already kept") == 3
    assert load(tmp_path / "runs" / "gamma0=2,activation=relu.nc") == found["gamma0=2,activation=relu.nc"]
    assert [line for line in out.splitlines() if line.startswith("gamma0")][1] == "gamma0=0.5,activation=relu"


def test_vary_takes_values_of_several_words_and_folders_of_networks(shell, tmp_path):
    sweep = ["sweep", *TINY, "--widths", 4, "--seeds", 2, "--out", "nets", "--vary", "training.learning-rate", 0.1, 0.2]
    shell(*sweep)
    assert sorted(p.name for p in (tmp_path / "nets").iterdir()) == ["learning-rate=0.1", "learning-rate=0.2"]
    assert len(list((tmp_path / "nets" / "learning-rate=0.2").glob("*.nc"))) == 2
    asked = asking.varied(["flow", "--out", "a", "--vary", "data.classes", "0 1", "3 8"])
    assert [one.named for one in asked] == ["classes=0-1", "classes=3-8"]
    assert asked[1].words == ["flow", "--data.classes", "3", "8", "--out", "a/classes=3-8.nc"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vary", "gamma0", "1", "--out", "a"], "needs a setting and two values at least"),
        (["--vary", "--out", "a"], "needs a setting and two values at least"),
        (["--vary", "gamma0", "1", "2"], "--out is the folder"),
        (["--vary", "gamma0", "1", "2", "--out", "a.nc"], "--out is a folder"),
        (["--vary", "gamma0", "1", "2", "--gamma0", "3", "--out", "a"], "--gamma0 is given twice"),
        (["--vary", "gamma0", "1", "-2", "--out", "a"], "--gamma0 must be positive and finite: received -2.0"),
        (["--config", "no.toml", "--out", "a.nc"], "--config: no such file: no.toml"),
        (["--import", "nowhere_to_be_found", "--out", "a.nc"], "--import nowhere_to_be_found: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_is_refused_before_work(shell, tmp_path, more, message):
    assert message in shell(*FLOW, *more, code=2)[1]
    assert not list(tmp_path.rglob("*.nc"))


def test_a_run_that_fails_among_many_leaves_the_others_and_the_status(shell, tmp_path):
    wild = ["--network.activation", "linear", "--vary", "training.learning-rate", 1e6, 0.1, "--training.steps", 300]
    out, err = shell("flow", *TINY[:-2], "--solver.particles", 8, *wild, "--out", "runs", code=1)
    assert "loss" in out
    assert "lower --training.learning-rate" in err
    assert load(tmp_path / "runs" / "learning-rate=0.1.nc").status is mf.Status.FINISHED


def test_files_know_their_command_which_can_be_run_again_or_written_down(shell, tmp_path):
    shell(*FLOW, "--out", "a.nc", "--solver.no-balanced", "--solver.snapshots", 0, 2, -1)
    command = opened(tmp_path / "a.nc")[1]["command"]
    assert shlex.split(command) == [
        *FLOW,
        "--out",
        "a.nc",
        *["--solver.no-balanced", "--solver.snapshots", "0", "2", "-1"],
    ]
    shell("rerun", "a.nc", "--out", "b.nc")
    assert load("b.nc") == load("a.nc")
    shell("rerun", "a.nc", "--out", "c.nc", "--gamma0", 3, "--solver.balanced")
    assert load("c.nc").problem.scaling == mf.mean_field(3)
    assert load("c.nc").solver["balanced"] is True
    Path("run.toml").write_text(shell("show", "a.nc", "--toml")[0])
    shell("--config", "run.toml", "--out", "d.nc")
    assert load("d.nc") == load("a.nc")
    assert "rerun needs --out" in shell("rerun", "a.nc", code=2)[1]
    mf.save(WassersteinFlow(8)(PROBLEM), "python.nc")
    assert "was made in Python" in shell("rerun", "python.nc", "--out", "e.nc", code=2)[1]


def test_true_in_a_config_reaches_flags_of_data(shell):
    Path("t.csv").write_text("a,b,kind\n" + "".join(f"{k},{k * k},{'xy'[k % 2]}\n" for k in range(8)))
    data = '[data]\nname = "file"\npath = "t.csv"\ntargets = "kind"\nn-test = 4\nstratify = true\n'
    Path("t.toml").write_text(f'command = "flow"\nout = "t.nc"\n{data}[training]\nsteps = 2\n[solver]\nparticles = 8\n')
    shell("--config", "t.toml")
    assert load("t.nc").problem.data.y_test.sum() == 0  # two of each class


def test_a_layer_that_is_not_there_and_a_folder_of_many_runs_are_refused(shell):
    shell(*FLOW, "--out", "runs", "--vary", "gamma0", 1, 2)
    assert (
        "layer 7 does not exist or was not recorded: recorded are 1" in shell("plot", "runs", "--layer", 7, code=2)[1]
    )
    assert "runs is a folder of 2 runs" in shell("certify", "runs", code=2)[1]


def test_show_tells_what_a_file_holds(shell):
    shell(*FLOW, "--out", "a.nc")
    out, _ = shell("show", "a.nc")
    assert str(load("a.nc")) in out
    for told in (
        "by meanfield 0.",
        "command  meanfield flow",
        "gamma0" if "gamma0" in out else "mean_field",
        "f (5, 5, 1)",
        "particles=16",
    ):
        assert told in out
    found = json.loads(shell("show", "a.nc", "--json")[0])
    assert found["settings"]["solver"]["particles"] == 16
    np.testing.assert_array_equal(found["arrays"]["loss"]["values"], load("a.nc").loss)
    assert found["arrays"]["f"] == {"shape": [5, 5, 1], "values": load("a.nc").f.tolist()}
    assert "no such file: b.nc" in shell("show", "b.nc", code=2)[1]


def test_kernels_at_the_start(shell):
    shell("nngp", *TINY, "--out", "k.npz", "--network.depth", 3)
    data = PROBLEM.data
    with np.load("k.npz") as kept:
        nngp, ntk = mf.nngp_and_ntk(mf.Network(3), mf.ntk(), torch.cat([data.x, data.x_test]))
        np.testing.assert_array_equal(kept["nngp"], nngp)
        np.testing.assert_array_equal(kept["ntk"], ntk)
        np.testing.assert_array_equal(kept["y_test"], data.y_test)
    assert "there already" in shell("nngp", *TINY, "--out", "k.npz", code=2)[1]
    assert "end in .npz" in shell("nngp", *TINY, "--out", "k.nc", code=2)[1]
    shell("spectrum", *TINY, "--out", "s.nc")
    found = mf.spectrum(mf.nngp_and_ntk(mf.Network(), mf.ntk(), data.x)[1], data.y)
    for name in ("eigenvalues", "eigenvectors", "targets", "start"):
        assert torch.equal(getattr(load("s.nc"), name), getattr(found, name))
    assert "s_spectrum.png" in shell("plot", "s.nc")[0]


def test_resume_keeps_checkpoints(shell, tmp_path, monkeypatch):
    shell(*FLOW, "--out", "a.nc")
    kept, save = [], storage.save
    with monkeypatch.context() as patch:
        patch.setattr(
            storage, "save", lambda result, path: kept.append((Path(path).name, result.steps)) or save(result, path)
        )
        shell("resume", "a.nc", "--steps", 6, "--checkpoint", 2, "--out", "longer.nc")
    assert [steps for name, steps in kept if "checkpoint" in name] == [4, 6, 8, 10]
    assert load("longer.nc") == WassersteinFlow(16)(PROBLEM.with_steps(10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "longer.nc"]


def test_messages_speak_of_flags_and_commands():
    flags, commands = words.flags_of(next(c for c in cli.COMMANDS if c.__name__ == "Flow")), {"CausalDMFT": "dmft"}
    assert flags["particles"] == "--solver.particles"
    assert flags["gamma0"] == "--gamma0"
    assert "seed" not in flags  # of the data and of the solver
    for said, told in (
        ("take dtype='float32', or CausalDMFT", "take --solver.dtype float32, or `meanfield dmft`"),
        ("balanced=False helps", "--solver.no-balanced helps"),
        ("unknown dtype: received 'half'", "--solver.dtype: unknown dtype: received 'half'"),
        ("lower learning_rate", "lower --training.learning-rate"),
        ("run.nc holds Solution(CausalDMFT, steps=3)", "run.nc holds Solution(CausalDMFT, steps=3)"),
    ):
        assert words.in_shell(said, flags, commands) == told


def test_warnings_take_one_line_and_surprises_no_traceback(shell, monkeypatch):
    flow = next(c for c in cli.COMMANDS if c.__name__ == "Flow")
    monkeypatch.setitem(
        cli.COMMANDS, flow, lambda asked: print(warnings.formatwarning("two\nlines", UserWarning, "a", 1), end="")
    )
    assert shell(*FLOW, "--out", "a.nc")[0] == "meanfield: warning: two lines\n"
    monkeypatch.setitem(cli.COMMANDS, flow, lambda asked: {}["key"])
    assert "unexpected KeyError: 'key'" in shell(*FLOW, "--out", "a.nc", code=1)[1]


@pytest.mark.processes
def test_pipes_that_break_and_ascii_terminals(tmp_path):
    run = f"{shlex.quote(sys.executable)} -W error -m solvers.command_line.main"
    inner = f"({run}; echo $? > {shlex.quote(str(tmp_path / 'status'))}) | true"
    done = subprocess.run(
        ["bash", "-c", inner], env=environment() | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert (tmp_path / "status").read_text().strip() in ("0", "141")
    wrong = subprocess.run(
        [*shlex.split(run), "flow", "--help"], env=environment() | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert wrong.returncode == 0
    assert wrong.stderr == b""


def test_own_pieces_are_imported_before_flags_are_read(shell, tmp_path):
    (tmp_path / "mypieces.py").write_text(
        "import torch, meanfield as mf\n"
        "mf.register_activation(mf.Activation('bump_of_a_shell', lambda h: torch.exp(-h * h), lambda h: -2 * h * torch.exp(-h * h)))\n"
    )
    shell(*FLOW, "--out", "a.nc", "--import", "mypieces", "--network.activation", "bump_of_a_shell")
    assert load("a.nc").problem.perceptron.activation.name == "bump_of_a_shell"
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert "--import broken: ZeroDivisionError" in shell("--import", "broken", *FLOW, "--out", "b.nc", code=2)[1]


def test_examples_are_listed_and_run(shell, tmp_path):
    out, _ = shell("examples")
    assert "own_network" in out
    assert len(out.splitlines()) > 20
    assert "unknown example: received 'nothing'" in shell("examples", "nothing", code=2)[1]
    shell("examples", "scaling_plane", "--quick")
    assert list((tmp_path / "out" / "scaling_plane").glob("*.png"))


def test_shells_complete_commands(shell):
    assert "fluctuations" in shell("completion", "bash")[0]
    assert "completion needs a shell" in shell("completion", "fish", code=2)[1]
