"""Several problems in one picture are told apart, no letters are cut or lie on each other, and papers get what they print."""

import dataclasses
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text

import meanfield as mf
from meanfield.comparison.statistics import Exponent
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, measured_exponents, width_sweep

matplotlib.use("Agg")
pytestmark = pytest.mark.usefixtures("leaves_no_picture_behind")
plt = pytest.importorskip("matplotlib.pyplot")
plot = mf.plot


@pytest.fixture(scope="module")
def problem():
    return mf.Problem(mf.digits(n_train=8, n_test=6), mf.Network(1, "tanh"), training=mf.Training(0.2, 6))


@pytest.fixture(scope="module")
def limits(problem):
    """Of three gamma0"""
    solve = WassersteinFlow(2**7)
    return [solve(dataclasses.replace(problem, scaling=mf.mean_field(g))) for g in (0.5, 1.0, 2.0)]


@pytest.fixture(scope="module")
def nets(problem):
    """Of six widths, in the problem of the second limit"""
    return width_sweep(problem, (4, 8, 16, 32, 64, 128), 3)


@pytest.fixture(scope="module")
def powers(problem):
    return measured_exponents(problem, (8, 16, 32), 4)


def labels(ax):
    return [text for line in ax.get_lines() if not (text := str(line.get_label())).startswith("_")]


GAMMAS = [rf"$\gamma_0$ = {g}" for g in ("0.5", "1", "2")]


def test_limits_are_told_apart_by_what_differs_between_their_problems_in_all_panels(limits):
    ax = plot.loss(limits)
    assert labels(ax) == GAMMAS
    colours = {line.get_color() for line in ax.get_lines()}
    assert len(colours) == 3
    for panel in plot.outputs(limits, samples=(0, 1)):
        assert labels(panel) == [*GAMMAS, "target"]
        assert {line.get_color() for line in panel.get_lines()} >= colours
    for panel in plot.preactivations(limits):
        assert [patch.get_label() for patch in panel.patches] == GAMMAS
    assert [ax.get_title() for ax in plot.kernels(limits, steps=(0,))] == [f"{name}, time 0" for name in GAMMAS]
    assert labels(plot.loss(limits, label=("a", "b", "c"))) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"network": mf.Network(1, "relu")}, {}], ["relu", "tanh"]),
        ([{"training": mf.Training(0.1, 6)}, {}], [r"$\eta$ = 0.1", r"$\eta$ = 0.2"]),
        ([{"loss": "logistic"}, {}], ["logistic", "squared"]),
        ([{"training": mf.Training(0.2, 6, momentum=0.5)}, {}], ["momentum = 0.5", "momentum = 0"]),
        ([{"data": mf.digits((3, 8), 8, 6)}, {}], ["digits 3/8", "digits 0/1"]),
    ],
)
def test_names_say_what_differs_and_nothing_else(problem, changes, expected):
    solve = WassersteinFlow(2**5, snapshots=())
    assert labels(plot.loss([solve(dataclasses.replace(problem, **change)) for change in changes])) == expected


def test_networks_have_the_colour_and_name_of_their_problem(limits, nets):
    ax = plot.loss(nets, limits)
    assert labels(ax)[:2] == [rf"$\gamma_0$ = 1, N = {n}" for n in (4, 8)]
    assert r"$\gamma_0$ = 1, limit" in labels(ax)
    assert r"$\gamma_0$ = 2" in labels(ax)
    assert all(
        r"$\gamma_0$ = 1," in text for text in labels(ax.figure.axes[1])
    )  # the only ones with a limit of their own


def test_pictures_on_the_same_axes_have_other_colours(limits):
    ax = plot.loss(limits[0], label="first")
    plot.loss(limits[1], ax=ax, label="second")
    one, two = ax.get_lines()
    assert (one.get_label(), two.get_label()) == ("first", "second")
    assert one.get_color() != two.get_color()


def test_solvers_of_one_problem_are_told_apart(limits):
    other = CausalDMFT(64)(limits[0].problem)
    assert labels(plot.loss([limits[0], other])) == ["limit, WassersteinFlow", "limit, CausalDMFT"]


