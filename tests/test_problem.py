"""Problem, Network, Training and Scaling: what they compute, and input that is refused before any work."""

import math
import pickle

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.problem import losses
from meanfield.scaling import scaling

SIGNS = mf.Dataset(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -1, 1, -1]))
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mf.Network(depth=0), "depth must be at least 1: received 0"),
        (lambda: mf.Network(depth=-2), "depth must be at least 1: received -2"),
        (lambda: mf.Network(depth=1.5), "depth must be a whole number: received 1.5"),
        (lambda: mf.Network(depth=True), "depth must be a whole number: received True"),
        (lambda: mf.Network(depth=NAN), "depth must be a whole number: received nan"),
        (lambda: mf.Network(depth=INF), "depth must be a whole number: received inf"),
        (lambda: mf.Network(depth="2"), "depth must be a (whole )?number: received '2'"),
        (lambda: mf.Network(activation="tahn"), "unknown activation: received 'tahn'; known: .*erf, .*tanh"),
        (lambda: mf.Network(weight_std=0), "weight_std must be positive and finite: received 0"),
        (lambda: mf.Network(weight_std=-1.0), "weight_std must be positive"),
        (lambda: mf.Network(bias_std=-0.1), "bias_std must be non-negative and finite: received -0.1"),
        (lambda: mf.Network(residual=0.0), "residual must be positive"),
        (lambda: mf.Training(learning_rate=NAN), "learning_rate must be positive and finite: received nan"),
        (lambda: mf.Training(learning_rate=INF), "learning_rate must be positive and finite: received inf"),
        (lambda: mf.Training(learning_rate=True), "learning_rate must be a number: received True"),
        (lambda: mf.Training(learning_rate="0.1"), "learning_rate must be a number: received '0.1'"),
        (lambda: mf.Training(steps=-1), "steps must be at least 0: received -1"),
        (
            lambda: mf.Training(optimiser="lion"),
            "unknown optimiser: received 'lion'; known: gradient_descent, gradient_flow",
        ),
        (lambda: mf.mean_field(NAN), "gamma0 must be positive and finite: received nan"),
        (lambda: mf.mean_field(0.0), "gamma0 must be positive"),
        (lambda: mf.mean_field(-1), "gamma0 must be positive"),
        (lambda: mf.mean_field(True), "gamma0 must be a number: received True"),
        (lambda: mf.Scaling(NAN, 1, 1), "q_sigma must be a finite number: received nan"),
        (lambda: mf.Scaling(-1, 1, 1, sigma=0.0), "sigma must be positive"),
        (lambda: mf.Scaling(-1, 1, 1, reference_width=0), "reference_width must be at least 1: received 0"),
        (lambda: mf.ntk().output_multiplier(0), "width must be at least 1: received 0"),
        (lambda: mf.ntk().learning_rate_multipliers(-64), "width must be at least 1: received -64"),
        (lambda: mf.ntk().output_multiplier(2.5), "width must be a whole number: received 2.5"),
        (
            lambda: scaling.named("mup"),
            f"unknown scaling: received 'mup'; known: {', '.join(sorted(scaling.NAMED))}",
        ),
        (
            lambda: mf.Problem(SIGNS, loss="hinge"),
            f"unknown loss: received 'hinge'; known: {', '.join(losses.names())}",
        ),
        (
            lambda: mf.Problem(SIGNS, network="tanh"),
            "network must be a Network or an Architecture or a function: received 'tanh'; give e.g. mf.Network",
        ),
        (lambda: mf.Problem(SIGNS.x), "data must be a Dataset: received an array of shape"),
        (lambda: mf.Problem(SIGNS, scaling=mf.ntk), "scaling must be a Scaling or a Standard: received function"),
    ],
)
def test_wrong_settings_are_refused_with_what_was_received(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_and_torch_are_numbers():
    network = mf.Network(depth=np.int64(2), weight_std=np.float32(1.5), bias_std=torch.tensor(0.5))
    assert network == mf.Network(depth=2, weight_std=1.5, bias_std=0.5)
    assert type(network.depth) is int
    assert mf.Training(steps=3.0) == mf.Training(steps=3)


@pytest.mark.parametrize(
    ("loss", "good", "bad", "message"),
    [
        ("logistic", [[1.0], [-1.0]], [[0.5], [1.0]], "received the label 0.5; labels must be -1 or"),
        ("cross_entropy", [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]], "row 1 is .* sum to 1"),
    ],
)
def test_labels_that_do_not_fit_the_loss_are_refused(loss, good, bad, message):
    """Among the training samples and among the test samples."""
    x = [[1.0], [2.0]]
    for data in (mf.Dataset(x, bad), mf.Dataset(x, good, x, bad)):
        with pytest.raises(ValueError, match=f"labels do not fit the loss '{loss}': {message}"):
            mf.Problem(data, loss=loss)
    mf.Problem(mf.Dataset(x, good, x, good), loss=loss)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_labels_that_fit_make_a_problem(loss):
    problem = mf.Problem(SIGNS, loss=loss)
    assert problem.loss_function is mf.loss(loss)
    assert problem == mf.Problem(SIGNS, loss=mf.loss(loss))


