"""Eigen-directions of a kernel: against dense linear algebra, naive formulas where those are exact, and draws (equations 52, 54 to 57)."""

import math

import pytest
import torch

import meanfield as mf
from meanfield.kernels.spectrum import spectrum
from solvers import lazy_prediction


def gram(n, rank=None, seed=0, dtype=torch.float64):
    """A random Gram matrix with eigenvalues over two decades."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, rank or 2 * n, generator=g, dtype=torch.float64)
    return (features * torch.logspace(0, -1, features.shape[1], dtype=torch.float64) @ features.T).to(dtype)


def targets(n, c=1, seed=1):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_directions_rebuild_the_kernel_and_the_targets():
    kernel, y = gram(7), targets(7, 2)
    found = spectrum(kernel, y)
    v = found.eigenvectors
    torch.testing.assert_close(v * found.eigenvalues @ v.T, kernel)
    torch.testing.assert_close(v @ found.targets, y)
    assert (found.eigenvalues.diff() <= 0).all()


@pytest.mark.parametrize("rate", [None, 0.05])
def test_learning_curve_is_that_of_the_stepped_or_exponentiated_outputs(rate):
    """Squared error in each direction, from f_t by powers of a matrix or a matrix exponential."""
    kernel, y, f0 = gram(6), targets(6, 2), targets(6, 2, seed=5)
    found = spectrum(kernel, y, f0)
    times = [0.0, 0.05, 0.5, 3.0]
    for t, curve, loss in zip(times, found.learning_curve(times, rate), found.loss(times, rate), strict=True):
        if rate is None:
            f = y + torch.matrix_exp(-t * kernel / 6) @ (f0 - y)
        else:
            f = y + torch.linalg.matrix_power(torch.eye(6).double() - rate * kernel / 6, round(t / rate)) @ (f0 - y)
        torch.testing.assert_close(curve, (found.eigenvectors.T @ (f - y)).square().sum(1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(loss, 0.5 * (f - y).square().sum() / 6)


def test_a_kernel_between_outputs_has_p_c_directions_and_decays_with_p():
    g = torch.Generator().manual_seed(3)
    jacobian = torch.randn(4, 3, 20, generator=g, dtype=torch.float64)
    kernel, y = torch.einsum("pcn,qdn->pcqd", jacobian, jacobian), targets(4, 3)
    found = spectrum(kernel, y)
    assert found.eigenvalues.shape == (12,)
    f = y.flatten() - torch.matrix_exp(-0.1 * kernel.reshape(12, 12) / 4) @ y.flatten()
    torch.testing.assert_close(found.loss([0.1])[0], 0.5 * (f - y.flatten()).square().sum() / 4)


def test_expected_curve_is_the_mean_over_draws_of_f0():
    kernel, sigma, y = gram(4), gram(4, seed=8) / 10, targets(4, 2)
    found = spectrum(kernel, y, covariance=sigma)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 4, 2, generator=g, dtype=torch.float64)
    f0 = torch.linalg.cholesky(sigma) @ z
    errors = (found.eigenvectors.T @ (f0 - y)).square().sum(2)  # (draws, n)
    apart = (errors.mean(0) - found.start) / (errors.std(0) / math.sqrt(20_000))
    assert apart.abs().max() < 4


def test_gain_is_exact_for_eigenvalues_from_zero_to_large():
    """Against (1 - decay) / lambda in 60 decimal digits."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    values = [8.0, 1.0, 1e-3, 1e-9, 1e-15, 0.0]
    found = spectrum(torch.diag(torch.tensor(values, dtype=torch.float64)), targets(6))
    for t in (0.25, 2.0, 500.0):
        for rate in (None, 0.25):
            for value, gain in zip(values, found.gain([t], rate)[0].tolist(), strict=True):
                k = Decimal(value)
                left = (-k * Decimal(t) / 6).exp() if rate is None else (1 - Decimal(rate) * k / 6) ** int(t / rate)
                exact = Decimal(t) / 6 if value == 0 else (1 - left) / k
                assert gain == pytest.approx(float(exact), rel=1e-12)


