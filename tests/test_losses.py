"""Losses: Delta = -d loss / d f, values that stay right at |f| = 1e4, and targets that fit."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

import meanfield as mf
from meanfield.problem import losses
from meanfield.problem.fitted_data import with_classes

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
        ("cross_entropy", [[[0.0, 1.0], [0.5, 0.25]]], "row 0, position 1 is \\[0.5, 0.25\\]"),
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
    with pytest.raises(ValueError, match=f"unknown loss: received 'hinge'; known: {', '.join(losses.names())}"):
        mf.loss("hinge")


@pytest.mark.parametrize("name", TARGETS)
def test_pickling_gives_the_same_object(name):
    assert pickle.loads(pickle.dumps(mf.loss(name))) is mf.loss(name)


# ---- positions, and those that are not counted -----------------------------------------------------------------------


def _labels(shape, classes=5):
    """Outputs (shape, C), labels of which some are -100, and their one-hot rows, zeros where it stands"""
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, shape, generator=g)
    labels.view(-1)[::3] = -100
    data = mf.Dataset(torch.ones(len(labels), 1), labels)
    f = 3 * torch.randn(*shape, classes, generator=g, dtype=torch.float64)
    return f, labels, with_classes(data, (*shape[1:], classes), mf.loss("cross_entropy")).y


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 4, 3)])
def test_the_cross_entropy_of_masked_classes_is_torch_s(shape):
    f, labels, y = _labels(shape)
    loss, leaf = mf.loss("cross_entropy"), f.clone().requires_grad_()
    right = F.cross_entropy(leaf.flatten(0, -2), labels.flatten(), ignore_index=-100)
    (slope,) = torch.autograd.grad(right, leaf)
    counted = (labels >= 0).sum()
    assert 0 < counted < labels.numel()
    torch.testing.assert_close(loss.mean(f, y), right.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.delta(f, y), -slope * counted, rtol=1e-12, atol=1e-13)
    assert not loss.delta(f, y)[labels < 0].any()
    batch = torch.tensor([4, 1, 2])
    right = F.cross_entropy(f[batch].flatten(0, -2), labels[batch].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss.mean(f[batch], y[batch]), right, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", TARGETS)
def test_the_mean_is_over_samples_and_positions(name):
    y, loss = TARGETS[name].expand(4, 3, 2), mf.loss(name)  # (P, positions, C)
    f = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    right = REFERENCES[name](f.numpy(), y.numpy()).reshape(5, -1).mean(1)
    np.testing.assert_allclose(loss.mean(f, y), right, rtol=1e-13)
    loss.fits(y)
    mf.Loss("mine", loss.value, loss.delta, loss.check, loss.counted).fits(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 3, 100, 4001])
def test_a_mean_over_all_has_the_bits_of_a_plain_one(samples, dtype):
    g = torch.Generator().manual_seed(3)
    f = torch.randn(2, samples, 3, generator=g, dtype=torch.float64).to(dtype)
    y, loss = F.one_hot(torch.randint(0, 3, (samples,), generator=g), 3).to(dtype), mf.loss("cross_entropy")
    assert torch.equal(loss.mean(f, y), loss.value(f, y).mean(-1))
    assert torch.equal(loss.delta(f, y), y - torch.softmax(f, -1))


def test_at_infinite_logits_masked_rows_are_not_counted():
    f, _, y = _labels((6, 4))
    loss, c = mf.loss("cross_entropy"), 1e6
    limit = loss.at_infinite_logits()
    torch.testing.assert_close(limit.mean(f, y), loss.mean(c * f, y) / c, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(limit.delta(f, y), loss.delta(c * f, y), rtol=1e-9, atol=1e-9)


def test_a_batch_of_which_nothing_is_counted_has_no_loss_and_no_slope():
    f, y, loss = torch.ones(2, 3, 4, requires_grad=True), torch.zeros(2, 3, 4), mf.loss("cross_entropy")
    loss.mean(f, y).backward()
    assert loss.mean(f, y) == 0
    assert not f.grad.any()


@pytest.mark.parametrize(("f", "y"), [((3, 2), (2, 2)), ((2,), (2, 2)), ((2, 3, 4), (2, 4)), ((3, 4), (2, 3, 4))])
def test_outputs_of_another_shape_than_the_targets_are_refused(f, y):
    with pytest.raises(ValueError, match=r"f must have shape .*received f of shape"):
        mf.loss("squared").mean(torch.zeros(f), torch.zeros(y))


def test_a_loss_of_one_s_own_says_what_it_counts():
    """A regression in which targets beyond 99 are missing"""

    def there(y):
        return (y < 99).all(-1)

    def mine(counted):
        return mf.Loss(
            "masked",
            lambda f, y: 0.5 * (f - y).square().sum(-1) * there(y),
            lambda f, y: (y - f) * there(y)[..., None],
            lambda y: None,
            counted,
        )

    y = torch.tensor([[[1.0], [100.0]], [[2.0], [4.0]]]).double()
    mine(there).fits(y)
    assert float(mine(there).mean(torch.zeros(2, 2, 1).double(), y)) == (1 + 4 + 16) / 2 / 3
    with pytest.raises(
        ValueError, match=r"counted of the loss 'masked' must return the shape \(2, 2\).*received \(2, 2, 1\)"
    ):
        mine(lambda y: y < 99).fits(y)


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


def test_a_registered_loss_serves_by_name_and_is_still_tried(monkeypatch):
    monkeypatch.setattr(losses, "_KNOWN", dict(losses._KNOWN))
    data = mf.Dataset([[1.0], [2.0]], [1.0, -1.0])
    mine = mf.register_loss(mf.Loss("mine", squared, lambda f, y: y - f))  # any targets fit
    assert mf.Problem(data, loss="mine").loss_function is mine
    assert mf.register_loss(mine) is mine  # again, the same one
    assert "mine" in losses.names()
    for name in ("mine", "logistic", "logistic at infinite logits"):
        with pytest.raises(ValueError, match=f"the loss name '{name}' is taken"):
            mf.register_loss(mf.Loss(name, squared, lambda f, y: y - f, lambda y: None))
    mf.register_loss(mf.Loss("wrong", squared, lambda f, y: f - y, lambda y: None))
    with pytest.raises(ValueError, match="Delta of the loss 'wrong' is not -d value / d f"):
        mf.Problem(data, loss="wrong")
