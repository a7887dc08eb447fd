"""Commands on what was solved: compare, certify, draw. flags.py makes flags of the fields, help of the texts under them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanfield.comparison.coordinates import CoordinatesReport
from meanfield.comparison.deviation import deviation
from meanfield.comparison.ensembles import EnsembleLoss
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.comparison.free_energy import FreeEnergy
from meanfield.comparison.observables import has_preactivations
from meanfield.comparison.report import DeviationReport
from meanfield.comparison.scaling_reports import PowersReport, ProxyReport
from meanfield.comparison.transfer_report import TransferReport
from meanfield.files import storage
from meanfield.kernels.spectrum import KernelSpectrum
from meanfield.solution.prediction import LazyPrediction
from meanfield.solution.solution import Solution, preactivation_keys
from solvers.command_line.builders import Reads, loaded
from solvers.command_line.fluctuations import of_kind
from solvers.dmft.certificate import planned, residual
from solvers.fluctuations.predicted_variance import predicted_variance
from solvers.running.failures import SolverError
from solvers.running.keeping import DONE, ELSEWHERE, free, keep


@dataclass(frozen=True)
class Compare(Reads):
    """Deviation of networks from their limit: print the table, keep the report and a picture of it."""

    limits: tuple[Path, ...]
    """The limit; with two or more (other seeds) its own error is known too"""
    out: Path
    """File to write (.nc); the picture is put beside it (.png)"""
    nets: tuple[Path, ...] = field(metadata={"positional": True})
    """Networks, as files or folders of a sweep"""
    names: tuple[str, ...] | None = None
    """What to compare (f, loss, Phi1, tangent_kernel, h1, measure, ..); all that was recorded if left out"""
    predict: bool = False
    """Predict N Var f(T) as well"""
    variance: Path | None = None
    """What fluctuations kept of the variance, to be compared with that of the networks"""
    bias: Path | None = None
    """What fluctuations --bias kept, likewise"""
    overwrite: bool = False
    """Replace an older file"""


@dataclass(frozen=True)
class Plot(Reads):
    """Draw kept runs or a kept report as .png pictures; a limit and its networks are drawn together."""

    files: tuple[Path, ...] = field(metadata={"positional": True})
    """Runs, as files or folders of a sweep, or one report"""
    out: Path | None = None
    """Folder of the pictures; that of the first file if left out"""


@dataclass(frozen=True)
class Certify(Reads):
    """Print the certificate of a kept DMFT solution: what one application of the self-consistent map changes, beside its noise.

    Ends with 1 if the solution is not consistent.
    """

    file: Path = field(metadata={"positional": True})
    """A solution that kept its kernels at all pairs of steps"""
    samples: int | None = None
    """Fresh neurons per draw; the solution's number if left out"""
    steps: int | None = None
    """The last step that is tested, -1 for all; as many as cost about as much as the run (or ten seconds) if left out"""
    seed: int = 1
    """Of the fresh draws"""
    threads: int | None = None
    """Threads of the processor; those of OMP_NUM_THREADS, or all, if left out"""
    dry_run: bool = False
    """Print which steps and how long, and do not test them"""


def _certify(asked: Certify) -> int:
    (solution,) = _runs(_loaded((asked.file,), asked.network))
    plan = planned(solution, asked.samples, steps=asked.steps)
    print(plan, flush=True)
    if asked.dry_run:
        return DONE
    certificate = residual(solution, asked.samples, asked.seed, steps=plan.steps)
    print(certificate)
    if not certificate.consistent:
        raise SolverError(f"{asked.file} holds no solution of its equations, as its certificate shows")
    return DONE


def _compare(asked: Compare) -> int:
    storage.writable(asked.out)
    for path in (asked.out, asked.out.with_suffix(".png")):
        free(path, asked.overwrite)
    if asked.predict and asked.variance:
        raise ValueError("--predict finds the variance anew, and --variance gives it: leave one of them out")
    nets, limits = (_runs(_loaded(paths, asked.network)) for paths in (asked.nets, asked.limits))
    predicted = of_kind(PredictedVariance, asked.variance, asked.network)
    if asked.predict:
        predicted = predicted_variance(limits[0].problem)
    bias = of_kind(PredictedBias, asked.bias, asked.network)
    report = deviation(nets, limits, asked.names, predicted, bias=bias)
    path = keep(report, asked.out)
    print(f"{report.table()}\nkept in {path}")
    plot, picture = _plots(), path.with_suffix(".png")
    plot.save(plot.deviation(report), picture)
    print(f"drawn in {picture}")
    return DONE if path == asked.out else ELSEWHERE


