"""The command `meanfield` on torch modules, as in a folder with a file mynets.py: what is asked by --network, kept and read again."""

import importlib
import re
import shlex
import subprocess
import sys

import matplotlib
import pytest
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, coordinate_check, learning_rate_transfer, width_sweep
from solvers.command_line.main import main
from solvers.running import checkpoints
from tests.running import environment

matplotlib.use("Agg")

MYNETS = """
from functools import partial

import torch
from torch import nn

import meanfield as mf


class Net(nn.Module):
    def __init__(self, n, phi=torch.tanh):
        super().__init__()
        self.read, self.mix, self.out = (nn.Linear(*sides, bias=False) for sides in ((3, n), (n, n), (n, 1)))
        self.phi = phi

    def forward(self, x):
        h = self.phi(self.read(x))
        return self.out(h + self.phi(self.mix(h)))


rectified = partial(Net, phi=torch.relu)
slow = mf.Architecture(Net, rate={"mix.*": 0.5})


def correlations(net, x):
    h = net.read(x)
    return h @ h.mT / h.shape[-1]


noting = mf.Architecture(Net, record={"correlations": correlations})
by_layer = mf.Architecture(
    mf.Network(1, bias_std=0.3), rate={"input": 0.3}, decay={"*.bias": 0.0}, initial_law="rademacher", weight_std={"readout": 0}
)
"""
TINY = "--data single-index --data.n-train 5 --data.n-test 3 --data.inputs 3 --training.steps 4"


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder that has mynets.py, and knows no more of it than a new process would: its output, or errors"""
    (tmp_path / "mynets.py").write_text(MYNETS)
    monkeypatch.chdir(tmp_path)
    paths = [*sys.path]

    def run(command, code=0):
        with monkeypatch.context() as fresh:
            fresh.setattr(sys, "path", [*paths])
            fresh.setattr("meanfield.network.architecture._MADE", {})
            fresh.delitem(sys.modules, "mynets", raising=False)
            capsys.readouterr()
            found = main(shlex.split(command))
            out, err = capsys.readouterr()
            assert found == code, err
            sys.modules.pop("mynets", None)
        return out if code == 0 else err

    return run


@pytest.fixture
def problem(tmp_path, monkeypatch):
    """What TINY asks, of one of the names in mynets.py; the file stays imported"""

    def of(name):
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mynets", raising=False)
        network = getattr(importlib.import_module("mynets"), name)
        monkeypatch.setitem(sys.modules, "mynets", sys.modules["mynets"])
        data = mf.single_index_teacher(n_train=5, n_test=3, inputs=3)
        return mf.Problem(data, network, training=mf.Training(steps=4))

    return of


@pytest.mark.parametrize("name", ["Net", "rectified", "slow"])
def test_runs_are_the_library_s_and_go_on_with_the_flag(shell, problem, tmp_path, name):
    flag = f"--network mynets:{name}"
    shell(f"dmft --out limit.nc {flag} {TINY} --solver.samples 64")
    shell(f"sweep --out nets {flag} {TINY} --widths 8 12 --seeds 2")
    shell(f"resume nets/width000008_seed0001.nc --steps 2 --out longer.nc {flag}")
    assert "already kept" in shell(f"dmft --out limit.nc {flag} {TINY} --solver.samples 64")
    asked = problem(name)
    assert mf.load("limit.nc") == CausalDMFT(64)(asked)
    kept = [mf.load(path) for path in sorted((tmp_path / "nets").glob("*.nc"))]
    assert kept == width_sweep(asked, (8, 12), 2)
    longer = mf.load("longer.nc")
    assert longer.problem == asked.with_steps(6)
    torch.testing.assert_close(
        longer.f, FiniteWidth(8, 1)(longer.problem).f, rtol=1e-12, atol=1e-14
    )  # began in a batch


def test_files_of_perceptrons_with_settings_by_layer_need_no_code(shell, problem):
    """Nothing but the run that begins names the module"""
    shell(f"flow --out limit.nc --network mynets:by_layer {TINY} --solver.particles 64")
    shell("resume limit.nc --steps 2 --out longer.nc")
    assert "limit_loss.png" in shell("plot limit.nc")
    asked = problem("by_layer")
    assert mf.load("limit.nc") == WassersteinFlow(64)(asked)
    assert torch.equal(mf.load("longer.nc").f, WassersteinFlow(64)(asked.with_steps(6)).f)


def test_runs_are_compared_and_drawn_with_the_flag(shell):
    shell(f"dmft --out limit.nc {TINY} --solver.samples 64 --network mynets:noting")
    shell(f"sweep --out nets {TINY} --widths 8 --seeds 2 --network mynets:noting")
    assert "drawn in r.png" in shell("compare nets --limits limit.nc --out r.nc --names f --network mynets:noting")
    drawn = shell("plot limit.nc nets --network mynets:noting").splitlines()
    assert {"limit_loss.png", "limit_correlations.png"} <= {*drawn}


def test_a_coordinate_check_is_printed_kept_and_drawn(shell, problem):
    command = f"coordinates --out c.nc {TINY} --network mynets:Net --widths 8 16 32 --seeds 3 --steps 0 1 --samples"
    told = shell(f"{command} 16 --points 4")
    right = coordinate_check(problem("Net"), (8, 16, 32), 3, (0, 1), 4, 16)
    assert told.startswith(f"{right}\n")
    assert str(mf.load("c.nc")) == str(right)
    assert "c_coordinates.png" in shell("plot c.nc")
    assert "limit from S" not in shell(f"{command} 0 --overwrite")
    assert "c.nc is there already" in shell(f"{command} 0", code=2)
    assert "a power needs at least 3 widths" in shell(
        f"coordinates --out no.nc {TINY} --network mynets:Net --widths 8 16", code=2
    )


def test_learning_rates_are_printed_kept_and_drawn(shell, problem):
    command = f"rates {TINY} --network mynets:Net --rates 0.1 0.2 0.4 --widths 8 16 --seeds 3 --test"
    told = shell(f"{command} --samples 64 --out r.nc")
    limit = CausalDMFT(64, groups=2)
    right = learning_rate_transfer(problem("Net"), (0.1, 0.2, 0.4), (8, 16), 3, limit, test=True)
    assert told.startswith(f"{right}\n")
    assert str(mf.load("r.nc")) == str(right)
    assert "r_learning_rates.png" in shell("plot r.nc")
    assert "needs at least 3 that differ" in shell(f"rates --out no.nc {TINY} --rates 0.1 0.2", code=2)
    ntk = f"rates {TINY} --rates 0.1 0.2 0.4 --widths 8 --scaling ntk"
    assert "has no limit as a flow" in shell(f"{ntk} --samples 64 --out no.nc", code=2)
    assert "limit" not in shell(f"{ntk} --out ntk.nc")


@pytest.mark.parametrize(
    "command",
    [
        "plot run.nc",
        "resume run.nc --steps 1 --out on.nc",
        "compare run.nc --limits run.nc --out r.nc",
        "certify run.nc",
    ],
)
def test_what_reads_a_run_asks_for_its_code(shell, command):
    shell(f"net --out run.nc --width 8 {TINY} --network mynets:Net")
    message = (
        "run.nc cannot be loaded: its network 'mynets:Net' is code, which files do not hold: give --network mynets:Net"
    )
    assert message in shell(command, code=2)
    assert "--network must be MODULE:NAME, e.g. mynets:Net: received 'Net'" in shell(f"{command} --network Net", code=2)
    assert "'mynets' has no 'Other'" in shell(f"{command} --network mynets:Other", code=2)


def test_code_without_a_name_of_its_own_is_asked_for_too(shell):
    shell(f"net --out run.nc --width 8 {TINY} --network mynets:rectified")
    assert "'partial' is code, which files do not hold: give --network MODULE:NAME" in shell("plot run.nc", code=2)


def test_perceptrons_need_no_code(shell):
    shell(f"net --out run.nc --width 8 {TINY}")
    shell("resume run.nc --steps 1 --out on.nc")
    shell("resume run.nc --steps 1 --out on.nc --network mynets:Net")


def test_a_weight_std_stands_in_the_architecture_or_in_the_flag(shell, problem):
    shell(f"net --out run.nc --width 8 {TINY} --network mynets:Net --network.weight-std 1.5")
    err = shell(f"net --out no.nc --width 8 {TINY} --network mynets:slow --network.weight-std 1.5", code=2)
    assert "--network.weight-std is given by the architecture: leave it out with --network mynets:slow" in err
    assert "--network.depth belongs to perceptrons" in shell(
        f"net --out no.nc {TINY} --network mynets:Net --network.depth 2", code=2
    )
    assert problem("Net").architecture.weight_std == 1.0
    assert mf.load("run.nc").problem.architecture.weight_std == 1.5


@pytest.mark.parametrize("name", ["Net", "rectified"])
def test_checkpoints_serve_until_the_run_is_kept(shell, problem, tmp_path, monkeypatch, name):
    command = f"dmft {TINY} --solver.samples 64 --network mynets:{name} --checkpoint 2 --out run.nc"
    keep = checkpoints._keep

    def die(solution, path):
        keep(solution, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(checkpoints, "_keep", die)
        assert "2 steps are kept in run.checkpoint.nc" in shell(command, code=130)
    shell(command)
    assert [path.name for path in tmp_path.glob("*.nc")] == ["run.nc"]
    assert mf.load(tmp_path / "run.nc", problem(name).architecture) == CausalDMFT(64)(problem(name))


def test_a_sweep_goes_on_with_what_is_missing(shell, tmp_path):
    command = f"sweep --out nets {TINY} --widths 8 --network mynets:rectified"
    shell(f"{command} --seeds 1")
    (first,) = (tmp_path / "nets").iterdir()
    before = first.stat().st_mtime_ns
    shell(f"{command} --seeds 2")
    assert len([*(tmp_path / "nets").iterdir()]) == 2
    assert first.stat().st_mtime_ns == before
    other = command.replace("rectified", "Net")
    err = shell(f"{other} --seeds 2", code=2)
    assert (
        "nets holds another run: width000008_seed0000.nc is of the network 'partial', whose code is not that of 'Net'"
        in err
    )
    assert "give an empty folder, or a class or function that Python can import" in err


_INTERRUPTED = """
import os, signal, sys
from solvers.command_line import main as cli
from solvers.finite.modules import ModuleNetworks

