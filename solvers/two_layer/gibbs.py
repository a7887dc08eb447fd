"""The stationary measure of Langevin descent of two layers: a Gibbs measure whose field is that of its own outputs (equation 115)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.measures.particle_measure import ParticleMeasure, SobolPoints, seen_directions
from meanfield.problem.problem import Problem
from meanfield.problem.stream import must_come_again
from meanfield.solution.gibbs_measure import GibbsMeasure
from solvers.running.failures import SolverError
from solvers.running.inputs import EVERYWHERE, Inputs

_FEW = 3  # dimensions in which a product of Gauss-Hermite nodes beats Sobol points
_STEPS, _HALVINGS = 30, 20
_PARTS = (2.0**-8, 2.0**-6, 2.0**-4, 2.0**-3, 2.0**-2, 0.5)  # of the field's square, on the way to all of it
_THIN = 0.01  # of the points' weight, below which an average rests on few of them


@checked
def gibbs_fixed_point(problem: Problem, points: int = 2**14, seed: int = 0, tolerance: float = 1e-10) -> GibbsMeasure:
    """The measure in which Langevin descent of two layers ends, in the limit of small steps (equation 115).

    With Training(temperature=tau, weight_decay=lambda), both positive; learning rate and steps do not matter. The readout's law is
    Gaussian given the input weights; these are averaged over by products of Gauss-Hermite nodes in up to three dimensions (the rank of the
    inputs), by `points` scrambled Sobol points beyond, reweighted. The outputs solve a convex problem, by Newton's method, to `tolerance`,
    relative. ValueError for other networks, scalings and trainings; RuntimeWarning where the weights leave less than a hundredth of the
    points, because the temperature is low: there a long `WassersteinFlow` finds the measure. SolverError if the equation is not solved.

    Example:
        >>> import meanfield as mf
        >>> from solvers import gibbs_fixed_point
        >>> data = mf.single_index_teacher(8, 0, inputs=2)
        >>> trainings = [mf.Training(temperature=t, weight_decay=t) for t in (0.1, 1.0)]
        >>> ends = [gibbs_fixed_point(mf.Problem(data, training=training)) for training in trainings]
        >>> bool(ends[0].f.norm() > ends[1].f.norm())  # the less noise, the more of the data is fitted
        True
    """
    points, seed = checks.integer("points", points, 2), checks.seed("seed", seed)
    checks.positive("tolerance", tolerance)
    _check(problem)
    average = _Average(problem, points, seed)
    f, residual = _solved(problem, average, tolerance)
    found = average.at(problem.loss_function.delta(f, problem.data.y))
    outputs, samples = average.outputs(found), problem.data.samples
    effective = float(found.m.sum() ** 2 / (found.m.square() / average.m).sum())
    if effective < _THIN:
        warn(
            f"the average rests on {effective:.1g} of its {len(average.m)} points: take more points, a higher temperature, or a long "
            "WassersteinFlow",
            RuntimeWarning,
        )
    divergence = average.divergence(found)
    return GibbsMeasure(
        problem,
        outputs[:samples],
        outputs[samples:] if len(outputs) > samples else None,
        average.kernel(found),
        average.measure(found, seed),
        average.free_energy(found),
        divergence,
        effective,
        residual,
    )


@dataclass(frozen=True)
class _Tilted:
    """Of errors Delta (P, C): the field s = Delta^T phi / P of each point (R, C), their weights (R,) and the log of the weights' sum"""

    delta: Tensor
    s: Tensor
    m: Tensor
    log: float


