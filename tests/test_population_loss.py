"""The loss over all Gaussian inputs, and the known equations of one-pass descent on it (equations 118 and 119)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow

STREAM = mf.stream(mf.Teacher(4, link="erf"), batch=3, watched=8)
PROBLEM = mf.Problem(STREAM, mf.Network(1, "erf"), training=mf.Training(0.2, 8))


# -- the population loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("act", "directions"), [("erf", 1), ("erf", 2), ("relu", 2), ("tanh", 1)])
def test_the_population_loss_is_that_of_many_samples(act, directions):
    teacher = mf.Teacher(5, directions, act, noise=0.3, seed=1)
    problem = mf.Problem(
        mf.stream(teacher, 2, 4), mf.Network(1, act, weight_std=1.3), mf.mean_field(0.7), mf.Training(0.2, 20)
    )
    net = FiniteWidth(24)(problem)
    found = mf.population_loss(net)
    x, y = teacher.quiet(200_000, torch.Generator().manual_seed(9))
    phi = mf.activation(act)
    for step, value in zip((0, 20), found, strict=True):
        cloud = net.measure(step)
        f = phi(1.3 * x @ cloud.w.T / math.sqrt(5)) @ (1.3 / 0.7 * cloud.m[:, None] * cloud.a)
        each = 0.5 * (f - y).square()
        assert abs(float(value - each.mean())) < 4 * float(each.std()) / math.sqrt(len(x))
    assert found[1] < found[0]
    data = mf.multi_index_teacher(8, 0, 5, directions, act, seed=1)
    same = mf.population_loss(
        replace(net, problem=replace(problem, data=data), f=net.f[:, :1].expand(-1, 8, -1)), teacher
    )
    assert torch.equal(same, found)


def test_the_population_loss_knows_settings_by_layer():
    own = mf.Architecture(mf.Network(1, "erf"), weight_std={"input": 1.4, "readout": 0.6}, rate={"input": 0.5})
    limit = WassersteinFlow(2**9, snapshots=(-1,))(replace(PROBLEM, network=own))
    x, y = STREAM.law(100_000, torch.Generator().manual_seed(9))
    cloud = limit.measure(-1)
    f = torch.erf(0.7 * x @ cloud.w.T) @ (0.6 * cloud.m[:, None] * cloud.a)
    each = 0.5 * (f - y).square()
    assert abs(float(mf.population_loss(limit) - each.mean())) < 4 * float(each.std()) / math.sqrt(len(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": mf.Network(1, "tanh")}, "'tanh' and another link"),
        ({"network": mf.Network(1, "erf", bias_std=0.1)}, "received bias_std=0.1"),
        ({"network": mf.Network(2, "erf")}, "received depth 2; the loss on watched samples is solution.loss"),
        (
            {"data": mf.stream(mf.Mixture(4), 2, 4)},
            "'gaussian mixture of 2' of a Mixture, which has none; .* is solution.loss",
        ),
    ],
)
def test_other_population_losses_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mf.population_loss(FiniteWidth(4)(replace(PROBLEM.with_steps(1), **change)))


def test_what_lacks_a_teacher_or_particles_is_told_what_to_do():
    mine = mf.stream(lambda count, g: STREAM.law(count, g), 2, 4, name="mine")
    known = mf.Dataset(mine.x, mine.y, name="kept")
    for data, told in (
        (mine, "teacher must be given for 'mine'.*is solution.loss"),
        (known, "'kept'.*solution.test_loss"),
    ):
        with pytest.raises(ValueError, match=told):
            mf.population_loss(FiniteWidth(4)(replace(PROBLEM.with_steps(1), data=data)))
    with pytest.raises(ValueError, match=r"of FiniteWidth kept none: solve by WassersteinFlow\(snapshots=\(0, -1\)\)"):
        mf.population_loss(FiniteWidth(4, keep_neurons=False)(PROBLEM.with_steps(1)))


# -- known equations -----------------------------------------------------------------------------------------------------


def _pair(p, q, c):
    """<erf erf> of two Gaussians and its derivatives in c and p"""
    size = (1 + 2 * p) * (1 + 2 * q)
    root = np.sqrt(size - 4 * c * c)
    return 2 / np.pi * np.arcsin(2 * c / np.sqrt(size)), 4 / np.pi / root, -4 / np.pi * c / (1 + 2 * p) / root


def population_flow(a, w, u, gamma0, times):
    """(times, N, D) of w under dw/dt = -N gamma0^2 dL/dw, da/dt likewise: gradient flow on the population loss of N neurons, w x/sqrt(D)"""
    n, d = w.shape

    def velocity(_, state):
        b, v = state[:n] / (n * gamma0), state[n:].reshape(n, d) / math.sqrt(d)
        q, r = (v * v).sum(1), v @ u
        own, by_c, by_q = _pair(q[:, None], q[None], v @ v.T)
        with_u, by_r, by_p = _pair(q[:, None], 1.0, r[:, None])
        of_b = own @ b - with_u[:, 0]
        of_v = b[:, None] * ((by_c * b) @ v + 2 * (by_q @ b)[:, None] * v - by_r * u[None] - 2 * by_p * v)
        rate = n * gamma0**2
        return np.concatenate([-rate * of_b / (n * gamma0), (-rate * of_v / math.sqrt(d)).ravel()])

    found = solve_ivp(velocity, (0, times[-1]), np.concatenate([a, w.ravel()]), t_eval=times, rtol=1e-8, atol=1e-10)
    return found.y[n:].T.reshape(-1, n, d)


def test_at_small_learning_rates_it_is_the_flow_of_the_population_loss():
    """Equation 119: the distance falls as the root of the learning rate"""
    cloud = mf.ParticleMeasure.iid(6, 3, seed=4)
    a, w = cloud.a[:, 0].numpy(), cloud.w.numpy()
    law, gamma0, time = mf.Teacher(3, link="erf", seed=1), 0.8, 6.0
    exact = population_flow(a, w, law.vectors[:, 0].numpy(), gamma0, [time])[0]
    moved = float(np.linalg.norm(exact - w))
    off = {}
    for eta in (0.2, 0.0125):
        training = mf.Training(eta, round(time / eta), record_every=1000)
        runs = []
        for seed in range(12):
            problem = mf.Problem(mf.stream(law, 2, 4, seed=seed), mf.Network(1, "erf"), mf.mean_field(gamma0), training)
            runs.append(WassersteinFlow(initial=cloud)(problem).measure(-1).w.numpy())
        off[eta] = float(np.sqrt(np.mean([np.sum((run - exact) ** 2) for run in runs])))
        bias = float(np.linalg.norm(np.mean(runs, 0) - exact))
        assert bias < 3 * off[eta] / math.sqrt(12)
    assert off[0.0125] < 0.1 * moved
    assert 2.5 < off[0.2] / off[0.0125] < 6.5  # 4, each with a relative error of about 1/sqrt(24)


def _three(c, i, j, k):
    """I3 of Saad and Solla, <g'(x_i) x_j g(x_k)> with g = erf(x/sqrt 2), of covariances c"""
    size = (1 + c[i, i]) * (1 + c[k, k]) - c[i, k] ** 2
    return 2 / np.pi / np.sqrt(size) * (c[j, k] * (1 + c[i, i]) - c[i, j] * c[i, k]) / (1 + c[i, i])


