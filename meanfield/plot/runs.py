"""Pictures of solutions: losses, outputs, preactivations, clouds of particles."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import CenteredNorm

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.plot import data as plot_data
from meanfield.plot.curves import compared, curves, differences, drawn_before, end_labels, spread_of
from meanfield.plot.data import Solutions
from meanfield.plot.families import Family, Labels, families, must_share_samples
from meanfield.plot.frame import GREY, SMALL, TIME, few_ticks, headed, legend, output_of, panels, plain_log, shown
from meanfield.problem.dataset import Dataset
from meanfield.problem.stream import Stream
from meanfield.solution.solution import Solution, preactivation_keys


@checked
def loss(
    nets: Solutions, limit: Solutions | None = None, ax: Any = None, test: bool = False, label: Labels = None
) -> Axes:
    """Training (or test) loss against time: per width the mean over seeds, with a band of one standard deviation for up to three widths.

    Solutions of several problems are named and coloured by what differs between them; label: names instead, one for each problem. On a
    new figure, and on two axes, a second panel has the differences from the limit with bands of one standard error. Returns the first.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> limit, nets = WassersteinFlow(particles=64)(problem), FiniteWidth(32).ensemble(problem, seeds=2)
        >>> mf.plot.save(mf.plot.loss(nets, limit), "loss.png")
    """
    every = families(plot_data.several(nets), plot_data.several(limit), label, drawn_before(ax))
    both = compared(every) and (ax is None or np.size(ax) == 2)
    axes = panels(ax, 2 if both else 1, 1, **_two_rows(both, 5.2, 3.8))
    panel: Axes = axes[0]
    lines = curves(panel, every, lambda s: s.test_loss if test else s.loss)
    panel.set_yscale("log")
    lowest, highest = min(c[c > 0].min(initial=np.inf) for c in lines), max(np.max(c[np.isfinite(c)]) for c in lines)
    low, high = max(panel.dataLim.y0, 0.6 * lowest), min(panel.dataLim.y1, 1.6 * highest)
    if 0 < low <= high:  # a band that reaches down to zero must not set the scale
        room = max(1.0001, (high / low) ** 0.06)
        panel.set_ylim(low / room, high * room)
    plain_log(panel)
    data = every[0].problem.data
    samples = data.points - data.samples if test else data.samples
    panel.set_ylabel(_told(f"{_which(data, test)} loss, mean of {samples} samples", every, ax))
    axes[-1].set_xlabel(TIME)
    if both:
        differences(axes[1], every, lambda s: s.test_loss if test else s.loss)
        axes[1].set_ylabel("less the limit's,\n± 1 standard error")
    _names(axes[:1], every, ax)
    return panel


@checked
def outputs(
    nets: Solutions,
    limit: Solutions | None = None,
    samples: Sequence[int] | None = None,
    ax: Any = None,
    output: int | None = None,
    test: bool = False,
    difference: bool = False,
    label: Labels = None,
) -> np.ndarray:
    """f_mu(t) of single samples, one panel each: lines, names and colours as in `loss`.

    samples: None takes one of each class, up to three in all, or two in a column of a paper. output: which of several; None takes the one
    with the largest target. difference: f less that of the limit alone. A new figure, and twice as many axes, have these differences in a
    second row.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> limit, nets = WassersteinFlow(particles=64)(problem), FiniteWidth(32).ensemble(problem, seeds=2)
        >>> mf.plot.outputs(nets, limit, samples=(0, 1)).shape  # outputs, and below the differences from the limit
        (4,)
    """
    every = families(plot_data.several(nets), plot_data.several(limit), label, drawn_before(ax))
    must_share_samples(every)
    if difference and not any(family.limits for family in every):
        raise ValueError("a difference needs a limit: give limit=...")
    problem = every[0].problem
    samples = shown(problem.data, test) if samples is None else samples
    both = compared(every) and not difference and len(samples) > 0 and (ax is None or np.size(ax) == 2 * len(samples))
    axes = panels(ax, 2 if both else 1, len(samples), sharey="row", extra=0.9, **_two_rows(both, 3.0, 3.3))
    for mu, panel, below in zip(samples, axes, axes[-len(samples) :], strict=False):
        targets = problem.data.y_test if test else problem.data.y
        target = None if targets is None else plot_data.row(targets, mu).flatten()
        column = output if output is not None else 0 if target is None else int(target.argmax())
        of = partial(output_of, mu=mu, column=column, test=test)
        if not difference:
            curves(panel, every, of)
            if target is not None and problem.loss_function.name == "squared":
                panel.axhline(float(target[column]), color=GREY, linestyle=":", linewidth=1, label="target")
        if difference or both:
            differences(below, every, of)
        panel.set_title(textwrap.fill(plot_data.told(problem.data, mu, column, test), 32), fontsize="medium")
        below.set_xlabel(TIME)
    less = "$f$ less the limit's,\n± 1 standard error"
    axes[0].set_ylabel(less if difference else _told(r"output $f_\mu(t)$", every, ax))
    if both:
        axes[len(samples)].set_ylabel(less)
    _names(axes[: len(samples)], every, ax)
    return axes


def _two_rows(both: bool, width: float, height: float) -> dict[str, Any]:
    """Sizes of a figure with or without a lower row of differences"""
    if not both:
        return {"size": (width, height)}
    return {"size": (width, 0.75 * height), "sharex": "col", "gridspec_kw": {"height_ratios": (3, 2)}}


def _names(axes: Sequence[Axes], every: Sequence[Family], ax: Any) -> None:
    """At the ends of lines in a new figure, in a legend in a given one"""
    if ax is not None:
        axes[-1].legend(title=spread_of(every), **SMALL)
        return
    last = max(float(s.times[-1]) for family in every for group in family.members() for s in group)
    for panel in axes:
        panel.set_xlim(0, last or None)
        few_ticks(panel)
    end_labels(axes[-1])


def _told(what: str, every: Sequence[Family], ax: Any) -> str:
    """What is drawn, with what lines and bands are where no legend says it"""
    spread = spread_of(every) if ax is None else None
    return f"{what},\n{spread}" if spread else what


@checked
def preactivations(
    nets: Solutions,
    limit: Solutions | None = None,
    sample: int = 0,
    steps: Sequence[int] = (0, -1),
    layer: int | str | None = None,
    ax: Any = None,
    bins: int | None = None,
    label: Labels = None,
) -> np.ndarray:
    """Distribution of h^layer over neurons at one training sample, a panel per step; the seeds of a width are pooled.

    layer: the first if left out; of modules a name in `record`, whose rows (samples, then positions) are counted as samples. bins: between
    the ends of all; None takes twice the cube root of the neurons of each, up to 60. label: as in `loss`.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> limit, nets = WassersteinFlow(particles=64)(problem), FiniteWidth(32).ensemble(problem, seeds=2)
        >>> mf.plot.preactivations(nets, limit, steps=(0, -1)).shape
        (2,)
    """
    if bins is not None:
        bins = checks.integer("bins", bins, 1)
        checks.memory(f"bins={bins}", 64.0 * bins, "take fewer, e.g. bins=40")
    every = families(plot_data.several(nets), plot_data.several(limit), label)
    must_share_samples(every)
    first = every[0].members()[-1][0]
    if layer is None:
        layer = next((key.layer for key in preactivation_keys(first)), 1)
    axes = panels(ax, 1, len(steps), size=(4.0, 3.3), extra=1.2, sharey=True)
    sets = [(family.who(group[0]), family.look(group[0]), group) for family in every for group in family.members()]
    drawn = {step: [plot_data.pooled(group, step, layer, sample) for *_, group in sets] for step in steps}
    ends = np.array([np.quantile(h, [0.001, 0.999]) for found in drawn.values() for h, _ in found])
    for panel, (step, found) in zip(axes, drawn.items(), strict=True):
        for (who, look, _), (h, m) in zip(sets, found, strict=True):
            number = bins or int(np.clip(2 * len(h) ** (1 / 3), 8, 60))
            edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), number + 1)
            density = np.histogram(h, edges, weights=m)[0] / np.diff(edges)
            panel.stairs(density, edges, label=who, **look)
        panel.set(
            xlabel=f"preactivation {plot_data.symbol('h', layer)} of sample {sample}", title=plot_data.when(first, step)
        )
    axes[0].set_ylabel("density of neurons")
    legend(axes, ax, title="seeds pooled" if any(family.nets for family in every) else None)
    return axes


@checked
def particles(
    solution: Solution, steps: Sequence[int] = (0, -1), ax: Any = None, output: int = 0, label: str | None = None
) -> np.ndarray:
    """Clouds of a two-layer solution in a plane of input weights, coloured by readout a; heavier particles are larger.

    The plane: both weights for two inputs, (w, a) for one, else the two directions v_1, v_2 in which the particles moved most.
    At most 3000 particles are drawn.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> mf.plot.particles(WassersteinFlow(particles=64)(problem), steps=(0, -1)).shape
        (2,)
    """
    clouds, picture = plot_data.clouds(solution, output), None
    axes = panels(ax, 1, len(steps), size=(4.0, 3.6), sharex=True, sharey=True)
    for panel, step in zip(axes, steps, strict=True):
        solution.measure(step)  # says which steps were recorded
        picture = _scatter(panel, clouds, max(clouds.points) if step == -1 else step)
        panel.set_title(plot_data.when(solution, step))
    axes[0].set_ylabel(clouds.axes[1])
    axes[0].figure.colorbar(picture, ax=list(axes), label="readout $a$", extend="both")
    headed(axes, ax, label)
    return axes


@checked
def animate_particles(
    solution: Solution, ax: Axes | None = None, output: int = 0, milliseconds: float = 100, label: str | None = None
) -> FuncAnimation:
    """`particles` through all recorded snapshots. Keep the result, and `.save("cloud.gif", writer="pillow")` it.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> film = mf.plot.animate_particles(WassersteinFlow(particles=64)(problem))
        >>> film.save("cloud.gif", writer="pillow")
    """
    milliseconds = checks.positive("milliseconds", milliseconds)
    clouds = plot_data.clouds(solution, output)
    panel: Axes = panels(ax, size=(5.0, 4.2))[0]
    picture = _scatter(panel, clouds, min(clouds.points))
    panel.set_ylabel(clouds.axes[1])
    figure: Any = panel.get_figure(root=True)
    figure.colorbar(picture, ax=panel, label="readout $a$", extend="both")

    headed([panel], ax, label)

    def show(step: int) -> list[Any]:
        picture.set_offsets(clouds.points[step])
        picture.set_array(clouds.readouts[step])
        return [picture, panel.set_title(plot_data.when(solution, step))]

    show(min(clouds.points))
    if ax is None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: doing so for every frame costs more than drawing it
    return FuncAnimation(figure, show, frames=list(clouds.points), interval=milliseconds)


def _scatter(ax: Axes, clouds: plot_data.Clouds, step: int) -> PathCollection:
    """One snapshot, on scales that all snapshots share; the colours saturate for the largest 2 % of readouts."""
    everywhere, readouts = np.concatenate([*clouds.points.values()]), np.concatenate([*clouds.readouts.values()])
    low, high = everywhere.min(0), everywhere.max(0)
    (x0, y0), (x1, y1) = low - 0.05 * (high - low), high + 0.05 * (high - low)
    ax.set(xlim=(x0, x1), ylim=(y0, y1), xlabel=clouds.axes[0], facecolor="0.93")
    ax.set_aspect("equal" if clouds.isometric else "auto")
    norm = CenteredNorm(0, float(np.quantile(np.abs(readouts), 0.98)) or 1.0)
    points = clouds.points[step]
    return ax.scatter(*points.T, s=clouds.sizes, c=clouds.readouts[step], norm=norm, cmap="RdBu_r", linewidths=0)


def _which(data: Dataset, test: bool) -> str:
    """Samples in words: those of a stream are not trained on"""
    return "test" if test else "watched" if isinstance(data, Stream) else "training"
