"""Averages over time and free energies of runs with noise: series and laws whose answers are known (115, 123, 124)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid  # numpy has it under this name from 2.0 on

import meanfield as mf
from meanfield.comparison.free_energy import _from_standard
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, gibbs_fixed_point

NOISY = mf.Training(0.05, 200, temperature=0.5, weight_decay=0.4)
ONE = mf.Problem(
    mf.Dataset(torch.tensor([[1.2]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)),
    mf.Network(1, "tanh"),
    mf.mean_field(0.8),
    NOISY,
)
TIMES = (0, 2, 5, 10, 20, 40, 80, 200)


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_entropy_of_laws_that_are_known(dims):
    """Within 4 standard errors and a twentieth, the share that is left of laws far from Gaussian"""
    draw, n = np.random.default_rng(3), 6000
    z = draw.standard_normal((n, dims))
    factor = 1.3 * np.eye(dims)
    factor[0, -1] += 0.5
    covariance = factor @ factor.T
    gaussian = (np.trace(covariance) - dims - np.log(np.linalg.det(covariance))) / 2
    value, error = _from_standard(z @ factor.T)
    assert abs(value - gaussian) < 4 * error
    two = z.copy()
    two[:, 0] = z[:, 0] / 2 + 1.5 * draw.choice([-1, 1], n)  # two Gaussians, three apart
    t = np.linspace(-8, 8, 20001)
    p = (np.exp(-2 * (t - 1.5) ** 2) + np.exp(-2 * (t + 1.5) ** 2)) / math.sqrt(2 * math.pi)
    q = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    mixture = float(trapezoid(p * np.log(np.maximum(p, 1e-300) / q), t))
    value, error = _from_standard(two)
    assert abs(value - mixture) < 4 * error + mixture / 20


def test_free_energy_falls_to_its_least():
    """One sample in one dimension, whose least is known by quadrature"""
    found = mf.free_energy(WassersteinFlow(2**12, snapshots=TIMES)(ONE))
    end = gibbs_fixed_point(ONE)
    error = NOISY.temperature * found.errors
    falls = found.total[1:] - found.total[:-1]
    assert (falls < 4 * (error[1:].square() + error[:-1].square()).sqrt()).all()
    assert found.total[0] - found.total[-1] > 50 * error[-1]
    assert abs(float(found.total[-1]) - end.free_energy) < 4 * float(error[-1]) + 0.01 * end.free_energy
    assert abs(float(found.divergence[-1]) - end.divergence) < 4 * float(found.errors[-1]) + 0.01 * end.divergence
    assert found.dimensions == 2
    assert "divergence" in str(found)


def test_free_energy_of_weights_that_nothing_moves():
    """A sample at 0: weights stay Gaussian, of variance (1 - eta lambda)^2 v + 2 eta tau after each step, beyond the inputs too"""
    data = mf.Dataset(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    problem = replace(ONE, data=data, training=replace(NOISY, temperature=0.2, steps=10))
    found = mf.free_energy(WassersteinFlow(2**12, initial="iid", snapshots=(0, 5, 10))(problem))
    v = [1.0]
    for _ in range(10):
        v.append((1 - 0.05 * 0.4) ** 2 * v[-1] + 2 * 0.05 * 0.2)
    ratio = torch.tensor([v[0], v[5], v[10]]).double() / (0.2 / 0.4)
    expected = 4 / 2 * (ratio - 1 - ratio.log())
    assert float(found.divergence[0]) == pytest.approx(float(expected[0]), rel=1e-12)
    # of 3 Gaussians beyond the inputs the variance is measured: sqrt(2 / 3n) of it
    own = 4 * (found.errors**2 + (3 / 2 * (ratio - 1) * math.sqrt(2 / (3 * 2**12))) ** 2).sqrt()
    assert ((found.divergence - expected).abs()[1:] < own[1:]).all()
    assert float(found.energy[0]) == pytest.approx(0.8**2 / 2, rel=1e-6)  # kappa / Gamma = gamma0^2, loss 1/2


def _run(f, seed, **training):
    problem = replace(ONE, training=mf.Training(0.1, len(f) - 1, temperature=0.1, **training))
    return mf.Solution(problem, {"name": "drawn", "seed": seed}, f[:, None, None], None, {})


def _walk(n, memory, generator, start=0.0):
    noise = torch.randn(n + 200, generator=generator, dtype=torch.float64)
    x = torch.zeros(n + 200, dtype=torch.float64)
    for t in range(1, n + 200):
        x[t] = memory * x[t - 1] + noise[t]
    return x[200:] + start * torch.exp(-torch.arange(n) / 15.0)


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_errors_of_means_over_time(memory):
    """Series whose correlations are known, with a start that is forgotten: the mean is 0 within its error, over 60 runs"""
    g = torch.Generator().manual_seed(1)
    found = [mf.stationary(_run(_walk(400, memory, g, start=20.0), k)) for k in range(60)]
    z = torch.tensor([float(one.means["f"] / one.errors["f"]) for one in found])
    assert abs(float(z.mean())) < 4 * 1.2 / math.sqrt(60)
    assert 0.7 < float(z.std()) < 1.4  # chance: 1 +- 0.09; errors of correlation times: up to 1.2 where they are long
    correlation = np.mean([one.correlation_time for one in found]) * 2 / 0.1
    assert 0.7 * (1 + memory) / (1 - memory) < correlation < 1.4 * (1 + memory) / (1 - memory)
    assert all(0.5 < one.time < 21 for one in found)  # the start is 1 at time 4.5
    kept = mf.stationary(_run(_walk(400, memory, g, start=20.0), 0), after=0)
    assert float(kept.means["f"]) > 0.4  # 20 * 15 / 400 = 0.75


def test_averages_of_several_runs_take_their_scatter():
    g = torch.Generator().manual_seed(2)
    series = [_walk(300, 0.5, g) + k for k in range(8)]
    found = mf.stationary([_run(f, k) for k, f in enumerate(series)], after=100)
    means = torch.stack([f[100:].mean() for f in series])
    assert float(found.means["f"]) == pytest.approx(float(means.mean()))
    assert float(found.errors["f"]) == pytest.approx(float(means.std() / math.sqrt(8)))
    assert found.runs == 8
    assert found.start == 100
    assert found.time == pytest.approx(10.0)
    assert "8 runs" in str(found)


def test_networks_end_in_the_gibbs_measure():
    data = mf.digits((0, 1), n_train=3, n_test=1)
    problem = replace(ONE, data=data, training=replace(NOISY, steps=200))
    end = gibbs_fixed_point(problem)
    runs = FiniteWidth(128, snapshots=tuple(range(100, 201, 20))).ensemble(problem, 8)
    found = mf.stationary(runs, after=80)
    # steps of 0.05: one hundredth; width 128: as small
    for name, right in (("f", end.f), ("f_test", end.f_test), ("Phi1", end.kernel[:3, :3])):
        assert ((found.means[name] - right).abs() < 5 * found.errors[name] + 0.03 * right.abs().max()).all(), name
    assert float(found.errors["f"].max()) < 0.4 * float(end.f.abs().max())


def test_the_lazy_end_of_depth_is_a_gaussian_process():
    """gamma0 = 0.1: the posterior with the kernel of the start and the noise lambda P (equation 95)"""
    data = mf.digits((0, 1), n_train=2, n_test=1)
    problem = mf.Problem(
        data, mf.Network(2, "erf"), mf.mean_field(0.1), mf.Training(0.1, 60, temperature=1.0, weight_decay=1.0)
    )
    kernel = mf.nngp_and_ntk(problem.network, mf.ntk(), data.all_x)[0]
    expected = kernel[:2, :2] @ torch.linalg.solve(kernel[:2, :2] + 2 * torch.eye(2, dtype=torch.float64), data.y)
    found = mf.stationary([CausalDMFT(384, seed=k)(problem) for k in range(8)])
    # steps of 0.1: one twentieth; 7 degrees of freedom
    assert ((found.means["f"] - expected).abs() < 5 * found.errors["f"] + 0.05 * expected.abs()).all()
    assert float(found.errors["f"].max()) < 0.4 * float(expected.abs().max())


def test_what_has_no_averages_is_refused():
    g = torch.Generator().manual_seed(3)
    run = _run(_walk(50, 0.0, g), 0)
    still = replace(run, problem=replace(run.problem, training=replace(run.problem.training, temperature=0.0)))
    for given, said in (([], "received none"), (still, "need noise"), ([run, run], "seeds of their own")):
        with pytest.raises(ValueError, match=said):
            mf.stationary(given)
    with pytest.raises(ValueError, match="of one problem"):
        mf.stationary([run, _run(_walk(50, 0.0, g), 1, weight_decay=0.2)])
    with pytest.raises(ValueError, match="after must leave two records"):
        mf.stationary(run, after=49)
    with pytest.warns(RuntimeWarning, match="settle only after"):
        mf.stationary(_run(torch.arange(50, dtype=torch.float64), 0))
    with pytest.warns(RuntimeWarning, match="independent records are left"):
        mf.stationary(_run(_walk(50, 0.9, g), 0), after=20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": replace(NOISY, temperature=0.0)}, "needs temperature"),
        ({"training": replace(NOISY, weight_decay=0.0)}, "needs weight_decay"),
        ({"scaling": replace(mf.mean_field(), eta_a=2.0)}, "one learning rate"),
    ],
    ids=str,
)
def test_what_has_no_free_energy_is_refused(change, said):
    problem = replace(ONE, **change)
    solution = WassersteinFlow(64)(replace(problem, training=replace(problem.training, steps=2)))
    with pytest.raises(ValueError, match=said):
        mf.free_energy(solution)


def test_free_energy_needs_particles_of_one_weight():
    problem = replace(ONE, training=replace(NOISY, steps=2))
    with pytest.raises(ValueError, match="solution without"):
        mf.free_energy(WassersteinFlow(64, snapshots=())(problem))
    with pytest.raises(ValueError, match="weights that differ"):
        mf.free_energy(WassersteinFlow(64, initial="gauss_hermite")(problem))


def test_files_keep_them(tmp_path):
    data = mf.digits((0, 1), n_train=3, n_test=1)
    problem = replace(ONE, data=data, training=replace(NOISY, steps=120))
    run = WassersteinFlow(128, snapshots=(0, 60, 90, 120))(problem)
    series = _run(_walk(200, 0.0, torch.Generator().manual_seed(4)), 0)
    for result in (gibbs_fixed_point(problem, points=64), mf.free_energy(run), mf.stationary(series, after=20)):
        kept = mf.load(mf.save(result, tmp_path / "kept.nc"))
        assert kept == result
        assert type(kept) is type(result)


def test_free_energy_refuses_what_is_not_langevin_descent_alone():
    few = replace(NOISY, steps=2)
    for problem, said in (
        (replace(ONE, training=replace(few, momentum=0.5)), "received momentum=0.5"),
        (replace(ONE, training=replace(few, clip=0.5)), "received clip=0.5"),
    ):
        with pytest.raises(ValueError, match=said):
            mf.free_energy(WassersteinFlow(64)(problem))
    with pytest.raises(ValueError, match="needs 32 particles or more: received 8"):
        mf.free_energy(WassersteinFlow(8)(replace(ONE, training=few)))
    deep = FiniteWidth(16)(replace(ONE, network=mf.Network(2), training=few))
    with pytest.raises(ValueError, match="depth 1: received depth 2"):
        mf.free_energy(deep)