def test_samples_are_chosen_to_show_classes():
    data = mf.digits((0, 1, 2), n_train=12, n_test=6)
    run = FiniteWidth(4)(mf.Problem(data, training=mf.Training(0.1, 2), loss="cross_entropy"))
    shown = [int(ax.get_title().split()[2].rstrip(",")) for ax in plot.outputs(run)]
    assert data.y[shown].argmax(1).tolist() == [0, 1, 2]
    assert shown == [int((data.y.argmax(1) == k).nonzero()[0, 0]) for k in range(3)]
    assert [ax.get_title().split(",")[1] for ax in plot.outputs(run)] == [" class 0", " class 1", " class 2"]
    teacher = mf.single_index_teacher(9, 0, 2)
    run = FiniteWidth(4)(mf.Problem(teacher, training=mf.Training(0.1, 2)))
    shown = [int(ax.get_title().split()[2]) for ax in plot.outputs(run)]
    order = teacher.y[:, 0].argsort().tolist()
    assert shown == [order[0], order[4], order[8]]


def test_over_pairs_of_times_pictures_are_in_units_of_time(problem):
    run = CausalDMFT(64, two_time=True)(dataclasses.replace(problem, network=mf.Network(2)))
    axes = plot.two_times(run, ("Phi2",))
    assert axes[0].get_xlabel() == "time $s$"
    corners = axes[0].collections[0].get_coordinates()[..., 0]
    assert np.isclose(corners.min(), -0.1)
    assert np.isclose(corners.max(), 6 * 0.2 + 0.1)
    (bar,) = set(axes[0].figure.axes) - {*axes}
    assert bar.get_ylabel() == "mean over samples"


def test_deviations_have_a_guide_and_the_error_of_the_limit(problem, nets, limits):
    report = mf.deviation(nets, [limits[1], WassersteinFlow(2**7, seed=1)(problem)], ("f", "Phi1"))
    for ax, d in zip(plot.deviation(report), report.observables.values(), strict=True):
        found = {str(line.get_label()): line for line in ax.get_lines()}
        guide = found["$N^{-1/2}$"]
        assert np.allclose(np.diff(np.log(guide.get_ydata())) / np.diff(np.log(guide.get_xdata())), -0.5)
        assert set(found["error of the limit"].get_ydata()) == {d.reference_error}
    deep = dataclasses.replace(report, observables={**report.observables, "Phi2": dataclasses.replace(d, name="Phi2")})
    assert plot.deviation(deep)[-1].get_title() == r"feature kernel $\Phi^{2}$, last snapshot"


SPANS = [(1.0, 1.3), (0.9, 2.2), (0.3, 0.31), (2e-4, 0.9)]
SEVERAL = {
    "loss": lambda n, l, w: plot.loss(n, l[1]),
    "losses": lambda n, l, w: plot.loss(n, l),
    "outputs": lambda n, l, w: plot.outputs(n, l[1]),
    "deviation": lambda n, l, w: plot.deviation(mf.deviation(n, l[1], ("f", "loss", "tangent_kernel"))),
    "one power": lambda n, l, w: plot.powers(w),
    "powers": lambda n, l, w: plot.powers([w, w, w]),
    "kernels": lambda n, l, w: plot.kernels([l[0], n[0]], "tangent_kernel"),
    "one kernel": lambda n, l, w: plot.kernels(l[0], "G1"),
    **{f"loss {span}": lambda n, l, w, span=span: _spanning(l[0], *span) for span in SPANS},
}


def _spanning(limit, low, high):
    """Losses between two ends"""
    f = limit.problem.data.y * (1 - torch.linspace(high, low, 7, dtype=torch.float64).sqrt()[:, None, None] * 2**0.5)
    return plot.loss(dataclasses.replace(limit, f=f))