def _plot(asked: Plot) -> int:
    results, plot = _loaded(asked.files, asked.network), _plots()
    first, only = asked.files[0], next(iter(results.values()))
    folder = asked.out or (first if first.is_dir() else first.parent)
    folder.mkdir(parents=True, exist_ok=True)
    reports: dict[type, dict[str, Callable[[], Any]]] = {
        DeviationReport: _of_report(only, plot),
        PredictedVariance: _each(only, plot.predicted_variance),
        PredictedBias: _each(only, plot.predicted_bias),
        EnsembleLoss: {"ensembles": lambda: plot.ensemble_loss(only)},
        FreeEnergy: {"free_energy": lambda: plot.free_energy(only)},
        WidthFor: {"width": lambda: plot.width_for(only)},
        LazyPrediction: {"prediction": lambda: plot.prediction(only, samples=range(min(3, only.problem.data.samples)))},
        PowersReport: {"powers": lambda: plot.powers(only)},
        CoordinatesReport: {"coordinates": lambda: plot.coordinates(only)},
        TransferReport: {"learning_rates": lambda: plot.learning_rates(only)},
        ProxyReport: {"proxy": lambda: plot.proxy_comparison(only)},
        KernelSpectrum: {"spectrum": lambda: plot.eigenvalues(only)},
    }
    pictures = reports.get(type(only)) if len(results) == 1 else None
    pictures = pictures or _pictures(plot, _runs(results))
    for name, draw in pictures.items():
        path = folder / f"{first.stem}_{name}.png"
        plot.save(draw(), path)
        print(path)
    return DONE


def _of_report(report: Any, plot: Any) -> dict[str, Callable[[], Any]]:
    pictures = {"deviation": lambda: plot.deviation(report), "variance": lambda: plot.variance(report)}
    foretold = any(p.predicted == p.predicted for p in getattr(report, "predictions", ()))  # not nan
    return pictures | ({"predictions": lambda: plot.predictions(report)} if foretold else {})


def _each(found: Any, draw: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """A picture of each observable of a prediction"""
    return {name: lambda name=name: draw(found, name) for name in getattr(found, "names", ())}


def _pictures(plot: Any, runs: Sequence[Solution]) -> dict[str, Callable[[], Any]]:
    """What these runs can show. Kernels and particles are those of the limit, if there is one."""
    one = next((run for run in runs if run.width is None), runs[0])
    steps = tuple(dict.fromkeys((*one.snapshots[:1], *one.snapshots[-1:])))
    samples = range(min(3, one.problem.data.samples))
    pictures: dict[str, Callable[[], Any]] = {
        "loss": lambda: plot.loss(runs),
        "outputs": lambda: plot.outputs(runs, samples=samples),
    }
    if one.problem.data.y_test is not None:
        pictures["test_loss"] = lambda: plot.loss(runs, test=True)
    for name in (*one.kernels, *(["tangent_kernel"] if one.tangent_kernels is not None else [])):
        pictures[name] = lambda name=name: plot.kernels(one, name, steps)
    for name in (name for name, tensor in one.recorded.items() if tensor.ndim > 1):
        pictures[name] = lambda name=name: plot.recorded(one, name, steps)
    if both := [name for name, kernel in one.kernels.items() if len(kernel.steps) == len(one.f) > 2]:
        pictures["two_times"] = lambda: plot.two_times(one, (*both, *one.responses))
    if one.particles:
        pictures["particles"] = lambda: plot.particles(one, steps)
    for key in preactivation_keys(one):
        kept = all(has_preactivations(run, key.layer) for run in runs)
        if steps and kept and all(set(steps) <= set(run.snapshots) for run in runs):
            pictures[key] = lambda layer=key.layer: plot.preactivations(runs, steps=steps, layer=layer)
    return pictures


def _plots() -> Any:
    os.environ.setdefault("MPLBACKEND", "Agg")  # no window
    from meanfield import plot

    return plot


def _loaded(paths: Sequence[Path], network: str | None) -> dict[Path, Any]:
    found = [inner for path in paths for inner in (sorted(path.glob("*.nc")) if path.is_dir() else [path])]
    if not found:
        raise ValueError(
            f"no .nc files in {', '.join(map(str, paths)) or 'nothing'}: give files or folders that hold some"
        )
    return {path: loaded(path, network) for path in found}


def _runs(results: Mapping[Path, Any]) -> list[Solution]:
    for path, result in results.items():
        if not isinstance(result, Solution):
            raise ValueError(f"{path} holds a {type(result).__name__}: a run is needed here")
    return list(results.values())


COMMANDS: dict[type, Callable[[Any], int]] = {Compare: _compare, Certify: _certify, Plot: _plot}
