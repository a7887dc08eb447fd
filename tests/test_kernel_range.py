"""Kernels beyond the range of floating point are errors that name layer and size; within it they keep their digits at any size."""

import math
import re

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import meanfield as mf
from meanfield.kernels.conv_kernels import conv_nngp_and_ntk
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.network.convolutional import ConvNetwork
from meanfield.scaling.standard import improved_standard
from solvers import empirical_tangent_kernel, lazy_prediction, monte_carlo_kernels

X = torch.tensor([[1.0, 2.0], [0.3, -1.0]], dtype=torch.float64)


def relu_like(depth, std):
    """(nngp, ntk) (2, 2) at X by equation 43 in 60 digits, with the arc-cosine averages, to which gelu's tend at large deviations"""
    with mpmath.workdps(60):
        std2 = mpmath.mpf(std) ** 2
        c = mpmath.matrix((X @ X.T / 2).tolist()) * std2
        theta = c.copy()
        for _ in range(depth):
            new, below = c.copy(), c.copy()
            for i in range(2):
                for j in range(2):
                    norm = mpmath.sqrt(c[i, i] * c[j, j])
                    rho = min(mpmath.mpf(1), c[i, j] / norm)
                    rest = mpmath.pi - mpmath.acos(rho)
                    new[i, j] = std2 * norm * (mpmath.sqrt(1 - rho * rho) + rest * rho) / (2 * mpmath.pi)
                    below[i, j] = new[i, j] + std2 * rest / (2 * mpmath.pi) * theta[i, j]
            c, theta = new, below
        return [torch.tensor(np.array(m.tolist(), dtype=float)) for m in (c, theta)]


@pytest.mark.parametrize(("depth", "std"), [(50, 100.0), (33, 3e4), (900, 1.0), (300, 2.5)])
def test_huge_and_tiny_relu_kernels_keep_their_digits(depth, std):
    for found, right in zip(
        mf.nngp_and_ntk(mf.Network(depth, "relu", std), mf.ntk(), X), relu_like(depth, std), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("depth", "std"), [(50, 100.0), (33, 3e4)])
def test_gelu_of_huge_deviations_is_relu(depth, std):
    """gelu(h) - relu(h) is of order 1, and below: relative differences are of order 1 / std, in the first layer alone (h ~ std)"""
    found = mf.nngp_and_ntk(mf.Network(depth, "gelu", std), mf.ntk(), X)
    for kernel, right in zip(found, relu_like(depth, std), strict=True):
        torch.testing.assert_close(kernel, right, rtol=10 / std, atol=0)


@pytest.mark.parametrize("name", ["gelu", "erf"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e5])
def test_closed_forms_in_fifty_digits(name, size):
    """Equation 41 as it is written"""
    p, q, c = 1.7 * size, 0.6 * size, 0.7 * size
    with mpmath.workdps(50):
        a, b, k = (mpmath.mpf(v) for v in (p, q, c))
        if name == "erf":
            root = mpmath.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * k * k)
            right = 2 / mpmath.pi * mpmath.atan(2 * k / root), 4 / mpmath.pi / root
        else:
            square = (1 + a) * (1 + b) - k * k
            root, shares = mpmath.sqrt(square), 1 / (1 + a) + 1 / (1 + b)
            both = mpmath.mpf(1) / 4 + mpmath.atan(k / root) / (2 * mpmath.pi)
            right = (
                k * both + (a * b - k * k + k * k * shares) / (2 * mpmath.pi * root),
                both + k * (shares + 1 / square) / (2 * mpmath.pi * root),
            )
    one = [torch.tensor(v, dtype=torch.float64) for v in ([p], [q], [[c]])]
    for found, exact in zip(gaussian_averages(name).pair(*one), right, strict=True):
        assert float(found) == pytest.approx(float(exact), rel=1e-14)


IMAGES = torch.linspace(0.1, 1, 32, dtype=torch.float64).reshape(2, 1, 4, 4)


def dense(depth, name="relu", std=1.0, x=X, x2=None, scaling=None):
    return lambda: mf.nngp_and_ntk(mf.Network(depth, name, std), scaling or mf.ntk(), x, x2)


def conv(depth, std, x=IMAGES):
    return lambda: conv_nngp_and_ntk(ConvNetwork(depth, "relu", weight_std=std), mf.ntk(), x)


