"""Every public call, each argument in turn replaced by what it is not: taken as something sensible, or refused by name."""

from __future__ import annotations

import ast
import inspect
import math
import re
import traceback
import warnings
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import meanfield as mf
import solvers
from meanfield.checking.arguments import checked
from meanfield.comparison import report
from meanfield.solution import prediction
from meanfield.solution.two_time import TwoTimeResponse
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    RevealedWidth,
    TangentKernelLimit,
    WassersteinFlow,
)

ROOT = Path(mf.__file__).parent.parent

WRONG = {
    "None": None,
    "text": "abc",
    "dictionary": {},
    "empty list": [],
    "nan": math.nan,
    "infinity": math.inf,
    "-1": -1,
    "10**30": 10**30,
    "10**400": 10**400,
    "10**12": 10**12,
    "1.5": 1.5,
    "object": object(),
    "class": dict,
    "function": len,
    "tensor": torch.zeros(2, 1, 1, 2, 1),
    "scalar tensor": torch.tensor(2.0),
    "array": np.full((2, 3), 0.5),
    "complex array": np.full((2, 2), 1j),
    "texts": ["a", "b"],
}


@dataclass
class Call:
    """A call that works, with its arguments by name, but for some that may be anything."""

    made: Any
    right: dict[str, Any]
    but: tuple[str, ...] = ()
    said: dict[str, str] = field(default_factory=dict)  # names that messages may call by another one


@cache
def objects() -> dict[str, Any]:
    x = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0]], dtype=torch.float64)
    data = mf.Dataset(x, x[:, :1].sign(), x[:1] + 0.1, x[:1, :1].sign())
    problem = mf.Problem(data, mf.Network(1, "tanh"), mf.mean_field(1.0), mf.Training(0.1, 2))
    logistic = mf.Problem(data, mf.Network(1, "tanh"), mf.default(), mf.Training(0.1, 2), "logistic")
    deep = mf.Problem(data, mf.Network(2, "linear"), mf.mean_field(1.0), mf.Training(0.1, 2))
    nets = [net for n in (2, 4) for net in FiniteWidth(n).ensemble(problem, 2)]
    flow = WassersteinFlow(16)(problem)
    process = mf.GaussianProcess(mf.Network(1, "relu"), noise=0.1)
    return {
        "data": data,
        "problem": problem,
        "logistic": logistic,
        "deep": deep,
        "nets": nets,
        "flow": flow,
        "noted": replace(flow, recorded={"kept": torch.rand(2, 3, 2)}),
        "logits": InfiniteLogitsLimit(16)(logistic),
        "grown": FiniteWidth(4)(logistic),
        "dmft": CausalDMFT(64, responses=True, keep_state=True)(deep),
        "fixed": FixedPointDMFT(64, keep_state=True)(deep),
        "lazy": TangentKernelLimit()(problem),
        "spectrum": mf.spectrum(torch.eye(3, dtype=torch.float64), data.y),
        "process": process,
        "posterior": process.posterior(x, data.y),
        "prediction": solvers.lazy_prediction(problem),
        "report": mf.deviation(nets, flow),
        "foretold": mf.deviation(nets, flow, predicted=solvers.predicted_variance(problem, 16, groups=2)),
        "powers": solvers.measured_exponents(problem, (2, 3, 4), 2),
        "coordinates": solvers.coordinate_check(problem, (2, 3, 4), 3, samples=None),
        "transfer": solvers.learning_rate_transfer(problem, (0.1, 0.2, 0.4), (2, 3), 3, WassersteinFlow(16)),
        "proxies": solvers.proxy_comparison(problem, 2, ["ntk"], 4),
        "measure": mf.ParticleMeasure.iid(4, 2),
        "noisy": (noisy := _noisy(problem)),
        "averages": mf.stationary(noisy, after=0),
        "gibbs": solvers.gibbs_fixed_point(noisy.problem, 64),
        "variance": (variance := solvers.predicted_variance(problem, 16, groups=2)),
        "bias": (bias := solvers.predicted_bias(problem, 4, 2)),
        "ensembles": mf.ensemble_loss(flow, variance, bias, nets, (1,)),
        "revealed": RevealedWidth(4, keep_state=True)(deep),
    }


def _noisy(problem: mf.Problem) -> mf.Solution:
    training = mf.Training(0.1, 120, temperature=0.2, weight_decay=5.0)
    return WassersteinFlow(64, snapshots=(0, 60, 120))(replace(problem, training=training))


def _fields(result: Any) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(result) if field.init}


def _any_width(n: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, n), torch.nn.Tanh(), torch.nn.Linear(n, 1))


