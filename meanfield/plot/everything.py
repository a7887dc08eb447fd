"""Every picture that results can show, by name: for the command `plot` and for pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from meanfield.comparison.coordinates import CoordinatesReport
from meanfield.comparison.ensembles import EnsembleLoss
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.comparison.free_energy import FreeEnergy
from meanfield.comparison.observables import has_preactivations
from meanfield.comparison.report import DeviationReport
from meanfield.comparison.scaling_reports import PowersReport, ProxyReport
from meanfield.comparison.stationary import StationaryAverages
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
from meanfield.plot.stationary import free_energy, stationary
from meanfield.plot.tensors import recorded
from meanfield.plot.transfer import learning_rates
from meanfield.solution.prediction import LazyPrediction
from meanfield.solution.solution import Solution, preactivation_keys

Pictures = dict[str, Callable[[], Any]]
"""{name: draws it and returns the axes}"""
_ARGUMENTS = {
    "steps": ("steps", "step"),
    "samples": ("samples",),
    "layer": ("layer",),
    "labels": ("label",),
}  # of plots, for options


def must_serve(options: Mapping[str, Any], pictures: Pictures, kinds: str) -> None:
    """ValueError for an option, named as a flag, that none of these pictures takes"""
    plots = [(draw.func, draw.keywords) for draw in pictures.values() if isinstance(draw, partial)]
    given = {name for _, keywords in plots for name in keywords}
    known = {name for draw, _ in plots for name in signature(draw).parameters}
    takes = [f"--{option}" for option, names in _ARGUMENTS.items() if known & {*names}]
    for option in (option for option, value in options.items() if value):
        if not given & {*_ARGUMENTS[option]}:
            instead = f"they take {', '.join(takes)}" if takes else "they take no such flag"
            raise ValueError(f"--{option} does not belong to pictures of {kinds}: leave it out; {instead}")


def of_report(report: Any, options: Mapping[str, Any], runs: Sequence[Solution] = ()) -> Pictures:
    """Pictures of one result that is no run; none for kinds without pictures. options: as of `of_runs`; runs: of which it may be."""
    own = [run for run in runs if run.problem == getattr(report, "problem", None)]
    samples = {"samples": options["samples"]} if options.get("samples") else {}
    step = {"step": _one("steps", options["steps"])} if options.get("steps") else {}
    label: dict[str, Any] = {"label": _one("labels", options["labels"])} if options.get("labels") and not runs else {}
    nets = [run for run in own if run.width is not None]
    drawn: dict[type, Callable[[], Pictures]] = {
        DeviationReport: lambda: _of_deviation(report, label),
        PredictedVariance: lambda: _each(report, predicted_variance, label),
        PredictedBias: lambda: _each(report, predicted_bias, label),
        EnsembleLoss: lambda: {"ensembles": partial(ensemble_loss, report, **label)},
        FreeEnergy: lambda: {"free_energy": partial(free_energy, report, **label)},
        WidthFor: lambda: {"width": partial(width_for, report, **label)},
        LazyPrediction: lambda: {"prediction": partial(prediction, report, nets, **samples, **label)},
        PowersReport: lambda: {"powers": partial(powers, report, **label)},
        CoordinatesReport: lambda: {"coordinates": partial(coordinates, report, **step, **label)},
        TransferReport: lambda: {"learning_rates": partial(learning_rates, report, **label)},
        ProxyReport: lambda: {"proxy": partial(proxy_comparison, report, **label)},
        KernelSpectrum: lambda: {"spectrum": partial(eigenvalues, report, **label)},
        StationaryAverages: lambda: {"stationary": partial(stationary, report, own, **samples, **label)} if own else {},
    }
    return drawn.get(type(report), dict)()


def _one(option: str, values: Sequence[Any]) -> Any:
    if len(values) != 1:
        raise ValueError(f"--{option} takes one value for a report: received {' '.join(map(str, values))}")
    return values[0]


def _of_deviation(report: DeviationReport, label: Mapping[str, Any]) -> Pictures:
    foretold = any(p.predicted == p.predicted for p in report.predictions)  # not nan
    every = {"deviation": deviation, "variance": variance} | ({"predictions": predictions} if foretold else {})
    return {name: partial(draw, report, **label) for name, draw in every.items()}


def _each(found: PredictedVariance | PredictedBias, draw: Callable[..., Any], label: Mapping[str, Any]) -> Pictures:
    """A picture of each observable of a prediction"""
    return {name: partial(draw, found, name, **label) for name in found.names}


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
        "loss": partial(loss, runs, **label),
        "outputs": partial(outputs, runs, samples=samples, **label),
    }
    if one.problem.data.y_test is not None:
        pictures["test_loss"] = partial(loss, runs, test=True, **label)
    for name in kernel_names(one, layer):
        having = [run for run in ones if name in kernel_names(run, layer)]
        pictures[name] = partial(kernels, having, name, steps=steps, **label)
    for name in (name for name, tensor in one.recorded.items() if tensor.ndim > 1):
        pictures[name] = partial(recorded, one, name, steps=steps)
    if both := [name for name, kernel in one.kernels.items() if len(kernel.steps) == len(one.f) > 2]:
        whose = named(ones, options.get("labels") or None)[0] if len(ones) > 1 else None
        pictures["two_times"] = partial(two_times, one, (*both, *one.responses), label=whose)
    if one.particles:
        pictures["particles"] = partial(particles, one, steps=steps)
    for key in preactivation_keys(one):
        kept = all(has_preactivations(run, key.layer) for run in runs)
        if (
            steps
            and kept
            and layer in (None, key.layer, str(key.layer))
            and all(set(steps) <= set(run.snapshots) for run in runs)
        ):
            pictures[key] = partial(preactivations, runs, steps=steps, layer=key.layer, **label)
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
