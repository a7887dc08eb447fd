"""Pictures show the numbers they claim to, say what they show, and leave nothing behind."""

import dataclasses
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import (
    CausalDMFT,
    FiniteWidth,
    WassersteinFlow,
    WidthFor,
    predicted_bias,
    predicted_variance,
    residual,
    width_sweep,
)
from tests.running import environment

matplotlib.use("Agg")
pytestmark = pytest.mark.usefixtures("leaves_no_picture_behind")
plt = pytest.importorskip("matplotlib.pyplot")
plot = mf.plot

WIDTHS, SEEDS = (8, 16, 32), 4


@pytest.fixture(scope="module")
def problem():
    return mf.Problem(mf.digits(n_train=8, n_test=6), mf.Network(1, "tanh"), training=mf.Training(0.2, 6))


@pytest.fixture(scope="module")
def limit(problem):
    return WassersteinFlow(2**8, snapshots=(0, 3, -1))(problem)


@pytest.fixture(scope="module")
def nets(problem):
    return width_sweep(problem, WIDTHS, SEEDS)


@pytest.fixture(scope="module")
def report(problem, nets, limit):
    names = ("f", "loss", "Phi1", "tangent_kernel", "h1")
    return mf.deviation(nets, limit, names, predicted=torch.full((8, 1), 0.2))


@pytest.fixture(scope="module")
def classes():
    """Three classes and biases: a network and its limit"""
    data = mf.digits((0, 1, 2), n_train=9, n_test=6)
    problem = mf.Problem(data, mf.Network(bias_std=0.5), training=mf.Training(0.2, 4), loss="cross_entropy")
    return WassersteinFlow(2**7)(problem), FiniteWidth(8)(problem)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


