"""What FixedPointDMFT costs: windows, iterations of each, and the operations of one application of the map (docs/performance.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meanfield import checks
from meanfield.problem import Problem
from solvers.cost import Estimate, sample_counts
from solvers.rates import SOBOL, Rates, eigh_seconds, rates

if TYPE_CHECKING:
    from solvers.fixed_point_dmft import FixedPointDMFT

_BLOCK, _ENGINE = 128, 1500  # coordinates are drawn by so many, and scrambling them takes so many small operations


def fixed_point_cost(solver: FixedPointDMFT, problem: Problem) -> Estimate:
    """O(sum over windows of iterations L S (T n)^2 + T (T n)^3): products of the fields at all times, decompositions of their covariances;
    n = P C and the test samples. Memory O(L S T n + L (T n)^2).
    """
    exact = problem.network.nonlinearity.name == "linear"
    rate = rates("float64" if exact else solver.dtype, "cpu", problem.network.nonlinearity.name)
    one = _matrices if exact else _sampled
    windows = [(WindowSizes(solver, problem, steps + 1), limit) for steps, limit in solver.windows(problem)]
    last, limit = windows[-1]
    seconds = 0.0 if exact else sum(_draws(window, rate) for window, _ in windows)
    for window, enough in windows:
        seconds += window.iterations(enough) * (one(window, rate) + 50 * window.numbers * 8 * rate.update)
    return Estimate(seconds + _kept(last), last.bytes(limit))


def map_seconds(solver: FixedPointDMFT, problem: Problem, draws: int, images: int) -> float:
    """Seconds of so many applications of the map, without going down again, on the whole window, for each of several draws of its noise"""
    exact = problem.network.nonlinearity.name == "linear"
    rate = rates("float64" if exact else solver.dtype, "cpu", problem.network.nonlinearity.name)
    window = WindowSizes(solver, problem, problem.training.steps + 1)
    one = _matrices(window, rate) if exact else _draws(window, rate) / images + _sampled(window, rate)
    return draws * images * one * window.depth / (2 * window.depth - 1)


class WindowSizes:
    """Sizes of a window: rows of u and h, of r and g, of features of the training samples; numbers of all kernels together"""

    def __init__(self, solver: FixedPointDMFT, problem: Problem, times: int) -> None:
        self.solver, self.depth, self.times = solver, problem.network.depth, times
        self.activation = problem.network.nonlinearity
        self.points, self.gradients = sample_counts(problem)
        self.samples, self.outputs = problem.data.samples, problem.data.outputs
        self.u, self.r, self.p = (times * n for n in (self.points, self.gradients, self.samples))
        two = self.u * self.r + self.r * self.p
        self.numbers = self.depth * (self.u**2 + self.r**2) + (self.depth - 1) * two

    def iterations(self, limit: float) -> float:
        """Four where the window before leads near, one more for each digit below 1e-3, as seen on the digits; without extrapolation as
        damping has it. With kinks more where samples are few for so many Gaussians: noise in the map then hides its fixed point.
        """
        if self.solver.anderson:
            count = (3 if self.depth == 1 else 4) + max(0.0, math.log10(1e-3 / limit))
        else:
            slow = math.log(1 - self.solver.damping) if self.solver.damping < 1 else -math.inf
            count = 2 / self.solver.damping**0.5 + max(0.0, math.log(limit / 1e-2) / slow)
        if self.activation.kinks and self.depth > 1:
            rows = self.u + self.r
            count *= max(1.0, 0.15 * rows / (self.solver.samples * limit)) ** 3
        return min(count, self.solver.iterations)

    def rows(self) -> list[tuple[int, int]]:
        """Gaussians of a neuron of each layer, in u and in r; those of the first u and the last r do not depend on time"""
        return [
            (self.points if l == 1 else self.u, self.outputs if l == self.depth else self.r)
            for l in range(1, self.depth + 1)
        ]

    def bytes(self, limit: float) -> float:
        # each a point and a change, and their differences
        past = min(self.iterations(limit) - 1, self.solver.anderson + 1)
        kernels = 8 * self.numbers * (10 + 5 * past)
        if self.activation.name == "linear":
            return kernels + 8 * 14 * max(self.u, self.r) ** 2
        size, s = checks.DTYPES[self.solver.dtype].itemsize, self.solver.samples
        draws = [sum(pair) for pair in self.rows()]
        march = size * 3 * (self.u + self.r + self.p)
        drawing = 8 * max(3.5 * max(draws), 3 * _BLOCK)  # in double precision
        return s * (size * sum(draws) + max(march, drawing)) + kernels


def _sampled(at: WindowSizes, rate: Rates) -> float:
    """Seconds of one image, up the layers and down again"""
    size, s, n, q = checks.DTYPES[at.solver.dtype].itemsize, at.solver.samples, at.points, at.gradients
    seconds = 0.0
    for l in range(1, at.depth + 1):
        below, above = l > 1, l < at.depth
        products = at.u**2 + at.r**2 + below * (at.u**2 + at.r * at.p) + above * (at.r**2 + at.u * at.r)
        march = (at.u + at.p) * at.r / 2
        read = size * (at.times + 1) / 2 * (at.r + at.p)  # by few rows at a time
        passes = size * (3 * at.u + 6 * at.r + 4 * at.p)
        site = s * ((products + march) * rate.product + read * rate.byte + passes * rate.update)
        site += s * (at.u + 1.5 * at.p) * rate.element
        if below:
            site += eigh_seconds(at.u) + at.u**3 * rate.product
            site += _responses(at.times, q, at.samples, 1, rate)
        if above:
            site += eigh_seconds(at.r) + at.r**3 * rate.product
            site += _responses(at.times, n, q, 0, rate)
        seconds += (2 if above else 1) * (site + (100 + 60 * at.times) * rate.operation)
    return seconds


def _responses(times: int, rows: int, columns: int, reach: int, rate: Rates) -> float:
    """One decomposition for each time, of the covariance up to it"""
    return sum(
        eigh_seconds(known) + 2 * rows * known**2 * rate.product + 12 * rate.operation
        for known in ((t + reach) * columns for t in range(1 - reach, times))
    )


def _matrices(at: WindowSizes, rate: Rates) -> float:
    """Linear layers: an inverse and some eighteen products"""
    side = (at.u + at.r) / 2
    return (2 * at.depth - 1) * (20 * side**3 * rate.product + 500 * side**2 * rate.update + 200 * rate.operation)


def _draws(at: WindowSizes, rate: Rates) -> float:
    """Gaussians of each layer, made orthonormal and slow in time"""
    seconds = 0.0
    for u, r in at.rows():
        total = u + r
        seconds += math.ceil(total / _BLOCK) * (at.solver.samples * _BLOCK * SOBOL + _ENGINE * rate.operation)
        seconds += at.solver.samples * (2 * total**2 + (u > at.points) * u**2 + (r > at.outputs) * r**2) * rate.product
        seconds += eigh_seconds(total)
    return seconds


def _kept(at: WindowSizes) -> float:
    """Kernels of the solution, in factors"""
    return at.depth * (eigh_seconds(at.p) + eigh_seconds(at.r))
