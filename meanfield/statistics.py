"""Estimates from the Gram matrix of deviations, M_ee' = <o_e - r, o_e' - r> / |r|^2 over E seeds (equations 13 to 16)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
