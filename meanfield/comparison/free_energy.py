"""The free energy of a two-layer run with noise, whose least is the measure in which it ends (equations 115 and 123)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.special import digamma, gammaln
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.measures.particle_measure import ParticleMeasure, seen_directions
from meanfield.measures.reductions import outputs
from meanfield.problem.problem import Problem
from meanfield.problem.stream import must_come_again
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import recorded

_NEAR = 4  # whose distance tells the density: fewer scatter more, more blur it
_LEAST = 32
_CLOUDS = 4  # Gaussian ones, whose entropy is known, that show the estimate's own bias


@checked
@dataclass(frozen=True, eq=False)
class FreeEnergy:
    """Of the measures at the snapshots of a run (equation 115): what Langevin descent lowers, in the limit of small steps.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> training = mf.Training(0.1, 20, temperature=0.5, weight_decay=0.5)
        >>> problem = mf.Problem(mf.single_index_teacher(8, 0, inputs=2), training=training)
        >>> found = mf.free_energy(WassersteinFlow(particles=256, snapshots=(0, 10, -1))(problem))
        >>> found.times, found.energy.shape
        (tensor([0., 1., 2.], dtype=torch.float64), torch.Size([3]))
    """

    times: Tensor
    """(n,) training time of each snapshot"""
    energy: Tensor
    """(n,) (kappa / Gamma) loss, and what decay costs the output's bias"""
    divergence: Tensor
    """(n,) Kullback and Leibler's, from the law without samples, N(0, temperature / weight_decay)"""
    errors: Tensor
    """(n,) standard errors of `divergence`, whose estimate rests on distances between particles"""
    temperature: float
    """That of the run"""
    dimensions: int
    """Coordinates in which the law was estimated: readouts, and the rank of the inputs"""

    __repr__ = brief
    _repr_html_ = html

    @property
    def total(self) -> Tensor:
        """(n,) energy + temperature times divergence"""
        return self.energy + self.temperature * self.divergence

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FreeEnergy):
            return NotImplemented
        numbers = all(
            torch.equal(getattr(self, k), getattr(other, k)) for k in ("times", "energy", "divergence", "errors")
        )
        return numbers and (self.temperature, self.dimensions) == (other.temperature, other.dimensions)

    def __str__(self) -> str:
        lines = [f"{'time':>10}{'energy':>12}{'divergence':>12}{'std. error':>12}{'total':>12}"]
        rows = zip(self.times, self.energy, self.divergence, self.errors, self.total, strict=True)
        return "\n".join(
            [*lines, *("".join(f"{float(v):>{10 if not i else 12}.4g}" for i, v in enumerate(row)) for row in rows)]
        )


@checked
def free_energy(solution: Solution, particles: int = 2**14) -> FreeEnergy:
    """Of every snapshot of a two-layer solution with noise and decay, of particles or of a network (equation 123).

    The entropy is that of nearest neighbours among at most `particles` of them, in the coordinates that the data see; how far off it is of
    Gaussian clouds of as many particles is taken away. Of laws far from Gaussian it leaves a share that grows with the coordinates, beside
    the standard error: a twentieth in four, a tenth or more in six and above. Give snapshots, e.g. snapshots=(0, 50, 100, -1).
    ValueError for solutions without particles, weights that differ, or training without noise and decay.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> training = mf.Training(0.1, 40, temperature=0.2, weight_decay=0.2)
        >>> problem = mf.Problem(mf.single_index_teacher(8, 0, inputs=2), training=training)
        >>> found = mf.free_energy(WassersteinFlow(particles=1024, snapshots=(0, -1))(problem))
        >>> bool(found.energy[1] < found.energy[0])  # descent fits the data; the divergence from the prior grows
        True
    """
    problem, most = solution.problem, checks.integer("particles", particles, 64)
    _must_have_one(solution)
    training, steps = problem.training, sorted(solution.particles)
    inputs, variance = problem.perceptron.inputs(problem.data.x).double(), training.temperature / training.weight_decay
    rows = seen_directions(inputs)
    dimensions = problem.data.outputs + len(rows)
    energies, found = [], []
    for step in steps:
        measure = solution.particles[step].to("cpu", torch.float64)
        _must_tell_a_law(measure, dimensions)
        f = solution.f[recorded(step, solution.recorded_steps)].double().cpu()
        energies.append(_energy(problem, measure, inputs, f))
        if step == 0:  # N(0, 1), by points that are often more even than independent ones
            found.append((_of_gaussians(measure.points.shape[1], 1 / variance), 0.0))
        else:
            found.append(_divergence(measure, rows, variance, most))
    divergence, errors = (torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))
    return FreeEnergy(
        training.times_of(steps), torch.tensor(energies).double(), divergence, errors, training.temperature, dimensions
    )


