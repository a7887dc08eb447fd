"""Predicted deviations of nearly singular kernels, against the closed form in 50 digits."""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import lazy_prediction
from solvers.lazy.lazy_prediction import prediction_cost

P, RATE = 6, 0.05


def close_points():
    """Pairs of training points 1e-3 apart, and two test points beside them"""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(P, 3, generator=g, dtype=torch.float64)
    apart = 1e-3 * torch.randn(P, 3, generator=g, dtype=torch.float64)
    x[3:] = x[:3] + apart[3:]
    return x, x[:2] + apart[:2]


def in_50_digits(kernel, sigma, time, flow):
    """sqrt diag(A Sigma A^T), A = 1 - K(., X) g_t(K) S, by the eigenvectors of K in 50 digits"""
    with mpmath.workdps(50):
        k, s = mpmath.matrix(kernel.tolist()), mpmath.matrix(sigma.tolist())
        values, vectors = mpmath.eigsy(k[:P, :P])
        if math.isinf(time):
            gain = [1 / v for v in values]
        elif flow:
            gain = [(1 - mpmath.exp(-v * time / P)) / v for v in values]
        else:
            gain = [(1 - (1 - v * mpmath.mpf(RATE) / P) ** round(time / RATE)) / v for v in values]
        learned = k[:, :P] * vectors * mpmath.diag(gain) * vectors.T
        a = mpmath.eye(len(kernel))
        a[:, :P] -= learned
        found = a * s * a.T
        return np.array([float(mpmath.sqrt(abs(found[i, i]))) for i in range(len(kernel))])


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("time", [0.5, 1e3, 1e6, math.inf])
def test_small_deviations_keep_their_digits_of_a_nearly_singular_kernel(time, flow):
    """The kernel's own rounding, 1e-16 times the condition number, is what remains"""
    x, near = close_points()
    network = mf.Network(2, "relu", bias_std=0.1)
    training = mf.Training(RATE, 10, "gradient_flow" if flow else "gradient_descent")
    problem = mf.Problem(mf.Dataset(x, torch.ones(P), near, torch.ones(2)), network, mf.ntk(), training)
    sigma, kernel = mf.nngp_and_ntk(network, mf.ntk(), torch.cat([x, near]))
    found = lazy_prediction(problem, [time], kernel, sigma)
    assert found.stats["condition_number"] > 1e5
    right = in_50_digits(kernel, sigma, time, flow)
    std = torch.cat([found.std[0, :, 0], found.std_test[0, :, 0]]).numpy()
    if math.isinf(time):  # nothing is left on the training samples
        assert (std[:P] < 1e-14).all()
        std, right = std[P:], right[P:]
    np.testing.assert_allclose(std, right, rtol=1e-6)


def test_the_cost_of_a_prediction_is_asked_of_few_samples_that_descent_would_not_leave_stable():
    """A first sample of 5 times the others' norm: alone it is trained at a rate beyond its own largest one"""
    data = mf.single_index_teacher(n_train=40, inputs=5, seed=0)
    x = data.x.clone()
    x[0] *= 5
    kernel = mf.nngp_and_ntk(mf.Network(1, "relu"), mf.ntk(), x)[1].numpy()
    rate = 0.9 * 2 * 40 / np.linalg.eigvalsh(kernel)[-1]
    asked = mf.Problem(replace(data, x=x), mf.Network(1, "relu"), mf.ntk(), mf.Training(rate, 4))
    alone = replace(asked, data=replace(asked.data, x=x[:1], y=data.y[:1]))
    lazy_prediction(asked)
    with pytest.raises(ValueError, match="diverges"):
        lazy_prediction(alone)
    found = prediction_cost(asked, None, 0.0, seconds=0.05)
    assert found.seconds > 0
    assert found.bytes > 8 * 5 * 40**2