def test_alignment_is_a_distribution_and_finds_the_direction_of_the_targets():
    kernel = gram(5)
    vectors = torch.linalg.eigh(kernel).eigenvectors
    found = spectrum(kernel, vectors[:, -2:-1] * 3)
    torch.testing.assert_close(found.alignment, torch.tensor([0.0, 1, 0, 0, 0]).double())
    assert float(found.cumulative_alignment[-1]) == pytest.approx(1)


def test_complexity_is_the_inverse_kernels_and_its_bound_has_no_units():
    kernel, y = gram(6), targets(6)
    found = spectrum(kernel, y)
    form = float((y.T @ torch.linalg.solve(kernel, y)).squeeze())
    assert found.complexity() == pytest.approx(math.sqrt(2 * form / 6))
    assert spectrum(9 * kernel, y).complexity() == pytest.approx(found.complexity() / 3)
    assert spectrum(9 * kernel, y).bound(0.1) == pytest.approx(found.bound(0.1))
    normal = spectrum(kernel * (3 / kernel.trace()), y)  # tr K = P / 2, as for the input weights of ReLU networks
    tail = 3 * math.sqrt(math.log(2 / 0.05) / 12)
    assert normal.bound() - tail == pytest.approx(normal.complexity())


def test_bound_holds_for_the_worst_function_of_its_norm():
    """2 B sqrt(tr K) / P bounds twice the Rademacher average of the ball, E sup_f (1/P) sum s f = B E sqrt(s^T K s) / P"""
    kernel, y = gram(40), targets(40)
    found = spectrum(kernel, y)
    g = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2000, 40), generator=g).double() * 2 - 1
    lengths = torch.einsum("np,pq,nq->n", signs, kernel, signs).sqrt()
    average = math.sqrt(found.squared_norm()) * float(lengths.mean()) / 40
    first = found.bound() - 3 * math.sqrt(math.log(2 / 0.05) / 80)
    assert 2 * average <= first < 2.2 * average


@pytest.mark.parametrize("rate", [None, 0.05])
def test_norm_at_a_finite_time_is_that_of_the_coefficients(rate):
    """f_t = K alpha_t with d alpha / dt = (y - f) / P; |f|^2 = alpha^T K alpha; also for a singular kernel."""
    kernel, y = gram(6, rank=4), targets(6)
    alpha, eta = torch.zeros(6, 1).double(), rate or 1e-4
    for _ in range(round(2 / eta)):
        alpha = alpha + eta * (y - kernel @ alpha) / 6
    expected = float((alpha.T @ kernel @ alpha).squeeze())
    assert spectrum(kernel, y).squared_norm(2.0, rate) == pytest.approx(expected, rel=1e-10 if rate else 1e-4)


def test_what_a_singular_kernel_cannot_fit_is_reported():
    """Two equal samples with different labels: half of their difference stays."""
    kernel = gram(5)[[0, 1, 2, 3, 3]][:, [0, 1, 2, 3, 3]]
    y = torch.tensor([0.3, 0.2, -0.5, 1.0, -1.0]).double()[:, None]
    found = spectrum(kernel, y)
    assert found.condition_number == math.inf
    assert int(found.singular.sum()) == 1
    assert found.remaining_error == pytest.approx(2 / 5)
    assert float(found.loss([math.inf])) == pytest.approx(0.5 * found.remaining_error)
    distinct, mean = gram(5)[:4, :4], torch.tensor([0.3, 0.2, -0.5, 0.0]).double()
    assert found.indistinct == ((3, 4),)
    assert found.squared_norm() == pytest.approx(float(mean @ torch.linalg.solve(distinct, mean)))
    both = torch.einsum("pq,cd->pcqd", kernel, torch.diag(torch.tensor([1.0, 2.0]).double()))
    twice = spectrum(both, torch.cat([y, y], 1))
    assert twice.indistinct == ((6, 8), (7, 9))
    assert twice.squared_norm() == pytest.approx(1.5 * found.squared_norm())
    raised = kernel + 0.01 * kernel.diagonal().mean() * torch.eye(5).double()
    ridge = y.T @ torch.linalg.solve(raised, kernel) @ torch.linalg.solve(raised, y)
    assert found.squared_norm(jitter=0.01) == pytest.approx(float(ridge.squeeze()))


