"""The command `meanfield`: flags are the library's fields, files its results, and what fails says so in its words."""

import inspect
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.checking import own_numerics
from meanfield.files import storage
from meanfield.files.storage import load
from meanfield.network import activations
from meanfield.problem import losses
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    TangentKernelLimit,
    WassersteinFlow,
    predicted_bias,
    predicted_variance,
    width_for,
    width_sweep,
)
from solvers.command_line import main as cli
from solvers.command_line.main import main
from solvers.running import checkpoints
from tests.running import environment

matplotlib.use("Agg")

TINY = shlex.split("--data single-index --data.n-train 5 --data.n-test 3 --data.inputs 3 --training.steps 4")
DATA = mf.single_index_teacher(n_train=5, n_test=3, inputs=3)
PROBLEM = mf.Problem(DATA, training=mf.Training(steps=4))

NOT_SOLVING = {"Compare", "Plot", "Report", "Show", "Examples", "Demo"}  # commands


def _run(capsys, *arguments, code=0):
    """(stdout, stderr) of a command that must end with `code`"""
    capsys.readouterr()
    found = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def test_flow_is_the_library_s_run(capsys, tmp_path):
    path = tmp_path / "run.nc"
    out, _ = _run(capsys, "flow", "--out", path, *TINY, "--solver.particles", 16)
    solution = WassersteinFlow(particles=16)(PROBLEM)
    assert load(path) == solution
    assert str(solution) in out
    assert f"s, kept in {path}" in out


@pytest.fixture
def asked(monkeypatch):
    """What a command was asked, without doing it"""
    received = []
    monkeypatch.setattr(cli, "COMMANDS", dict.fromkeys(cli.COMMANDS, received.append))

    def of(text):
        assert main(shlex.split(text)) == 0
        return received.pop()

    return of


def test_all_flags_arrive(asked):
    found = asked(
        "flow --out run.nc --data digits --data.classes 3 5 --data.n-train 6 --data.n-test 0 --data.seed 2 --data.one-hot True "
        "--loss cross_entropy --network.activation gelu --network.weight-std 1.5 --network.bias-std 0.5 --scaling mean_field "
        "--gamma0 0.5 --training.learning-rate 0.05 --training.steps 3 --training.optimiser gradient_flow --solver.particles 12 "
        "--solver.seed 4 --solver.initial iid --solver.no-balanced --solver.engine chunked --solver.dtype float32 "
        "--solver.snapshots 1 2 -1 --solver.rtol 1e-3 --overwrite"
    )
    assert found.problem == mf.Problem(
        mf.digits((3, 5), 6, 0, seed=2, one_hot=True),
        mf.Network(1, "gelu", 1.5, 0.5),
        mf.mean_field(0.5),
        mf.Training(0.05, 3, "gradient_flow"),
        "cross_entropy",
    )
    given = dict(engine="chunked", dtype="float32", device="cpu", snapshots=(1, 2, -1), rtol=1e-3)
    assert found.solver == WassersteinFlow(12, 4, "iid", False, **given)
    assert (found.out, found.overwrite) == (Path("run.nc"), True)


def test_nothing_asked_means_the_library_s_defaults(asked):
    found = asked("sweep --out nets")
    assert found.problem == mf.Problem(mf.digits())
    assert found.solver == FiniteWidth()
    takes = inspect.signature(width_sweep).parameters
    assert (found.widths, found.seeds) == (takes["widths"].default, (takes["seeds"].default,))
    assert asked("flow --out run.nc").solver == WassersteinFlow()
    net = asked("net --out run.nc")
    assert (net.width, net.seed) == (FiniteWidth().width, FiniteWidth().seed)


def test_every_kind_of_data(asked, tmp_path):
    table, arrays = tmp_path / "table.csv", tmp_path / "arrays.npz"
    table.write_text("a,b,c\n1,2,3\n4,5,7\n7,8,8\n")
    np.savez(arrays, x=np.eye(3), y=np.ones(3))
    for options, data in (
        ("digits --data.classes 0 1 2 --data.n-train 4", mf.digits((0, 1, 2), 4)),
        (f"file --data.path {arrays}", mf.from_file(arrays)),
        (f"file --data.path {table} --data.targets 2 --data.n-test 1", mf.from_file(table, 2, 1)),
        (f"file --data.path {table} --data.targets a c", mf.from_file(table, ("a", "c"))),
        ("mixture --data.classes 3 --data.separation 1", mf.gaussian_mixture(classes=3, separation=1.0)),
        ("single-index --data.noise 0.1 --data.link relu", mf.single_index_teacher(noise=0.1, link="relu")),
        ("multi-index --data.directions 3 --data.inputs 4", mf.multi_index_teacher(inputs=4, directions=3)),
    ):
        assert asked(f"flow --out run.nc --data {options}").problem.data == data, options


