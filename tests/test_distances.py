"""Distances with known values: translations, dilations, sorted pairs, assignments; far, tiny, equal and unequal clouds."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import meanfield as mf
from meanfield.checking import checks
from meanfield.comparison import distances

FAR = torch.full((1, 3), 1e6, dtype=torch.float64)


def cloud(points, masses=None, dtype=torch.float64):
    """The measure of one output with these points (N, 1 + D)"""
    n = len(points)
    m = torch.full((n,), 1 / n, dtype=dtype) if masses is None else masses
    return mf.ParticleMeasure(points[:, :1].to(dtype), points[:, 1:].to(dtype), m)


def normal(n, seed):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masses(n, seed):
    m = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return m / m.sum()


def assigned(x, y):
    """The distance of equally many equal masses, by scipy's assignment of costs from plain differences"""
    cost = ((x[:, None].numpy() - y[None].numpy()) ** 2).sum(2)
    return cost[linear_sum_assignment(cost)].mean() ** 0.5


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1.0, 1e150])
def test_distance_of_a_shifted_cloud_is_the_shift_at_any_scale(scale):
    x = scale * normal(200, 0)
    shift = scale * torch.tensor([0.0, 0.3, -0.4], dtype=torch.float64)
    assert mf.measure_distance(cloud(x), cloud(x + shift)) == pytest.approx(0.5 * scale, rel=1e-12)
    w = masses(200, 1)
    assert mf.measure_distance(cloud(x, w), cloud(x + shift, w)) == pytest.approx(0.5 * scale, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e-3, 1e150])
def test_the_distance_goes_with_the_scale_of_the_clouds(scale):
    x, y = normal(150, 0), normal(150, 1)
    assert mf.measure_distance(cloud(scale * x), cloud(scale * y)) == pytest.approx(scale * assigned(x, y), rel=1e-12)


@pytest.mark.parametrize("w", [None, masses(100, 2)])
@pytest.mark.parametrize("x", [normal(100, 0), 1e6 + normal(100, 0), torch.cat([normal(99, 0), FAR])])
def test_a_cloud_is_at_distance_zero_from_itself_in_any_order(x, w):
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = cloud(x[order], None if w is None else w[order])
    assert mf.measure_distance(cloud(x, w), cloud(x, w)) == 0
    assert mf.measure_distance(cloud(x, w), shuffled) < 1e-9 * float(x.abs().max())
    blurred = mf.measure_distance(cloud(x, w), shuffled, regularisation=0.05)
    assert blurred < 1e-6 * float(x.abs().max())


def test_a_far_point_that_both_clouds_share_changes_nothing_but_the_weights():
    x, y = normal(150, 0), normal(150, 1)
    alone, together = assigned(x, y), (150 / 151) ** 0.5
    for far in (FAR, 1e3 * FAR):
        found = mf.measure_distance(cloud(torch.cat([x, far])), cloud(torch.cat([y, far])))
        assert found == pytest.approx(together * alone, rel=1e-9)
    blurred = mf.measure_distance(cloud(x), cloud(y), regularisation=0.2)
    found = mf.measure_distance(cloud(torch.cat([x, FAR])), cloud(torch.cat([y, FAR])), regularisation=0.2)
    assert found == pytest.approx(
        together * blurred, rel=0.01
    )  # one point more moves the median squared distance a little


def test_a_far_point_of_unequal_clouds_changes_nothing_but_the_weights():
    """Unequal masses and numbers, a tenth of each mass at the far point: in its absence the costs are nine tenths."""
    (x, m), (y, n) = (normal(150, 0), masses(150, 2)), (normal(100, 1), masses(100, 3))
    far, tenth = 1e3 * FAR, torch.tensor([0.1], dtype=torch.float64)
    alone = mf.measure_distance(cloud(x, m), cloud(y, n))
    p = cloud(torch.cat([x, far]), torch.cat([0.9 * m, tenth]))
    q = cloud(torch.cat([y, far]), torch.cat([0.9 * n, tenth]))
    assert mf.measure_distance(p, q) == pytest.approx(0.9**0.5 * alone, rel=1e-9)


def test_a_far_point_of_one_cloud_counts_with_its_mass():
    x, y = normal(150, 0), normal(150, 1)
    found = mf.measure_distance(cloud(torch.cat([x, FAR])), cloud(torch.cat([y, -FAR])))
    assert found == pytest.approx(assigned(torch.cat([x, FAR]), torch.cat([y, -FAR])), rel=1e-9)


