"""IC-MF: networks with a frozen initial part, and their limit, the flow of a measure beside a Gaussian process."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.scaling.scaling import ic_mean_field
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, predicted_variance
from solvers.two_layer.initial_outputs import initial_covariance, initial_draws, initial_outputs


def problem(scaling=None, steps=12, loss="squared", depth=1, **network):
    data = mf.digits((0, 1), 10, 4)
    training = mf.Training(0.4, steps)
    return mf.Problem(data, mf.Network(depth, "tanh", **network), scaling or ic_mean_field(1.0, 16), training, loss)


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["matched", "added"])
def test_training_equals_a_plain_loop_with_the_formula_of_the_talk(frozen):
    """sigma* (N/N*)^-1 sum a phi(h) + sigma* (N/N*)^-1/2 sum a(0) phi(h(0)), less sigma* (N/N*)^-1 of the latter if matched"""
    asked, width = problem(ic_mean_field(0.8, 16, frozen), steps=4), 40
    start = FiniteWidth(width, seed=5)(asked.with_steps(0)).state
    p = {k: v.clone().requires_grad_() for k, v in start.items()}
    x, sigma, ratio = asked.data.x / 8, 1 / (0.8 * 16), width / 16
    share = sigma * (ratio**-0.5 - (1 / ratio if frozen == "matched" else 0))
    frozen_part = share * torch.tanh(x @ start["W0"].T) @ start["a"]
    expected = []
    for _ in range(5):
        f = sigma / ratio * torch.tanh(x @ p["W0"].T) @ p["a"] + frozen_part
        expected.append(f.detach())
        grads = torch.autograd.grad(0.5 * (f - asked.data.y).square().sum() / 10, list(p.values()))
        p = {
            k: (v - 0.4 * 0.8**2 * 16 * ratio * g).detach().requires_grad_()
            for (k, v), g in zip(p.items(), grads, strict=True)
        }
    torch.testing.assert_close(FiniteWidth(width, seed=5)(asked).f, torch.stack(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bias_std", [0.0, 0.4])
def test_initial_outputs_are_those_of_the_ntk_scaling_and_have_the_predicted_covariance(bias_std):
    """Every entry of the covariance over 600 networks within 4.5 standard errors, and its scale within 9 %.

    f0 does not depend on which scaling grows it.
    """
    asked = replace(problem(steps=0, bias_std=bias_std), data=mf.digits((0, 1), 4, 3))
    nets = FiniteWidth(256, snapshots=()).ensemble(asked, 600)
    ntk = replace(asked, scaling=mf.ntk().matching(asked.scaling, 16))
    torch.testing.assert_close(FiniteWidth(256, snapshots=())(ntk).f, nets[0].f, rtol=1e-12, atol=1e-14)
    f0 = torch.stack([torch.cat([s.f[0], s.f_test[0]]) for s in nets])[..., 0]
    expected = initial_covariance(asked)
    found = f0.T @ f0 / 600
    variances = expected.diagonal()
    error = ((variances[:, None] * variances + expected**2) / 600).sqrt()
    assert float(((found - expected) / error).abs().max()) < 4.5
    whitened = torch.linalg.solve(expected, f0.T) * f0.T  # (7, 600), each column adds up to a chi-squared of 7
    assert float(whitened.sum(0).mean()) / 7 == pytest.approx(1, abs=4 * math.sqrt(2 / (7 * 600)))


def test_resumed_networks_keep_their_frozen_part():
    asked = problem(steps=6, depth=2)
    solver = FiniteWidth(8, seed=2)
    assert solver.resume(solver(asked.with_steps(2)), 4) == solver(asked)


# ---- the limit -------------------------------------------------------------------------------------------------------


def test_without_initial_outputs_it_is_the_mean_field_limit():
    asked = problem()
    ic = WassersteinFlow(64, f0=torch.zeros(14, 1))(asked)
    plain = WassersteinFlow(64)(replace(asked, scaling=mf.mean_field(1.0)))
    torch.testing.assert_close(ic.f, plain.f, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ic.tangent_kernels, plain.tangent_kernels, rtol=1e-12, atol=1e-14)


def test_given_initial_outputs_shift_the_targets_of_the_squared_loss():
    """f = g + f_mf with Delta = y - g - f_mf: the mean-field limit of the problem with targets y - g"""
    asked = problem()
    g = torch.randn(14, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = replace(asked.data, y=asked.data.y - g[:10])
    shifted = WassersteinFlow(64)(replace(asked, data=data, scaling=mf.mean_field(1.0)))
    found = WassersteinFlow(64, f0=g)(asked)
    torch.testing.assert_close(found.f, shifted.f + g[:10], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.f_test, shifted.f_test + g[10:], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("loss", "bias_std"), [("squared", 0.0), ("logistic", 0.4)])
def test_networks_approach_the_limit_from_their_own_initial_outputs_like_one_over_root_width(loss, bias_std):
    asked, widths, errors = problem(loss=loss, bias_std=bias_std), (64, 512, 4096), []
    for width in widths:
        nets = FiniteWidth(width, snapshots=()).ensemble(asked, 6)
        apart = [(n.f - WassersteinFlow(2**11, f0=n, snapshots=())(asked).f).square().mean() for n in nets]
        errors.append(math.sqrt(float(np.mean(apart))))
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.12), errors


def test_the_kernel_evolves_and_f0_is_random():
    """What no point of the plane without a frozen part has together"""
    asked = problem(steps=40)
    solutions = [WassersteinFlow(256, seed=s)(asked) for s in (0, 1)]
    assert float(mf.movement(solutions[0], "tangent_kernel")) > 0.1
    assert not torch.allclose(solutions[0].f[0], solutions[1].f[0])
    draws = initial_draws(asked, (0, 1))
    for solution, draw in zip(solutions, draws, strict=True):
        torch.testing.assert_close(torch.cat([solution.f[0], solution.f_test[0]]), draw, rtol=0, atol=1e-12)


def test_draws_at_training_samples_do_not_depend_on_the_test_samples():
    asked = problem()
    alone = replace(asked, data=mf.Dataset(asked.data.x, asked.data.y))
    torch.testing.assert_close(
        initial_outputs(asked, None, 3)[:10], initial_outputs(alone, None, 3), rtol=1e-9, atol=1e-12
    )


def test_resumed_and_stored_runs_keep_the_frozen_part(tmp_path):
    asked = problem(steps=8)
    for f0 in (None, torch.ones(14, 1)):
        solver = WassersteinFlow(32, f0=f0)
        first = mf.load(mf.save(solver(asked.with_steps(3)), tmp_path / "ic.nc"))
        assert first.problem == asked.with_steps(3)
        assert solver.resume(first, 5) == solver(asked)


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda p: CausalDMFT(16)(p), "frozen part of the scaling 'ic_mean_field' .*take WassersteinFlow"),
        (lambda p: predicted_variance(p, particles=16), "frozen part of the scaling 'ic_mean_field'"),
        (lambda p: WassersteinFlow(16, f0=torch.zeros(3, 1))(p), r"shape \(14, 1\): received \(3, 1\)"),
        (lambda p: WassersteinFlow(16, f0=torch.full((14, 1), math.nan))(p), "f0 holds 14 value.* NaN"),
        (lambda p: WassersteinFlow(16, f0=torch.zeros(14, 1))(replace(p, scaling=mf.mean_field())), "no frozen part"),
        (lambda p: WassersteinFlow(16)(replace(p, scaling=mf.ntk())), "no limit as a flow of measures"),
    ],
)
def test_what_does_not_fit_is_refused(solve, message):
    with pytest.raises(ValueError, match=message):
        solve(problem())
