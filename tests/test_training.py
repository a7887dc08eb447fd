"""Momentum, weight decay and mini-batches: every solver follows the same rule, and networks agree with their limits under it."""

from dataclasses import replace

import pytest
import torch

import meanfield as mf
from meanfield.measures import tiles
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, predicted_variance

FULL = mf.Training(0.15, 20, momentum=0.6, weight_decay=0.2, batch_size=5, batch_seed=3)
PROBLEM = mf.Problem(mf.digits(n_train=12, n_test=3), mf.Network(1, "tanh", bias_std=0.3), mf.mean_field(1.0), FULL)


def test_networks_follow_heavy_ball_descent_with_decay_and_batches():
    """Against a plain loop on f(x) = sigma (a . tanh(w x) + sqrt(N) b)."""
    width = 6
    solution = FiniteWidth(width)(PROBLEM)
    p = {
        k: v.clone().requires_grad_()
        for k, v in FiniteWidth(width)(PROBLEM.with_steps(0)).state.items()
        if "momentum" not in k
    }
    v = {k: torch.zeros_like(t) for k, t in p.items()}
    batches = list(FULL.batches(12))
    for step in range(FULL.steps):
        h = PROBLEM.data.x @ p["W0"].T / 8 + 0.3 * p["b0"][:, 0]
        f = (torch.tanh(h) @ p["a"] + width**0.5 * 0.3 * p["b"]) / width
        torch.testing.assert_close(solution.f[step], f.detach(), rtol=1e-10, atol=1e-12)
        batch = batches[step]
        loss = 0.5 * (f - PROBLEM.data.y)[batch].square().mean()
        for (k, t), g in zip(list(p.items()), torch.autograd.grad(loss, list(p.values())), strict=True):
            v[k] = 0.6 * v[k] - width * g
            p[k] = ((1 - 0.15 * 0.2) * t + 0.15 * v[k]).detach().requires_grad_()


def test_every_epoch_sees_each_sample_once():
    batches = torch.stack([batch for batch in mf.Training(0.1, 12, batch_size=4).batches(12) if batch is not None])
    for epoch in batches.split(3):
        assert torch.equal(epoch.flatten().sort().values, torch.arange(12))
    assert not torch.equal(batches[:3], batches[3:6])


def test_a_network_is_still_its_own_measure():
    asked = replace(PROBLEM, network=mf.Network(1, "tanh"))
    net = FiniteWidth(20, seed=1)(asked)
    flow = WassersteinFlow(initial=net.measure(0))(asked)
    torch.testing.assert_close(flow.f, net.f, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("scaling", [mf.mean_field(1.0), mf.ic_mean_field()], ids=lambda s: s.name)
@pytest.mark.parametrize(("batch", "block"), [(5, 512), (5, 3), (12, 512), (None, 4)])
def test_batches_in_one_pass_over_the_data(monkeypatch, loss, scaling, batch, block):
    """From 128 dimensions on a step forms outputs and velocity together, the batch's samples first; a network knows nothing of it."""
    monkeypatch.setattr(tiles, "_BLOCK", block)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, 130, generator=g, dtype=torch.float64)
    data = mf.Dataset(x[:12], torch.sign(x[:12, :1]), x[12:], torch.sign(x[12:, :1]))
    asked = mf.Problem(data, mf.Network(1, "tanh"), scaling, replace(FULL, steps=6, batch_size=batch), loss)
    net = FiniteWidth(20, seed=1)(asked)
    flow, dense = (WassersteinFlow(initial=net.measure(0), engine=engine)(asked) for engine in ("chunked", "dense"))
    own = scaling.frozen == "none"  # a frozen part is drawn anew
    for mine, theirs in ((flow.f, (net if own else dense).f), (flow.f_test, (net if own else dense).f_test)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("change", [{}, {"momentum": 0.0}, {"batch_size": None}, {"weight_decay": 0.0}], ids=str)
def test_resumed_runs_equal_uninterrupted_ones(change):
    asked = replace(PROBLEM, training=replace(FULL, **change))
    for solver in (WassersteinFlow(64), FiniteWidth(8, seed=2)):
        assert solver.resume(solver(asked.with_steps(8)), 12) == solver(asked)


@pytest.mark.parametrize("depth", [1, 2])
def test_deep_networks_agree_with_their_limit(depth):
    asked = replace(PROBLEM, network=mf.Network(depth, "tanh", bias_std=0.3))
    limits = [CausalDMFT(4096, seed=s)(asked) for s in (0, 1)]
    nets = FiniteWidth(512, dtype="float32", keep_neurons=False).ensemble(asked, 32)
    report = mf.deviation(nets, limits)
    for d in report.observables.values():
        if not d.name.startswith("h"):
            assert float((d.bias2[0] + d.variance[0] / 32).clip(0) ** 0.5) < 3 * d.floor[0], d.name
    plain = [
        replace(CausalDMFT(4096, seed=s)(replace(asked, training=mf.Training(0.15, 20))), problem=asked) for s in (0, 1)
    ]
    f = mf.deviation(nets, plain, names=("f",))["f"]
    assert float(f.bias2[0]) > (9 * f.floor[0]) ** 2, "the comparison would not see a forgotten rule"


def test_exact_linear_sweep_follows_the_same_rule():
    asked = replace(PROBLEM, network=mf.Network(1, "linear"))
    exact = CausalDMFT(256)(asked)
    nodes = WassersteinFlow(2**14, dtype="float64")(asked)
    assert float((exact.f - nodes.f).norm() / exact.f.norm()) < 1e-2
    assert exact.stats["exact"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(momentum=1.0), "momentum must be below 1"),
        (dict(momentum=-0.1), "momentum must be non-negative"),
        (dict(weight_decay=-1.0), "weight_decay must be non-negative"),
        (dict(weight_decay=11.0), r"learning_rate \* weight_decay must be below 1: received 1.1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(optimiser="gradient_flow", momentum=0.5), "belong to gradient_descent"),
        (dict(optimiser="lion"), "known: gradient_descent, gradient_flow, adam, "),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mf.Training(**change)


def test_too_large_a_batch_is_refused_with_the_problem():
    with pytest.raises(ValueError, match="batch_size=13 exceeds the 12 training samples"):
        replace(PROBLEM, training=mf.Training(batch_size=13))


def test_the_predicted_variance_refuses_what_it_does_not_follow():
    flow = replace(PROBLEM, training=mf.Training(0.1, 3, "gradient_flow"))
    with pytest.raises(
        ValueError, match="follows smooth networks by gradient_descent: received optimiser='gradient_flow'"
    ):
        predicted_variance(flow, method="derivative")
