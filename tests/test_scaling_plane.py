"""The scaling plane: one network at the reference width, the powers of the width, and the regions of well-defined limits."""

import math
import re
from dataclasses import replace

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch

import meanfield as mf
import solvers
from meanfield.scaling import plane as scaling_plane
from meanfield.scaling import scaling
from meanfield.scaling.scaling import NAMED, Scaling, coinciding
from solvers import FiniteWidth, WassersteinFlow
from solvers.studies.measured_exponents import measured_exponents


def problem(which, steps=4, depth=1, eta=0.5, **network):
    data = mf.digits((3, 8), n_train=8, n_test=3)
    return mf.Problem(data, mf.Network(depth, "tanh", **network), which, mf.Training(eta, steps), "logistic")


# ---- the reference width ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
def test_all_scalings_train_the_same_network_at_the_reference_width_and_there_only(depth):
    runs = {
        width: [
            FiniteWidth(width, seed=3)(problem(s, depth=depth, bias_std=0.3))
            for s in coinciding(mf.mean_field(0.7), 24).values()
        ]
        for width in (24, 48)
    }
    assert len(runs[24]) == len(NAMED)
    for solution in runs[24][1:]:
        assert torch.equal(solution.f, runs[24][0].f)
        assert torch.equal(solution.f_test, runs[24][0].f_test)
        assert torch.equal(solution.tangent_kernels, runs[24][0].tangent_kernels)
    for i, solution in enumerate(runs[48]):
        assert all(not torch.allclose(solution.f, other.f) for other in runs[48][:i])


@pytest.mark.parametrize("name", NAMED)
def test_matching_takes_the_values_of_the_other_at_the_width(name):
    own, other = scaling.named(name), Scaling(-0.8, 0.3, 0.6, sigma=2.0, eta_a=0.5, eta_w=3.0, reference_width=10)
    found = own.matching(other, 40)
    assert found.output_multiplier(40) == other.output_multiplier(40)
    assert found.learning_rate_multipliers(40) == other.learning_rate_multipliers(40)
    assert found.output_multiplier(640) == pytest.approx(other.output_multiplier(40) * 16**own.q_sigma, rel=1e-13)
    assert found.frozen == own.frozen


@pytest.mark.parametrize("reference", [1, 64])
def test_named_points(reference):
    width = 256
    ratio = width / reference
    for s, rates in (
        (scaling.default(reference), (ratio, 1)),
        (scaling.sym_default(reference), (ratio**0.5, ratio**0.5)),
    ):
        assert s.output_multiplier(width) == pytest.approx(width**-0.5, rel=1e-13)
        assert s.learning_rate_multipliers(width) == pytest.approx(rates, rel=1e-13)
    ic, mean_field = scaling.ic_mean_field(0.5, reference), mf.mean_field(0.5)
    assert ic.output_multiplier(width) == pytest.approx(mean_field.output_multiplier(width), rel=1e-13)
    assert ic.learning_rate_multipliers(width) == pytest.approx(mean_field.learning_rate_multipliers(width), rel=1e-13)
    assert not ic.is_mean_field
    assert ic.trained.is_mean_field


