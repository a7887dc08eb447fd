"""Averages over two Gaussians: closed forms, quadrature and the table of many pairs against each other and against identities."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import meanfield as mf
from meanfield.averages_table import prepared
from meanfield.gaussian_averages import closed_form, gaussian_averages, register_closed_form
from meanfield.gaussian_quadrature import Quadrature

NAMES = ("linear", "tanh", "relu", "erf", "sigmoid", "softplus", "sin", "gelu")
CLOSED = ("linear", "relu", "erf", "sin", "gelu")


def covariances(scale, seed=0):
    """Of six points of unequal norms, two of them opposite in direction and two nearly the same"""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[3], x[4] = -1.3 * x[2], x[1] + 1e-3
    c = scale**2 * x @ x.T / 3
    return c.diagonal().clone(), c


def apart(found, expected):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_equal_quadrature(name, scale):
    p, c = covariances(scale)
    exact, numerical = gaussian_averages(name), gaussian_averages(name, quadrature=True)
    assert exact.exact
    assert not numerical.exact
    assert apart(exact.pair(p, p, c), numerical.pair(p, p, c)) < 1e-10
    assert apart(exact.single(p), numerical.single(p)) < 1e-10


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "gelu"])
def test_the_table_equals_quadrature_of_each_pair(name, scale):
    p, c = covariances(scale)
    source = Quadrature(mf.activation(name))
    assert apart(prepared(source, p, p, 10**6)(p, p, c), source.pair(p, p, c)) < 1e-12


def test_the_table_between_its_nodes_and_at_zero_variance():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=g, dtype=torch.float64)
    x[7] = 0
    c = x @ x.T
    p = c.diagonal().clone()
    assert (
        apart(
            prepared(Quadrature(mf.activation("gelu")), p, p, 10**6)(p, p, c), gaussian_averages("gelu").pair(p, p, c)
        )
        < 1e-12
    )


def test_a_kink_away_from_zero_against_adaptive_integration():
    hard = mf.Activation(
        "hard tanh", lambda h: h.clamp(-1, 1), lambda h: (h.abs() < 1).to(h.dtype), kinks=((-1.0, 1.0), (1.0, -1.0))
    )
    p, q, c = (torch.tensor(v, dtype=torch.float64) for v in ([1.7], [0.8], [[0.9]]))

    def mean_given(u):
        """<clip(v)> at fixed u: clip(v) = relu(v + 1) - relu(v - 1) - 1"""
        mean, std = 0.9 / 1.7 * u, math.sqrt(0.8 - 0.9**2 / 1.7)
        ends = [(mean + k, (mean + k) / std) for k in (1, -1)]
        above, below = (m * norm.cdf(z) + std * norm.pdf(z) for m, z in ends)
        return above - below - 1

    def integrand(u):
        return min(1.0, max(-1.0, u)) * mean_given(u) * norm.pdf(u / math.sqrt(1.7)) / math.sqrt(1.7)

    found = Quadrature(hard).pair(p, q, c)[0].item()
    assert found == pytest.approx(quad(integrand, -14, 14, points=(-1, 1), epsabs=1e-12, limit=200)[0], abs=1e-10)


def test_leaky_relu_is_a_mixture_of_relu_and_linear():
    leaky = mf.Activation(
        "leaky", lambda h: torch.maximum(h, 0.1 * h), lambda h: 0.1 + 0.9 * (h > 0).to(h.dtype), kinks=((0.0, 0.9),)
    )
    p, c = covariances(1.0)
    phi, slope = gaussian_averages("relu").pair(p, p, c)
    found = gaussian_averages(leaky).pair(p, p, c)
    assert apart(found, (0.81 * phi + 0.1 * c, 0.81 * slope + 0.1)) < 1e-12  # <u relu(v)> = c / 2, <relu'> = 1/2


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_average_is_the_derivative_in_the_covariance(name):
    """Price's theorem, d <phi phi> / dc = <phi' phi'>, holds for every activation"""
    averages, step = gaussian_averages(name), 1e-4
    p, q = (torch.tensor([v], dtype=torch.float64) for v in (1.2, 0.7))
    c = torch.tensor([[0.4]], dtype=torch.float64)
    slope = (averages.pair(p, q, c + step)[0] - averages.pair(p, q, c - step)[0]) / (2 * step)
    assert slope.item() == pytest.approx(averages.pair(p, q, c)[1].item(), rel=1e-6)


def test_an_undeclared_kink_is_refused():
    with pytest.raises(ValueError, match="Declare its kinks"):
        Quadrature(
            mf.Activation("secret", lambda h: (h - 0.3).relu(), lambda h: (h > 0.3).to(h.dtype), tried=True)
        ).single(torch.ones(1, dtype=torch.float64))


def test_many_pairs_with_kinks_are_refused():
    leaky = mf.Activation("leaky", torch.relu, lambda h: (h > 0).to(h.dtype), kinks=((0.0, 1.0),))
    with pytest.raises(ValueError, match="register_closed_form"):
        gaussian_averages(leaky).prepare(torch.ones(1), torch.ones(1), 10**6)


def test_closed_forms_belong_to_one_activation():
    assert closed_form(mf.Activation("relu", torch.sin, torch.cos)) is None
    assert closed_form("tanh") is None
    with pytest.raises(ValueError, match="already"):
        register_closed_form("relu", lambda p, q, c: (c, c), lambda p: (p, p))
    with pytest.raises(ValueError, match="unknown activation"):
        register_closed_form("nothing", lambda p, q, c: (c, c), lambda p: (p, p))
