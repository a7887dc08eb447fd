"""The lazy limit: against exact solutions, linearised networks by autograd, direct stepping, and the mean-field limit at small gamma0."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

import meanfield as mf
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.process import draws
from meanfield.kernels.spectrum import spectrum
from meanfield.network.architecture import perceptron
from solvers import FiniteWidth, WassersteinFlow
from solvers.lazy.lazy_prediction import lazy_prediction
from solvers.lazy.tangent_kernel_limit import TangentKernelLimit
from tests.any_networks import Convolutional, digits

P, P_TEST = 5, 3


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(loss, n, c, seed):
    if loss == "squared":
        return normal(n, c, seed=seed)
    classes = torch.randint(0, max(c, 2), (n,), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(classes, c).double() if loss == "cross_entropy" else classes[:, None] * 2.0 - 1


def problem(loss="squared", c=1, test=P_TEST, scaling=None, **training):
    data = mf.Dataset(
        normal(P, 3, seed=1),
        labels(loss, P, c, 2),
        normal(test, 3, seed=3) if test else None,
        labels(loss, test, c, 4) if test else None,
    )
    settings = {"learning_rate": 0.3, "steps": 12} | training
    return mf.Problem(data, mf.Network(2, "tanh"), scaling or mf.ntk(), mf.Training(**settings), loss)


def gram(n=P + P_TEST, seed=7):
    features = normal(n, 2 * n, seed=seed) * torch.logspace(0, -1, 2 * n, dtype=torch.float64)
    return features @ features.T / 4


def same(a, b, **tolerance):
    for left, right in ((a.f, b.f), (a.f_test, b.f_test)):
        torch.testing.assert_close(left, right, **tolerance)


# --- exact solutions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["gradient_flow", "gradient_descent"])
def test_one_sample(optimiser):
    """f = y + (f0 - y) exp(-k eta t), or (1 - eta k)^t; a test sample follows with K(x, X) / k of the way."""
    data = mf.Dataset([[1.0, 2.0]], [[0.7]], [[2.0, 0.0]], [[0.0]])
    asked = mf.Problem(data, scaling=mf.ntk(), training=mf.Training(0.1, 9, optimiser))
    kernel = torch.tensor([[3.0, 0.5], [0.5, 1.0]]).double()
    f0 = torch.tensor([[-0.2], [0.4]]).double()
    solution = TangentKernelLimit(kernel=kernel, initial=f0)(asked)
    k = torch.arange(10).double()
    left = torch.exp(-0.3 * k) if optimiser == "gradient_flow" else 0.7**k
    torch.testing.assert_close(solution.f[:, 0, 0], 0.7 - 0.9 * left)
    assert solution.f_test is not None
    torch.testing.assert_close(solution.f_test[:, 0, 0], 0.4 + 0.5 / 3 * 0.9 * (1 - left))


@pytest.mark.parametrize("c", [1, 2])
def test_flow_is_the_matrix_exponential_of_training_and_test_together(c):
    """d/dt of (f, f_test) - linear in f - as one matrix, exponentiated."""
    asked, kernel, f0 = problem(c=c, optimiser="gradient_flow"), gram(), normal(P + P_TEST, c, seed=9)
    solution = TangentKernelLimit(kernel=kernel, initial=f0)(asked)
    generator = torch.zeros(P + P_TEST + 1, P + P_TEST + 1).double()  # the last column carries y
    for column in range(c):
        generator[: P + P_TEST, :P] = -kernel[:, :P] / P
        generator[: P + P_TEST, -1] = kernel[:, :P] @ asked.data.y[:, column] / P
        start = torch.cat([f0[:, column], torch.ones(1).double()])
        for k in (0, 1, 5, 12):
            expected = (torch.matrix_exp(0.3 * k * generator) @ start)[:-1]
            torch.testing.assert_close(solution.f[k, :, column], expected[:P])
            assert solution.f_test is not None
            torch.testing.assert_close(solution.f_test[k, :, column], expected[P:])


def test_closed_form_of_descent_is_stepping():
    asked, kernel = problem(c=2), gram()
    stepped = TangentKernelLimit(kernel=kernel, initial="mean")(asked)
    f = torch.zeros(P + P_TEST, 2).double()
    for k in range(13):
        torch.testing.assert_close(stepped.f[k], f[:P])
        f = f + 0.3 * kernel[:, :P] @ (asked.data.y - f[:P]) / P
    predicted = lazy_prediction(asked, kernel=kernel, covariance=gram(seed=8))
    torch.testing.assert_close(predicted.mean, stepped.f)
    torch.testing.assert_close(predicted.mean_test, stepped.f_test)


def test_descent_tends_to_the_flow_with_order_one():
    solver, still = TangentKernelLimit(kernel=gram()), mf.mean_field(1e-3)
    flow, apart = solver(problem(optimiser="gradient_flow", scaling=still)), []
    for parts in (10, 20, 40, 80):
        fine = problem(learning_rate=0.3 / parts, steps=12 * parts, scaling=still)
        apart.append(float((solver(fine).f[::parts] - flow.f).norm()))
    orders = [math.log2(a / b) for a, b in pairwise(apart)]
    assert all(abs(order - 1) < 0.1 for order in orders), orders


# --- networks, linearised by autograd --------------------------------------------------------------------------------


class Linearised:
    """A small real network and its first-order Taylor series in the parameters; its training knows no kernel."""

    def __init__(self, asked, n=4):
        self.asked, c, d = asked, asked.data.outputs, asked.data.inputs
        self.x, self.n, self.shapes = torch.cat([asked.data.x, asked.data.x_test]), n, [(n, d), (n, n), (n, c)]
        self.theta0 = normal(sum(a * b for a, b in self.shapes), seed=11)
        self.f0 = self.network(self.theta0)
        self.jacobian = torch.func.jacrev(self.network)(self.theta0)  # (Q, C, n)

    def network(self, theta):
        w0, w1, a = (
            t.reshape(s) for t, s in zip(theta.split([p * q for p, q in self.shapes]), self.shapes, strict=True)
        )
        h = self.x @ w0.T / math.sqrt(self.x.shape[1])
        return torch.tanh(torch.tanh(h) @ w1.T / math.sqrt(self.n)) @ a / math.sqrt(self.n)

    def f(self, theta):
        return self.f0 + self.jacobian @ (theta - self.theta0)

    def gradient(self, theta, batch=None):
        def loss(theta):
            values = self.asked.loss_function.value(self.f(theta)[:P], self.asked.data.y)
            return (values if batch is None else values[batch]).mean()

        return torch.func.grad(loss)(theta)

    def kernel(self):
        return torch.einsum("pcn,qdn->pcqd", self.jacobian, self.jacobian)


@pytest.mark.parametrize(("loss", "c"), [("squared", 2), ("logistic", 1), ("cross_entropy", 3)])
@pytest.mark.parametrize("training", [{}, {"momentum": 0.8}, {"batch_size": 2, "batch_seed": 3, "momentum": 0.3}])
def test_descent_is_that_of_the_linearised_network(loss, c, training):
    asked = problem(loss, c, **training)
    net = Linearised(asked)
    found = TangentKernelLimit(kernel=net.kernel(), initial=net.f0)(asked)
    theta, velocity, batches = net.theta0, torch.zeros_like(net.theta0), list(asked.training.batches(P))
    for k in range(13):
        f = net.f(theta)
        torch.testing.assert_close(found.f[k], f[:P])
        assert found.f_test is not None
        torch.testing.assert_close(found.f_test[k], f[P:])
        if k < 12:
            velocity = asked.training.momentum * velocity - net.gradient(theta, batches[k])
            theta = theta + 0.3 * velocity


@pytest.mark.parametrize(("loss", "c"), [("squared", 1), ("logistic", 1), ("cross_entropy", 3)])
def test_flow_is_that_of_the_linearised_network(loss, c):
    """By scipy's integrator in the parameters."""
    from scipy.integrate import solve_ivp

    asked = problem(loss, c, optimiser="gradient_flow", steps=4)
    net = Linearised(asked)
    found = TangentKernelLimit(kernel=net.kernel(), initial=net.f0)(asked)
    path = solve_ivp(
        lambda t, theta: -net.gradient(torch.from_numpy(theta)).numpy(),
        (0, 1.2),
        net.theta0.numpy(),
        t_eval=[0, 0.6, 1.2],
        rtol=1e-9,
        atol=1e-11,
    )
    for k, theta in zip((0, 2, 4), path.y.T, strict=True):
        f = net.f(torch.from_numpy(theta.copy()))
        torch.testing.assert_close(found.f[k], f[:P], rtol=1e-6, atol=1e-7)
        assert found.f_test is not None
        torch.testing.assert_close(found.f_test[k], f[P:], rtol=1e-6, atol=1e-7)