def test_a_singular_kernel_without_equal_rows_has_no_norm_at_the_end():
    with pytest.raises(
        ValueError, match=r"numerically singular: smallest eigenvalue .* 2 of 6 are zero to rounding; .*jitter="
    ):
        spectrum(gram(6, rank=4), targets(6)).complexity()
    kernel = gram(6, rank=3)[[0, 1, 2, 3, 4, 0]][:, [0, 1, 2, 3, 4, 0]]
    kernel[3], kernel[:, 3] = 0, 0
    twice = torch.einsum("pq,cd->pcqd", kernel, torch.eye(2).double())
    message = (
        "6 of 12 are zero to rounding, 4 of them because training rows 0 and 5 are duplicates, training row 3 is zero"
    )
    with pytest.raises(ValueError, match=message):
        spectrum(twice, targets(6, 2)).gain([math.inf])


def test_edge_of_stability():
    kernel, y = gram(5), targets(5)
    found = spectrum(kernel, y)
    edge = found.largest_learning_rate()
    assert float(found.loss([edge * 0.999 * 1000], edge * 0.999)) < float(found.loss([0.0]))
    assert float(found.loss([edge * 1.01 * 1000], edge * 1.01)) > 100 * float(found.loss([0.0]))
    with pytest.raises(ValueError, match=f"diverges.*{edge:.4g}"):
        found.gain([math.inf], 1.01 * edge)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (gram(4), r"shape \(3, 3\) or \(3, 2, 3, 2\): received \(4, 4\)"),
        (gram(3) + torch.eye(3).roll(1, 0), "not symmetric: .* by up to 1"),
        (gram(3) - 50 * torch.eye(3), "not positive semi-definite: smallest eigenvalue -"),
        (gram(3) * math.nan, "NaN"),
    ],
)
def test_kernels_that_are_none(kernel, message):
    with pytest.raises(ValueError, match=message):
        spectrum(kernel, targets(3, 2))


def test_single_precision_rounding_is_no_reason_to_refuse():
    found = spectrum(gram(30, rank=3, dtype=torch.float32), targets(30))
    assert int(found.singular.sum()) == 27


@pytest.mark.parametrize("times", [[-1.0], [], [math.nan], [[1.0]]])
def test_times_that_are_none(times):
    with pytest.raises(ValueError, match="times must be a non-empty list"):
        spectrum(gram(3), targets(3)).decay(times)


def test_descent_has_outputs_at_multiples_of_its_rate_only():
    with pytest.raises(ValueError, match=r"multiples of the learning rate 0\.2 only: received the time 0\.5"):
        spectrum(gram(3), targets(3)).decay([0.4, 0.5], 0.2)
    with pytest.raises(ValueError, match="f0 must have the shape of y"):
        spectrum(gram(3), targets(3), f0=targets(3, 2))
    with pytest.raises(ValueError, match="delta must lie"):
        spectrum(gram(3), targets(3)).bound(delta=1.0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_equal_samples_stay_at_the_mean_of_their_targets_for_ever(activation):
    """Their difference is never learned: rounding of K would learn some 1e-16 t of it."""
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.3, -1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    data = mf.Dataset(x, y, x_test=x[:1] + 0.1)
    asked = mf.Problem(data, mf.Network(2, activation), mf.ntk(), mf.Training(0.2, 2))
    found = lazy_prediction(asked, times=[1e4, 1e12, 1e15, 1e18, math.inf])
    for mean in (found.mean, found.mean_test):
        torch.testing.assert_close(mean, mean[-1:].expand_as(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.mean[0, :, 0], torch.tensor([0.0, 0.0, 1.0]).double(), rtol=0, atol=1e-9)