def calls(folder: Path) -> dict[str, Call]:
    o = objects()
    problem, data, flow, nets = o["problem"], o["data"], o["flow"], o["nets"]
    h, m = flow.preactivations()
    kernel = torch.eye(3, dtype=torch.float64)
    image = np.ones((2, 1, 3, 3)) + np.eye(3)
    kept = mf.save(flow, folder / "flow.nc")
    np.savez(folder / "data.npz", x=data.x, y=data.y)
    done = mf.Transformation(data.x[0], data.x[0].abs() + 1, True)
    regressed = replace(done, target_shift=data.y[0], target_scale=data.y[0].abs() + 1)
    columns = {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 2.0, 3.0], "y": [0, 1, 0, 1]}
    divided = {"n_test": 1, "n_train": 1, "shuffle": 0, "stratify": False, "scale": "centre", "one_hot": None}
    divided |= {"scale_targets": None}
    tanh, samples = mf.activation("tanh"), {"n_train": "samples", "n_test": "samples"}
    found = {
        "Activation": Call(mf.Activation, _fields(tanh) | {"name": "mine"}),
        "Activation()": Call(tanh, {"h": torch.zeros(2)}),
        "Architecture": Call(
            mf.Architecture,
            {
                "build": _any_width,
                "weight_std": {"0.weight": 2.0},
                "rate": {"*": 0.5},
                "frozen": ("2.*",),
                "name": "mine",
                "record": {"h": "2"},
                "averaged": ("2",),
                "decay": {"2": 0.5},
                "initial_law": {"2.weight": "uniform"},
            },
        ),
        "ConvNetwork": Call(mf.ConvNetwork, _fields(mf.ConvNetwork())),
        "ConvNetwork.image_size": Call(mf.ConvNetwork().image_size, {"height": 3, "width": 3}),
        "CoordinatesReport": Call(mf.CoordinatesReport, _fields(o["coordinates"])),
        "Dataset": Call(mf.Dataset, _fields(data)),
        "Dataset.transform": Call(data.transform, {"x": data.x}),
        "Transformation": Call(
            mf.Transformation,
            {
                "shift": data.x[0],
                "scale": data.x[0].abs() + 1,
                "unit_norm": True,
                "target_shift": data.y[0],
                "target_scale": data.y[0].abs() + 1,
            },
        ),
        "Transformation()": Call(done, {"x": data.x + 1}),
        "Transformation.targets": Call(regressed.targets, {"y": data.y}),
        "Transformation.outputs": Call(regressed.outputs, {"f": data.y}),
        "DeviationReport": Call(mf.DeviationReport, _fields(o["report"])),
        "Deviation": Call(report.Deviation, _fields(o["report"]["f"])),
        "GaussianProcess": Call(_conditioned, _fields(o["process"]) | {"noise": 0.1, "x": data.x, "y": data.y}),
        "GaussianProcess.posterior": Call(o["process"].posterior, {"x": data.x, "y": data.y}),
        "GaussianProcess.fitted": Call(o["process"].fitted, {"x": data.x, "y": data.y, "over": ["noise"]}),
        "Posterior": Call(mf.Posterior, _fields(o["posterior"])),
        "Posterior.mean": Call(o["posterior"].mean, {"x": data.x}),
        "Posterior.std": Call(o["posterior"].std, {"x": data.x}),
        "Posterior.covariance": Call(o["posterior"].covariance, {"x": data.x}),
        "Posterior.gradient": Call(o["posterior"].gradient, {"over": ["noise"], "tolerance": 1e-8}),
        "KernelSpectrum": Call(mf.KernelSpectrum, _fields(o["spectrum"])),
        "LazyPrediction": Call(prediction.LazyPrediction, _fields(o["prediction"])),
        "Mixture": Call(mf.Mixture, {"inputs": 3, "classes": 2, "separation": 1.0, "seed": 0}),
        "Teacher": Call(mf.Teacher, {"inputs": 3, "directions": 2, "link": "tanh", "noise": 0.1, "seed": 0}),
        "Stream": Call(mf.Stream, _fields(mf.stream(mf.Teacher(2), 1, 2)) | {"x_test": data.x, "y_test": data.y}),
        "Stream.fresh": Call(mf.stream(mf.Teacher(2), 1, 2).fresh, {"step": 0}),
        "stream": Call(
            mf.stream,
            {"law": mf.Teacher(2), "batch": 2, "watched": 2, "seed": 0, "name": "mine"},
        ),
        "population_loss": Call(mf.population_loss, {"solution": flow, "teacher": mf.Teacher(2)}),
        "Loss": Call(mf.Loss, _fields(mf.loss("squared")) | {"name": "mine"}),
        "Loss.mean": Call(mf.loss("squared").mean, {"f": data.y, "y": data.y}),
        "Network": Call(mf.Network, _fields(mf.Network()) | {"residual": 0.5}),
        "Network.inputs": Call(mf.Network().inputs, {"x": data.x}),
        "ParticleMeasure": Call(mf.ParticleMeasure, _fields(o["measure"])),
        "ParticleMeasure.iid": Call(
            mf.ParticleMeasure.iid, {"particles": 4, "inputs": 2, "outputs": 1, "seed": 0, "dtype": "float64"}
        ),
        "ParticleMeasure.sobol": Call(
            mf.ParticleMeasure.sobol,
            {"particles": 4, "inputs": 2, "outputs": 1, "seed": 0, "dtype": "float64", "directions": data.x},
        ),
        "ParticleMeasure.gauss_hermite": Call(
            mf.ParticleMeasure.gauss_hermite,
            {"nodes": 2, "inputs": 2, "outputs": 1, "dtype": "float64", "directions": data.x},
        ),
        "ParticleMeasure.to": Call(o["measure"].to, {"device": "cpu", "dtype": torch.float32}),
        "ParticleMeasure.tiles": Call(o["measure"].tiles, {"rows": 2}),
        "PowersReport": Call(mf.PowersReport, _fields(o["powers"])),
        "Problem": Call(mf.Problem, _fields(problem)),
        "Problem.batches": Call(problem.batches, {"first": 0}),
        "Problem.perceptron_for": Call(problem.perceptron_for, {"who": "this solver"}),
        "Problem.with_steps": Call(problem.with_steps, {"steps": 2}),
        "ProxyReport": Call(mf.ProxyReport, _fields(o["proxies"])),
        "ProxyReport.mean_kl": Call(o["proxies"].mean_kl, {"first": 1}),
        "TransferReport": Call(mf.TransferReport, _fields(o["transfer"])),
        "TransferReport.losses": Call(o["transfer"].losses, {"best": False}),
        "TransferReport.best_rates": Call(o["transfer"].best_rates, {"best": False}),
        "TransferReport.limit_rate": Call(o["transfer"].limit_rate, {"best": False}),
        "TransferReport.drift": Call(o["transfer"].drift, {"best": False}),
        "TransferReport.excess": Call(o["transfer"].excess, {"best": False}),
        "Scaling": Call(mf.Scaling, _fields(mf.mean_field())),
        "Scaling.matching": Call(mf.ntk().matching, {"other": mf.mean_field(), "width": 4}),
        "Scaling.output_multiplier": Call(mf.ntk().output_multiplier, {"width": 4}),
        "Scaling.learning_rate_multipliers": Call(mf.ntk().learning_rate_multipliers, {"width": 4}),
        "Scaling.products": Call(mf.ntk().products, {"width": 4}),
        "Scaling.frozen_multiplier": Call(mf.ic_mean_field().frozen_multiplier, {"width": 4}),
        "Solution": Call(mf.Solution, _fields(flow)),
        "Solution.tangent_kernel": Call(flow.tangent_kernel, {"t": 0}, said={"t": "step"}),
        "Solution.measure": Call(flow.measure, {"t": 0}, said={"t": "step"}),
        "Solution.preactivations": Call(flow.preactivations, {"t": 0, "layer": 1}, said={"t": "step"}),
        "Solution.preactivations of a network": Call(nets[0].preactivations, {"t": 0, "layer": 1}, said={"t": "step"}),
        "Standard.layers": Call(mf.Standard((4,)).layers, {"network": mf.Network()}),
        "Standard.output_multiplier": Call(mf.Standard((4,)).output_multiplier, {"width": 4}),
        "Adam": Call(mf.Adam, {"beta1": 0.9, "beta2": 0.9, "epsilon": 1e-8}),
        "Muon": Call(mf.Muon, {"beta1": 0.9, "nesterov": True, "iterations": 5, "others": mf.Adam(), "ratio": 0.5}),
        "RMSprop": Call(mf.RMSprop, {"beta2": 0.9, "epsilon": 1e-8}),
        "SignDescent": Call(mf.SignDescent, {"beta1": 0.9}),
        "Schedule": Call(mf.Schedule, {"shape": "cosine", "final": 0.1, "over": 5, "every": 30, "factor": 0.1}),
        "Schedule.factors": Call(mf.Schedule("cosine").factors, {"steps": 3, "warmup": 1}),
        "Schedule.lasting": Call(mf.Schedule("cosine").lasting, {"steps": 3}),
        "Training.records": Call(mf.Training().records, {"step": 0}),
        "Training.batches": Call(_drawn, {"samples": 3, "first": 0}),
        "Standard": Call(mf.Standard, {"widths": (4,), "improved": True}),
        "Training": Call(
            mf.Training,
            dict(
                learning_rate=0.1,
                steps=2,
                optimiser="gradient_descent",
                momentum=0.5,
                weight_decay=0.1,
                batch_size=2,
                batch_seed=1,
                record_every=2,
                schedule="cosine",
                warmup=1,
                clip=1.0,
                temperature=0.1,
                noise_seed=1,
            ),
        ),
        "Training.of_length": Call(mf.Training().of_length, {"steps": 3}),
        "Training.times_of": Call(mf.Training().times_of, {"steps": (0, 2)}, said={"steps": "step"}),
        "Training.other_than": Call(_other_than, {"taken": "momentum"}),
        "TwoTimeKernel": Call(mf.TwoTimeKernel, {"steps": (0, 2), "factor": flow.kernels["Phi1"].factor}),
        "TwoTimeKernel.at": Call(flow.kernels["Phi1"].at, {"t": 0, "s": 0}, said={"t": "step", "s": "step"}),
        "TwoTimeResponse": Call(TwoTimeResponse, _fields(o["dmft"].responses["A1"])),
        "TwoTimeResponse.at": Call(o["dmft"].responses["A1"].at, {"t": 1, "s": 0}, said={"t": "step", "s": "step"}),
        "TwoTimeResponse.correlation": Call(
            o["dmft"].responses["A1"].correlation, {"t": 1, "s": 0}, said={"t": "step", "s": "step"}
        ),
        "TwoTimeResponse.to_earlier": Call(o["dmft"].responses["A1"].to_earlier, {"t": 1}, said={"t": "step"}),
        "activation": Call(mf.activation, {"which": "tanh"}),
        "alignment": Call(mf.alignment, {"kernel": kernel, "y": data.y}),
        "check_gram": Call(mf.check_gram, {"kernel": kernel, "name": "kernel", "jitter": 0.1}),
        "classify": Call(mf.classify, {"scaling": mf.ntk()}),
        "coinciding": Call(mf.coinciding, {"other": mf.ntk(), "width": 4}),
        "conv_nngp_and_ntk": Call(
            mf.conv_nngp_and_ntk,
            {"network": mf.ConvNetwork(), "scaling": mf.ntk(), "x": image, "x2": image, "block": 2},
        ),
        "default": Call(mf.default, {"reference_width": 4}),
        "deviation": Call(
            mf.deviation,
            {"nets": nets, "limits": flow, "names": ["f"], "predicted": data.y, "seed": 0, "bias": o["bias"]},
        ),
        "ensemble_loss": Call(
            mf.ensemble_loss,
            {
                "limit": flow,
                "variance": o["variance"],
                "bias": o["bias"],
                "nets": nets,
                "ensembles": (1,),
                "test": False,
            },
        ),
        "EnsembleLoss": Call(mf.EnsembleLoss, _fields(o["ensembles"]), ("measured", "measured_se")),
        **{
            f"EnsembleLoss.{method}": Call(getattr(o["ensembles"], method), {"width": 4} | more)
            for method, more in (("removed", {"ensemble": 2}), ("kept", {}), ("expected", {"ensemble": 2}))
        },
        "digits": Call(mf.digits, {"classes": (0, 1), "n_train": 2, "n_test": 2, "seed": 0, "one_hot": False}),
        "free_energy": Call(mf.free_energy, {"solution": o["noisy"], "particles": 64}),
        "stationary": Call(mf.stationary, {"solutions": o["noisy"], "after": 0}),
        "from_arrays": Call(
            mf.from_arrays, {"x": data.x, "y": data.y, "x_test": None, "y_test": None, "name": "mine"} | divided
        ),
        "from_file": Call(mf.from_file, {"path": folder / "data.npz", "targets": 1} | divided, but=("targets",)),
        "from_frame": Call(mf.from_frame, {"frame": columns, "targets": 1, "name": "mine"} | divided),
        "gaussian_mixture": Call(
            mf.gaussian_mixture,
            {"n_train": 2, "n_test": 2, "inputs": 2, "classes": 2, "separation": 1.0, "seed": 0},
            said=samples,
        ),
        "ic_mean_field": Call(mf.ic_mean_field, {"gamma0": 1.0, "reference_width": 4, "frozen": "matched"}),
        "improved_standard": Call(mf.improved_standard, {"widths": 4}),
        "kernel_posterior": Call(
            mf.kernel_posterior,
            {"kernel": kernel, "y": data.y, "noise": 0.1, "across": kernel, "test": kernel},
            said={"y": "kernel"},
        ),
        "log_marginal_likelihood": Call(
            mf.log_marginal_likelihood, {"kernel": kernel, "y": data.y, "noise": 0.1}, said={"y": "kernel"}
        ),
        "load": Call(mf.load, {"path": kept, "network": _any_width}, but=("network",)),
        "loss": Call(mf.loss, {"which": "squared"}),
        "marginal_distance": Call(
            mf.marginal_distance, {"a": (h, m), "b": (h, m)}, said={"a": "the first", "b": "the second"}
        ),
        "mean_field": Call(mf.mean_field, {"gamma0": 1.0}),
        "measure_distance": Call(mf.measure_distance, {"p": o["measure"], "q": o["measure"], "regularisation": 0.1}),
        "movement": Call(
            mf.movement,
            {"solution": flow, "name": "Phi1", "start": 0, "end": -1},
            said={"start": "step", "end": "step"},
        ),
        "multi_index_teacher": Call(
            mf.multi_index_teacher,
            {"n_train": 2, "n_test": 2, "inputs": 3, "directions": 2, "link": "tanh", "noise": 0.1, "seed": 0},
            said=samples,
        ),
        "naive_standard": Call(mf.naive_standard, {"widths": 4}),
        "nngp_and_ntk": Call(
            mf.nngp_and_ntk, {"network": mf.Network(), "scaling": mf.ntk(), "x": data.x, "x2": data.x, "block": 2}
        ),
        "ntk": Call(mf.ntk, {}),
        "observe": Call(mf.observe, {"solution": flow, "name": "f"}),
        "pooled": Call(mf.pooled, {"solutions": nets[:2], "solver": {"name": "mine"}}),
        "measured": Call(
            mf.measured,
            {
                "problem": problem,
                "f": flow.f,
                "width": 4,
                "seed": 0,
                "f_test": flow.f_test,
                "loss": flow.loss,
                "name": "mine",
            },
        ),
        "register_loss": Call(mf.register_loss, {"new": mf.loss("squared")}),
        "register_activation": Call(mf.register_activation, {"new": tanh}),
        "write_page": Call(mf.write_page, {"results": flow, "path": folder / "page.html", "title": "Runs"}),
        "save": Call(mf.save, {"result": flow, "path": folder / "again.nc"}),
        "single_index_teacher": Call(
            mf.single_index_teacher,
            {"n_train": 2, "n_test": 2, "inputs": 3, "link": "tanh", "noise": 0.1, "seed": 0},
            said=samples | {"link": "dictionary"},  # a function of the user's speaks for itself
        ),
        "spectrum": Call(
            mf.spectrum,
            {"kernel": kernel, "y": data.y, "f0": data.y, "covariance": kernel, "precision": 1e-15},
            said={"y": "kernel"},
        ),
        "sym_default": Call(mf.sym_default, {"reference_width": 4}),
    }
    curve = {"times": [1.0, 2.0], "learning_rate": 0.5}
    end = {"time": 1.0, "learning_rate": 0.5, "jitter": 0.1}
    for name, right in {
        "decay": curve,
        "gain": curve | {"jitter": 0.1},
        "learning_curve": curve,
        "loss": curve,
        "squared_norm": end,
        "complexity": end,
        "bound": end | {"delta": 0.1},
        "largest_learning_rate": {"momentum": 0.5},
    }.items():
        found[f"KernelSpectrum.{name}"] = Call(getattr(o["spectrum"], name), right, said={"time": "times"})
    return found | _estimators() | _verbs(folder) | _pictures(folder)