# --- networks of finite width, with the analytic kernel --------------------------------------------------------------


def joint(solution):
    return torch.cat([solution.f, solution.f_test], 1).double()  # (T+1, Q, C)


@pytest.mark.parametrize(
    ("loss", "c", "depth", "activation"),
    [("squared", 1, 2, "tanh"), ("cross_entropy", 3, 1, "relu"), ("logistic", 1, 3, "relu")],
)
def test_networks_follow_the_limit_from_their_own_start(loss, c, depth, activation):
    """Each network against the limit that starts at its f0: what is left is the fluctuation of its kernel, whose mean is O(1/N).

    The slope of what is left on the limit's movement, averaged over networks, is sensitive to a few per cent of a layer's share of K.
    """
    asked = replace(problem(loss, c, steps=8), network=mf.Network(depth, activation, weight_std=1.3, bias_std=0.4))
    nets = FiniteWidth(256, snapshots=(), dtype="float32").ensemble(asked, 32)
    kernel = nngp_and_ntk(asked.network, asked.scaling, torch.cat([asked.data.x, asked.data.x_test]))[1]
    slopes = []
    for f in map(joint, nets):
        limit = joint(TangentKernelLimit(kernel=kernel, initial=f[0])(asked))
        movement = limit - limit[0]
        assert (f - limit).norm() < 0.5 * movement.norm()
        slopes.append((movement * (f - limit)).sum() / movement.square().sum())
    slopes = torch.stack(slopes)
    assert abs(float(slopes.mean())) < 4 * float(slopes.std()) / math.sqrt(32)


