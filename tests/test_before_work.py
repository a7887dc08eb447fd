"""Memory, time and workers that are refused, told of or bounded before or early in a run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import meanfield as mf
from meanfield.checking import checks
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from solvers.command_line import runs as run_commands
from solvers.running import evolve

SIGNS = mf.Dataset([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0]], [1.0, -1.0, 1.0])
PROBLEM = mf.Problem(SIGNS, mf.Network(1, "tanh"), training=mf.Training(0.1, 2))


def test_outputs_of_many_samples_and_classes_at_many_steps_are_refused():
    data = mf.Dataset(torch.randn(1000, 2), torch.eye(10).repeat(100, 1))
    asked = mf.Problem(data, training=mf.Training(0.1, 10**7))
    least = 8 * 1000 * 10 * 1e7
    for solver in (WassersteinFlow(16, snapshots=()), FiniteWidth(4, snapshots=())):
        with pytest.raises(MemoryError, match="the record of the outputs at 10000001 steps needs") as refused:
            solver(asked)
        assert float(str(refused.value).split("needs ")[1].split()[0]) * 1e9 >= least


def test_kernels_at_snapshots_that_cannot_fit_are_refused_and_are_not_needed():
    many = mf.Dataset(torch.randn(200_000, 1), torch.ones(200_000))
    asked = mf.Problem(many, training=mf.Training(0.1, 1))
    with pytest.raises(MemoryError, match=r"the 200000 x 200000 kernels at 2 snapshots needs .*snapshots=\(\)"):
        FiniteWidth(4, keep_neurons=False)(asked)
    FiniteWidth(4, snapshots=(), keep_neurons=False).check(asked)
    for solver in (WassersteinFlow(16), FiniteWidth(4)):  # whose kernels are made when they are looked at
        solution = solver(asked)
        with pytest.raises(MemoryError, match=r"kernel of 200000 (columns|outputs) needs"):
            solution.tangent_kernel()


def test_many_seeds_count_together(monkeypatch):
    """What fits for one seed need not for many: the record of one is here about 4.5 kB, and 1000 bytes a step for the objects."""
    asked = PROBLEM.with_steps(99)
    monkeypatch.setattr(checks, "free_memory", lambda device="cpu": 1e6)
    FiniteWidth(4, snapshots=()).check(asked)
    with pytest.raises(MemoryError, match=r"1000 seeds .*take fewer seeds or steps"):
        FiniteWidth(4, snapshots=()).ensemble(asked, 1000)


def test_batches_of_many_samples_over_many_steps_take_no_table():
    """A number for each sample and step would be 80 GB; the first steps are those of a short run."""
    large = mf.Training(0.1, 100_000, batch_size=1000, batch_seed=3).batches(100_000)
    short = mf.Training(0.1, 2, batch_size=1000, batch_seed=3).batches(100_000)
    for first, second in zip(short, large, strict=False):
        assert torch.equal(first, second)


def test_batches_are_permutations_cut_in_pieces_from_any_step_on():
    training, g = mf.Training(0.1, 9, batch_size=3, batch_seed=5), torch.Generator().manual_seed(5)
    rows = [piece for _ in range(5) for piece in torch.randperm(7, generator=g)[:6].split(3)][:9]
    for first in range(10):
        drawn = list(training.batches(7, first))
        assert [batch.tolist() for batch in drawn] == [row.tolist() for row in rows[first:]]


def test_a_run_that_will_take_days_says_so_once(monkeypatch):
    """The clock goes 20 000 seconds from one look to the next, so that a step takes as long."""
    seconds = iter(range(0, 10**9, 20_000))
    monkeypatch.setattr(evolve, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    with pytest.warns(
        RuntimeWarning, match=r"99 steps are left and will take about 23 days at 2e\+04 s a step"
    ) as told:
        WassersteinFlow(2, snapshots=())(PROBLEM.with_steps(100))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("asked", "networks", "cores", "start"), [(10**6, 6, 2, 2), (10**6, 1, 8, 1), (2, 6, 4, 2), (0, 6, 4, 0)]
)
def test_workers_have_a_network_and_a_core_each(capsys, asked, networks, cores, start):
    assert run_commands.useful(asked, networks, cores) == start
    told = capsys.readouterr().err
    assert (f"{start} workers start: {asked} were asked" in told) == (start < asked)


def test_scalings_name_their_own_arguments():
    for make in (mf.default, mf.sym_default, mf.ic_mean_field):
        with pytest.raises(ValueError, match="reference_width must be at least 1: received -1"):
            make(reference_width=-1)
    for gamma0 in (1e-200, 1e200):
        with pytest.raises(ValueError, match="gamma0 must lie between"):
            mf.mean_field(gamma0)


def test_a_kernel_after_the_last_step_is_refused_with_the_steps_there_are():
    run = CausalDMFT(64)(PROBLEM.with_steps(3))
    with pytest.raises(ValueError, match=r"step 4 was not recorded; recorded are 0\.\.3, all that were taken"):
        run.kernels["Phi1"].at(4)


def test_neurons_of_all_seeds_at_snapshots_count(monkeypatch):
    """100 networks of width 200 keep 2 x 200 x P (1 + C) numbers each, however few are trained at a time."""
    solver, numbers = FiniteWidth(200, batch=1), 2 * 200 * PROBLEM.data.samples * 2
    (one, _), *_ = solver.parts(PROBLEM, 1).values()
    (many, _), *_ = solver.parts(PROBLEM, 100).values()
    assert many - one >= 99 * 8 * numbers
    (without, _), *_ = replace(solver, snapshots=()).parts(PROBLEM, 100).values()
    assert without < many - 100 * 8 * numbers
