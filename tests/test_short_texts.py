"""Whatever is printed is a few readable lines, in terminals and in notebooks, however many samples and neurons there are."""

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.checking.short import in_full, of_value
from solvers import (
    CausalDMFT,
    MonteCarloKernels,
    TangentKernelLimit,
    WassersteinFlow,
    WidthFor,
    coordinate_check,
    gibbs_fixed_point,
    lazy_prediction,
    learning_rate_transfer,
    measured_exponents,
    predicted_bias,
    predicted_variance,
    proxy_comparison,
    residual,
    width_sweep,
)


@pytest.fixture(scope="module")
def results():
    """Each public result, of 40 samples in 64 dimensions where that is cheap"""
    data = mf.single_index_teacher(40, 20, 64)
    problem = mf.Problem(data, mf.Network(1, "relu"), mf.mean_field(0.5), mf.Training(0.1, 3))
    few = dataclasses.replace(problem, data=mf.single_index_teacher(4, 4, 5), network=mf.Network(1, "tanh"))
    flow, nets = WassersteinFlow(2**7)(problem), width_sweep(problem, (8, 16, 32), 3)
    small, some = WassersteinFlow(2**5)(few), width_sweep(few, (8, 16, 32), 3)
    ntk = mf.nngp_and_ntk(problem.network, mf.ntk(), data.x)[1]
    process = mf.GaussianProcess(mf.Network(2, "relu"), noise=0.1)
    variance, bias = predicted_variance(few, 32, groups=2), predicted_bias(few, 8, 4)
    noisy = WassersteinFlow(2**6, snapshots=(0, 60, 120))(
        dataclasses.replace(few, training=mf.Training(0.1, 120, temperature=0.2, weight_decay=5.0))
    )
    deep = CausalDMFT(64, responses=True)(dataclasses.replace(few, network=mf.Network(2, "tanh")))
    return {
        "Dataset": (data, "samples=40", "test=20"),
        "Problem": (problem, "1-index teacher", "relu", "mean_field", "learning_rate=0.1", "squared"),
        "Problem of a module": (
            mf.Problem(data, _net, training=problem.training),
            "_net",
            "learning_rate=0.1, steps=3",
        ),
        "Network": (problem.network, "relu"),
        "Scaling": (problem.scaling, "mean_field", "sigma=2.0"),
        "Training": (problem.training, "learning_rate=0.1", "steps=3"),
        "Solution": (flow, "WassersteinFlow", "steps=3", "finished"),
        "Solution of a network": (nets[0], "FiniteWidth", "steps=3"),
        "Solution of deep networks": (deep, "CausalDMFT", "loss"),
        "Solution of a lazy limit": (TangentKernelLimit()(problem), "TangentKernelLimit"),
        "kernel over time": (flow.kernels["Phi1"], "TwoTimeKernel", "steps=(0, 3)"),
        "response": (deep.responses["A1"], "Response"),
        "tangent kernels": (flow.tangent, "MeasureKernels"),
        "tangent kernels of fields": (nets[0].tangent, "FieldKernels"),
        "ParticleMeasure": (flow.measure(), "ParticleMeasure", "128"),
        "DeviationReport": (report := mf.deviation(nets, flow), "(8, 16, 32)", "WassersteinFlow"),
        "Deviation": (report["f"], "f", "exponents"),
        "Exponent": (next(iter(report["f"].exponents.values())), "low"),
        "predictions": (mf.deviation(some, small, predicted=variance, bias=bias), "Fluctuation"),
        "PredictedVariance": (variance, "PredictedVariance", "steps"),
        "PredictedBias": (bias, "PredictedBias", "steps"),
        "EnsembleLoss": (mf.ensemble_loss(small, variance, bias, some, (1,)), "EnsembleLoss"),
        "WidthFor": (WidthFor(100, 9, 0.1, 2, 1.5, 0.4, 0.9), "width=100"),
        "PowersReport": (measured_exponents(few, (4, 8, 16), 3), "mean_field"),
        "ProxyReport": (proxy_comparison(few, 4, ["ntk"], 6), "ntk"),
        "CoordinatesReport": (coordinate_check(few, (4, 8, 16), 3, samples=None), "widths"),
        "TransferReport": (learning_rate_transfer(few, (0.1, 0.2, 0.4), (4, 8), 3, WassersteinFlow(16)), "rates"),
        "LazyPrediction": (lazy_prediction(dataclasses.replace(problem, scaling=mf.ntk())), "times", "loss"),
        "KernelSpectrum": (mf.spectrum(ntk, data.y), "eigenvalues", "40"),
        "GaussianProcess": (process, "relu", "noise=0.1"),
        "Posterior": (process.posterior(data.x, data.y), "Posterior"),
        "MonteCarloKernels": (
            MonteCarloKernels(ntk, ntk, ntk, ntk, 16, tuple(range(8))),
            "MonteCarloKernels",
            "width=16",
        ),
        "FreeEnergy": (mf.free_energy(noisy), "FreeEnergy"),
        "StationaryAverages": (mf.stationary(noisy, after=0), "runs"),
        "GibbsMeasure": (gibbs_fixed_point(noisy.problem, 64), "GibbsMeasure"),
        "Classification": (mf.classify(mf.ntk()), "ntk"),
        "Certificate": (residual(deep, 64, steps=2), "Certificate"),
        "Estimate": (WassersteinFlow(64).estimate(few), "Estimate"),
    }