def test_mean_and_covariance_of_networks():
    asked = replace(problem(steps=8), network=mf.Network(2, "tanh", weight_std=1.2, bias_std=0.3))
    nets = FiniteWidth(128, snapshots=(), dtype="float32").ensemble(asked, 600)
    f = torch.stack([joint(net)[..., 0] for net in nets])
    predicted = lazy_prediction(asked)
    assert predicted.mean_test is not None
    mean = torch.cat([predicted.mean, predicted.mean_test], 1)[..., 0]
    for k in (0, 1, 8):
        sigma, d = predicted.covariance[k], predicted.covariance[k].diagonal()
        assert ((f[:, k].mean(0) - mean[k]) / (d / 600).sqrt()).abs().max() < 4
        error = ((d[:, None] * d + sigma.square()) / 599).sqrt()
        assert ((torch.cov(f[:, k].T) - sigma) / error).abs().max() < 4


def test_draws_of_the_limit_are_those_of_the_prediction():
    """Analytic f0 and kernel: 600 draws, all advanced at once."""
    asked = problem(c=2, steps=8)
    f = torch.stack([joint(s)[8] for s in TangentKernelLimit().ensemble(asked, 600)])  # (E, Q, C)
    predicted = lazy_prediction(asked, [2.4])
    sigma, d = predicted.covariance[0], predicted.covariance[0].diagonal()
    assert predicted.mean_test is not None
    mean = torch.cat([predicted.mean[0], predicted.mean_test[0]])
    assert ((f.mean(0) - mean) / (d / 600).sqrt()[:, None]).abs().max() < 4
    error = ((d[:, None] * d + sigma.square()) / 599).sqrt()
    for column in (0, 1):
        assert ((torch.cov(f[:, :, column].T) - sigma) / error).abs().max() < 4
    across = torch.cov(f.flatten(1).T).reshape(P + P_TEST, 2, P + P_TEST, 2)[:, 0, :, 1]
    assert (across / (d[:, None] * d / 599).sqrt()).abs().max() < 4