def _estimators() -> dict[str, Call]:
    x = objects()["data"].x
    settings = {"network": mf.Network(1, "relu"), "scaling": mf.ntk(), "noise": 0.1, "law": "nngp", "over": ()}
    found = {}
    for kind, y in ((mf.GaussianProcessRegressor, [0.5, 1.0, -1.0]), (mf.GaussianProcessClassifier, [0, 1, 1])):

        def fitted(network, scaling, noise, law, over, kind=kind, y=y):
            return kind(network, scaling, noise, law, over).fit(x, y)

        name, made = kind.__name__, kind(mf.Network(1, "relu")).fit(x, y)
        found[name] = Call(fitted, settings | {"kind": kind, "y": y}, but=("kind", "y"))
        found[f"{name}.fit"] = Call(made.fit, {"x": x, "y": y})
        made = kind(mf.Network(1, "relu")).fit(x, y)  # which no wrong call fits anew
        found[f"{name}.score"] = Call(made.score, {"x": x, "y": y})
        more = {"return_std": False, "return_cov": False} if kind is mf.GaussianProcessRegressor else {}
        found[f"{name}.predict"] = Call(made.predict, {"x": x} | more)
    found[f"{name}.decision_function"] = Call(made.decision_function, {"x": x})
    return found


def _verbs(folder: Path) -> dict[str, Call]:
    o = objects()
    problem, data = o["problem"], o["data"]
    kernels = {"network": mf.Network(1, "relu"), "scaling": mf.ntk(), "x": data.x, "x2": data.x}
    cases = (
        (WassersteinFlow(16), problem, o["flow"]),
        (CausalDMFT(64, responses=True, keep_state=True), o["deep"], o["dmft"]),
        (FixedPointDMFT(64, keep_state=True), o["deep"], o["fixed"]),
        (InfiniteLogitsLimit(16), o["logistic"], o["logits"]),
        (TangentKernelLimit(), problem, o["lazy"]),
        (FiniteWidth(2), problem, o["nets"][0]),
        (RevealedWidth(4, keep_state=True), o["deep"], o["revealed"]),
    )
    found = {
        "Certificate": Call(
            solvers.Certificate,
            {"residuals": {"f": 0.1}, "floors": {"f": 0.1}, "samples": 4, "draws": 8, "steps": 1, "total": 2},
        ),
        "Estimate": Call(solvers.Estimate, {"seconds": 1.0, "bytes": 1.0, "how": "the whole run"}),
        "MonteCarloKernels": Call(
            solvers.MonteCarloKernels,
            {"nngp": data.x, "nngp_error": data.x, "ntk": data.x, "ntk_error": data.x, "width": 2, "seeds": (0, 1)},
        ),
        "PredictedVariance": Call(solvers.PredictedVariance, _fields(o["variance"]), ("values", "index", "settings")),
        "PredictedVariance.of": Call(o["variance"].of, {"function": lambda seen: seen["f"][-1].sum()}),
        "PredictedVariance.covariance": Call(o["variance"].covariance, {"first": "f", "second": "f_test"}, ("second",)),
        **{
            f"{kind}.{method}": Call(getattr(o[found], method), {"name": "f"})
            for kind, found, methods in (
                ("PredictedVariance", "variance", ("variance", "error", "by_part", "shares", "each")),
                ("PredictedBias", "bias", ("bias", "error", "each")),
            )
            for method in methods
        },
        "PredictedBias": Call(solvers.PredictedBias, _fields(o["bias"]), ("values", "index", "settings")),
        "WidthFor": Call(solvers.WidthFor, _fields(solvers.width_for(problem, 0.5, 1, "f", o["variance"], o["bias"]))),
        "Proxy.problem": Call(solvers.Proxy("ntk", FiniteWidth(4)).problem, {"problem": problem, "reference_width": 2}),
        "Proxy.outputs": Call(
            solvers.Proxy("ntk", FiniteWidth(4)).outputs, {"problem": problem, "reference_width": 2, "seeds": (0, 1)}
        ),
        "Proxy": Call(solvers.Proxy, {"scaling": "ntk", "solver": FiniteWidth(4)}),
        "checkpointed": Call(
            solvers.checkpointed,
            {"solver": FiniteWidth(2), "problem": problem, "path": folder / "kept.nc", "every": 1},
        ),
        "empirical_tangent_kernel": Call(
            solvers.empirical_tangent_kernel,
            {"network": mf.Network(), "scaling": mf.ntk(), "x": data.x, "width": 2, "seed": 0, "x2": data.x},
        ),
        "KernelBlocks": Call(solvers.KernelBlocks, {"edge": 2, "dtype": "float64"}),
        "KernelBlocks()": Call(
            solvers.KernelBlocks(2),
            kernels | {"executor": None, "folder": folder / "kernels", "progress": False},
        ),
        "KernelBlocks.estimate": Call(
            solvers.KernelBlocks(2).estimate, kernels | {"workers": 1, "folder": False, "seconds": 0.01}
        ),
        "lazy_prediction": Call(
            solvers.lazy_prediction,
            {
                "problem": problem,
                "times": [0.1, 0.2],
                "kernel": "analytic",
                "covariance": torch.eye(4, dtype=torch.float64),
                "jitter": 0.1,
            },
        ),
        "coordinate_check": Call(
            solvers.coordinate_check,
            {
                "problem": problem,
                "widths": (2, 3, 4),
                "seeds": 3,
                "steps": (0, 1),
                "points": 2,
                "samples": 16,
                "solver": FiniteWidth(),
            },
        ),
        "measured_exponents": Call(
            solvers.measured_exponents,
            {
                "problem": problem,
                "widths": (2, 3, 4),
                "seeds": 2,
                "solver": FiniteWidth(),
            },
        ),
        "module_tangent_kernel": Call(
            solvers.module_tangent_kernel,
            {"module": torch.nn.Linear(2, 1), "x": data.x, "x2": data.x, "rates": {"bias": 2.0}, "block": 1},
        ),
        "monte_carlo_kernels": Call(
            solvers.monte_carlo_kernels,
            {"network": mf.Network(), "scaling": mf.ntk(), "x": data.x, "width": 2, "seeds": 2},
        ),
        "over_ranks": Call(_entered, {"backend": "gloo", "timeout": 10.0}),
        "predicted_variance": Call(
            solvers.predicted_variance,
            {
                "problem": problem,
                "particles": 8,
                "seed": 0,
                "points": [0],
                "initial": "iid",
                "kink_width": 0.2,
                "progress": False,
                "observed": ["f"],
                "steps": [0],
                "groups": 2,
                "tolerance": 1e-3,
                "method": "derivative",
                "width": None,  # as it is if left out: derivatives have none
                "networks": 400,
            },
        ),
        "predicted_bias": Call(
            solvers.predicted_bias,
            {
                "problem": problem,
                "width": 4,
                "draws": 2,
                "seed": 0,
                "points": [0],
                "progress": False,
                "observed": ["f"],
                "steps": [0],
                "tolerance": 1e-3,
                "method": "networks",
            },
        ),
        "gibbs_fixed_point": Call(
            solvers.gibbs_fixed_point,
            {
                "problem": replace(problem, training=mf.Training(temperature=0.5, weight_decay=0.5)),
                "points": 16,
                "seed": 0,
                "tolerance": 1e-8,
            },
        ),
        "width_for": Call(
            solvers.width_for,
            {
                "problem": problem,
                "error": 0.1,
                "ensemble": 2,
                "name": "f",
                "variance": o["variance"],
                "bias": o["bias"],
                "progress": False,
            },
        ),
        "proxy_comparison": Call(
            solvers.proxy_comparison,
            {
                "problem": o["logistic"],
                "reference_width": 2,
                "limits": ["ntk"],
                "seeds": 4,
                "limit_seeds": 4,
            },
            said={"reference_width": "width"},
        ),
        "residual": Call(
            solvers.residual,
            {"solution": o["dmft"], "samples": 64, "seed": 1, "repeats": 2, "steps": 1, "progress": False},
        ),
        "rescaled": Call(solvers.rescaled, {"solution": o["grown"]}),
        "learning_rate_transfer": Call(
            solvers.learning_rate_transfer,
            {
                "problem": problem,
                "rates": (0.1, 0.2, 0.4),
                "widths": (2,),
                "seeds": 1,
                "limit": WassersteinFlow(16),
                "solver": FiniteWidth(),
                "test": False,
                "progress": False,
            },
        ),
        "width_sweep": Call(
            solvers.width_sweep,
            {
                "problem": problem,
                "widths": (2,),
                "seeds": 1,
                "solver": FiniteWidth(),
                "executor": None,
                "folder": folder / "nets",
                "progress": False,
            },
        ),
    }
    others = {"seeds": 2, "rank": 1, "passed": 0, "seconds": 0.01}
    for solver, asked, solution in cases:
        name = type(solver).__name__
        found[name] = Call(type(solver), _fields(solver))
        found[f"{name}()"] = Call(solver, {"problem": asked})
        found[f"{name}.resume"] = Call(solver.resume, {"solution": solution, "steps": 1})
        for method, made in inspect.getmembers(solver, inspect.ismethod):
            takes = set(inspect.signature(made).parameters)
            if not method.startswith("_") and takes <= others.keys() | {"problem"}:
                found[f"{name}.{method}"] = Call(
                    made, {"problem": asked} | {key: others[key] for key in takes & others.keys()}
                )
    return found


