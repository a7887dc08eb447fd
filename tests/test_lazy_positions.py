"""Lazy limits of outputs at positions: against plain loops, networks that are linearised by autograd, wide networks, feature learning."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import meanfield as mf
from meanfield import plot
from solvers import CausalDMFT, FiniteWidth, TangentKernelLimit, lazy_prediction
from tests.test_tangent_kernel_limit import labels, normal

P, TEST, M, C = 4, 2, 3, 2  # samples, positions and outputs of each


class Sequence(nn.Module):
    """A convolution over positions, whose outputs see their neighbours; C outputs at each of M positions"""

    def __init__(self, n, last=True):
        super().__init__()
        self.read, self.mix = nn.Conv1d(2, n, 3, padding=1, bias=False), nn.Conv1d(n, n, 3, padding=1, bias=False)
        self.out, self.last = nn.Conv1d(n, C, 1, bias=False), last

    def forward(self, x):
        f = self.out(torch.tanh(self.mix(torch.tanh(self.read(x)))))
        return f.movedim(1, -1) if self.last else f


def problem(loss="squared", scaling=None, uncounted=False, network=Sequence, **training):
    def targets(n, seed):
        y = labels(loss, n * M, C, seed).reshape(n, M, C)
        if uncounted:
            y[0, 1] = y[2 % n, 0] = y[2 % n, 2] = 0
        return y

    data = mf.Dataset(normal(P, 2, M, seed=1), targets(P, 2), normal(TEST, 2, M, seed=3), targets(TEST, 4))
    settings = {"learning_rate": 0.3, "steps": 8} | training
    return mf.Problem(data, network, scaling or mf.ntk(), mf.Training(**settings), loss)


def gram(rows, seed=7):
    features = normal(rows, 2 * rows, seed=seed)
    return features @ features.T / (2 * rows)


def by_loops(asked, kernel, f):
    """f (Q, M, C) at all steps from kernel (Q, M, Q, M): each output of each position, one after the other, in numpy"""
    training, y, found, squared = (
        asked.training,
        asked.data.y.numpy(),
        [f.copy()],
        asked.loss_function.name == "squared",
    )
    velocity, batches = np.zeros_like(f), training.batches(P)
    for batch in (next(batches) for _ in range(training.steps)):
        rows = range(P) if batch is None else batch.tolist()
        counted = [(i, s) for i in rows for s in range(M) if squared or y[i, s].sum() > 0]
        step = np.zeros_like(f)
        for i, s in counted:
            shares = np.exp(f[i, s]) / np.exp(f[i, s]).sum()
            delta = y[i, s] - (f[i, s] if squared else shares)
            for q in range(P + TEST):
                for t in range(M):
                    step[q, t] += kernel[q, t, i, s] * delta / len(counted)
        velocity = training.momentum * velocity + step
        f = f + training.learning_rate * velocity
        found.append(f.copy())
    return torch.from_numpy(np.stack(found))


def joint(solution):
    return torch.cat([solution.f, solution.f_test], 1).double()


@pytest.mark.parametrize(("loss", "uncounted"), [("squared", False), ("cross_entropy", True)])
@pytest.mark.parametrize("training", [{}, {"batch_size": 2, "batch_seed": 3, "momentum": 0.3}])
def test_descent_is_a_loop_over_samples_and_positions(loss, uncounted, training):
    asked = problem(loss, uncounted=uncounted, **training)
    kernel = gram((P + TEST) * M).reshape(P + TEST, M, P + TEST, M)
    start = normal(P + TEST, M, C, seed=9)
    found = TangentKernelLimit(kernel=kernel, initial=start)(asked)
    torch.testing.assert_close(joint(found), by_loops(asked, kernel.numpy(), start.numpy()))
    each = torch.einsum("piqj,cd->picqjd", kernel, torch.eye(C).double()).reshape(P + TEST, M * C, P + TEST, M * C)
    mixing = TangentKernelLimit(kernel=each, initial=start)(asked)
    torch.testing.assert_close(joint(mixing), joint(found))
    for solution in (found, mixing):
        assert torch.equal(solution.tangent_kernel(0), each[:P, :, :P])


def test_flow_is_a_matrix_exponential():
    asked = problem(optimiser="gradient_flow")
    kernel, start = gram((P + TEST) * M), normal(P + TEST, M, C, seed=9)
    found = TangentKernelLimit(kernel=kernel.reshape(P + TEST, M, P + TEST, M), initial=start)(asked)
    y, f = asked.data.y.reshape(P * M, C), start.reshape(-1, C)
    decay = torch.matrix_exp(-0.3 * 8 / (P * M) * kernel[: P * M, : P * M])
    torch.testing.assert_close(found.f[-1].reshape(-1, C), y + decay @ (f[: P * M] - y))


def test_the_kernel_is_that_of_the_network():
    """Equal samples too, which are computed once; and training samples know nothing of the test samples"""
    asked = problem()
    data = replace(asked.data, x=asked.data.x[[0, 1, 0, 2]])
    found = TangentKernelLimit()(replace(asked, data=data))
    ntk = mf.nngp_and_ntk(Sequence, mf.ntk(), data.x)[1]
    right = torch.einsum("piqj,cd->picqjd", ntk, torch.eye(C).double()).reshape(P, M * C, P, M * C)
    torch.testing.assert_close(found.tangent_kernel(0), right)
    torch.testing.assert_close(found.f[:, 0], found.f[:, 2])
    alone = TangentKernelLimit()(replace(asked, data=replace(data, x_test=None, y_test=None)))
    torch.testing.assert_close(alone.f, found.f)


def test_mean_and_covariance_are_those_of_networks():
    """And of draws: f at all points, positions and outputs of 400 networks and 400 draws"""
    asked = problem(steps=4)
    predicted = lazy_prediction(asked, [0.0, 1.2])
    mean = torch.cat([predicted.mean, predicted.mean_test], 1)
    rows = (P + TEST) * M
    sigma = predicted.covariance.reshape(2, rows, rows)
    assert torch.equal(predicted.std[..., 0].square(), predicted.std[..., 1].square())
    torch.testing.assert_close(predicted.std[1, 2, 1, 0].square(), predicted.covariance[1, 2, 1, 2, 1])
    nets = FiniteWidth(96, snapshots=(), dtype="float32", progress=False).ensemble(asked, 400)
    for solutions in (nets, TangentKernelLimit().ensemble(asked, 400)):
        f = torch.stack([joint(one) for one in solutions])  # (E, R, Q, M, C)
        for k, at in ((0, 0), (1, 4)):
            d = sigma[k].diagonal()
            z = (f[:, at].mean(0) - mean[k]).reshape(rows, C) / (d / 400).sqrt()[:, None]
            assert float(z.abs().max()) < 4
            error = ((d[:, None] * d + sigma[k].square()) / 399).sqrt()
            apart = torch.cov(f[:, at, ..., 0].reshape(400, rows).T) - sigma[k]
            assert float((apart / error).abs().max()) < 4.5  # of 2 x 171 numbers, beside 1/N


def test_expected_losses_are_those_of_draws():
    asked = problem(steps=4)
    losses = torch.stack([s.loss for s in TangentKernelLimit().ensemble(asked, 400)])
    predicted = lazy_prediction(asked)
    z = (losses.mean(0) - predicted.loss) / (losses.std(0) / 20)
    assert float(z.abs().max()) < 4


def test_feature_learning_at_small_gamma0_tends_to_it():
    """A remainder of order gamma0^2 (equation 59), within the limit's own standard errors"""
    asked = problem("cross_entropy", mf.mean_field(0.05), learning_rate=1.0, steps=4)
    limit = CausalDMFT(samples=2048, groups=4, dtype="float64", snapshots=(), progress=False)(asked)
    lazy = TangentKernelLimit()(asked)
    error = limit.standard_errors["f"]
    movement = float((lazy.f[-1] - lazy.f[0]).norm())
    assert float((limit.f - lazy.f).norm()) < 0.02 * movement + 2 * float(error.norm())
    assert float(error.norm()) < 0.1 * movement


