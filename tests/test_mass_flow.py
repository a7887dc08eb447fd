"""Masses that move: the replicator equation, the speed at which the risk falls, splitting, and an escape that transport has not (116)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import meanfield as mf
from meanfield.files.storage import load
from solvers import WassersteinFlow

DATA = mf.digits(n_train=4, n_test=2)
PROBLEM = mf.Problem(DATA, mf.Network(1, "tanh", bias_std=0.3), mf.mean_field(0.7), mf.Training(0.2, 12))
CLOUD = mf.ParticleMeasure.iid(24, 65, seed=1)


def test_masses_alone_follow_the_replicator_equation():
    """Fixed features: dm_r/dt = -alpha m_r (V_r - <V>), by scipy's integrator"""
    training = mf.Training(0.5, 4, optimiser="gradient_flow")
    problem = replace(PROBLEM, network=mf.Network(1, "tanh"), training=training)
    cloud, gain, alpha = mf.ParticleMeasure.iid(10, 64, seed=2), 1 / 0.7, 1.7
    features = (cloud.a * torch.tanh(cloud.w @ DATA.x.T / 8)).numpy()  # (R, P), a phi
    y = DATA.y[:, 0].numpy()

    def velocity(t, m):
        del t
        delta = y - gain * m @ features
        v = -0.7 * features @ delta / 4
        return -alpha * m * (v - m @ v)

    expected = solve_ivp(velocity, (0, 2.0), np.full(10, 0.1), rtol=1e-10, atol=1e-13, t_eval=training.times.numpy())
    flow = WassersteinFlow(initial=cloud, mass_rate=alpha, transport=False, rtol=1e-9)(problem)
    torch.testing.assert_close(flow.f[:, :, 0], torch.tensor(gain * expected.y.T @ features), rtol=1e-7, atol=1e-9)
    end = flow.measure(-1)
    torch.testing.assert_close(end.m, torch.tensor(expected.y[:, -1]), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(end.w, cloud.w, rtol=0, atol=0)


@pytest.mark.parametrize("transport", [True, False])
def test_the_speed_at_which_the_risk_falls(transport):
    """(kappa / Gamma) dL/dt = -<|v|^2> - alpha Var V, from particles"""
    eta, alpha, kappa, gain = 1e-6, 2.3, 0.7, 1 / 0.7
    problem = replace(PROBLEM, network=mf.Network(1, "tanh"), training=mf.Training(eta, 1))
    cloud = mf.ParticleMeasure.iid(24, 64, seed=3)
    flow = WassersteinFlow(initial=cloud, mass_rate=alpha, transport=transport)(problem)
    h = cloud.w @ DATA.x.T / 8
    delta = (DATA.y - flow.f[0])[:, 0]
    va = kappa * torch.tanh(h) @ delta / 4
    vw = kappa * (cloud.a * (1 - torch.tanh(h) ** 2)) @ (delta[:, None] * DATA.x / 8) / 4
    v = -(cloud.a[:, 0] * va)
    moving = (va.square().mean() + vw.square().sum(1).mean()) * transport
    expected = float(moving + alpha * v.var(correction=0)) * gain / kappa
    assert float(flow.loss[0] - flow.loss[1]) / eta == pytest.approx(expected, rel=1e-4)


def test_a_particle_that_is_split_moves_as_before():
    order = torch.tensor([0, 0, *range(1, 24)])
    m = CLOUD.m[order].clone()
    m[:2] *= torch.tensor([0.3, 0.7], dtype=torch.float64)
    split = mf.ParticleMeasure(CLOUD.a[order], CLOUD.w[order], m)
    found = [WassersteinFlow(initial=cloud, mass_rate=1.5)(PROBLEM) for cloud in (CLOUD, split)]
    torch.testing.assert_close(found[1].f, found[0].f, rtol=1e-11, atol=1e-13)
    end = found[1].measure(-1)
    assert float(end.m.sum()) == pytest.approx(1, abs=1e-14)
    assert float(end.m[0] / end.m[1]) == pytest.approx(0.3 / 0.7)
    assert bool((end.m > 0).all())
    assert float((end.m / m - 1).abs().max()) > 0.01


def test_a_slow_rate_is_transport_alone_and_the_risk_falls_faster_with_both():
    plain = WassersteinFlow(initial=CLOUD)(PROBLEM)
    torch.testing.assert_close(
        WassersteinFlow(initial=CLOUD, mass_rate=1e-12)(PROBLEM).f, plain.f, rtol=1e-9, atol=1e-12
    )
    both = WassersteinFlow(initial=CLOUD, mass_rate=2.0)(PROBLEM)
    assert (both.loss[1:] < plain.loss[1:]).all()
    assert (both.loss.diff() < 0).all()


def test_masses_leave_dead_neurons_sooner_than_the_live_one_grows():
    """Dead neurons have no gradient: transport cannot move them, and has one live particle in a thousand to work with"""
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    data = mf.Dataset(x, torch.relu(x))
    w = torch.full((1000, 1), -1.0, dtype=torch.float64)
    w[0] = 1.0
    cloud = mf.ParticleMeasure(
        torch.ones(1000, 1, dtype=torch.float64), w, torch.full((1000,), 1e-3, dtype=torch.float64)
    )
    problem = mf.Problem(data, mf.Network(1, "relu"), mf.mean_field(1.0), mf.Training(0.05, 20))
    slow = WassersteinFlow(initial=cloud)(problem).loss
    free = WassersteinFlow(initial=cloud, mass_rate=1.0)(problem).loss
    assert float(slow[-1]) > 0.5 * float(slow[0])
    assert float(free[-1]) < 1e-6 * float(free[0])


def test_resumed_and_kept_in_files_it_is_the_uninterrupted_run(tmp_path):
    solver = WassersteinFlow(32, mass_rate=1.3, snapshots=(-1,))
    whole = solver(PROBLEM)
    mf.save(solver(PROBLEM.with_steps(5)), tmp_path / "part.nc")
    torch.testing.assert_close(solver.resume(load(tmp_path / "part.nc"), 7).f, whole.f, rtol=0, atol=0)
    assert torch.equal(whole.measure(-1).m, whole.state["m"])


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        ({"mass_rate": -1.0}, {}, "mass_rate must be non-negative"),
        ({"transport": False}, {}, "let nothing move"),
        ({"mass_rate": 1.0}, {"training": mf.Training(temperature=0.1)}, "received temperature=0.1"),
        ({"mass_rate": 1.0}, {"training": mf.Training(optimiser="adam")}, "received optimiser=Adam"),
        ({"mass_rate": 1.0}, {"scaling": replace(mf.mean_field(), eta_a=0.0)}, "received eta_a=0"),
    ],
    ids=str,
)
def test_what_masses_do_not_follow_is_refused(settings, change, said):
    with pytest.raises(ValueError, match=said):
        WassersteinFlow(16, **settings)(replace(PROBLEM, **change))
