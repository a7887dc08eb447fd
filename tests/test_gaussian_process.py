"""Gaussian processes of infinite networks: against 50 digits, weights that are trained, and limits (equations 93 to 96)."""

import math
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.kernels.hyperparameters import log_derivative, value_of, varied
from solvers import lazy_prediction

DIGITS = 50


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(rows):
    """A matrix in mpmath"""
    return mp.matrix(rows if isinstance(rows, list) else rows.tolist())


def numbers(m):
    return torch.tensor([[float(m[i, j]) for j in range(m.cols)] for i in range(m.rows)], dtype=torch.float64)


def dense(kernel, y, noise, across=None, test=None):
    """Equations 93 and 94 with matrix inverses in mpmath"""
    s = kernel + noise * mp.eye(kernel.rows)
    inverse, outputs = s**-1, y.cols
    fit = y.T * inverse * y
    log = -sum(fit[c, c] for c in range(outputs)) / 2 - outputs * mp.log(mp.det(s)) / 2
    log -= kernel.rows * outputs * mp.log(2 * mp.pi) / 2
    if across is None:
        return log
    return across * inverse * y, test - across * inverse * across.T, log


def recursion(x, weight, bias, depth, activation, law):
    """Equation 43 of a perceptron in the NTK scaling, entry by entry in mpmath"""
    w2, b2, n = weight**2, bias**2, x.rows
    dot = x * x.T / x.cols

    def pair(p, q, c):
        if activation == "relu":
            angle = mp.acos(min(mp.mpf(1), c / mp.sqrt(p * q)))
            return mp.sqrt(p * q) * (mp.sin(angle) + (mp.pi - angle) * mp.cos(angle)) / (2 * mp.pi), (mp.pi - angle) / (
                2 * mp.pi
            )
        root = mp.sqrt((1 + 2 * p) * (1 + 2 * q) - 4 * c * c)
        return 2 / mp.pi * mp.asin(2 * c / mp.sqrt((1 + 2 * p) * (1 + 2 * q))), 4 / mp.pi / root

    sigma = theta = w2 * dot + b2 * mp.ones(n)
    for _ in range(depth):
        new, below = mp.matrix(n), mp.matrix(n)
        for i in range(n):
            for j in range(n):
                phi, slope = pair(sigma[i, i], sigma[j, j], sigma[i, j])
                new[i, j] = w2 * phi + b2
                below[i, j] = new[i, j] + w2 * slope * theta[i, j]
        sigma, theta = new, below
    return sigma if law == "nngp" else theta


@pytest.mark.parametrize("noise", [0.0, 1e-3, 10.0])
def test_posterior_and_likelihood_are_those_of_a_dense_formula_in_50_digits(noise):
    features, y = normal(8, 20), normal(5, 2, seed=1)
    joint = features @ features.T / 20
    kernel, across, test = joint[:5, :5], joint[5:, :5], joint[5:, 5:]
    with mp.workdps(DIGITS):
        mean, covariance, log = dense(*map(exactly, (kernel, y)), mp.mpf(noise), *map(exactly, (across, test)))
        mean, covariance, log = numbers(mean), numbers(covariance), float(log)
    found, left = mf.kernel_posterior(kernel, y, noise, across, test)
    rounding = 1e-15 * float(torch.linalg.cond(kernel))
    assert float((found - mean).abs().max()) < rounding * float(y.abs().max())
    assert float((left - covariance).abs().max()) < rounding
    assert torch.equal(left, left.T)
    torch.testing.assert_close(mf.kernel_posterior(kernel, y, noise, across, test.diagonal())[1], left.diagonal())
    assert mf.kernel_posterior(kernel, y, noise, across)[1] is None
    assert abs(float(mf.log_marginal_likelihood(kernel, y, noise)) - log) < rounding * abs(log)


