"""coordinate_check: what it sees against hooks of plain torch modules, networks as they should be, and networks with each fault."""

import math
from dataclasses import fields, replace

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meanfield as mf
from meanfield.comparison.coordinates import CoordinatesReport, expected_power
from meanfield.comparison.statistics import doubling_exponent
from solvers import FiniteWidth, coordinate_check
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.gradient_flow import Flow
from solvers.studies.noted_fields import CheckedNetworks
from tests.any_networks import Block, Convolutional, Language, Perceptron, Recurrent, Residual, digits, text

matplotlib.use("Agg")
WIDTHS = (32, 64, 128, 256)


class Summed(Perceptron):
    """A sum over neurons without 1/n, which is not refused when the problem is made"""

    def forward(self, x):
        h = self.phi(self.mix[0](self.phi(self.read(x))))
        return self.out(h * (h.shape[-1] * h.mean(-1, keepdim=True)))


class Faint(Perceptron):
    """Features that vanish in wide networks before they are read"""

    def forward(self, x):
        h = self.phi(self.mix[0](self.phi(self.read(x))))
        return self.out(h / h.shape[-1] ** 0.5)


class Hidden(Perceptron):
    """A branch that vanishes beside a residual stream: of its fields none tells, its gradients do"""

    def forward(self, x):
        h = self.read(x)
        return self.out(self.phi(h + self.mix[0](self.phi(h)) / h.shape[-1] ** 0.5))


class Sharp(Block):
    """Attention with logits q.k / sqrt n"""

    def forward(self, h):
        u = self.ln1(h)
        q, k, v = self.q(u), self.k(u), self.v(u)
        a = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        a = a.masked_fill(torch.ones(a.shape[-2:], dtype=torch.bool).triu(1), -math.inf).softmax(-1)
        h = h + self.o(a @ v)
        return h + self.down(F.gelu(self.up(self.ln2(h))))


class SharpLanguage(Language):
    def __init__(self, n):
        super().__init__(n)
        self.block = Sharp(n)


def problem(build, scaling=None, rate=0.1, samples=6, image=False):
    return mf.Problem(mf.Dataset(*digits(samples, image)), build, scaling or mf.mean_field(1.0), mf.Training(rate, 9))


def language(build):
    x, y = text()
    return mf.Problem(mf.Dataset(x[:3], y[:3]), build, mf.mean_field(1.0), mf.Training(0.3, 9), "cross_entropy")


def perceptron(n):
    return Perceptron(n, 64)


def hooked(build, width, weights, x, y, sigma):
    """What enters and leaves each layer of a plain torch module, and gradients of f in what leaves, by hooks of torch alone"""
    net, found = build(width).double(), {}
    net.load_state_dict(weights)

    def note(name):
        def hook(module, given, out):
            out.retain_grad()
            found.setdefault(name, []).append((given[0].detach(), out))

        return hook

    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(note(name))
    f = net(x)
    (f * y).sum().backward()  # y of size 1 is the direction in which outputs of 0 are moved
    flat = {("", "outputs", "field"): f.detach().flatten()}
    for name, calls in found.items():
        flat[name, "enters", "field"] = torch.cat([given.flatten() for given, _ in calls])
        flat[name, "leaves", "field"] = torch.cat([out.detach().flatten() for _, out in calls])
        flat[name, "leaves", "gradient"] = torch.cat([out.grad.flatten() for _, out in calls]) / sigma
    return flat


@pytest.mark.parametrize(("build", "image"), [(Convolutional, True), (Recurrent, False), (Residual, False)])
def test_what_is_noted_is_what_hooks_of_torch_see(build, image):
    asked = replace(problem(build, mf.mean_field(1.5), image=image), training=mf.Training(0.2, 3))
    networks = CheckedNetworks(asked, 16, (0, 1), torch.empty(0, dtype=torch.float64))
    start = [weights(networks, networks.initial_state(), e) for e in (0, 1)]
    flow = Flow(0.2, 6, 1e-7, 100)
    run = evolve(networks, networks.initial_state(), asked, step_of(asked.training, flow), snapshots=(0, 3))
    for e in (0, 1):
        first, last = (
            hooked(build, 16, w, asked.data.x, asked.data.y, 1 / (1.5 * 16))
            for w in (start[e], weights(networks, run.state, e))
        )
        right = {key: last[key].square().mean() for key in last}
        changes = {"field": "change", "gradient": "gradient change"}
        right |= {(n, p, changes[k]): (last[n, p, k] - first[n, p, k]).square().mean() for n, p, k in last}
        found = run.captured[3][e]
        sign = {k.removesuffix(".weight") for k, _, _ in found}
        assert sign == {name for name, _, _ in last}
        for (name, place, kind), value in found.items():
            torch.testing.assert_close(
                value, float(right[name.removesuffix(".weight"), place, kind]), rtol=1e-9, atol=0
            )
        for (_, place, kind), value in run.captured[0][e].items():
            assert (value == 0) == (kind in ("change", "gradient change")), (place, kind)


