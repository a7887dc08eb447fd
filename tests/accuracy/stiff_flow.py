"""Gradient flow, stiff or not: orders of both kinds of steps, and runs against an implicit method that knows K."""

import math
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from scipy.integrate import solve_ivp

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from solvers.dmft.perceptron import LimitNetwork
from solvers.finite.networks import Networks
from solvers.running.integrator import Integrator
from solvers.two_layer.measure_flow import MeasureFlow


def stiff_flow() -> None:
    """D = P = 1, y = 1, linear, gamma0 = 1, float64, default tolerance (1e-7) and sizes: the largest error of f at the recorded steps
    against the scalar equation of its moments, by an implicit method; evaluations of the velocity; seconds of the whole call
    """
    print("| x | T | largest h lambda | solver | error of f | evaluations | s |\n" + "|---" * 7 + "|")
    for x, eta, steps in ((1.0, 0.1, 50), (10.0, 0.1, 50), (100.0, 0.1, 50), (1e-6, 5e10, 100)):
        for name, solver, method in (
            ("WassersteinFlow", WassersteinFlow(2**14, progress=False), MeasureFlow),
            ("FiniteWidth", FiniteWidth(512, progress=False), Networks),
            ("CausalDMFT", CausalDMFT(64, progress=False), LimitNetwork),
        ):
            data = mf.Dataset(torch.tensor([[x]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
            training = mf.Training(eta, steps, "gradient_flow")
            asked, calls = mf.Problem(data, mf.Network(1, "linear"), mf.mean_field(1.0), training), [0]
            start = time.perf_counter()
            with mock.patch.object(method, "backward", _counted(method.backward, calls)):
                found = solver(asked)
            seconds = time.perf_counter() - start
            p, q = _moments(found) if found.particles else (0.0, 2.0)
            f, rate = _exact(x, eta, steps, p, q)
            error = float(np.abs(found.f[:, 0, 0].double().numpy() - f).max())
            print(
                f"| {x:g} | {eta * steps:g} | {eta * rate:.2g} | {name} | {error:.1e} | {calls[0]} | {seconds:.2g} |",
                flush=True,
            )
            assert error < 5e-7 * max(1.0, math.sqrt(rate))


def integrator_order() -> None:
    """the error of one step on a nonlinear system of three equations against DOP853, regressed on the step: 1 + the order, which is 5 for
    the explicit steps and 3 for the stabilised ones
    """
    start = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)

    def velocity(state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        y = state[0]
        return (torch.stack([-y[0] * y[1] - y[0], torch.sin(y[0]) - y[1] ** 3, y[0] * y[2] - 2 * y[2]]),)

    def numpy(t: float, y: np.ndarray) -> np.ndarray:
        return velocity((torch.from_numpy(y),))[0].numpy()

    solver, state = Integrator(velocity, 1e-7), (start,)
    flow, sizes = velocity(state), np.array([0.2, 0.15, 0.1, 0.07, 0.05])
    exact = [solve_ivp(numpy, (0, h), start.numpy(), method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1] for h in sizes]
    kinds = {
        "explicit": lambda h: solver._dormand_prince(state, flow, h),
        "stabilised": lambda h: solver._stabilised(state, flow, h, 40 / h),
    }
    print("| steps | slope of a step's error |\n|---|---|")
    for (name, kind), order in zip(kinds.items(), (5, 3), strict=True):
        errors = [np.abs(kind(h).state[0].numpy() - y).max() for h, y in zip(sizes, exact, strict=True)]
        slope = float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
        print(f"| {name} | {slope:.2f} |")
        assert slope > order + 1 - 0.3


def _counted(backward: Callable, calls: list[int]) -> Callable:
    def counting(*arguments):
        calls[0] += 1
        return backward(*arguments)

    return counting


def _moments(found: mf.Solution) -> tuple[float, float]:
    """<a w> and <a^2 + w^2> at the start"""
    start = found.particles[0]
    m, a, w = start.m.double(), start.a[:, 0].double(), start.w[:, 0].double()
    return float((m * a * w).sum()), float((m * (a * a + w * w)).sum())


def _exact(x: float, eta: float, steps: int, p: float, q: float) -> tuple[np.ndarray, float]:
    """(f at every record, the largest eigenvalue of K/P on the way) from dp = x (1 - x p) q, dq = 4 x (1 - x p) p"""

    def rhs(t: float, u: np.ndarray) -> list[float]:
        return [x * (1 - x * u[0]) * u[1], 4 * x * (1 - x * u[0]) * u[0]]

    def jacobian(t: float, u: np.ndarray) -> list[list[float]]:
        return [[-x * x * u[1], x * (1 - x * u[0])], [4 * x * (1 - 2 * x * u[0]), 0]]

    times = eta * np.arange(steps + 1)
    found = solve_ivp(rhs, (0, times[-1]), [p, q], method="Radau", t_eval=times, jac=jacobian, rtol=1e-11, atol=1e-14)
    return x * found.y[0], float(x * x * found.y[1].max())


CLAIMS = {"stiff_flow": stiff_flow, "integrator_order": integrator_order}