def lazy():
    return lazy_prediction(mf.Problem(mf.Dataset(X, [1.0, -1.0]), mf.Network(1100, "relu"), mf.ntk()))


OUTSIDE = {
    "relu below": (dense(1100), r"layer 10\d\d of 1100 falls below 2.2e-308.*e-30\d in layer"),
    "relu above": (dense(90, std=100.0), r"layer 8\d of 90 exceeds 1.8e\+308"),
    "gelu above": (dense(90, "gelu", 100.0), r"layer 8\d of 90 exceeds 1.8e\+308"),
    "linear below": (dense(40, "linear", 1e-5), r"layer 31 of 40 falls below"),
    "inputs": (dense(1, "tanh", x=1e-170 * X), "layer 1 of 1 falls below"),
    "between": (dense(1, x2=1e-170 * X), "layer 1 of 1 falls below"),
    "float32 above": (dense(15, std=1e3, x=X.float()), r"nngp after layer 15 .*e\+\d+ .*exceeds 3.4e\+38.*give x in float64"),
    "float32 below": (dense(15, std=1e-3, x=X.float()), "nngp .*falls below 1.2e-38.*give x in float64"),
    "improved standard": (dense(79, std=1e2, scaling=improved_standard(10**15)), r"ntk after layer 79 .*exceeds 1.8e\+308"),
    "images above": (conv(90, 100.0), "of 90 exceeds"),
    "images below": (conv(90, 1e-2), "of 90 falls below"),
    "images in float32": (conv(15, 1e3, IMAGES.float()), "give x in float64"),
    "lazy": (lazy, "of 1100 falls below"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_does_not_fit_is_an_error_with_layer_and_size(case):
    call, message = OUTSIDE[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "weight_std" in str(caught.value)


def test_zeros_that_are_right_stay():
    """Opposite points of a ReLU, the prior in the mean-field scaling, and points at zero where biases or phi(0) keep a network alive"""
    nngp, ntk = mf.nngp_and_ntk(mf.Network(1, "relu"), mf.mean_field(), torch.cat([X, -X]))
    assert not nngp.any()
    assert ntk[0, 2] == 0
    for network in (mf.Network(2, "sigmoid"), mf.Network(2, "relu", bias_std=0.3)):
        assert all(torch.isfinite(k).all() for k in mf.nngp_and_ntk(network, mf.ntk(), 0 * X))
    assert math.isfinite(float(mf.nngp_and_ntk(mf.Network(2, "tanh", bias_std=0.1), mf.ntk(), 1e-200 * X)[1].max()))


BAD = {
    "nothing": None,
    "text": "x",
    "a number": 3,
    "a vector": [1.0, 2.0],
    "ragged": [[1.0], [1.0, 2.0]],
    "complex": np.eye(2) * 1j,
    "a dict": {"x": 1},
    "texts": [["a", "b"]],
    "empty": np.zeros((0, 2)),
    "cube": np.zeros((2, 2, 2)),
    "nan": [[math.nan, 1.0]],
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("place", ["x", "x2"])
def test_inputs_of_wrong_types_are_refused_by_name(case, place):
    given = {"x": X, "x2": X} | {place: BAD[case]}
    if case == "nothing" and place == "x2":
        pytest.skip("x2=None is x")
    with pytest.raises(ValueError, match=rf"^{place} "):
        mf.nngp_and_ntk(mf.Network(), mf.ntk(), **given)


def test_inputs_of_any_array_give_the_same_numbers():
    right = mf.nngp_and_ntk(mf.Network(), mf.ntk(), X)
    for same in (X.tolist(), X.numpy(), np.asfortranarray(X.numpy()), X.numpy().astype(">f8"), X.numpy()[::-1][::-1]):
        assert all(torch.equal(a, b) for a, b in zip(mf.nngp_and_ntk(mf.Network(), mf.ntk(), same), right, strict=True))
    whole = mf.nngp_and_ntk(mf.Network(), mf.ntk(), [[1, 2], [3, 4]])
    assert torch.equal(whole[0], mf.nngp_and_ntk(mf.Network(), mf.ntk(), [[1.0, 2.0], [3.0, 4.0]])[0])


def two_layers(n):
    return nn.Sequential(nn.Linear(2, n, bias=False), nn.ReLU(), nn.Linear(n, 1, bias=False))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("weight_std", lambda std: mf.Network(1, "relu", std)),
        ("bias_std", lambda std: mf.Network(1, "relu", 1.0, std)),
        ("residual", lambda std: mf.Network(1, "relu", residual=std)),
        ("weight_std", lambda std: ConvNetwork(1, weight_std=std)),
        ("weight_std", lambda std: mf.Architecture(two_layers, weight_std=std)),
        (r"weight_std\['0.weight'\]", lambda std: mf.Architecture(two_layers, weight_std={"0.weight": std})),
        ("sigma", lambda std: mf.Scaling(-0.5, 0.0, 0.0, sigma=std)),
    ],
)
def test_numbers_whose_squares_are_none_are_refused(name, make):
    """Before any work, wherever they stand"""
    for std in (1e200, 1.4e154, 1e-154, 5e-324):
        with pytest.raises(
            ValueError, match=rf"{name} must lie between 1.5e-154 and 1.3e154.*received {re.escape(str(std))}"
        ):
            make(std)
    for std in (1.3e154, 1.5e-154):
        make(std)


@pytest.mark.parametrize("std", [1e-78, 1e-81, 1e-100])
def test_drawn_networks_below_the_range_are_refused(std):
    """Squares of outputs, std^2 in size, that are no float64"""
    for network in (mf.Network(1, "relu", std), mf.Architecture(two_layers, weight_std=std)):
        with pytest.raises(
            ValueError, match=r"the nngp of drawn networks falls below 2.2e-308.*outputs are of size \d.\de-"
        ):
            monte_carlo_kernels(network, mf.ntk(), X, 16, 2)
    with pytest.raises(ValueError, match=r"ntk of drawn networks falls below 2.2e-308"):
        empirical_tangent_kernel(mf.Network(1, "relu", std), mf.ntk(), X, 16)
    assert not monte_carlo_kernels(mf.Network(2, "relu"), mf.ntk(), 0 * X, 16, 2).ntk.any()


@pytest.mark.parametrize(
    ("std", "x", "words"),
    [
        (1e-78, X, "nngp falls below 2.2e-308"),  # the kernel is a number without digits
        (1e-81, X, "nngp falls below 2.2e-308"),  # it is 0
        (1e-10, X.float(), "nngp falls below 1.2e-38.*x in float64"),
        (1.0, torch.cat([X, 1e-160 * X]), "nngp falls below 2.2e-308"),  # of some samples alone
    ],
)
def test_kernels_of_modules_below_the_range_are_refused(std, x, words):
    network = mf.Architecture(two_layers, weight_std=std)
    with pytest.raises(ValueError, match=words):
        mf.nngp_and_ntk(network, mf.ntk(), x)
    if std < 1e-10:
        with pytest.raises(ValueError, match=words):
            mf.nngp_and_ntk(network, mf.ntk(), x, x[:1])


def test_kernels_that_are_0_are_returned():
    """At inputs of 0, by the parameterization, and behind gains that start at 0"""

    class Gained(torch.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.net, self.gain = two_layers(n), torch.nn.Parameter(torch.zeros(n))

        def forward(self, x):
            return self.net[2:](torch.relu(self.net[0](x)) * self.gain)

    assert not any(kernel.any() for kernel in mf.nngp_and_ntk(two_layers, mf.ntk(), 0 * X))
    assert not mf.nngp_and_ntk(two_layers, mf.mean_field(1.0), X)[0].any()
    nngp, ntk = mf.nngp_and_ntk(Gained, mf.ntk(), X)
    assert not nngp.any()
    assert ntk.any()

    def beyond(n):
        """The second filter sees what stands around a single position alone"""
        first, second = nn.Conv1d(1, n, 2, bias=False), nn.Conv1d(n, n, 2, padding=1, dilation=2, bias=False)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(n, 1, bias=False))

    assert not any(kernel.any() for kernel in mf.nngp_and_ntk(beyond, mf.ntk(), X[:, None]))


def test_drawn_networks_beyond_the_range_are_refused():
    for network in (mf.Network(2, "relu", 1e150), mf.Architecture(two_layers, weight_std=1e154)):
        with pytest.raises(ValueError, match=r"of drawn networks exceeds 1.8e\+308"):
            monte_carlo_kernels(network, mf.ntk(), X, 16, 2)
    with pytest.raises(ValueError, match=r"ntk of drawn networks exceeds 1.8e\+308"):
        empirical_tangent_kernel(mf.Network(2, "relu", 1e150), mf.ntk(), X, 16)
