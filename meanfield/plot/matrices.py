"""Kernels and responses as heat maps, over pairs of samples or of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import CenteredNorm, Normalize

from meanfield.checking.arguments import checked
from meanfield.network.keys import parts
from meanfield.plot import data as plot_data
from meanfield.plot.data import Solutions
from meanfield.plot.frame import panels
from meanfield.solution.solution import Solution, first_key


@checked
def kernels(
    solutions: Solutions, name: str | None = None, steps: Sequence[int] = (0, -1), ax: Any = None
) -> np.ndarray:
    """Kernels ("Phi1", "G1", .., "tangent_kernel"; the first layer's Phi if left out) as heat maps, one row per solution and one column per
    step.

    Samples are sorted by target, with lines between classes. With several outputs: the mean over pairs of equal outputs. Kernels of
    modules that see positions are over samples and their positions, as they come.
    """
    chosen = plot_data.several(solutions)
    name = name or (first_key(chosen[0], "Phi") if chosen else "Phi1")
    maps = [(s, step, plot_data.kernel_matrix(s, name, step)) for s in chosen for step in steps]
    axes, picture = panels(ax, len(chosen), len(steps), size=(3.1, 2.7)), None
    low, high = min(k.min() for *_, k in maps), max(k.max() for *_, k in maps)
    signed = low < 0
    norm = CenteredNorm(0, max(-low, high)) if signed else Normalize(low, high)
    for i, (panel, (solution, step, kernel)) in enumerate(zip(axes, maps, strict=True)):
        by_sample = len(kernel) == solution.problem.data.samples
        order, borders = plot_data.by_class(solution.problem.data.y) if by_sample else (np.arange(len(kernel)), [])
        colours = "RdBu_r" if signed else "viridis"
        picture = panel.imshow(kernel[np.ix_(order, order)], norm=norm, cmap=colours, interpolation="nearest")
        for line in (panel.axhline, panel.axvline):
            for border in borders:
                line(border - 0.5, color="black" if signed else "white", linewidth=0.8)
        panel.set(xticks=[], yticks=[], title=f"{plot_data.who(solution)}, {plot_data.when(solution, step)}")
        rows = "sample, by target" if by_sample else "position in sample"
        panel.set_xlabel(rows if i >= len(axes) - len(steps) else "")
        panel.set_ylabel(rows if i % len(steps) == 0 else "")
    label = plot_data.described(name).split(",")[0]
    axes[0].figure.colorbar(picture, ax=list(axes), label=label, shrink=0.9).ax.set_ylim(low, high)
    return axes


@checked
def two_times(solution: Solution, names: Sequence[str] | None = None, ax: Any = None) -> np.ndarray:
    """Kernels Phi^l(t, s), G^l(t, s) and responses A^l(t, s), B^l(t, s) over pairs of steps, mean over samples, a panel each.

    names: the first layer's Phi and G if left out.
    """
    names = [first_key(solution, kind) for kind in ("Phi", "G")] if names is None else names
    maps = [plot_data.two_times(solution, name) for name in names]
    axes = panels(ax, 1, len(names), size=(3.6, 3.0))
    for panel, name, (steps, matrix) in zip(axes, names, maps, strict=True):
        kind, layer = parts(name)
        signed = bool(matrix.min() < 0) or kind in ("A", "B")
        largest = max(float(np.abs(matrix).max()), 1e-30)
        norm = CenteredNorm(0, largest) if signed else Normalize(float(matrix.min()), float(matrix.max()))
        colours = "RdBu_r" if signed else "viridis"
        middles = (steps[1:] + steps[:-1]) / 2  # records need not be evenly spaced
        first, last = (0.5, 0.5) if len(steps) == 1 else (middles[0] - steps[0], steps[-1] - middles[-1])
        edges = np.array([steps[0] - first, *middles, steps[-1] + last])
        picture = panel.pcolormesh(edges, edges, matrix, norm=norm, cmap=colours)
        panel.set_aspect("equal")
        panel.invert_yaxis()
        panel.set(xlabel="step $s$", ylabel="step $t$", title=plot_data.symbol(kind, layer, "(t, s)"))
        panel.figure.colorbar(picture, ax=panel, shrink=0.85)
    return axes