def test_ensemble_is_its_members_one_by_one():
    asked = problem("logistic", momentum=0.4)
    for seed, member in enumerate(TangentKernelLimit().ensemble(asked, 3)):
        alone = TangentKernelLimit(seed=seed)(asked)
        torch.testing.assert_close(member.f, alone.f)
        assert member.solver["seed"] == seed


def test_scalings_without_a_random_start_share_the_limit():
    """mean_field(gamma0) for every gamma0, and the whole line q = -1 - 2 q_sigma, have the kernel of ntk() and f0 = 0."""
    base = TangentKernelLimit(initial="mean")(problem())
    for scaling in (mf.mean_field(1e-3), mf.mean_field(0.5), mf.Scaling(-0.7, 0.4, 0.4)):
        same(TangentKernelLimit()(problem(scaling=scaling)), base)
        assert float(lazy_prediction(problem(scaling=scaling)).covariance.abs().max()) == 0
    drawn = TangentKernelLimit(seed=4)(problem())
    frozen = mf.Scaling(-0.7, 0.4, 0.4, frozen="matched")
    same(TangentKernelLimit(seed=4)(problem(scaling=frozen)), drawn)
    assert float(drawn.f[0].abs().min()) > 0


def test_networks_and_limit_in_one_report():
    asked = problem(scaling=mf.mean_field(1e-3), steps=5)
    nets = [FiniteWidth(n, seed=s)(asked) for n in (64, 128, 256) for s in range(3)]
    report = mf.deviation(nets, TangentKernelLimit()(asked))
    assert {"f", "f_test", "loss", "tangent_kernel"} <= set(report.observables)


# --- the mean-field limit as gamma0 -> 0 -----------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 2])
def test_small_gamma0_is_the_lazy_limit_of_the_clouds_own_kernel(c):
    """A cloud that is symmetric in the readouts has f0 = 0 exactly; what remains is of order gamma0^2 (equation 59)."""
    asked = replace(problem(c=c, test=0), network=mf.Network(1, "tanh", bias_std=0.3))
    half = mf.ParticleMeasure.sobol(256, 4, c, seed=0)
    cloud = mf.ParticleMeasure(torch.cat([half.a, -half.a]), half.w.repeat(2, 1), half.m.repeat(2) / 2)
    apart = {}
    for gamma0 in (1e-2, 1e-3):
        small = replace(asked, scaling=mf.mean_field(gamma0))
        flow = WassersteinFlow(initial=cloud)(small)
        lazy = TangentKernelLimit(kernel=flow.tangent_kernel(0))(small)
        apart[gamma0] = float((flow.f - lazy.f).norm() / lazy.f.norm())
    assert apart[1e-3] < 1e-5
    assert apart[1e-2] / apart[1e-3] == pytest.approx(100, rel=0.05)


# --- mean and covariance over f0 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["gradient_flow", "gradient_descent"])
def test_covariance_is_that_of_the_linear_map_from_f0(optimiser):
    """f_t is affine in f0: its matrix, column by column from TangentKernelLimit, gives mean and covariance."""
    asked, kernel, sigma = problem(optimiser=optimiser), gram(), gram(seed=8)
    predicted = lazy_prediction(asked, [0.0, 1.2, 3.6], kernel, sigma)

    def at(f0):
        solution = TangentKernelLimit(kernel=kernel, initial=f0)(asked)
        assert solution.f_test is not None
        return torch.cat([solution.f, solution.f_test], 1)[[0, 4, 12], :, 0]

    q = P + P_TEST
    base = at(torch.zeros(q, 1).double())
    linear = torch.stack([at(torch.eye(q).double()[:, [j]]) - base for j in range(q)], -1)
    torch.testing.assert_close(predicted.covariance, linear @ sigma @ linear.transpose(1, 2))
    torch.testing.assert_close(predicted.mean[..., 0], base[:, :P])
    torch.testing.assert_close(predicted.std[0, :, 0], sigma.diagonal()[:P].sqrt())
    assert predicted.std_test is not None
    torch.testing.assert_close(predicted.std_test[0, :, 0], sigma.diagonal()[P:].sqrt())