@pytest.mark.parametrize("width", [16, 64, 4096])
def test_the_frozen_part_keeps_the_initial_output_finite(width):
    """Both ways: together with the trained part, sigma* (N/N*)^-1/2; and in excess of it by the mean-field output."""
    matched, added = (scaling.ic_mean_field(2.0, 64, frozen) for frozen in ("matched", "added"))
    sigma = 1 / (2.0 * 64)
    assert matched.frozen_multiplier(width) + matched.output_multiplier(width) == pytest.approx(
        sigma * (width / 64) ** -0.5
    )
    assert added.frozen_multiplier(width) == pytest.approx(sigma * (width / 64) ** -0.5)
    assert scaling.ic_mean_field(2.0, 64).frozen_multiplier(64) == 0.0
    assert mf.ntk().frozen_multiplier(width) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaling(-1, 1, 1, frozen="yes"), "unknown frozen part: received 'yes'; known: added, matched, none"),
        (lambda: scaling.default(0), "width must be at least 1: received 0"),
        (lambda: scaling.ic_mean_field(1.0, 2.5), "reference_width must be a whole number"),
        (lambda: scaling.ic_mean_field().measure_limit(), "frozen part .* take WassersteinFlow"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- classification --------------------------------------------------------------------------------------------------

EXPECTED = {  # the four properties, logits, solver
    "ntk": ((True, True, True, False), "finite", "TangentKernelLimit"),
    "mean_field": ((False, True, False, True), "finite", "WassersteinFlow"),
    "ic_mean_field": ((True, True, True, True), "finite", "WassersteinFlow"),
    "sym_default": ((True, False, False, True), "infinite", "InfiniteLogitsLimit"),
    "default": ((True, False, False, True), "infinite", "InfiniteLogitsLimit"),
}


FIVE = ("ntk", "mean_field", "ic_mean_field", "sym_default", "default")


def test_every_named_scaling_is_expected_somewhere_in_the_plane():
    assert set(EXPECTED) == set(NAMED)


@pytest.mark.parametrize("name", EXPECTED)
def test_properties_of_the_named_points(name):
    """As in Golikov's talk: NTK, mean field and sym-default have as many as any point of the plane, IC-MF has all four."""
    found = scaling_plane.classify(scaling.named(name))
    assert (found.properties, found.logits, found.solver) == EXPECTED[name]
    assert found.well_defined
    assert found.solver in str(found)


def test_on_the_plane_the_general_conditions_are_the_four_lines_and_the_band():
    """q_a = q_w = q: f0 finite on q_sigma = -1/2, and so on; well-defined in -1/2 <= q_sigma + q <= 0 (equation 65)."""
    seen = set()
    for i in range(-32, 9):
        for j in range(-16, 33):
            q_sigma, q = i / 16, j / 16
            found = scaling_plane.classify(Scaling(q_sigma, q, q))
            lines = (q_sigma == -0.5, 2 * q_sigma + q == -1, q_sigma + q == -0.5, q_sigma + q == 0)
            assert found.properties[:3] == lines[:3]
            assert found.well_defined == (-0.5 <= q_sigma + q <= 0)
            if found.well_defined:
                assert found.kernel_evolves == lines[3]
                seen.add(sum(lines))
                assert found.logits == ("finite" if lines[1] else "infinite" if 2 * q_sigma + q > -1 else "vanishing")
    assert max(seen) == 3  # three of four at most


@pytest.mark.parametrize("exponents", [(-0.5, 1, 0), (-0.6, 1.1, -0.1), (-1.5, 2, 1)])
def test_units_of_the_readouts_do_not_matter_once_their_start_is_forgotten(exponents):
    """a = N^-p a' turns (q_sigma, q_a, q_w) into (q_sigma + p, q_a - 2 p, q_w); all that training does stays as it is (equation 66)."""
    one = scaling_plane.exponents(Scaling(*exponents))
    for p in (0.1, 0.3, -0.5):
        other = scaling_plane.exponents(Scaling(exponents[0] + p, exponents[1] - 2 * p, exponents[2]))
        for name in ("kernel", "f", "weights", "kernel_change"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-12), name
        assert other.f0 == pytest.approx(one.f0 + p)
        assert other.readouts == pytest.approx(one.readouts - p)


@pytest.mark.parametrize(
    ("exponents", "message"),
    [
        ((-0.5, 0.6, 0.6), "not well-defined: none: the weights diverge"),
        ((-0.5, 0.0, 0.6), "not well-defined: none: the weights diverge"),
        ((-0.5, 1.2, 0.0), "not well-defined: none: the weights diverge"),
        ((-0.5, -0.2, -0.2), "not well-defined: none: the outputs stay at their start"),
        ((-1.0, 0.8, 0.8), "outputs vanish like N.-0.2"),
        ((-1.0, 1.0, 0.0), "in which the readouts move"),
        ((-1.0, 0.5, 1.0), "in which the input weights move"),
        ((-0.75, 0.5, 0.5), "solver: TangentKernelLimit"),
        ((-0.6, 0.3, 0.3), "no solver here for a constant kernel at infinite logits"),
        ((-0.4, 0.4, 0.4), "solver: InfiniteLogitsLimit"),
    ],
)
def test_other_points_say_what_becomes_of_them(exponents, message):
    assert re.search(message, str(scaling_plane.classify(Scaling(*exponents))))


def test_regions_hold_what_they_say():
    """Inner points of each polygon and line classify alike, and the regions cover the band."""
    rng = np.random.default_rng(0)
    for region in scaling_plane.regions():
        corners = np.array(region.corners)
        logits = set()
        for weights in rng.dirichlet(np.ones(len(corners)), 20):
            q_sigma, q = weights @ corners
            found = scaling_plane.classify(Scaling(q_sigma, q, q))
            assert found.well_defined, (region.name, q_sigma, q)
            logits.add(found.logits)
            assert found.kernel_evolves == (region.name == "kernel evolves")
        if "logits" in region.name:
            assert logits == {next(word for word in ("vanishing", "infinite", "finite") if word in region.name)} or (
                region.name == "f0 finite, logits infinite" and logits == {"infinite"}
            )


# ---- measured from networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exponents", "names"),
    [
        ((-0.5, 0, 0), ("f0", "kernel", "f", "readouts", "weights", "kernel_change")),
        ((-0.5, 1, 0), ("f0", "kernel", "readouts")),
        ((-0.5, 0.5, 0.5), ("f0", "kernel", "readouts", "weights")),
        ((-1, 1, 1), ("f0", "kernel", "readouts", "weights")),
        ((-0.75, 0.5, 0.5), ("f0", "kernel", "readouts", "weights")),
        ((-0.5, -0.4, 0.2), ("f0", "kernel", "readouts", "weights")),
    ],
)
def test_predicted_powers_are_those_of_networks(exponents, names):
    """Slopes over N = 64..4096 within 0.15, eight seeds; left out is what finite widths bend: f near f0, odd terms of K"""
    asked = problem(Scaling(*exponents), steps=3, eta=0.3)
    found = measured_exponents(asked, (64, 512, 4096), 8, FiniteWidth(dtype="float32"))
    for name in names:
        law = found[name]
        assert law.measured.slope == pytest.approx(law.predicted, abs=0.15), name
        assert law.measured.low <= law.measured.slope <= law.measured.high
    assert "predicted" in str(found)