@pytest.mark.parametrize("name", SEVERAL)
def test_letters_are_neither_cut_nor_on_each_other(name, nets, limits, powers, tmp_path):
    axes = SEVERAL[name](nets, limits, powers)
    figure = np.atleast_1d(axes)[0].figure
    for _ in range(2):  # as `save` does
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    around = figure.get_tightbbox()
    assert min(around.x0, around.y0) > -0.02
    assert around.x1 < width + 0.02
    assert around.y1 < height + 0.02
    for ax in figure.axes:
        assert min(ax.get_window_extent().width, ax.get_window_extent().height) > 8  # of a colour bar
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [t.label1 for t in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if t.label1.get_visible()]
            inside = [t for t in ticks if t.get_text() and ax.bbox.expanded(1.3, 1.3).overlaps(t.get_window_extent())]
            _apart(inside)
            assert len(inside) >= 2 or not inside
        _apart(ax.texts)
    assert all(ax.get_window_extent().width > 100 for ax in np.atleast_1d(axes))


def _apart(texts):
    boxes = [Text.get_window_extent(text).padded(-1.5) for text in texts if text.get_visible()]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_papers_get_their_width_small_letters_and_vectors(limits, tmp_path):
    with plot.paper(3.4, 7.0):
        ax = plot.loss(limits)
        assert ax.figure.get_size_inches()[0] == 3.4
        assert ax.xaxis.label.get_size() == 7.0
        plot.save(ax, tmp_path / "loss.svg")
    assert "training time" in (tmp_path / "loss.svg").read_text(encoding="utf-8")  # letters, not their outlines
    assert plot.loss(limits).figure.get_size_inches()[0] == 5.2
    with pytest.raises(ValueError, match="width must be positive and finite: received 0"), plot.paper(0):
        pass


@pytest.fixture(scope="module")
def deep(problem):
    return CausalDMFT(64)(dataclasses.replace(problem, network=mf.Network(2)))


IN_PRINT = {
    "two times": lambda flow, nets, powers, deep: plot.two_times(deep, ("Phi1", "Phi2", "G1", "G2")),
    "outputs": lambda flow, nets, powers, deep: plot.outputs(nets[:9], flow),
    "preactivations": lambda flow, nets, powers, deep: plot.preactivations(nets[:9], flow),
    "particles": lambda flow, nets, powers, deep: plot.particles(flow),
    "kernels": lambda flow, nets, powers, deep: plot.kernels([flow, nets[0]]),
    "powers": lambda flow, nets, powers, deep: plot.powers([powers, powers, powers]),
    "deviation": lambda flow, nets, powers, deep: plot.deviation(mf.deviation(nets[:9], flow)),
}


@pytest.mark.parametrize("name", IN_PRINT)
def test_in_a_column_of_a_paper_no_letters_lie_on_each_other(limits, nets, powers, deep, name, tmp_path):
    with plot.paper():
        axes = np.atleast_1d(IN_PRINT[name](limits[1], nets, powers, deep))
        plot.save(axes, tmp_path / "picture.png", 100)
    figure = axes[0].get_figure(root=True)
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label]
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            shown = [
                tick.label1
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
            ]
            texts += [text for text in shown if text.get_text()]
    texts = [text for text in texts if text.get_text()]
    assert len(texts) > 10
    _apart(texts)
    whole = figure.bbox.padded(1.5)
    assert all(whole.containsx(end) for text in texts for end in text.get_window_extent().intervalx)


def test_losses_that_hardly_change_fill_their_axis(limits, nets):
    small = WassersteinFlow(2**5)(dataclasses.replace(limits[0].problem, training=mf.Training(1e-3, 6)))
    for ax in (plot.loss(small), plot.loss(nets[:9], limits[1])):
        (low, high), box = np.log(ax.get_ylim()), np.log(ax.dataLim.intervaly)
        assert min(high, box[1]) - max(low, box[0]) > 0.7 * (high - low)


def test_intervals_beyond_all_powers_do_not_squeeze_them(powers):
    law = dataclasses.replace(powers["f0"], measured=Exponent(-0.5, -40.0, 39.0))
    (ax,) = plot.powers(dataclasses.replace(powers, quantities={**powers.quantities, "f0": law}))
    assert np.diff(ax.get_xlim()) < 5