def weights(networks, state, e):
    return {name: w.clone() for name, w in networks._weights(state, e).items()}


@pytest.mark.parametrize(
    "asked",
    [
        problem(Convolutional, image=True),
        problem(Residual),
        problem(mf.Network(2, "relu"), mf.ntk()),
        problem(mf.Network(1, "tanh"), mf.mean_field(0.5)),
        problem(Recurrent, mf.ntk()),
    ],
    ids=lambda p: f"{p.network_name} {p.scaling.name}",
)
def test_networks_as_they_should_be_pass(asked):
    report = coordinate_check(asked, WIDTHS, samples=None)
    assert report.wrong == (), report
    assert report.samples == ()
    assert not report.vanishing
    assert str(report).endswith("all as they should be")


def test_a_transformer_passes_and_its_queries_and_keys_are_told():
    report = coordinate_check(language(Language), WIDTHS, steps=(0, 2), samples=256)
    assert report.wrong == (), report
    assert report.vanishing == ("block.q", "block.k")
    (gradient,) = (c for c in report["block.q"] if c.kind == "gradient")
    assert gradient.measured[0].low < -0.5 < gradient.measured[0].high  # an average of n independent products


def test_logits_over_the_root_of_the_width_are_found_at_queries_and_keys():
    report = coordinate_check(language(SharpLanguage), (64, 128, 256, 512), steps=(0, 1), samples=None)
    assert {c.layer for c in report.wrong} == {"block.q", "block.k"}, report
    assert "not as they should be: block.q, block.k" in str(report)


def test_a_sum_over_neurons_without_1_over_n_is_found_in_networks_and_in_the_limit():
    report = coordinate_check(problem(lambda n: Summed(n, 64), rate=0.01), WIDTHS, samples=None)
    (read,) = (c for c in report["out"] if c.kind == "field")
    assert read.growing is not None
    assert read.measured[0].low < 0.5 < read.measured[0].high  # of n independent neurons the root of n
    assert read.verdict(report.steps).startswith("grows like n^0.")
    assert {c.layer for c in report.wrong} >= {"out", "read", "mix.0"}
    report = coordinate_check(
        problem(lambda n: Summed(n, 64, phi=torch.relu), rate=1e-3), WIDTHS, samples=128, steps=(0,)
    )
    (read,) = (c for c in report["out"] if c.kind == "field")
    assert read.limit_measured[0].low > 0.9  # neurons of one sign
    assert read.limit_measured[0].high < 1.1
    assert "zero" in str(report)  # no step was taken


def test_networks_that_blow_up_are_told():
    report = coordinate_check(problem(lambda n: Summed(n, 64), rate=30.0), WIDTHS, samples=None, steps=(0, 40))
    assert report.coordinates[0].blown == 1
    assert "blows up by step 40" in str(report)
    assert np.isfinite(report.coordinates[0].values[0]).all()


def test_what_vanishes_in_wide_networks_is_found():
    report = coordinate_check(problem(lambda n: Faint(n, 64)), WIDTHS, samples=None)
    (read,) = (c for c in report["out"] if c.kind == "field")
    assert read.vanishing
    assert read in report.wrong
    assert "vanishes like n^-0.5" in read.verdict(report.steps)
    report = coordinate_check(problem(lambda n: Hidden(n, 64)), WIDTHS, samples=None)
    assert report.vanishing == ("mix.0",)


def test_the_limit_has_the_moments_of_wide_networks():
    """Within four combined standard errors, and 1/n of the widest"""
    report = coordinate_check(problem(perceptron, rate=0.3), (64, 128, 256, 512), samples=256, steps=(0, 1, 3))
    for c in report.coordinates:
        if (c.place, c.kind) == ("outputs", "field"):
            continue
        off = np.abs(c.values[-1, -1] - c.limit[-1, -1])
        assert off < 4 * np.hypot(c.errors[-1, -1], c.limit_errors[-1, -1]) + 10 / 512 * c.limit[-1, -1], c.name


def test_what_is_frozen_does_not_move_and_is_no_fault():
    asked = problem(mf.Architecture(perceptron, frozen=("read.*",)))
    report = coordinate_check(asked, WIDTHS, samples=None)
    (change,) = (c for c in report["read"] if c.kind == "change")
    assert not change.values.any()
    assert change.verdict(report.steps) == "zero"
    assert report.wrong == ()


