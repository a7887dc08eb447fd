"""Commands on what was solved: compare, certify, draw. flags.py makes flags of the fields, help of the texts under them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from meanfield.comparison.deviation import deviation
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance
from meanfield.files import storage
from meanfield.solution.solution import Solution
from solvers.command_line.builders import Reads, every, loaded, opened
from solvers.command_line.fluctuations import of_kind
from solvers.command_line.start_kernels import StartKernels
from solvers.dmft.certificate import planned, residual
from solvers.fluctuations.predicted_variance import predicted_variance
from solvers.running.failures import SolverError
from solvers.running.keeping import DONE, ELSEWHERE, free, keep, made


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
    """Draw kept runs, reports and kernels; limits and networks are drawn together, each report for itself."""

    files: tuple[Path, ...] = field(metadata={"positional": True})
    """Runs, reports (.nc) and kernels (.npz), as files or folders of .nc files"""
    out: Path | None = None
    """Folder of the pictures; that of the first file if left out"""
    steps: tuple[int, ...] | None = None
    """Recorded steps of kernels, particles and preactivations, -1 is the last; the first and the last if left out"""
    samples: tuple[int, ...] | None = None
    """Rows of the samples whose outputs are drawn; some of each class if left out"""
    layer: str | None = None
    """The one layer whose kernels and preactivations are drawn, its number or name; all if left out"""
    labels: tuple[str, ...] | None = None
    """Names of the problems, one for each; what differs between them if left out"""
    format: Literal["png", "pdf", "svg"] = "png"
    """png (pixels), pdf or svg (lines)"""
    dpi: int = 150
    """Pixels an inch"""
    paper: bool = False
    """Sizes for a column of a paper: its width, smaller type, thinner lines"""


@dataclass(frozen=True)
class Report(Reads):
    """Make one page of HTML of kept runs and reports: settings, status, pictures, kernels over time, how they were made."""

    files: tuple[Path, ...] = field(metadata={"positional": True})
    """Runs and reports, as files or folders"""
    out: Path = Path("report.html")
    """File to write (.html); it needs no network and no other file"""
    title: str = "meanfield report"
    """The page's heading"""
    overwrite: bool = False
    """Replace an older file"""
    certify: bool = False
    """Test deep limits for self-consistency first, as certify does; takes about as long as each run did"""


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
    runs = _runs(_loaded((asked.file,), asked.network))
    if len(runs) > 1:
        raise ValueError(f"{asked.file} is a folder of {len(runs)} runs: give the .nc file of one")
    (solution,) = runs
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
    first = asked.files[0]
    of_runs = next((path for path, result in results.items() if isinstance(result, Solution)), first)
    whose = next((path.stem for path in asked.files if of_runs == path or of_runs.is_relative_to(path)), first.stem)
    options = {name: getattr(asked, name) for name in ("steps", "samples", "layer", "labels")}
    from meanfield.plot import style

    with style.many(), plot.paper() if asked.paper else nullcontext():
        axes = {name: draw() for name, draw in _pictures(results, whose, options).items()}  # all, before one is kept
        with made(asked.out or (first if first.is_dir() else first.parent)) as folder:
            for name, drawn in axes.items():
                path = folder / f"{name}.{asked.format}"
                plot.save(drawn, path, asked.dpi)
                print(path)
    return DONE


def _pictures(results: Mapping[Path, Any], first: str, options: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """Those of all runs together and of each report, by the names of their files; ValueError for an option that none of them takes"""
    from meanfield.plot import everything, matrices

    runs = [result for result in results.values() if isinstance(result, Solution)]
    found = {f"{first}_{name}": draw for name, draw in (everything.of_runs(runs, options) if runs else {}).items()}
    kinds = ["runs"] if runs else []
    for path, result in results.items():
        if isinstance(result, Solution):
            continue
        if isinstance(result, StartKernels):
            between = {"nngp": result.nngp, "ntk": result.ntk}
            own: dict[str, Any] = {"kernels": partial(matrices.between_samples, result.data, between)}
        else:
            own = everything.of_report(result, options, runs)
        kind = f"a {type(result).__name__}"
        if not own:
            raise ValueError(
                f"{path} holds {kind}, of which there is no picture without the runs it is of: give them, too"
            )
        kinds.append(kind)
        stem = path.stem if f"{path.stem}_{next(iter(own))}" not in found else f"{path.parent.name}_{path.stem}"
        found |= {f"{stem}_{name}": draw for name, draw in own.items()}
    everything.must_serve(options, found, " and ".join(dict.fromkeys(kinds)))
    return found


def _report(asked: Report) -> int:
    free(asked.out, asked.overwrite)
    _plots()
    from meanfield.page.writing import written

    results = _loaded(asked.files, asked.network)
    found = [(result, {**opened(path)[1], "file": str(path)}) for path, result in results.items()]
    deep = ("CausalDMFT", "FixedPointDMFT")
    limits = {
        path: run for path, run in results.items() if isinstance(run, Solution) and run.solver.get("name") in deep
    }
    tested = {str(path): _certificate(run) for path, run in limits.items()} if asked.certify else {}
    print(f"written to {written(found, asked.out, asked.title, tested)}")
    return DONE


def _certificate(run: Solution) -> str:
    """In words; why there is none, where the run has none"""
    try:
        return str(residual(run))
    except ValueError as error:
        return f"none: {error}"


def _plots() -> Any:
    os.environ.setdefault("MPLBACKEND", "Agg")  # no window
    from meanfield import plot

    return plot


def _loaded(paths: Sequence[Path], network: str | None) -> dict[Path, Any]:
    return {path: loaded(path, network) for path in every(paths)}


def _runs(results: Mapping[Path, Any]) -> list[Solution]:
    for path, result in results.items():
        if not isinstance(result, Solution):
            raise ValueError(f"{path} holds a {type(result).__name__}: a run is needed here")
    return list(results.values())


COMMANDS: dict[type, Callable[[Any], int]] = {Compare: _compare, Certify: _certify, Plot: _plot, Report: _report}
