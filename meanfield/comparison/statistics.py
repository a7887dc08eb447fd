"""Estimates from the Gram matrix of deviations, M_ee' = <o_e - r, o_e' - r> / |r|^2 over E seeds (equations 13 to 16), and Gaussian KL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, stdtrit  # scipy.stats takes a second to import


@dataclass(frozen=True)
class Exponent:
    """Slope of log(quantity) against log(width) (equation 16)."""

    slope: float
    """The power of the width"""
    low: float
    """Lower end of its 95 % interval"""
    high: float
    """Upper end"""

    def __str__(self) -> str:
        return f"{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def moments(gram: np.ndarray, known2: float) -> tuple[float, float, float]:
    """(deviation^2, variance, bias^2) of E networks; bias^2 is the U-statistic, less the squared error of the limit."""
    e, trace, total = len(gram), float(np.trace(gram)), float(gram.sum())
    return trace / e, (trace - total / e) / (e - 1), (total - trace) / (e * (e - 1)) - known2


def left_out_moments(gram: np.ndarray, known2: float) -> np.ndarray:
    """(3, E) `moments` with one seed left out at a time; nan below three seeds"""
    e = len(gram)
    if e < 3:
        return np.full((3, e), math.nan)
    trace, total = np.trace(gram) - np.diag(gram), gram.sum() - 2 * gram.sum(1) + np.diag(gram)
    bias2 = (total - trace) / ((e - 1) * (e - 2)) - known2
    return np.stack([trace / (e - 1), (trace - total / (e - 1)) / (e - 2), bias2])


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Standard errors (..) of statistics from their values (.., E) with one seed left out: on average not below the true ones."""
    e = left_out.shape[-1]
    return np.sqrt((e - 1) / e * ((left_out - left_out.mean(-1, keepdims=True)) ** 2).sum(-1))


def left_out_means(values: np.ndarray) -> np.ndarray:
    """(E,) means of values (E,) with one left out at a time; nan below three"""
    e = len(values)
    return (values.sum() - values) / (e - 1) if e >= 3 else np.full(e, math.nan)


def exponent_of(
    widths: np.ndarray, values: Sequence[float] | np.ndarray, left_out: Sequence[np.ndarray], power: float
) -> Exponent | None:
    """Slope of power * log(value) on log(width), widths weighted by their seeds, with its 95 % interval (equation 16).

    left_out: for each width, the value with one seed left out at a time (E,), nan for fewer than three seeds. None without three widths
    with positive values.
    """
    if len(widths) < 3 or min(values) <= 0:
        return None
    y, seeds = power * np.log(np.array(values)), np.array([len(row) for row in left_out], dtype=float)
    usable = [power * np.log(row) for row in left_out if np.all(row > 0)]
    squares = sum(len(row) * (len(row) - 1) * jackknife_error(row) ** 2 for row in usable)
    return _fit(np.log(widths), y, seeds, float(squares), sum(len(row) - 1 for row in usable))


def doubling_exponent(small: np.ndarray, large: np.ndarray) -> Exponent:
    """Power of a size with which the root of mean squares (E,) goes from this size to twice as much, with its 95 % interval (equation 91).

    nan where a mean is 0 or unknown; the interval alone below three seeds.
    """
    means = np.array([small.mean(), large.mean()])
    if not (np.isfinite(means) & (means > 0)).all():
        return Exponent(math.nan, math.nan, math.nan)
    power = 0.5 / math.log(2)
    slope = power * float(np.log(means[1] / means[0]))
    parts = [(jackknife_error(power * np.log(left_out_means(own))) ** 2, len(own) - 1) for own in (small, large)]
    half = float(_half_width(parts))
    return Exponent(slope, slope - half, slope + half)


def bias_exponent(widths: np.ndarray, bias2: np.ndarray, errors: np.ndarray, seeds: np.ndarray) -> Exponent | None:
    """Slope of log |bias| on log(width), with its 95 % interval, from bias^2 and its jackknife errors, widths weighted by these."""
    if len(widths) < 3 or min(bias2) <= 0 or not (errors > 0).all():
        return None
    freedom = int(seeds.min()) - 1  # each width has its own error, and the least known may weigh most
    return _fit(np.log(widths), 0.5 * np.log(bias2), (errors / (2 * bias2)) ** -2, float(freedom), freedom)


