"""What a run will cost: time and memory of the solvers in N, S, P, D, T, L, with rates that this machine shows (docs/performance.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from meanfield import checks, tiles
from meanfield.arguments import checked
from meanfield.gaussian_averages import gaussian_averages
from meanfield.problem import Problem
from solvers.memory import total
from solvers.rates import RANDOM, SOBOL, eigh_seconds, rates

if TYPE_CHECKING:
    from solvers.causal_dmft import CausalDMFT
    from solvers.finite_width import FiniteWidth
    from solvers.tangent_kernel import TangentKernelLimit
    from solvers.wasserstein_flow import WassersteinFlow


@checked
@dataclass(frozen=True)
class Estimate:
    """Expected wall time and peak memory of a run, beyond what Python and the libraries take; within a factor of two as measured."""

    seconds: float
    bytes: float

    def __str__(self) -> str:
        return f"about {self.seconds:.2g} s and {self.bytes / 1e9:.2g} GB"


_INTEGRATOR = (
    15  # copies of the state in the integrator, as seen: stages, those that are combined, the states before and behind
)


def flow_cost(solver: WassersteinFlow, problem: Problem) -> Estimate:
    """O(T N (P + 1) (D + C)): per step one forward pass over training and test samples, one velocity of the batch, for which h is formed
    anew unless one pass serves both, and the update of all particles; memory O(N (D + C) + P)
    """
    data, act, batch = problem.data, problem.network.nonlinearity, problem.training.batch_size or problem.data.samples
    rate = rates(solver.dtype, solver.device, act.name)
    inputs, points = problem.network.inputs(data.x).shape[1], data.samples + _tests(problem)
    like = torch.empty(0, dtype=checks.DTYPES[solver.dtype], device=solver.device)
    kept = tiles.kept_points(act, solver.particles, inputs, like, batch)
    again = 0 if kept else batch
    products = solver.particles * (points + batch + again) * (inputs + data.outputs)
    elements = solver.particles * (points + batch + again)
    draw = solver.particles * (inputs + data.outputs) * SOBOL
    evaluations = (
        problem.training.steps + 1 if problem.training.optimiser == "gradient_descent" else 7 * problem.training.steps
    )
    size = checks.DTYPES[solver.dtype].itemsize
    state = solver.particles * (inputs + data.outputs) * size
    step = 2 * products * rate.product  # tiles are narrower than what was measured
    step += elements * rate.element + 7 * state * rate.update + 120 * rate.operation
    return Estimate(draw + evaluations * step, total(solver.parts(problem)) + kept * solver.particles * size)


def flow_bytes(problem: Problem, particles: float, snapshots: int, size: int) -> float:
    """In copies of the particles: state, velocity and a new state while running, and those of the snapshots"""
    data, biases = problem.data, bool(problem.network.bias_std)
    running = _INTEGRATOR if problem.training.optimiser == "gradient_flow" else 3 + bool(problem.training.momentum)
    copies = running + snapshots
    numbers = particles * (data.inputs + biases + data.outputs + 1)
    return numbers * size * copies


def dmft_cost(solver: CausalDMFT, problem: Problem) -> Estimate:
    """O(T L S (K + J) P): per step and matrix some twelve products of its bases with the fields; memory O(L S (K + J))"""
    data, depth, steps = problem.data, problem.network.depth, problem.training.steps
    exact = problem.network.nonlinearity.name == "linear"
    rate = rates("float64" if exact else solver.dtype, solver.device, problem.network.nonlinearity.name)
    points, gradients = sample_counts(problem)
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
    draws = depth * solver.samples * (k + j) * SOBOL
    groups = 1 if exact else solver.groups
    both = int(growth * (k + j) / 2)
    return Estimate(groups * (draws + growth * evaluations * step), solver.bytes_needed(problem, both))


def expected_ranks(problem: Problem) -> tuple[int, int]:
    """(K, J) of a matrix, from what runs on the digits showed: smooth activations 5 and 9 per sample, linear ones 3 and 7/4; with kinks
    J near P C T
    """
    times, (points, gradients) = problem.training.steps + 1, sample_counts(problem)
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
    size = checks.DTYPES[solver.dtype].itemsize
    # narrow products and updates read hidden weights again and again
    update = 12 * (network.depth - 1) * n * n * size * rate.byte
    small = 150 * network.depth * rate.operation / min(seeds, solver.seeds_at_once(problem))
    evaluations = problem.training.steps + 1
    if problem.training.optimiser == "gradient_flow":
        evaluations = 7 * problem.training.steps
    evaluations += len(solver.snapshots)  # each goes forward and backward again
    per_seed = weights * RANDOM + evaluations * (products * rate.product + elements * rate.element + update + small)
    at_once, flow = min(seeds, solver.seeds_at_once(problem)), problem.training.optimiser == "gradient_flow"
    more = (_INTEGRATOR - 3) * flow + bool(problem.training.momentum)  # copies of the weights
    return Estimate(seeds * per_seed, at_once * (solver.bytes_per_seed(problem) + more * weights * size))


def lazy_cost(solver: TangentKernelLimit, problem: Problem, seeds: int, random: bool) -> Estimate:
    """O(L Q^2 + P^3 + steps Q P C seeds): kernels between all Q samples, decompositions of the training samples', a product per step.

    random: whether f0 is drawn, from the covariance of all samples. Memory O(Q P + steps Q C seeds), where snapshots hold a kernel of
    several outputs O((P C)^2).
    """
    data, training = problem.data, problem.training
    p, (q, _) = data.samples, sample_counts(problem)
    given = solver.kernel.ndim if isinstance(solver.kernel, Tensor) else 0
    rows, columns = (n * (data.outputs if given == 4 else 1) for n in (q, p))  # of the kernel
    rate, size = rates(solver.dtype, solver.device), checks.DTYPES[solver.dtype].itemsize
    start = _kernels(problem, random) if random or not given else 0.0
    start += eigh_seconds(columns) + 160 * columns**2 * rate.update
    if random:
        start += eigh_seconds(p) + (eigh_seconds(q - p) + (q - p) * q * p * rate.product if q > p else 0.0)
    flow, exact = training.optimiser == "gradient_flow", problem.loss_function.name == "squared"
    fields = seeds * q * data.outputs
    velocity = rows * columns * size * rate.byte + fields * columns * rate.product + 4 * fields * size * rate.update
    step = velocity + 40 * rate.operation
    if flow and exact:
        start += 2 * rows * columns**2 * rate.product
    elif flow:  # the integrator takes so many steps for each of ours, as seen for kernels of order one
        step = max(2.0, 3.5 + 2 * math.log10(training.learning_rate)) * (6 * velocity + 1600 * rate.operation)
    kernels = 2 * q * q if random else q * p
    work = 5 * columns**2 + flow * (columns**2 + 2 * rows * columns)
    history = 2 * (training.steps + 1) * fields * size
    shown = size * (p * data.outputs) ** 2 if solver.snapshots and data.outputs > 1 and given != 4 else 0
    return Estimate(start + training.steps * step, 8.0 * (kernels + work) + history + shown)


def _kernels(problem: Problem, random: bool) -> float:
    """Seconds for the kernels of all samples, or of them with the training samples: in closed form some passes over all pairs for each
    layer, by tables some hundred terms, after preparing them
    """
    network, rate = problem.network, rates("float64")
    p, (q, _) = problem.data.samples, sample_counts(problem)
    blocks = [q * q / 2] if random else [p * p / 2, p * (q - p)] if q > p else [p * p / 2]
    pairs, layers = sum(blocks), network.depth * len(blocks)
    first = pairs * (problem.data.inputs * rate.product + 8 * 40 * rate.update)
    averages = gaussian_averages(network.nonlinearity)
    if averages.exact:
        return first + network.depth * pairs * 8 * 10 * rate.update
    terms = 200 * (10 * rate.product + 24 * rate.update)
    return first + network.depth * pairs * terms + 10_000 * layers * rate.operation


def sample_counts(problem: Problem) -> tuple[int, int]:
    """Training and test samples together, and training samples times outputs"""
    return problem.data.samples + _tests(problem), problem.data.samples * problem.data.outputs


def _tests(problem: Problem) -> int:
    return 0 if problem.data.x_test is None else len(problem.data.x_test)