class _Average:
    """Over input weights that are N(0, tau / lambda) without samples"""

    def __init__(self, problem: Problem, points: int, seed: int) -> None:
        self.problem, training, network = problem, problem.training, problem.perceptron
        like = torch.empty(0, dtype=torch.float64)
        x = Inputs(problem, like)(EVERYWHERE)
        self.rows = seen_directions(x)  # what lies beyond keeps its law
        z, self.m = _gaussians(points, len(self.rows), seed)
        self.variance, std = training.temperature / training.weight_decay, network.weight_std
        checks.memory(f"features of points={len(z)}", 24.0 * len(z) * len(x), "take fewer points or samples")
        self.w = self.variance**0.5 * z @ self.rows
        self.phi = network.nonlinearity.phi(self.w @ x.T)  # (R, P + P_test)
        gain, self.kappa = problem.in_plane.measure_limit()[:2]
        self.slope = self.kappa * std / training.weight_decay  # of the readouts' mean in s
        self.alpha = gain * std * self.slope
        self.beta = (self.kappa * std) ** 2 / (2 * training.temperature * training.weight_decay)
        self.bias = gain * self.kappa * network.bias_std**2 / training.weight_decay
        self.std = std

    def at(self, delta: Tensor) -> _Tilted:
        s = self.phi[:, : len(delta)] @ delta / len(delta)
        exponent = self.beta * s.square().sum(1)
        log = float(torch.logsumexp(exponent + self.m.log(), 0))
        return _Tilted(delta, s, self.m * (exponent - log).exp(), log)

    def outputs(self, tilted: _Tilted) -> Tensor:
        """(P + P_test, C)"""
        return self.alpha * self.phi.T @ (tilted.m[:, None] * tilted.s) + self.bias * tilted.delta.mean(0)

    def kernel(self, tilted: _Tilted) -> Tensor:
        return self.phi.T @ (tilted.m[:, None] * self.phi)

    def derivative(self, tilted: _Tilted) -> Tensor:
        """(P C, P C) of the training outputs in Delta: positive and symmetric"""
        samples, outputs = tilted.delta.shape
        phi, root = self.phi[:, :samples], tilted.m.sqrt()
        rows = root[:, None] * phi
        plain = rows.T @ rows + (self.bias / self.alpha)
        moving = (tilted.s[:, None, :] * phi[:, :, None]).flatten(1)  # s_c phi
        moving = root[:, None] * (moving - tilted.m @ moving)
        eye = torch.eye(outputs, dtype=phi.dtype)
        return self.alpha / samples * (torch.kron(plain, eye) + 2 * self.beta * moving.T @ moving)

    def divergence(self, tilted: _Tilted) -> float:
        """Of the joint law of readouts and input weights"""
        mean = (tilted.m[:, None] * tilted.s.square()).sum()
        return float(2 * self.beta * mean) - tilted.log

    def free_energy(self, tilted: _Tilted) -> float:
        """Of the measure and its bias; the least of all at the fixed point"""
        data, training = self.problem.data, self.problem.training
        gain, kappa = self.problem.in_plane.measure_limit()[:2]
        loss = self.problem.loss_function.mean(self.outputs(tilted)[: data.samples], data.y)
        b = self.bias * tilted.delta.mean(0)
        held = float(b.square().sum()) * kappa / (2 * gain * self.bias) if self.bias else 0.0
        return float(kappa / gain * loss) + held + training.temperature * self.divergence(tilted)

    def measure(self, tilted: _Tilted, seed: int) -> ParticleMeasure:
        g = torch.Generator().manual_seed(seed)
        own = torch.randn(tilted.s.shape, generator=g, dtype=torch.float64) * self.variance**0.5
        beyond = torch.randn(self.w.shape, generator=g, dtype=torch.float64) * self.variance**0.5
        w = self.w + beyond - (beyond @ self.rows.T) @ self.rows
        return ParticleMeasure(self.slope * tilted.s + own, w, tilted.m / tilted.m.sum())