def test_small_moves_of_a_wide_cloud_are_seen():
    """Points a billion times nearer to their partners than to each other are matched to them."""
    x, noise = normal(150, 0), 1e-9 * normal(150, 1)
    found = mf.measure_distance(cloud(x), cloud((x + noise).flip(0)))
    assert found == pytest.approx(float(noise.square().sum(1).mean()) ** 0.5, rel=1e-5)  # x + noise is rounded at 1e-16


def test_on_a_line_sorted_points_are_partners():
    x, y = normal(300, 0), normal(300, 1)
    x[:, 1:] = y[:, 1:] = 7.0
    pairs = x[:, 0].sort().values - y[:, 0].sort().values
    assert mf.measure_distance(cloud(x), cloud(y)) == pytest.approx(float(pairs.square().mean()) ** 0.5, rel=1e-12)


def test_the_same_points_with_other_masses():
    """On a line: the root of the integral of (F^-1 - G^-1)^2, from both distribution functions."""
    x, m, n = normal(80, 0), masses(80, 1), masses(80, 2)
    x[:, 1:] = 0
    line, order = x[:, 0].sort()
    f, g = m[order].cumsum(0).numpy(), n[order].cumsum(0).numpy()
    levels = np.sort(np.concatenate([[0.0], f, g]).clip(max=1.0))
    middle = (levels[1:] + levels[:-1]) / 2
    apart = [line.numpy()[np.searchsorted(h, middle).clip(max=79)] for h in (f, g)]
    expected = float((np.diff(levels) * (apart[0] - apart[1]) ** 2).sum()) ** 0.5
    assert mf.measure_distance(cloud(x, m), cloud(x, n)) == pytest.approx(expected, rel=1e-9)
    far = torch.tensor([[1e6, 0.0, 0.0]], dtype=torch.float64)
    tenth = torch.tensor([0.1], dtype=torch.float64)
    both = [cloud(torch.cat([x, far]), torch.cat([0.9 * w, tenth])) for w in (m, n)]
    assert mf.measure_distance(*both) == pytest.approx(0.9**0.5 * expected, rel=1e-9)


def test_clouds_in_float32_have_a_distance():
    """Their masses sum to 1 to seven digits only."""
    x = normal(3, 0).float().double()
    shift = torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64)
    p, q = (cloud(t, torch.full((3,), 1 / 3, dtype=torch.float32), torch.float32) for t in (x, x + shift))
    assert mf.measure_distance(p, q) == pytest.approx(5, rel=1e-6)


def test_sinkhorn_distance_approaches_the_exact_one():
    p = mf.ParticleMeasure.iid(100, 2, seed=0)
    q = mf.ParticleMeasure(2 * p.a, 0.5 * p.w + 1.0, p.m)
    exact = mf.measure_distance(p, q)
    errors = [abs(mf.measure_distance(p, q, regularisation=r) / exact - 1) for r in (0.5, 0.05)]
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


def test_sinkhorn_of_translated_gaussians_is_exact():
    """For a translation the debiased value is the squared shift at any regularisation, far from the origin too."""
    x = 1e4 + normal(100, 0)
    shift = torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64)
    for regularisation in (2.0, 0.5):
        assert mf.measure_distance(cloud(x), cloud(x + shift), regularisation) == pytest.approx(0.5, rel=1e-6)


def plain_sinkhorn(x, y, epsilon, tolerance):
    """Entropic cost of equal masses and the iterations that it took, by alternating projections in numpy"""
    cost = ((x[:, None] - y[None]) ** 2).sum(2) / epsilon
    u, v, k = np.zeros(len(x)), np.zeros(len(y)), 0
    while True:
        new = -np.log(np.exp(v[None] - cost).mean(1))
        v = -np.log(np.exp(new[:, None] - cost).mean(0))
        u, change, k = new, np.abs(new - u).max(), k + 1
        if change < tolerance:
            return epsilon * (u.mean() + v.mean()), k


