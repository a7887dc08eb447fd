"""Kernels of drawn networks (torch.func) beside the analytic ones."""

import pytest
import torch
from scipy.stats import t as student

import meanfield as mf
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.network import activations
from meanfield.scaling.standard import improved_standard, naive_standard
from solvers import FiniteWidth
from solvers.finite.empirical_kernels import empirical_tangent_kernel, monte_carlo_kernels

NAMES = activations.names()


def points(n=3, inputs=4):
    return torch.randn(n, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def within(network, scaling, width, seeds):
    """As improbable as four standard errors, in Student's distribution of so few seeds"""
    found, (nngp, ntk) = (
        monte_carlo_kernels(network, scaling, points(), width, seeds),
        nngp_and_ntk(network, scaling, points()),
    )
    limit = student.ppf(1 - 3.2e-5, len(seeds) - 1)
    assert float(((found.nngp - nngp) / found.nngp_error).abs().max()) < limit
    assert float(((found.ntk - ntk) / found.ntk_error).abs().max()) < limit
    assert float(found.ntk_error.max() / ntk.diagonal().max()) < 0.2


@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_analytic_kernels_within_four_standard_errors(name, depth, bias):
    within(mf.Network(depth, name, bias_std=bias), mf.ntk(), 128, range(16))


def test_residual_branches():
    within(mf.Network(3, "tanh", 1.2, 0.4, residual=0.9), mf.ntk(), 128, range(16))


@pytest.mark.parametrize("scaling", [improved_standard((4, 12)), naive_standard((128, 384))], ids=["improved", "naive"])
def test_standard_parameterizations(scaling):
    within(mf.Network(2, "tanh", 1.2, 0.5), scaling, 32 if scaling.improved else 1, range(16))


def test_the_same_kernel_as_the_networks_that_are_trained():
    """FiniteWidth measures K with other code and other draws: both have the same mean"""
    problem = mf.Problem(
        mf.Dataset(points(), points()[:, :1]),
        mf.Network(2, "tanh", bias_std=0.3),
        mf.mean_field(0.5),
        mf.Training(0.1, 0),
    )
    trained = torch.stack([s.tangent_kernel(0) for s in FiniteWidth(64, snapshots=(0,)).ensemble(problem, 64)])
    found = monte_carlo_kernels(problem.network, problem.scaling, points(), 64, 64)
    error = (trained.var(0) / 64 + found.ntk_error**2).sqrt()
    assert float(((trained.mean(0) - found.ntk) / error).abs().max()) < 4


def test_between_two_sets_and_from_the_same_seed():
    x, network = points(), mf.Network(2, "relu")
    whole = empirical_tangent_kernel(network, mf.ntk(), x, 32, seed=3)
    torch.testing.assert_close(empirical_tangent_kernel(network, mf.ntk(), x[:2], 32, 3, x), whole[:2])
    assert not torch.equal(empirical_tangent_kernel(network, mf.ntk(), x, 32, seed=4), whole)


def test_bad_settings():
    with pytest.raises(ValueError, match="at least two"):
        monte_carlo_kernels(mf.Network(), mf.ntk(), points(), 8, (3,))
    with pytest.raises(ValueError, match="width must be at least 1"):
        empirical_tangent_kernel(mf.Network(), mf.ntk(), points(), 0)
    with pytest.raises(MemoryError, match="smaller width"):
        empirical_tangent_kernel(mf.Network(3), mf.ntk(), points(), 10**6)