def test_expected_loss_is_the_mean_over_draws_and_that_of_the_spectrum():
    asked, kernel, sigma = problem(c=2), gram(), gram(seed=8)
    predicted = lazy_prediction(asked, [0.0, 3.6], kernel, sigma)
    found = spectrum(kernel[:P, :P], asked.data.y, covariance=sigma[:P, :P])
    torch.testing.assert_close(found.loss([0.0, 3.6], 0.3), predicted.loss)
    losses = []
    for seed in range(144):
        solution = TangentKernelLimit(kernel=kernel, initial=draws(sigma, P, 2, (seed,))[0])(asked)
        losses.append(torch.stack([solution.loss[[0, -1]], solution.test_loss[[0, -1]]]))
    losses = torch.stack(losses)
    apart = (losses.mean(0) - torch.stack([predicted.loss, predicted.test_loss])) / (losses.std(0) / 12)
    assert apart.abs().max() < 4


def test_draws_have_the_covariance_and_know_nothing_of_the_test_samples():
    sigma = gram(seed=8)
    f = draws(sigma, P, 1, range(1500))[:, :, 0]
    variances = sigma.diagonal()
    error = ((variances[:, None] * variances + sigma.square()) / 1500).sqrt()
    assert ((f.T @ f / 1500 - sigma) / error).abs().max() < 4
    torch.testing.assert_close(draws(sigma, P, 2, (4, 5))[1, :P], draws(sigma[:P, :P], P, 2, (5,))[0])
    twice = sigma[[0, 1, 2, 3, 4, 0]][:, [0, 1, 2, 3, 4, 0]]  # the test sample is the first training sample
    f0 = draws(twice, P, 1, (1,))[0]
    torch.testing.assert_close(f0[5], f0[0], rtol=1e-6, atol=1e-7)


def test_the_end_of_training_interpolates_and_a_jitter_is_a_ridge():
    asked, kernel, sigma = problem(optimiser="gradient_flow"), gram(), gram(seed=8)
    end = lazy_prediction(asked, [math.inf], kernel, sigma)
    torch.testing.assert_close(end.mean[0], asked.data.y)
    assert end.mean_test is not None
    torch.testing.assert_close(end.mean_test[0], kernel[P:, :P] @ torch.linalg.solve(kernel[:P, :P], asked.data.y))
    assert float(end.std.max()) < 1e-6
    twice = [0, 0, 2, 3, 4, 5, 6, 7]
    flat = kernel[twice][:, twice]
    ridge = lazy_prediction(asked, [1.2, math.inf], flat, sigma, jitter=1e-3)
    assert ridge.stats["jitter"] == 1e-3
    torch.testing.assert_close(ridge.mean[0], lazy_prediction(asked, [1.2], flat, sigma).mean[0])
    own = flat[:P, :P]
    solved = own @ torch.linalg.solve(own + 1e-3 * own.diagonal().mean() * torch.eye(P).double(), asked.data.y)
    torch.testing.assert_close(ridge.mean[1], solved)