PICTURES = {
    "loss": lambda n, l, r: plot.loss(n, l),
    "loss of one": lambda n, l, r: plot.loss(l),
    "test loss": lambda n, l, r: plot.loss(n, [l, l], test=True),
    "outputs": lambda n, l, r: plot.outputs(n, l),
    "outputs of tests": lambda n, l, r: plot.outputs(n, l, (1, -1), test=True, difference=True),
    "deviation": lambda n, l, r: plot.deviation(r),
    "deviation of three": lambda n, l, r: plot.deviation(r, ("h1", "f", "loss")),
    "variance": lambda n, l, r: plot.variance(r),
    "kernels": lambda n, l, r: plot.kernels([l, n[0]], steps=(0, -1)),
    "tangent kernels": lambda n, l, r: plot.kernels(l, "tangent_kernel", (-1,)),
    "preactivations": lambda n, l, r: plot.preactivations(n, l),
    "particles": lambda n, l, r: plot.particles(l, (0, 3, -1)),
    "particles of a network": lambda n, l, r: plot.particles(n[0]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_axes_say_what_they_show(name, nets, limit, report):
    axes = np.atleast_1d(PICTURES[name](nets, limit, report))
    figure = axes[0].figure
    figure.draw_without_rendering()  # warnings are errors
    assert figure.axes[-1].get_xlabel() or axes[-1].get_xlabel()
    assert axes[0].get_ylabel()
    above = [ax for ax in axes if not ax.get_ylabel().startswith("$f$ less") and ax.get_gridspec().nrows == 1]
    assert len(axes) == 1 or all(ax.get_title() for ax in above)
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize(("name", "panels"), [("loss", 1), ("outputs", 3), ("preactivations", 2), ("particles", 2)])
def test_pictures_are_drawn_on_given_axes(name, panels, limit):
    _, given = plt.subplots(1, panels)
    returned = getattr(plot, name)(limit, ax=given)
    assert list(np.atleast_1d(returned)) == list(np.atleast_1d(given))
    assert len(plt.get_fignums()) == 1


@pytest.mark.processes
def test_importing_the_packages_does_not_load_matplotlib():
    code = "import meanfield, solvers, sys; print('matplotlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_loss_draws_the_limit_and_mean_and_band_of_each_width(nets, limit):
    ax = plot.loss(nets, limit)
    drawn, less = lines(ax), ax.figure.axes[1]
    assert np.array_equal(drawn["limit"].get_xydata(), torch.stack([limit.times, limit.loss], 1))
    assert drawn["limit"].get_color() == "black"
    for width, band in zip(WIDTHS, ax.collections, strict=True):
        values = torch.stack([net.loss for net in nets if net.width == width]).numpy()
        mean, spread = values.mean(0), values.std(0, ddof=1)
        assert np.allclose(drawn[f"N = {width}"].get_ydata(), mean)
        edges = band.get_paths()[0].vertices[:, 1]
        assert all(np.isclose(edges, value).any() for value in [*(mean - spread), *(mean + spread)])
        error = spread / SEEDS**0.5
        assert np.allclose(lines(less)[f"N = {width}"].get_ydata(), mean - limit.loss.numpy())
        edges = less.collections[WIDTHS.index(width)].get_paths()[0].vertices[:, 1]
        assert all(np.isclose(edges, value).any() for value in [*(mean - limit.loss.numpy() + error)])
    assert f"± 1 std over {SEEDS} seeds" in ax.get_ylabel()
    assert {text.get_text() for text in ax.texts} == drawn.keys()
    given = plt.figure().subplots()
    plot.loss(nets, limit, given)
    assert f"± 1 std over {SEEDS} seeds" in given.get_legend().get_title().get_text()
    assert ax.get_yscale() == "log"


def test_a_band_below_zero_does_not_set_the_scale_of_the_loss(problem, limit):
    """Two networks whose losses differ by orders of magnitude"""
    good, bad = (
        dataclasses.replace(limit, f=limit.problem.data.y + scale * torch.ones(7, 8, 1), solver={"width": 4})
        for scale in (1e-4, 1.0)
    )
    ax = plot.loss([good, bad])
    ax.figure.draw_without_rendering()
    assert ax.get_ylim()[0] > 0.01


@pytest.mark.parametrize("smallest", [0.5, 1e-1, 1e-3, 1e-6, 1e-12])
def test_losses_over_many_decades_and_over_few_have_labelled_ticks(limit, smallest):
    scale = torch.linspace(1, smallest, len(limit.f))[:, None, None]
    ax = plot.loss(dataclasses.replace(limit, f=limit.problem.data.y * (1 - scale)))
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 2


def test_outputs_draws_single_samples_their_targets_and_differences(nets, limit):
    samples = (0, 5)
    axes = plot.outputs(nets, limit, samples)
    assert len(axes) == 2 * len(samples)
    for ax, mu in zip(axes, samples, strict=False):
        assert np.array_equal(lines(ax)["limit"].get_ydata(), limit.f[:, mu, 0])
        assert set(lines(ax)["target"].get_ydata()) == {float(limit.problem.data.y[mu, 0])}
    ax = plot.outputs(nets, limit, (2,), test=True, difference=True)[0]
    expected = torch.stack([s.f_test[:, 2, 0] for s in nets if s.width == 8]).mean(0) - limit.f_test[:, 2, 0]
    assert np.allclose(lines(ax)["N = 8"].get_ydata(), expected)
    assert "target" not in lines(ax)


def test_outputs_of_several_classes_are_those_of_the_right_class(classes):
    limit, net = classes
    right = int(limit.problem.data.y[4].argmax())
    ax = plot.outputs(net, limit, (4,))[0]
    assert np.array_equal(lines(ax)["limit"].get_ydata(), limit.f[:, 4, right])
    assert f"output {right}" in ax.get_title()
    other = plot.outputs(net, limit, (4,), output=(right + 1) % 3)[0]
    assert np.array_equal(lines(other)["limit"].get_ydata(), limit.f[:, 4, (right + 1) % 3])


def test_deviation_draws_points_the_fitted_power_and_the_floor(report):
    for ax, name in zip(plot.deviation(report, ("f", "h1")), ("f", "h1"), strict=True):
        d = report[name]
        points, *bars = ax.containers[0].lines
        assert np.allclose(points.get_ydata(), d.deviation)
        assert len(bars) == 2
        exponent = next(iter(d.exponents.values()))
        (fit,) = (line for label, line in lines(ax).items() if "propto" in label)
        slope = np.diff(np.log(fit.get_ydata())) / np.diff(np.log(fit.get_xdata()))
        assert np.allclose(slope, exponent.slope)
        assert f"{exponent.slope:.2f}" in fit.get_label()
        assert f"{exponent.low:.2f}" in fit.get_label()
        assert any(np.array_equal(line.get_ydata(), d.floor) for line in lines(ax).values())
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(n) for n in WIDTHS]


def test_bias_is_drawn_where_it_was_detected_only(report):
    f = report["f"]
    biased = dataclasses.replace(f, bias2=np.array([0.04, 0.01, -1e-4]), bias2_se=np.array([1e-3, 1e-3, 1e-3]))
    ax = plot.deviation(dataclasses.replace(report, observables={"f": biased}))[0]
    (bias,) = (c for c in ax.containers if c.get_label() == "|bias|")
    assert np.allclose(bias.lines[0].get_xydata(), [[8, 0.2], [16, 0.1]])
    ax.figure.draw_without_rendering()


def test_variance_draws_measurement_and_prediction(report):
    ax = plot.variance(report)
    assert np.allclose(ax.containers[0].lines[0].get_ydata(), report.n_var)
    assert set(lines(ax)["predicted before training"].get_ydata()) == {report.predicted_n_var}
    without = plot.variance(dataclasses.replace(report, predicted_n_var=float("nan")))
    assert "predicted before training" not in lines(without)


@pytest.fixture(scope="module")
def foretold(problem, nets, limit):
    """A report with predictions, what was predicted, and the width that follows"""
    variance = predicted_variance(problem, 64, observed=("f", "Phi1"), groups=3)
    bias = predicted_bias(problem, 16, 30)
    return mf.deviation(nets, limit, predicted=variance, bias=bias), variance, WidthFor(100, 9, 0.1, 2, 1.5, 0.4, 0.9)


def test_predictions_are_drawn_beside_measurements_and_as_ratios(foretold):
    report = foretold[0]
    shown = [p for p in report.predictions if np.isfinite(p.predicted)]
    axes = plot.predictions(report)
    assert len(axes) == 2 * len(shown) >= 4
    for p, ax, ratio in zip(shown, axes[::2], axes[1::2], strict=True):
        by = np.array(WIDTHS) if p.kind == "variance" else 1
        assert np.allclose(ax.containers[0].lines[0].get_ydata(), p.measured / by)
        (line,) = (line for label, line in lines(ax).items() if "predicted" in label)
        scale = line.get_xdata() if p.kind == "variance" else 1
        assert np.allclose(line.get_ydata() * scale, p.predicted)
        assert np.allclose(ratio.containers[0].lines[0].get_ydata(), p.ratio()[0])
        ax.figure.draw_without_rendering()
    panel = plot.deviation(report, ("Phi1",))[0]
    phi = next(p for p in report.predictions if p.name == "Phi1")
    expected = np.sqrt(phi.predicted / np.array(WIDTHS)) / phi.size
    assert np.allclose(lines(panel)["predicted std"].get_ydata(), expected)
    assert "predicted std" not in lines(plot.deviation(report, ("f",))[0])  # of the last step alone
    with pytest.raises(ValueError, match=r"holds no predictions: give deviation .* predicted= and bias="):
        plot.predictions(dataclasses.replace(report, predictions=()))


def test_predicted_variance_is_stacked_by_the_layers_it_comes_from(foretold):
    problem = dataclasses.replace(foretold[1].problem, network=mf.Network(2, "tanh"))
    last, run = (predicted_variance(problem, 128, groups=2, observed=("f",), steps=s) for s in ((-1,), (0, 3, 6)))
    ax = plot.predicted_variance(last)
    tops = [
        max(bar.get_y() + bar.get_height() for bar in ax.patches if round(bar.get_x() + 0.4) == k) for k in range(8)
    ]
    assert np.allclose(tops, last.train[:, 0])
    some = predicted_variance(problem, 128, groups=1, points=(0,))
    with pytest.raises(ValueError, match="unknown observable: received 'f_test'; known: f"):
        plot.predicted_variance(some, "f_test")
    bias = predicted_bias(problem, 32, 2, points=(0, 2), steps=(0, -1))
    for line, mu in zip(plot.predicted_bias(bias).get_lines()[1:], (0, 2), strict=True):
        assert np.allclose(line.get_ydata(), bias.bias()[:, mu, 0])
    ax = plot.predicted_variance(run)
    assert np.allclose(ax.containers[0].lines[0].get_ydata(), run.variance().mean((1, 2)))
    assert ax.get_xlabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["layer 1", "layer 2"]
    ax.figure.draw_without_rendering()


def test_the_width_for_an_error_lies_on_its_curve(foretold):
    found = foretold[2]
    ax = plot.width_for(found)
    n, y = lines(ax)["mean of 2 networks"].get_data()
    assert np.allclose(y, np.sqrt(1.5 / (2 * n) + 0.4 / n**2) / 0.9)
    (mark,) = (c.lines[0] for c in ax.containers)
    assert np.allclose(mark.get_xydata(), [[100, 0.1]])
    ax.figure.draw_without_rendering()


def test_kernels_are_sorted_by_class_and_share_colours_at_a_step(limit, nets):
    axes = plot.kernels([limit, nets[0]], "Phi1", (0, -1))
    y = limit.problem.data.y[:, 0].numpy()
    order, border = np.argsort(y, kind="stable"), int((y < 0).sum())
    shown = limit.kernels["Phi1"].at(-1).numpy()[np.ix_(order, order)]
    assert np.array_equal(axes[1].images[0].get_array(), shown)
    norms = [id(ax.images[0].norm) for ax in axes]
    assert norms[0] == norms[2] != norms[1] == norms[3]
    assert len({id(ax.images[0].norm) for ax in plot.kernels([limit, nets[0]], "Phi1", scale="all")}) == 1
    assert len({id(ax.images[0].norm) for ax in plot.kernels([limit, nets[0]], "Phi1", scale="panel")}) == 4
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["1", "0"]  # digits 1 are -1, digits 0 are +1
    assert lines(axes[0])["_child1"].get_ydata()[0] == border - 0.5
    assert [ax.get_title().split(",")[0] for ax in axes] == ["limit", "limit", "N = 8", "N = 8"]


def test_kernels_of_several_outputs_average_over_equal_outputs(classes):
    limit, _ = classes
    ax = plot.kernels(limit, "tangent_kernel", (0,))[0]
    expected = torch.einsum("icjc->ij", limit.tangent_kernel(0)).numpy() / 3
    order = np.argsort(limit.problem.data.y.argmax(1).numpy(), kind="stable")
    assert np.allclose(ax.images[0].get_array(), expected[np.ix_(order, order)])
    assert len(ax.get_lines()) == 4  # two borders, across and down


def test_preactivations_are_weighted_densities(limit, nets):
    axes = plot.preactivations(nets, limit, sample=3, steps=(-1,), bins=30)
    drawn = {patch.get_label(): patch.get_data() for patch in axes[0].patches}
    assert list(drawn) == [*(f"N = {n}" for n in WIDTHS), "limit"]
    for values, edges, _ in drawn.values():
        assert 0.97 < float((values * np.diff(edges)).sum()) <= 1 + 1e-9
    h, m = limit.preactivations(-1)
    expected = np.histogram(h[:, 3].numpy(), drawn["limit"].edges, weights=m.numpy())[0]
    assert np.allclose(drawn["limit"].values * np.diff(drawn["limit"].edges), expected)


def test_particles_of_two_inputs_are_shown_as_they_are():
    data = mf.single_index_teacher(6, 0, inputs=2)
    solution = WassersteinFlow(2**12, snapshots=(0, 2, -1))(mf.Problem(data, training=mf.Training(0.2, 4)))
    start, end = (ax.collections[0] for ax in plot.particles(solution))
    assert len(start.get_offsets()) == 3000
    for cloud, step in ((start, 0), (end, -1)):
        known = {(*w, a) for w, a in zip(solution.measure(step).w.tolist(), solution.measure(step).a[:, 0].tolist())}  # noqa: B905
        assert {(*w, a) for w, a in zip(cloud.get_offsets().tolist(), cloud.get_array().tolist())} <= known  # noqa: B905
    assert start.norm.vmin == -start.norm.vmax == end.norm.vmin


def test_particles_of_many_inputs_are_shown_in_the_plane_of_their_movement(limit):
    start, end = (ax.collections[0].get_offsets() for ax in plot.particles(limit))
    moved = limit.measure(-1).w - limit.measure(0).w
    largest = torch.linalg.svdvals(moved)[:2].square().sum()
    assert np.allclose(np.square(end - start).sum(), largest)


def test_particle_sizes_follow_their_weights():
    data = mf.single_index_teacher(4, 0, inputs=1)
    solve = WassersteinFlow(900, initial="gauss_hermite")
    ax = plot.particles(solve(mf.Problem(data, training=mf.Training(0.1, 2))))[0]
    sizes = ax.collections[0].get_sizes()
    assert sizes.max() / sizes.min() > 10
    assert len(sizes) < 450  # those that weigh next to nothing are left out
    assert "readout" in ax.get_ylabel()


def test_animations_show_every_snapshot(limit, tmp_path):
    from PIL import Image

    animation = plot.animate_particles(limit)
    animation.save(tmp_path / "cloud.gif", writer="pillow", dpi=30)
    with Image.open(tmp_path / "cloud.gif") as picture:
        assert picture.n_frames == len(limit.snapshots)
    last = animation._fig.axes[0]
    assert np.allclose(last.collections[0].get_offsets(), plot.particles(limit)[-1].collections[0].get_offsets())


def test_many_networks_of_one_seed_have_no_band(nets):
    ax = plot.loss([net for net in nets if net.solver["seed"] == 0])
    assert len(ax.collections) == 0
    assert "±" not in ax.get_ylabel()


REFUSED = {
    "nothing to draw": lambda n, l: plot.loss([]),
    "nothing to draw: received an empty list of .* solutions": lambda n, l: plot.kernels([]),
    "label must name each .*: received 1 for 2": lambda n, l: plot.loss(n, _longer(l), label="mine"),
    "solutions that are shown together must share samples": lambda n, l: plot.outputs(n, _fewer(l)),
    "share their time grid": lambda n, l: plot.loss([n[0], dataclasses.replace(n[1], f=n[1].f[:3], recorded_steps=())]),
    "needs 3 axes: received 1": lambda n, l: plot.outputs(n, l, ax=plt.figure().subplots()),
    "sample 8 does not exist": lambda n, l: plot.outputs(n, l, samples=(8,)),
    "sample 99 does not exist": lambda n, l: plot.preactivations(n, l, sample=99),
    "difference needs a limit": lambda n, l: plot.outputs(n, difference=True),
    "step 4 was not recorded": lambda n, l: plot.particles(l, (4,)),
    "step 3 was not recorded": lambda n, l: plot.kernels([l, n[0]], steps=(3,)),
    "no preactivations of layer 2": lambda n, l: plot.preactivations(n, l, layer=2),
    "no kernel 'Phi2': recorded are Phi1, G1": lambda n, l: plot.kernels(l, "Phi2"),
    "recorded are none": lambda n, l: plot.kernels(_bare(l)),
    "no particles were kept": lambda n, l: plot.particles(_bare(l)),
    "no preactivations": lambda n, l: plot.preactivations(_bare(l)),
    "recorded no tangent kernel|nothing was recorded": lambda n, l: plot.kernels(_bare(l), "tangent_kernel"),
    "output 1 does not exist": lambda n, l: plot.particles(l, output=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_drawn_is_refused(message, nets, limit):
    with pytest.raises(ValueError, match=message):
        REFUSED[message](nets, limit)


def test_pictures_of_test_samples_need_test_samples():
    solution = WassersteinFlow(2**5)(mf.Problem(mf.single_index_teacher(4, 0, 2), training=mf.Training(0.1, 2)))
    with pytest.raises(ValueError, match="no test targets"):
        plot.loss(solution, test=True)
    with pytest.raises(ValueError, match="no test samples"):
        plot.outputs(solution, test=True)


def test_an_unknown_observable_is_refused_by_name(report):
    with pytest.raises(ValueError, match="unknown observable: received 'Phi7'; known: Phi1"):
        plot.deviation(report, ("Phi7",))


def _longer(limit):
    return WassersteinFlow(2**4)(limit.problem.with_steps(9))


def _fewer(limit):
    data = mf.digits(n_train=4, n_test=6)
    return WassersteinFlow(2**4)(dataclasses.replace(limit.problem, data=data))


def _bare(limit):
    return WassersteinFlow(2**4, snapshots=())(limit.problem)


def test_two_times_draws_kernels_and_responses_over_pairs_of_steps():
    data = mf.digits(n_train=4, n_test=0)
    problem = mf.Problem(data, mf.Network(2, "tanh"), mf.mean_field(1.0), mf.Training(0.2, 6))
    run = CausalDMFT(256, responses=True)(problem)
    axes = mf.plot.two_times(run, ("Phi1", "G2", "A1", "B1"))
    pictures = [ax.collections[0].get_array() for ax in axes]
    expected = [[float(run.kernels["Phi1"].at(t, s).diagonal().mean()) for s in range(7)] for t in range(7)]
    np.testing.assert_allclose(pictures[0], expected, rtol=1e-5)
    np.testing.assert_allclose(
        pictures[3][4, 3], float(run.responses["B1"].at(4, 3).diagonal().mean()), rtol=1e-4, atol=1e-7
    )
    assert np.all(np.triu(pictures[2]) == 0)
    assert np.all(np.triu(pictures[3], 1) == 0)
    assert not np.all(np.diag(pictures[3]) == 0)
    assert [ax.get_title() for ax in axes] == [r"$\Phi^{1}(t, s)$", "$G^{2}(t, s)$", "$A^{1}(t, s)$", "$B^{1}(t, s)$"]
    with pytest.raises(ValueError, match=r"A1 was not recorded .* CausalDMFT\(responses=True\)"):
        mf.plot.two_times(CausalDMFT(256)(problem), ("A1",))


def _recording(solution, *shape):
    """A solution that recorded numbers (snapshots, *shape), and these"""
    tensor = torch.randn(len(solution.snapshots), *shape, generator=torch.Generator().manual_seed(len(shape)))
    return dataclasses.replace(solution, recorded={"seen": tensor}), tensor.double().numpy()


def test_recorded_matrices_are_heat_maps_of_a_sample_and_a_head_on_one_scale(nets, limit):
    (net, own), (infinite, right) = _recording(nets[0], 8, 2, 4, 5), _recording(limit, 8, 2, 4, 5)
    axes = plot.recorded([net, infinite], "seen", (0, -1))
    for ax, expected in zip(axes, (own[0, 0, 0], own[-1, 0, 0], right[0, 0, 0], right[-1, 0, 0]), strict=True):
        assert np.array_equal(ax.images[0].get_array(), expected)
    assert len({id(ax.images[0].norm) for ax in axes}) == 1
    assert [ax.get_title().split(",")[0] for ax in axes] == ["N = 8", "N = 8", "limit", "limit"]
    axes = plot.recorded([net, infinite], "seen", (-1,), at=(3, 1))
    assert np.array_equal(axes[1].images[0].get_array(), right[-1, 3, 1])
    assert axes[0].get_position().y0 == axes[1].get_position().y0  # side by side
    (bar,) = set(axes[0].figure.axes) - {*axes}
    assert bar.get_ylabel() == "seen[3, 1]"
    bar.figure.draw_without_rendering()


def test_recorded_vectors_and_numbers_of_samples_are_lines(nets, limit):
    two = [net for net in nets if net.width == 8][:2]
    (net, own), (other, more), (infinite, right) = (_recording(s, 8, 4) for s in (*two, limit))
    axes = plot.recorded([net, other, infinite], "seen", (0, -1), at=(5,))
    for ax, step in zip(axes, (0, -1), strict=True):
        drawn = lines(ax)
        assert np.array_equal(drawn["N = 8"].get_ydata(), own[step, 5])
        assert np.array_equal(drawn["_N = 8"].get_ydata(), more[step, 5])  # named once
        assert np.array_equal(drawn["limit"].get_ydata(), right[step, 5])
    assert axes[0].get_ylabel() == "seen[5]"
    one, numbers = _recording(limit, 8)
    assert np.array_equal(lines(plot.recorded(one, "seen", (-1,))[0])["limit"].get_ydata(), numbers[-1])
    assert np.array_equal(plot.recorded(net, "seen", (-1,), at=())[0].images[0].get_array(), own[-1])


def test_differences_of_recorded_tensors_are_those_from_the_limit(nets, limit):
    (net, own), (infinite, right) = _recording(nets[0], 8, 4, 4), _recording(limit, 8, 4, 4)
    (ax,) = plot.recorded([infinite, net], "seen", (-1,), difference=True)
    assert np.array_equal(ax.images[0].get_array(), own[-1, 0] - right[-1, 0])
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 4, 4), {"name": "other"}, "unknown name of what is recorded: received 'other'; known: seen"),
        ((8, 4, 4), {"steps": (2,)}, "step 2 was not recorded"),
        ((8, 4, 4), {"steps": ()}, "nothing to draw"),
        (
            (8, 4, 4),
            {"at": ()},
            r"at must leave a matrix or a vector of 'seen', whose shape is \(8, 4, 4\).*give 1 or 2",
        ),
        ((8, 4, 4), {"at": (0, 0, 0)}, r"received \(0, 0, 0\); give 1 or 2 indices"),
        ((8,), {"at": (0,)}, r"received \(0,\); give 0 indices"),
        ((), {}, r"whose shape is \(\): received \(\)"),
        ((8, 4, 4), {"at": (8,)}, r"at\[0\] = 8 does not exist: the shape of 'seen' is \(8, 4, 4\), counted from 0"),
        ((8, 4, 4), {"difference": True, "limits": 0}, "a difference needs a limit"),
    ],
)
def test_what_was_recorded_otherwise_is_refused(nets, limit, shape, options, message):
    solutions = [_recording(nets[0], *shape)[0], _recording(limit, *shape)[0]]
    with pytest.raises(ValueError, match=message):
        plot.recorded(solutions[: 1 + options.pop("limits", 1)], **{"name": "seen"} | options)


