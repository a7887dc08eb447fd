"""The shell beyond the flags of one command: what is printed by task, many values, files of flags, own pieces, words of errors."""

import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.files import storage
from meanfield.files.storage import load, opened
from meanfield.network import activations
from solvers import WassersteinFlow
from solvers.command_line import asking, config_files, overview, start_kernels, taking, words
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
    assert shell("--version")[0].startswith(f"meanfield {mf.__version__} ")


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


def _sample(takes):
    """Words that a flag takes, none of which TOML reads as something else than it is"""
    words = {bool: ["True"], int: ["-1", "12"], float: ["1e-3", "2"], str: ['a "b"\\c', "7", "True"]}[takes.kinds[-1]]
    return words if takes.many else words[:1]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_written_to_toml_and_read_back_equal(command, tmp_path):
    """With all its flags at once, as words: what they mean is left to the parser"""
    name, commands = command.__name__.lower(), {c.__name__.lower(): c for c in cli.COMMANDS}
    known = taking.flags_of(command)
    flags = {flag: ["False"] if takes.usual is True else _sample(takes) for flag, takes in known.items()}
    asked = taking.Taken(name, ["a b.nc", "7.nc"] if taking.files_of(command) else [], flags)
    assert taking.taken(asked.words(known), commands) == asked
    (tmp_path / "a.toml").write_text(config_files.to_toml(asked, commands), encoding="utf-8")
    again = config_files.from_toml(tmp_path / "a.toml", commands)
    same = {flag: _plain(values, known[flag]) for flag, values in asked.flags.items()}
    assert {flag: _plain(values, known[flag]) for flag, values in again.flags.items()} == same
    assert (again.command, again.files) == (asked.command, asked.files)
    table = tomllib.loads((tmp_path / "a.toml").read_text(encoding="utf-8"))
    assert table.get("overwrite", True) is True


def _plain(values, takes):
    """0.001 and 1e-3 are the same number"""
    return [float(v) for v in values] if takes.kinds[-1] is float else values


def test_flags_taken_apart_are_those_of_the_parser():
    """Each flag that is offered is one that `taking` knows, and the other way round"""
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as told:
            cli.main([command.__name__.lower(), "--help"])
        offered = set(re.findall(r"(?<![\w-])--((?!no-|help)[\w.-]+)", re.sub(r"\x1b\[[0-9;]*m", "", told.getvalue())))
        known = taking.flags_of(command)
        assert {flag for flag in known if flag not in offered} == set(), command
        assert all(takes.pair for flag, takes in known.items() if f"--{flag} | --no-" in told.getvalue())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('out = "a.nc"', 'no command: write e.g. command = "flow" at its top'),
        ('command = "flo"', "unknown command: received 'flo'; did you mean flow? known: flow, dmft"),
        ("command = 3", "unknown command: received 3 known: flow"),
        ('command = "flow"\nouts = "a.nc"', "outs is no setting of flow: did you mean out?"),
        (
            'command = "flow"\n[solver]\nparticels = 8',
            "solver.particels is no setting of flow: did you mean particles?",
        ),
        ('command = "flow"\nsteps = 8', "steps is no setting of flow: steps stands in [training]; the top has"),
        ('command = "flow"\n[model]\ndepth = 8', "model is no setting of flow"),
        ('command = "flow"\ntraining = 8', "training is a table, [training]: received 8"),
        (
            'command = "flow"\n[solver]\nparticles = 64.5',
            "solver.particles must be a whole number: received 64.5; write e.g. particles = 8",
        ),
        ('command = "flow"\n[solver]\nparticles = "many"', "solver.particles must be a whole number: received 'many'"),
        (
            'command = "flow"\n[solver]\nparticles = [8, 16]',
            "solver.particles must be a whole number: received [8, 16]",
        ),
        ('command = "flow"\n[solver]\nbalanced = "no"', "solver.balanced must be true or false: received 'no'"),
        ('command = "flow"\n[network]\nactivation = true', 'must be a text in quotes, "...": received true'),
        ('command = "flow"\n[data]\nclasses = [0, "one"]', "data.classes must be a list of whole numbers"),
        ('command = "flow"\ngamma0 = "x"', "gamma0 must be a number: received 'x'; write e.g. gamma0 = 0.5"),
        ('command = "flow"\nfiles = ["a.nc"]', "flow takes no files"),
        ("command = flow", "no TOML"),
    ],
)
def test_what_a_config_says_wrong_is_named(shell, tmp_path, content, message):
    Path("a.toml").write_text(content)
    _, err = shell("--config", "a.toml", code=2)
    assert err.startswith("meanfield: --config a.toml")
    assert message in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.toml"]


