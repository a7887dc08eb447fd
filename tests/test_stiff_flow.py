"""Gradient flow where K is large: right, in evaluations that go as the root of the stiffness, and ended early with its part kept."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import meanfield as mf
from meanfield.files.storage import load, save
from solvers import CausalDMFT, FiniteWidth, Interrupted, SolverError, TangentKernelLimit, WassersteinFlow
from solvers.dmft.perceptron import LimitNetwork
from solvers.finite.networks import Networks
from solvers.two_layer.measure_flow import MeasureFlow

QUIET = dict(snapshots=(0,), progress=False)


def one_sample(x, eta, steps, activation="linear", depth=1):
    data = mf.Dataset(torch.tensor([[x]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(eta, steps, "gradient_flow"))


def of_moments(x, eta, steps, p, q):
    """f at every record from p = <a w>, q = <a^2 + w^2>: dp = x (1 - x p) q, dq = 4 x (1 - x p) p, by an implicit method."""

    def rhs(t, u):
        return [x * (1 - x * u[0]) * u[1], 4 * x * (1 - x * u[0]) * u[0]]

    def jacobian(t, u):
        return [[-x * x * u[1], x * (1 - x * u[0])], [4 * x * (1 - 2 * x * u[0]), 0]]

    times = eta * np.arange(steps + 1)
    found = solve_ivp(rhs, (0, times[-1]), [p, q], method="Radau", t_eval=times, jac=jacobian, rtol=1e-11, atol=1e-14)
    return x * found.y[0], x * x * found.y[1, -1]


def scaled_digits(scale):
    data = mf.digits(n_train=4, n_test=2)
    return replace(data, x=data.x * scale, x_test=data.x_test * scale)


CASES = {"large": (100.0, 0.1, 5), "small, for long": (1e-6, 5e9, 2), "from slow to stiff": (100.0, 2e-5, 12)}
SOLVERS = {
    "flow": WassersteinFlow(128, **QUIET),
    "flow, float32": WassersteinFlow(128, dtype="float32", **QUIET),
    "networks": FiniteWidth(64, seed=3, **QUIET),
    "networks, float32": FiniteWidth(64, seed=3, dtype="float32", **QUIET),
    "dmft": CausalDMFT(64, **QUIET),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SOLVERS)
def test_one_linear_sample_solves_its_moments(name, case):
    """An error rtol of the state is one of rtol sqrt(K) in f; float32 rounds f by eps sqrt(K) besides, some tens of times over."""
    x, eta, steps = CASES[case]
    found = SOLVERS[name](one_sample(x, eta, steps))
    if name == "dmft":
        p, q = 0.0, 2.0
    else:
        start = found.particles[0]
        m, a, w = start.m.double(), start.a[:, 0].double(), start.w[:, 0].double()
        p, q = float((m * a * w).sum()), float((m * (a * a + w * w)).sum())
    f, k = of_moments(x, eta, steps, p, q)
    single = "float32" in name
    bound = 5 * (1e-5 if single else 1e-7) * max(1.0, k**0.5)
    assert np.abs(found.f[:, 0, 0].double().numpy() - f).max() < bound


def test_relu_at_a_thousand_is_every_particle_by_an_implicit_method():
    asked, measure = one_sample(1e3, 0.01, 1, "relu"), mf.ParticleMeasure.iid(8, 1, 1, 2)
    found = WassersteinFlow(initial=measure, **QUIET)(asked)

    def rhs(t, y):
        a, w = y[:8], y[8:]
        delta = 1 - 1e3 * (a * np.maximum(w, 0)).mean()
        return np.concatenate([1e3 * delta * np.maximum(w, 0), 1e3 * delta * a * (w > 0)])

    start = np.concatenate([measure.a[:, 0].numpy(), measure.w[:, 0].numpy()])
    exact = solve_ivp(rhs, (0, 0.01), start, method="Radau", rtol=1e-9, atol=1e-12).y[:, -1]
    state = np.concatenate([found.state["a"][:, 0].numpy(), found.state["w"][:, 0].numpy()])
    assert np.abs(state - exact).max() < 10 * 1e-4
    assert float(found.f[-1]) == pytest.approx(1, abs=1e-4 * 1e3)


def test_networks_of_a_batch_are_as_stiff_as_alone():
    asked = replace(one_sample(1.0, 0.1, 1, "tanh"), data=scaled_digits(10))
    together = FiniteWidth(16, batch=3, **QUIET).ensemble(asked, 3)
    for net in together:
        alone = FiniteWidth(16, seed=net.solver["seed"], **QUIET)(asked)
        torch.testing.assert_close(net.f, alone.f, rtol=0, atol=10 * 1e-7 * 30)  # sqrt(K / P)


def test_a_stiff_sweep_is_the_stiff_flow_of_the_measure():
    """Depth 1: within the error of the draws."""
    asked = replace(one_sample(1.0, 0.2, 2, "relu"), data=scaled_digits(20))
    sweep = CausalDMFT(512, groups=3, keep_neurons=False, **QUIET)(asked)
    measure = torch.stack([WassersteinFlow(512, seed=s, **QUIET)(asked).f_test for s in range(3)])
    error = (sweep.standard_errors["f_test"].double().square() + measure.var(0) / 3).sqrt()
    assert (sweep.f_test - measure.mean(0)).square().sum().sqrt() / error.square().sum().sqrt() < 4
    assert float((sweep.f[-1] - asked.data.y).abs().max()) < 0.05


def test_a_deep_stiff_sweep_does_not_depend_on_its_records():
    """One interval against four, of a linear network, which is exact: other steps, in which other directions are revealed."""
    asked = one_sample(8.0, 0.04, 1, depth=2)
    often = replace(asked, training=mf.Training(0.01, 4, "gradient_flow"))
    solver = CausalDMFT(64, **QUIET)
    torch.testing.assert_close(solver(asked).f[-1], solver(often).f[-1], rtol=0, atol=1e-5)


def digits(eta, steps, depth=1, loss="squared", scaling=None, activation="tanh"):
    data = mf.digits(n_train=6, n_test=2)
    return mf.Problem(
        data,
        mf.Network(depth, activation),
        scaling or mf.mean_field(1.0),
        mf.Training(eta, steps, "gradient_flow"),
        loss,
    )


RUNS = {
    "flow": (WassersteinFlow(64, progress=False), digits(2.0, 4), MeasureFlow),
    "networks": (FiniteWidth(16, progress=False), digits(2.0, 4, depth=2), Networks),
    "dmft": (CausalDMFT(128, keep_state=True, progress=False), digits(2.0, 4, depth=2), LimitNetwork),
    "dmft, plain": (CausalDMFT(128, keep_state=True, draws="plain", two_time=False), digits(2.0, 4, 3), LimitNetwork),
}
SELDOM = replace(digits(2.0, 4, 2), training=mf.Training(2.0, 4, "gradient_flow", record_every=4))
RUNS |= {
    "networks, seldom": (FiniteWidth(16, progress=False), SELDOM, Networks),
    "dmft, seldom": (CausalDMFT(128, keep_state=True, progress=False), SELDOM, LimitNetwork),
}


@pytest.mark.parametrize("name", RUNS)
def test_ctrl_c_ends_an_interval_at_once_and_the_run_goes_on_as_if_nothing_had_been(monkeypatch, name, tmp_path):
    """SIGINT at an evaluation within the third interval: none follows; bases that grew in it are forgotten."""
    solver, asked, method = RUNS[name]
    usual, steps, count, at = method.backward, [], [0], [None]

    def velocity(self, *arguments):
        count[0] += 1
        if count[0] == at[0]:
            signal.raise_signal(signal.SIGINT)
        return usual(self, *arguments)

    monkeypatch.setattr(method, "backward", velocity)
    for k in range(1, 5):
        count[0] = 0
        whole = solver(asked.with_steps(k))
        steps.append(count[0])
    count[0], at[0] = 0, (steps[1] + steps[2]) // 2
    with pytest.raises(Interrupted, match="after step 2 of 4") as caught:
        solver(asked)
    assert count[0] == at[0]
    part = caught.value.solution
    save(part, tmp_path / "part.nc")
    at[0] = None
    assert solver.resume(load(tmp_path / "part.nc"), 2) == whole


LAZY = digits(30.0, 3, loss="logistic", scaling=mf.ntk())


@pytest.mark.parametrize("name", [*RUNS, "lazy"])
def test_a_spent_budget_names_the_eigenvalue_and_keeps_the_part(name):
    """The first interval passes, the second is long: what was reached goes on with more evaluations as if it had had them at once."""
    solver, asked, _ = RUNS.get(name) or (TangentKernelLimit(progress=False), LAZY, None)
    whole = solver(asked)
    with pytest.raises(SolverError, match=r"evaluations=10 .*largest eigenvalue of K/P.*more evaluations") as caught:
        replace(solver, evaluations=10)(asked)
    part = caught.value.solution
    assert part.status is mf.Status.OUT_OF_EVALUATIONS
    assert torch.equal(part.f, whole.f[: part.steps + 1])
    assert solver.resume(part, asked.training.steps - part.steps) == whole


def test_the_eigenvalue_that_is_named_is_that_of_k():
    asked = one_sample(1e3, 10.0, 1)
    with pytest.raises(SolverError) as caught:
        WassersteinFlow(64, evaluations=500, progress=False)(asked)
    told = float(str(caught.value).split("up to about ")[1].split(" ")[0])
    assert told == pytest.approx(2e6, rel=0.15)
    assert caught.value.solution.steps == 0