def _four(c, *at):
    """I4, <g'(x_1) g'(x_2) g(x_3) g(x_4)>"""
    c = c[np.ix_(at, at)]
    four = (1 + c[0, 0]) * (1 + c[1, 1]) - c[0, 1] ** 2

    def lambda_of(i, j):
        own = c[i, j] + (i == j)
        return (
            four * own
            - c[1, i] * c[1, j] * (1 + c[0, 0])
            - c[0, i] * c[0, j] * (1 + c[1, 1])
            + c[0, 1] * (c[0, i] * c[1, j] + c[0, j] * c[1, i])
        )

    ratio = lambda_of(2, 3) / np.sqrt(lambda_of(2, 2) * lambda_of(3, 3))
    return 4 / np.pi**2 / np.sqrt(four) * np.arcsin(ratio)


def _order_parameters(b, a, q, r, rate, tau):
    """Q (n, n) and R (n,) at tau; f = b . erf(h), y = erf(z); rate: eta kappa_w omega^2 / B of equation 119"""
    n = len(b)

    def velocity(_, state):
        q, r = state[: n * n].reshape(n, n), state[n * n :]
        c = 2 * np.block([[q, r[:, None]], [r[None], np.ones((1, 1))]])  # of x = sqrt(2) h
        signs = np.append(-b, 1.0)  # Delta = y - f over all n + 1 fields
        phi = lambda i, j: sum(s * _three(c, i, j, k) for k, s in enumerate(signs))  # noqa: E731
        dq = np.array([[a[i] * phi(i, j) + a[j] * phi(j, i) for j in range(n)] for i in range(n)])
        for i in range(n):
            for j in range(n):
                noise = sum(s * t * _four(c, i, j, k, l) for k, s in enumerate(signs) for l, t in enumerate(signs))
                dq[i, j] += rate * a[i] * a[j] * 2 * noise
        return np.concatenate([dq.ravel(), [a[i] * phi(i, n) for i in range(n)]])

    found = solve_ivp(velocity, (0, tau), np.concatenate([q.ravel(), r]), rtol=1e-7, atol=1e-9).y[:, -1]
    return found[: n * n].reshape(n, n), found[n * n :]


