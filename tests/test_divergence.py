"""Runs whose loss grows beyond recovery or is no number end early, with a status and a remedy; runs that rise and fall do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.files.storage import load, save
from meanfield.problem.losses import Loss
from solvers import (
    CausalDMFT,
    DivergedError,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    NonFiniteError,
    TangentKernelLimit,
    WassersteinFlow,
    checkpointed,
)

DATA = mf.digits((0, 1), n_train=8, n_test=2)
SOLVERS = [WassersteinFlow(256), FiniteWidth(32), CausalDMFT(256), TangentKernelLimit(raise_on_failure=False)]


def problem(eta, steps=200, gamma0=1.0, activation="tanh", depth=1, loss="squared", y=None):
    data = DATA if y is None else mf.Dataset(DATA.x, y)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(gamma0), mf.Training(eta, steps), loss)


@np.errstate(over="ignore", invalid="ignore")
def losses_of_one_linear_layer(asked):
    """Training losses from the closed system of the second moments of (a, w), in numpy (equation 9)"""
    x, y = asked.data.x.numpy() / np.sqrt(asked.data.inputs), asked.data.y.numpy()
    gamma0, eta, moments, losses = (
        asked.scaling.measure_limit()[1],
        asked.training.learning_rate,
        np.eye(1 + x.shape[1]),
        [],
    )
    for _ in range(asked.training.steps + 1):
        f = x @ moments[1:, :1] / gamma0
        losses.append(0.5 * float(np.mean((f - y) ** 2)))
        v = (y - f).T @ x / len(x)
        step = np.eye(len(moments))
        step[:1, 1:] += eta * gamma0 * v
        step[1:, :1] += eta * gamma0 * v.T
        moments = step @ moments @ step.T
    return np.array(losses)


def edge(gamma0):
    """The learning rate at which the linear layer's first tangent kernel, 2 x x^T / D, turns unstable"""
    return 2 * DATA.samples / float(torch.linalg.eigvalsh(2 * DATA.x @ DATA.x.T / DATA.inputs)[-1])


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_run_that_diverges_ends_early_and_says_so(solver, tmp_path):
    asked = problem(1000.0)
    if solver.raise_on_failure:
        with pytest.raises(
            DivergedError, match=r"lower learning_rate.*step \d of 200 with learning_rate=1000 .*loss 0\.\d+ -> "
        ) as e:
            solver(asked)
        found = e.value.solution
        assert replace(solver, raise_on_failure=False)(asked) == found
    else:
        found = solver(asked)
    assert found.status is mf.Status.DIVERGED
    assert bool((found.loss[:-1] < 1e14).all())
    assert 1e12 * 0.5 < float(found.loss[-1]) < 1e100
    assert not found.state
    with pytest.raises(ValueError, match="blew up cannot be resumed"):
        solver.resume(found, 1)
    assert load(save(found, tmp_path / "found.nc")) == found


@pytest.mark.parametrize(
    "solver", [CausalDMFT(64, two_time=False, snapshots=()), WassersteinFlow(2**13, initial="sobol", snapshots=())]
)
@pytest.mark.parametrize("gamma0", [1e-4, 0.1])
def test_a_catapult_is_no_divergence(solver, gamma0):
    """Its height is 0.1 / gamma0^2 of the start (numpy), whether the run is sampled or exact."""
    asked = problem(1.9 * edge(gamma0), 100, gamma0, "linear")
    expected, found = losses_of_one_linear_layer(asked), solver(asked)
    assert found.status is mf.Status.FINISHED
    assert expected.max() > 0.05 / gamma0**2
    assert expected[-1] < 1e-2
    assert float(found.loss.max()) == pytest.approx(expected.max(), rel=1e-6 if isinstance(solver, CausalDMFT) else 0.5)
    assert float(found.loss[-1]) < 1e-2


def test_the_step_at_which_it_ends_is_that_of_the_closed_system_also_when_resumed(tmp_path):
    """The scale is the loss of outputs that miss their targets +-1 by 3, 4.5."""
    asked = problem(2.6 * edge(1.0), 60, 1.0, "linear")
    beyond = losses_of_one_linear_layer(asked) > 1e12 * 4.5
    assert 3 < beyond.argmax() < 60
    solver = CausalDMFT(64, keep_state=True, raise_on_failure=False, snapshots=())
    assert solver(asked).steps == beyond.argmax()
    part = solver(asked.with_steps(int(beyond.argmax()) - 1))
    assert part.status is mf.Status.FINISHED
    assert solver.resume(part, 10).steps == beyond.argmax()
    assert checkpointed(solver, asked, tmp_path / "run.nc", every=1).status is mf.Status.DIVERGED


def test_outputs_whose_squares_overflow():
    solver = TangentKernelLimit(raise_on_failure=False)
    found = solver(problem(1e160, 5))
    assert found.status is mf.Status.NON_FINITE
    assert found.steps == 0
    assert bool(torch.isfinite(found.loss).all())


def own(value, delta):
    return Loss("own", value, delta, lambda y: None)


def test_a_loss_of_your_own_that_is_no_number():
    """Beyond outputs of 4, on the way to targets of 10"""
    bounded = own(lambda f, y: torch.where(f.abs() > 4, torch.nan, 0.5 * (f - y) ** 2).sum(-1), lambda f, y: y - f)
    with pytest.raises(NonFiniteError, match=r"outputs or the loss blew up.*last finite loss") as caught:
        WassersteinFlow(256)(problem(0.05, 100, loss=bounded, y=10 * DATA.y))
    found = caught.value.solution
    assert 0 < found.steps < 100
    assert bool(torch.isfinite(found.loss).all())
    assert 2 < float(found.f.abs().max()) <= 4


@pytest.mark.parametrize(
    "asked",
    [
        problem(0.2, 20, y=0 * DATA.y),
        problem(0.2, 20, y=1e-9 * DATA.y),
        problem(1e4, 20, gamma0=0.1, loss="logistic"),
        problem(0.2, 20, loss=own(lambda f, y: (-y * f - 5).sum(-1), lambda f, y: y + 0 * f)),
        problem(0.2, 20, loss=own(lambda f, y: torch.relu((f - y).abs() - 50).sum(-1), lambda f, y: 0 * (y - f))),
    ],
    ids=["zero targets", "tiny targets", "logistic", "negative", "flat"],
)
def test_losses_of_every_size_finish(asked):
    for solver in (WassersteinFlow(256), FiniteWidth(64)):
        assert solver(asked).status is mf.Status.FINISHED


def test_infinite_logits_finish_at_any_learning_rate():
    asked = replace(problem(1e6, 50, loss="logistic"), scaling=mf.sym_default(64))
    assert InfiniteLogitsLimit(256)(asked).status is mf.Status.FINISHED


def test_the_fixed_point_of_a_diverging_run():
    """The iteration converges, to a run that diverges."""
    asked = problem(1000.0, 2, activation="linear")
    found = FixedPointDMFT(raise_on_failure=False)(asked)
    assert found.status is mf.Status.DIVERGED
    assert float(found.loss[-1]) == pytest.approx(losses_of_one_linear_layer(asked)[-1], rel=1e-6)
    with pytest.raises(DivergedError, match=r"lower learning_rate.*at step 2 of 2"):
        FixedPointDMFT()(asked)
