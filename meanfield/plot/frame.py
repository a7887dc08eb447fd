"""What all pictures share: panels, colours, axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.plot import data as plot_data
from meanfield.problem.dataset import for_tests
from meanfield.solution.solution import Solution

LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.5, "zorder": 5}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"  # colour-blind readers tell them apart (Okabe and Ito)
TIME = r"training time $\eta k$"
SMALL: dict[str, Any] = {"fontsize": "small", "title_fontsize": "small"}


def panels(ax: Any, rows: int = 1, columns: int = 1, count: int = 0, size: Any = (5.2, 3.8), **shared: Any) -> Any:
    """`count` (default: all) axes as a flat array: the ones given, or those of a new figure, without the rest of its grid."""
    count = count or rows * columns
    if not count:
        raise ValueError(
            "nothing to draw: received an empty list of steps, samples, names, solutions or reports; give at least one"
        )
    if ax is not None:
        given = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
        if len(given) != count:
            raise ValueError(f"this picture needs {count} axes: received {len(given)}; without ax a new figure is made")
        return given
    shape = (size[0] * columns, size[1] * rows)
    _, made = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False, **shared)
    for unused in made.ravel()[count:]:
        unused.remove()
    return made.ravel()[:count]


def beside(ax: Any) -> dict[str, Any]:
    """A legend to the right of the panels of a new figure; in a given one, wherever there is room."""
    return SMALL | ({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if ax is None else {})


def colours(count: int) -> list[Any]:
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.88, 0.15, count)] if count > 1 else [BLUE] * count


def plain_log(ax: Axes) -> None:
    """Ticks at 1, 2, 5 of each decade where the default labels would crowd; for the limits as they are now"""
    low, high = ax.get_ylim()
    if high < 1000 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")


def width_axis(ax: Axes, widths: Sequence[int], label: bool = True) -> None:
    ax.set_xticks(widths, [str(n) for n in widths])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("width $N$" if label else "")


def output_of(solution: Solution, mu: int, column: int, test: bool) -> Tensor:
    """(R,) one of the outputs of a sample, counted through its positions if it has some"""
    f = (for_tests(solution.f_test) if test else solution.f).flatten(2)
    if not 0 <= column < f.shape[2]:
        raise ValueError(f"output={column} does not exist: the outputs are 0..{f.shape[2] - 1}")
    return plot_data.row(f.transpose(0, 1), mu)[:, column]


@checked
def save(axes: Any, path: str | Path, dpi: int = 150) -> None:
    """Write the figure that holds `axes` and close it."""
    drawn = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if not len(drawn) or not isinstance(drawn[0], Axes):
        raise ValueError(f"axes must be what a picture returned: received {checks.shown(axes)}")
    figure: Any = drawn[0].get_figure(root=True)
    if Path(path).suffix[1:].lower() not in (known := figure.canvas.get_supported_filetypes()):
        raise ValueError(f"path must end like a picture: received {str(path)!r}; known: {', '.join(known)}")
    dpi = checks.integer("dpi", dpi, 10)
    width, height = figure.get_size_inches()
    checks.memory(
        f"a picture of {width:g} x {height:g} inches at dpi={dpi}", 16.0 * width * height * dpi**2, "lower dpi"
    )
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
