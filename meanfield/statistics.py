"""Estimates from the Gram matrix of deviations, M_ee' = <o_e - r, o_e' - r> / |r|^2 over E seeds (equations 13 to 16), and Gaussian KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma


@dataclass(frozen=True)
class Exponent:
    """Slope of log(quantity) against log(width), with its 95 % bootstrap interval."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def moments(gram: np.ndarray, known2: float) -> tuple[float, float, float]:
    """(deviation^2, variance, bias^2) of E networks; bias^2 is the U-statistic, less the squared error of the limit."""
    e, trace, total = len(gram), float(np.trace(gram)), float(gram.sum())
    return trace / e, (trace - total / e) / (e - 1), (total - trace) / (e * (e - 1)) - known2


def resampled_moments(gram: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """(draws, 2) deviation^2 and variance of networks drawn with replacement, from how often each one is drawn"""
    e = len(gram)
    counts = rng.multinomial(e, np.full(e, 1 / e), size=draws).astype(float)
    trace, total = counts @ np.diag(gram), ((counts @ gram) * counts).sum(1)
    return np.stack([trace / e, (trace - total / e) / (e - 1)], 1)


def jackknife_errors(gram: np.ndarray, known2: float) -> np.ndarray:
    """(3,) standard errors of `moments`, leaving one seed out at a time"""
    e = len(gram)
    if e < 3:
        return np.full(3, math.nan)
    trace, total = np.trace(gram) - np.diag(gram), gram.sum() - 2 * gram.sum(1) + np.diag(gram)
    bias2 = (total - trace) / ((e - 1) * (e - 2)) - known2
    left = np.stack([trace / (e - 1), (trace - total / (e - 1)) / (e - 2), bias2])
    return np.sqrt((e - 1) / e * ((left - left.mean(1, keepdims=True)) ** 2).sum(1))


def exponents_of(
    widths: np.ndarray, values: Sequence[float], draws: Sequence[np.ndarray], name: str, power: float
) -> dict[str, Exponent]:
    """Weighted regression of power * log(value) on log(width); the interval from the bootstrap draws."""
    if len(widths) < 3 or min(values) <= 0:
        return {}
    x, y = np.log(widths), power * np.log(np.array(values))
    table = np.array(draws)  # (widths, draws); a draw of one seed E times over has no variance and tells nothing
    usable = (table > 1e-9 * np.array(values)[:, None]).all(0)
    if usable.sum() < 10:
        return {}
    heights = power * np.log(table[:, usable])
    weights = np.maximum(heights.std(1), 1e-12) ** -2
    centred = x - np.average(x, weights=weights)

    pull = weights * centred / (weights * centred**2).sum()
    low, high = np.percentile(pull @ heights, [2.5, 97.5])
    return {name: Exponent(float(pull @ y), float(low), float(high))}


def gaussian_kl(mean: np.ndarray, variance: np.ndarray, mean2: np.ndarray, variance2: np.ndarray) -> np.ndarray:
    """KL( N(mean, variance) || N(mean2, variance2) ), elementwise; infinite where just one of the variances is zero (equation 73)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance / variance2
        found = 0.5 * (ratio - 1 - np.log(ratio) + (mean - mean2) ** 2 / variance2)
    same = (variance == variance2) & (mean == mean2)
    return np.where(same, 0.0, np.where((variance == 0) | (variance2 == 0), np.inf, found))


def gaussian_kl_floor(samples: int, samples2: int) -> float:
    """The expected KL between fits to that many draws of one and the same Gaussian, variances with the divisor n - 1 (equation 73).

    Infinite for samples2 below 4 or samples below 2.
    """
    if samples < 2 or samples2 < 4:
        return math.inf
    n, m = samples - 1, samples2 - 1
    logs = digamma(m / 2) - math.log(m / 2) - digamma(n / 2) + math.log(n / 2)  # E log of variance2 / variance
    return 0.5 * (logs + m / (m - 2) * (1 + 1 / samples + 1 / samples2) - 1)


def gaussian_kl_bootstrap(
    draws: np.ndarray, draws2: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis of the KL between Gaussian fits to draws (E, .., Q) and draws2 (E2, .., Q): estimate, low, high (..).

    The plug-in value less its bias as the bootstrap over seeds shows it, and the basic 95 % bootstrap interval; bounds are at least 0.
    """

    def fits(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre, n = values.mean(0), len(values)
        flat = (values - centre).reshape(n, -1)
        first, second = counts @ flat / n, counts @ flat**2 / n
        shape = (len(counts), *values.shape[1:])
        return first.reshape(shape) + centre, ((second - first**2).clip(min=0) * n / max(n - 1, 1)).reshape(shape)

    def resampled(n: int) -> np.ndarray:
        return np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=count)]).astype(float)

    found = gaussian_kl(*fits(draws, resampled(len(draws))), *fits(draws2, resampled(len(draws2)))).mean(-1)
    plug_in, others = found[0], found[1:]
    if not np.isfinite(plug_in).all():
        return plug_in, plug_in, plug_in
    others = others[
        np.isfinite(others).all(axis=tuple(range(1, others.ndim)))
    ]  # few seeds: a resample may be one seed throughout
    if not len(others):
        return plug_in, np.zeros_like(plug_in), np.full_like(plug_in, np.inf)
    low, high = 2 * plug_in - np.percentile(others, [97.5, 2.5], axis=0)
    return 2 * plug_in - others.mean(0), low.clip(min=0), high.clip(min=0)
