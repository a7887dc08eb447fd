"""Runnable studies. Each module's `main(out=None, quick=False)` prints a table, keeps pictures in the folder `out` if there is
one, and returns its main numbers. `python -m examples --quick --out DIR` runs all, `python -m examples.NAME` one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

import meanfield as mf


def names() -> tuple[str, ...]:
    """The modules of this package, the demo first."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(sorted(found, key=lambda name: (name != "demo", name)))


def folder(out: str | Path) -> Path:
    """`out`, made if need be."""
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    return path


def keep(axes: Any, path: Path) -> None:
    """Write the figure that holds `axes` and close it."""
    mf.plot.save(axes, path, dpi=130)


def slope(x: Any, y: Any) -> float:
    """The power p of y ~ x^p by least squares."""
    return float(np.polyfit(np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float)), 1)[0])


def power(report: mf.DeviationReport) -> float:
    """The power p of the deviations ~ N^p, in the mean over what a report has."""
    return slope(report.widths, np.exp(np.mean([np.log(d.deviation) for d in report.observables.values()], axis=0)))


def approach(nets: Sequence[mf.Solution], limit: mf.Solution, report: mf.DeviationReport, test: bool = False) -> Any:
    """Networks of some widths approaching their limit: losses against time, and the deviations of a report against width."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9.8, 3.9), layout="constrained")
    mf.plot.loss(nets, limit, left, test)
    middle, error = (
        (limit.test_loss, limit.standard_errors["test_loss"]) if test else (limit.loss, limit.standard_errors["loss"])
    )
    low, high = (middle - 2 * error).numpy(), (middle + 2 * error).numpy()
    left.fill_between(
        limit.times.numpy(), low, high, color="#D55E00", alpha=0.6, zorder=4, label="limit ± 2 standard errors"
    )
    left.legend(title=left.get_legend().get_title().get_text(), fontsize="small", title_fontsize="small")
    left.set_yscale("linear")
    left.set_ylim(0, None)
    return left, distances(right, report)


def distances(ax: Axes, report: mf.DeviationReport) -> Axes:
    """The deviations of a report against width, beside N^-1/2."""
    n, several = np.array(report.widths, dtype=float), len(report.observables)
    for i, (name, found) in enumerate(report.observables.items()):
        label = {"f": "outputs $f$", "tangent_kernel": "tangent kernel"}.get(name, name.replace("Phi", r"$\Phi$"))
        beside = n * 1.04 ** (i - (several - 1) / 2)  # so that no bar hides another
        style = {"marker": "os^Dv"[i], "markersize": 4, "linewidth": 0.8, "capsize": 2, "color": _COLOURS[i]}
        ax.errorbar(beside, found.deviation, found.deviation_se, label=label, **style)
    _guide(ax, report)
    return ax


_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
)  # colour-blind readers tell them apart (Okabe and Ito)


def _guide(ax: Axes, report: mf.DeviationReport) -> None:
    """A line of N^-1/2 through the middle, and what the axes are"""
    n = np.array(report.widths, dtype=float)
    middle = np.mean([np.log(d.deviation * n**0.5) for d in report.observables.values()])
    ax.plot(n, np.exp(middle) * n**-0.5, color="0.45", linewidth=1, linestyle="--", label="$N^{-1/2}$")
    ax.set(xscale="log", yscale="log", xlabel="width $N$", ylabel="deviation from the limit, relative to it")
    ax.set_xticks(n, [str(width) for width in report.widths])
    ax.set_xticks([], minor=True)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(title="± 1 standard error", fontsize="small", title_fontsize="small")
