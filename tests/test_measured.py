"""Networks trained elsewhere: their outputs enter as they are, are held against the problem, and are compared like any other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow

STEPS = 5
PROBLEM = mf.Problem(mf.gaussian_mixture(4, 2, 3), training=mf.Training(0.3, STEPS), scaling=mf.mean_field(0.5))


def by_hand(n, seed, gamma0=0.5):
    """Equations 1 and 2 in numpy alone: outputs (T + 1, P + P_test) and losses"""
    draw, x, y = np.random.default_rng(seed), PROBLEM.data.all_x.numpy(), PROBLEM.data.y[:, 0].numpy()
    w, a = draw.normal(size=(n, 3)), draw.normal(size=n)
    outputs, losses = [], []
    for _ in range(STEPS + 1):
        phi = np.tanh(x @ w.T / np.sqrt(3))
        f = phi @ a / (gamma0 * n)
        miss = (f[:4] - y) / 4  # of the mean of (f - y)^2 / 2
        slope = (1 - phi[:4] ** 2) * a * miss[:, None] / (gamma0 * n)
        rate = 0.3 * gamma0**2 * n
        a = a - rate * phi[:4].T @ miss / (gamma0 * n)
        w = w - rate * slope.T @ x[:4] / np.sqrt(3)
        outputs.append(f)
        losses.append(np.mean((f[:4] - y) ** 2) / 2)
    return np.array(outputs), np.array(losses)


def entered(n, seed):
    f, losses = by_hand(n, seed)
    return mf.measured(PROBLEM, f[:, :4], n, seed, f[:, 4:], losses)


def test_networks_of_another_program_are_near_the_limit():
    nets = [entered(n, seed) for n in (64, 512) for seed in range(16)]
    limit = WassersteinFlow(particles=2**12)(PROBLEM)
    f = torch.stack([net.f[-1, :, 0] for net in nets[16:]])
    error = f.std(0) / 4
    assert ((f.mean(0) - limit.f[-1, :, 0]).abs() < 5 * error).all()
    assert ((limit.f[-1] - limit.f[0])[:, 0].abs() > 20 * error).any()  # there was something to learn
    report = mf.deviation(nets, limit)
    assert set(report.observables) == {"loss", "test_loss", "f", "f_test"}
    ratio = report["f"].deviation[0] / report["f"].deviation[1]
    assert 1.6 < ratio < 5  # sqrt(8) = 2.8, of 16 networks each
    assert nets[0].width == 64


def test_outputs_of_our_own_networks_give_the_same_report():
    runs = FiniteWidth(8).ensemble(PROBLEM, 3)
    again = [mf.measured(PROBLEM, s.f, 8, s.solver["seed"], s.f_test, s.loss) for s in runs]
    limit = WassersteinFlow(particles=64)(PROBLEM)
    names = ("loss", "test_loss", "f", "f_test")
    assert str(mf.deviation(again, limit, names)) == str(mf.deviation(runs, limit, names))


def test_they_are_kept_and_drawn_and_not_resumed(tmp_path):
    net = entered(16, 3)
    found = mf.load(mf.save(net, tmp_path / "net.nc"))
    assert found == net
    assert (found.width, found.solver["seed"], found.solver["name"]) == (16, 3, "measured")
    assert len(mf.plot.loss([found, WassersteinFlow(16)(PROBLEM)]).lines) >= 2
    with pytest.raises(ValueError, match="measured"):
        FiniteWidth(16).resume(found, 1)


def test_one_output_needs_no_axis_and_records_are_those_of_the_problem():
    rare = replace(PROBLEM, training=mf.Training(0.3, STEPS, record_every=2))
    f, losses = by_hand(8, 0)
    at = [0, 2, 4, 5]
    net = mf.measured(rare, f[at][:, :4, None], 8, f_test=f[at][:, 4:], loss=losses[at])
    assert net.recorded_steps == (0, 2, 4, 5)
    np.testing.assert_allclose(net.loss, losses[at], rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"f": np.ones((5, 4))},
            r"f must have the shape \(6, 4, 1\), outputs at the 6 recorded steps 0, 1, .., 5 on 4 samp",
        ),
        ({"f": np.ones((6, 6))}, r"f must have the shape \(6, 4, 1\).*received \(6, 6\)"),
        ({"f_test": np.ones((6, 4))}, r"f_test must have the shape \(6, 2, 1\)"),
        ({"f_test": None}, "the problem has test samples: give f_test"),
        ({"f": np.full((6, 4), np.nan)}, "f holds 24 value.* NaN"),
        ({"loss": np.ones(5)}, r"loss must have one value for each of the 6 records: received the shape \(5,\)"),
        ({"loss": 2 * by_hand(8, 0)[1]}, r"loss is not that of f: received .* at record 0.*\(f - y\)\^2 / 2"),
        ({"width": 0}, "width must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_does_not_fit_the_problem_is_refused(changed, message):
    f, losses = by_hand(8, 0)
    right = {"f": f[:, :4], "width": 8, "f_test": f[:, 4:], "loss": losses}
    with pytest.raises(ValueError, match=message):
        mf.measured(PROBLEM, **right | changed)
    bare = replace(PROBLEM, data=replace(PROBLEM.data, x_test=None, y_test=None))
    with pytest.raises(ValueError, match="f_test was given, but the problem has no test samples"):
        mf.measured(bare, **right)