@checked
def _conditioned(network: Any, scaling: Any, noise: float, law: str, x: Any, y: Any) -> mf.Posterior:
    return mf.GaussianProcess(network, scaling, noise, law).posterior(x, y)  # pyright: ignore[reportArgumentType]


@checked
def _other_than(taken: str) -> str:
    return mf.Training().other_than(taken)


def _drawn(samples: int, first: int) -> list[Any]:
    return list(mf.Training(steps=2, batch_size=2).batches(samples, first))


@checked
def _entered(backend: str | None = None, timeout: float = 600.0) -> None:
    with solvers.over_ranks(backend, timeout):
        pass


@checked
def _printed(width: float = 3.4, font_size: float = 8.0) -> None:
    with mf.plot.paper(width, font_size):
        pass


def _pictures(folder: Path) -> dict[str, Call]:
    o = objects()
    nets, flow = o["nets"], o["flow"]
    every = {
        "animate_particles": {"solution": flow, "output": 0, "milliseconds": 10.0},
        "coordinates": {"report": o["coordinates"], "step": 1},
        "deviation": {"report": o["report"], "names": ["f"]},
        "ensemble_loss": {"found": o["ensembles"]},
        "eigenvalues": {"spectrum": o["spectrum"]},
        "free_energy": {"found": mf.free_energy(o["noisy"]), "end": o["gibbs"]},
        "stationary": {"found": o["averages"], "runs": o["noisy"], "samples": (0,), "output": 0},
        "kernels": {"solutions": flow, "name": "Phi1", "steps": (0,), "scale": "step"},
        "learning_curves": {"spectrum": o["spectrum"], "times": [1.0, 2.0], "learning_rate": 0.5, "directions": (0, 1)},
        "learning_rates": {"report": o["transfer"], "best": False},
        "loss": {"nets": nets, "limit": flow, "test": False},
        "outputs": {"nets": nets, "limit": flow, "samples": (0,), "output": 0, "test": False, "difference": False},
        "particles": {"solution": flow, "steps": (0,), "output": 0},
        "powers": {"reports": o["powers"]},
        "preactivations": {"nets": nets, "limit": flow, "sample": 0, "steps": (0,), "layer": 1, "bins": 4},
        "predicted_bias": {"found": o["bias"], "name": "f"},
        "predicted_variance": {"found": o["variance"], "name": "f"},
        "predictions": {"report": o["foretold"]},
        "prediction": {"found": o["prediction"], "nets": nets, "samples": (0,), "output": 0, "test": False},
        "proxy_comparison": {"report": o["proxies"]},
        "recorded": {
            "solutions": [o["noted"]],
            "name": "kept",
            "steps": (0,),
            "at": (0,),
            "difference": False,
        },
        "scaling_plane": {"points": {"mine": mf.ntk()}},
        "two_times": {"solution": o["dmft"], "names": ["Phi1"]},
        "variance": {"report": o["report"]},
        "width_for": {"found": solvers.WidthFor(10, 1.0, 0.1, 1, 0.3, 0.2, 0.9)},
    }
    picture = {"axes": mf.plot.eigenvalues(o["spectrum"]), "path": folder / "picture.png", "dpi": 30}
    found = {"plot.save": Call(mf.plot.save, picture), "plot.paper": Call(_printed, {"width": 3.4, "font_size": 8.0})}
    on = {"ax": None, "label": "mine"}
    return found | {f"plot.{name}": Call(getattr(mf.plot, name), right | on) for name, right in every.items()}