def test_problems_are_equal_by_value_and_survive_pickling(tiny_problem):
    assert pickle.loads(pickle.dumps(tiny_problem)) == tiny_problem
    assert tiny_problem.with_steps(11) != tiny_problem
    assert tiny_problem.with_steps(11).training == mf.Training(0.2, 11)


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_network_inputs_are_scaled_rows_and_a_bias_column(bias):
    x = SIGNS.x
    inputs = mf.Network(weight_std=1.5, bias_std=bias).inputs(x)
    torch.testing.assert_close(inputs[:, :3], 1.5 * x / math.sqrt(3), rtol=1e-15, atol=0)
    assert inputs.shape == (4, 3 + (bias > 0))
    assert (inputs[:, 3:] == bias).all()


def test_times_are_multiples_of_the_learning_rate():
    assert mf.Training(learning_rate=0.25, steps=3).times.tolist() == [0.0, 0.25, 0.5, 0.75]


# ---- scalings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 64, 1000])
@pytest.mark.parametrize("gamma0", [0.1, 1.0, 3.0])
def test_mean_field_with_richness(gamma0, width):
    """sigma = 1 / (gamma0 N), eta_a = eta_w = gamma0^2 N, so that (sigma N, eta sigma) does not depend on N."""
    s = mf.mean_field(gamma0)
    assert s.output_multiplier(width) == pytest.approx(1 / (gamma0 * width), rel=1e-14)
    assert s.learning_rate_multipliers(width) == pytest.approx((gamma0**2 * width,) * 2, rel=1e-14)
    assert s.measure_limit() == pytest.approx((1 / gamma0, gamma0, gamma0), rel=1e-14)


@pytest.mark.parametrize("width", [1, 64, 1000])
def test_ntk(width):
    s = mf.ntk()
    assert s.output_multiplier(width) == pytest.approx(width**-0.5, rel=1e-14)
    assert s.learning_rate_multipliers(width) == (1.0, 1.0)


@pytest.mark.parametrize("exponents", [(-1, 1, 1), (-0.5, 0, 0), (-0.5, 1, 0), (-0.5, 0.5, 0.5)])
def test_scalings_agree_at_the_reference_width_and_there_only(exponents):
    s = mf.Scaling(*exponents, sigma=0.3, eta_a=2.0, eta_w=5.0, reference_width=64)
    assert s.output_multiplier(64) == 0.3
    assert s.learning_rate_multipliers(64) == (2.0, 5.0)
    q_sigma, q_a, q_w = exponents
    assert s.output_multiplier(256) == pytest.approx(0.3 * 4**q_sigma, rel=1e-14)
    assert s.learning_rate_multipliers(256) == pytest.approx((2.0 * 4**q_a, 5.0 * 4**q_w), rel=1e-14)
    assert s.products(64)._asdict() == pytest.approx({"gamma": 19.2, "kappa_a": 0.6, "kappa_w": 1.5}, rel=1e-14)


def test_the_measure_limit_does_not_depend_on_the_reference_width():
    """The same mean-field scaling, written at N* = 1 and at N* = 64."""
    at_64 = mf.Scaling(-1, 1, 1, sigma=1 / (2 * 64), eta_a=4 * 64, eta_w=4 * 64, reference_width=64)
    assert at_64.is_mean_field
    assert at_64.measure_limit() == pytest.approx(mf.mean_field(2.0).measure_limit(), rel=1e-14)


@pytest.mark.parametrize("exponents", [(-0.5, 0, 0), (-0.5, 1, 0), (-1, 1, 0), (-1, 0.9, 1)])
def test_other_scalings_have_no_flow_of_measures(exponents):
    s = mf.Scaling(*exponents, name="mine")
    assert not s.is_mean_field
    with pytest.raises(ValueError, match=r"'mine' .*no limit as a flow of measures.*FiniteWidth"):
        s.measure_limit()


def test_named_scalings():
    assert scaling.named("ntk") == mf.ntk()
    assert scaling.named("mean_field", gamma0=2.0) == mf.mean_field(2.0)


def test_a_network_that_has_kernels_alone_says_so():
    with pytest.raises(
        ValueError,
        match=r"received ConvNetwork, which has kernels at the start alone .* as a torch module of nn.Conv2d",
    ):
        mf.Problem(mf.digits(n_train=4), mf.ConvNetwork(1))