def test_many_outputs_have_no_tangent_kernel():
    class Long(Sequence):
        def forward(self, x):
            return super().forward(x.repeat(1, 1, 3))

    data = mf.Dataset(normal(2, 2, M), normal(2, 3 * M, C))
    found = TangentKernelLimit()(mf.Problem(data, Long, mf.ntk(), mf.Training(0.1, 2)))
    assert not found.has_tangent
    assert found.f.shape == (3, 2, 3 * M, C)


def test_predictions_are_kept_and_drawn(tmp_path):
    found = lazy_prediction(problem(steps=3))
    mf.save(found, tmp_path / "prediction.nc")
    assert mf.load(tmp_path / "prediction.nc", network=Sequence) == found
    axes = plot.prediction(found, output=3)
    torch.testing.assert_close(torch.from_numpy(axes[1].lines[0].get_ydata()), found.mean[:, 1, 1, 1])
    plot.save(axes, tmp_path / "prediction.png")


def test_outputs_before_their_positions_are_refused():
    network = lambda n: Sequence(n, last=False)  # noqa: E731
    data = mf.Dataset(normal(P, 2, M), normal(P, C, M))
    asked = mf.Problem(data, network, mf.ntk(), mf.Training(0.1, 2))
    message = (
        r"outputs of shape \(2, 3\) for one sample, of which axis 0 holds them.*end the forward with .movedim\(1, -1\)"
    )
    for solve in (TangentKernelLimit(), lazy_prediction):
        with pytest.raises(ValueError, match=message):
            solve(asked)


def test_given_kernels_of_other_shapes_are_refused():
    asked = problem()
    with pytest.raises(ValueError, match=r"must have shape \(6, 3, 6, 3\) or \(6, 6, 6, 6\): received \(6, 6\)"):
        TangentKernelLimit(kernel=gram(6))(asked)
    with pytest.raises(ValueError, match=r"initial must hold f0 .*shape \(6, 3, 2\): received \(6, 6\)"):
        TangentKernelLimit(initial=normal(6, 6))(asked)
    with pytest.raises(ValueError, match=r"mixes outputs .*at positions \(Q, positions, Q, positions\)"):
        lazy_prediction(asked, [math.inf], gram(36).reshape(6, 6, 6, 6))
