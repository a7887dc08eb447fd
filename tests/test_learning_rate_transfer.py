"""learning_rate_transfer: losses against runs asked one by one, best rates against known curves, files and pictures."""

import math
from contextlib import nullcontext
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from scipy.stats import t as student_t
from torch import nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, TangentKernelLimit, WassersteinFlow, learning_rate_transfer

matplotlib.use("Agg")
DATA = mf.digits(n_train=6, n_test=4)
RATES = (0.2, 0.8, 3.2)


def net(n):
    return nn.Sequential(nn.Linear(64, n, bias=False), nn.Tanh(), nn.Linear(n, 1, bias=False))


def problem(scaling=None, network=net, **training):
    return mf.Problem(DATA, network, scaling or mf.mean_field(1.0), mf.Training(**{"steps": 5} | training))


def at(asked, rate):
    return replace(asked, training=replace(asked.training, learning_rate=rate))


def report(final, rates=(1.0, 2.0, 4.0, 8.0, 16.0), widths=None, limit=None):
    final = np.asarray(final, dtype=float)
    errors = None if limit is None else np.full((2, len(rates)), math.nan)
    widths = widths or tuple(2**i for i in range(len(final)))
    both = None if limit is None else np.stack([limit, limit])
    return mf.TransferReport(np.array(rates), widths, final, final, both, errors)


def valley(rates, best, bend=1.0, bottom=0.01):
    """Losses whose logarithm is a parabola in log(rate)"""
    return bottom * np.exp(bend * np.log(np.asarray(rates) / best) ** 2)


@pytest.mark.parametrize("test", [False, True])
def test_losses_are_those_of_runs_asked_one_by_one(test):
    asked, limit = problem(), CausalDMFT(128, groups=2)
    found = learning_rate_transfer(asked, RATES[::-1], (8, 4), 3, limit, test=test)
    assert found.widths == (4, 8)
    np.testing.assert_array_equal(found.rates, RATES)
    for k, rate in enumerate(RATES):
        one = limit(at(asked, rate))
        losses = one.test_loss if test else one.loss
        assert found.limit[:, k].tolist() == [losses[-1], losses.min()]
        errors = one.standard_errors["test_loss" if test else "loss"]
        assert found.limit_errors[:, k].tolist() == [errors[-1], errors[losses.argmin()]]
        for i, width in enumerate(found.widths):
            for e, run in enumerate(FiniteWidth(width).ensemble(at(asked, rate), 3)):
                losses = run.test_loss if test else run.loss
                assert found.final[i, k, e] == losses[-1]
                assert found.best[i, k, e] == losses.min()
    assert f"samples {'4 test' if test else '6 training'}" in str(found)


def test_the_default_limit_is_that_of_the_scaling():
    tiny = {"rates": RATES, "widths": (4,), "seeds": 1}
    asked = problem(steps=2)
    right = CausalDMFT(groups=2)(at(asked, RATES[0]))
    assert learning_rate_transfer(asked, **tiny).limit[0, 0] == pytest.approx(float(right.loss[-1]), rel=1e-5)
    lazy = problem(mf.ntk(), mf.Network(), steps=2)
    assert learning_rate_transfer(lazy, **tiny).limit is None
    drawn = learning_rate_transfer(lazy, **tiny, limit=TangentKernelLimit())
    assert drawn.limit[0, 0] == float(TangentKernelLimit()(at(lazy, RATES[0])).loss[-1])


def test_the_best_rate_falls_like_1_over_the_width_in_the_standard_parameterization_and_stays_in_mean_field():
    """Perceptrons of 16, 64 and 256 neurons, as multiples of 16 and as widths: largest stable rates go like 1/N and like 1"""
    rates, found = [0.003 * 2**k for k in range(11)], {}
    for scaling, widths in ((mf.naive_standard(16), (1, 4, 16)), (mf.mean_field(1.0), (16, 64, 256))):
        asked = mf.Problem(mf.digits(n_train=8), mf.Network(2, "tanh"), scaling, mf.Training(steps=8))
        limit = CausalDMFT(256, groups=2) if scaling == mf.mean_field(1.0) else None
        early = (
            pytest.warns(RuntimeWarning, match="the limit has no result at the learning rate 3.07")
            if limit
            else nullcontext()
        )
        with early:  # 256 samples are few for what blows up
            report = learning_rate_transfer(asked, rates, widths, 4, limit, FiniteWidth(dtype="float32"))
        best = report.best_rates()
        found[scaling.name] = np.polyfit(np.log(widths), np.log([best[n].rate for n in widths]), 1)[0]
        if limit is None:
            assert report.limit is None
            assert "scaling naive_standard, N in units of 16" in str(report)
    assert found["naive_standard"] == pytest.approx(-1, abs=0.2)
    assert found["mean_field"] == pytest.approx(0, abs=0.2)


