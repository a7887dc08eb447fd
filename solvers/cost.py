"""What a run will cost: time and memory of the solvers in N, S, P, D, T, L, with rates that this machine shows (docs/performance.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from meanfield import checks
from meanfield.problem import Problem

if TYPE_CHECKING:
    from solvers.causal_dmft import CausalDMFT
    from solvers.finite_width import FiniteWidth
    from solvers.wasserstein_flow import WassersteinFlow


@dataclass(frozen=True)
class Estimate:
    """Expected wall time and peak memory of a run, beyond what Python and the libraries take; within a factor of two as measured."""

    seconds: float
    bytes: float

    def __str__(self) -> str:
        return f"about {self.seconds:.2g} s and {self.bytes / 1e9:.2g} GB"


@dataclass(frozen=True)
class Rates:
    """Seconds per multiply-and-add of a large product, per byte of a product too narrow to be worth its reading, per byte of a large sum
    (update), per element of an activation, and per small operation"""

    product: float
    byte: float
    update: float
    element: float
    operation: float


_INTEGRATOR = 32  # copies of the state in torchdiffeq's dopri5, as seen: stages, interpolation, their joined forms


@cache
def rates(dtype: str, device: str = "cpu", activation: str = "tanh") -> Rates:
    """Measured once per process, in about a quarter of a second"""
    from meanfield.activations import activation as named

    act, kind = named(activation), checks.DTYPES[dtype]
    g = torch.Generator().manual_seed(0)
    tall, wide, narrow, small = (
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype=kind, device=device)
        for shape in ((512, 4096), (4096, 128), (4096, 4), (16, 16))
    )
    tile = tall[:32].contiguous()
    return Rates(
        product=_seconds(lambda: tall @ wide, device) / (512 * 4096 * 128),
        byte=_seconds(lambda: tall @ narrow, device) / (tall.nbytes + narrow.nbytes),
        update=_seconds(lambda: tall + tall, device) / tall.nbytes,
        element=_seconds(lambda: act.phi(tile), device) / tile.numel(),
        operation=_seconds(lambda: small + small, device),
    )


def _seconds(work: Callable[[], Any], device: str) -> float:
    def together(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / count

    together(1)
    count = max(4, int(2e-3 / max(together(4), 1e-7)))  # so many that reading the clock does not count
    return sorted(together(count) for _ in range(5))[2]


def flow_cost(solver: WassersteinFlow, problem: Problem) -> Estimate:
    """O(T N (P + 1) (D + C)): per step one forward pass over training and test samples, one velocity, and the update of all particles;
    memory O(N (D + C) + P)
    """
    data, act = problem.data, problem.network.nonlinearity
    rate = rates(solver.dtype, solver.device, act.name)
    inputs, points = problem.network.inputs(data.x).shape[1], data.samples + _tests(problem)
    products = solver.particles * (points * (inputs + data.outputs) + data.samples * 2 * (inputs + data.outputs))
    elements = solver.particles * (points + 2 * data.samples)
    draw = solver.particles * (inputs + data.outputs) * 2e-7  # scrambled Sobol points, made Gaussian
    evaluations = (
        problem.training.steps + 1 if problem.training.optimiser == "gradient_descent" else 7 * problem.training.steps
    )
    size = 4 if solver.dtype == "float32" else 8
    state = solver.particles * (inputs + data.outputs) * size
    step = 2 * products * rate.product  # tiles are narrower than what was measured
    step += elements * rate.element + 7 * state * rate.update + 120 * rate.operation
    return Estimate(draw + evaluations * step, _flow_bytes(solver, problem, inputs))


def _flow_bytes(solver: WassersteinFlow, problem: Problem, inputs: int) -> float:
    """In copies of the particles: state, velocity and a new state while running, two of each snapshot when kernels are made of them"""
    data, particles, snapshots = problem.data, solver.particles, len(solver.snapshots)
    running = _INTEGRATOR if problem.training.optimiser == "gradient_flow" else 3 + bool(problem.training.momentum)
    copies = max(running + snapshots, 1 + 2 * snapshots)
    points = [snapshots * data.samples, snapshots * data.samples * data.outputs]
    kernels = sum(3 * 8 * min(particles, columns) * columns for columns in points)
    return particles * (inputs + data.outputs + 1) * (4 if solver.dtype == "float32" else 8) * copies + kernels


def dmft_cost(solver: CausalDMFT, problem: Problem) -> Estimate:
    """O(T L S (K + J) P): per step and matrix some twelve products of its bases with the fields; memory O(L S (K + J))"""
    data, depth, steps = problem.data, problem.network.depth, problem.training.steps
    exact = problem.network.nonlinearity.name == "linear"
    rate = rates("float64" if exact else solver.dtype, solver.device, problem.network.nonlinearity.name)
    points, gradients = data.samples + _tests(problem), data.samples * data.outputs
    k, j = expected_ranks(problem)
    size = 8 if exact or solver.dtype == "float64" else 4
    wide = solver.samples * (4 * k * points + k * gradients + 2 * j * points + 4 * j * gradients + k * data.samples)
    read = solver.samples * size * (20 * k + 20 * j)  # also by the few directions that are new in a step
    if solver.two_time:
        wide += 2 * solver.samples * (k * data.samples + j * gradients) / max(1, depth - 1)
    elements = depth * solver.samples * (16 * points + 24 * gradients)
    matrices = (depth - 1) + (1 if solver.two_time and depth == 1 else 0)
    step = matrices * (wide * rate.product + read * rate.byte + 1000 * rate.operation)
    step += elements * rate.element + 600 * rate.operation
    growth = 0.75  # ranks are smaller at first, and in short runs
    evaluations = steps if problem.training.optimiser == "gradient_descent" else 4 * steps
    draws = depth * solver.samples * (k + j) * 1e-7
    groups = 1 if exact else solver.groups
    both = int(growth * (k + j) / 2)
    return Estimate(groups * (draws + growth * evaluations * step), solver.bytes_needed(problem, both))


def expected_ranks(problem: Problem) -> tuple[int, int]:
    """(K, J) of a matrix, from what runs on the digits showed: smooth activations 5 and 9 per sample, linear ones 3 and 7/4; with kinks
    J near P C T
    """
    data, times = problem.data, problem.training.steps + 1
    points, gradients = data.samples + _tests(problem), data.samples * data.outputs
    if problem.network.nonlinearity.name == "linear":
        return min(points * times, 3 * points), min(gradients * times, 7 * gradients // 4)
    k = min(points * times, 5 * points)
    rough = 0.87 * gradients * times if problem.network.nonlinearity.kinks else 9 * gradients
    return k, int(min(gradients * times, rough))


def network_cost(solver: FiniteWidth, problem: Problem, seeds: int = 1) -> Estimate:
    """O(seeds T (L N^2 + N D) P): forward, backward and update of every weight; memory O(batch N (L N + D))"""
    data, network, n = problem.data, problem.network, solver.width
    rate = rates(solver.dtype, solver.device, network.nonlinearity.name)
    weights = (network.depth - 1) * n * n + n * (data.inputs + data.outputs)
    products = weights * (3 * data.samples + _tests(problem))
    elements = network.depth * n * (9 * data.samples + _tests(problem))  # autograd's passes
    size = 4 if solver.dtype == "float32" else 8
    update = (
        20 * (network.depth - 1) * n * n * size * rate.byte
    )  # narrow products and updates read hidden weights again and again
    small = 150 * network.depth * rate.operation / min(seeds, solver.seeds_at_once(problem))
    evaluations = problem.training.steps + 1
    if problem.training.optimiser == "gradient_flow":
        evaluations = 7 * problem.training.steps
    per_seed = evaluations * (products * rate.product + elements * rate.element + update + small)
    at_once, flow = min(seeds, solver.seeds_at_once(problem)), problem.training.optimiser == "gradient_flow"
    more = (_INTEGRATOR - 3) * flow + bool(problem.training.momentum)  # copies of the weights
    return Estimate(seeds * per_seed, at_once * (solver.bytes_per_seed(problem) + more * weights * size))


def _tests(problem: Problem) -> int:
    return 0 if problem.data.x_test is None else len(problem.data.x_test)
