"""Every picture that results can show, by name: for the command `plot` and for pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meanfield.comparison.coordinates import CoordinatesReport
from meanfield.comparison.ensembles import EnsembleLoss
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.comparison.free_energy import FreeEnergy
from meanfield.comparison.observables import has_preactivations
from meanfield.comparison.report import DeviationReport
from meanfield.comparison.scaling_reports import PowersReport, ProxyReport
from meanfield.comparison.transfer_report import TransferReport
from meanfield.kernels.spectrum import KernelSpectrum
from meanfield.network.keys import parts
from meanfield.plot.families import named
from meanfield.plot.fluctuations import ensemble_loss, predicted_bias, predicted_variance, predictions, width_for
from meanfield.plot.lazy import eigenvalues, prediction
from meanfield.plot.matrices import kernels, two_times
from meanfield.plot.plane import powers, proxy_comparison
from meanfield.plot.reports import coordinates, deviation, variance
from meanfield.plot.runs import loss, outputs, particles, preactivations
from meanfield.plot.stationary import free_energy
from meanfield.plot.tensors import recorded
from meanfield.plot.transfer import learning_rates
from meanfield.solution.prediction import LazyPrediction
from meanfield.solution.solution import Solution, preactivation_keys

Pictures = dict[str, Callable[[], Any]]
"""{name: draws it and returns the axes}"""


def of_report(report: Any, options: Mapping[str, Any]) -> Pictures:
    """Pictures of one result that is no run; none for kinds without pictures. options: as of `of_runs`."""
    samples = {"samples": options["samples"]} if options.get("samples") else {}
    step = {"step": options["steps"][0]} if options.get("steps") else {}
    label = {"label": options["labels"][0]} if options.get("labels") else {}
    drawn: dict[type, Pictures] = {
        DeviationReport: _of_deviation(report, label),
        PredictedVariance: _each(report, predicted_variance, label),
        PredictedBias: _each(report, predicted_bias, label),
        EnsembleLoss: {"ensembles": lambda: ensemble_loss(report, **label)},
        FreeEnergy: {"free_energy": lambda: free_energy(report, **label)},
        WidthFor: {"width": lambda: width_for(report, **label)},
        LazyPrediction: {"prediction": lambda: prediction(report, **samples, **label)},
        PowersReport: {"powers": lambda: powers(report, **label)},
        CoordinatesReport: {"coordinates": lambda: coordinates(report, **step, **label)},
        TransferReport: {"learning_rates": lambda: learning_rates(report, **label)},
        ProxyReport: {"proxy": lambda: proxy_comparison(report, **label)},
        KernelSpectrum: {"spectrum": lambda: eigenvalues(report, **label)},
    }
    return drawn.get(type(report), {})


def _of_deviation(report: Any, label: Mapping[str, Any]) -> Pictures:
    pictures: Pictures = {
        "deviation": lambda: deviation(report, **label),
        "variance": lambda: variance(report, **label),
    }
    foretold = any(p.predicted == p.predicted for p in getattr(report, "predictions", ()))  # not nan
    return pictures | ({"predictions": lambda: predictions(report, **label)} if foretold else {})


def _each(found: Any, draw: Callable[..., Any], label: Mapping[str, Any]) -> Pictures:
    """A picture of each observable of a prediction"""
    return {name: lambda name=name: draw(found, name, **label) for name in getattr(found, "names", ())}


def of_runs(runs: Sequence[Solution], options: Mapping[str, Any]) -> Pictures:
    """What these runs can show. Kernels and particles are those of the limits, one of each problem, or of the first network.

    options: "steps" and "samples" that are shown, "layer" alone (a number or name), "labels" of the problems, each if it is not None.
    """
    label = {"label": options["labels"]} if options.get("labels") else {}
    limits = [run for run in runs if run.width is None]
    ones = [run for k, run in enumerate(limits) if all(run.problem != other.problem for other in limits[:k])] or [
        runs[0]
    ]
    one, layer = ones[0], options.get("layer")
    _must_have_layer(ones, layer)
    steps = tuple(options.get("steps") or dict.fromkeys((*one.snapshots[:1], *one.snapshots[-1:])))
    samples = options.get("samples") or None
    pictures: Pictures = {
        "loss": lambda: loss(runs, **label),
        "outputs": lambda: outputs(runs, samples=samples, **label),
    }
    if one.problem.data.y_test is not None:
        pictures["test_loss"] = lambda: loss(runs, test=True, **label)
    for name in kernel_names(one, layer):
        having = [run for run in ones if name in kernel_names(run, layer)]
        pictures[name] = lambda name=name, having=having: kernels(having, name, steps, **label)
    for name in (name for name, tensor in one.recorded.items() if tensor.ndim > 1):
        pictures[name] = lambda name=name: recorded(one, name, steps)
    if both := [name for name, kernel in one.kernels.items() if len(kernel.steps) == len(one.f) > 2]:
        whose = named(ones, options.get("labels") or None)[0] if len(ones) > 1 else None
        pictures["two_times"] = lambda: two_times(one, (*both, *one.responses), label=whose)
    if one.particles:
        pictures["particles"] = lambda: particles(one, steps)
    for key in preactivation_keys(one):
        kept = all(has_preactivations(run, key.layer) for run in runs)
        if (
            steps
            and kept
            and layer in (None, key.layer, str(key.layer))
            and all(set(steps) <= set(run.snapshots) for run in runs)
        ):
            pictures[key] = lambda layer=key.layer: preactivations(runs, steps=steps, layer=layer, **label)
    return pictures


def _must_have_layer(runs: Sequence[Solution], layer: int | str | None) -> None:
    layers = {str(parts(name)[1]) for run in runs for name in kernel_names(run)}
    layers |= {str(key.layer) for run in runs for key in preactivation_keys(run)}
    layers -= {"None"}
    if layer is not None and str(layer) not in layers:
        known = ", ".join(sorted(layers)) or "none"
        raise ValueError(f"layer {layer} does not exist or was not recorded: recorded are {known}")


def kernel_names(run: Solution, layer: int | str | None = None) -> tuple[str, ...]:
    """The kernels that a run has at its snapshots, of one layer if it is given"""
    names = (*run.kernels, *(["tangent_kernel"] if run.tangent_kernels is not None else []))
    return tuple(name for name in names if layer is None or str(parts(name)[1]) == str(layer))