def test_losses_in_a_standard_parameterization_are_those_of_its_networks():
    asked = problem(mf.improved_standard(4))
    found = learning_rate_transfer(asked, (0.01, 0.02, 0.04), (1, 2), 2)
    for k, rate in enumerate(found.rates):
        for i, multiple in enumerate((1, 2)):
            runs = FiniteWidth(multiple).ensemble(at(asked, float(rate)), 2)
            assert found.final[i, k].tolist() == [float(run.loss[-1]) for run in runs]


def test_diverged_runs_are_told_and_end_nothing():
    """A linear network of one output at a rate of 1e5, against which no other one is measured"""
    asked = problem(network=lambda n: nn.Sequential(nn.Linear(64, n), nn.Linear(n, 1)), steps=40)
    found = learning_rate_transfer(asked, (1e-3, 1e-2, 1e-1, 1e5), (4, 8), 2, CausalDMFT(128))
    assert np.isinf(found.final[:, -1]).all()
    assert np.isinf(found.limit[:, -1]).all()
    assert np.isfinite(found.final[:, :-1]).all()
    assert found.diverged().tolist() == [[0, 0, 0, 2]] * 2
    assert "2 of 2 diverged" in str(found)
    assert str(found).count(" diverged") == 3


@pytest.mark.parametrize("rates", [(1.0, 2.0, 4.0, 8.0, 16.0), (1.0, 2.5, 3.0, 9.0, 11.0)])
def test_the_best_rate_of_a_parabola_is_found_exactly(rates):
    found = report([valley(rates, best)[:, None] for best in (2.6, 3.0)], rates).best_rates()
    for one, right in zip(found.values(), (2.6, 3.0), strict=True):
        assert one.rate == pytest.approx(right, rel=1e-12)
        assert one.enclosed
        assert math.isnan(one.low)


def test_intervals_are_student_s_of_the_jackknife():
    """Parabolas of one vertex for each seed in a geometric mean, whose logarithms add: the mean's error is that of the vertices"""
    rates = (1.0, 2.0, 4.0, 8.0, 16.0)
    vertices = np.exp(np.log(3.0) + np.array([-1.0, 0.5, 0.3, 0.2]) * 1e-4)
    one = report([np.array([valley(rates, v) for v in vertices]).T], rates).best_rates()[1]
    logs = np.log(vertices)
    half = student_t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert np.log(one.rate) == pytest.approx(logs.mean(), abs=1e-6)
    assert np.log([one.low, one.high]) == pytest.approx(logs.mean() + np.array([-half, half]), rel=1e-3)


def test_intervals_hold_the_best_rate_of_many_seeds_in_95_of_100():
    """400 studies of 6 seeds whose losses scatter by 10 %"""
    rates, draw = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.random.default_rng(0)
    every = valley(rates, 3.0)[:, None] * np.exp(0.1 * draw.standard_normal((400, 5, 6)))
    found = report(every, rates, tuple(range(1, 401))).best_rates().values()
    held = sum(one.low < 3.0 < one.high for one in found)
    assert abs(held - 380) < 4 * math.sqrt(400 * 0.95 * 0.05)


def test_a_best_rate_that_is_not_enclosed_has_no_end():
    falling, rising = np.array([5.0, 4, 3, 2, 1]), np.array([1.0, 2, 3, 4, 5])
    walled = np.array([5.0, 4, 1, math.inf, math.nan])
    losses = np.stack([falling, rising, walled, np.full(5, math.inf)])[..., None]
    last, first, before, none = report(losses).best_rates().values()
    assert (last.rate, last.low, last.high, last.enclosed) == (pytest.approx(16.0), 8.0, math.inf, False)
    assert (first.rate, first.low, first.high, first.enclosed) == (pytest.approx(1.0), 0.0, 2.0, False)
    assert (before.rate, before.low, before.high, before.enclosed) == (pytest.approx(4.0), 2.0, 8.0, False)
    assert math.isnan(none.rate)
    assert "none: every rate diverged" in str(report(losses))
    assert report(losses).drift() is None


