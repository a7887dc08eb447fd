"""How pictures look in a paper: width, letters and lines, for all that is drawn and saved inside a `with`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from meanfield.checking import checks
from meanfield.checking.arguments import checked

_WIDTH: ContextVar[float | None] = ContextVar("width", default=None)


@checked
@contextmanager
def paper(width: float = 3.4, font_size: float = 8.0) -> Iterator[None]:
    """Pictures for print: `with mf.plot.paper(): mf.plot.save(mf.plot.loss(nets, limit), "loss.pdf")`.

    width: inches of new figures; 3.4 is a column of most journals, 7.0 the page, which rows of panels need. font_size: points of all
    letters but the small ones of legends and names. Lines are thin; letters stay letters in .pdf and .svg files, which are vectors but for
    heat maps over time. rcParams are as before afterwards.

    Example:
        >>> import meanfield as mf
        >>> with mf.plot.paper(width=3.4):
        ...     mf.plot.save(mf.plot.scaling_plane(), "plane.svg")
    """
    width, font_size = checks.positive("width", width), checks.positive("font_size", font_size)
    look: dict[Any, Any] = {
        "font.size": font_size,
        "axes.titlesize": "medium",
        "axes.linewidth": 0.6,
        "lines.markersize": 4.0,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
    }
    before = _WIDTH.set(width)
    try:
        with mpl.rc_context(look):
            yield
    finally:
        _WIDTH.reset(before)


@contextmanager
def many() -> Iterator[None]:
    """For more figures at a time than matplotlib finds usual; what is open is closed where one of them fails"""
    before = {*plt.get_fignums()}
    try:
        with mpl.rc_context({"figure.max_open_warning": 0}):
            yield
    except BaseException:
        for number in {*plt.get_fignums()} - before:
            plt.close(number)
        raise


def sized(shape: tuple[float, float], rows: int = 1) -> tuple[float, float]:
    """Of a new figure: as asked, or as wide as the paper, of the same form but each row no flatter than letters need"""
    if (width := _WIDTH.get()) is None:
        return shape
    return width, max(width * shape[1] / shape[0], min(shape[1], 1.9 * rows))


def in_print() -> bool:
    """Whether pictures are those of a paper now"""
    return _WIDTH.get() is not None


def in_a_row(count: int, narrowest: float = 1.6) -> int:
    """How many of `count` panels stand side by side: all, or as many as the paper has inches for"""
    width = _WIDTH.get()
    return max(1, count if width is None else min(count, int(width / narrowest)))
