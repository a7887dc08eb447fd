"""Intervals and errors on synthetic networks with known powers: how often they hold the truth, and how wide they are."""

import numpy as np
import pytest

from meanfield.comparison.statistics import exponent_of, jackknife_error, left_out_moments, moments
from tests.accuracy.intervals import LADDER, coverage, fitted, noise, noise_of_share

REPETITIONS = 120
THOROUGH = pytest.param(2000, marks=pytest.mark.slow)


@pytest.mark.parametrize("repetitions", [REPETITIONS, THOROUGH])
@pytest.mark.parametrize("kind", ["gauss", "heavy"])
@pytest.mark.parametrize("seeds", [(2,) * 3, (2,) * 6, (3,) * 3, (4,) * 5, (8,) * 3, (32,) * 4, LADDER], ids=str)
def test_intervals_of_exponents_hold_the_truth_at_every_number_of_seeds(kind, seeds, repetitions):
    """95 % of them, up to four standard errors of the count: 0.87 would fail, among 2000 repetitions 0.93."""
    rng = np.random.default_rng(sum(seeds))
    found = [fitted(kind, seeds, rng) for _ in range(repetitions)]
    for name, truth in (("deviation", -0.5), ("variance", -1.0), ("distance", -0.5)):
        held, width = coverage([f[name] for f in found], truth)
        assert held + noise_of_share(repetitions) >= 0.95, (name, held)
        assert width > 0


@pytest.mark.parametrize("repetitions", [REPETITIONS, THOROUGH])
@pytest.mark.parametrize(("seeds", "bias"), [((4,) * 3, 60.0), ((8,) * 4, 30.0), ((32,) * 4, 15.0)], ids=str)
def test_intervals_of_the_bias_hold_the_truth_where_it_is_seen_at_every_width(seeds, bias, repetitions):
    rng = np.random.default_rng(sum(seeds))
    for kind in ("gauss", "heavy"):
        held, width = coverage([fitted(kind, seeds, rng, bias)["|bias|"] for _ in range(repetitions)], -1.0)
        assert held + noise_of_share(repetitions) >= 0.95
        assert width < 0.6


def test_intervals_are_no_wider_than_they_must_be():
    """Many seeds: within a quarter of 2 x 1.96 standard deviations of the slope itself; two seeds and six widths: t(4) of them.

    The standard deviation of R slopes is known to (2 R)^-1/2 of itself.
    """
    rng = np.random.default_rng(0)
    for seeds, name, most in (
        ((32,) * 4, "variance", 1.25),
        ((32,) * 3, "deviation", 1.25),
        ((2,) * 6, "deviation", 2.78 / 1.96),
    ):
        found = [fitted("gauss", seeds, rng)[name] for _ in range(2 * REPETITIONS)]
        ideal = 2 * 1.96 * np.std([e.slope for e in found])
        assert np.median([e.high - e.low for e in found]) < most * ideal * (1 + 4 * (4 * REPETITIONS) ** -0.5)


@pytest.mark.parametrize("seeds", [(2,) * 6, (8,) * 5, (32,) * 6], ids=str)
def test_points_that_scatter_more_than_their_errors_widen_the_interval(seeds):
    """A size of its own at every width, with a deviation of 0.5 in its log: intervals from the seeds alone would hold a fifth."""
    rng = np.random.default_rng(1)
    held, _ = coverage([fitted("gauss", seeds, rng, scatter=0.5)["deviation"] for _ in range(REPETITIONS)], -0.5)
    assert held + noise_of_share(REPETITIONS) > 0.92


@pytest.mark.parametrize("seeds", [3, 4, 8, 32])
def test_jackknife_errors_are_not_below_the_true_spread(seeds):
    """Mean square of the error against the variance of the estimate over 1000 repetitions; at 32 seeds they agree within a tenth."""
    rng = np.random.default_rng(seeds)
    estimates, errors = [], []
    for _ in range(1000):
        a = noise("gauss", rng, seeds) + 1.0
        gram = a @ a.T
        estimates.append(moments(gram, 0.0))
        errors.append(jackknife_error(left_out_moments(gram, 0.0)))
    ratio = np.mean(np.square(errors), 0) / np.var(estimates, 0)
    assert np.all(ratio > 1 - 4 * (2 / 1000) ** 0.5)  # the variance of 1000 numbers is known to (2/1000)^1/2
    if seeds == 32:
        assert np.all(ratio < 1.1 + 4 * (2 / 1000) ** 0.5)


def test_two_seeds_have_no_jackknife_error_and_two_widths_no_exponent():
    gram = np.eye(2)
    assert np.isnan(jackknife_error(left_out_moments(gram, 0.0))).all()
    assert exponent_of(np.array([8.0, 16.0]), [1.0, 0.5], [np.ones(4), np.ones(4)], 1.0) is None
    assert exponent_of(np.array([8.0, 16.0, 32.0]), [1.0, 0.5, 0.0], [np.ones(4)] * 3, 1.0) is None


def test_an_exact_power_law_has_an_exact_interval():
    found = exponent_of(np.array([8.0, 16.0, 32.0]), [1.0, 0.5, 0.25], [np.full(4, v) for v in (1.0, 0.5, 0.25)], 1.0)
    assert found.slope == pytest.approx(-1, abs=1e-12)
    assert found.high - found.low < 1e-6