def test_nothing_recorded_and_other_shapes_are_refused(nets, limit):
    with pytest.raises(
        ValueError, match=r"recorded no tensors: name some, mf.Architecture\(Net, record=\{'seen': ..\}\)"
    ):
        plot.recorded(limit, "seen")
    apart = [_recording(nets[0], 8, 4)[0], _recording(limit, 8, 5)[0]]
    with pytest.raises(ValueError, match=r"must have one shape: received seen of shapes \[\(4,\), \(5,\)\]"):
        plot.recorded(apart, "seen")


def test_a_picture_in_a_part_of_a_figure_is_saved_with_all_of_it(limit, tmp_path):
    figure = plt.figure()
    left, right = figure.subfigures(1, 2)
    right.subplots()
    plot.save(plot.loss(limit, ax=left.subplots()), tmp_path / "both.png", dpi=20)
    assert plt.get_fignums() == []
    assert plt.imread(tmp_path / "both.png").shape[:2] == (96, 128)


class Named(torch.nn.Module):
    """A layer whose name mathtext would not take"""

    def __init__(self, n):
        super().__init__()
        self.read, self.q_proj_a = torch.nn.Linear(64, n, bias=False), torch.nn.Linear(n, n, bias=False)
        self.out = torch.nn.Linear(n, 1, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.q_proj_a(torch.tanh(self.read(x)))))


