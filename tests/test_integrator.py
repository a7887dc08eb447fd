"""The integrator by itself: its orders, its stability, stiff spectra, tiny growing parts, growing states, and where it must give up."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from solvers.running.integrator import Integrator, Stuck


def two_factors(state):
    """dL/da and dL/dw of L = (1 - a w)^2 / 2, reversed"""
    a, w = state
    return (1 - a * w) * w, (1 - a * w) * a


def of_two_factors(start, time):
    def rhs(t, y):
        return [(1 - y[0] * y[1]) * y[1], (1 - y[0] * y[1]) * y[0]]

    return solve_ivp(rhs, (0, time), start, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]


def tensors(*values, dtype=torch.float64):
    return tuple(torch.as_tensor(value, dtype=dtype).reshape(-1) for value in values)


@pytest.mark.parametrize(
    ("kind", "stages", "order"), [("dormand_prince", 6, 5), ("stabilised", 12, 3), ("stabilised", 40, 3)]
)
def test_one_step_has_its_order_and_tells_its_error(kind, stages, order):
    """The error of one step goes as h^(order + 1); what the step says of it goes as that of the pair, and is not below it."""
    flow, start = Integrator(two_factors, 1e-7), tensors(1.2, 0.3)
    errors, told = [], []
    for h in (0.1, 0.05):
        rate = (stages - 1) * (stages + 4) / 3 / h / 1.1 * 0.999
        step = (flow._stabilised, flow._dormand_prince)[kind == "dormand_prince"]
        trial = step(start, two_factors(start), h, *([rate] if kind == "stabilised" else []))
        exact = of_two_factors([1.2, 0.3], h)
        errors.append(np.abs(np.array([float(t) for t in trial.state]) - exact).max())
        told.append(flow.size(trial.error))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.5)
    assert math.log2(told[0] / told[1]) == pytest.approx(5 if kind == "dormand_prince" else 4, abs=0.5)
    assert told[1] > errors[1]


@pytest.mark.parametrize("stages", [*range(12, 40, 2), 60, 144, 1000])
def test_stabilised_steps_damp_every_decaying_part(stages):
    """On dy/dt = -z y a step multiplies by a polynomial that is exp(-z) to third order and at most 1 wherever the step is allowed."""
    bound = (stages - 1) * (stages + 4) / 3 / 1.1
    z = torch.cat([torch.logspace(-3, 0, 40), torch.linspace(1, bound, 4000)]).double()
    (damped,), (error,) = (
        (trial := Integrator(lambda y: (-z * y[0],), 1e-7)._stabilised((torch.ones_like(z),), (-z,), 1.0, bound)).state,
        trial.error,
    )
    small = z < 0.1
    assert bool(((damped - torch.exp(-z)).abs() < 0.012 * z**4 + 1e-13)[small].all())
    assert float(damped[z > 1].abs().max()) < 0.9
    assert float(error.abs().max()) < 25  # of parts that no step shortens


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
def test_a_spectrum_over_seven_decades(dtype, rtol):
    """Against exp(-rate t); steps that are stable for the fastest rate alone would take 6 * 3e5 / 3.3 = 5e5 evaluations."""
    rates, count = torch.logspace(-2, 5, 29, dtype=torch.float64), 0

    def velocity(state):
        nonlocal count
        count += 1
        return (-(rates.to(dtype) * state[0]),)

    state, flow = tensors(torch.ones(29), dtype=dtype), Integrator(velocity, rtol)
    for k in range(1, 4):
        state = flow(state, 1.0)
        assert float((state[0].double() - torch.exp(-rates * k)).square().mean().sqrt()) < 5 * rtol
    assert count < 15_000


def test_tiny_parts_grow_as_they_should_beside_stiff_ones():
    """No step is skipped because nothing seems to happen: what leaves a saddle starts below every tolerance."""
    rates = torch.tensor([-1e4, 1.0], dtype=torch.float64)
    state = tensors([1.0, 1e-14])
    flow = Integrator(lambda y: (rates * (y[0] - torch.tensor([1.0, 0.0])),), 1e-7)
    for _ in range(25):
        state = flow(state, 1.0)
    assert float(state[0][1]) == pytest.approx(1e-14 * math.exp(25), rel=0.02)


def test_speed_and_size_have_no_units():
    """Rates of 1e-12 over times of 1e13 and states of 1e-9 are the same run as those of order one."""
    one = Integrator(two_factors, 1e-7)(tensors(1.2, 0.3), 3.0)
    slow = Integrator(lambda y: tuple(1e-12 * v for v in two_factors(y)), 1e-7)(tensors(1.2, 0.3), 3e12)
    small = Integrator(lambda y: tuple(1e-9 * v for v in two_factors([1e9 * t for t in y])), 1e-7)
    for found in (slow, [1e9 * t for t in small(tensors(1.2e-9, 0.3e-9), 3.0)]):
        torch.testing.assert_close(torch.cat(list(found)), torch.cat(one), rtol=1e-7, atol=0)


@pytest.mark.parametrize("rate", [1.0, 300.0])
def test_a_state_may_grow_by_rows(rate):
    """Rows that appear in the velocity on the way are rows of zeros before."""
    goal = torch.tensor([2.0, -2.0, 3.0]).double()

    def whole(state):
        (y,) = state
        return (rate * (goal - torch.cat([y, y.new_zeros(3 - len(y))])),)

    (grown,) = Integrator(whole, 1e-7)(tensors([1.0]), 0.5)
    start = torch.tensor([1.0, 0.0, 0.0]).double()
    torch.testing.assert_close(grown, goal + math.exp(-0.5 * rate) * (start - goal), rtol=1e-6, atol=0)


def test_the_start_is_left_alone_and_nothing_moves_where_nothing_moves():
    start = tensors([1.0, 2.0])
    assert torch.equal(Integrator(lambda y: (torch.zeros_like(y[0]),), 1e-7)(start, 1e6)[0], start[0])
    Integrator(lambda y: (-y[0],), 1e-7)(start, 1.0)
    assert start[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("where", [1.0, 0.5])
def test_a_velocity_that_is_not_finite_ends_it(where):
    def velocity(state):
        return (torch.where(state[0] < where, torch.nan, -torch.ones_like(state[0])),)

    with pytest.raises(Stuck):
        Integrator(velocity, 1e-7)(tensors([0.9]), 1.0)