def _gaussians(points: int, dims: int, seed: int) -> tuple[Tensor, Tensor]:
    """(R, dims) points and their weights"""
    if dims > _FEW:
        u = SobolPoints(dims, seed).draw(points, dtype=torch.float64)
        z = math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-12, 1 - 1e-12) - 1)
        return z, torch.full((points,), 1 / points, dtype=torch.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(min(200, max(2, round(points ** (1 / max(dims, 1))))))
    keep = weights > 1e-300
    one, own = torch.tensor(nodes[keep]), torch.tensor(weights[keep] / weights.sum())
    if not dims:
        return torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    m = torch.cartesian_prod(*[own] * dims).reshape(-1, dims).prod(1)
    return torch.cartesian_prod(*[one] * dims).reshape(-1, dims), m


def _solved(problem: Problem, average: _Average, tolerance: float) -> tuple[Tensor, float]:
    """Outputs f (P, C) = G(Delta(f)), G monotone and Delta falling, so that there is one solution; and what is left, relative

    From the measure without samples, whose equation is that of a regression, to the one asked for: a tilted one is near the next.
    """
    y, beta = problem.data.y, average.beta
    f, scale, left = torch.zeros_like(y), max(float(y.norm()), 1.0), math.inf
    for part in (0.0, *_PARTS, 1.0):
        average.beta = part * beta
        f, left = _newton(problem, average, f, tolerance if part == 1 else 1e-3, scale)
    if left > tolerance:
        raise SolverError(
            f"the equation of the Gibbs measure is off by {left:.1g} after {_STEPS} steps of Newton's method: take a higher temperature, "
            "more points, or a long WassersteinFlow",
            [],
            "",
        )
    return f, left


def _newton(problem: Problem, average: _Average, f: Tensor, tolerance: float, scale: float) -> tuple[Tensor, float]:
    loss, y = problem.loss_function, problem.data.y

    def off(f: Tensor) -> tuple[Tensor, _Tilted]:
        tilted = average.at(loss.delta(f, y))
        return average.outputs(tilted)[: len(y)] - f, tilted

    gap, tilted = off(f)
    for _ in range(_STEPS):
        if float(gap.norm()) <= tolerance * scale:
            break
        slopes = _slopes(f, lambda f: loss.delta(f, y))
        jacobian = average.derivative(tilted) @ torch.block_diag(*slopes) - torch.eye(y.numel(), dtype=f.dtype)
        step = torch.linalg.solve(jacobian, -gap.flatten()).reshape(f.shape)
        before, start = float(gap.norm()), f
        for halving in range(_HALVINGS):
            f = start + 0.5**halving * step
            gap, tilted = off(f)
            if float(gap.norm()) < before:
                break
    return f, float(gap.norm()) / scale


def _slopes(f: Tensor, delta: Callable[[Tensor], Tensor]) -> Tensor:
    """(P, C, C) of delta (P, C), of each sample in its own outputs"""
    at = f.detach().requires_grad_()
    with torch.enable_grad():
        errors = delta(at)
        rows = [torch.autograd.grad(column.sum(), at, retain_graph=True)[0] for column in errors.unbind(1)]
    return torch.stack(rows, 1)


def _check(problem: Problem) -> None:
    must_come_again(problem.data, "gibbs_fixed_point")
    training, network = problem.training, problem.perceptron_for("gibbs_fixed_point")
    _, kappa_a, kappa_w = problem.in_plane.measure_limit()
    if network.depth != 1:
        raise ValueError(
            f"gibbs_fixed_point takes networks of depth 1: received depth {network.depth}; CausalDMFT follows any depth through time"
        )
    if kappa_a != kappa_w:
        raise ValueError(
            f"a Gibbs measure needs one learning rate for readout and input weights: received kappa_a={kappa_a:g}, kappa_w={kappa_w:g}; "
            "take mf.mean_field(gamma0), or a long WassersteinFlow"
        )
    for name in ("temperature", "weight_decay"):
        if not getattr(training, name):
            raise ValueError(
                f"without {name} there is no stationary measure of finite size: received {name}=0; give Training({name}=..)"
            )
    if other := training.other_than("temperature", "weight_decay", "schedule", "warmup"):
        raise ValueError(
            f"gibbs_fixed_point follows the noise of Langevin descent alone: received {other}; leave it out"
        )
