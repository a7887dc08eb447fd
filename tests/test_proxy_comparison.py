"""Which limit stands for a network: the KL between Gaussian fits, its bias and interval, and the comparison as a whole."""

from dataclasses import replace

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

import meanfield as mf
from meanfield.comparison.statistics import gaussian_kl, gaussian_kl_floor, gaussian_kl_interval
from meanfield.scaling.scaling import ic_mean_field
from solvers import Estimate, FiniteWidth, WassersteinFlow
from solvers.studies.proxy_comparison import Proxy, five_limits, proxy_comparison, proxy_cost
from tests.accuracy.intervals import kl_of, runs_and_networks

REPETITIONS = 400


def problem(steps=4, n_test=6):
    data = mf.digits((0, 1), 8, n_test)
    return mf.Problem(data, mf.Network(1, "tanh"), mf.mean_field(1.0), mf.Training(0.5, steps), "logistic")


def test_gaussian_kl_is_that_of_torch_and_known_at_its_edges():
    rng = np.random.default_rng(0)
    m, m2, v, v2 = rng.normal(size=5), rng.normal(size=5), rng.gamma(2, size=5), rng.gamma(2, size=5)
    normal = [
        torch.distributions.Normal(torch.from_numpy(a), torch.from_numpy(b).sqrt()) for a, b in ((m, v), (m2, v2))
    ]
    np.testing.assert_allclose(gaussian_kl(m, v, m2, v2), torch.distributions.kl_divergence(*normal), rtol=1e-12)
    zero, one = np.zeros(1), np.ones(1)
    assert gaussian_kl(zero, zero, zero, one) == np.inf
    assert gaussian_kl(zero, one, zero, zero) == np.inf
    assert gaussian_kl(one, zero, one, zero) == 0


def test_the_floor_is_what_draws_of_one_gaussian_show():
    """20,000 pairs of samples, within 4 standard errors"""
    rng = np.random.default_rng(1)
    for n, m in ((5, 12), (40, 20)):
        x, y = rng.normal(2, 3, (n, 20_000)), rng.normal(2, 3, (m, 20_000))
        found = gaussian_kl(x.mean(0), x.var(0, ddof=1), y.mean(0), y.var(0, ddof=1))
        assert gaussian_kl_floor(n, m) == pytest.approx(found.mean(), abs=4 * found.std() / np.sqrt(20_000))
    assert gaussian_kl_floor(10, 3) == np.inf


@pytest.mark.parametrize("kind", ["gauss", "heavy"])
@pytest.mark.parametrize(("runs", "nets"), [(3, 4), (8, 8), (12, 40), (100, 60)])
@pytest.mark.parametrize(("shift", "size"), [(0.0, 1.0), (0.3, 1.0), (1.5, 1.0), (0.0, 3.0), (0.0, 0.3)])
def test_intervals_of_the_kl_hold_the_truth(shift, size, runs, nets, kind):
    """95 % of them with Gaussian outputs, 92 % where each network has a size of its own, up to four standard errors of the count."""
    rng = np.random.default_rng(runs)
    estimate, low, high = gaussian_kl_interval(*runs_and_networks(kind, rng, runs, nets, shift, size, REPETITIONS))
    held, claim = np.mean((low <= kl_of(shift, size)) & (kl_of(shift, size) <= high)), 0.95 if kind == "gauss" else 0.92
    assert held + 4 * (claim * (1 - claim) / REPETITIONS) ** 0.5 >= claim
    if runs == 100:  # what the jackknife leaves of the bias is of order 1/60^2, times moments of 10 or so
        error = estimate.std() / np.sqrt(REPETITIONS)
        assert estimate.mean() == pytest.approx(kl_of(shift, size), abs=4 * error + 0.01 * kl_of(shift, size) + 1e-3)