def test_whole_floats_and_switches_that_are_off_are_taken_from_a_config(shell):
    tiny = 'out = "a.nc"\ngamma0 = 2\noverwrite = false\n[data]\nname = "single-index"\nn_train = 5.0\nn-test = 3\ninputs = 3\n'
    Path("a.toml").write_text(f"{tiny}[training]\nsteps = 4.0\n[solver]\nparticles = 16.0\nbalanced = true\n")
    shell("flow", "--config", "a.toml")
    assert load("a.nc") == WassersteinFlow(16)(replace(PROBLEM, scaling=mf.mean_field(2)))
    assert "is no setting of lazy" in shell("lazy", "--config", "a.toml", "--out", "b.nc", code=2)[1]


def test_files_after_flags_stay_files(shell):
    """Those of a command that named them last are kept by rerun and in TOML"""
    commands = {c.__name__.lower(): c for c in cli.COMMANDS}
    words = ["compare", "--limits", "a.nc", "b.nc", "--predict", "--out=c.nc", "nets", "more"]
    assert taking.files_first(["plot", "--steps", "0", "-1", "a.nc", "--json"], commands) == [
        *["plot", "a.nc", "--steps", "0", "-1", "--json"]
    ]
    found = taking.taken(words, commands)
    assert found.files == ["nets", "more"]
    assert found.flags == {"limits": ["a.nc", "b.nc"], "predict": ["True"], "out": ["c.nc"]}
    other = asking._joined(["--out", "d.nc", "--no-predict", "--vary", "names", "f", "loss"], found, commands)
    assert other == [
        "compare",
        "nets",
        "more",
        "--limits",
        "a.nc",
        "b.nc",
        "--out",
        "d.nc",
        "--vary",
        "names",
        "f",
        "loss",
    ]


def test_folders_are_shown_run_again_and_gone_on_with(shell, tmp_path):
    shell("sweep", *TINY, "--widths", 4, "--seeds", 2, "--out", "nets")
    assert shell("show", "nets")[0].count("  command  meanfield sweep") == 2
    assert 'command = "sweep"' in shell("show", "nets", "--toml")[0]
    shell("rerun", "nets", "--out", "again", "--seeds", 1)
    assert [load(p) for p in (tmp_path / "again").iterdir()] == [load("nets/width000004_seed0000.nc")]
    assert "nets holds no run that is not finished" in shell("resume", "nets", code=2)[1]
    run = WassersteinFlow(8)(PROBLEM)
    mf.save(replace(run, problem=PROBLEM.with_steps(6)), "nets/a.partial.nc")
    shell("resume", "nets")
    assert load("nets/a.nc") == WassersteinFlow(8)(PROBLEM.with_steps(6))
    for name in "bc":
        mf.save(replace(run, problem=PROBLEM.with_steps(7)), f"nets/{name}.partial.nc")
    told = shell("resume", "nets", code=2)[1]
    assert "nets holds 2 runs that are not finished" in told
    assert "nets/b.partial.nc, nets/c.partial.nc" in told
    assert "results of 3 commands" in shell("rerun", "nets", "--out", "more", code=2)[1]
    (tmp_path / "empty").mkdir()
    assert "a folder without results" in shell("rerun", "empty", "--out", "more", code=2)[1]