@pytest.fixture(scope="module")
def named(problem):
    asked = mf.Problem(problem.data, Named, training=mf.Training(0.2, 2))
    return FiniteWidth(8, snapshots=(0, 1, 2))(asked)


def test_defaults_are_the_first_layer_of_any_network(named):
    """Phi of the features that enter the first hidden matrix, as Phi1 of perceptrons"""
    first = named.kernels["Phi[q_proj_a]"]
    moved = (first.at(2) - first.at(0)).norm() / first.at(0).norm()
    torch.testing.assert_close(mf.movement(named), moved)
    order = np.argsort(named.problem.data.y[:, 0].numpy(), kind="stable")
    axes = plot.kernels(named)
    assert np.array_equal(axes[1].images[0].get_array(), first.at(2).numpy()[np.ix_(order, order)])
    axes[0].figure.draw_without_rendering()
    axes = plot.two_times(named)
    assert [ax.get_title() for ax in axes] == [r"$\Phi$[q_proj_a]$(t, s)$", "$G$[read]$(t, s)$"]
    axes[0].figure.draw_without_rendering()


def test_what_a_module_lacks_is_answered_with_what_it_has(named):
    with pytest.raises(ValueError, match=r"no kernel 'Phi1': recorded are Phi\[q_proj_a\], Phi\[out\]"):
        mf.movement(named, "Phi1")
    with pytest.raises(
        ValueError, match=r"solve with snapshots at all of them; recorded so are Phi\[q_proj_a\], Phi\[out\]"
    ):
        plot.two_times(named, ("Phi1",))
    bare = dataclasses.replace(named, kernels={})
    with pytest.raises(ValueError, match=r"no kernel 'Phi\[q_proj_a\]': recorded are none"):
        plot.kernels(bare)
    with pytest.raises(ValueError, match=r"tests perceptrons.*received the module 'Named'.*\(groups=4\).*test modules"):
        residual(named)


def test_reports_of_modules_are_drawn_with_the_kernel_of_the_last_layer(named, report):
    d = report["Phi1"]
    ours = dataclasses.replace(
        report,
        observables={
            "f": report["f"],
            "Phi[read]": d,
            "Phi[q_proj_a]": dataclasses.replace(d, name="Phi[q_proj_a]"),
            "loss": report["loss"],
        },
    )
    axes = plot.deviation(ours)
    assert axes[2].get_title() == r"feature kernel $\Phi$[q_proj_a], last snapshot"
    axes[0].figure.draw_without_rendering()