def test_the_likelihood_carries_derivatives_in_kernel_and_noise():
    features, y, noise = normal(5, 9), normal(5, 2, seed=1), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    kernel = (features @ features.T).requires_grad_()

    def symmetric(kernel, noise):
        return mf.log_marginal_likelihood((kernel + kernel.T) / 2, y, noise)

    assert torch.autograd.gradcheck(symmetric, (kernel, noise))


@pytest.mark.parametrize("law", ["nngp", "ntk"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_gradients_in_noise_and_standard_deviations_agree_with_50_digits(activation, law):
    """To the rounding of what the derivatives add up, which is more than their own"""
    x, y, at = normal(4, 3), normal(4, 2, seed=1), {"noise": 0.1, "weight_std": 1.3, "bias_std": 0.4}
    network = mf.Network(3, activation, at["weight_std"], at["bias_std"])
    found = mf.GaussianProcess(network, noise=at["noise"], law=law).posterior(x, y)
    with mp.workdps(DIGITS):

        def log(noise, weight, bias):
            return dense(recursion(exactly(x), weight, bias, 3, activation, law), exactly(y), noise)

        place = [mp.mpf(value) for value in at.values()]
        assert abs(found.log_marginal_likelihood - float(log(*place))) < 1e-12
        right = [float(mp.diff(log, place, tuple(int(i == k) for i in range(3)))) for k in range(3)]
    gradient = found.gradient()
    assert list(gradient) == list(at)
    rounding = 1e-12 * float((found._regression.slope() * found._prior[0]).abs().sum())
    for (name, value), exact in zip(gradient.items(), right, strict=True):
        assert abs(value - exact) * at[name] < 10 * rounding, name
        assert abs(exact) * at[name] > 1e-3  # or the comparison would say little


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("weight_std", lambda value: mf.Network(1, "tanh", value, 0.2)),
        ("residual", lambda value: mf.Network(3, "relu", 1.2, 0.2, value)),
    ],
)
def test_gradients_of_any_network_are_those_of_its_likelihood(name, network):
    """Without closed averages, and in any of its numbers"""
    x, y, step = normal(3, 3), normal(3, seed=1), 1e-4

    def given(value):
        return mf.GaussianProcess(network(value), noise=0.2, law="ntk").posterior(x, y)

    up, down = (given(0.7 + s * step).log_marginal_likelihood for s in (1, -1))
    assert abs(given(0.7).gradient([name], tolerance=1e-8)[name] - (up - down) / (2 * step)) < 1e-6


@pytest.mark.parametrize("power", [1, 8, 42])
def test_differences_reach_their_tolerance(power):
    """Of weight_std^power, as in deep relu networks: the derivative, and how often the kernel is asked for"""
    asked = []
    found = log_derivative(lambda s: asked.append(s) or math.exp(power * s), 1.0, 1e-12)
    assert abs(found - power) < 1e-11 * power
    assert len(asked) <= 12
    assert abs(log_derivative(lambda s: math.exp(power * s), 1.0, 1e-8) - power) < 1e-7


NETWORK = mf.Network(2, "relu", 1.4, 0.3)