@pytest.mark.parametrize("targets", ["equal", "unequal"])
@pytest.mark.parametrize("scaling", [mf.ntk(), mf.mean_field(0.05)], ids=["ntk", "mean field"])
@pytest.mark.parametrize("optimiser", ["gradient_flow", "gradient_descent"])
def test_equal_samples_end_at_the_mean_of_their_targets(optimiser, scaling, targets):
    """As one sample with that mean: gradients of equal samples are equal, so training sees the mean alone; a sample of zeros stays at 0."""
    base = problem(scaling=scaling, optimiser=optimiser)
    x, y = base.data.x[[0, 1, 0, 2, 0, 1, 3]], base.data.y[[0, 1, 0, 2, 0, 1, 3]].clone()
    x[6] = 0
    if targets == "unequal":
        y[2], y[4], y[5] = 0.9, -0.4, 0.2
    asked = replace(base, data=mf.Dataset(x, y, torch.cat([base.data.x_test, x[:1]])))
    means = torch.stack([y[[0, 2, 4]].mean(0), y[[1, 5]].mean(0), y[3]])
    one = replace(base, data=mf.Dataset(base.data.x[:3], means, asked.data.x_test))
    found, exact = lazy_prediction(asked, [math.inf]), lazy_prediction(one, [math.inf])
    expected = torch.cat([means[[0, 1, 0, 2, 0, 1]], torch.zeros(1, 1).double()])
    torch.testing.assert_close(found.mean[0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.mean_test, exact.mean_test, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.covariance[0, 7:, 7:], exact.covariance[0, 3:, 3:], rtol=1e-9, atol=1e-12)
    assert found.stats["remaining_error"] == pytest.approx(float((y - expected).square().sum()) / 7, abs=1e-12)
    late = lazy_prediction(asked, [0.3 * round(200 * 7 / one_smallest(one) / 0.3)])
    for end, before in (
        (found.mean, late.mean),
        (found.mean_test, late.mean_test),
        (found.covariance, late.covariance),
    ):
        torch.testing.assert_close(end, before, rtol=1e-8, atol=1e-10)


def one_smallest(asked):
    """The least eigenvalue of the kernel between the samples"""
    return float(torch.linalg.eigvalsh(nngp_and_ntk(asked.network, asked.scaling, asked.data.x)[1])[0])


def test_a_kernel_that_is_singular_for_other_reasons_is_refused_by_its_rows():
    """Seven samples in three dimensions, seen by a linear network: nobody knows what a slow direction does at t = inf"""
    base = problem(optimiser="gradient_flow")
    x, y = normal(7, 3, seed=1), normal(7, 1, seed=2)
    x[4], x[6] = x[1], 0
    asked = mf.Problem(mf.Dataset(x, y), mf.Network(1, "linear"), mf.ntk(), base.training)
    message = (
        "numerically singular: smallest eigenvalue .* 4 of 7 are zero to rounding, 2 of them because training rows 1 and 4 are "
        "duplicates, training row 6 is zero; .*jitter="
    )
    with pytest.raises(ValueError, match=message):
        lazy_prediction(asked, [math.inf])
    assert lazy_prediction(asked, [1e3]).stats["jitter"] == 0


@pytest.mark.parametrize("scaling", [mf.ntk(), mf.mean_field(0.05)], ids=["ntk", "mean field"])
def test_samples_of_zeros_are_answered_with_zero(scaling):
    """As networks answer them: f(0) = 0 without biases. The other samples learn as if a sample of zeros were not there."""
    base = problem(scaling=scaling)
    x, y, x_test = base.data.x.clone(), base.data.y, base.data.x_test.clone()
    x[2], x_test[1] = 0, 0
    asked = replace(base, data=mf.Dataset(x, y, x_test))
    others = [0, 1, 3, 4]
    alone = replace(  # a step is a mean over samples: 4 of 5 learn as fast
        asked,
        data=mf.Dataset(x[others], y[others], x_test),
        training=replace(asked.training, learning_rate=0.3 * 4 / 5),
    )
    found, without = (TangentKernelLimit(initial="mean")(p) for p in (asked, alone))
    assert not found.f[:, 2].any()
    assert not found.f_test[:, 1].any()
    torch.testing.assert_close(found.f[:, others], without.f)
    torch.testing.assert_close(found.f_test, without.f_test)
    network = FiniteWidth(16, snapshots=())(asked)
    assert not network.f[:, 2].any()
    assert not network.f_test[:, 1].any()
    drawn = TangentKernelLimit(seed=1)(asked)
    assert not drawn.f[:, 2].any()
    assert not drawn.f_test[:, 1].any()
    predicted = lazy_prediction(asked)
    torch.testing.assert_close(predicted.mean, found.f)
    spread = predicted.covariance.abs()
    assert float(spread[:, [2, P + 1]].max()) <= 1e-15 * float(spread.max())  # rounding of eigenvectors


# --- invariances and bookkeeping -------------------------------------------------------------------------------------


def test_order_of_samples_rotation_of_outputs_and_units_of_the_kernel():
    asked, kernel, f0 = problem(c=2), gram(), normal(P + P_TEST, 2, seed=9)
    base = TangentKernelLimit(kernel=kernel, initial=f0)(asked)
    order = torch.tensor([3, 0, 4, 1, 2])
    both = torch.cat([order, torch.arange(P, P + P_TEST)])
    data = replace(asked.data, x=asked.data.x[order], y=asked.data.y[order])
    moved = TangentKernelLimit(kernel=kernel[both][:, both], initial=f0[both])(replace(asked, data=data))
    torch.testing.assert_close(moved.f, base.f[:, order])
    torch.testing.assert_close(moved.f_test, base.f_test)
    turn = torch.linalg.qr(normal(2, 2, seed=4)).Q
    data = replace(asked.data, y=asked.data.y @ turn, y_test=None)
    turned = TangentKernelLimit(kernel=kernel, initial=f0 @ turn)(replace(asked, data=data))
    torch.testing.assert_close(turned.f, base.f @ turn)
    slower = replace(asked, training=mf.Training(0.1, 12))
    same(TangentKernelLimit(kernel=3 * kernel, initial=f0)(slower), base)


@pytest.mark.parametrize(
    ("loss", "optimiser"),
    [("squared", "gradient_flow"), ("logistic", "gradient_flow"), ("squared", "gradient_descent")],
)
def test_kernel_between_outputs_that_is_diagonal_is_the_plain_one(loss, optimiser):
    asked, kernel = problem(loss, 1 if loss == "logistic" else 2, optimiser=optimiser), gram()
    c = asked.data.outputs
    f0 = normal(P + P_TEST, c, seed=9)
    full = kernel[:, None, :, None] * torch.eye(c).double()[None, :, None, :]
    a, b = (TangentKernelLimit(kernel=k, initial=f0)(asked) for k in (kernel, full))
    same(a, b)
    torch.testing.assert_close(a.tangent_kernels, b.tangent_kernels)
    assert a.snapshots == (0, 12)
    torch.testing.assert_close(a.tangent_kernel(0), full[:P, :, :P] if c > 1 else kernel[:P, :P])


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.7}, {"optimiser": "gradient_flow"}, {"batch_size": 2}])
def test_resumed_is_uninterrupted(settings, tmp_path):
    solver = TangentKernelLimit(kernel=gram(), initial=normal(P + P_TEST, 1))
    whole, part = solver(problem(**settings)), solver(problem(**settings, steps=7))
    mf.save(part, tmp_path / "part.nc")
    again = solver.resume(mf.load(tmp_path / "part.nc"), 5)
    same(again, whole, rtol=0, atol=0)
    torch.testing.assert_close(again.tangent_kernel(), whole.tangent_kernel())