def test_the_drift_is_the_power_of_the_best_rates():
    rates, widths = 2.0 ** np.arange(-3, 6), (4, 8, 16, 32)
    shifted = np.array([valley(rates, 8.0 * n**-0.5)[:, None] * np.ones(3) for n in widths])
    assert report(shifted, rates, widths).drift().slope == pytest.approx(-0.5, abs=1e-12)
    assert report(shifted[:2], rates, widths[:2]).drift() is None


def test_the_excess_is_the_loss_at_the_limit_s_best_rate():
    losses = np.array([[3.0, 2, 1], [1, 2, 3], [9, math.inf, 3]])[..., None]
    found = report(losses, (1.0, 2.0, 4.0), limit=np.array([3.0, 1, 2]))
    assert found.excess().tolist() == [2.0, 2.0, math.inf]
    assert report(losses, (1.0, 2.0, 4.0)).excess().tolist() == [1.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": (0.1, 0.2, 0.2)}, "needs at least 3 that differ: received"),
        ({"rates": (0.1, 0.2, -1.0)}, "rates must be"),
        ({"seeds": ()}, "seeds"),
        ({"widths": (0,)}, "widths"),
        ({"limit": WassersteinFlow()}, "takes perceptrons"),
        ({"limit": CausalDMFT(4)}, "too few for 10 data points"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(monkeypatch, arguments, message):
    monkeypatch.setattr(FiniteWidth, "ensemble", None)
    with pytest.raises(ValueError, match=message):
        learning_rate_transfer(**{"problem": problem(), "rates": RATES, "widths": (4,)} | arguments)


def test_test_losses_need_test_samples(monkeypatch):
    monkeypatch.setattr(FiniteWidth, "ensemble", None)
    without = replace(problem(), data=mf.digits(n_train=6, n_test=0))
    with pytest.raises(ValueError, match="test=True needs test samples"):
        learning_rate_transfer(without, RATES, (4,), test=True)
    with pytest.raises(ValueError, match="received steps=0"):
        learning_rate_transfer(problem(steps=0), RATES, (4,))


@pytest.mark.parametrize("limit", [None, np.array([3.0, 1, 2, 4, math.inf])])
def test_files_and_pictures_keep_what_diverged(tmp_path, limit):
    losses = np.array([[3.0, 2, 1, 5, math.inf], [1, 2, 3, math.nan, 9]])[..., None] * np.array([1.0, 1.1, 0.9])
    asked = report(losses, limit=limit)
    found = mf.load(mf.save(asked, tmp_path / "transfer.nc"))
    assert str(found) == str(asked)
    for name in ("rates", "final", "best", "limit", "limit_errors"):
        assert (getattr(found, name) is None) == (getattr(asked, name) is None)
        np.testing.assert_array_equal(getattr(found, name), getattr(asked, name))
    panel = mf.plot.learning_rates(found)
    labels = [line.get_label() for line in panel.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["$N = 1$", "$N = 2$"] + ["limit"] * (limit is not None) + ["best rate", "blew up"]
    crosses = [line.get_xdata().tolist() for line in panel.get_lines() if line.get_marker() == "x"]
    assert crosses == [[16.0], []] + [[16.0]] * (limit is not None) + [[]]  # the last is that of the legend
    mf.plot.save(mf.plot.learning_rates(found, best=True), tmp_path / "transfer.png")


def test_a_mean_field_network_s_best_rate_transfers_and_another_s_does_not():
    """Two-layer linear networks, one sample: in mean field the limit's own; with readouts' rates of order N the stable rate falls as 1/N"""
    rates = [0.4 * 2.0**k for k in range(-6, 3)]
    one = mf.Dataset([[1.0]], [[1.0]])
    asked = mf.Problem(one, mf.Network(1, "linear"), mf.mean_field(1.0), mf.Training(steps=4))
    widths = (64, 256, 1024)
    transfers = learning_rate_transfer(asked, rates, widths, 8, CausalDMFT())
    assert np.abs(transfers.excess()[1:] - 1).max() < 0.5
    limit = transfers.limit_rate().rate
    moves = learning_rate_transfer(replace(asked, scaling=mf.default(64)), rates, widths, 8)
    best, other = (list(r.best_rates().values()) for r in (transfers, moves))
    assert abs(np.log(best[-1].rate / limit)) < 0.5 * np.log(2)  # within half a step of the rates
    assert other[-1].rate < other[0].rate / 4
