"""The limit of infinite logits against hand-written particles, exact answers, and wide networks with the same f0."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.scaling.scaling import Scaling, default, ic_mean_field, sym_default
from solvers import FiniteWidth
from solvers.running.descent import Descent
from solvers.two_layer.infinite_logits import InfiniteLogitsLimit, rescaled

TARGETS = {"logistic": [[1.0], [-1.0], [1.0]], "cross_entropy": [[1.0, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]]}


def problem(which, steps=5, loss="logistic", p=12, eta=1.0, **network):
    data = mf.digits((3, 8), p, 4, one_hot=loss == "cross_entropy")
    return mf.Problem(data, mf.Network(1, "tanh", **network), which, mf.Training(eta, steps), loss)


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_losses_at_infinite_logits_are_the_limits_of_large_ones(name):
    y = torch.tensor(TARGETS[name], dtype=torch.float64)
    f = torch.randn(5, *y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss, c = mf.loss(name), 1e6
    there = loss.at_infinite_logits()
    torch.testing.assert_close(there.value(f, y), loss.value(c * f, y) / c, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.delta(f, y), loss.delta(c * f, y), rtol=1e-6, atol=1e-6)
    tied = torch.zeros_like(f)
    torch.testing.assert_close(there.delta(tied, y), loss.delta(tied, y))
    assert there.at_finite_logits() is loss
    assert there.at_infinite_logits() is there
    assert mf.loss(there.name) is there
    assert loss.at_finite_logits() is loss


def test_the_squared_loss_has_no_such_limit():
    with pytest.raises(
        ValueError, match=r"'squared' has no limit at infinite logits .*take one of cross_entropy, logistic"
    ):
        mf.loss("squared").at_infinite_logits()


# ---- the limit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", TARGETS)
@pytest.mark.parametrize("which", [default(4), sym_default(4)])
def test_a_hand_written_cloud_moves_alike(which, loss):
    """Readouts in units of (N/N*)^max(0, q_sigma + q_a): they start at 0 under default, as drawn under sym-default."""
    asked = problem(which, loss=loss, bias_std=0.4, weight_std=1.2)
    x, y, c = asked.network.inputs(asked.data.x), asked.data.y, asked.data.outputs
    x_test = asked.network.inputs(asked.data.x_test)
    cloud = mf.ParticleMeasure.iid(50, x.shape[1], c, seed=1)
    g = torch.Generator().manual_seed(2)
    f0 = torch.randn(16, c, generator=g, dtype=torch.float64)
    a, w, b = cloud.a * (which.name == "sym_default"), cloud.w, torch.zeros(c, dtype=torch.float64)
    f, expected, later = f0[:12], [f0], False
    for _ in range(asked.training.steps):
        if loss == "logistic":
            delta = y * ((y * f < 0).double() if later else torch.sigmoid(-y * f))
        else:
            share = torch.nn.functional.one_hot(f.argmax(1), c).double() if later else torch.softmax(f, 1)
            delta = y - share
        phi, slope = torch.tanh(w @ x.T), 1 - torch.tanh(w @ x.T) ** 2
        force = a @ delta.T  # (N, P)
        a, w = a + 0.5 * 1.2 * phi @ delta / 12, w + 0.5 * 1.2 * (force * slope) @ x / 12
        b = b + 4 * 0.5 * 0.5 * 0.4**2 * delta.mean(0)  # sigma*^2 N* eta_a* beta0^2
        every = torch.cat([x, x_test])
        outputs = 0.5 * 4 * 1.2 * torch.tanh(every @ w.T) @ a / 50 + b
        f, later = outputs[:12], True
        expected.append(outputs)
    solution = InfiniteLogitsLimit(initial=cloud, f0=f0)(asked)
    torch.testing.assert_close(
        torch.cat([solution.f, solution.f_test], 1), torch.stack(expected), rtol=1e-11, atol=1e-12
    )
    assert solution.stats["output_exponent"] == (1.0 if which.name == "default" else 0.5)
    assert solution.problem.loss_function.is_at_infinite_logits


def test_the_first_step_of_a_linear_network_under_default_is_exact():
    """a = eta kappa_a (Delta/P) . h from a = 0, so f = Gamma eta kappa_a K_x Delta / P, with Delta from f0"""
    g = torch.Generator().manual_seed(0)
    data = mf.Dataset(torch.randn(3, 2, generator=g), torch.tensor([1.0, -1.0, 1.0]))
    asked = mf.Problem(data, mf.Network(1, "linear"), default(9), mf.Training(0.7, 1), "logistic")
    f0 = torch.tensor([[0.3], [-1.0], [0.1]], dtype=torch.float64)
    solution = InfiniteLogitsLimit(8, initial="gauss_hermite", f0=f0)(asked)
    delta = data.y * torch.sigmoid(-data.y * f0)
    torch.testing.assert_close(solution.f[1], 9 / 3 * 0.7 / 3 * (data.x @ data.x.T / 2) @ delta / 3, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("which", "last"), [(default(), 0.05), (sym_default(), 0.35)])
def test_wide_networks_come_near_from_the_same_initial_outputs(which, last):
    """Under sym-default logits grow like sqrt(N) only, and those that are small yet see another Delta."""
    asked, errors = problem(which, steps=3), []
    for width in (64, 1024, 16384):
        nets = FiniteWidth(width, snapshots=(), dtype="float32").ensemble(asked, 3)
        limits = [InfiniteLogitsLimit(2**11, f0=net, snapshots=())(asked) for net in nets]
        apart = [(rescaled(n).f - s.f)[1:].norm() / s.f[1:].norm() for n, s in zip(nets, limits, strict=True)]
        errors.append(float(np.mean(apart)))
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2], errors
    assert errors[2] < last, errors


def test_weights_whose_steps_vanish_with_the_width_stand_still():
    """Under q = (-1/2, 1, -1/2) readouts move like N^(1/2) and weights, eta_w sigma a, like N^(-1/2)."""
    solution = InfiniteLogitsLimit(64, snapshots=(0, -1))(problem(Scaling(-0.5, 1.0, -0.5), steps=2))
    first, last = solution.measure(0), solution.measure(-1)
    assert torch.equal(first.w, last.w)
    assert not torch.equal(first.a, last.a)


def test_steps_after_the_first_do_not_see_the_scale_of_f0_but_its_signs():
    """q_sigma > -1/2: f0 is infinite, and step 0 too sees signs only; q_sigma < -1/2: f0 = 0."""
    g = torch.Generator().manual_seed(0)
    f0 = torch.randn(16, 1, generator=g, dtype=torch.float64)
    infinite = problem(Scaling(-0.4, 0.4, 0.4))
    one, two = (InfiniteLogitsLimit(64, f0=f)(infinite) for f in (f0, 10 * f0))
    torch.testing.assert_close(one.f[1:], two.f[1:], rtol=0, atol=0)
    assert one.stats["initial_exponent"] == pytest.approx(0.1)
    vanishing = InfiniteLogitsLimit(64, f0=f0)(problem(Scaling(-0.6, 0.6, 0.6)))
    assert float(vanishing.f[0].abs().max()) == 0.0
    finite = [InfiniteLogitsLimit(64, f0=f)(problem(sym_default())).f[1] for f in (f0, 10 * f0)]
    assert not torch.allclose(*finite)


@pytest.mark.parametrize("change", [dict(momentum=0.5), dict(batch_size=5), dict(weight_decay=0.1)])
def test_descent_of_all_kinds_and_going_on(change):
    for which in (default(), sym_default()):
        asked = replace(problem(which), training=mf.Training(0.5, 6, **change))
        solver = InfiniteLogitsLimit(64)
        whole = solver(asked)
        assert solver.resume(solver(asked.with_steps(2)), 4) == whole
        assert solver.resume(solver(asked.with_steps(0)), 6) == whole


def test_a_pass_and_its_velocity_follow_from_the_state_alone(monkeypatch):
    """Passes at both ends of the first step, asked for again and in another order"""
    asked, seen = problem(sym_default()), []

    def step(self, method, state, passed, at, underway):
        later = tuple(t + 0.5 * v for t, v in zip(state, method.backward(passed), strict=True))
        for now in (state, later, later, state):
            again = method.forward(now, slice(0, 12), True)
            seen.append((again.f.clone(), *(v.clone() for v in method.backward(again))))
        return later

    monkeypatch.setattr(Descent, "__call__", step)
    f0 = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    InfiniteLogitsLimit(64, f0=f0)(asked.with_steps(1))
    first, second, third, fourth = seen
    assert torch.equal(first[0], f0[:12])
    for one, two in ((first, fourth), (second, third)):
        assert all(map(torch.equal, one, two))
    assert not torch.equal(second[0], first[0])
    assert not torch.equal(second[1], first[1])


def test_same_seed_same_result_and_another_draw_of_f0_for_another(tmp_path):
    asked = problem(default())
    runs = [InfiniteLogitsLimit(64, seed=s)(asked) for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert not torch.allclose(runs[0].f[0], runs[2].f[0])
    assert mf.load(mf.save(runs[0], tmp_path / "limit.nc")) == runs[0]


def test_rescaled_networks_share_the_units_of_the_limit():
    """Kernels, particles and tangent kernels too, at a width at which they are near; at N* nothing changes."""
    asked = problem(default(), steps=2)
    net = FiniteWidth(16384, seed=1)(asked)
    there, limit = rescaled(net), InfiniteLogitsLimit(2**11, f0=net)(asked)
    for t in (0, -1):
        torch.testing.assert_close(there.kernels["Phi1"].at(t), limit.kernels["Phi1"].at(t), rtol=0.1, atol=0.03)
        torch.testing.assert_close(there.tangent_kernel(t), limit.tangent_kernel(t), rtol=0.1, atol=0.05)
    assert (
        float((there.kernels["G1"].at(-1) - limit.kernels["G1"].at(-1)).norm() / limit.kernels["G1"].at(-1).norm())
        < 0.1
    )
    assert there.measure(-1).a.std() == pytest.approx(float(limit.measure(-1).a.std()), rel=0.1)
    torch.testing.assert_close(there.loss, limit.loss, rtol=0.1, atol=0.02)
    own = FiniteWidth(8)(problem(default(8)))
    assert torch.equal(rescaled(own).f, own.f)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(loss="squared"), "under the scaling 'default' outputs grow like N.1: the loss 'squared' has no limit"),
        (dict(network=mf.Network(2)), "depth 1: received depth 2; take FiniteWidth, or CausalDMFT"),
        (dict(scaling=mf.ntk()), "'ntk' .* has another limit: .*take TangentKernelLimit"),
        (dict(scaling=mf.mean_field()), "'mean_field' .* has another limit: .*take WassersteinFlow"),
        (dict(scaling=ic_mean_field()), "'ic_mean_field' .* has another limit: .*take WassersteinFlow"),
        (dict(scaling=Scaling(-0.5, 1, 1)), "the weights diverge"),
        (dict(scaling=Scaling(-0.6, 0.3, 0.3)), "constant kernel at infinite logits"),
        (dict(training=mf.Training(0.1, 5, "gradient_flow")), "no gradient flow: take optimiser='gradient_descent'"),
    ],
)
def test_problems_without_such_a_limit_are_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        InfiniteLogitsLimit(16)(replace(problem(default()), **change))


def test_bad_settings_and_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="particles must be at least 1"):
        InfiniteLogitsLimit(0)
    with pytest.raises(ValueError, match=r"shape \(16, 1\): received \(12, 1\)"):
        InfiniteLogitsLimit(16, f0=torch.zeros(12, 1))(problem(default()))
    limit = InfiniteLogitsLimit(16)(problem(default()))
    with pytest.raises(ValueError, match="only finite networks whose outputs grow"):
        rescaled(limit)
    with pytest.raises(ValueError, match="only finite networks whose outputs grow"):
        rescaled(FiniteWidth(8)(problem(mf.ntk())))
    with pytest.raises(ValueError, match=r"belongs to limits: .*take loss='logistic'"):
        FiniteWidth(8)(limit.problem)