def test_single_precision_and_the_conditions_reported():
    asked, f0 = problem(), normal(P + P_TEST, 1)
    double = TangentKernelLimit(kernel=gram(), initial=f0)(asked)
    single = TangentKernelLimit(kernel=gram(), initial=f0, dtype="float32")(asked)
    assert single.f.dtype == torch.float32
    torch.testing.assert_close(single.f.double(), double.f, rtol=1e-5, atol=1e-5)
    values = torch.linalg.eigvalsh(gram()[:P, :P])
    assert double.stats["condition_number"] == pytest.approx(float(values[-1] / values[0]))
    assert double.stats["jitter"] == 0
    assert double.stats["remaining_error"] == 0


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_descent_beyond_the_edge_of_stability_is_refused_with_the_number(momentum):
    edge = 2 * (1 + momentum) * P / float(torch.linalg.eigvalsh(gram()[:P, :P])[-1])
    below, above = (problem(learning_rate=s * edge, steps=800, momentum=momentum) for s in (0.98, 1.02))
    solver = TangentKernelLimit(kernel=gram(), initial="mean")
    assert float(solver(below).loss[-1]) < float(solver(below).loss[0])
    with pytest.raises(ValueError, match=f"diverges.*{edge:.4g} of this kernel"):
        solver(above)
    grown = replace(solver, raise_on_failure=False)(above)
    assert float(grown.loss[-1]) > 1e6 * float(grown.loss[0])
    if not momentum:
        with pytest.raises(ValueError, match="gradient descent diverges"):
            lazy_prediction(above, kernel=gram(), covariance=gram())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": mf.Training(0.1, 3, weight_decay=0.1)}, "weight_decay=0.1 shrinks every weight.*FiniteWidth"),
        ({"scaling": mf.Scaling(-0.5, 1.0, 0.0)}, r"no lazy limit.*q_a = q_w = -1 - 2 q_sigma"),
        ({"scaling": mf.Scaling(-1.2, 1.4, 1.4)}, "no lazy limit"),
    ],
)
def test_problems_without_a_lazy_limit(change, message):
    with pytest.raises(ValueError, match=message):
        TangentKernelLimit(kernel=gram())(replace(problem(), **change))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": gram(P)}, r"the given kernel, over training and test samples, must have shape \(8, 8\): received \(5, 5\)"),
        ({"kernel": gram() - 100 * torch.eye(8)}, "not positive semi-definite"),
        ({"kernel": gram(), "initial": torch.zeros(5, 1)}, r"shape \(8, 1\): received \(5, 1\)"),
        ({"kernel": "empirical"}, "unknown kernel.*known: analytic"),
        ({"initial": "zero"}, "unknown initial.*known: draw, mean"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"kernel": gram(), "initial": "mean", "snapshots": (99,)}, r"snapshots must lie in 0\.\.12"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        TangentKernelLimit(**settings)(problem())