# exceptions, records of what a solver found, and names of ways to end; plot has calls of its own
WITHOUT = {
    "TwoTimeKernel.from_fields",
    "Network.keys",  # of kinds that the library knows
    "Problem.keys",
    "Architecture.rate_of",  # of its own parameters
    "Architecture.std",
    "Architecture.law_of",
    "Architecture.decay_of",
    "Architecture.sized",
    "Loss.fits",  # Problem asks it of its own targets
    "DivergedError",
    "Interrupted",
    "NonFiniteError",
    "RankLost",
    "SolverError",
    "GibbsMeasure",
    "FreeEnergy",
    "StationaryAverages",
    "Status",
    "plot",
}


def refusal(call: Call, name: str, wrong: Any) -> str | None:
    """What is wrong with the answer to a wrong value; None if nothing is"""
    try:
        call.made(**call.right | {name: wrong})
        return None
    except (ValueError, TypeError, MemoryError) as error:
        said, kind = str(error), type(error).__name__
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    if ROOT not in where.parents or ".venv" in where.parts:
        return f"{kind} from {where.name}: {said[:150]}"
    words = [name.replace("_", "[_ ]"), call.said.get(name, name)]
    words += [wrong] if isinstance(wrong, str) else ["a"] if isinstance(wrong, list) and "a" in wrong else []
    if "; known: " not in said and not any(re.search(rf"(?<![a-z]){word}(?![a-z])", said) for word in words):
        return f"does not name {name}: {said[:200]}"
    if example := re.search(rf"give e\.g\. {name}=(\([^)]*\)|\[[^]]*\]|[^\s;,]+)", said):
        try:
            call.made(**call.right | {name: ast.literal_eval(example[1])})
        except (ValueError, TypeError, MemoryError) as error:
            return f"its example, {example[0]}, is refused itself: {error}"
    return None


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return calls(tmp_path_factory.mktemp("wrong"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)  # some texts are good names of folders
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    pyplot.close("all")


GROUPS = {
    "nouns": lambda name: not name.startswith("plot.") and name.split(".")[0].split("(")[0] not in solvers.__all__,
    "verbs": lambda name: name.split(".")[0].split("(")[0] in solvers.__all__,
    "pictures": lambda name: name.startswith("plot."),
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_argument_of_every_public_call_is_taken_or_refused_by_name(known, group):
    faults = []
    for name, call in known.items():
        if GROUPS[group](name):
            call.made(**call.right)
            for argument in call.right.keys() - {"ax", *call.but}:
                found = {kind: refusal(call, argument, wrong) for kind, wrong in WRONG.items()}
                faults += [f"{name}, {argument} = {kind}: {fault}" for kind, fault in found.items() if fault]
    assert not faults, "\n".join(faults)


def test_unknown_arguments_are_refused_with_the_name_of_the_call(known):
    for name, call in known.items():
        with pytest.raises(TypeError, match="no_such_argument") as refused:
            call.made(**call.right, no_such_argument=1)
        words = {name.split(".")[-1].split("(")[0], getattr(call.made, "__name__", type(call.made).__name__)}
        assert any(word in str(refused.value) for word in words), name


def test_the_table_knows_all_that_is_public(known):
    """Every name of both packages, every argument of each call, and every public method of every public class."""
    names = ({*mf.__all__, *solvers.__all__} | {f"plot.{name}" for name in mf.plot.__all__}) - WITHOUT
    methods = {
        f"{name}.{method}"
        for name in names
        for owner in (getattr(mf, name, None) or getattr(solvers, name, None),)
        if isinstance(owner, type)
        for method, made in vars(owner).items()
        if not method.startswith("_") and (inspect.isfunction(made) or isinstance(made, staticmethod))
        if len(inspect.signature(made).parameters) > inspect.isfunction(made)  # self
    }
    missing = sorted((names | methods) - known.keys() - WITHOUT)
    assert not missing
    for name, call in known.items():
        takes = {p.name for p in inspect.signature(call.made).parameters.values() if p.kind is not p.VAR_KEYWORD}
        assert takes == set(call.right), name