REFUSED = {
    "vary": [*FLOW, "--vary", "gamma0", 1, -2, "--out", "a/b"],
    "vary, by the solver": [*FLOW, "--network.depth", 2, "--vary", "gamma0", 1, 2, "--out", "a/b"],
    "vary, dry": None,
    "sweep": ["sweep", *TINY, "--solver.snapshots", 9, "--out", "a/b"],
    "plot": ["plot", "run.nc", "--samples", 99, "--out", "a/b"],
    "plot of a layer": ["plot", "run.nc", "--layer", 9, "--out", "a/b"],
    "resume": ["resume", "run.nc", "--steps", 2, "--checkpoint", 1, "--out", "other.nc"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(shell, tmp_path, case):
    mf.save(WassersteinFlow(8)(PROBLEM), "run.nc")
    mf.save(WassersteinFlow(4)(PROBLEM), "other.nc")
    dry = case == "vary, dry"
    shell(*(REFUSED[case] or [*FLOW, "--vary", "gamma0", 1, 2, "--out", "a/b", "--dry-run"]), code=0 if dry else 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.nc", "run.nc"]


@pytest.fixture
def drawn(monkeypatch):
    """Names of pictures, which are not written"""
    names = []
    monkeypatch.setattr(mf.plot, "save", lambda axes, path, dpi: names.append(path.name))
    yield names
    plt.close("all")


def test_plot_takes_runs_and_reports_together_and_flags_that_serve(shell, drawn):
    flow, noisy = (
        WassersteinFlow(8)(PROBLEM),
        replace(PROBLEM, training=mf.Training(0.1, 60, temperature=1.0, weight_decay=1.0)),
    )
    mf.save(flow, "limit.nc")
    mf.save(mf.spectrum(mf.nngp_and_ntk(mf.Network(), mf.ntk(), PROBLEM.data.x)[1], PROBLEM.data.y), "s.nc")
    shell("plot", "limit.nc", "s.nc", "--samples", 0)
    assert {"limit_loss.png", "s_spectrum.png"} <= {*drawn}
    for flag in ("steps", "samples", "layer"):
        told = shell("plot", "s.nc", f"--{flag}", 0, code=2)[1]
        assert f"--{flag} does not belong to pictures of a KernelSpectrum: leave it out; they take --labels" in told
    assert (
        "--labels takes one value for a report: received a b" in shell("plot", "s.nc", "--labels", "a", "b", code=2)[1]
    )
    bare = WassersteinFlow(8, snapshots=())(PROBLEM)
    mf.save(bare, "bare.nc")
    assert "--labels must name each of what is told apart" in shell("plot", "limit.nc", "--labels", "a", "b", code=2)[1]
    shell("plot", "--samples", 0, 1, "limit.nc")
    assert "--steps does not belong to pictures of runs" in shell("plot", "bare.nc", "--steps", 0, code=2)[1]
    run = WassersteinFlow(8)(noisy)
    mf.save(run, "noisy.nc")
    mf.save(mf.stationary([run]), "means.nc")
    assert "no picture without the runs it is of" in shell("plot", "means.nc", code=2)[1]
    drawn.clear()
    shell("plot", "means.nc", "noisy.nc")
    assert "means_stationary.png" in drawn


def test_kernels_at_the_start_are_shown_drawn_and_made_again(shell, drawn, tmp_path):
    shell("nngp", *TINY, "--out", "k.npz")
    told = shell("show", "k.npz")[0]
    assert "kernels at the start between 8 samples, 5 of them for training" in told
    assert "command  meanfield nngp" in told
    assert json.loads(shell("show", "k.npz", "--json")[0])["arrays"]["ntk"]["shape"] == [8, 8]
    shell("report", "k.npz", "--out", "k.html")
    shell("plot", "k.npz")
    assert drawn == ["k_kernels.png"]
    assert "--layer does not belong to pictures of a StartKernels" in shell("plot", "k.npz", "--layer", 1, code=2)[1]
    shell("rerun", "k.npz", "--out", "again.npz")
    with np.load("k.npz") as one, np.load("again.npz") as other:
        np.testing.assert_array_equal(one["ntk"], other["ntk"])
    shell("nngp", "--data.classes", 3, 8, "--data.n-train", 4, "--data.n-test", 2, "--out", "digits.npz")
    assert start_kernels.load(tmp_path / "digits.npz").data.classes == mf.digits((3, 8)).classes
    np.savez("data.npz", x=np.eye(2), y=np.ones(2))
    assert "data.npz has no nngp, ntk" in shell("show", "data.npz", code=2)[1]
    np.savez("pickled.npz", nngp=np.array([{}]))
    assert "no intact .npz archive of plain arrays" in shell("show", "pickled.npz", code=2)[1]


def test_networks_that_are_none_name_the_flag(shell, tmp_path):
    (tmp_path / "broken_nets.py").write_text("1 / 0\n")
    told = shell("dmft", *TINY, "--network", "broken_nets:Net", "--out", "a.nc", code=2)[1]
    assert "--network broken_nets:Net: 'broken_nets' fails: ZeroDivisionError" in told
    for named in ("os:path", "os:sep", "os:getcwd"):
        assert (
            f"meanfield: --network{f' {named}' if named != 'os:getcwd' else ''} "
            in shell("dmft", *TINY, "--network", named, "--out", "a.nc", code=2)[1]
        )


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


def test_own_pieces_are_imported_before_flags_are_read(shell, tmp_path, monkeypatch):
    (tmp_path / "mypieces.py").write_text(
        "import torch, meanfield as mf\n"
        "mf.register_activation(mf.Activation('bump_of_a_shell', lambda h: torch.exp(-h * h), lambda h: -2 * h * torch.exp(-h * h)))\n"
    )
    shell(*FLOW, "--out", "a.nc", "--import", "mypieces", "--network.activation", "bump_of_a_shell")
    assert load("a.nc").problem.perceptron.activation.name == "bump_of_a_shell"
    with monkeypatch.context() as patch:
        patch.setattr(activations, "_KNOWN", {k: v for k, v in activations._KNOWN.items() if "bump" not in k})
        for command in (["plot", "a.nc"], ["rerun", "a.nc", "--out", "b.nc"], ["resume", "a.nc", "--steps", 1]):
            told = shell(*command, code=2)[1]
            assert "unknown activation: received 'bump_of_a_shell'; known: " in told
            assert "give --import MODULE, which registers it" in told
        assert "give --import MODULE" in shell("show", "a.nc")[0] or "register_activation" in shell("show", "a.nc")[0]
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