backward, calls = ModuleNetworks.backward, []

def then_interrupt(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return backward(*arguments)

ModuleNetworks.backward = then_interrupt
sys.exit(cli.main(sys.argv[1:]))
"""


def _process(*arguments):
    """A process of its own, in the present folder but not with it on Python's path"""
    command = [sys.executable, "-P", "-W", "error", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.processes
def test_ctrl_c_keeps_the_run_and_tells_the_command_that_ends_it(shell, problem, tmp_path):
    net = f"net --out run.nc --network mynets:Net --width 8 {TINY}"
    run = _process("-c", _INTERRUPTED, *shlex.split(net))
    assert run.returncode == 130, run.stderr
    told = re.search(r"go on with: meanfield (.*)", run.stderr)[1]
    assert told == "resume run.partial.nc --network mynets:Net"
    shell(told)
    assert [path.name for path in tmp_path.glob("*.nc")] == ["run.nc"]
    assert mf.load("run.nc", problem("Net").architecture) == FiniteWidth(8)(problem("Net"))


@pytest.mark.slow
@pytest.mark.processes
def test_workers_import_the_module_themselves(shell, problem, tmp_path):
    sweep = f"sweep --out nets {TINY} --widths 8 --seeds 2 --workers 2 --network mynets:rectified"
    run = _process("-m", "solvers.command_line.main", *shlex.split(sweep))
    assert run.returncode == 0, run.stderr
    asked = problem("rectified")
    kept = [mf.load(path, asked.architecture) for path in sorted((tmp_path / "nets").glob("*.nc"))]
    assert [net.problem for net in kept] == [asked, asked]
    for net, alone in zip(kept, width_sweep(asked, (8,), 2, FiniteWidth(batch=1)), strict=True):
        assert torch.equal(net.f, alone.f)