def test_weights_diverge_above_the_band():
    found = measured_exponents(problem(Scaling(-0.5, 0.9, 0.9), steps=2), (64, 512, 4096), 4)
    assert found["weights"].measured.low > 0.25
    assert not scaling_plane.classify(found.scaling).well_defined


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(problem=problem(mf.ntk(), depth=2)), "known for depth 1: received depth 2"),
        (dict(widths=(8, 16)), "at least 3 widths: received"),
        (dict(seeds=1), "at least 2 seeds"),
        (dict(problem=problem(mf.ntk(), steps=1)), "at least 2 steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    arguments = dict(problem=problem(mf.ntk()), widths=(4, 8, 16), seeds=2) | change
    with pytest.raises(ValueError, match=message):
        measured_exponents(**arguments)


def test_a_scaling_with_a_frozen_part_is_another_problem():
    asked = problem(scaling.ic_mean_field())
    assert replace(asked, scaling=asked.scaling.trained) != asked


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_the_picture_of_the_plane_marks_the_points_and_puts_regions_between_its_lines():
    matplotlib.use("Agg")
    ax = mf.plot.scaling_plane({name: NAMED[name]() for name in FIVE})
    told = " ".join(text.get_text() for text in ax.texts)
    assert all(name in told for name in FIVE)
    marks = {tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o"}
    assert marks == {(-1, 1), (-0.5, 0), (-0.5, 0.5)}
    assert len(ax.patches) == 3
    given = matplotlib.pyplot.figure().add_subplot()
    assert mf.plot.scaling_plane({"mine": Scaling(-0.7, 0.6, 0.4)}, ax=given) is given
    matplotlib.pyplot.close("all")


def test_the_picture_of_powers_shows_predictions_and_measurements():
    matplotlib.use("Agg")
    report = measured_exponents(problem(mf.ntk(), steps=2), (8, 16, 32), 3)
    (ax,) = mf.plot.powers(report)
    drawn = {tuple(line.get_xdata()) for line in ax.lines}
    assert tuple(law.predicted for law in list(report.quantities.values())[::-1]) in drawn
    assert tuple(law.measured.slope for law in list(report.quantities.values())[::-1]) in drawn
    matplotlib.pyplot.close("all")


# ---- rounding in exponents --------------------------------------------------------------------------------------------

ROUNDED = [(1e-12, -1e-12, 1e-12), (-9e-10, 9e-10, -9e-10), (9e-10, 9e-10, 9e-10), (2e-16, 0, -2e-16)]


@pytest.mark.parametrize("apart", ROUNDED)
@pytest.mark.parametrize(
    "point", [(-1.0, 1.0, 1.0), (-0.5, 0.0, 0.0), (-0.75, 0.5, 0.5), (-0.5, 0.5, 0.5), (-0.5, 1.0, 0.0)]
)
def test_a_point_within_rounding_of_another_is_that_point_for_all_who_ask(point, apart):
    meant, given = Scaling(*point), Scaling(*(q + e for q, e in zip(point, apart, strict=True)))
    assert given == meant
    assert replace(scaling_plane.classify(given), scaling=meant) == scaling_plane.classify(meant)
    asked = problem(given, steps=2)
    solver = getattr(solvers, scaling_plane.classify(given).solver or "FiniteWidth")()
    assert torch.equal(solver(asked).f, solver(problem(meant, steps=2)).f)


def test_points_further_away_are_other_points():
    """1e-6 beside mean field is another limit, and the solver that is named takes it"""
    near = Scaling(-1 + 1e-6, 1.0, 1.0)
    assert not near.is_mean_field
    assert scaling_plane.classify(near).solver != "WassersteinFlow"
    with pytest.raises(ValueError, match="has no limit as a flow of measures"):
        WassersteinFlow(64)(problem(near))


@pytest.mark.parametrize("q", [1 / 3, -0.1 - 0.4, 0.7 + 0.2, math.pi / 5])
def test_exponents_keep_their_value(q):
    """To the tolerance, and the bits of those that are no simple fraction"""
    assert Scaling(q, q, q).q_a == pytest.approx(q, abs=1e-15)
    assert Scaling(q, 2 * q, -4 * q - 1).q_a == 2 * Scaling(q, q, q).q_a
