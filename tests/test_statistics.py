"""Intervals and errors on synthetic networks with known powers: how often they hold the truth, and how wide they are."""

import numpy as np
import pytest

from meanfield.statistics import bias_exponent, exponent_of, jackknife_error, left_out_means, left_out_moments, moments

REPETITIONS = 250
OUTPUTS = 6


def noise(kind, rng, seeds):
    """(seeds, outputs) of unit variance about 0; "heavy": each seed has a size of its own, of log-normal law (kurtosis 8.2)"""
    z = rng.standard_normal((seeds, OUTPUTS))
    return z if kind == "gauss" else z * np.exp(0.5 * rng.standard_normal((seeds, 1)) - 0.25)


def fitted(kind, seeds, rng, bias=0.0):
    """Exponents from networks bias / N + noise / sqrt(N)"""
    widths = 64 * 2.0 ** np.arange(len(seeds))
    apart = [noise(kind, rng, e) / n**0.5 + bias / n for n, e in zip(widths, seeds, strict=True)]
    grams = [a @ a.T for a in apart]
    left_out = [left_out_moments(gram, 0.0) for gram in grams]
    table = np.array([moments(gram, 0.0) for gram in grams])
    distances = [(a**2).sum(1) ** 0.5 for a in apart]
    errors = np.array([jackknife_error(rows[2]) for rows in left_out])
    return {
        "deviation": exponent_of(widths, table[:, 0], [rows[0] for rows in left_out], 0.5),
        "variance": exponent_of(widths, table[:, 1], [rows[1] for rows in left_out], 1.0),
        "distance": exponent_of(widths, [d.mean() for d in distances], [left_out_means(d) for d in distances], 1.0),
        "|bias|": bias_exponent(widths, table[:, 2], errors, np.array(seeds)),
    }


def coverage(found, truth):
    """Share of intervals that hold the truth, with four of its standard errors, and their median width"""
    held = np.mean([e.low <= truth <= e.high for e in found])
    return held + 4 * (0.95 * 0.05 / len(found)) ** 0.5, np.median([e.high - e.low for e in found])


@pytest.mark.parametrize("kind", ["gauss", "heavy"])
@pytest.mark.parametrize(
    "seeds", [(2,) * 3, (2,) * 6, (3,) * 3, (4,) * 5, (8,) * 3, (32,) * 4, (32, 32, 24, 12, 5, 2)], ids=str
)
def test_intervals_of_exponents_hold_the_truth_at_every_number_of_seeds(kind, seeds):
    """95 % of them, up to four standard errors of the count: an interval that held 0.90 would fail."""
    rng = np.random.default_rng(sum(seeds))
    found = [fitted(kind, seeds, rng) for _ in range(REPETITIONS)]
    for name, truth in (("deviation", -0.5), ("variance", -1.0), ("distance", -0.5)):
        held, width = coverage([f[name] for f in found], truth)
        assert held >= 0.95, (name, held)
        assert width > 0


@pytest.mark.parametrize(("seeds", "bias"), [((4,) * 3, 60.0), ((8,) * 4, 30.0), ((32,) * 4, 15.0)], ids=str)
def test_intervals_of_the_bias_hold_the_truth_where_it_is_seen_at_every_width(seeds, bias):
    rng = np.random.default_rng(sum(seeds))
    for kind in ("gauss", "heavy"):
        held, width = coverage([fitted(kind, seeds, rng, bias)["|bias|"] for _ in range(REPETITIONS)], -1.0)
        assert held >= 0.95
        assert width < 0.6


def test_intervals_are_no_wider_than_they_must_be():
    """Many seeds: within a quarter of 2 x 1.96 standard deviations of the slope itself; two seeds and six widths: t(4) of them."""
    rng = np.random.default_rng(0)
    for seeds, name, most in (
        ((32,) * 4, "variance", 1.25),
        ((32,) * 3, "deviation", 1.25),
        ((2,) * 6, "deviation", 2.78 / 1.96),
    ):
        found = [fitted("gauss", seeds, rng)[name] for _ in range(REPETITIONS)]
        ideal = 2 * 1.96 * np.std([e.slope for e in found])
        assert np.median([e.high - e.low for e in found]) < most * ideal


@pytest.mark.parametrize("seeds", [(2,) * 6, (8,) * 5, (32,) * 6], ids=str)
def test_points_that_scatter_more_than_their_errors_widen_the_interval(seeds):
    """A size of its own at every width, with a deviation of 0.5 in its log: intervals from the seeds alone would hold a fifth."""
    rng, widths, held = np.random.default_rng(1), 64 * 2.0 ** np.arange(len(seeds)), []
    for _ in range(REPETITIONS):
        grown = [
            noise("gauss", rng, e) * np.exp(0.5 * rng.standard_normal()) / n**0.5
            for n, e in zip(widths, seeds, strict=True)
        ]
        squares = [(a**2).sum(1) for a in grown]
        e = exponent_of(widths, [q.mean() for q in squares], [left_out_means(q) for q in squares], 0.5)
        held.append(e.low <= -0.5 <= e.high)
    assert np.mean(held) > 0.88


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