def test_intervals_of_the_kl_are_no_wider_than_they_must_be():
    """A KL that is well seen, 100 against 100 draws: within a fifth of 2 x 1.96 standard deviations of the estimate itself."""
    estimate, low, high = gaussian_kl_interval(
        *runs_and_networks("gauss", np.random.default_rng(0), 100, 100, 1.5, 1.0, REPETITIONS)
    )
    assert np.median(high - low) < 1.2 * 2 * 1.96 * estimate.std()


def test_the_jackknife_leaves_each_draw_out_once():
    """Against a plain loop over the draws that are left"""
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.5, 2, (6, 1, 2)), rng.normal(0, 1, (9, 1, 2))

    def value(a, b):
        return gaussian_kl(a.mean(0), a.var(0, ddof=1), b.mean(0), b.var(0, ddof=1)).mean()

    of_x = np.array([value(np.delete(x, i, 0), y) for i in range(6)])
    of_y = np.array([value(x, np.delete(y, i, 0)) for i in range(9)])
    expected = value(x, y) - 5 * (of_x.mean() - value(x, y)) - 8 * (of_y.mean() - value(x, y))
    squares = np.array([5 * of_x.var(), 8 * of_y.var()])
    degrees = squares.sum() ** 2 / (squares**2 / [5, 8]).sum()
    half = student_t.ppf(0.975, degrees) * np.sqrt(squares.sum())
    found = [float(v[0]) for v in gaussian_kl_interval(x, y)]
    np.testing.assert_allclose(found, [expected, max(expected - half, 0), value(x, y) * np.exp(half / value(x, y))])


def test_without_an_interval_there_is_none():
    """One draw has no spread, of two none may be left out, three of which two are equal leave none; nothing random has no error."""
    rng = np.random.default_rng(4)
    y, one = rng.normal(size=(9, 2, 3)), rng.normal(size=(1, 2, 3))
    assert np.isposinf(gaussian_kl_interval(one, y)).all()
    two = np.concatenate([one, one + 1])
    for draws_of_limit in (two, np.concatenate([two, one])):
        estimate, low, high = gaussian_kl_interval(draws_of_limit, y)
        fits = draws_of_limit.mean(0), draws_of_limit.var(0, ddof=1), y.mean(0), y.var(0, ddof=1)
        np.testing.assert_allclose(estimate, gaussian_kl(*fits).mean(-1), rtol=1e-12)
        assert np.isnan([low, high]).all()
    assert np.all(np.array(gaussian_kl_interval(np.zeros((3, 2, 3)), np.zeros((4, 2, 3)))) == 0)


def test_a_report_says_why_an_interval_is_missing():
    few, enough = (str(proxy_comparison(problem(steps=1), 8, ("ntk",), 5, runs)) for runs in (2, 3))
    assert few.count("[unknown]") == len({0, 1}) + 1
    assert few.endswith("an interval needs at least three runs of the limit that differ (limit_seeds)")
    assert "unknown" not in enough


def test_the_network_itself_is_no_further_than_the_floor():
    """Other seeds of the reference width, in any scaling: KL 0 within its interval, and a bent scale is seen."""
    asked = problem()
    itself = {name: Proxy(name, FiniteWidth(16, snapshots=())) for name in ("ntk", "default", "ic_mean_field")}
    report = proxy_comparison(asked, 16, itself, seeds=range(60), limit_seeds=range(100, 150))
    assert np.all(report.low <= 0.02)
    assert np.abs(report.kl).max() < 0.1
    assert (report.kl < 0).any()  # less its bias
    assert ((report.low <= report.estimate) & (report.estimate <= report.high)).all()
    told = [cell for cell in str(report).split("  ") if "[" in cell and ", " in cell and "KL" not in cell]
    assert len(told) > 8
    assert not [cell for cell in told if cell.strip().startswith("-")]
    np.testing.assert_allclose(report.distance, report.distance[0] * np.ones((3, 1)), rtol=1e-12)


