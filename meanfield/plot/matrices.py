"""Kernels and responses as heat maps, over pairs of samples or of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.network.keys import parts
from meanfield.plot import data as plot_data
from meanfield.plot.data import Solutions
from meanfield.plot.families import Labels, named
from meanfield.plot.frame import heat, panels
from meanfield.plot.style import in_a_row
from meanfield.problem.dataset import Dataset
from meanfield.solution.solution import Solution, first_key


@checked
def kernels(
    solutions: Solutions,
    name: str | None = None,
    steps: Sequence[int] = (0, -1),
    ax: Any = None,
    scale: str = "step",
    label: Labels = None,
) -> np.ndarray:
    """Kernels ("Phi1", "G1", .., "tangent_kernel"; the first layer's Phi if left out) as heat maps, one row per solution and one column per
    step.

    Samples are sorted by class, with lines between classes and their names. With several outputs: the mean over pairs of equal outputs.
    Kernels of modules that see positions are over samples and their positions, as they come. scale: whose colours are the same: "step",
    all solutions at a step, since kernels grow, "all", or "panel", none. label: instead of the names of the problems in the titles.

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT, FiniteWidth
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> nets = [CausalDMFT(samples=64)(problem), FiniteWidth(32)(problem)]
        >>> mf.plot.kernels(nets, "Phi2").shape  # a row for each solution, a column for each step
        (4,)
    """
    chosen = plot_data.several(solutions)
    name = name or (first_key(chosen[0], "Phi") if chosen else "Phi1")
    rows = [[plot_data.kernel_matrix(s, name, step) for step in steps] for s in chosen]
    axes = panels(ax, len(chosen), len(steps), size=(3.3, 2.7), layout="compressed")
    grid = axes.reshape(len(chosen), len(steps))
    symbol = plot_data.described(name).split(",")[0]
    signed = min(kernel.min() for row in rows for kernel in row) < 0
    for panels_, k in _sharing(grid, scale):
        found = [rows[i][j] for i, j in k]
        low, high = min(m.min() for m in found), max(m.max() for m in found)
        look = heat(low, high, signed)
        for panel, matrix, (i, _) in zip(panels_, found, k, strict=True):
            by_sample = len(matrix) == chosen[i].problem.data.samples
            _over_samples(panel, matrix, chosen[i].problem.data if by_sample else None, look)
        bar = panels_[0].figure.colorbar(panels_[0].images[0], ax=panels_, shrink=0.9)
        bar.ax.set_ylim(low, high) if high > low else None
        if grid[-1, -1] in panels_ or scale == "panel":
            bar.set_label(symbol)
    for i, (who, row) in enumerate(zip(named(chosen, label), grid, strict=True)):
        for j, (panel, step) in enumerate(zip(row, steps, strict=True)):
            panel.set_title(f"{who}, {plot_data.when(chosen[i], step)}", fontsize="medium")
            panel.tick_params(labelleft=j == 0, labelbottom=i == len(chosen) - 1)
            panel.set_ylabel(panel.get_ylabel() if j == 0 else "")
            panel.set_xlabel(panel.get_xlabel() if i == len(chosen) - 1 else "")
    return axes


def between_samples(data: Dataset, matrices: Mapping[str, Tensor]) -> np.ndarray:
    """Matrices over all samples, or over their outputs and positions, as heat maps between those of training, a panel each"""
    axes = panels(None, 1, len(matrices), size=(3.3, 2.7))
    for panel, (name, matrix) in zip(axes, matrices.items(), strict=True):
        whole = matrix.double().reshape(math.isqrt(matrix.numel()), -1).numpy()
        each = len(whole) // data.points  # outputs or positions of a sample
        shown = whole[: each * data.samples, : each * data.samples]
        _over_samples(panel, shown, data if each == 1 else None, heat(shown.min(), shown.max(), shown.min() < 0))
        panel.figure.colorbar(panel.images[0], ax=panel, shrink=0.9)
        panel.set_title(f"{name}, training samples", fontsize="medium")
    return axes


_SCALES = {"step": lambda i, j: j, "all": lambda i, j: 0, "panel": lambda i, j: (i, j)}  # alike where these are


def _sharing(grid: np.ndarray, scale: str) -> list[tuple[list[Axes], list[tuple[int, int]]]]:
    """Groups of panels with the same colours, and where they stand"""
    places = [(i, j) for j in range(grid.shape[1]) for i in range(grid.shape[0])]
    shared = checks.lookup("scale", scale, _SCALES)
    groups: dict[Any, list[tuple[int, int]]] = {}
    for place in places:
        groups.setdefault(shared(*place), []).append(place)
    return [([grid[place] for place in group], group) for group in groups.values()]


def _over_samples(panel: Axes, matrix: np.ndarray, data: Dataset | None, look: dict[str, Any]) -> None:
    """A heat map over pairs of samples, in order of their classes; data: None for one over positions"""
    order, borders, names = plot_data.by_class(data) if data is not None else (np.arange(len(matrix)), [], [])
    panel.imshow(matrix[np.ix_(order, order)], interpolation="nearest", **look)
    for line in (panel.axhline, panel.axvline):
        for border in borders:
            line(border - 0.5, color="black", linewidth=0.8)
    ends = np.array([0, *borders, len(matrix)])
    middles = (ends[1:] + ends[:-1] - 1) / 2
    panel.set_xticks(middles if names else [], names or None)
    panel.set_yticks(middles if names else [], names or None)
    panel.tick_params(length=0, labelsize="small")
    told = "position in sample" if data is None else "sample, by class" if names else "sample, by target"
    panel.set(xlabel=told, ylabel=told)


@checked
def two_times(
    solution: Solution, names: Sequence[str] | None = None, ax: Any = None, label: str | None = None
) -> np.ndarray:
    """Kernels Phi^l(t, s), G^l(t, s) and responses A^l(t, s), B^l(t, s) over pairs of training times, mean over samples, a panel each.

    names: the first layer's Phi and G if left out. label: at the colour bars, instead of what the mean is over.

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> mf.plot.two_times(CausalDMFT(samples=64)(problem), names=("Phi1", "G1")).shape
        (2,)
    """
    names = [first_key(solution, kind) for kind in ("Phi", "G")] if names is None else names
    maps = [plot_data.two_times(solution, name) for name in names]
    columns = in_a_row(len(names))
    axes = panels(ax, -(-len(names) // columns), columns, len(names), size=(3.7, 3.0))
    for i, (panel, name, (steps, matrix)) in enumerate(zip(axes, names, maps, strict=True)):
        kind, layer = parts(name)
        signed = bool(matrix.min() < 0) or kind in ("A", "B")
        look = heat(float(matrix.min()), float(matrix.max()), signed)
        at, unit = solution.problem.training.times_of(steps.tolist()).numpy(), "time"
        if np.any(np.diff(at) <= 0):  # a learning rate of 0 stops time, not steps
            at, unit = steps, "step"
        edges = _edges(at)
        picture = panel.pcolormesh(edges, edges, matrix, rasterized=True, **look)
        panel.set_aspect("equal")
        panel.invert_yaxis()
        panel.set(xlabel=f"{unit} $s$", ylabel=f"{unit} $t$", title=plot_data.symbol(kind, layer, "(t, s)"))
        bar = panel.figure.colorbar(picture, ax=panel, shrink=0.85)
        if columns == len(names) or (i + 1) % columns == 0:  # in several rows at the right edge alone
            bar.set_label(label or "mean over samples", fontsize="small")
    return axes


def _edges(at: np.ndarray) -> np.ndarray:
    """Of cells about points, which need not be evenly spaced"""
    middles = (at[1:] + at[:-1]) / 2
    first, last = (0.5, 0.5) if len(at) == 1 else (middles[0] - at[0], at[-1] - middles[-1])
    return np.array([at[0] - first, *middles, at[-1] + last])
