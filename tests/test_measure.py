"""Particle measures: moments, low discrepancy along the directions asked for, exact quadrature, and validation."""

import itertools
import math

import pytest
import torch

import meanfield as mf
from meanfield.measures import particle_measure as measure
from meanfield.measures.particle_measure import principal_directions

ONE = torch.ones(2, 1, dtype=torch.float64)
HALF = torch.full((2,), 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "w", "m", "message"),
    [
        (
            ONE[:, 0],
            ONE,
            HALF,
            "needs a \\(N, C\\), w \\(N, D\\) and m \\(N,\\).*received \\(2,\\), \\(2, 1\\), \\(2,\\)",
        ),
        (ONE, ONE[:1], HALF, "received \\(2, 1\\), \\(1, 1\\), \\(2,\\)"),
        (ONE, ONE, HALF[:, None], "received \\(2, 1\\), \\(2, 1\\), \\(2, 1\\)"),
        (ONE[:0], ONE[:0], HALF[:0], "N > 0"),
        (ONE.float(), ONE, HALF, "must share device and dtype"),
        (ONE.long(), ONE.long(), torch.tensor([0, 1]), "floating-point parameters: received torch.int64"),
        (ONE * math.nan, ONE, HALF, "particles' a holds NaN or infinity"),
        (ONE, ONE * math.inf, HALF, "particles' w holds NaN or infinity"),
        (ONE, ONE, HALF * math.nan, "particles' m holds NaN or infinity"),
        (ONE, ONE, torch.tensor([1.5, -0.5]).double(), "must be non-negative: received -0.5"),
        (ONE, ONE, 2 * HALF, "must sum to 1: received the sum 2"),
        (ONE, ONE, HALF + 1e-6, "must sum to 1"),
    ],
)
def test_what_is_no_measure_is_refused(a, w, m, message):
    with pytest.raises(ValueError, match=message):
        mf.ParticleMeasure(a, w, m)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mf.ParticleMeasure.iid(0, 3), "particles must be at least 1: received 0"),
        (lambda: mf.ParticleMeasure.iid(4, 0), "inputs must be at least 1: received 0"),
        (lambda: mf.ParticleMeasure.sobol(4, 3, outputs=0), "outputs must be at least 1: received 0"),
        (lambda: mf.ParticleMeasure.sobol(4, 3, seed=-1), "seed must be at least 0: received -1"),
        (
            lambda: mf.ParticleMeasure.iid(4, 3, dtype="float16"),
            "unknown dtype: received 'float16'; known: float32, float64",
        ),
        (
            lambda: mf.ParticleMeasure.sobol(4, 3, directions=torch.ones(2, 4)),
            "directions must have shape \\(n, 3\\) for inputs=3: .*\\(2, 4\\)",
        ),
        (lambda: mf.ParticleMeasure.sobol(4, 3, directions=torch.ones(3)), "directions must have shape \\(n, 3\\)"),
        (lambda: mf.ParticleMeasure.gauss_hermite(1, 3), "nodes must be at least 2: received 1"),
        (
            lambda: mf.ParticleMeasure.gauss_hermite(20, 5),
            "20 Gauss-Hermite nodes in 6 dimensions .*sobol",
        ),
        (lambda: mf.ParticleMeasure.gauss_hermite(2, 1100), "2 Gauss-Hermite nodes in 1101 dimensions .*sobol"),
    ],
)
def test_impossible_measures_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_iid_particles_are_standard_normal():
    """Means and all second moments of (a, w) within 4 standard errors."""
    n, cloud = 20_000, mf.ParticleMeasure.iid(20_000, 3, outputs=2, seed=1)
    z = cloud.points
    assert cloud.a.shape == (n, 2)
    assert cloud.w.shape == (n, 3)
    assert (z.mean(0).abs() < 4 / n**0.5).all()
    moments = z.T @ z / n - torch.eye(5)
    assert (moments.abs() < 4 * (1 + torch.eye(5)).sqrt() / n**0.5).all()  # Var z^2 = 2, Var z z' = 1


@pytest.mark.parametrize("make", [mf.ParticleMeasure.iid, mf.ParticleMeasure.sobol])
def test_a_seed_is_one_cloud(make):
    assert make(100, 3, seed=5) == make(100, 3, seed=5)
    assert make(100, 3, seed=5) != make(100, 3, seed=6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [mf.ParticleMeasure.iid, mf.ParticleMeasure.sobol, mf.ParticleMeasure.gauss_hermite])
def test_weights_sum_to_one_in_the_dtype_asked_for(make, dtype):
    cloud = make(12, 2, dtype=dtype)
    assert {t.dtype for t in cloud.tensors} == {getattr(torch, dtype)}
    assert float(cloud.m.double().sum()) == pytest.approx(1, abs=1e-6 if dtype == "float32" else 1e-14)


def test_to_changes_the_dtype_and_nothing_else():
    cloud = mf.ParticleMeasure.iid(50, 3)
    single = cloud.to(dtype=torch.float32)
    assert all(torch.equal(s, d.float()) for s, d in zip(single.tensors, cloud.tensors, strict=True))
    assert cloud.to("cpu") == cloud


def test_tiles_are_the_cloud_in_order():
    cloud = mf.ParticleMeasure.iid(50, 3)
    tiles = list(cloud.tiles(16))
    assert [len(m) for *_, m in tiles] == [16, 16, 16, 2]
    joined = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    assert mf.ParticleMeasure(*joined) == cloud


