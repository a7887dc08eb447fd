"""Warnings point at the user's line that led to them, however many of our calls, decorators and context managers lie between."""

import sys

import pytest
import torch

import meanfield as mf
from meanfield.comparison import distances
from meanfield.measures import reductions
from solvers import WassersteinFlow, checkpointed, over_ranks, predicted_variance
from solvers.running import evolve as loop


def problem(activation="tanh", steps=3, **training):
    data = mf.Dataset(torch.eye(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    return mf.Problem(data, mf.Network(1, activation), mf.mean_field(), mf.Training(steps=steps, **training))


def this_line():
    return sys._getframe(1).f_lineno


def of_a_checked_function(tmp_path, monkeypatch):
    return this_line(), predicted_variance(
        problem("relu", learning_rate=30.0), particles=64, points=(0,), method="derivative"
    )


def of_a_helper_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "_ITERATIONS", 3)
    w, m = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None], torch.full((50,), 0.02, dtype=torch.float64)
    near, far = mf.ParticleMeasure(w.clone(), w, m), mf.ParticleMeasure(w.clone(), 2 * w + 1, m)
    return this_line(), mf.measure_distance(near, far, regularisation=0.01)


def of_a_method_of_a_solver(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_REHEARSAL", 0.0)
    monkeypatch.setattr(loop, "_MANY_DAYS", 0.0)
    return this_line(), WassersteinFlow(8)(problem())


def of_a_file(tmp_path, monkeypatch):
    (tmp_path / "run.nc").write_bytes(b"not a file of ours")
    return this_line(), checkpointed(WassersteinFlow(8), problem(), tmp_path / "run.nc", every=5)


def of_an_engine_that_cannot_serve(tmp_path, monkeypatch):
    mine = mf.Activation("without a formula", torch.sin, torch.cos)
    a = torch.ones(5, 1)
    return this_line(), reductions.outputs(a, a, a[:, 0], a, mine, "keops")


def of_a_context_manager(tmp_path, monkeypatch):
    environment = {"WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    line = this_line() + 1
    with over_ranks("gloo"):
        return line, None


CASES = [
    of_a_checked_function,
    of_a_helper_of_one,
    of_a_method_of_a_solver,
    of_a_file,
    of_a_context_manager,
    of_an_engine_that_cannot_serve,
]


@pytest.mark.parametrize("case", CASES)
def test_a_warning_points_at_the_line_that_asked(tmp_path, monkeypatch, case):
    with pytest.warns() as told:
        line, _ = case(tmp_path, monkeypatch)
    assert [(w.filename, w.lineno) for w in told] == [(__file__, line)]
