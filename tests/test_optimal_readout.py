"""Readouts at their optimum (equation 122): against a loop of ridge regression and autograd, fast readouts, the reduced loss."""

import math
from dataclasses import replace

import pytest
import torch

import meanfield as mf
from solvers import WassersteinFlow

NETWORK = mf.Network(1, "tanh", 1.3, 0.4)


def problem(training=None, network=NETWORK, gamma0=1.5, **given):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, generator=g, dtype=torch.float64)
    y = torch.stack([torch.sin(2 * x.sum(1)), x[:, 0]], 1)
    return mf.Problem(
        mf.Dataset(x, y, x[:2] + 0.5, y[:2]), network, mf.mean_field(gamma0), training or mf.Training(0.2, 6), **given
    )


def ridge(w, x, y, s):
    """(K, c) of the features of neurons w (N, D + 1)"""
    inputs = torch.cat([1.3 * x / math.sqrt(x.shape[1]), 0.4 * torch.ones(len(x), 1, dtype=torch.float64)], 1)
    phi = torch.tanh(inputs @ w.T)
    k = 1.3**2 * phi @ phi.T / len(w) + 0.4**2
    return k, torch.linalg.solve(k + s * torch.eye(len(x), dtype=torch.float64), y)


def test_a_network_is_that_of_a_loop_that_descends_the_reduced_loss_by_autograd():
    """f and w to rounding, with decay: the loop solves for the readout and differentiates E(w), without a formula of gradients"""
    s, asked = 0.3, problem(mf.Training(0.2, 6, weight_decay=0.1))
    run = WassersteinFlow(64, initial="iid", balanced=False, readout_ridge=s, snapshots=(0, -1))(asked)
    w, (x, y) = run.measure(0).w.clone().requires_grad_(), (asked.data.x, asked.data.y)
    limit, f = asked.scaling.measure_limit(), []
    for _ in range(7):
        k, c = ridge(w, x, y, s)
        f.append((k @ c).detach())
        energy = s / (2 * 5) * (y * c).sum()
        (slope,) = torch.autograd.grad(energy, w)
        last = w.detach().clone()
        with torch.no_grad():
            w.mul_(1 - 0.2 * 0.1).sub_(0.2 * limit.kappa_w / limit.gamma * 64 * slope)
    torch.testing.assert_close(run.f, torch.stack(f), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(run.measure().w, last, rtol=1e-10, atol=1e-12)
    assert float((run.f[-1] - run.f[0]).abs().max()) > 0.01


def test_it_is_the_limit_of_fast_readouts():
    """Of descent with readouts R times as fast and their decay; the distance falls as 1 / R"""
    s, time, off = 0.3, 1.0, []
    limit = problem().scaling.measure_limit()
    solver = WassersteinFlow(2**8, balanced=False, snapshots=())
    right = replace(solver, readout_ridge=s)(problem(mf.Training(0.005, 200))).f
    for fast in (20.0, 80.0):
        decay = {"readout": s * limit.gamma * limit.kappa_a * fast / 5, "input": 0.0}
        network, steps = mf.Architecture(NETWORK, rate={"readout": fast}, decay=decay), int(20 * fast)
        f = solver(problem(mf.Training(time / steps, steps, weight_decay=1.0), network)).f
        off.append(float((f[-1] - right[-1]).norm() / (right[-1] - right[0]).norm()))
    assert off[1] < 0.2
    assert off[0] / off[1] == pytest.approx(4, rel=0.4)


def test_the_reduced_loss_falls_by_the_squares_of_the_velocities():
    s, asked = 0.3, problem(mf.Training(0.05, 2, "gradient_flow"))
    run = WassersteinFlow(2**8, readout_ridge=s, snapshots=(0, 1, 2), rtol=1e-10)(asked)
    data, limit = asked.data, asked.scaling.measure_limit()
    energies = [s / 10 * float((data.y * ridge(run.measure(t).w, data.x, data.y, s)[1]).sum()) for t in (0, 1, 2)]
    moved = (run.measure(2).w - run.measure(0).w) / 0.1
    falls = limit.gamma / limit.kappa_w * float(moved.square().sum(1).mean())
    assert (energies[0] - energies[2]) / 0.1 == pytest.approx(falls, rel=2e-3)
    assert energies[0] > energies[1] > energies[2]


def test_without_a_ridge_outputs_fit_and_features_stand_still():
    run = WassersteinFlow(2**10, readout_ridge=1e-9)(problem())
    assert float((run.f - run.problem.data.y).abs().max()) < 1e-4
    assert float((run.measure().w - run.measure(0).w).abs().max()) < 1e-3


def test_fresh_samples_are_refused():
    asked = mf.Problem(mf.stream(mf.Teacher(2), batch=2, watched=4), NETWORK)
    with pytest.raises(ValueError, match="received a stream of fresh samples"):
        WassersteinFlow(64, readout_ridge=0.1).check(asked)


def test_test_points_and_runs_that_go_on(tmp_path):
    """Test outputs are those of the same readout; files keep the setting, resumed runs have the bits of whole ones"""
    solver = WassersteinFlow(2**8, readout_ridge=0.3)
    whole, half = solver(problem(mf.Training(0.2, 6, momentum=0.5))), solver(problem(mf.Training(0.2, 3, momentum=0.5)))
    kept = mf.load(mf.save(half, tmp_path / "half.nc"))
    assert kept == half
    assert kept.solver["readout_ridge"] == 0.3
    assert torch.equal(solver.resume(kept, 3).f, whole.f)
    measure, x = whole.measure(), whole.problem.data.x_test
    inputs = NETWORK.inputs(x)
    f = 1.3 * torch.tanh(inputs @ measure.w.T) @ measure.a / len(measure) / 1.5 + whole.state["b"]
    torch.testing.assert_close(f, whole.f_test[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "asked", "why"),
    [
        ({"readout_ridge": 0.0}, {}, "readout_ridge must be positive"),
        ({"readout_ridge": 0.1, "mass_rate": 1.0}, {}, "received mass_rate=1"),
        ({"readout_ridge": 0.1}, {"training": mf.Training(0.1, 2, batch_size=2)}, "received batch_size=2"),
        ({"readout_ridge": 0.1}, {"training": mf.Training(0.1, 2, "adam")}, "received optimiser"),
        ({"readout_ridge": 0.1}, {"training": mf.Training(0.1, 2, temperature=0.1)}, "received temperature"),
        (
            {"readout_ridge": 0.1},
            {"network": mf.Architecture(NETWORK, frozen=("readout",))},
            "received a frozen readout",
        ),
        (
            {"readout_ridge": 0.1},
            {"network": mf.Architecture(NETWORK, rate={"readout": 3.0})},
            "a rate of the readout's own",
        ),
        (
            {"readout_ridge": 0.1},
            {"network": mf.Architecture(NETWORK, weight_std={"readout.weight": 0})},
            "a readout that starts at 0",
        ),
        ({"readout_ridge": 0.1}, {"loss": "cross_entropy"}, "received the loss 'cross_entropy'"),
    ],
    ids=lambda v: None if isinstance(v, dict) else v,
)
def test_what_it_does_not_follow_is_refused(given, asked, why):
    own = problem(asked.get("training"), asked.get("network", NETWORK))
    if "loss" in asked:
        own = replace(
            own, loss=asked["loss"], data=mf.Dataset(own.data.x, torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1, 0]])
        )
    with pytest.raises(ValueError, match=why):
        WassersteinFlow(64, **given).check(own)
