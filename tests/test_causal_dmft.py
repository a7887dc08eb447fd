"""The limit of deep networks: exact where an answer is known, and the mean of finite networks elsewhere."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.files.storage import load, save
from solvers import CausalDMFT, DivergedError, FiniteWidth, SolverError, TangentKernelLimit, WassersteinFlow
from solvers.dmft.infinite_dense import InfiniteDense


def problem(depth=2, activation="tanh", gamma0=1.0, eta=0.2, steps=25, loss="squared", classes=(0, 1), **network):
    data = mf.digits(classes, n_train=8, n_test=4)
    training = mf.Training(eta, steps)
    return mf.Problem(data, mf.Network(depth, activation, **network), mf.mean_field(gamma0), training, loss)


def f_of(solutions):
    """(seeds, ...) train and test outputs"""
    return torch.stack([torch.cat([s.f, s.f_test], 1).double() for s in solutions])


def spread(solutions):
    """Root mean square of the seeds about their mean"""
    f = f_of(solutions)
    return float((f - f.mean(0)).square().sum().div(len(f) - 1).sqrt())


# one hidden layer: the flow of the measure


@pytest.mark.parametrize(
    "asked",
    [
        problem(1),
        problem(1, "relu", 2.0, weight_std=1.2, bias_std=0.4),
        problem(1, loss="cross_entropy", classes=(0, 1, 2), bias_std=0.4),
    ],
    ids=["tanh", "relu, biases", "three classes"],
)
def test_one_layer_is_the_flow_of_the_measure(asked):
    """Two methods with errors of their own, each measured by two seeds."""
    sweeps = [CausalDMFT(8192, seed, two_time=False)(asked) for seed in (0, 1)]
    flows = [WassersteinFlow(2**13, seed=seed)(asked) for seed in (0, 1)]
    for name in ("f", "f_test"):
        a, b = (torch.stack([getattr(s, name).double() for s in both]) for both in (sweeps, flows))
        error = float(((a[0] - a[1]).square().sum() + (b[0] - b[1]).square().sum()).sqrt()) / 2
        assert float((a.mean(0) - b.mean(0)).norm()) < 4 * error
        assert error < 0.01 * float(b.mean(0).norm())
    torch.testing.assert_close(
        sweeps[0].tangent_kernel().double(), flows[0].tangent_kernel().double(), rtol=0.03, atol=0.03
    )


# exact answers


@pytest.mark.parametrize(("depth", "draws"), [*product((1, 2, 3), ("sobol", "plain"))])
def test_it_starts_at_zero(depth, draws):
    solution = CausalDMFT(256, draws=draws, dtype="float64")(problem(depth, "gelu", steps=0, bias_std=0.3))
    assert float(solution.f.abs().max()) < 1e-13
    assert float(solution.f_test.abs().max()) < 1e-13
    single = CausalDMFT(256, draws=draws)(problem(depth, "gelu", steps=0, bias_std=0.3))
    assert float(torch.cat([single.f, single.f_test], 1).abs().max()) < 1e-6


@pytest.mark.parametrize("bias_std", [0.0, 0.5])
def test_one_linear_layer_follows_the_closed_system_of_second_moments(bias_std):
    asked = problem(1, "linear", 1.5, loss="squared", classes=(0, 1, 2), bias_std=bias_std)
    x, y, c = asked.network.inputs(asked.data.x), asked.data.y, asked.data.outputs
    moments, b = torch.eye(c + x.shape[1], dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    expected = []
    for _ in range(asked.training.steps + 1):
        expected.append(x @ moments[c:, :c] / 1.5 + b)
        v = (y - expected[-1]).T @ x / len(x)
        generator = torch.zeros_like(moments)
        generator[:c, c:], generator[c:, :c] = v, v.T
        step = torch.eye(len(moments), dtype=torch.float64) + 0.2 * 1.5 * generator
        moments = step @ moments @ step.T
        b = b + 0.2 * bias_std**2 * (y - expected[-1]).mean(0)
    torch.testing.assert_close(CausalDMFT(256)(asked).f, torch.stack(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_linear_networks_do_not_depend_on_samples_and_seed(depth):
    asked = problem(depth, "linear", bias_std=0.3)
    one, other = CausalDMFT(256, seed=0)(asked), CausalDMFT(331, seed=5, draws="plain", dtype="float64")(asked)
    torch.testing.assert_close(f_of([one]), f_of([other]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.tangent_kernel(), other.tangent_kernel(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", [dict(), dict(bias_std=0.4, residual=0.7, weight_std=1.1)], ids=["plain", "all"])
def test_small_gamma0_is_the_network_linearised_at_its_start(network):
    """f <- f + eta K Delta / P with its own tangent kernel at step 0; the remainder falls like gamma0^2 (equation 59).

    Sampled neurons add a part of order gamma0 / sqrt(S); opposite targets cancel most of it, f(-gamma0, y) = -f(gamma0, -y).
    """
    apart = []
    for gamma0 in (0.4, 0.2, 1e-4):
        asked = problem(3, gamma0=gamma0, **network)
        y = asked.data.y
        opposite = replace(asked, data=mf.Dataset(asked.data.x, -y, asked.data.x_test, asked.data.y_test))
        solver = CausalDMFT(4096, dtype="float64", tolerance=1e-3)
        one, other = solver(asked), solver(opposite)
        f, kernel = torch.zeros_like(y), one.tangent_kernel(0)
        for _ in range(one.steps):
            f = f + 0.2 * kernel @ (y - f) / len(y)
        apart.append(float(((one.f[-1] - other.f[-1]) / 2 - f).norm() / f.norm()))
    assert apart[2] < 1e-5, apart
    assert np.log2(apart[0] / apart[1]) == pytest.approx(2, abs=0.35), apart  # seeds scatter by 0.08


def smooth(gamma0, activation, depth, size=1.0, steps=40):
    """Eight points of a line, whose features differ by directions of all sizes, and their exact lazy limit (equation 43)"""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    network = mf.Network(depth, activation, bias_std=0.5)
    asked = mf.Problem(mf.Dataset(x, size * torch.sin(3 * x)), network, mf.mean_field(gamma0), mf.Training(0.2, steps))
    return asked, TangentKernelLimit()(asked).f


@pytest.mark.parametrize(
    ("activation", "depth", "gamma0", "size"),
    [
        ("relu", 3, 1e-3, 1.0),
        ("relu", 2, 2e-4, 1.0),
        ("tanh", 3, 1e-2, 1.0),
        ("tanh", 3, 1e-3, 1.0),
        ("tanh", 2, 0.5, 1e-3),
        ("gelu", 3, 3e-4, 1.0),
        ("gelu", 1, 3e-4, 1.0),
    ],
)
def test_the_default_tolerance_follows_what_is_learned(activation, depth, gamma0, size):
    """1/sqrt(S) is the error of plain draws; what the tolerance drops must not add to it. What f differs by at this gamma0 is smaller."""
    asked, lazy = smooth(gamma0, activation, depth, size)
    found = [CausalDMFT(1024, seed, two_time=False)(asked).f.double() for seed in range(3)]
    error = torch.stack([f - lazy for f in found]).square().sum().div(3).sqrt() / lazy.norm()
    assert float(error) < 1024**-0.5, float(error)


@pytest.mark.parametrize(("activation", "depth"), [("relu", 1), ("tanh", 3)])
def test_float32_is_refused_where_it_rounds_what_is_learned(activation, depth):
    """It is taken, and rounds less than a thousandth, just above the bound; just below it float64 is named."""
    bound = 2.0**-23 / 1e-3 / float(smooth(1.0, activation, depth)[0].data.y.square().mean().sqrt())
    asked, _ = smooth(1.01 * bound, activation, depth)
    single, double = (CausalDMFT(512, dtype=dtype)(asked).f.double() for dtype in ("float32", "float64"))
    assert float((single - double).norm() / double.norm()) < 1e-3
    beyond, lazy = smooth(0.99 * bound, activation, depth)
    with pytest.raises(ValueError, match=r"of their size only.*float32 would round.*dtype='float64'"):
        CausalDMFT(512)(beyond)
    assert float((CausalDMFT(512, dtype="float64")(beyond).f - lazy).norm() / lazy.norm()) < 512**-0.5
    with pytest.raises(ValueError, match=r"float64 would round.*TangentKernelLimit"):
        CausalDMFT(512, dtype="float64")(smooth(1e-14, activation, depth)[0])
    idle, _ = smooth(1.0, activation, depth, size=0.0)  # nothing to learn is nothing to round
    assert float(CausalDMFT(256)(idle).f.abs().max()) < 1e-2 / 256**0.5


@pytest.mark.parametrize(
    "network",
    [
        dict(depth=1, bias_std=0.4),
        dict(depth=3, weight_std=1.2, bias_std=0.4),
        dict(depth=3, residual=0.8, bias_std=0.4),
        dict(depth=2, loss="cross_entropy", classes=(0, 1, 2)),
    ],
    ids=["one layer", "biases", "residual", "three classes"],
)
def test_the_tangent_kernel_is_the_first_step(network):
    """f_1 - f_0 = eta K Delta / P up to O(eta), at rich gamma0 and after some training too; K is symmetric and non-negative."""
    asked = problem(gamma0=1.5, eta=1e-5, steps=1, **network)
    solution = CausalDMFT(512, dtype="float64", tolerance=1e-7)(asked)
    k = solution.tangent_kernels[0]
    delta = asked.loss_function.delta(solution.f[0], asked.data.y)
    expected = torch.einsum("pcqd,qd->pc", k, delta) / len(delta)
    torch.testing.assert_close((solution.f[1] - solution.f[0]) / 1e-5, expected, rtol=1e-3, atol=1e-3)
    flat = k.reshape(delta.numel(), delta.numel())
    torch.testing.assert_close(flat, flat.T)
    assert float(torch.linalg.eigvalsh(flat)[0]) > -1e-10


def test_first_kernels_are_gaussian_averages():
    """Phi1 = <phi(u) phi(v)> and, behind it, Phi2 and G2 by Gauss-Hermite quadrature, within sampling error."""
    samples = 16384
    solution = CausalDMFT(samples)(problem(2, "tanh", steps=0))
    z, m = np.polynomial.hermite_e.hermegauss(60)
    z, m = torch.from_numpy(z), torch.from_numpy(m / m.sum())
    x = solution.problem.perceptron.inputs(solution.problem.data.x)

    def average(function, kernel):
        """<function(u) function(v)> for all pairs"""
        d = kernel.diag().sqrt()
        rho = (kernel / d[:, None] / d).clamp(-1, 1)[..., None, None]
        u = d[:, None, None, None] * z[:, None]
        v = d[None, :, None, None] * (rho * z[:, None] + (1 - rho**2).sqrt() * z)
        return torch.einsum("pqij,i,j->pq", function(u) * function(v), m, m)

    phi1 = average(torch.tanh, x @ x.T)
    exact = {"Phi1": phi1, "Phi2": average(torch.tanh, phi1), "G2": average(lambda h: 1 / h.cosh() ** 2, phi1)}
    exact["G1"] = exact["G2"] * average(lambda h: 1 / h.cosh() ** 2, x @ x.T)
    for name, kernel in exact.items():
        found = solution.kernels[name].at(0, 0).double()
        assert float((found - kernel).abs().max()) < 4 / samples**0.5, name


def test_kernels_are_known_at_all_pairs_of_steps_and_are_averages_over_the_neurons():
    asked = problem(2, "tanh", steps=12)
    solution, sparse = (
        CausalDMFT(512, two_time=b, dtype="float64", snapshots=(0, 7, -1))(asked) for b in (True, False)
    )
    for name in ("Phi1", "Phi2", "G1", "G2"):
        kernel = solution.kernels[name]
        assert kernel.steps == tuple(range(13))
        assert torch.equal(kernel.at(3, 9), kernel.at(9, 3).T)
        joint = torch.cat([torch.cat([kernel.at(t, s) for s in (0, 5, 12)], 1) for t in (0, 5, 12)])
        assert float(torch.linalg.eigvalsh(joint)[0]) > -1e-12
        torch.testing.assert_close(sparse.kernels[name].at(7, 12), kernel.at(7, 12), rtol=1e-3, atol=1e-4)
    for l in (1, 2):
        (early, m), (late, _) = (solution.preactivations(t, l) for t in (0, 7))
        average = (m[:, None] * early.tanh()).T @ late.tanh()
        torch.testing.assert_close(solution.kernels[f"Phi{l}"].at(0, 7), average, rtol=1e-3, atol=1e-4)


# the mean of finite networks

CASES = {
    "tanh": (problem(), 256),
    "relu, rich, three layers": (problem(3, "relu", 2.0, 0.1), 512),
    "gelu, biases, weight_std": (problem(2, "gelu", weight_std=1.2, bias_std=0.4), 256),
    "residual, four layers": (problem(4, residual=0.8, bias_std=0.3), 256),
    "three classes": (problem(loss="cross_entropy", classes=(0, 1, 2)), 256),
    "linear": (problem(2, "linear"), 256),
}
SEEDS = 32
LIMIT = CausalDMFT(4096, keep_neurons=False)


def ratios(asked, width, names=None, limit=LIMIT):
    """Distance of the ensemble mean from the limit, in units of its noise, by observable."""
    nets = FiniteWidth(width, dtype="float32", keep_neurons=False).ensemble(asked, SEEDS)
    report = mf.deviation(nets, [replace(limit, seed=seed)(asked) for seed in (0, 1)], names)
    found = report.observables.items()
    return {n: float(((d.bias2 + d.variance / SEEDS).clip(0) ** 0.5 / d.floor)[0]) for n, d in found}


@pytest.mark.parametrize("case", CASES)
def test_networks_agree_with_the_limit(case):
    asked, width = CASES[case]
    found = ratios(asked, width)
    kernels = {f"{kind}{l}" for kind in ("Phi", "G") for l in range(1, asked.network.depth + 1)}
    assert {"f", "f_test", "tangent_kernel", *kernels} <= set(found)
    assert max(found.values()) < 3, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        problem(4, bias_std=0.3, steps=40),
        problem(3, "relu", 2.0, 0.05, steps=60, weight_std=1.2),
        problem(3, "gelu", loss="cross_entropy", classes=(0, 1, 2), steps=40),
        problem(8, residual=1.0),
    ],
    ids=["four layers", "relu", "three classes", "eight layers, residual"],
)
def test_wide_networks_agree_with_the_limit(asked):
    found = ratios(asked, 1024, limit=replace(LIMIT, samples=8192))
    assert max(found.values()) < 3, found


RESPONSES = {  # which pass holds each, and in it the images revealed in the other pass and the fields that they answer to
    "features": (InfiniteDense.forward, lambda layer: (layer.r, layer.f)),
    "gradients": (InfiniteDense.backward, lambda layer: (layer.u, layer.e)),
}


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("case", ["tanh", "relu, rich, three layers"])
def test_the_comparison_sees_the_responses(monkeypatch, response, case):
    whole, parts = RESPONSES[response]

    def blind(self, field, learned, scale):
        out, *coefficients = whole(self, field, learned, scale)
        images, answered = parts(self)
        return out - scale * (field @ images.rows.T / field.shape[1]) @ answered.fields.rows, *coefficients

    monkeypatch.setattr(InfiniteDense, whole.__name__, blind)
    found = ratios(CASES[case][0], 256)
    assert max(found.values()) > 5, found


# accuracy


@cache
def runs(draws="sobol", tolerance=None):
    """Six seeds"""
    solver = CausalDMFT(8192, draws=draws, tolerance=tolerance, snapshots=(), two_time=False)
    return [replace(solver, seed=seed)(problem(eta=0.1)) for seed in range(6)]


def moved(some, others):
    """Distance of the means over seeds, in units of its standard error"""
    error = (spread(some) ** 2 / len(some) + spread(others) ** 2 / len(others)) ** 0.5
    return float((f_of(some).mean(0) - f_of(others).mean(0)).norm()) / error


def test_a_finer_tolerance_does_not_move_the_mean_over_seeds():
    assert moved(runs(), runs(tolerance=3e-3)) < 3
    assert moved(runs(), runs(tolerance=0.3)) > 3


def test_sobol_points_spread_less_than_plain_draws():
    assert spread(runs("plain")) > 1.5 * spread(runs())
    assert moved(runs(), runs("plain")) < 3


def test_single_precision_gives_the_numbers_of_double():
    runs = [
        replace(LIMIT, samples=2048, dtype=d, seed=s)(problem())
        for d, s in (("float32", 0), ("float64", 0), ("float64", 1))
    ]
    f = f_of(runs)
    assert float((f[0] - f[1]).norm()) < float((f[1] - f[2]).norm())


# what cannot be done, and what is kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(samples=1), "samples must be at least 2"),
        (dict(draws="halton"), "unknown draws: received 'halton'; known: finite, plain, sobol"),
        (dict(tolerance=0.0), "tolerance must be positive"),
        (dict(dtype="float16"), "unknown dtype"),
        (dict(seed=-1), "seed must be at least 0"),
    ],
)
def test_bad_settings_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        CausalDMFT(**change)


def test_problems_without_such_a_limit_are_refused_before_work(monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(InfiniteDense, "forward", work)
    with pytest.raises(ValueError, match=r"take mean_field\(gamma0\)"):
        CausalDMFT()(replace(problem(), scaling=mf.ntk()))
    with pytest.raises(ValueError, match=r"samples=24 are too few for 12 data points.*take at least"):
        CausalDMFT(24)(problem())
    with pytest.raises(ValueError, match=r"snapshots must lie in 0..25"):
        CausalDMFT(snapshots=(0, 30))(problem())


def test_fields_that_outgrow_the_samples_name_both_remedies():
    told = (
        r"hidden layers \d and \d span \d+ .* the 32 neurons .* samples=64 or more .* a larger tolerance.*after step \d"
    )
    with pytest.raises(SolverError, match=told) as caught:
        CausalDMFT(32)(problem())
    partial = caught.value.solution
    assert partial.status is mf.Status.OUT_OF_ROOM
    assert torch.isfinite(partial.loss).all()
    assert 0 < partial.steps < 25
    with pytest.raises(SolverError, match=r"hidden layer.* \d span .* admits 20: take a larger max_rank"):
        CausalDMFT(512, max_rank=20)(problem())


def test_a_run_that_blows_up_says_when_and_keeps_what_was_computed():
    asked = problem(2, "relu", eta=50.0)
    solver = CausalDMFT(512, tolerance=0.1)
    with pytest.raises(DivergedError, match=r"lower learning_rate.* at step \d+ of 25") as caught:
        solver(asked)
    partial = caught.value.solution
    assert partial.status is mf.Status.DIVERGED
    assert 0 < partial.steps < 25
    assert bool(torch.isfinite(partial.f).all())
    assert replace(solver, raise_on_failure=False)(asked) == partial


def test_solutions_survive_storage_and_enter_comparisons_layer_by_layer(tmp_path):
    asked = problem(3, steps=5, bias_std=0.2)
    limits = [CausalDMFT(512, seed=seed)(asked) for seed in (0, 1)]
    assert load(save(limits[0], tmp_path / "limit.nc")) == limits[0]
    report = mf.deviation(FiniteWidth(64).ensemble(asked, 3), limits)
    assert {"h1", "h2", "h3", "Phi3", "G1", "f_test"} <= set(report.observables)
    assert all(float(report[f"h{l}"].deviation[0]) < 0.5 for l in (1, 2, 3))
    assert CausalDMFT(512)(asked) == limits[0]
