"""Curves against training time: of networks by width and of limits, their differences from the limit below them, names at their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from meanfield.plot.families import Family
from meanfield.solution.solution import Solution

Values = Callable[[Solution], Tensor]

MARK = "family"  # gid of the first line of each
_FEW = 3  # widths whose bands can be told apart


def drawn_before(ax: Any) -> int:
    """Families that are on given axes already"""
    return 0 if ax is None else sum(line.get_gid() == MARK for line in np.atleast_1d(ax).ravel()[0].get_lines())


def curves(ax: Axes, every: Sequence[Family], of: Values) -> list[np.ndarray]:
    """Per width the mean over seeds, with a band of one standard deviation where there are few widths, and the limits on top; the lines."""
    drawn, bands = [], sum(len(family.nets) for family in every) <= _FEW
    for family in every:
        for k, group in enumerate(family.members()):
            one = group[0]
            each = [of(s).double() for s in group]
            finite = one.width is not None
            lines = [torch.stack(each).mean(0)] if finite else each
            for i, (line, solution) in enumerate(zip(lines, group, strict=False)):
                label = "_" if i else family.who(one)
                ax.plot(
                    solution.times.numpy(), line.numpy(), label=label, gid=None if k or i else MARK, **family.look(one)
                )
                drawn.append(line.numpy())
            if finite and bands and len(group) > 1:
                _band(ax, one, lines[0], torch.stack(each).std(0), family.look(one)["color"], 0.25)
    return drawn


def differences(ax: Axes, every: Sequence[Family], of: Values) -> None:
    """What the mean over seeds has beyond the limit of its problem (the mean of limits), with a band of one standard error."""
    ax.axhline(0.0, color="black", linewidth=1)
    for family in every:
        if not family.limits:
            continue
        own = min(len(s.f) for s in family.limits)
        limit = torch.stack([of(s).double()[:own] for s in family.limits])
        for group in family.nets.values():
            each = torch.stack([of(s).double()[:own] for s in group])
            kept = each.shape[1]
            less, look = (each.mean(0) - limit.mean(0)[:kept]), family.look(group[0])
            at = group[0].times[:kept].numpy()
            ax.plot(at, less.numpy(), label=family.who(group[0]), **look)
            if len(group) > 1:
                error = each.std(0) / len(group) ** 0.5
                _band(ax, group[0], less, error, look["color"], 0.2)


def compared(every: Sequence[Family]) -> bool:
    """Whether networks have a limit of their own problem beside them"""
    return any(family.nets and family.limits for family in every)


def spread_of(every: Sequence[Family]) -> str | None:
    """What lines and bands are; None where each line is one run"""
    counts = {len(group) for family in every for group in family.nets.values()}
    if max(counts, default=1) == 1:
        return None
    bands = " ± 1 std" if sum(len(family.nets) for family in every) <= _FEW else ""
    return f"mean{bands} over {counts.pop()} seeds" if len(counts) == 1 else f"mean{bands} over seeds"


def end_labels(ax: Axes) -> None:
    """The names of lines at their right ends, in their colours, apart from each other"""
    named = {line.get_label(): line for line in ax.get_lines() if not str(line.get_label()).startswith("_")}
    figure: Any = ax.get_figure(root=True)
    height = 0.8 * ax.get_position().height * figure.get_size_inches()[1] * 72  # about what the layout will leave
    step = 1.4 * plt.rcParams["font.size"] * 0.83 / height  # of small letters
    ends: list[tuple[float, float, Any]] = []
    for line in named.values():
        y = np.asarray(line.get_ydata(), dtype=float)
        y = y[np.isfinite(y)].clip(*ax.get_ylim())  # as losses of 0
        if len(y):
            ends.append(
                (float(ax.transAxes.inverted().transform(ax.transData.transform((0.0, y[-1])))[1]), y[-1], line)
            )
    ends.sort(key=lambda end: end[0])
    for place, (true, y, line) in zip(_spread([e[0] for e in ends], step), ends, strict=True):
        moved = (place - true) * height
        ax.annotate(
            str(line.get_label()),
            (1.0, y),
            (9, moved),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=line.get_color(),
            fontsize="small",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            }
            if abs(moved) > 2
            else None,
        )


def _spread(wanted: Sequence[float], step: float) -> list[float]:
    """Places in order at least a step apart, as near to those wanted as that allows: blocks of neighbours about their mean"""
    blocks: list[list[float]] = []
    for value in wanted:
        blocks.append([min(max(value, 0.0), 1.0)])
        while len(blocks) > 1 and _low(blocks[-1], step) < _high(blocks[-2], step) + step:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [_low(block, step) + k * step for block in blocks for k in range(len(block))]
    return [max(place, -0.05 + k * step) for k, place in enumerate(places)]


def _low(block: list[float], step: float) -> float:
    return sum(block) / len(block) - step * (len(block) - 1) / 2


def _high(block: list[float], step: float) -> float:
    return _low(block, step) + step * (len(block) - 1)


def _band(ax: Axes, one: Solution, middle: Tensor, spread: Tensor, colour: Any, alpha: float) -> None:
    at, low, high = one.times[: len(middle)].numpy(), (middle - spread).numpy(), (middle + spread).numpy()
    ax.fill_between(at, low, high, color=colour, alpha=alpha, linewidth=0)
