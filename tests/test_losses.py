"""Losses: Delta = -d loss / d f, values that stay right at |f| = 1e4, and targets that fit."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import meanfield as mf
from meanfield.problem import losses

TARGETS = {
    "squared": torch.tensor([[0.5, -2.0], [1.0, 3.0], [0.0, 0.0]]).double(),
    "logistic": torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]]).double(),
    "cross_entropy": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]]).double(),
}
REFERENCES = {
    "squared": lambda f, y: ((f - y) ** 2).sum(-1) / 2,
    "logistic": lambda f, y: np.logaddexp(0, -y * f).sum(-1),
    "cross_entropy": lambda f, y: logsumexp(f, axis=-1) - (y * f).sum(-1),  # rows of y sum to 1
}
SIZES = [0.0, 1e-3, 1.0, 30.0, 1e4]


def _f(size, lead=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return (size * torch.sign(torch.randn(*lead, 3, 2, generator=g)) + torch.randn(*lead, 3, 2, generator=g)).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TARGETS)
def test_value_is_the_textbook_formula(name, size):
    f, y = _f(size, (4,)), TARGETS[name]
    np.testing.assert_allclose(
        mf.loss(name).value(f, y), REFERENCES[name](f.numpy(), y.numpy()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TARGETS)
def test_delta_is_minus_the_gradient_of_value(name, size, dtype):
    f, y = _f(size, dtype=dtype).requires_grad_(), TARGETS[name].to(dtype)
    value, delta = mf.loss(name).value(f, y), mf.loss(name).delta(f, y)
    (gradient,) = torch.autograd.grad(value.sum(), f)
    assert torch.isfinite(value).all()
    assert delta.dtype == value.dtype == dtype
    torch.testing.assert_close(delta, -gradient, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", TARGETS)
def test_leading_dimensions_are_independent_runs(name):
    f, y, loss = _f(1.0, (2, 5)), TARGETS[name], mf.loss(name)
    assert loss.value(f, y).shape == (2, 5, 3)
    assert loss.delta(f, y).shape == f.shape
    assert torch.equal(loss.value(f, y)[1, 4], loss.value(f[1, 4], y))
    assert torch.equal(loss.delta(f, y)[1, 4], loss.delta(f[1, 4], y))


@pytest.mark.parametrize("name", TARGETS)
def test_mean_is_over_samples_and_not_over_outputs(name):
    f, y, loss = _f(1.0, (5,)), TARGETS[name], mf.loss(name)
    total = sum(loss.value(f[:, [i]], y[[i]])[:, 0] for i in range(3))
    torch.testing.assert_close(loss.mean(f, y), total / 3, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("name", "y", "message"),
    [
        ("logistic", [[0.0], [1.0]], "received the label 0; labels must be -1 or \\+1"),
        ("logistic", [[1.0], [2.0]], "received the label 2"),
        ("cross_entropy", [[1.0], [1.0]], "received 1 column"),
        ("cross_entropy", [[1.0, 0.0], [0.25, 0.25]], "row 1 is \\[0.25, 0.25\\]"),
        ("cross_entropy", [[-0.5, 1.5], [0.0, 1.0]], "row 0 is \\[-0.5, 1.5\\]"),
    ],
)
def test_labels_that_do_not_fit_are_named(name, y, message):
    with pytest.raises(ValueError, match=message):
        mf.loss(name).check(torch.tensor(y).double())


@pytest.mark.parametrize("name", TARGETS)
def test_labels_that_fit_pass(name):
    assert mf.loss(name).check(TARGETS[name]) is None


def test_an_unknown_name_is_answered_with_the_known_ones():
    assert set(losses.names()) == set(TARGETS)
    with pytest.raises(ValueError, match="unknown loss: received 'hinge'; known: cross_entropy, logistic, squared"):
        mf.loss("hinge")


@pytest.mark.parametrize("name", TARGETS)
def test_pickling_gives_the_same_object(name):
    assert pickle.loads(pickle.dumps(mf.loss(name))) is mf.loss(name)


# ---- a loss of one's own, tried against autograd ---------------------------------------------------------------------


def squared(f, y):
    return 0.5 * (f - y).square().sum(-1)


WRONG = {
    "sign": (squared, lambda f, y: f - y, "Delta of .*is not -d value / d f: at .*autograd gives"),
    "factor": (lambda f, y: 2 * squared(f, y), lambda f, y: y - f, "is not -d value / d f"),
    "mean over samples": (squared, lambda f, y: (y - f) / len(y), "not divided by P"),
    "mean of the value": (lambda f, y: squared(f, y).mean(), lambda f, y: y - f, r"value of .*received \(\)"),
    "value of each output": (lambda f, y: (f - y) ** 2, lambda f, y: 2 * (y - f), r"shape \(3, 2\) .*received \(3, 2, 1\)"),
    "delta without outputs": (squared, lambda f, y: (y - f)[..., 0], r"Delta of .*shape \(3, 2, 1\) .*received \(3, 2\)"),
    "nan": (lambda f, y: torch.log(f).sum(-1), lambda f, y: -1 / f, "value of .*must be finite: received nan"),
    "nan at 0": (lambda f, y: f.square().sum(-1), lambda f, y: -2 * f * f / f, "Delta of .*must be finite: received nan"),
    "numpy": (lambda f, y: np.square((f - y).numpy()).sum(-1) / 2, lambda f, y: y - f, "received ndarray"),
    "delta of numpy": (squared, lambda f, y: (y - f).numpy(), "Delta of .*received ndarray"),
    "dtype": (squared, lambda f, y: (y - f).double(), "Delta of .*received torch.float64"),
    "batch": (lambda f, y: squared(f - f.mean(-2, True), y), lambda f, y: f, "value of .*mixes samples"),
    "half": (lambda f, y: squared(f, y).half(), lambda f, y: y - f, "received torch.float16"),
    "detached": (lambda f, y: squared(f.detach(), y), lambda f, y: y - f, "cut off from autograd"),
    "in place": (squared, lambda f, y: f.sub_(y).neg_(), "changes its argument in place"),
    "fails": (squared, lambda f: f, "Delta of .*fails with TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_piece_is_refused_with_the_problem(case):
    value, delta, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        mf.Problem(mf.Dataset([[1.0], [2.0]], [1.0, -1.0]), loss=mf.Loss("mine", value, delta, lambda y: None))
    assert "'mine'" in str(caught.value)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_right_pieces_pass_in_every_mode(name, mode):
    known, y = mf.loss(name), TARGETS[name]
    with mode():
        mf.Loss("mine", known.value, known.delta, known.check).fits(y)
        mf.Loss("hinge", lambda f, y: torch.relu(1 - y * f).sum(-1), lambda f, y: y * (y * f < 1), known.check).fits(y)