def test_powers_that_scalings_imply():
    """By hand: a step of a hidden weight moves fields by sigma eta_w, a step of a readout by sigma eta_a"""
    for scaling, moves, outputs, start in (
        (mf.mean_field(1.0), 0.0, 0.0, -0.5),
        (mf.ntk(), -0.5, 0.0, 0.0),
        (mf.sym_default(8), 0.0, 0.5, 0.0),
    ):
        assert expected_power(scaling, "leaves", "change", True) == moves
        assert expected_power(scaling, "leaves", "field", False) == 0
        assert expected_power(scaling, "leaves", "gradient", False) == 0
        assert expected_power(scaling, "outputs", "change", True) == outputs
        assert expected_power(scaling, "outputs", "field", False) == start
        assert np.isnan(expected_power(scaling, "outputs", "change", False))


def test_intervals_of_a_doubling_hold_the_truth():
    """95 % of them, up to four standard errors of the count, with squares that are means of few squared Gaussians"""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        small, large = rng.chisquare(12, 4), 2 ** (2 * 0.3) * rng.chisquare(12, 4)
        e = doubling_exponent(small, large)
        held += e.low < 0.3 < e.high
    assert held / 1000 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 1000)
    assert doubling_exponent(np.array([1.0, 2.0, 3.0]), np.array([4.0, 8.0, 12.0])).slope == pytest.approx(1)
    assert np.isnan(doubling_exponent(np.zeros(3), np.ones(3)).slope)


@pytest.fixture(scope="module")
def report():
    return coordinate_check(problem(perceptron), (8, 16, 32), 3, samples=64)


def test_a_report_survives_storage_and_opens_for_others(report, tmp_path):
    path = mf.save(report, tmp_path / "coordinates.nc")
    found = mf.load(path)
    assert isinstance(found, CoordinatesReport)
    assert str(found) == str(report)
    for f in fields(CoordinatesReport):
        if f.name != "coordinates":
            assert getattr(found, f.name) == getattr(report, f.name), f.name
    for one, other in zip(report.coordinates, found.coordinates, strict=True):
        for f in fields(one):
            own, kept = getattr(one, f.name), getattr(other, f.name)
            if isinstance(own, np.ndarray):
                np.testing.assert_array_equal(kept, own, err_msg=f.name)
            assert repr(kept) == repr(own), f.name  # nan among them


def test_the_picture_shows_the_report(report):
    axes = mf.plot.coordinates(report, 4)
    kinds = ("field", "change", "gradient", "gradient change")
    for ax, kind in zip(axes, kinds, strict=True):
        drawn = [line.get_ydata() for line in ax.lines if line.get_marker() != "x"]
        right = [c.values[-1] for c in report.coordinates if c.kind == kind]
        np.testing.assert_array_equal(drawn, right)
    labels = [text.get_text() for text in axes[-1].get_legend().get_texts()]
    assert labels[:6] == ["read", "mix.0", "out", "outputs", "leaves", "enters"]
    with pytest.raises(ValueError, match=r"step must be one of the report's, 0, 1, 4: received 3"):
        mf.plot.coordinates(report, 3)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": (8, 16)}, "at least 3 widths"),
        ({"widths": (8, 16, 16)}, "the same number twice"),
        ({"seeds": 2}, "at least 3 seeds"),
        ({"steps": (-1,)}, r"steps\[0\] must be at least 0"),
        ({"points": 0}, "points must be"),
        ({"samples": 8}, "samples=8 are too few"),
        ({"problem": problem(mf.Network(1), mf.ic_mean_field(1.0, 8))}, "keeps a part of the outputs"),
    ],
    ids=str,
)
def test_what_cannot_be_checked_is_refused_before_any_work(wrong, message):
    with pytest.raises(ValueError, match=message):
        coordinate_check(**{"problem": problem(perceptron)} | wrong)


def test_few_points_and_the_solver_s_precision_are_taken():
    asked = replace(problem(perceptron, samples=12), training=mf.Training(0.1, 3, batch_size=8))
    few = replace(asked, data=mf.Dataset(asked.data.x[:5], asked.data.y[:5]), training=mf.Training(0.1, 3))
    given = {"widths": (8, 16, 32), "seeds": 3, "samples": None, "solver": FiniteWidth(batch=1)}
    one, other = coordinate_check(asked, points=5, **given), coordinate_check(few, **given)
    for a, b in zip(one.coordinates, other.coordinates, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