def test_net_of_any_depth_and_scaling(capsys, tmp_path):
    options = shlex.split(
        "--network.depth 3 --network.residual 0.5 --scaling ntk --width 6 --seed 2 --solver.no-keep-neurons"
    )
    _run(capsys, "net", "--out", tmp_path / "net.nc", *TINY, *options)
    problem = replace(PROBLEM, network=mf.Network(3, residual=0.5), scaling=mf.ntk())
    assert load(tmp_path / "net.nc") == FiniteWidth(6, 2, keep_neurons=False)(problem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--network.activation tan",
            "--network.activation: unknown activation: received 'tan'; known: {activations}",
        ),
        ("--loss hinge", "unknown loss: received 'hinge'; known: {losses}"),
        (
            "--scaling mup",
            "unknown scaling: received 'mup'; known: ",
        ),
        ("--frozen matched", "--frozen does not belong to --scaling mean_field"),
        ("--scaling ntk", "--scaling ntk has another limit: this command takes mean_field"),
        ("--gamma0 -1", "--gamma0 must be positive and finite: received -1.0; give e.g. --gamma0 1.0"),
        ("--training.learning-rate 0", "--training.learning-rate must be positive and finite: received 0.0"),
        ("--training.optimiser lion", "unknown optimiser: received 'lion'; known: gradient_descent"),
        ("--training.optimiser adam(beta3=0.8)", "optimiser: adam takes beta1, beta2, epsilon, each once: received"),
        ("--network.depth 2", "solves networks of depth 1: received depth 2"),
        ("--solver.dtype half", "unknown dtype: received 'half'; known: float32, float64"),
        ("--solver.device tpu", "device"),
        ("--solver.engine fast", "unknown engine: received 'fast'"),
        ("--solver.snapshots 9", r"snapshots must lie in 0..4"),
        ("--solver.particles 1000000000000", "take fewer particles"),
        ("--data images", "unknown data: received 'images'; known: digits, file"),
        ("--data mynets:stream", "--data mynets:stream: the shell has no streams and takes no data from code"),
        (
            "--data.separation 2",
            "--data.separation does not belong to --data single-index: leave it out, or take --data mixture",
        ),
        ("--data file --data.path no.csv", "does not belong to --data file"),
        ("--data file", "does not belong to --data file"),
        ("--data mixture --frozen matched", "--frozen does not belong to --scaling mean_field: leave it out, or take"),
        ("--data mixture --data.classes 2 3", "--data.classes is one number for --data mixture: received (2, 3)"),
    ],
)
def test_bad_values_are_refused_in_the_library_s_words(capsys, tmp_path, arguments, message):
    out, err = _run(capsys, "flow", "--out", tmp_path / "run.nc", *TINY, *arguments.split(), code=2)
    message = message.format(activations=", ".join(activations.names()), losses=", ".join(losses.names()))
    assert err.startswith("meanfield: ")
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("bad.csv", "a,y\n1,2\n", "--data.targets y y", "bad.csv: targets names a column twice: received 'y', 'y'"),
        ("bad.csv", "a,y\n1,2\n", "--data.targets 2", "bad.csv: --data.targets 2 does not fit its 2 columns"),
        (
            "bad.csv",
            "a,y\n1,2\n",
            "--data.n-test 1",
            "bad.csv: --data.n-test 1 leaves no training sample of the 1 rows",
        ),
        ("bad.csv", "a,y,y\n1,2,2\n", "", "bad.csv: the header names the column 'y' twice"),
        ("bad.csv", "a;y\n1;2,5\n", "", "bad.csv: line 2, column 'y': received '2,5'; write numbers as 1234.5"),
        ("bad.csv", "a,y\n1,?\n", "", "bad.csv: line 2, column 'y': received '?'; a value is missing"),
        ("bad.csv", "# made by hand\na,y\n1,2\n", "", "bad.csv: line 1 is a comment"),
        ("bad.csv", "1,2\n3,4\n", "", "bad.csv: no header line"),
        ("bad.csv", "", "", "bad.csv: no data"),
        ("bad.npz", "", "", "bad.npz: no intact .npz archive"),
        ("bad.npz", "", "--data.targets y", "targets=('y',) belongs to files of columns"),
        ("bad.txt", "a,y\n1,2\n", "", "cannot read bad.txt: the ending is '.txt'; known: .npz, .csv"),
        ("bad.csv", "a,y\n1,2\n", "--loss logistic", "labels must be -1 or +1"),
    ],
)
def test_data_files_that_cannot_be_read_end_with_2_and_one_line(capsys, tmp_path, name, content, options, message):
    path = tmp_path / name
    path.write_text(content)
    asked = ["--data", "file", "--data.path", path, *options.split()]
    out, err = _run(capsys, "flow", "--out", tmp_path / "run.nc", *asked, code=2)
    assert message in err
    assert err.startswith("meanfield: ")
    assert err.count("\n") == 1
    assert not out
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_no_data_files(capsys, tmp_path):
    asked = ["flow", "--out", tmp_path / "run.nc", "--data", "file", "--data.path"]
    assert f"{tmp_path} is a folder: give the file itself, .npz, .csv" in _run(capsys, *asked, tmp_path, code=2)[1]
    assert "no such file" in _run(capsys, *asked, tmp_path / "no.csv", code=2)[1]
    assert "--data file needs --data.path" in _run(capsys, *asked[:-1], code=2)[1]


