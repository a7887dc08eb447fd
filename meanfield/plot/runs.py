"""Pictures of solutions: losses, outputs, preactivations, clouds of particles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import CenteredNorm
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.plot import data as plot_data
from meanfield.plot.data import Solutions
from meanfield.plot.frame import GREY, LIMIT, SMALL, TIME, beside, colours, output_of, panels, plain_log
from meanfield.problem.dataset import Dataset
from meanfield.problem.stream import Stream
from meanfield.solution.solution import Solution, preactivation_keys


@checked
def loss(nets: Solutions, limit: Solutions | None = None, ax: Axes | None = None, test: bool = False) -> Axes:
    """Training (or test) loss against time: per width the mean over seeds and a band of one standard deviation."""
    groups, limits = plot_data.by_width(nets, limit)
    panel: Axes = panels(ax)[0]
    curves = _curves(panel, groups, limits, lambda s: s.test_loss if test else s.loss)
    panel.set_yscale("log")
    lowest, highest = min(c[c > 0].min(initial=np.inf) for c in curves), max(c.max() for c in curves)
    if 0 < lowest < highest:  # a band that reaches down to zero must not set the scale
        panel.set_ylim(0.6 * lowest, 1.6 * highest)
    plain_log(panel)
    data = _any(groups, limits).problem.data
    samples = data.points - data.samples if test else data.samples
    panel.set(xlabel=TIME, ylabel=f"{_which(data, test)} loss, mean of {samples} samples")
    panel.legend(title=plot_data.seeds(groups), **SMALL)
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
) -> np.ndarray:
    """f_mu(t) of single samples, one panel each: per width the mean over seeds and a band of one standard deviation.

    samples: None takes the first three. output: which of several; None takes the one with the largest target. difference: f less that
    of the (first) limit.
    """
    groups, limits = plot_data.by_width(nets, limit)
    problem = _any(groups, limits).problem
    if difference and not limits:
        raise ValueError("a difference needs a limit: give limit=...")
    data = problem.data
    if samples is None:
        samples = plot_data.first_of(data.points - data.samples if test else data.samples)
    axes = panels(ax, 1, len(samples), size=(3.3, 3.3), sharey=True)
    for panel, mu in zip(axes, samples, strict=True):
        targets = problem.data.y_test if test else problem.data.y
        target = None if targets is None else plot_data.row(targets, mu).flatten()
        column = output if output is not None else 0 if target is None else int(target.argmax())
        base = output_of(limits[0], mu, column, test) if difference else torch.zeros(())
        _curves(panel, groups, limits, lambda s, mu=mu, c=column, base=base: output_of(s, mu, c, test) - base)
        if target is not None and problem.loss_function.name == "squared" and not difference:
            panel.axhline(float(target[column]), color=GREY, linestyle=":", linewidth=1, label="target")
        which = f", output {column}" if problem.data.outputs > 1 else ""
        panel.set(xlabel=TIME, title=f"{_which(problem.data, test)} sample {mu}{which}")
    axes[0].set_ylabel(r"$f_\mu(t)$ less that of the limit" if difference else r"output $f_\mu(t)$")
    axes[-1].legend(title=plot_data.seeds(groups), **beside(ax))
    return axes


@checked
def preactivations(
    nets: Solutions,
    limit: Solutions | None = None,
    sample: int = 0,
    steps: Sequence[int] = (0, -1),
    layer: int | str | None = None,
    ax: Any = None,
    bins: int = 40,
) -> np.ndarray:
    """Distribution of h^layer over neurons at one training sample, a panel per step; the seeds of a width are pooled.

    layer: the first if left out; of modules a name in `record`, whose rows (samples, then positions) are counted as samples.
    """
    bins = checks.integer("bins", bins, 1)
    checks.memory(f"bins={bins}", 64.0 * bins, "take fewer, e.g. bins=40")
    groups, limits = plot_data.by_width(nets, limit)
    if layer is None:
        layer = next((key.layer for key in preactivation_keys(_any(groups, limits))), 1)
    axes = panels(ax, 1, len(steps), size=(4.0, 3.3), sharey=True)
    styles = {f"N = {n}": {"color": c, "linewidth": 1.1} for n, c in zip(groups, colours(len(groups)), strict=True)}
    sets = dict(zip([*styles, "limit"], [*groups.values(), limits], strict=True))
    drawn = {step: {k: plot_data.pooled(g, step, layer, sample) for k, g in sets.items() if g} for step in steps}
    ends = np.array([np.quantile(h, [0.001, 0.999]) for found in drawn.values() for h, _ in found.values()])
    edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), bins + 1)
    for panel, (step, found) in zip(axes, drawn.items(), strict=True):
        for label, (h, m) in found.items():
            density = np.histogram(h, edges, weights=m)[0] / np.diff(edges)
            panel.stairs(density, edges, label=label, **styles.get(label, LIMIT))
        panel.set(
            xlabel=f"preactivation {plot_data.symbol('h', layer)} of sample {sample}",
            title=plot_data.when(_any(groups, limits), step),
        )
    axes[0].set_ylabel("density of neurons")
    axes[-1].legend(title="seeds pooled" if groups else None, **beside(ax))
    return axes


@checked
def particles(solution: Solution, steps: Sequence[int] = (0, -1), ax: Any = None, output: int = 0) -> np.ndarray:
    """Clouds of a two-layer solution in a plane of input weights, coloured by readout a; heavier particles are larger.

    The plane: both weights for two inputs, (w, a) for one, else the two directions v_1, v_2 in which the particles moved most.
    At most 3000 particles are drawn.
    """
    clouds, picture = plot_data.clouds(solution, output), None
    axes = panels(ax, 1, len(steps), size=(4.0, 3.6), sharex=True, sharey=True)
    for panel, step in zip(axes, steps, strict=True):
        solution.measure(step)  # says which steps were recorded
        picture = _scatter(panel, clouds, max(clouds.points) if step == -1 else step)
        panel.set_title(plot_data.when(solution, step))
    axes[0].set_ylabel(clouds.axes[1])
    axes[0].figure.colorbar(picture, ax=list(axes), label="readout $a$", extend="both")
    return axes


@checked
def animate_particles(
    solution: Solution, ax: Axes | None = None, output: int = 0, milliseconds: float = 100
) -> FuncAnimation:
    """`particles` through all recorded snapshots. Keep the result, and `.save("cloud.gif", writer="pillow")` it."""
    milliseconds = checks.positive("milliseconds", milliseconds)
    clouds = plot_data.clouds(solution, output)
    panel: Axes = panels(ax, size=(5.0, 4.2))[0]
    picture = _scatter(panel, clouds, min(clouds.points))
    panel.set_ylabel(clouds.axes[1])
    figure: Any = panel.get_figure(root=True)
    figure.colorbar(picture, ax=panel, label="readout $a$", extend="both")

    def show(step: int) -> list[Any]:
        picture.set_offsets(clouds.points[step])
        picture.set_array(clouds.readouts[step])
        return [picture, panel.set_title(plot_data.when(solution, step))]

    show(min(clouds.points))
    if ax is None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: doing so for every frame costs more than drawing it
    return FuncAnimation(figure, show, frames=list(clouds.points), interval=milliseconds)


def _curves(
    ax: Axes, groups: dict[int, list[Solution]], limits: Sequence[Solution], of: Callable[[Solution], Tensor]
) -> list[np.ndarray]:
    """Per width the mean over seeds with a band of ± 1 standard deviation, the limits on top; returns the lines."""
    drawn = []
    for (width, group), colour in zip(groups.items(), colours(len(groups)), strict=True):
        values, times = torch.stack([of(s).double() for s in group]).numpy(), group[0].times.numpy()
        drawn.append(values.mean(0))
        ax.plot(times, drawn[-1], color=colour, linewidth=1.2, label=f"N = {width}")
        if len(group) > 1:
            spread = values.std(0, ddof=1)
            ax.fill_between(times, drawn[-1] - spread, drawn[-1] + spread, color=colour, alpha=0.25, linewidth=0.6)
    for i, solution in enumerate(limits):
        drawn.append(of(solution).double().numpy())
        ax.plot(solution.times.numpy(), drawn[-1], label="_" if i else "limit", **LIMIT)
    return drawn


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


def _any(groups: dict[int, list[Solution]], limits: Sequence[Solution]) -> Solution:
    return (limits or next(iter(groups.values())))[0]


def _which(data: Dataset, test: bool) -> str:
    """Samples in words: those of a stream are not trained on"""
    return "test" if test else "watched" if isinstance(data, Stream) else "training"
