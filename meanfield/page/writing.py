"""write_page: what was asked, what came, how it was made, as one page of HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from meanfield.checking.arguments import checked
from meanfield.files import in_words, sealed, storage
from meanfield.files.reports import Result
from meanfield.network.keys import parts
from meanfield.page.sure import SURE, how_sure
from meanfield.plot import everything
from meanfield.plot.data import when
from meanfield.plot.embedded import Figure, frame
from meanfield.plot.matrices import kernels
from meanfield.solution.solution import Solution

LARGEST = 5_000_000  # bytes of a page
_FRAMES = 9  # steps of a slider
_KINDS = {
    "Phi": "kernel of the features that enter layer",
    "G": "kernel of the gradients that leave layer",
    "h": "preactivations of layer",
    "A": "response A of layer",
    "B": "response B of layer",
}
_CAPTIONS = {
    "tangent_kernel": "Tangent kernel",
    "loss": "Training loss against time",
    "test_loss": "Test loss against time",
    "outputs": "Outputs at single samples against time",
    "two_times": "Kernels between all pairs of times",
    "particles": "Particles: input weights by readout",
    "deviation": "Distance from the limit against the width, with its noise floor and exponents",
    "variance": "N times the variance of the outputs",
    "predictions": "What was measured beside what was predicted",
}


@dataclass(frozen=True)
class Section:
    """A part of the page: a table, a text, pictures, what of it there is"""

    title: str
    about: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""
    figures: tuple[Figure, ...] = field(default=())

    @property
    def times(self) -> tuple[str, ...]:
        """Of a slider that all figures share; none where they stand still"""
        frames = self.figures[0].frames if self.figures else ()
        return tuple(f.when for f in frames) if len(frames) > 1 else ()


@checked
def write_page(results: Result | Sequence[Result], path: str | Path, title: str = "meanfield report") -> Path:
    """Write results as one .html file that needs no network and no other file: settings, status, pictures, how it was made.

    Runs are shown together, each report has a section of its own; kernels have a slider over their recorded steps. Everything that comes
    from results is escaped. Returns the path. ValueError for another ending, a missing folder, and pages beyond 5 MB.

    Example:
        >>> import tempfile
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> run = WassersteinFlow(particles=64)(mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mf.write_page(run, folder + "/run.html").name
        'run.html'
    """
    several = list(results) if isinstance(results, Sequence) else [results]
    return written([(one, storage.provenance(one)) for one in several], path, title)


def written(
    found: Sequence[tuple[Any, Mapping[str, Any]]],
    path: str | Path,
    title: str,
    tested: Mapping[str, str] | None = None,
) -> Path:
    """The page of results, each with the attributes of its file; tested: certificates in words, by file"""
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(
            f"a page is a file that ends in .html: received {str(path)!r}; give e.g. {path.stem or 'report'}.html"
        )
    if not path.parent.is_dir():
        raise ValueError(f"the folder of {str(path)!r} does not exist: create {path.parent} first")
    if not found:
        raise ValueError("results is empty: give one at least")
    html = page(found, title, tested or {}).encode()
    if len(html) > LARGEST:
        raise ValueError(
            f"the page would take {len(html) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}: give fewer results"
        )
    sealed.replaced(path, html)
    return path


def page(found: Sequence[tuple[Any, Mapping[str, Any]]], title: str, tested: Mapping[str, str]) -> str:
    """The HTML"""
    runs = [result for result, _ in found if isinstance(result, Solution)]
    sections = [*(_of_runs(runs) if runs else ())]
    if tested:
        text = "\n\n".join(f"{file}\n{words}" for file, words in tested.items())
        sections.insert(
            3, Section("Certificates", "What one application of the self-consistent map changes.", text=text)
        )
    for result in (result for result, _ in found if not isinstance(result, Solution)):
        sections += _of_report(result)
    sections.append(_made(found))
    template = resources.files("meanfield.page").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    versions = sorted({str(told.get("meanfield_version", "?")) for _, told in found})
    return environment.from_string(template).render(
        title=title, sections=sections, footer=f"Made with meanfield {', '.join(versions)}. This page needs no network."
    )


def _of_runs(runs: Sequence[Solution]) -> Iterable[Section]:
    yield _asked(runs)
    yield _came(runs)
    if limits := [run for run in runs if run.width is None]:
        yield Section("How sure it is", head=SURE, rows=tuple(how_sure(run, limits) for run in limits[:60]))
    pictures = everything.of_runs(runs, {})
    curves = [name for name in ("loss", "test_loss", "outputs") if name in pictures]
    yield Section("Losses and outputs", figures=tuple(_figure(pictures[name], name) for name in curves))
    if sliders := tuple(_over_time(runs)):
        about = (
            "Drag to see the kernels at other recorded steps. Phi: of features; G: of gradients; K: the tangent kernel."
        )
        yield Section("Kernels over time", about, figures=sliders)
    shown = {figure.caption for figure in sliders}
    rest = [name for name in pictures if name not in curves and _caption(name) not in shown]
    if rest:
        yield Section("Layer by layer", figures=tuple(_figure(pictures[name], name) for name in rest))


def _asked(runs: Sequence[Solution]) -> Section:
    """Settings, and of those in which runs differ each value"""
    values: dict[tuple[str, str], dict[str, None]] = {}  # of (part, setting), in the order of their coming
    for run in runs:
        for part, asked in in_words.by_part(storage.described(run)).items():
            own = dict(asked) if isinstance(asked, Mapping) else {"": asked}
            title = f"solver {own.pop('name')}" if part == "solver" else part
            for key in filter(lambda key: in_words.says_something(own[key]), own):
                values.setdefault((title, key), {})[in_words.line(own[key])] = None
    told: dict[str, list[str]] = {}
    for (title, key), found in values.items():
        told.setdefault(title, []).append(f"{key} {_some(list(found))}".strip())
    rows = [(title, "; ".join(settings)) for title, settings in told.items()]
    data = list(dict.fromkeys(repr(run.problem.data) for run in runs))
    return Section("What was asked", rows=(("data", _some(data)), *rows))


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:8]) + (f", .. ({len(values)} in all)" if len(values) > 8 else "")


def _came(runs: Sequence[Solution]) -> Section:
    head = ("run", "seed", "steps", "loss", "test loss", "status", "seconds", "notes")
    rows = []
    for run in runs[:60]:
        who = run.solver.get("name", "?") if run.width is None else f"network, N = {run.width}"
        test = f"{run.test_loss[-1]:.4g}" if run.problem.data.y_test is not None and len(run.test_loss) else "-"
        notes = [str(run.stats[name]) for name in ("reason", "warning") if run.stats.get(name)]
        notes += [f"ranks {max(run.stats['ranks'])}"] if run.stats.get("ranks") else []
        loss = f"{run.loss[0]:.4g} → {run.loss[-1]:.4g}"
        seconds = f"{run.stats['seconds']:.2f}" if "seconds" in run.stats else "-"
        rows.append(
            (
                str(who),
                str(run.solver.get("seed", "-")),
                str(run.steps),
                loss,
                test,
                run.status.value.partition(":")[0],
                seconds,
                "; ".join(notes),
            )
        )
    about = "" if len(runs) <= 60 else f"The first 60 of {len(runs)} runs; the pictures show all."
    return Section("What came", about, head, tuple(rows))


def _over_time(runs: Sequence[Solution]) -> Iterable[Figure]:
    one = next((run for run in runs if run.width is None), runs[0])
    steps = [int(step) for step in one.snapshots]
    chosen = steps if len(steps) <= _FRAMES else [steps[i * (len(steps) - 1) // (_FRAMES - 1)] for i in range(_FRAMES)]
    if len(chosen) < 2:
        return
    for name in everything.kernel_names(one):
        frames = tuple(frame(lambda name=name, s=step: kernels(one, name, (s,)), when(one, step)) for step in chosen)
        yield Figure(_caption(name), frames)


def _of_report(result: Any) -> Iterable[Section]:
    pictures = everything.of_report(result, {})
    table = result.table() if hasattr(result, "table") else str(result)
    title = re.sub(r"(?<=.)(?=[A-Z])", " ", type(result).__name__).capitalize()  # DeviationReport: "Deviation report"
    yield Section(title, text=table, figures=tuple(_figure(draw, name) for name, draw in pictures.items()))


def _figure(draw: Any, name: str) -> Figure:
    return Figure(_caption(name), (frame(draw),))


def _caption(name: str) -> str:
    kind, layer = parts(name)
    return _CAPTIONS.get(name, f"{name}: {_KINDS[kind]} {layer}" if layer is not None and kind in _KINDS else name)


def _made(found: Sequence[tuple[Any, Mapping[str, Any]]]) -> Section:
    head, rows = ("what", "made", "versions", "threads", "again by"), []
    for result, told in found[:60]:
        versions = json.loads(str(told.get("versions", "{}")))
        by = [
            f"meanfield {told.get('meanfield_version', '?')}",
            *(f"{k} {versions[k]}" for k in ("torch", "python") if k in versions),
        ]
        by += [f"commit {str(told['git_commit'])[:12]}"] if told.get("git_commit") else []
        again = f"meanfield {told['command']}" if told.get("command") else "its solver, in Python"
        what = str(told.get("file", type(result).__name__))
        rows.append((what, str(told.get("created", "-")), ", ".join(by), str(told.get("threads", "-")), again))
    return Section("How it was made", head=head, rows=tuple(rows))