def test_every_command_that_solves_runs_on_the_threads_it_is_given(capsys, tmp_path, monkeypatch):
    solving = [kind for kind in cli.COMMANDS if kind.__name__ not in NOT_SOLVING]
    assert all("threads" in {f.name for f in fields(kind)} for kind in solving)
    before = torch.get_num_threads()
    for other in (before + 1, before + 2):
        out = tmp_path / f"{other}.nc"
        _run(capsys, "flow", "--out", out, "--solver.particles", 64, "--threads", other, *TINY)
        assert load(out).stats["threads"] == other
        assert torch.get_num_threads() == before
    more = ("resume", tmp_path / f"{other}.nc", "--steps", 1, "--out", tmp_path / "more.nc", "--threads", other)
    _run(capsys, *more)  # without the warning of another number
    seen = []
    monkeypatch.setenv("MEANFIELD_TRACEBACK", "1")
    flow = next(kind for kind in solving if kind.__name__ == "Flow")
    monkeypatch.setitem(cli.COMMANDS, flow, lambda asked: seen.append(torch.get_num_threads()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(a) for a in ("flow", "--out", tmp_path / "no.nc", "--threads", other, *TINY)])
    assert (seen, torch.get_num_threads()) == ([other], before)
    _, err = _run(capsys, "flow", "--out", tmp_path / "no.nc", "--threads", 0, *TINY, code=2)
    assert "threads must be at least 1: received 0" in err
    monkeypatch.setattr(own_numerics.os, "cpu_count", lambda: 3)
    _, err = _run(capsys, "flow", "--out", tmp_path / "no.nc", "--threads", 13, *TINY, code=2)
    assert "threads must be at most 12, four for each of 3 cores: received 13; leave it out for one each" in err


