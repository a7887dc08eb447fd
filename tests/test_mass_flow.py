"""Masses that move: the replicator equation, the speed at which the risk falls, splitting, births, penalties, and escapes that transport
has not (equations 116, 126 and 127).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sklearn.linear_model import Lasso

import meanfield as mf
from meanfield.files.storage import load
from solvers import WassersteinFlow
from solvers.two_layer.births import reborn

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
    problem = replace(PROBLEM, training=replace(PROBLEM.training, momentum=0.5, weight_decay=0.1))
    whole = solver(problem)
    mf.save(solver(problem.with_steps(5)), tmp_path / "part.nc")
    torch.testing.assert_close(solver.resume(load(tmp_path / "part.nc"), 7).f, whole.f, rtol=0, atol=0)
    assert torch.equal(whole.measure(-1).m, whole.state["m"])


@pytest.mark.parametrize("transport", [True, False])
def test_the_speed_at_which_a_penalised_risk_falls(transport):
    """Of (kappa_a / Gamma) L + lambda <|a|^2 + (kappa_a / kappa_w) |w|^2> / 2 + s <|a|>, with decay and total variation (127)"""
    eta, alpha, kappa, gain, decay, s, ratio = 1e-6, 2.3, 0.7, 1 / 0.7, 0.4, 0.3, 2.0
    scaling = replace(PROBLEM.scaling, eta_w=PROBLEM.scaling.eta_w / ratio)
    training = mf.Training(eta, 1, weight_decay=decay)
    problem = replace(PROBLEM, network=mf.Network(1, "tanh"), training=training, scaling=scaling)
    cloud = mf.ParticleMeasure.iid(24, 64, seed=3)
    solver = WassersteinFlow(initial=cloud, mass_rate=alpha, transport=transport, variation=s)
    flow = solver(problem)

    def penalised(measure, loss):
        squares = measure.a.square().sum(1) + ratio * measure.w.square().sum(1)
        return kappa / gain * float(loss) + float(measure.m @ (decay * squares / 2 + s * measure.a.abs().sum(1)))

    h = cloud.w @ DATA.x.T / 8
    delta = (DATA.y - flow.f[0])[:, 0]
    va = kappa * torch.tanh(h) @ delta / 4
    vw = kappa / ratio * (cloud.a * (1 - torch.tanh(h) ** 2)) @ (delta[:, None] * DATA.x / 8) / 4
    of_a, of_w = va - decay * cloud.a[:, 0] - s * cloud.a[:, 0].sign(), vw - decay * cloud.w
    squares = cloud.a.square().sum(1) + ratio * cloud.w.square().sum(1)
    v = -(cloud.a[:, 0] * va) + decay * squares / 2 + s * cloud.a.abs().sum(1)
    moving = (of_a.square().mean() + ratio * of_w.square().sum(1).mean()) * transport
    expected = float(moving + alpha * v.var(correction=0))
    seen = penalised(flow.measure(0), flow.loss[0]) - penalised(flow.measure(-1), flow.loss[1])
    assert seen / eta == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("mass_rate", "momentum"), [(0.0, 0.0), (2.0, 0.0), (2.0, 0.5)])
def test_total_variation_leads_to_the_lasso(mass_rate, momentum):
    """At fixed input weights the signed measure is convex: least (1 / 2P) |y - X beta|^2 + (s Gamma / kappa) |beta|_1, by scikit-learn"""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=g, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1])
    cloud, s, gain = mf.ParticleMeasure.iid(16, 3, seed=5), 0.05, 1 / 0.7
    scaling = replace(mf.mean_field(0.7), eta_w=0.0)
    problem = mf.Problem(
        mf.Dataset(x, y),
        mf.Network(1, "tanh"),
        scaling,
        mf.Training(2.0 * (1 - momentum), 1200, momentum=momentum, record_every=600),
    )
    solver = WassersteinFlow(initial=cloud, variation=s / (1 - momentum), mass_rate=mass_rate)
    end = solver(problem).measure()
    design = (gain * torch.tanh(cloud.w @ x.T / 3**0.5)).T.numpy()
    lasso = Lasso(s * gain / 0.7, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(design, y[:, 0].numpy())
    beta = (end.m * end.a[:, 0]).numpy()
    np.testing.assert_allclose(beta, lasso.coef_, atol=1e-4)
    assert 2 <= np.count_nonzero(lasso.coef_) <= 12
    if not mass_rate:
        assert np.array_equal(beta != 0, lasso.coef_ != 0)  # exact zeros


def test_momentum_of_masses_is_the_heavy_ball_on_their_logarithms():
    """By a loop of torch.optim.SGD on log m and the particles, whose gradients are those of (116)"""
    problem = replace(PROBLEM, network=mf.Network(1, "tanh"), training=mf.Training(0.3, 5, momentum=0.6))
    cloud, kappa, alpha = mf.ParticleMeasure.iid(10, 64, seed=2), 0.7, 1.7
    a, w, log = (t.clone().requires_grad_() for t in (cloud.a, cloud.w, cloud.m.log()))
    ball, seen = torch.optim.SGD([a, w, log], 0.3, momentum=0.6), []
    for step in range(6):
        m = log.softmax(0).detach()
        features = torch.tanh(w @ DATA.x.T / 8)
        f = (m[:, None] * a * features).sum(0) / kappa
        seen.append(f.detach())
        if step == 5:
            break
        first = -kappa * (a * features) @ (DATA.y[:, 0] - f.detach()) / 4  # V of each particle
        ball.zero_grad()
        first.sum().backward()
        log.grad = alpha * (first - m @ first).detach()
        ball.step()
    found = WassersteinFlow(initial=cloud, mass_rate=alpha)(problem)
    torch.testing.assert_close(found.f[:, :, 0], torch.stack(seen), rtol=1e-10, atol=1e-12)


# -- births and deaths ----------------------------------------------------------------------------------------------------------


def _light_and_heavy(seed=0):
    """(a, w, b, log m) of 40 particles, of which 15 are light"""
    g = torch.Generator().manual_seed(seed)
    a, w = torch.randn(40, 1, generator=g, dtype=torch.float64), torch.randn(40, 3, generator=g, dtype=torch.float64)
    m = 0.5 + torch.rand(40, generator=g, dtype=torch.float64)
    m[5:20] = 0.05 * torch.rand(15, generator=g, dtype=torch.float64)
    return a, w, a.new_zeros(1), (m / m.sum()).log()


def _mean(state):
    """<g> of a few functions of the particles"""
    a, w, _, log = state
    return log.exp() @ torch.cat([a, w, a * torch.tanh(w), a.square()], 1)


def test_births_and_deaths_keep_total_mass_and_the_measure_in_expectation():
    before, seeds = _mean(_light_and_heavy()), 400
    found = [reborn(_light_and_heavy(), 0.0, (True, True), torch.Generator().manual_seed(s)) for s in range(seeds)]
    after = torch.stack([_mean(state) for state in found])
    error = after.std(0) / seeds**0.5
    assert ((after.mean(0) - before).abs() < 4 * error).all()
    assert (error < 0.002).all()
    m = found[0][3].exp()
    assert float(m.sum()) == pytest.approx(1, abs=1e-14)
    assert int((m < 0.1 / 40).sum()) <= 1
    assert float(m.max()) < float(_light_and_heavy()[3].exp().max())
    only = [t.clone() for t in _light_and_heavy()]
    only[3][5:20] = -800.0  # of no mass at all: the measure is kept exactly, but for splitting
    exact = reborn(tuple(t.clone() for t in only), 0.0, (True, True), torch.Generator())
    torch.testing.assert_close(_mean(exact), _mean((*only[:3], only[3].log_softmax(0))), rtol=1e-12, atol=1e-14)
    apart = reborn(tuple(t.clone() for t in only), 0.3, (True, True), torch.Generator())
    torch.testing.assert_close(_mean(apart)[:4], _mean(exact)[:4], rtol=1e-12, atol=1e-14)  # halves about their mean
    assert float((_mean(apart)[7] - _mean(exact)[7]).abs()) > 1e-3
    still = reborn(tuple(t.clone() for t in only), 0.3, (True, False), torch.Generator())
    assert len(still[1].unique(dim=0)) == 26  # the heavy ones and the heir
    assert len(still[0].unique(dim=0)) == 40


def test_births_escape_where_transport_and_masses_are_stuck():
    """One live relu among 64 fits one direction of two; the dead have no gradient, and no mass gives the live one a second direction"""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=g, dtype=torch.float64) * 2**0.5
    x[:, 0] = x[:, 0].abs() + 0.4
    y = torch.relu(x @ torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5).sum(1, keepdim=True)
    w = torch.tensor([[0.6, 0.4]] + 63 * [[-1.0, 0.0]], dtype=torch.float64)
    cloud = mf.ParticleMeasure(
        torch.ones(64, 1, dtype=torch.float64), w, torch.full((64,), 1 / 64, dtype=torch.float64)
    )
    problem = mf.Problem(mf.Dataset(x, y), mf.Network(1, "relu"), mf.mean_field(1.0), mf.Training(0.02, 300))
    stuck = [WassersteinFlow(initial=cloud, mass_rate=rate)(problem).loss for rate in (0.0, 15.0)]
    for loss in stuck:
        assert float(loss[-1]) > 0.99 * float(loss[-50])  # at rest
    assert float(stuck[0][-1]) == pytest.approx(float(stuck[1][-1]), rel=1e-3)
    solver = WassersteinFlow(initial=cloud, mass_rate=15.0, births=0.2)
    free = solver(problem)
    assert float(free.loss[-1]) < 0.15 * float(stuck[0][-1])
    assert float(free.measure().m.sum()) == pytest.approx(1, abs=1e-12)
    again = solver.resume(solver(problem.with_steps(120)), 180)
    assert torch.equal(again.f, free.f)
    other = replace(solver, seed=1)(problem)
    assert not torch.equal(other.f, free.f)
    assert float(other.loss[-1]) < 0.15 * float(stuck[0][-1])


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        ({"mass_rate": -1.0}, {}, "mass_rate must be non-negative"),
        ({"transport": False}, {}, "let nothing move"),
        ({"mass_rate": 1.0}, {"training": mf.Training(temperature=0.1)}, "a cloud has none: received temperature=0.1"),
        ({"births": 0.1}, {}, "without mass_rate no mass moves"),
        ({"mass_rate": 1.0, "births": 0.1}, {"training": mf.Training(momentum=0.5)}, "received momentum=0.5"),
        (
            {"mass_rate": 1.0, "births": 0.1},
            {"training": mf.Training(0.1, 5, "gradient_flow")},
            "without momentum, .*flow",
        ),
        ({"variation": 0.1}, {"training": mf.Training(0.1, 5, "gradient_flow")}, "after each step of gradient_descent"),
        ({"variation": 0.1}, {"training": mf.Training(temperature=0.1)}, "received temperature=0.1"),
        ({"variation": 0.1, "readout_ridge": 0.1}, {}, "readout_ridge=0.1, which has one of its own"),
        ({"mass_rate": 1.0}, {"training": mf.Training(optimiser="adam")}, "received optimiser=Adam"),
        ({"mass_rate": 1.0}, {"scaling": replace(mf.mean_field(), eta_a=0.0)}, "received eta_a=0"),
    ],
    ids=str,
)
def test_what_masses_do_not_follow_is_refused(settings, change, said):
    with pytest.raises(ValueError, match=said):
        WassersteinFlow(16, **settings)(replace(PROBLEM, **change))
