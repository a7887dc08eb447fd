"""Which limit stands for a network: the KL between Gaussian fits, its bias and interval, and the comparison as a whole."""

from dataclasses import replace

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.scaling import ic_mean_field
from meanfield.statistics import gaussian_kl, gaussian_kl_bootstrap, gaussian_kl_floor
from solvers import FiniteWidth, WassersteinFlow
from solvers.proxy_comparison import Proxy, five_limits, proxy_comparison


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


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_the_estimate_is_unbiased_and_the_interval_covers(shift):
    """One-sided truth: KL(N(shift, 1) || N(0, 1)) = shift^2 / 2; 150 repetitions of 60 against 80 draws."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(150):
        x, y = rng.normal(shift, 1, (60, 1, 1)), rng.normal(0, 1, (80, 1, 1))
        found.append([float(v[0]) for v in gaussian_kl_bootstrap(x, y, rng, 100)])
    estimate, low, high = np.array(found).T
    true = shift**2 / 2
    assert estimate.mean() == pytest.approx(true, abs=4 * estimate.std() / np.sqrt(150) + 0.003)
    assert ((low <= true) & (true <= high)).mean() > 0.85


def test_the_network_itself_is_no_further_than_the_floor():
    """Other seeds of the reference width, in any scaling: KL 0 within its interval, and a bent scale is seen."""
    asked = problem()
    itself = {name: Proxy(name, FiniteWidth(16, snapshots=())) for name in ("ntk", "default", "ic_mean_field")}
    report = proxy_comparison(asked, 16, itself, seeds=range(60), limit_seeds=range(100, 150), bootstrap=50)
    assert np.all(report.low <= 0.02)
    assert np.abs(report.kl).max() < 0.1
    np.testing.assert_allclose(report.distance, report.distance[0] * np.ones((3, 1)), rtol=1e-12)


def test_all_five_limits_and_what_the_report_says():
    report = proxy_comparison(problem(), 16, seeds=40, limit_seeds=12, bootstrap=50)
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


def test_a_wide_network_may_stand_for_its_limit():
    """Outputs that grow with the width are taken at the scale of the reference width."""
    asked = problem(steps=2)
    pair = {
        "wide": Proxy("default", FiniteWidth(4096, snapshots=(), dtype="float32")),
        "limit": five_limits()["default"],
    }
    report = proxy_comparison(asked, 16, pair, seeds=40, limit_seeds=12, bootstrap=20)
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
    report = proxy_comparison(problem(steps=2), 8, ("ntk", "mean_field"), seeds=8, limit_seeds=6, bootstrap=20)
    left, right = mf.plot.proxy_comparison(report)
    assert len(left.lines) == 2  # the NTK limit and the floor
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["ntk", "mean-field (no KL: deterministic)"]
    np.testing.assert_array_equal(right.lines[1].get_ydata(), report.distance[1])
    matplotlib.pyplot.close("all")