def test_small_noise_interpolates_and_large_noise_leaves_the_prior():
    x, y, other = normal(6, 4), normal(6, 2, seed=1), normal(3, 4, seed=2)
    prior = mf.nngp_and_ntk(NETWORK, mf.ntk(), other)
    for law, own in zip(("nngp", "ntk"), prior, strict=True):
        fits = mf.GaussianProcess(NETWORK, law=law).posterior(x, y)
        assert float((fits.mean(x) - y).abs().max()) < 1e-12
        assert float(fits.std(x).max()) < 1e-6  # the root of rounding
        loose = mf.GaussianProcess(NETWORK, noise=1e12, law=law).posterior(x, y)
        assert float(loose.mean(other).abs().max()) < 1e-10
        torch.testing.assert_close(loose.covariance(other), own, rtol=1e-10, atol=0)
    loose = mf.GaussianProcess(NETWORK, noise=1e12, law="ensemble").posterior(x, y)
    torch.testing.assert_close(loose.covariance(other), prior[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("law", ["nngp", "ntk", "ensemble"])
def test_the_order_of_samples_does_not_matter(law):
    x, y, other, order = normal(6, 4), normal(6, 2, seed=1), normal(3, 4, seed=2), torch.tensor([3, 0, 5, 1, 4, 2])
    process = mf.GaussianProcess(NETWORK, noise=0.1, law=law)
    one, two = process.posterior(x, y), process.posterior(x[order], y[order])
    torch.testing.assert_close(one.mean(other), two.mean(other), rtol=0, atol=1e-13)
    torch.testing.assert_close(one.covariance(other), two.covariance(other), rtol=0, atol=1e-13)
    if law != "ensemble":
        assert abs(one.log_marginal_likelihood - two.log_marginal_likelihood) < 1e-12


@pytest.mark.parametrize("law", ["nngp", "ntk", "ensemble"])
def test_deviations_are_the_roots_of_the_diagonal(law, monkeypatch):
    """However many points are taken at a time"""
    monkeypatch.setattr("meanfield.kernels.gaussian_process._AT_ONCE", 3)
    monkeypatch.setattr("meanfield.kernels.gaussian_process._ALONE", 2)
    found = mf.GaussianProcess(NETWORK, noise=0.1, law=law).posterior(normal(6, 4), normal(6, 2, seed=1))
    other = normal(7, 4, seed=2)
    root = found.covariance(other).diagonal().sqrt()
    torch.testing.assert_close(found.std(other), root[:, None].expand(-1, 2), rtol=1e-12, atol=1e-14)
    assert found.mean(other).shape == (7, 2)


@pytest.mark.parametrize("scaling", [mf.ntk(), mf.mean_field(0.5)])
def test_an_ensemble_without_noise_is_that_of_lazy_networks_at_the_end(scaling):
    data = mf.Dataset(normal(5, 3), normal(5, 2, seed=1), normal(4, 3, seed=2))
    end = lazy_prediction(mf.Problem(data, NETWORK, scaling), [math.inf])
    found = mf.GaussianProcess(NETWORK, scaling, law="ensemble").posterior(data.x, data.y)
    assert float((found.mean(data.x_test) - end.mean_test[0]).abs().max()) < 1e-12
    assert float((found.covariance(data.x_test) - end.covariance[0, 5:, 5:]).abs().max()) < 1e-12
    assert float((found.mean(data.x) - end.mean[0]).abs().max()) < 1e-12


def test_an_ensemble_with_noise_is_trained_with_a_ridge_to_its_start():
    """Weights of a linear model with these kernels, which solve their normal equations"""
    x, y, other, noise = normal(5, 3), normal(5, 1, seed=1), normal(4, 3, seed=2), 0.3
    nngp, ntk = mf.nngp_and_ntk(NETWORK, mf.ntk(), torch.cat([x, other]))
    jacobian = torch.linalg.cholesky(ntk)  # (points, weights)
    own = jacobian[:5]
    moves = torch.linalg.solve(own.T @ own + noise * torch.eye(9, dtype=torch.float64), own.T)  # of weights for y - f0
    responses = jacobian[5:] @ moves
    keeps = torch.cat([-responses, torch.eye(4, dtype=torch.float64)], 1)  # of f0 at all points
    found = mf.GaussianProcess(NETWORK, noise=noise, law="ensemble").posterior(x, y)
    torch.testing.assert_close(found.mean(other), responses @ y, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.covariance(other), keeps @ nngp @ keeps.T, rtol=0, atol=1e-12)


def test_targets_that_were_drawn_tell_their_noise_and_their_network():
    """60 outputs of the prior: what is found lies within the standard errors that the Fisher information gives"""
    x, noise, network = normal(20, 3), 0.2, mf.Network(2, "erf", 1.5, 0.4)
    covariance = mf.nngp_and_ntk(network, mf.ntk(), x)[0] + noise * torch.eye(20, dtype=torch.float64)
    y = torch.linalg.cholesky(covariance) @ normal(20, 60, seed=1)
    start = mf.GaussianProcess(mf.Network(2, "erf", 1.0, 0.2), noise=1.0)
    found = start.fitted(x, y)
    posterior = found.posterior(x, y)
    assert posterior.log_marginal_likelihood > start.posterior(x, y).log_marginal_likelihood + 10
    right = {"noise": noise, "weight_std": 1.5, "bias_std": 0.4}
    steps = [_slope(covariance, network, noise, name) for name in right]
    fisher = np.array([[30 * float((a @ b).trace()) for b in steps] for a in steps])  # 60/2 tr S^-1 dS S^-1 dS
    errors = np.sqrt(np.diag(np.linalg.inv(fisher)))
    values = [found.noise, found.network.weight_std, found.network.bias_std]
    z = [(value - r) / e for value, r, e in zip(values, right.values(), errors, strict=True)]
    assert max(map(abs, z)) < 4
    for name, slope in posterior.gradient().items():  # at a maximum, to a small part of a standard error
        assert abs(slope) * errors[list(right).index(name)] < 0.01


def _slope(covariance, network, noise, name):
    """S^-1 dS / d name"""
    if name == "noise":
        return torch.linalg.inv(covariance)
    up, down = (
        mf.nngp_and_ntk(varied(network, name, value_of(network, name) + s), mf.ntk(), SHARED)[0] for s in (1e-5, -1e-5)
    )
    return torch.linalg.solve(covariance, (up - down) / 2e-5)


SHARED = normal(20, 3)


def test_a_fit_over_one_number_leaves_the_others():
    x, y = normal(8, 3), normal(8, seed=1)
    found = mf.GaussianProcess(NETWORK, noise=0.5).fitted(x, y, ["noise"])
    assert found.network == NETWORK
    assert abs(found.posterior(x, y).gradient(["noise"])["noise"] * found.noise) < 1e-3


def module(n):
    return torch.nn.Sequential(torch.nn.Linear(3, n), torch.nn.ReLU(), torch.nn.Linear(n, 1))


def with_stds(weight, bias):
    return mf.Architecture(module, weight_std={"*.weight": weight, "*.bias": bias})


def test_a_module_is_the_process_of_the_perceptron_that_it_writes():
    """Values, and derivatives by pattern"""
    x, y, other = normal(5, 3), normal(5, seed=1), normal(2, 3, seed=2)
    asked, right = (
        mf.GaussianProcess(with_stds(1.3, 0.4), noise=0.2),
        mf.GaussianProcess(mf.Network(1, "relu", 1.3, 0.4), noise=0.2),
    )
    one, two = asked.posterior(x, y), right.posterior(x, y)
    torch.testing.assert_close(one.mean(other), two.mean(other), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.std(other), two.std(other), rtol=0, atol=1e-12)
    found, exact = one.gradient(tolerance=1e-8), two.gradient()
    assert list(found) == ["noise", "*.weight", "*.bias"]
    assert max(abs(a - b) for a, b in zip(found.values(), exact.values(), strict=True)) < 1e-6


def test_convolutions_are_processes_of_images():
    x, y = normal(4, 1, 3, 3), normal(4, seed=1)
    kernel = mf.conv_nngp_and_ntk(mf.ConvNetwork(2, bias_std=0.3), mf.ntk(), x)[1]
    found = mf.GaussianProcess(mf.ConvNetwork(2, bias_std=0.3), noise=0.1, law="ntk").posterior(x, y)
    assert found.log_marginal_likelihood == float(mf.log_marginal_likelihood(kernel, y, 0.1))
    assert set(found.gradient(tolerance=1e-6)) == {"noise", "weight_std", "bias_std"}


def test_a_fit_that_runs_away_says_which_number():
    x, y = normal(12, 3), normal(12, seed=1)
    process = mf.GaussianProcess(mf.Network(1, "erf", 1.5, 0.3), noise=0.02)
    with pytest.warns(
        UserWarning, match=r"moved weight_std from 1.5 to \d+.*scale y"
    ):  # erf is bounded: y of size 100 cannot be
        assert process.fitted(x, 100 * y, ("weight_std",)).network.weight_std > 30 * 1.5
    with pytest.warns(
        UserWarning, match=r"moved noise from 0.02 to 21.9"
    ):  # and so are explained by noise, as far as it goes
        process.fitted(x, 100 * y, ("noise",))
    linear = replace(process, network=mf.Network(1, "linear", 1.5, 0.3))
    assert linear.fitted(x, x[:, :1]).noise < 1e-4  # without noise and biases, which is no warning


class Positions(torch.nn.Module):
    """The same function of each number"""

    def __init__(self, n):
        super().__init__()
        self.read, self.out = torch.nn.Linear(1, n, bias=False), torch.nn.Linear(n, 1, bias=False)

    def forward(self, x):
        return self.out(torch.erf(self.read(x[..., None])))


@pytest.mark.parametrize("law", ["nngp", "ntk", "ensemble"])
def test_outputs_at_positions_are_points(law):
    """A function of each of 2 x 3 numbers, of 4 samples, is one of 24 samples"""
    x, y, other = normal(4, 2, 3), normal(4, 2, 3, 2, seed=1), normal(5, 2, 3, seed=2)
    found = mf.GaussianProcess(Positions, noise=0.1, law=law).posterior(x, y)
    right = mf.GaussianProcess(mf.Network(1, "erf"), noise=0.1, law=law).posterior(x.reshape(24, 1), y.reshape(24, 2))
    for one, two, shape in (
        (found.mean(other), right.mean(other.reshape(30, 1)), (5, 2, 3, 2)),
        (found.std(other), right.std(other.reshape(30, 1)), (5, 2, 3, 2)),
        (found.covariance(other), right.covariance(other.reshape(30, 1)), (5, 2, 3, 5, 2, 3)),
    ):
        torch.testing.assert_close(one, two.reshape(shape), rtol=1e-10, atol=1e-12)
    if law != "ensemble":
        assert found.log_marginal_likelihood == pytest.approx(right.log_marginal_likelihood, rel=1e-10)
        assert found.gradient(("noise",))["noise"] == pytest.approx(right.gradient(("noise",))["noise"], rel=1e-9)
    alone = mf.GaussianProcess(Positions, noise=0.1, law=law).posterior(x, y[..., 1]).mean(other)
    torch.testing.assert_close(alone, found.mean(other)[..., 1:])


def test_targets_without_positions_are_refused_where_outputs_have_some():
    with pytest.raises(ValueError, match=r"y must have shape \(4, 3, C\), as the network's outputs: received \(4, 1\)"):
        mf.GaussianProcess(Positions, noise=0.1).posterior(normal(4, 3), normal(4))
    with pytest.raises(ValueError, match=r"y must have shape \(4, C\), as the network's outputs: received \(4, 3, 2\)"):
        mf.GaussianProcess(NETWORK, noise=0.1).posterior(normal(4, 3), normal(4, 3, 2))


def test_the_numbers_of_networks_are_found_by_name():
    assert varied(NETWORK, "weight_std", 2.0) == mf.Network(2, "relu", 2.0, 0.3)
    assert varied(mf.ConvNetwork(bias_std=0.1), "bias_std", 0.5) == mf.ConvNetwork(bias_std=0.5)
    assert varied(module, "weight_std", 2.0) == mf.Architecture(module, weight_std=2.0)
    patterns = mf.Architecture(module, weight_std={"0.weight": 1.5, "*.bias": 0.2})
    assert value_of(patterns, "*.bias") == 0.2
    assert varied(patterns, "*.bias", 0.4) == mf.Architecture(module, weight_std={"0.weight": 1.5, "*.bias": 0.4})


TWICE = torch.cat([normal(3, 4), normal(1, 4)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(x=TWICE, y=normal(4)), r"its smallest eigenvalue is .*points 0 and 3 are duplicates; .*or give noise=\de-\d+, a variance"),
        (dict(y=normal(5)), "x and y differ in their number of samples: received 3 and 5"),
        (dict(scaling=mf.mean_field()), r"the NNGP of the scaling 'mean_field' is 0 .* take ntk\(\), or law='ntk'"),
        (dict(noise=-1.0), "noise must be non-negative and finite: received -1.0"),
        (dict(law="bayes"), "unknown law: received 'bayes'; known: ensemble, nngp, ntk"),
        (dict(x=normal(3)), "x must have two dimensions"),
    ],
)  # fmt: skip
def test_what_has_no_posterior_is_refused(change, words):
    asked = {
        "network": NETWORK,
        "scaling": mf.ntk(),
        "noise": 0.0,
        "law": "nngp",
        "x": normal(3, 4),
        "y": normal(3, seed=1),
    }
    asked |= change
    with pytest.raises(ValueError, match=words):
        mf.GaussianProcess(asked["network"], asked["scaling"], asked["noise"], asked["law"]).posterior(
            asked["x"], asked["y"]
        )


def test_the_noise_that_a_refusal_advises_is_enough():
    y = normal(4)
    with pytest.raises(ValueError, match="give noise") as caught:
        mf.GaussianProcess(NETWORK).posterior(TWICE, y)
    advised = float(str(caught.value).partition("give noise=")[2].partition(",")[0])
    found = mf.GaussianProcess(NETWORK, noise=advised).posterior(TWICE, y)
    assert torch.allclose(found.mean(TWICE)[0], (y[0] + y[3]) / 2, atol=0.1)  # rounding is a tenth of this noise
    single = mf.nngp_and_ntk(NETWORK, mf.ntk(), TWICE.float())[0]
    with pytest.raises(ValueError, match=r"the kernel \+ noise is numerically singular"):
        mf.log_marginal_likelihood(single, y, advised)  # below the rounding of float32
    assert math.isfinite(float(mf.log_marginal_likelihood(single, y, 1e-4)))


@pytest.mark.parametrize(
    ("process", "over", "words"),
    [
        (mf.GaussianProcess(NETWORK, law="ensemble"), None, "has no marginal likelihood: .* take law='ntk'"),
        (mf.GaussianProcess(NETWORK), ["noise"], "noise is 0, from where .* give a positive noise"),
        (mf.GaussianProcess(mf.Network(bias_std=0.0)), ["bias_std"], "bias_std is 0, from where"),
        (mf.GaussianProcess(NETWORK), ["depth"], "unknown hyperparameter in over: received 'depth'; known: bias_std, noise, weight_std"),
        (mf.GaussianProcess(NETWORK), [], "over must name different hyperparameters, at least one"),
        (mf.GaussianProcess(NETWORK), ["weight_std", "weight_std"], "over must name different"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(process, over, words):
    x, y = normal(3, 4), normal(3, seed=1)
    with pytest.raises(ValueError, match=words):
        process.fitted(x, y, over)
    with pytest.raises(ValueError, match=words):
        process.posterior(x, y).gradient(over)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(across=torch.ones(2, 4)), r"across must have shape \(P2, 3\), a column for each row of y: received \(2, 4\)"),
        (dict(test=torch.ones(3)), r"test must have shape \(2, 2\) or \(2,\), as across has 2 rows: received \(3,\)"),
        (dict(kernel=torch.ones(3, 2)), r"the kernel must have shape \(3, 3\): received \(3, 2\)"),
        (dict(kernel=-torch.eye(3)), "smallest eigenvalue is -0.9, .* give noise=1e"),
    ],
)  # fmt: skip
def test_matrices_that_do_not_fit_are_refused(change, words):
    asked = {"kernel": torch.eye(3), "y": normal(3), "noise": 0.1, "across": torch.ones(2, 3), "test": torch.eye(2)}
    with pytest.raises(ValueError, match=words):
        mf.kernel_posterior(**asked | change)