def test_predictions_that_have_no_closed_form():
    with pytest.raises(ValueError, match=r"squared loss: received 'logistic'; take draws.*ensemble"):
        lazy_prediction(problem("logistic"), kernel=gram())
    with pytest.raises(ValueError, match=r"plain full-batch training.*TangentKernelLimit"):
        lazy_prediction(problem(momentum=0.5), kernel=gram())
    with pytest.raises(ValueError, match=r"multiples of the learning rate 0\.3"):
        lazy_prediction(problem(), [0.5], gram(), gram())
    full = torch.einsum("pq,cd->pcqd", gram(), torch.eye(2).double())
    with pytest.raises(ValueError, match="mixes outputs"):
        lazy_prediction(problem(c=2), kernel=full, covariance=gram())


def test_what_is_far_from_lazy_is_warned_of_in_its_statistics():
    data = mf.single_index_teacher(4, 0, 3)
    for scaling, warned in ((mf.mean_field(1.0), True), (mf.mean_field(0.05), False), (mf.ntk(), False)):
        asked = mf.Problem(data, scaling=scaling, training=mf.Training(0.1, 2))
        for found in (TangentKernelLimit()(asked), lazy_prediction(asked)):
            assert ("gamma0 = 1 is far from lazy" in found.stats.get("warning", "")) is warned


def test_modules_have_the_lazy_limit_of_their_kernels():
    """A perceptron as a module is the perceptron; networks of a convolutional module lie around the mean of the prediction as it says"""
    data = mf.Dataset(normal(8, 3), normal(8, 2, seed=1), normal(5, 3, seed=2))
    network = mf.Network(2, "erf", bias_std=0.3)
    plain, module = (
        lazy_prediction(mf.Problem(data, net, mf.ntk(), mf.Training(0.5, 20)))
        for net in (network, perceptron(network, 3, 2))
    )
    torch.testing.assert_close(module.mean, plain.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(module.covariance, plain.covariance, rtol=1e-9, atol=1e-12)

    x, y = digits(12, True)
    images = mf.Problem(
        mf.Dataset(x[:8], y[:8], x[8:], y[8:]), partial(Convolutional, phi=torch.erf), mf.ntk(), mf.Training(1.0, 15)
    )
    limit = TangentKernelLimit(initial="mean")(images)
    predicted = lazy_prediction(images)
    torch.testing.assert_close(limit.f, predicted.mean, rtol=1e-9, atol=1e-12)
    seeds = 24
    nets = FiniteWidth(width=96, progress=False).ensemble(images, seeds)
    f = torch.stack([torch.cat([net.f[-1], net.f_test[-1]]) for net in nets])[..., 0]
    mean = torch.cat([predicted.mean[-1], predicted.mean_test[-1]])[:, 0]
    std = predicted.covariance[-1].diagonal().sqrt()
    z = (f.mean(0) - mean) / (std / math.sqrt(seeds))
    assert float(z.abs().max()) < 4
    ratio = f.var(0) / std.square()  # chi square over 23: 0.3 of 1, and 1/N
    assert 0.3 < float(ratio.min()) < float(ratio.max()) < 2.4