def test_all_five_limits_and_what_the_report_says():
    report = proxy_comparison(problem(), 16, seeds=40, limit_seeds=12)
    assert report.names == tuple(five_limits())
    assert report.kl.shape == report.low.shape == report.distance.shape == (5, 5)
    rows = dict(zip(report.names, range(5), strict=True))
    assert np.isinf(report.kl[rows["mean_field"]]).all()
    assert report.limit_seeds == (12, 1, 12, 12, 12)
    random = [rows[name] for name in ("ntk", "ic_mean_field", "default", "sym_default")]
    assert np.all(np.abs(report.kl[random, 0]) < 0.5)
    assert report.kl[rows["default"], 2] > report.kl[rows["ntk"], 2] + 0.5
    assert report.nearest in ("ic_mean_field", "ntk")
    assert np.isfinite(report.distance).all()
    assert report.distance[rows["mean_field"], 0] == pytest.approx(1, abs=0.02)
    assert "ic_mean_field" in str(report)
    assert np.all(report.low <= report.high)


def test_what_the_runs_of_a_limit_share_is_estimated_once(monkeypatch):
    """The covariance of f0, without which one is drawn; limits without randomness run once."""
    monkeypatch.setattr(FiniteWidth, "estimate", lambda self, asked, seeds: Estimate(0.5 * seeds, 1.0))

    def estimate(self, asked):
        return Estimate(100.0 * (self.f0 is None) + asked.training.steps, 1.0)

    monkeypatch.setattr(WassersteinFlow, "estimate", estimate)
    assert proxy_cost(problem(steps=4), 8, ["ic_mean_field"], 6, 256).seconds == 0.5 * 6 + 100 + 256 * 4
    assert proxy_cost(problem(steps=4), 8, ["mean_field"], 6, 256).seconds == 0.5 * 6 + 100 + 4


def test_a_wide_network_may_stand_for_its_limit():
    """Outputs that grow with the width are taken at the scale of the reference width."""
    asked = problem(steps=2)
    pair = {
        "wide": Proxy("default", FiniteWidth(4096, snapshots=(), dtype="float32")),
        "limit": five_limits()["default"],
    }
    report = proxy_comparison(asked, 16, pair, seeds=40, limit_seeds=12)
    np.testing.assert_allclose(report.distance[0, 1:], report.distance[1, 1:], atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seeds=3), "at least 4 seeds: received 3"),
        (dict(limits=("ntk", "muP")), "unknown limit: received 'muP'; known: default, ic_mean_field"),
        (dict(limits={"x": Proxy("mup", WassersteinFlow(8))}), "unknown scaling: received 'mup'"),
        (dict(problem=replace(problem(), scaling=ic_mean_field(frozen="added"))), "frozen='added'"),
        (dict(problem=replace(problem(), loss="squared"), limits=("default",)), "the loss 'squared' has no limit"),
        (dict(reference_width=0), "reference_width must be at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    arguments = dict(problem=problem(), reference_width=8, limits=("ntk",), seeds=5, limit_seeds=3) | change
    with pytest.raises(ValueError, match=message):
        proxy_comparison(**arguments)


def test_the_picture_leaves_out_an_infinite_kl_but_not_its_distance():
    matplotlib.use("Agg")
    report = proxy_comparison(problem(steps=2), 8, ("ntk", "mean_field"), seeds=8, limit_seeds=6)
    left, right = mf.plot.proxy_comparison(report)
    assert len(left.lines) == 2  # the NTK limit and the floor
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["ntk", "mean-field (no KL: deterministic)"]
    np.testing.assert_array_equal(right.lines[1].get_ydata(), report.distance[1])
    matplotlib.pyplot.close("all")


def test_a_report_names_the_times_of_its_records():
    """Also where there are few of them, or one"""
    asked = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 10, record_every=4), loss="logistic")
    report = proxy_comparison(asked, 4, seeds=4, limits=["ntk"])
    head = str(report).splitlines()[1].split()
    assert head == ["limit", "time", "0", "time", "0.8", "time", "1.6", "time", "2"]
    only = proxy_comparison(asked.with_steps(0), 4, seeds=4, limits=["ntk"])
    assert "time 0" in str(only)
    assert only.nearest == "ntk"