def _must_have_one(solution: Solution) -> None:
    """ValueError for a run that no free energy tells about"""
    problem, training = solution.problem, solution.problem.training
    must_come_again(problem.data, "free_energy")
    for name in ("temperature", "weight_decay"):
        if not getattr(training, name):
            raise ValueError(f"a free energy needs {name}: received {name}=0; give Training({name}=..)")
    if other := training.other_than("temperature", "weight_decay", "schedule", "warmup"):
        raise ValueError(f"the noise of Langevin descent alone lowers a free energy: received {other}; leave it out")
    depth = problem.perceptron_for("free_energy").depth
    if depth != 1:
        raise ValueError(f"a free energy needs networks of depth 1: received depth {depth}; mf.stationary takes any")
    if not solution.particles:
        raise ValueError(
            "a free energy needs the particles of two layers: received a solution without; give snapshots to WassersteinFlow or FiniteWidth"
        )
    _, kappa_a, kappa_w = problem.in_plane.measure_limit()
    if kappa_a != kappa_w:
        raise ValueError(
            f"a free energy needs one learning rate for readout and input weights: received kappa_a={kappa_a:g}, kappa_w={kappa_w:g}"
        )


def _must_tell_a_law(measure: ParticleMeasure, dimensions: int) -> None:
    """ValueError for particles whose distances do not tell how dense they are"""
    if not torch.allclose(measure.m, measure.m.mean(), rtol=1e-6, atol=0):
        raise ValueError(
            "a free energy needs particles of one weight: received weights that differ, as quadrature and moving masses have"
        )
    if len(measure) < (least := max(_LEAST, 8 * dimensions)):
        raise ValueError(f"a free energy needs {least} particles or more: received {len(measure)}")


def _energy(problem: Problem, measure: ParticleMeasure, inputs: Tensor, f: Tensor) -> float:
    """f (P, C), of which the measure's bias is what its particles do not make"""
    network, training = problem.perceptron, problem.training
    gain, kappa, _ = problem.in_plane.measure_limit()
    energy = kappa / gain * float(problem.loss_function.mean(f, problem.data.y))
    if network.bias_std:
        made = gain * network.weight_std * outputs(measure.a, measure.w, measure.m, inputs, network.nonlinearity)
        b = (f - made).mean(0)
        energy += training.weight_decay * float(b.square().sum()) / (2 * (gain * network.bias_std) ** 2)
    return energy


def _divergence(measure: ParticleMeasure, rows: Tensor, variance: float, most: int) -> tuple[float, float]:
    """Of the joint law of readouts and input weights, and its standard error"""
    w = measure.w[:most]
    points = torch.cat([measure.a[:most], w @ rows.T], 1) / variance**0.5
    beyond = w - (w @ rows.T) @ rows
    free = w.shape[1] - len(rows)
    ratio = float(beyond.square().sum(1).mean()) / (free * variance) if free else 1.0
    value, error = _from_standard(points.numpy())
    return value + _of_gaussians(free, ratio), error


def _of_gaussians(dimensions: int, ratio: float) -> float:
    """KL of N(0, ratio) from N(0, 1) in so many dimensions"""
    return dimensions * (ratio - 1 - math.log(ratio)) / 2


def _from_standard(points: np.ndarray) -> tuple[float, float]:
    """KL of the law of points (n, d) from N(0, I), and its standard error (equation 123)"""
    n, d = points.shape
    near, spread = _near(points)
    too_much = _too_much(n, d)
    each = (points**2).sum(1) / 2 + d / 2 * math.log(2 * math.pi) - near
    value = each.mean() - spread + np.mean(too_much)
    white = _white(points)[0]
    own = each - (white**2).sum(1) / 2  # the covariance was estimated too
    return float(value), float(math.sqrt(own.var() / n + np.var(too_much, ddof=1) / _CLOUDS))


@cache
def _too_much(n: int, d: int) -> list[float]:
    """By how much the estimate is off of the entropy of Gaussian clouds"""
    clouds = [_near(np.random.default_rng(k).standard_normal((n, d))) for k in range(_CLOUDS)]
    return [value.mean() + constant - d / 2 * math.log(2 * math.pi * math.e) for value, constant in clouds]


def _near(points: np.ndarray) -> tuple[np.ndarray, float]:
    """d log of the distance to a near neighbour, of each white point, and what makes its mean an entropy (Kozachenko and Leonenko)"""
    from scipy.spatial import KDTree

    n, d = points.shape
    white, volume = _white(points)
    distance = KDTree(white).query(white, _NEAR + 1)[0][:, -1]
    ball = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    return d * np.log(np.maximum(distance, 1e-300)), float(digamma(n) - digamma(_NEAR) + ball + volume)


def _white(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The points, of covariance 1, and the log of the volume by which they were made smaller"""
    centred = points - points.mean(0)
    factor = np.linalg.cholesky(np.cov(centred.T, bias=True).reshape(points.shape[1], -1))
    return np.linalg.solve(factor, centred.T).T, float(np.log(np.diag(factor)).sum())