def _net(n: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, n), torch.nn.Tanh(), torch.nn.Linear(n, 1))


class Tags(HTMLParser):
    """Those that are open, and all that were"""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_reprs_are_short_and_name_what_is_essential(results):
    found = {name: repr(thing) for name, (thing, *_) in results.items()}
    assert not {name: len(text) for name, text in found.items() if len(text) > 1000}
    assert not {
        name: (lost, found[name])
        for name, (_, *told) in results.items()
        if (lost := [t for t in told if t not in found[name]])
    }
    assert not [text for text in found.values() if "tensor(" in text or "array(" in text or " object at 0x" in text]


def test_prints_are_tables_of_bounded_size(results):
    assert not {name: len(str(thing)) for name, (thing, *_) in results.items() if len(str(thing)) > 6000}
    spectrum = results["KernelSpectrum"][0]
    told = str(spectrum)
    assert f"{spectrum.largest_learning_rate():.4g}" in told
    assert f"{float(spectrum.cumulative_alignment[3]):.1%} in 4" in told
    assert f"{float(spectrum.eigenvalues[0]):.4g}" in told


def test_notebooks_show_tables_without_taking_names_for_tags(results):
    shown = {name: thing._repr_html_() for name, (thing, *_) in results.items() if hasattr(thing, "_repr_html_")}
    assert {"Problem", "Solution", "DeviationReport", "Classification", "KernelSpectrum", "Dataset"} <= shown.keys()
    for name, text in shown.items():
        tags = Tags()
        tags.feed(text)
        assert tags.open == [], name
        assert tags.seen <= {"table", "caption", "tr", "th", "td", "b", "div", "pre"}, name
        assert len(text) < 8000, name
    data = dataclasses.replace(results["Dataset"][0], name="<script>alert('x')</script> & more")
    for thing in (data, dataclasses.replace(results["Problem"][0], data=data)):
        assert "<script>" not in thing._repr_html_()
        assert "&lt;script&gt;" in thing._repr_html_()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        ((1, 2), "(1, 2)"),
        ((1,), "(1,)"),
        (tuple(range(9)), "(0, 1, 2, .. 9 in all)"),
        (torch.zeros(3, 4), "Tensor 3 x 4"),
        (torch.tensor([1.0, 0.5]), "[1, 0.5]"),
        (np.zeros(7), "ndarray 7"),
        ({"a": 1.5}, "{a: 1.5}"),
        ("x" * 400, "'" + "x" * 157 + ".."),
        (None, "None"),
    ],
)
def test_values_are_told_in_a_line(value, expected):
    assert of_value(value) == expected


def test_what_files_compare_is_told_in_full():
    """Not in short, where two may look alike"""
    one, other = mf.mean_field(1 / 3), mf.mean_field(1 / 3 + 1e-9)
    assert in_full(one) != in_full(other)
    assert f"sigma={one.sigma!r}, eta_a" in in_full(one)
    assert "frozen='none'" in in_full(one)
    assert "frozen" not in repr(one)
