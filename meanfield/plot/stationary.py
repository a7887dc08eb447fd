"""Pictures of runs with noise: free energy along them, averages over time after they forgot their start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meanfield.checking.arguments import checked
from meanfield.comparison.free_energy import FreeEnergy
from meanfield.comparison.stationary import StationaryAverages
from meanfield.plot.data import row, told
from meanfield.plot.frame import BLUE, GREY, LIMIT, ORANGE, SMALL, TIME, headed, output_of, panels, shown
from meanfield.solution.gibbs_measure import GibbsMeasure
from meanfield.solution.solution import Solution


@checked
def free_energy(
    found: FreeEnergy, end: GibbsMeasure | None = None, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Free energy and its two parts against time, with 95 % of the estimate's error; dashed, the least there is, of `end`.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow, gibbs_fixed_point
        >>> training = mf.Training(0.2, 40, temperature=0.5, weight_decay=0.5)
        >>> problem = mf.Problem(mf.single_index_teacher(8, 0, inputs=2), training=training)
        >>> run = WassersteinFlow(particles=256, snapshots=(0, 20, -1))(problem)
        >>> axes = mf.plot.free_energy(mf.free_energy(run), gibbs_fixed_point(problem))
    """
    panel: Axes = panels(ax)[0]
    times, entropic = found.times.numpy(), found.temperature * found.divergence.numpy()
    error = 1.96 * found.temperature * found.errors.numpy()
    panel.plot(times, found.energy.numpy(), color=BLUE, label=r"energy $(\kappa/\Gamma)\,\mathcal{L}$")
    panel.plot(times, entropic, color=ORANGE, label=r"$\tau$ KL")
    panel.errorbar(
        times, found.total.numpy(), error, color="black", fmt="o-", markersize=3, capsize=2, label="free energy"
    )
    if end is not None:
        panel.axhline(end.free_energy, color="black", linestyle="--", linewidth=1.2, label="least of all measures")
    panel.set(xlabel=TIME, ylabel="free energy")
    panel.set_ylim(bottom=min(0.0, float(panel.get_ylim()[0])))
    panel.legend(**SMALL)
    headed([panel], ax, label)
    return panel


@checked
def stationary(
    found: StationaryAverages,
    runs: Solution | Sequence[Solution],
    samples: Sequence[int] | None = None,
    output: int | None = None,
    ax: Any = None,
    label: str | None = None,
) -> np.ndarray:
    """f_mu(t) of each run, a panel for each sample: grey until the start is forgotten; the mean over time with 95 % of its error.

    samples: None takes one of each class, up to three in all. output: which of several; None takes the one with the largest target.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> training = mf.Training(0.2, 200, temperature=0.5, weight_decay=0.5)
        >>> problem = mf.Problem(mf.single_index_teacher(8, 0, inputs=2), training=training)
        >>> run = WassersteinFlow(particles=64)(problem)
        >>> mf.plot.stationary(mf.stationary(run, after=100), run, samples=(0, 1)).shape
        (2,)
    """
    every = [runs] if isinstance(runs, Solution) else list(runs)
    if not every:
        raise ValueError("runs must hold one or more: received none")
    if any(run.problem != found.problem for run in every):
        raise ValueError("runs must be those of the averages: received one of another problem")
    samples = shown(found.problem.data) if samples is None else samples
    axes = panels(ax, 1, len(samples), size=(3.3, 3.0), sharey=True)
    for panel, mu in zip(axes, samples, strict=True):
        target = row(found.problem.data.y, mu).flatten()
        column = int(target.argmax()) if output is None else output
        for run in every:
            panel.plot(
                run.times,
                output_of(run, mu, column, test=False),
                color=BLUE,
                alpha=0.6 / len(every) ** 0.3,
                linewidth=0.7,
            )
        mean, error = (float(row(part["f"].flatten(1), mu)[column]) for part in (found.means, found.errors))
        panel.axvspan(0, found.time, color=GREY, alpha=0.2, linewidth=0)
        ends = [found.time, float(every[0].times[-1])]
        panel.plot(ends, [mean, mean], **LIMIT, label=f"{mean:.3g} $\\pm$ {error:.1g}")
        panel.fill_between(ends, mean - 1.96 * error, mean + 1.96 * error, color="black", alpha=0.25, linewidth=0)
        panel.set_xlabel(TIME)
        panel.set_title(told(found.problem.data, mu, column, False), fontsize="medium")
        panel.legend(**SMALL)
    axes[0].set_ylabel("output $f$")
    headed(axes, ax, label)
    return axes
