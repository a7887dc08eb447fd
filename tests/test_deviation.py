"""Bias, variance, floor and exponents on answers made with known ones; distances with known values."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import FiniteWidth, PredictedBias, PredictedVariance, WassersteinFlow, predicted_variance

P, T = 6, 4
PROBLEM = mf.Problem(mf.single_index_teacher(P, 0, 3), training=mf.Training(0.1, T))
REFERENCE = torch.linspace(0.5, 2, (T + 1) * P, dtype=torch.float64).reshape(T + 1, P, 1)


def made(f, width=None, seed=0):
    solver = {"name": "made", "seed": seed} | ({"width": width} if width else {})
    return mf.Solution(problem=PROBLEM, solver=solver, f=f, f_test=None, state={})


def pooled(f, groups):
    found = made(f)
    return replace(found, solver={**found.solver, "groups": groups})


def made_nets(widths, seeds, bias=0.0, noise=1.0, seed=0):
    """f = reference + bias direction / N + independent Gaussian noise of standard deviation noise / sqrt(N)."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.ones_like(REFERENCE)
    return [
        made(
            REFERENCE
            + bias * direction / n
            + noise / n**0.5 * torch.randn(REFERENCE.shape, generator=g, dtype=torch.float64),
            n,
            s,
        )
        for n in widths
        for s in range(seeds)
    ]


SIZE = float(REFERENCE.square().mean())


def test_known_variance_bias_and_exponents_are_found():
    widths = (64, 128, 256, 512)
    report = mf.deviation(made_nets(widths, 40, bias=30.0), made(REFERENCE), names=("f",))
    found, n = report["f"], np.array(widths)
    assert np.all(np.abs(found.variance - 1 / (n * SIZE)) < 4 * found.variance_se)
    assert np.all(np.abs(found.bias2 - (30.0 / n) ** 2 / SIZE) < 4 * found.bias2_se)
    assert np.all(np.abs(found.deviation**2 - found.variance - found.bias2) < 1e-9 + 4 * found.bias2_se)
    assert found.bias_detected.all()
    for name, truth in (("variance", -1.0), ("|bias|", -1.0)):
        slope = found.exponents[name]
        assert slope.low < truth < slope.high, (name, slope)
        assert slope.high - slope.low < 0.5


def test_without_bias_the_estimate_is_unbiased_and_declared_below_the_floor():
    """The raw distance of the mean is one floor; the unbiased estimate scatters about 0."""
    estimates, detected = [], 0
    for seed in range(60):
        found = mf.deviation(made_nets((100,), 8, seed=seed), made(REFERENCE), names=("f",))["f"]
        estimates.append(found.bias2[0])
        detected += int(found.bias_detected[0])
    error = np.std(estimates) / math.sqrt(60)
    assert abs(np.mean(estimates)) < 4 * error
    assert error < 0.2 / (100 * 8 * SIZE), "the test would not see a forgotten floor"
    assert detected <= 8  # 2.5 % expected, of 60


def test_the_error_of_the_limit_comes_from_two_limits_and_is_subtracted():
    g = torch.Generator().manual_seed(5)
    shift = 0.05 * torch.randn(REFERENCE.shape, generator=g, dtype=torch.float64)
    limits = [made(REFERENCE + shift, seed=0), made(REFERENCE - shift, seed=1)]
    found = mf.deviation(made_nets((10**4,), 16), limits, names=("f",))["f"]
    expected = math.sqrt(
        float(shift.square().mean()) / SIZE
    )  # the mean of two has 1/sqrt(2) of one's error, and one's is sqrt(2) |shift|
    assert found.reference_error == pytest.approx(expected, rel=1e-9)
    assert found.floor[0] >= expected
    assert not found.bias_detected[0]
    alone = mf.deviation(made_nets((10**4,), 16), limits[0], names=("f",))
    assert math.isnan(alone["f"].reference_error)
    assert "not estimated: give two limits" in alone.table()


def test_scaled_variance_is_that_of_the_final_outputs():
    report = mf.deviation(made_nets((64, 256), 200), made(REFERENCE), names=("f",), predicted=torch.ones(P, 1))
    assert np.all(np.abs(report.n_var - 1) < 4 * report.n_var_se)
    assert report.n_var_se.max() < 0.1
    assert report.predicted_n_var == 1.0


@pytest.fixture(scope="module")
def solved():
    asked = mf.Problem(mf.digits(n_train=5, n_test=4), mf.Network(1, "tanh"), training=mf.Training(0.2, 3))
    return [s for n in (16, 32, 64) for s in FiniteWidth(n).ensemble(asked, 3)], [
        WassersteinFlow(256, seed=s)(asked) for s in (0, 1)
    ]


