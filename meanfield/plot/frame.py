"""What all pictures share: panels, colours, axes."""

from __future__ import annotations

import re
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
from meanfield.plot.style import in_a_row, in_print, sized
from meanfield.problem.dataset import Dataset, for_tests
from meanfield.solution.solution import Solution

LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.5, "zorder": 5}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"  # colour-blind readers tell them apart (Okabe and Ito)
TIME = r"training time $\eta k$"
SMALL: dict[str, Any] = {"fontsize": "small", "title_fontsize": "small"}
_PASSES = 3
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
    shape = sized((size[0] * columns + extra, size[1] * rows), rows)
    asked: dict[str, Any] = {"layout": "constrained", "squeeze": False} | shared
    figure, made = plt.subplots(rows, columns, figsize=shape, **asked)
    engine: Any = figure.get_layout_engine()
    if columns > 1 and engine is not None:
        engine.set(w_pad=0.07)  # inches: the last number of an axis and the first of the next stand apart
    for unused in made.ravel()[count:]:
        unused.remove()
    return made.ravel()[:count]


def headed(axes: Any, ax: Any, label: str | None) -> None:
    """What the picture is of, above a new figure or before the first title of given axes"""
    if label and ax is None:
        axes[0].get_figure(root=True).suptitle(label, fontsize="medium")
    elif label:
        axes[0].set_title(": ".join(filter(None, (label, axes[0].get_title()))), fontsize="medium")


def legend(
    axes: Any, ax: Any, handles: Sequence[Any] = (), names: Sequence[str] = (), title: str | None = None
) -> None:
    """What lines are: to the right of the panels of a new figure, below them in a paper; in given axes wherever there is room.

    handles, names: those of the last panel if left out
    """
    if not handles:
        handles, names = axes[-1].get_legend_handles_labels()
    if ax is None and in_print():
        across = 2 if max((len(name) for name in names), default=0) < 28 else 1
        axes[0].get_figure(root=True).legend(
            handles, names, title=title, loc="outside lower center", ncols=across, **SMALL
        )
        return
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if ax is None else {}
    axes[-1].legend(handles, names, title=title, **SMALL, **place)


def few_ticks(panel: Axes) -> None:
    """Along the lower axis, as many as have room, five at most"""
    figure: Any = panel.get_figure(root=True)
    wide = panel.get_position().width * figure.get_size_inches()[0]
    panel.xaxis.set_major_locator(MaxNLocator(max(2, min(5, int(wide / 0.5)))))


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


def shown(data: Dataset, test: bool = False) -> list[int]:
    """Samples where none are chosen: one of each class, at most three, or as many as have room beside each other"""
    found = plot_data.shown_samples(data, test)
    return found[: in_a_row(len(found))]


def output_of(solution: Solution, mu: int, column: int, test: bool) -> Tensor:
    """(R,) one of the outputs of a sample, counted through its positions if it has some"""
    f = (for_tests(solution.f_test) if test else solution.f).flatten(2)
    if not 0 <= column < f.shape[2]:
        raise ValueError(f"output={column} does not exist: the outputs are 0..{f.shape[2] - 1}")
    return plot_data.row(f.transpose(0, 1), mu)[:, column]


def _broken(figure: Any) -> bool:
    """Break titles and names of axes that are longer than their axis into lines, so that they do not run into others; whether some were"""
    found = False
    for panel in figure.axes:
        box = panel.get_window_extent()
        for text, room, along in (
            (panel.title, box.width, "width"),
            (panel.xaxis.label, box.width, "width"),
            (panel.yaxis.label, box.height, "height"),
        ):
            told = text.get_text()
            length = getattr(text.get_window_extent(), along) if told else 0.0
            lines = [line for part in told.split("\n") for line in wrapped(part, room / max(length, 1.0), told)]
            if length > 1.1 * room > 0 and (again := "\n".join(lines)) != told:
                text.set_text(again)
                found = True
    return found


def wrapped(line: str, share: float, longest: str) -> list[str]:
    """A line in parts of at most this share of the longest one's letters, broken between words but not inside of formulas"""
    most = share * max(map(_letters, longest.split("\n")))
    words = re.findall(r"(?:\$[^$]*\$|[^\s$])+", line)
    lines: list[str] = []
    for word in words:
        if lines and _letters(f"{lines[-1]} {word}") <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [line]


def _letters(text: str) -> float:
    """About as many as it is wide: formulas are shorter than what they are written as"""
    return len(re.sub(r"\$([^$]*)\$", lambda m: re.sub(r"\\[a-zA-Z]+|[{}^_ ]", "x", m[1])[::2], text))


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
    for _ in range(_PASSES):  # each makes axes a little smaller
        if not _broken(figure):
            break
        figure.draw_without_rendering()
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
