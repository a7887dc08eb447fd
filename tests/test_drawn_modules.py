"""Kernels of drawn modules, beside the analytic ones of perceptrons and convolutions."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import t as student
from torch import nn

import meanfield as mf
from meanfield.network.architecture import perceptron
from solvers import FiniteWidth, monte_carlo_kernels
from tests.any_networks import Convolutional, Recurrent, Residual, digits

SEEDS = 16


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(found, nngp, ntk):
    """As improbable as four standard errors, in Student's distribution of so few seeds; the bias, 1/N of it, is small beside them"""
    limit = student.ppf(1 - 3.2e-5, SEEDS - 1)
    for mean, error, right in ((found.nngp, found.nngp_error, nngp), (found.ntk, found.ntk_error, ntk)):
        assert mean.shape == right.shape
        assert float(((mean - right) / error).abs().max()) < limit
    assert float(found.ntk_error.max() / ntk.abs().max()) < 0.15


@pytest.mark.parametrize(
    "scaling", [mf.ntk(), mf.improved_standard(12), mf.naive_standard(128)], ids=["ntk", "improved", "naive"]
)
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_perceptrons_as_modules(scaling, bias):
    network, x = mf.Network(3, "tanh", 1.2, bias), points(3, 4)
    width = 128 if scaling == mf.ntk() else 10 if scaling.improved else 1
    found = monte_carlo_kernels(perceptron(network, 4, 2), scaling, x, width, SEEDS)
    near(found, *mf.nngp_and_ntk(network, scaling, x))


class Filters(nn.Module):
    def __init__(self, n, average):
        super().__init__()
        self.read, self.mix = nn.Conv2d(2, n, 3, padding=1, bias=False), nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.out, self.average = nn.Linear(n if average else 12 * n, 1, bias=False), average

    def forward(self, x):
        h = torch.relu(self.mix(torch.relu(self.read(x))))
        return self.out(h.mean((2, 3)) if self.average else h.flatten(1))


@pytest.mark.parametrize("scaling", [mf.ntk(), mf.improved_standard(8)], ids=["ntk", "improved"])
@pytest.mark.parametrize("average", [True, False])
def test_convolutions_as_modules(scaling, average):
    network = mf.ConvNetwork(2, "relu", readout="global_average" if average else "vectorised")
    x, width = points(3, 2, 3, 4), 96 if scaling == mf.ntk() else 12
    found = monte_carlo_kernels(partial(Filters, average=average), scaling, x, width, SEEDS)
    near(found, *mf.conv_nngp_and_ntk(network, scaling, x))


def test_outputs_at_positions():
    """Positions that do not meet are samples of their own"""
    x = points(2, 3, 4)
    found = monte_carlo_kernels(perceptron(mf.Network(2, "erf"), 4, 2), mf.ntk(), x, 128, SEEDS)
    nngp, ntk = mf.nngp_and_ntk(mf.Network(2, "erf"), mf.ntk(), x.flatten(0, 1))
    near(found, nngp.view(2, 3, 2, 3), ntk.view(2, 3, 2, 3))


class Ended(nn.Module):
    """By a function of its readout"""

    def __init__(self, n):
        super().__init__()
        self.read, self.out = nn.Linear(4, n), nn.Linear(n, 2)

    def forward(self, x):
        return torch.tanh(3 * self.out(torch.relu(self.read(x))))


def test_the_same_networks_as_those_that_are_trained():
    problem = mf.Problem(mf.Dataset(points(3, 4), points(3, 2)), Ended, mf.ntk(), mf.Training(0.1, 0))
    nets = FiniteWidth(24, snapshots=(0,)).ensemble(problem, 3)
    found = monte_carlo_kernels(Ended, mf.ntk(), problem.data.x, 24, 3)
    products = torch.stack([torch.einsum("pc,qc->pq", net.f[0], net.f[0]) / 2 for net in nets])
    tangents = torch.stack([net.tangent_kernel(0).diagonal(dim1=1, dim2=3).mean(-1) for net in nets])
    for mean, error, many in ((found.nngp, found.nngp_error, products), (found.ntk, found.ntk_error, tangents)):
        torch.testing.assert_close(mean, many.mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(error, many.std(0) / math.sqrt(3), rtol=1e-9, atol=1e-14)


def test_frozen_readouts_have_a_covariance_and_no_share_in_the_tangent_kernel():
    network, x = perceptron(mf.Network(1, "relu"), 4, 1), points(3, 4)
    frozen = mf.Architecture(network.build, frozen=("readout.weight",))
    found, whole = (monte_carlo_kernels(own, mf.ntk(), x, 32, 4) for own in (frozen, network))
    torch.testing.assert_close(found.nngp, whole.nngp)
    torch.testing.assert_close(found.ntk + found.nngp, whole.ntk)  # whose readout has the share nngp


@pytest.mark.parametrize("build", [Convolutional, partial(Residual, blocks=1)])
def test_the_naive_standard_kernel_grows_with_the_width_and_the_improved_one_does_not(build):
    x = digits(2, build is Convolutional)[0]
    naive, improved = [], []
    for s in (2, 8, 32):
        for scaling, kept in ((mf.naive_standard(8), naive), (mf.improved_standard(8), improved)):
            found = monte_carlo_kernels(build, scaling, x, s, SEEDS)
            kept.append((found.ntk.diagonal().mean(), found.ntk_error.diagonal().max()))
    (a, b, c), errors = (mean for mean, _ in naive), [error for _, error in naive]
    first, second = b - a, c - b  # of c0 + c1 n the second is four times the first
    assert abs(second - 4 * first) < 4 * math.sqrt(errors[2] ** 2 + 25 * errors[1] ** 2 + 16 * errors[0] ** 2)
    assert second > 10 * math.hypot(errors[2], errors[1])
    assert c > 5 * a
    assert abs(improved[2][0] - improved[0][0]) < 4 * math.hypot(improved[2][1], improved[0][1])


def test_what_does_not_fit_is_refused_before_work():
    with pytest.raises(ValueError, match=r"follow from one n: received widths=\(4, 8\)"):
        monte_carlo_kernels(Ended, mf.improved_standard((4, 8)), points(3, 4), 2)
    with pytest.raises(ValueError, match=r"forward fails for x of shape \(3, 5\)"):
        monte_carlo_kernels(Ended, mf.ntk(), points(3, 5), 8)
    with pytest.raises(ValueError, match="keeps a part of the outputs as it starts"):
        monte_carlo_kernels(Ended, mf.ic_mean_field(), points(3, 4), 8)
    with pytest.raises(ValueError, match="width must be at least 1"):
        monte_carlo_kernels(Recurrent, mf.ntk(), points(3, 64), 0)
    with pytest.raises(MemoryError, match="the kernels of 2 outputs of 500000 samples"):
        monte_carlo_kernels(Ended, mf.ntk(), torch.zeros(500_000, 4), 8)
