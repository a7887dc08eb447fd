"""What an architecture records by name, as heat maps or lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from meanfield.checking.arguments import checked
from meanfield.plot import data as plot_data
from meanfield.plot.data import Solutions
from meanfield.plot.families import Labels, named
from meanfield.plot.frame import LIMIT, SMALL, colours, heat, panels
from meanfield.solution.solution import Solution


@checked
def recorded(
    solutions: Solutions,
    name: str,
    steps: Sequence[int] = (0, -1),
    at: Sequence[int] | None = None,
    ax: Any = None,
    difference: bool = False,
    label: Labels = None,
) -> np.ndarray:
    """A tensor that `record={name: ..}` of an architecture names: matrices as heat maps, one row per solution and one column per step (for
    one step all in one row), vectors as lines, a panel per step with all solutions.

    at: the sample, and of tensors (P, .., n, m) also the heads or the like, counted from 0; if left out the first of each, and for
    numbers (P,) none, which draws them against the samples. difference: less that of the first limit, which is not drawn itself. label:
    of each problem, in titles and legend.
    ValueError for what was not recorded, and where neither a matrix nor a vector is left.

    Example:
        >>> from torch import nn
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth
        >>> def correlations(net, x):  # (P, P), of the features of all samples
        ...     h = net[:2](x)
        ...     return h @ h.T / h.shape[1]
        >>> def build(n):
        ...     return nn.Sequential(nn.Linear(64, n), nn.Tanh(), nn.Linear(n, 1))
        >>> network = mf.Architecture(build, record={"correlations": correlations})
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), network, mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> mf.plot.recorded(FiniteWidth(32)(problem), "correlations").shape
        (2,)
    """
    chosen, where = plot_data.several(solutions), None if at is None else tuple(at)
    limit = next((s for s in chosen if s.width is None), None)
    if difference and limit is None:
        raise ValueError("a difference needs a limit: give one among the solutions")
    shown = [s for s in chosen if s is not limit] if difference else chosen
    found = {step: [plot_data.recorded_tensor(s, name, step, where) for s in shown] for step in steps}
    if difference and limit is not None:
        less = {step: plot_data.recorded_tensor(limit, name, step, where)[1] for step in steps}
        found = {step: [(label, tensor - less[step]) for label, tensor in own] for step, own in found.items()}
    tensors = [tensor for own in found.values() for _, tensor in own]
    if len(shapes := {tensor.shape for tensor in tensors}) > 1:
        raise ValueError(f"what is drawn together must have one shape: received {name} of shapes {sorted(shapes)}")
    told = (found[steps[0]][0][0] if tensors else "") + (", less the limit's" if difference else "")
    names = named(shown, label)
    if tensors and tensors[0].ndim == 1:
        return _lines(shown, names, {step: [tensor for _, tensor in own] for step, own in found.items()}, told, ax)
    maps = [
        (f"{who}, {plot_data.when(s, step)}", found[step][i][1])
        for i, (s, who) in enumerate(zip(shown, names, strict=True))
        for step in steps
    ]
    return _maps(maps, len(steps), told, difference, ax)


def _maps(maps: list[tuple[str, np.ndarray]], columns: int, label: str, signed: bool, ax: Any) -> np.ndarray:
    rows, columns = (len(maps) // columns, columns) if columns > 1 else (1, len(maps))
    axes = panels(ax, rows, columns, size=(2.6, 2.5))
    low, high = min(m.min() for *_, m in maps), max(m.max() for *_, m in maps)
    signed = signed or low < 0
    look = heat(low, high, signed)
    for i, (panel, (title, matrix)) in enumerate(zip(axes, maps, strict=True)):
        panel.imshow(matrix, interpolation="nearest", **look)
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("column" if i >= len(maps) - columns else "")
        panel.set_ylabel("row" if i % columns == 0 else "")
        _counted(panel.xaxis, panel.yaxis)
    axes[0].figure.colorbar(axes[0].images[0], ax=list(axes), label=label, shrink=0.9)
    return axes


def _lines(
    shown: list[Solution], names: list[str], found: dict[int, list[np.ndarray]], label: str, ax: Any
) -> np.ndarray:
    axes = panels(ax, 1, len(found), size=(3.6, 3.2), sharey=True)
    widths = sorted({s.width for s in shown if s.width is not None})
    looks = {n: {"color": c, "linewidth": 1.2} for n, c in zip(widths, colours(len(widths)), strict=True)}
    for panel, (step, vectors) in zip(axes, found.items(), strict=True):
        told: set[str] = set()
        for solution, who, vector in zip(shown, names, vectors, strict=True):
            look = LIMIT if solution.width is None else looks[solution.width]
            panel.plot(vector, marker=".", label=f"_{who}" if who in told else who, **look)
            told.add(who)
        panel.set(xlabel="entry", title=plot_data.when(shown[0], step))
        _counted(panel.xaxis)
    axes[0].set_ylabel(label)
    axes[-1].legend(**SMALL)
    return axes


def _counted(*axes: Any) -> None:
    """Ticks at whole numbers"""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(5, integer=True))