def test_the_fourfold_average_is_that_of_samples():
    g = np.random.default_rng(0)
    root = g.normal(size=(4, 4)) / 2
    x = torch.from_numpy(g.normal(size=(400_000, 4)) @ root.T)
    slope, value = math.sqrt(2 / math.pi) * torch.exp(-x.square() / 2), torch.erf(x / math.sqrt(2))
    each = slope[:, 0] * slope[:, 1] * value[:, 2] * value[:, 3]
    assert abs(float(each.mean()) - _four(root @ root.T, 0, 1, 2, 3)) < 4 * float(each.std()) / math.sqrt(400_000)


@pytest.mark.parametrize("batch", [1, 3])
def test_in_many_dimensions_order_parameters_follow_saad_and_solla(batch):
    """Readouts at rest, learning rate of order one (equation 119): also the drift that the noise of samples makes"""
    dims, eta, time = 400, 6.0, 8.0
    g = torch.Generator().manual_seed(1)
    law = mf.Teacher(dims, link="erf", seed=1)
    w = torch.randn(2, dims, generator=g, dtype=torch.float64) * 0.7
    w[0] += 0.4 * math.sqrt(dims) * law.vectors[:, 0]
    a, m = torch.tensor([[1.2], [0.8]], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    scaling = replace(mf.mean_field(1.0), eta_a=0.0)
    training, found = mf.Training(eta, round(time * dims / eta), record_every=10**6), []
    for seed in range(8):
        problem = mf.Problem(mf.stream(law, batch, 4, seed=seed), mf.Network(1, "erf"), scaling, training)
        end = WassersteinFlow(initial=mf.ParticleMeasure(a, w, m), snapshots=(-1,))(problem).measure(-1).w
        found.append(
            np.concatenate([(end @ end.T / dims)[[0, 0, 1], [0, 1, 1]], (end @ law.vectors[:, 0] / dims**0.5)])
        )
    q, r = (w @ w.T / dims).numpy(), (w @ law.vectors[:, 0] / dims**0.5).numpy()
    b = (m * a[:, 0]).numpy()

    def of(rate):
        after_q, after_r = _order_parameters(b, a[:, 0].numpy(), q, r, rate, time)
        return np.concatenate([after_q[[0, 0, 1], [0, 1, 1]], after_r])

    mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / math.sqrt(8)
    assert np.abs((mean - of(eta / batch)) / error).max() < 5.5  # Student's t of 7: beyond it once in 200
    assert np.abs((mean - of(0.0)) / error).min() > 8, "the drift of the noise would not be seen"