# ---- Sobol -----------------------------------------------------------------------------------------------------------


def _occupied(z, cells):
    """How many of `cells` equally likely intervals hold a point."""
    return len((torch.special.ndtr(z) * cells).floor().unique())


def test_sobol_has_one_particle_in_each_cell_of_every_coordinate():
    n = 1024
    z = mf.ParticleMeasure.sobol(n, 5, outputs=2, seed=3).points
    assert [_occupied(column, n) for column in z.T] == [n] * 7
    assert _occupied(mf.ParticleMeasure.iid(n, 1, seed=3).w, n) < 0.7 * n  # 1 - 1/e of them


def test_sobol_puts_its_even_coordinates_along_the_directions():
    """Rows of rank 1: the projection of w on them is stratified; with no directions it is no better than chance."""
    n, v = 1024, torch.tensor([3.0, -1.0, 2.0, 0.5]).double()
    u = v / v.norm()
    rows = torch.tensor([1.0, -2.0, 0.3]).double()[:, None] * v
    assert _occupied(mf.ParticleMeasure.sobol(n, 4, directions=rows).w @ u, n) == n
    assert _occupied(mf.ParticleMeasure.sobol(n, 4).w @ u, n) < 0.8 * n


def test_principal_directions_come_in_order_of_size():
    g = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    basis = principal_directions(torch.stack([1.0 * u[0], 9.0 * u[1], 3.0 * u[2]]), 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close((basis[:, :3].T @ u[[1, 2, 0]].T).abs(), torch.eye(3).double(), rtol=0, atol=1e-14)
    assert torch.equal(principal_directions(None, 5), torch.eye(5).double())


def test_sobol_integrates_smooth_functions_better_than_iid():
    """Root mean square error of two Gaussian averages over 16 seeds, N = 1024; iid has its own standard error, sqrt(Var / N)."""
    n, exact = 1024, torch.tensor([math.exp(-0.5), 1.0]).double()

    def error(make):
        clouds = [make(n, 3, seed=seed) for seed in range(16)]
        means = [torch.stack([(c.w.sum(1) / 3**0.5).cos().mean(), (c.a[:, 0] ** 2).mean()]) for c in clouds]
        return (torch.stack(means) - exact).square().mean(0).sqrt()

    assert (error(mf.ParticleMeasure.sobol) < 0.2 * error(mf.ParticleMeasure.iid)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_do_not_show_in_the_points(monkeypatch, dtype):
    """Drawn in several blocks or in one: the same points; a smaller cloud is the beginning of a larger one."""
    whole = mf.ParticleMeasure.sobol(200, 3, seed=2, dtype=dtype)
    monkeypatch.setattr(measure, "_BLOCK", 64)
    assert mf.ParticleMeasure.sobol(200, 3, seed=2, dtype=dtype) == whole
    assert torch.equal(mf.ParticleMeasure.sobol(70, 3, seed=2, dtype=dtype).points, whole.points[:70])


def test_large_float32_clouds_are_drawn_whole():
    n = 2**16 + 100
    cloud = mf.ParticleMeasure.sobol(n, 2, seed=2, dtype="float32")
    assert len(cloud) == n
    assert torch.equal(cloud.points[:50], mf.ParticleMeasure.sobol(50, 2, seed=2, dtype="float32").points)
    assert (cloud.points.mean(0).abs() < 4 / n**0.5).all()
    assert ((cloud.points[2**16 :].var(0) - 1).abs() < 4 * (2 / 100) ** 0.5).all()  # the last rows too were filled


# ---- Gauss-Hermite ---------------------------------------------------------------------------------------------------


def _moment(k):
    """<z^k> of a standard normal variable: 0 or (k - 1)!!"""
    return 0 if k % 2 else math.prod(range(1, k, 2))


@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_gauss_hermite_is_exact_below_twice_the_nodes(nodes):
    """All products of powers below 2n of every coordinate; the power 2n itself is not exact."""
    z, m = (cloud := mf.ParticleMeasure.gauss_hermite(nodes, 2)).points, cloud.m
    assert len(cloud) == nodes**3
    for powers in itertools.product(range(2 * nodes), repeat=3):
        terms = z ** torch.tensor(powers)
        exact, size = math.prod(map(_moment, powers)), float(m @ terms.abs().prod(1))
        assert float(m @ terms.prod(1)) == pytest.approx(exact, abs=1e-13 * (1 + size))
    assert abs(float(m @ z[:, 0] ** (2 * nodes)) - _moment(2 * nodes)) > 0.5


def test_gauss_hermite_stays_in_the_span_of_the_directions():
    """Rank 2 in five dimensions: nodes^(1 + 2) particles; covariance of w = the projector on the span."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 2, generator=g, dtype=torch.float64)).Q
    rows = torch.randn(6, 2, generator=g, dtype=torch.float64) @ basis.T
    cloud = mf.ParticleMeasure.gauss_hermite(6, 5, outputs=1, directions=rows)
    assert len(cloud) == 6**3
    torch.testing.assert_close(cloud.w @ basis @ basis.T, cloud.w, rtol=0, atol=1e-13)
    covariance = cloud.w.T @ (cloud.m[:, None] * cloud.w)
    torch.testing.assert_close(covariance, basis @ basis.T, rtol=0, atol=1e-13)
