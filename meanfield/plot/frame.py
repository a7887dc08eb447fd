"""What all pictures share: panels, colours, axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap, Normalize
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.plot import data as plot_data
from meanfield.plot.style import sized
from meanfield.problem.dataset import for_tests
from meanfield.solution.solution import Solution

LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.5, "zorder": 5}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"  # colour-blind readers tell them apart (Okabe and Ito)
TIME = r"training time $\eta k$"
SMALL: dict[str, Any] = {"fontsize": "small", "title_fontsize": "small"}
_BOTH = matplotlib.colormaps["RdBu_r"]
_REDS = LinearSegmentedColormap.from_list("reds of RdBu_r", _BOTH(np.linspace(0.5, 1, 128)))


def panels(
    ax: Any,
    rows: int = 1,
    columns: int = 1,
    count: int = 0,
    size: Any = (5.2, 3.8),
    extra: float = 0.0,
    **shared: Any,
) -> Any:
    """`count` (default: all) axes as a flat array: the ones given, or those of a new figure, without the rest of its grid.

    extra: inches beside the panels, for long labels and a legend.
    """
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
    shape = sized((size[0] * columns + extra, size[1] * rows))
    asked: dict[str, Any] = {"layout": "constrained", "squeeze": False} | shared
    _, made = plt.subplots(rows, columns, figsize=shape, **asked)
    for unused in made.ravel()[count:]:
        unused.remove()
    return made.ravel()[:count]


def headed(axes: Any, ax: Any, label: str | None) -> None:
    """What the picture is of, above a new figure or before the first title of given axes"""
    if label and ax is None:
        axes[0].get_figure(root=True).suptitle(label, fontsize="medium")
    elif label:
        axes[0].set_title(": ".join(filter(None, (label, axes[0].get_title()))), fontsize="medium")


def beside(ax: Any) -> dict[str, Any]:
    """A legend to the right of the panels of a new figure; in a given one, wherever there is room."""
    return SMALL | ({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if ax is None else {})


def colours(count: int) -> list[Any]:
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.88, 0.15, count)] if count > 1 else [BLUE] * count


def plain_log(ax: Axes, *which: str) -> None:
    """Ticks that neither crowd nor are missing on logarithmic axes ("x", "y"; y if left out), for the limits as they are now"""
    for name in which or ("y",):
        axis: Any = ax.xaxis if name == "x" else ax.yaxis
        low, high = axis.get_view_interval()
        if high < 4 * low:
            axis.set_major_locator(MaxNLocator(4))
        elif high < 1000 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1, 3)))
        if high < 1000 * low:
            axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def heat(low: float, high: float, signed: bool) -> dict[str, Any]:
    """Colours of a heat map, one family for all: white to red between the ends, or blue to red about 0 where signs matter"""
    if signed:
        return {"norm": CenteredNorm(0, max(-low, high, 1e-30)), "cmap": _BOTH}
    return {"norm": Normalize(low, high if high > low else low + 1e-12 + 1e-6 * abs(low)), "cmap": _REDS}


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
    """Write the figure that holds `axes` and close it; the end of the path says as what: .png, .pdf, .svg, ..

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> mf.plot.save(mf.plot.loss(WassersteinFlow(particles=64)(problem)), "loss.svg")  # by its ending: .png, .pdf, .svg
    """
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
    figure.draw_without_rendering()  # the layout takes two passes to settle: with one, labels at the edge are cut
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