def test_relaxed_sinkhorn_ends_where_plain_iterations_do_in_a_third_of_them(monkeypatch):
    x, y = normal(70, 0), 1.3 * normal(80, 1)
    size = 2.0 ** math.frexp(float(max(x.abs().max(), y.abs().max())))[1]
    epsilon = 0.05 * float(torch.cdist(x / size, y / size).square().median()) * size**2
    (both, k), (own, _), (other, _) = (
        plain_sinkhorn(a.numpy(), b.numpy(), epsilon, 1e-5) for a, b in ((x, y), (x, x), (y, y))
    )
    plain = plain_sinkhorn(x.numpy(), y.numpy(), epsilon, 1e-4)[1]
    calls, inner = [], distances._soft_min
    monkeypatch.setattr(distances, "_soft_min", lambda *given: calls.append(given[0] is given[1]) or inner(*given))
    found = mf.measure_distance(cloud(x), cloud(y), regularisation=0.05)
    assert found**2 == pytest.approx(both - (own + other) / 2, rel=1e-5)
    assert calls.count(False) / 2 < plain / 3 < k / 3


def test_the_exact_distance_asks_for_its_memory_first(monkeypatch):
    monkeypatch.setattr(checks, "free_memory", lambda device="cpu": 60.0 * 99 * 100)
    mf.measure_distance(cloud(normal(99, 0)), cloud(normal(100, 1)))
    with pytest.raises(MemoryError, match=r"between 100 and 100 particles needs .* or regularisation=0\.05"):
        mf.measure_distance(cloud(normal(100, 0)), cloud(normal(100, 1)))


def test_sinkhorn_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(distances, "_ITERATIONS", 3)
    with pytest.warns(RuntimeWarning, match="did not converge in 3 steps: the distance may be too small"):
        mf.measure_distance(cloud(normal(50, 0)), cloud(2 * normal(50, 1)), regularisation=0.01)


def test_large_clouds_take_sinkhorn(monkeypatch):
    x, y = cloud(normal(60, 0)), cloud(1 + 2 * normal(60, 1))
    expected = mf.measure_distance(x, y, regularisation=0.05)
    monkeypatch.setattr(distances, "_EXACT", 3599)
    assert mf.measure_distance(x, y) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("regularisation", [None, 0.1])
def test_parameters_that_became_non_finite_are_refused(value, regularisation):
    p, q = cloud(normal(5, 0)), cloud(normal(5, 1))
    q.w[2, 0] = value
    with pytest.raises(ValueError, match="the second cloud holds NaN or infinity"):
        mf.measure_distance(p, q, regularisation)
    q.w[2, 0], p.m[0] = 0.0, value
    with pytest.raises(ValueError, match="the first cloud holds NaN or infinity"):
        mf.measure_distance(p, q, regularisation)


H, M = normal(500, 0), torch.full((500,), 1 / 500, dtype=torch.float64)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e8, 1.0), (0.0, 1e-200), (0.0, 1e200)])
def test_marginal_distance_of_shifted_preactivations_is_the_shift_in_standard_deviations(offset, scale):
    h = offset + scale * H
    spread = scale * float(np.sqrt(np.mean(np.var(H.numpy(), axis=0))))
    found = mf.marginal_distance((h + 0.75 * scale, M), (h, M))
    assert found == pytest.approx(0.75 * scale / spread, rel=1e-7 if offset else 1e-12)
    assert mf.marginal_distance((h, M), (h, M)) == 0
    assert mf.marginal_distance((h.flip(0), M), (h, M)) == 0


def test_marginal_distance_takes_float32_and_unnormalised_weights():
    """Sorted partners: the mean of the absolute differences."""
    k = normal(500, 1)
    expected = np.abs(np.sort(H.numpy(), 0) - np.sort(k.numpy(), 0)).mean() / np.sqrt(np.var(k.numpy(), 0).mean())
    assert mf.marginal_distance((H.float(), M.float()), (k.float(), 3 * M.float())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((H, M), (H[:, :2], M), "on the same samples: received 3 and 2 columns"),
        ((H, M[:-1]), (H, M), r"received \(500, 3\) and \(499,\) as the first"),
        ((H, M), (H[:0], M[:0]), r"received \(0, 3\) and \(0,\) as the second"),
        ((H * math.inf, M), (H, M), "the first preactivations hold NaN or infinity"),
        ((H, M), (H, M * math.nan), "the second weights hold NaN or infinity"),
        ((H, M), (H, -M), "non-negative with a positive sum: received the least -0.002"),
        ((H, 0 * M), (H, M), "non-negative with a positive sum: received the least 0"),
        ((H, M), (0 * H + 2, M), "they have no standard deviation as unit"),
    ],
)
def test_preactivations_without_a_distance_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        mf.marginal_distance(first, second)