def test_everything_recorded_is_compared_and_the_table_shows_it(solved):
    report = mf.deviation(*solved)
    assert set(report.observables) == {"loss", "test_loss", "f", "f_test", "tangent_kernel", "Phi1", "G1", "h1"}
    for name in report.observables:
        assert f"\n{name}" in report.table()
    again, other = mf.deviation(*solved), mf.deviation(*solved, seed=1)
    for name in report.observables:  # products may round otherwise where numbers lie elsewhere in memory
        for column in ("deviation", "deviation_se", "variance", "bias2", "floor"):
            np.testing.assert_allclose(
                getattr(again[name], column), getattr(report[name], column), rtol=1e-9, atol=1e-12
            )
    assert not np.array_equal(other["h1"].floor, report["h1"].floor)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([made(REFERENCE), made(2 * REFERENCE)], "limits with different seeds: received made with the seed 0 twice"),
        ([made(REFERENCE), made(REFERENCE, seed=1)], "limits 0 and 1 have the same f throughout"),
        ([made(REFERENCE, seed=1), pooled(REFERENCE, 2)], "received made with the seed 1 twice"),
    ],
)
def test_limits_that_are_one_run_have_no_error(limits, message):
    with pytest.raises(ValueError, match=message):
        mf.deviation(made_nets((8,), 2), limits)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (torch.ones(P), r"one value for each training output, shape \(6, 1\): received \(6,\)"),
        (torch.ones(P + 1, 1), r"received \(7, 1\)"),
        (torch.full((P, 1), math.nan), "predicted holds NaN or infinity"),
    ],
)
def test_predictions_of_another_shape_are_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        mf.deviation(made_nets((8,), 2), made(REFERENCE), ("f",), predicted)


def test_networks_with_a_random_start_get_a_line_that_says_what_to_do():
    """Saved with the report; none where f(0) vanishes."""

    def lazily(s):
        return replace(s, problem=replace(PROBLEM, scaling=mf.ntk()))

    report = mf.deviation([lazily(s) for s in made_nets((8,), 2)], lazily(made(REFERENCE)), ("f",))
    last = report.table().splitlines()[-1]
    assert last.startswith("warning: f(0) is random in the scaling 'ntk'")
    assert "lazy_prediction" in last
    assert "warning" not in mf.deviation(made_nets((8,), 2), made(REFERENCE), ("f",)).table()


def test_two_seeds_have_no_standard_error_and_say_so():
    report = mf.deviation(made_nets((8, 16, 32), 2), made(REFERENCE), ("f",))
    assert np.isnan(report.n_var_se).all()
    assert np.isnan(report["f"].variance_se).all()
    assert "± unknown (2 seeds)" in report.table()
    slope = report["f"].exponents["variance"]
    assert slope.low < slope.slope < slope.high


def test_distances_of_distributions_sit_at_their_floor_for_the_limit_itself(solved):
    nets, limits = solved
    report = mf.deviation(nets, limits, names=("h1", "measure"))
    for name in ("h1", "measure"):
        assert np.all(report[name].deviation > 0)
        assert np.all(report[name].deviation < 2 * report[name].floor)


@pytest.mark.parametrize(
    ("nets", "limits", "names", "message"),
    [
        ([], made(REFERENCE), None, "received 0 networks"),
        (made_nets((8,), 2), [], None, "0 limits"),
        (
            made_nets((8,), 1),
            made(REFERENCE),
            None,
            r"width 8 needs at least two networks with different seeds: received the seeds \[0\]",
        ),
        (made_nets((8,), 2), made(REFERENCE), ("g",), "unknown observable: received 'g'; known: G1, Phi1, f"),
        (made_nets((8,), 2), made(REFERENCE), ("Phi1",), "no kernel 'Phi1': recorded are none"),
        (made_nets((8,), 2), made(REFERENCE[:-1]), None, "must share samples and time grid"),
        (
            [made(REFERENCE), made(REFERENCE)],
            made(REFERENCE),
            None,
            "takes finite networks: received a solution of made",
        ),
        (made_nets((8,), 2), made(0 * REFERENCE), ("f",), "zero throughout"),
    ],
)
def test_what_cannot_be_compared_is_refused(nets, limits, names, message):
    with pytest.raises(ValueError, match=message):
        mf.deviation(nets, limits, names)


def test_solutions_of_different_problems_are_refused():
    other = replace(made(REFERENCE), problem=replace(PROBLEM, scaling=mf.mean_field(2.0)))
    with pytest.raises(ValueError, match="different problems"):
        mf.deviation(made_nets((8,), 2), other)