def test_bad_flags_end_with_2(capsys):
    for arguments in (["flow"], ["fly"], ["flow", "--out", "a.nc", "--training.steps", "many"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "--training.steps" in capsys.readouterr().err


@pytest.fixture
def solve_nothing(monkeypatch):
    monkeypatch.setenv("MEANFIELD_TRACEBACK", "1")

    def refuse(*arguments, **keywords):
        raise AssertionError("a run was started")

    monkeypatch.setattr(WassersteinFlow, "_run", refuse)
    monkeypatch.setattr(FiniteWidth, "_train", refuse)


def test_bad_outputs_are_refused_before_the_run(capsys, tmp_path, solve_nothing):
    (tmp_path / "file").write_text("")
    (tmp_path / "text.nc").write_text("no netCDF")
    for command, path, message in (
        ("flow", tmp_path / "run.h5", "end in .nc"),
        ("flow", tmp_path / "missing" / "run.nc", "does not exist: create"),
        ("net", tmp_path, "end in .nc"),
        ("flow", tmp_path / "text.nc", "truncated or no netCDF-4 file"),
    ):
        assert message in _run(capsys, command, "--out", path, *TINY, code=2)[1]
    assert "is a file: give a folder" in _run(capsys, "sweep", "--out", tmp_path / "file", *TINY, code=2)[1]
    with pytest.raises(AssertionError, match="a run was started"):
        main(["flow", "--out", str(tmp_path / "run.nc"), *TINY])


def test_another_run_is_not_overwritten(capsys, tmp_path, monkeypatch):
    path, settings = tmp_path / "run.nc", [*TINY, "--solver.particles", 8]
    _run(capsys, "flow", "--out", path, *settings)
    first = path.read_bytes()
    for other in (["--solver.seed", 1], ["--gamma0", 2.0]):
        message = _run(capsys, "flow", "--out", path, *settings, *other, code=2)[1]
        assert f"{path} holds another run, Solution(WassersteinFlow, steps=4" in message
        assert "--overwrite" in message
    with monkeypatch.context() as patch:
        patch.setattr(WassersteinFlow, "_run", None)  # calling it would be a TypeError
        assert "already kept in" in _run(capsys, "flow", "--out", path, *settings)[0]
    assert path.read_bytes() == first
    _run(capsys, "flow", "--out", path, *settings, "--solver.seed", 1, "--overwrite")
    assert load(path).solver["seed"] == 1


def test_a_run_that_blows_up_keeps_what_it_has(capsys, tmp_path):
    wild = [*TINY, "--network.activation", "linear", "--training.learning-rate", 1e6, "--training.steps", 300]
    _, err = _run(capsys, "flow", "--out", tmp_path / "run.nc", *wild, "--solver.particles", 8, code=1)
    assert "lower --training.learning-rate" in err
    assert "It happened at step" in err
    assert f"kept in {tmp_path / 'run.partial.nc'}" in err
    assert [p.name for p in tmp_path.iterdir()] == ["run.partial.nc"]
    kept = load(tmp_path / "run.partial.nc")
    assert kept.status is mf.Status.DIVERGED
    assert torch.isfinite(kept.f).all()
    _run(capsys, "net", "--out", tmp_path / "run.nc", *wild, "--width", 4, code=1)
    assert load(tmp_path / "run.partial-2.nc").solver["name"] == "FiniteWidth"  # the first one stays
    assert "lower learning rate" in _run(capsys, "resume", tmp_path / "run.partial.nc", code=2)[1]


_INTERRUPTED = """
import os, signal, sys
from solvers.command_line import main as cli
from solvers.two_layer.measure_flow import MeasureFlow

backward, calls = MeasureFlow.backward, []

def then_interrupt(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return backward(*arguments)

MeasureFlow.backward = then_interrupt
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.processes
def test_ctrl_c_keeps_the_run_and_resume_ends_it(capsys, tmp_path):
    settings = ["--out", str(tmp_path / "run.nc"), *TINY, "--solver.particles", "16"]
    command = [sys.executable, "-W", "error", "-c", _INTERRUPTED, "flow", *settings]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert run.returncode == 130, run.stderr
    partial = tmp_path / "run.partial.nc"
    assert f"go on with: meanfield resume {partial}" in run.stderr
    assert "Traceback" not in run.stderr
    kept = load(partial)
    assert kept.status is mf.Status.INTERRUPTED
    assert kept.steps == 3
    out, _ = _run(capsys, "resume", partial)
    assert f"kept in {tmp_path / 'run.nc'}" in out
    assert load(tmp_path / "run.nc") == WassersteinFlow(particles=16)(PROBLEM)


def test_ctrl_c_before_the_first_step(capsys, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(WassersteinFlow, "check", interrupt)
    assert "interrupted" in _run(capsys, "flow", "--out", tmp_path / "run.nc", *TINY, code=130)[1]
    assert not list(tmp_path.iterdir())


def test_resume_for_more_steps(capsys, tmp_path):
    path, longer = tmp_path / "net.nc", tmp_path / "longer.nc"
    _run(capsys, "net", "--out", path, *TINY, "--width", 4)
    assert "is finished after 4 steps: give --steps" in _run(capsys, "resume", path, code=2)[1]
    assert "give --out FILE" in _run(capsys, "resume", path, "--steps", 3, code=2)[1]
    assert "holds another run" in _run(capsys, "resume", path, "--steps", 3, "--out", path, code=2)[1]
    _run(capsys, "resume", path, "--steps", 3, "--out", longer)
    assert load(longer) == FiniteWidth(4)(PROBLEM.with_steps(7))
    _run(capsys, "resume", path, "--steps", 3, "--out", path, "--overwrite")
    assert load(path) == load(longer)
    assert "no such file" in _run(capsys, "resume", tmp_path / "no.nc", code=2)[1]
    given = WassersteinFlow(initial=mf.ParticleMeasure.iid(4, 3))
    mf.save(given(PROBLEM), tmp_path / "given.nc")
    assert "go on from there" in _run(capsys, "resume", tmp_path / "given.nc", "--steps", 1, "--out", longer, code=2)[1]


def test_fluctuations_are_predicted_kept_and_compared(capsys, tmp_path):
    out, width, nets = tmp_path / "found.nc", tmp_path / "width.nc", tmp_path / "nets"
    sizes = ["--particles", 64, "--groups", 2, "--draws", 3, "--observed", "f", "--steps", 2, -1]
    ask = ["fluctuations", "--out", out, *TINY, *sizes, "--bias"]
    assert "about" in _run(capsys, *ask, "--dry-run")[0]
    assert not out.exists()
    told, _ = _run(capsys, *ask)
    variance = predicted_variance(PROBLEM, 64, groups=2, observed=("f",), steps=(2, -1))
    bias = predicted_bias(PROBLEM, draws=3, observed=("f",), steps=(2, -1))
    assert [load(out), load(tmp_path / "found.bias.nc")] == [variance, bias]
    assert str(variance) in told
    assert str(bias) in told
    assert "is there already" in _run(capsys, *ask, code=2)[1]

    given = ["--variance", out, "--bias", tmp_path / "found.bias.nc"]
    told, _ = _run(capsys, "width", "--out", width, *TINY, "--error", 0.5, *given)
    assert load(width) == width_for(PROBLEM, 0.5, variance=variance, bias=bias)
    assert "for 50.00% of the limit by one network" in told
    assert "another problem" in _run(capsys, "width", "--out", tmp_path / "no.nc", *given, code=2)[1]
    wrong = ["width", "--out", tmp_path / "no.nc", *TINY, "--variance", width]
    assert "width.nc holds a WidthFor: a PredictedVariance is needed here" in _run(capsys, *wrong, code=2)[1]

    _run(capsys, "sweep", "--out", nets, *TINY, "--widths", 4, 8, "--seeds", 3)
    limit = mf.save(WassersteinFlow(32)(PROBLEM), tmp_path / "limit.nc")
    compare = ["compare", nets, "--limits", limit, "--out", tmp_path / "report.nc", *given]
    told, _ = _run(capsys, *compare)
    assert "N Var of f at steps 2 4: predicted" in told
    assert "leave one of them out" in _run(capsys, *compare, "--predict", "--overwrite", code=2)[1]
    for path, pictures in (
        (out, {"found_f"}),
        (width, {"width_width"}),
        (tmp_path / "found.bias.nc", {"found.bias_f"}),
    ):
        drawn = {Path(line).stem for line in _run(capsys, "plot", path)[0].split()}
        assert drawn == pictures
    assert "report_predictions.png" in _run(capsys, "plot", tmp_path / "report.nc")[0]


def test_fluctuations_estimate_narrow_networks_and_refuse_a_bias_before_the_variance(capsys, tmp_path):
    flow = ["fluctuations", "--out", tmp_path / "found.nc", *TINY, "--training.optimiser", "gradient_flow"]
    assert "about" in _run(capsys, *flow, "--networks", 40, "--width", 4, "--dry-run")[0]
    assert "draws must be at least 2: received 1" in _run(capsys, *flow, "--bias", "--draws", 1, code=2)[1]
    assert not list(tmp_path.iterdir())


PNG = b"\x89PNG\r\n\x1a\n"


def test_sweep_compare_plot(capsys, tmp_path, monkeypatch):
    nets, report = tmp_path / "nets", tmp_path / "report.nc"
    sweep = ["sweep", "--out", nets, *TINY, "--widths", 4, 8]
    out, _ = _run(capsys, *sweep, "--seeds", 2)
    assert "width 8: 2 networks, final loss" in out
    assert f"kept in {nets}" in out
    kept = [load(path) for path in sorted(nets.glob("*.nc"))]
    assert kept == [net for width in (4, 8) for net in FiniteWidth(width).ensemble(PROBLEM, 2)]

    limits = [mf.save(WassersteinFlow(32, seed)(PROBLEM), tmp_path / f"limit{seed}.nc") for seed in (0, 1)]
    compare = ["compare", nets, "--limits", *limits, "--out", report, "--names", "f", "loss", "--predict"]
    out, _ = _run(capsys, *compare)
    found = load(report)
    assert found == mf.deviation(kept, [load(p) for p in limits], ("f", "loss"), predicted_variance(PROBLEM))
    assert found.table() in out
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)
    assert "is there already" in _run(capsys, *compare, code=2)[1]
    wrong = ["compare", nets, "--limits", report, "--out", tmp_path / "other.nc"]
    assert "report.nc holds a DeviationReport: a run is needed here" in _run(capsys, *wrong, code=2)[1]
    none = ["compare", "--limits", *limits, "--out", tmp_path / "other.nc"]
    assert "no .nc files" in _run(capsys, *none, code=2)[1]

    out, _ = _run(capsys, "plot", report)
    pictures = [tmp_path / f"report_{name}.png" for name in ("deviation", "variance", "predictions")]
    assert out.split() == [str(picture) for picture in pictures]
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)

    drawn = []

    def draw(axes, path, dpi):  # writing eight pictures takes seconds
        drawn.append(path.name)
        plt.close(np.ravel(axes)[0].figure)

    monkeypatch.setattr(mf.plot, "save", draw)
    _run(capsys, "plot", limits[0], nets, "--out", tmp_path / "pictures")
    names = ("loss", "outputs", "test_loss", "Phi1", "G1", "tangent_kernel", "particles", "h1")
    assert drawn == [f"limit0_{name}.png" for name in names]
    (tmp_path / "empty").mkdir()
    assert "no .nc files in" in _run(capsys, "plot", tmp_path / "empty", code=2)[1]
    assert "give files" in _run(capsys, "plot", code=2)[1]


def test_a_sweep_goes_on_with_what_is_missing(capsys, tmp_path, monkeypatch):
    sweep = ["sweep", "--out", tmp_path, *TINY, "--widths", 4]
    _run(capsys, *sweep, "--seeds", 3, 5)
    trained, train = [], FiniteWidth._train

    def noting(solver, problem, seeds, *previous):
        trained.extend(seeds)
        return train(solver, problem, seeds, *previous)

    monkeypatch.setattr(FiniteWidth, "_train", noting)
    _run(capsys, *sweep, "--seeds", 3, 4, 5)
    assert trained == [4]
    assert len(list(tmp_path.glob("*.nc"))) == 3
    assert "holds another run" in _run(capsys, *sweep, "--seeds", 3, 4, "--gamma0", 2.0, code=2)[1]


def test_a_failed_sweep_ends_with_1(capsys, tmp_path):
    wild = ["--network.activation", "linear", "--training.learning-rate", 1e6, "--training.steps", 300]
    _, err = _run(capsys, "sweep", "--out", tmp_path, *TINY, *wild, "--widths", 4, "--seeds", 2, code=1)
    assert "2 of 2 networks failed" in err


@pytest.mark.slow
@pytest.mark.processes
def test_workers_train_the_same_networks(tmp_path):
    """In a process of its own: workers start by importing the main module. They share its threads, and train each network alone."""
    sweep = ["sweep", "--out", str(tmp_path), *TINY, "--widths", "4", "8", "--seeds", "2", "--workers", "2"]
    command = [sys.executable, "-m", "solvers.command_line.main", *sweep]
    subprocess.run(command, env=environment(threads=2 * torch.get_num_threads()), check=True, timeout=300)
    kept = [load(path) for path in sorted(tmp_path.glob("*.nc"))]
    assert kept == [FiniteWidth(width, seed)(PROBLEM) for width in (4, 8) for seed in (0, 1)]


def test_a_result_is_kept_elsewhere_if_the_disk_is_full(capsys, tmp_path, monkeypatch):
    save, elsewhere = storage.save, tmp_path / "temporary"
    elsewhere.mkdir()

    def full(result, path):
        if path.parent != elsewhere:
            raise OSError("no space left on device")
        return save(result, path)

    monkeypatch.setattr(storage, "save", full)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    with pytest.warns(UserWarning, match="no space left on device"):
        out, _ = _run(capsys, "flow", "--out", tmp_path / "run.nc", *TINY, "--solver.particles", 8, code=3)
    assert f"kept in {elsewhere / 'run.nc'}" in out
    assert load(elsewhere / "run.nc") == WassersteinFlow(8)(PROBLEM)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert (
        "nor could any other folder: free some space"
        in _run(capsys, "flow", "--out", tmp_path / "run.nc", *TINY, code=1)[1]
    )


@pytest.mark.processes
def test_the_command_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "solvers.command_line.main", "--help"]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0
    assert "usage: meanfield" in run.stdout
    assert not run.stderr


def test_dmft_and_its_certificate(capsys, tmp_path):
    out = tmp_path / "deep.nc"
    small = ("--data.n-train", "3", "--data.n-test", "0", "--training.steps", "4", "--solver.samples", "512")
    _run(capsys, "dmft", "--out", str(out), "--network.depth", "2", *small)
    assert load(out).problem.perceptron.depth == 2
    printed = _run(capsys, "certify", str(out))
    assert "Phi2" in str(printed)
    assert "consistent" in str(printed)


def test_the_other_limits_are_the_library_s_runs(capsys, tmp_path):
    data = mf.single_index_teacher(n_train=5, n_test=3, inputs=3)
    training = mf.Training(steps=4)
    cases = {
        "lazy --scaling ntk --solver.seed 3": (TangentKernelLimit(seed=3), mf.ntk(), "squared"),
        "fixedpoint --network.activation linear": (FixedPointDMFT(), mf.mean_field(), "squared"),
        "logits --scaling default --reference-width 4 --loss logistic --solver.particles 64": (
            InfiniteLogitsLimit(64),
            mf.default(4),
            "logistic",
        ),
        "flow --scaling ic_mean_field --gamma0 2 --reference-width 8 --frozen added --solver.particles 64": (
            WassersteinFlow(64),
            mf.ic_mean_field(2.0, 8, "added"),
            "squared",
        ),
    }
    for i, (arguments, (solver, scaling, loss)) in enumerate(cases.items()):
        signs = replace(data, y=data.y.sign(), y_test=data.y_test.sign()) if loss == "logistic" else data
        if loss == "logistic":
            np.savez(tmp_path / "signs.npz", x=signs.x, y=signs.y, x_test=signs.x_test, y_test=signs.y_test)
            where = ["--data", "file", "--data.path", str(tmp_path / "signs.npz"), "--training.steps", "4"]
        else:
            where = TINY
        out = tmp_path / f"{i}.nc"
        _run(capsys, *shlex.split(arguments), *where, "--out", out)
        network = mf.Network(1, "linear") if "linear" in arguments else mf.Network()
        expected = solver(mf.Problem(signs, network, scaling, training, loss))
        assert torch.equal(load(out).f, expected.f), arguments
    _, err = _run(capsys, "flow", *TINY, "--reference-width", "3", "--out", tmp_path / "no.nc", code=2)
    assert "--reference-width does not belong to --scaling mean_field" in err
    assert "leave it out, or take --scaling ic_mean_field" in err


def test_studies_print_keep_and_draw(capsys, tmp_path):
    signs = ["--data", "digits", "--data.n-train", "6", "--data.n-test", "4", "--training.steps", "3"]
    told, _ = _run(capsys, "predict", *signs, "--scaling", "ntk", "--out", tmp_path / "predict.nc")
    assert "LazyPrediction(4 times" in told
    told, _ = _run(
        capsys,
        "powers",
        *signs,
        "--loss",
        "logistic",
        "--widths",
        "8",
        "16",
        "32",
        "--seeds",
        "3",
        "--out",
        tmp_path / "powers.nc",
    )
    assert "predicted  measured" in told
    told, _ = _run(
        capsys,
        "proxy",
        *signs,
        "--loss",
        "logistic",
        "--width",
        "8",
        "--seeds",
        "4",
        "--limits",
        "ntk",
        "mean_field",
        "--out",
        tmp_path / "proxy.nc",
    )
    assert "nearest: ntk" in told
    for name, picture in (("predict", "prediction"), ("powers", "powers"), ("proxy", "proxy")):
        _run(capsys, "plot", tmp_path / f"{name}.nc")
        assert (tmp_path / f"{name}_{picture}.png").stat().st_size > 5000
        _, err = _run(capsys, name, *signs, "--out", tmp_path / f"{name}.nc", code=2)
        assert "is there already" in err


def test_a_kept_sweep_is_resumed(capsys, tmp_path):
    flags = ["--solver.samples", "64", "--network.depth", "2"]
    _run(capsys, "dmft", *TINY, *flags, "--solver.keep-state", "--out", tmp_path / "part.nc")
    _run(capsys, "resume", tmp_path / "part.nc", "--steps", "3", "--out", tmp_path / "whole.nc")
    whole = CausalDMFT(64, keep_state=True)(mf.Problem(DATA, mf.Network(2), training=mf.Training(steps=7)))
    assert load(tmp_path / "whole.nc") == whole


def test_checkpoints_serve_until_the_run_is_kept(capsys, tmp_path, monkeypatch):
    command = [
        "dmft",
        *TINY,
        "--solver.samples",
        "64",
        "--network.depth",
        "2",
        "--checkpoint",
        "2",
        "--out",
        tmp_path / "run.nc",
    ]
    kept, keep = [], checkpoints._keep

    def die(solution, path):
        keep(solution, path)
        kept.append(solution.steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_keep", die)
    _run(capsys, *command, code=130)
    assert kept == [2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.checkpoint.nc"]
    monkeypatch.undo()
    _run(capsys, *command)
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]
    assert load(tmp_path / "run.nc") == CausalDMFT(64)(mf.Problem(DATA, mf.Network(2), training=mf.Training(steps=4)))


@pytest.mark.parametrize(
    "command",
    [
        "flow --out kept.nc",
        "dmft --out kept.nc --solver.samples 64",
        "fixedpoint --out kept.nc --solver.samples 256",
        "lazy --out kept.nc --scaling ntk",
        "logits --out kept.nc --scaling default --loss logistic",
        "net --out kept.nc --width 8",
        "sweep --out nets --widths 8 16 --seeds 3",
        "powers --out kept.nc --widths 8 16 32 --seeds 2",
        "proxy --out kept.nc --width 8 --limits ntk mean_field default --seeds 4 --loss logistic",
        "rates --out kept.nc --rates 0.05 0.1 0.2 --widths 8 16 --seeds 2 --samples 64",
        "predict --out kept.nc --scaling ntk",
        "coordinates --out kept.nc --widths 8 16 32 --seeds 3 --steps 0 2 --samples 64",
    ],
)
def test_a_dry_run_tells_its_cost_and_keeps_nothing(capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    name, *flags = shlex.split(command)
    data = ["--data", "mixture", "--data.n-train", "5", "--training.steps", "4"] if "logistic" in flags else TINY
    out, err = _run(capsys, name, *flags, *data, "--dry-run")
    assert re.fullmatch(
        r"about \S+ s, at most \S+ GB; the time is found from the (whole (run|prediction)|first \d of \d steps)(; the whole run.*)?\n",
        out,
    ), out
    assert err == ""
    assert not list(tmp_path.iterdir())


def test_every_command_that_solves_has_a_dry_run():
    solving = [kind for kind in cli.COMMANDS if kind.__name__ not in NOT_SOLVING | {"Nngp", "Spectrum"}]
    assert all("dry_run" in {f.name for f in fields(kind)} for kind in solving)


def test_a_dry_run_refuses_what_the_run_would(capsys, tmp_path):
    for command, said in (
        (("predict", "--loss", "logistic", "--data", "mixture"), "closed form for the squared loss"),
        (("coordinates", "--widths", 8, 16), "at least 3 widths"),
    ):
        _, err = _run(capsys, *command, "--out", tmp_path / "kept.nc", "--dry-run", code=2)
        assert said in err


def test_a_dry_run_of_what_goes_on_or_is_certified(capsys, tmp_path):
    kept = tmp_path / "kept.nc"
    _run(capsys, "dmft", "--out", kept, *TINY, "--network.depth", 2, "--solver.samples", 64, "--solver.keep-state")
    before = kept.read_bytes()
    out, _ = _run(capsys, "resume", kept, "--steps", 4, "--dry-run")
    assert out.startswith("about ")
    out, _ = _run(capsys, "certify", kept, "--steps", 1, "--dry-run")
    assert re.fullmatch(r"certificate of steps 0 to 1 of 4 \(8 draws of 64 samples\): about \S+ s\n", out), out
    assert [*tmp_path.iterdir()] == [kept]
    assert kept.read_bytes() == before
    _, err = _run(capsys, "flow", "--out", kept, *TINY, "--solver.particles", 10**13, "--dry-run", code=2)
    assert "GB are available" in err
