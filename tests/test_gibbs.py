"""The stationary measure of Langevin descent: quadrature, a Gaussian process, long runs, and that nothing lies below it (115)."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import integrate, optimize

import meanfield as mf
from solvers import SolverError, WassersteinFlow, gibbs_fixed_point
from solvers.two_layer.gibbs import _Average

NOISY = mf.Training(0.05, 300, temperature=0.5, weight_decay=0.4)
DATA = mf.digits((0, 1), n_train=4, n_test=2)
PROBLEM = mf.Problem(DATA, mf.Network(1, "tanh", bias_std=0.4), mf.mean_field(0.8), NOISY)


def test_one_sample_in_one_dimension_by_quadrature():
    """rho(a, w) ~ exp(-lambda (a^2 + w^2) / 2 tau + (kappa / tau) Delta a phi(w x)), Delta = y - Gamma <a phi>, integrated in both"""
    x, y, gamma, tau, decay = 1.2, 0.9, 0.5, 0.3, 0.2
    data = mf.Dataset(torch.tensor([[x]], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64))
    problem = mf.Problem(
        data, mf.Network(1, "tanh"), mf.mean_field(gamma), mf.Training(temperature=tau, weight_decay=decay)
    )

    def weight(a, w, delta):
        return math.exp(-decay * (a * a + w * w) / (2 * tau) + gamma / tau * delta * a * math.tanh(w * x))

    def average(of, delta):
        return integrate.dblquad(lambda a, w: of(a, w) * weight(a, w, delta), -8, 8, -8, 8, epsabs=1e-11)[0]

    def off(f):
        return average(lambda a, w: a * math.tanh(w * x), y - f) / average(lambda a, w: 1.0, y - f) / gamma - f

    f = optimize.brentq(off, 0, y, xtol=1e-10)
    found = gibbs_fixed_point(problem)
    assert float(found.f) == pytest.approx(f, rel=1e-7)
    delta = y - f
    z = average(lambda a, w: 1.0, delta) / (2 * math.pi * tau / decay)
    divergence = gamma / tau * delta * gamma * f - math.log(z)
    assert found.divergence == pytest.approx(divergence, rel=1e-6)
    assert found.free_energy == pytest.approx(gamma**2 * delta**2 / 2 + tau * divergence, rel=1e-6)
    assert found.loss == pytest.approx(delta**2 / 2, rel=1e-6)


def test_the_lazy_limit_is_a_gaussian_process():
    """gamma0 -> 0: regression with the kernel of the start and the noise lambda P (equation 95)"""
    training = replace(NOISY, weight_decay=0.5)
    problem = replace(PROBLEM, scaling=mf.mean_field(1e-3), network=mf.Network(1, "erf"), training=training)
    kernel = mf.nngp_and_ntk(problem.network, mf.ntk(), DATA.x, DATA.x)[0]
    across = mf.nngp_and_ntk(problem.network, mf.ntk(), DATA.x_test, DATA.x)[0]
    expected = across @ torch.linalg.solve(kernel + 0.5 * 4 * torch.eye(4, dtype=torch.float64), DATA.y)
    found = gibbs_fixed_point(problem, points=2**15)
    assert found.f_test is not None
    torch.testing.assert_close(found.f_test, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"loss": "logistic"},
        {"loss": "cross_entropy", "data": mf.digits((0, 1, 2), n_train=5, n_test=1)},
    ],
    ids=["squared", "logistic", "classes"],
)
def test_langevin_descent_ends_there(change):
    problem = replace(PROBLEM, **change)
    found = gibbs_fixed_point(problem)
    runs = torch.stack([WassersteinFlow(2**10, seed=s, snapshots=())(problem).f[150:] for s in range(4)])
    mean, error = runs.mean((0, 1)), runs.mean(1).std(0) / 2
    # steps of 0.05 leave the variance of weights larger by eta lambda / 2, one hundredth
    assert ((mean - found.f).abs() <= 5 * error + 0.02 * found.f.abs().max()).all()
    assert float(found.f.abs().max()) > 5 * float(error.max())
    observed = found.measure.m @ found.measure.a  # <a> and a law of mean 1
    assert found.measure.m.sum() == pytest.approx(1)
    assert float(observed.abs().max()) < 1


def test_nothing_lies_below():
    """The free energy of measures tilted by other errors"""
    found, average, g = gibbs_fixed_point(PROBLEM), _Average(PROBLEM, 2**14, 0), torch.Generator().manual_seed(0)
    delta = DATA.y - found.f
    assert average.free_energy(average.at(delta)) == pytest.approx(found.free_energy, rel=1e-12)
    above = []
    for size in (1e-2, 1e-1, 1.0):
        change = size * torch.randn(delta.shape, generator=g, dtype=torch.float64)
        above.append(average.free_energy(average.at(delta + change)) - found.free_energy)
    assert 0 < above[0] < above[1] < above[2]
    assert above[0] < 1e-3  # quadratic in the distance


def test_an_average_that_rests_on_few_points_is_told():
    cold = replace(PROBLEM, training=replace(NOISY, temperature=1e-5, weight_decay=1e-5), scaling=mf.mean_field(10.0))
    with pytest.warns(RuntimeWarning, match=r"rests on 0\.0\d* of its 4096 points"):
        found = gibbs_fixed_point(cold, points=2**12)
    assert found.effective < 0.01
    assert gibbs_fixed_point(PROBLEM).effective > 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": mf.Network(2)}, "takes networks of depth 1"),
        ({"training": mf.Training(weight_decay=0.1)}, "without temperature there is no stationary measure"),
        ({"training": mf.Training(temperature=0.1)}, "without weight_decay"),
        ({"training": replace(NOISY, momentum=0.5)}, "received momentum=0.5"),
        ({"scaling": mf.ntk()}, "has no limit as a flow of measures"),
        ({"scaling": replace(mf.mean_field(), eta_a=2.0)}, "one learning rate for readout and input weights"),
    ],
    ids=str,
)
def test_what_has_no_gibbs_measure_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        gibbs_fixed_point(replace(PROBLEM, **change))


def test_an_equation_that_is_not_solved_says_so(monkeypatch):
    monkeypatch.setattr("solvers.two_layer.gibbs._STEPS", 1)
    with pytest.raises(SolverError, match="is off by"):
        gibbs_fixed_point(replace(PROBLEM, loss="logistic"))
