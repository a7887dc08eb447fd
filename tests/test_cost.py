"""Estimates before a run: how they grow, and that they are of the right size."""

from dataclasses import replace

import pytest

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, InfiniteLogitsLimit, WassersteinFlow
from solvers.cost import expected_ranks
from tests import memory
from tests.benchmarks import cost_model


def problem(depth=1, activation="tanh", samples=16, steps=100):
    data = mf.digits(n_train=samples, n_test=0)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps))


@pytest.mark.parametrize(
    ("small", "large", "asked", "longer"),
    [
        (WassersteinFlow(2**16), WassersteinFlow(2**18), problem(steps=2000), problem(steps=8000)),
        (CausalDMFT(2**15), CausalDMFT(2**17), problem(2, steps=2000), problem(2, steps=8000)),
        (FiniteWidth(2048), FiniteWidth(4096), problem(2, steps=2000), problem(2, steps=8000)),
    ],
    ids=["flow", "dmft", "net"],
)
def test_time_grows_by_the_model(small, large, asked, longer):
    """Four times the particles, samples or weights cost four times as much, and so do four times the steps."""
    base = small.estimate(asked)
    assert large.estimate(asked).seconds / base.seconds == pytest.approx(4, rel=0.15)
    assert small.estimate(longer).seconds / base.seconds == pytest.approx(4, rel=0.15)
    assert large.estimate(asked).bytes / base.bytes == pytest.approx(4, rel=0.25)
    assert str(base).startswith("about ")


def test_infinite_logits_cost_what_the_flow_of_their_cloud_costs():
    asked = replace(problem(), scaling=mf.default(64), loss="logistic")
    found, flow = (solver(2**16).estimate(asked) for solver in (InfiniteLogitsLimit, WassersteinFlow))
    assert found == flow


def test_groups_and_seeds_multiply():
    asked = problem(2)
    assert CausalDMFT(groups=3).estimate(asked).seconds == pytest.approx(3 * CausalDMFT().estimate(asked).seconds)
    one, many = (FiniteWidth(1024).estimate(asked, seeds) for seeds in (1, 8))
    assert many.seconds / one.seconds == pytest.approx(8, rel=0.2)


def test_expected_ranks_are_near_those_that_come():
    for activation in ("tanh", "relu", "linear"):
        asked = problem(2, activation, 8, 20)
        (found,) = CausalDMFT(2048, snapshots=(), two_time=False)(asked).stats["ranks"]
        for expected, rank in zip(expected_ranks(asked), found, strict=True):
            assert 0.5 < expected / rank < 2, (activation, expected, rank)


def test_a_prediction_is_of_the_right_size():
    """Within a factor of ten, on any machine however busy; tests/benchmarks (cost_model) asks for two."""
    asked = replace(problem(2, steps=30))
    for solver in (CausalDMFT(4096), FiniteWidth(256)):
        seconds = solver(asked).stats["seconds"]
        assert 0.1 < seconds / solver.estimate(asked).seconds < 10


@pytest.mark.skipif(not memory.AVAILABLE, reason="the system does not tell a process its memory")
@pytest.mark.parametrize(
    "case",
    [
        ("WassersteinFlow(2**17)", 1, "tanh", 16, "0.1, 1"),
        ("CausalDMFT(2**16, dtype='float32')", 2, "tanh", 16, "0.1, 5"),
        pytest.param(
            ("FiniteWidth(4096, dtype='float32')", 2, "tanh", 16, "0.1, 1, momentum=0.9"), marks=pytest.mark.slow
        ),
    ],
    ids=["flow", "dmft", "net"],
)
def test_the_memory_is_of_the_right_size(case):
    """Peak of a process alone, which other processes do not change."""
    run = cost_model.in_its_own_process(*case)
    assert 1 / 2 < (run["peak_gb"] - run["before_gb"]) / run["expected"] < 2
    assert run["expected"] > 0.1  # else what a process has anyway would count


def test_snapshots_momentum_and_the_integrator_take_memory():
    flow, net, asked = WassersteinFlow(2**16, snapshots=()), FiniteWidth(4096), problem()

    def size(solver, **training):
        return solver.estimate(replace(asked, training=replace(asked.training, **training))).bytes

    for solver in (flow, net):
        assert size(solver) < size(solver, momentum=0.9) < size(solver, optimiser="gradient_flow") / 3
    assert size(flow) < size(replace(flow, snapshots=(0, -1))) < size(replace(flow, snapshots=range(0, 100, 10))) / 2