def test_movement_and_alignment(solved):
    limit = solved[1][0]
    y = limit.problem.data.y
    assert (
        float(mf.movement(limit, "Phi1", 0, 0)) < 1e-15
    )  # a product of matrices has not the same last bits wherever it lies
    assert float(mf.movement(limit, "tangent_kernel")) > 0
    assert float(mf.alignment(y @ y.T, y)) == pytest.approx(1)
    assert float(mf.alignment(torch.eye(5), y)) == pytest.approx(1 / math.sqrt(5))


def predictions(steps, draws=400, error=2.0, problem=PROBLEM):
    """Of the networks above: N Var f = 1 and N bias = 30 for each number, with errors of 0.05 and 2 / 20"""
    g, n = torch.Generator().manual_seed(9), len(steps) * P
    index, values = torch.arange(n).reshape(len(steps), P, 1), REFERENCE[list(steps)]
    told = problem, steps, {"f": values}, {"f": index}
    groups = torch.stack([torch.eye(n, dtype=torch.float64) * v for v in (0.95, 1.0, 1.05)])
    variance = PredictedVariance(*told, {"method": "derivative"}, ("layer 1",), groups[:, None])
    estimates = 30 + error * torch.randn(draws, n, generator=g, dtype=torch.float64)
    return variance, PredictedBias(*told, {"draws": draws}, estimates)


@pytest.mark.parametrize("steps", [(T,), tuple(range(T + 1))])
def test_predictions_stand_beside_what_networks_show_at_their_steps(steps):
    nets, limits = made_nets((64, 256), 40, bias=30.0), [made(REFERENCE, seed=0), made(REFERENCE + 1e-9, seed=1)]
    variance, bias = predictions(steps)
    report = mf.deviation(nets, limits, ("f",), variance, bias=bias)
    of_variance, of_bias = report.predictions
    assert (of_variance.kind, of_bias.kind) == ("variance", "bias")
    assert of_variance.numbers == of_bias.numbers == len(steps) * P
    assert of_variance.whole == of_bias.whole == (len(steps) == T + 1)
    for width, seen in zip((64, 256), of_variance.measured, strict=True):
        f = torch.stack([net.f[list(steps)] for net in nets if net.width == width])
        assert seen == pytest.approx(float(width * f.var(0).mean()))
    assert of_variance.predicted == pytest.approx(1.0)
    assert of_variance.predicted_se == pytest.approx(0.05 / 3**0.5)
    assert of_bias.predicted == pytest.approx(30.0, abs=4 * of_bias.predicted_se)
    assert of_bias.predicted_se == pytest.approx(2 / 20 / (len(steps) * P) ** 0.5, rel=0.2)
    for p in report.predictions:
        ratio, error = p.ratio()
        assert np.all(np.abs(ratio - 1) < 4 * error)
        assert np.all(error < 0.2)
    at_the_end = (1.0, 0.05 / 3**0.5) if len(steps) == 1 else (math.nan, math.nan)
    assert (report.predicted_n_var, report.predicted_n_var_se) == pytest.approx(at_the_end, nan_ok=True)
    assert "N bias of f at step" in report.table()


def test_a_bias_within_its_error_is_told_so_and_noise_adds_nothing_to_it():
    """The mean square of 40 draws of 30 +- 60 is 900 + 90"""
    nets, limit = made_nets((64,), 4), made(REFERENCE)
    found = mf.deviation(nets, limit, bias=predictions((T,), 40, 60.0)[1]).predictions[0]
    assert found.predicted == pytest.approx(30.0, abs=4 * found.predicted_se)
    report = mf.deviation(nets, limit, bias=predictions((T,), 40, 2000.0)[1])
    assert math.isnan(report.predictions[0].predicted)
    assert "does not stand out of its error" in report.table()


def test_predictions_of_another_problem_are_refused():
    other = replace(PROBLEM, training=mf.Training(0.2, T))
    for given in predictions((T,), problem=other):
        name = "predicted" if isinstance(given, PredictedVariance) else "bias"
        with pytest.raises(ValueError, match=r"this Predicted\w+ is of another problem .* than the networks"):
            mf.deviation(made_nets((8,), 2), made(REFERENCE), ("f",), **{name: given})


def test_what_not_all_have_recorded_is_not_compared(solved):
    asked = solved[0][0].problem
    found = predicted_variance(asked, 64, observed=("f", "Phi1", "tangent_kernel"), steps=(1,), points=(0,))
    report = mf.deviation(*solved, predicted=found)
    assert [p.name for p in report.predictions] == ["f"]  # kernels are kept at the ends only
    assert math.isnan(report.predicted_n_var)  # it is of another step
    train = predicted_variance(asked, 64, points=range(5))
    assert train.names == ("f",)
    assert [p.name for p in mf.deviation(*solved, predicted=train).predictions] == ["f"]  # of f_test nothing was asked
    assert "f_test" not in str(train)