def _fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, squares: float, freedom: int) -> Exponent:
    """The regression of y on x where y has the variance s^2 / weights, and s^2 is known from `squares` / `freedom` of the seeds.

    Where points scatter more than that about the line, the excess is added, with the degrees of freedom of the line; both make up
    Student's t by Satterthwaite's rule. With freedom 0 the scatter alone tells.
    """
    centred = x - np.average(x, weights=weights)
    norm = float(weights @ centred**2)
    slope = float((weights * centred) @ y) / norm
    rest = len(x) - 2
    scatter = float(weights @ (y - np.average(y, weights=weights) - slope * centred) ** 2) / rest
    within = squares / freedom if freedom else 0.0
    excess = max(0.0, scatter - within)
    total = within + excess
    degrees = total**2 / (within**2 / max(freedom, 1) + excess**2 / rest) if total else 1.0
    half = float(stdtrit(degrees, 0.975)) * math.sqrt(total / norm)
    return Exponent(slope, slope - half, slope + half)


def gaussian_kl(mean: np.ndarray, variance: np.ndarray, mean2: np.ndarray, variance2: np.ndarray) -> np.ndarray:
    """KL( N(mean, variance) || N(mean2, variance2) ), elementwise; infinite where just one of the variances is zero (equation 73)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance / variance2
        kl = 0.5 * (ratio - 1 - np.log(ratio) + (mean - mean2) ** 2 / variance2)
    same = (variance == variance2) & (mean == mean2)
    return np.where(same, 0.0, np.where((variance == 0) | (variance2 == 0), np.inf, kl))


def gaussian_kl_floor(samples: int, samples2: int) -> float:
    """The expected KL between fits to that many draws of one and the same Gaussian, variances with the divisor n - 1 (equation 73).

    Infinite for samples2 below 4 or samples below 2.
    """
    if samples < 2 or samples2 < 4:
        return math.inf
    n, m = samples - 1, samples2 - 1
    logs = digamma(m / 2) - math.log(m / 2) - digamma(n / 2) + math.log(n / 2)  # E log of variance2 / variance
    return 0.5 * (logs + m / (m - 2) * (1 + 1 / samples + 1 / samples2) - 1)


def gaussian_kl_interval(draws: np.ndarray, draws2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis of the KL between Gaussian fits to draws (E, .., Q) and draws2 (E2, .., Q): estimate, low, high (..).

    The value less its jackknife bias, and a 95 % interval (equation 73); low is at least 0. Where leaving one draw out leaves no fit
    (fewer than three draws, or equal ones) the estimate is the value itself, and low and high are nan; all are infinite where it is.
    """
    sets = (draws, draws2)
    fits = [(d.mean(0), d.var(0, ddof=1) if len(d) > 1 else np.zeros(d.shape[1:])) for d in sets]
    value = gaussian_kl(*fits[0], *fits[1]).mean(-1)
    bias, parts = np.zeros_like(value), []
    with np.errstate(invalid="ignore"):  # an infinite KL among those with one left out has no error
        for i, given in enumerate(sets):
            e = len(given)
            pairs = ([*fits[:i], fit, *fits[i + 1 :]] for fit in _left_out_fits(given, *fits[i]))
            left_out = np.stack([gaussian_kl(*first, *second).mean(-1) for first, second in pairs], -1)
            bias = bias + (e - 1) * (left_out.mean(-1) - value)
            parts.append((jackknife_error(left_out) ** 2, e - 1))
        half = _half_width(parts)
        with np.errstate(over="ignore", divide="ignore"):
            high = np.where(value > 0, value * np.exp(half / value), half)
        estimate, low = value - bias, (value - bias - half).clip(min=0)
    known = np.isfinite(low) & np.isfinite(value)
    unknown = np.where(np.isfinite(value), math.nan, value)
    return np.where(known, estimate, value), np.where(known, low, unknown), np.where(known, high, unknown)


def _left_out_fits(
    draws: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Means and variances of draws with one left out at a time; variances nan below three draws"""
    e = len(draws)
    for row in draws:
        if e < 3:
            yield mean, np.full_like(mean, math.nan)
        else:
            apart = row - mean
            rest = ((e - 1) * variance - apart**2 * (e / (e - 1))) / (e - 2)
            yield mean - apart / (e - 1), rest.clip(min=0)


def _half_width(parts: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Half a 95 % interval from independent squared errors and their degrees of freedom: Student's t by Satterthwaite's rule"""
    total = np.sum([square for square, _ in parts], axis=0)
    degrees = total**2 / np.sum([square**2 / max(freedom, 1) for square, freedom in parts], axis=0)
    return np.where(total > 0, stdtrit(degrees, 0.975) * np.sqrt(total), total)
