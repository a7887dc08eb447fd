"""Averages over the time that a run with noise spends after it has forgotten its start (equation 124)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.checking.warning import warn
from meanfield.network.perceptron import Network
from meanfield.problem.problem import Problem
from meanfield.problem.stream import laws_must_be_known
from meanfield.solution.solution import Solution

_WINDOW = 5  # correlation times after which correlations are noise (Sokal)
_FEW = 10  # independent records, below which an error is a guess
_RUNS = 8  # whose scatter tells an error better than correlations in time


@checked
@dataclass(frozen=True, eq=False)
class StationaryAverages:
    """Means over time, and over runs, from `start` on.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> training = mf.Training(0.2, 200, temperature=0.5, weight_decay=0.5)
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=training)
        >>> found = mf.stationary(WassersteinFlow(particles=64)(problem), after=100)
        >>> found.means["f"].shape, found.errors["f"].shape
        (torch.Size([4, 1]), torch.Size([4, 1]))
    """

    problem: Problem = field(repr=False)
    """What was asked"""
    runs: int
    """Solutions of which these are the means"""
    start: int
    """The recorded step from which the means are taken"""
    time: float
    """Training time of `start`: how long the runs took to forget their start"""
    correlation_time: float
    """Training time over which the outputs remember, integrated"""
    independent: float
    """Records that would tell as much if they were independent, of all runs"""
    means: Mapping[str, Tensor] = field(repr=False)
    """"f" (P, .., C), "f_test", "loss", "test_loss", and the kernels (Q, Q) by name if two snapshots or more lie after the start"""
    errors: Mapping[str, Tensor] = field(repr=False)
    """Standard errors of `means`"""

    __repr__ = brief
    _repr_html_ = html

    def __str__(self) -> str:
        loss, error = float(self.means["loss"]), float(self.errors["loss"])
        return (
            f"stationary from time {self.time:.4g} (step {self.start}), correlation time {self.correlation_time:.3g}, "
            f"{self.independent:.3g} independent records of {self.runs} run{'s' if self.runs > 1 else ''}, loss {loss:.4g} +- {error:.1g}"
        )

    def __eq__(self, other: object) -> bool:
        """Same problem and numbers"""
        if not isinstance(other, StationaryAverages):
            return NotImplemented
        told = ("problem", "runs", "start", "time", "correlation_time", "independent")
        alike = self.means.keys() == other.means.keys() and all(getattr(self, k) == getattr(other, k) for k in told)
        return alike and all(
            torch.equal(mine[name], theirs[name])
            for mine, theirs in ((self.means, other.means), (self.errors, other.errors))
            for name in mine
        )


@checked
def stationary(solutions: Solution | Sequence[Solution], after: int | None = None) -> StationaryAverages:
    """Averages over time of runs with noise: outputs, losses, kernels of the snapshots (equation 124).

    solutions: one, or several of one problem and width with seeds of their own. after: the first recorded step that counts; if left out
    twice the one after which the mean of the outputs would have the least error, as far as their scatter tells (MSER). Errors follow from
    the scatter of eight runs or more, else from correlations in time. RuntimeWarning where half of the run is not enough for that, or
    fewer than ten independent records are left. ValueError for runs of different problems or records, or without noise.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> training = mf.Training(0.2, 200, temperature=0.5, weight_decay=0.5)
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=training)
        >>> found = mf.stationary([WassersteinFlow(particles=64, seed=seed)(problem) for seed in range(2)])
        >>> found.runs, 0 < found.start < 200
        (2, True)
    """
    runs = [solutions] if isinstance(solutions, Solution) else list(solutions)
    _check(runs)
    steps, times = list(runs[0].recorded_steps), runs[0].times
    series = [_outputs(run) for run in runs]
    start, settled = _start(torch.stack(series).mean(0)) if after is None else (_first(after, steps), True)
    left = len(steps) - start
    spacing = float(times[-1] - times[start]) / max(1, left - 1)
    decay = slowest_decay(runs[0].problem)
    remembered = math.ceil(2 / (decay * spacing)) if decay and spacing else 1  # weights do for 1 / decay
    correlated = sum(_correlation(one[start:], min(left // 4, remembered)) for one in series) / len(runs)  # in records
    independent = max(1.0, left / correlated)
    if not settled:
        told = (
            f"the outputs settle only after step {steps[start]} of {steps[-1]}, if at all: run longer, or give after=.."
        )
        warn(told, RuntimeWarning)
    elif independent * len(runs) < _FEW:
        told = f"{independent * len(runs):.2g} independent records are left: the errors are guesses; run longer, or more seeds"
        warn(told, RuntimeWarning)
    seen = [_observed(run, steps[start]) for run in runs]
    averaged = {name: _average([one[name] for one in seen], independent) for name in seen[0]}
    means, errors = ({name: both[i] for name, both in averaged.items()} for i in range(2))
    return StationaryAverages(
        runs[0].problem,
        len(runs),
        steps[start],
        float(times[start]),
        correlated * spacing / 2,
        independent * len(runs),
        means,
        errors,
    )


def _check(runs: Sequence[Solution]) -> None:
    if not runs:
        raise ValueError("solutions must hold one or more: received none")
    first = runs[0]
    if not first.problem.training.temperature:
        raise ValueError(
            "averages over time need noise: received temperature=0; give Training(temperature=..), or look at the end of the run"
        )
    if len(first.recorded_steps) < 4:
        raise ValueError(f"averages over time need four records or more: received {len(first.recorded_steps)}")
    for run in runs[1:]:
        laws_must_be_known(run.problem.data, first.problem.data)
        if run.problem != first.problem or run.recorded_steps != first.recorded_steps or run.width != first.width:
            raise ValueError(
                "averages take runs of one problem, width and records: received others; take those of each apart"
            )
    if len({(run.solver.get("seed"), run.problem.training.noise_seed) for run in runs}) < len(runs):
        raise ValueError("averages take runs with seeds of their own: received one twice")


def slowest_decay(problem: Problem) -> float:
    """The least decay of what moves: that of weights that remember longest (equation 120). ValueError where some have none and others do"""
    decay = problem.training.weight_decay
    if isinstance(problem.network, Network) or not decay:
        return decay
    network = problem.architecture
    own = {p.name: network.decay_of(p) for p in network.description if network.rate_of(p) and p.role != "output bias"}
    if free := [name for name, factor in own.items() if not factor]:
        raise ValueError(
            f"averages over time need a decay of all that has noise, since noise without one never settles: received decay=0 "
            f"for {free[0]!r}; give it one, or frozen="
        )
    return decay * min(own.values())


def _first(after: int, steps: Sequence[int]) -> int:
    """The place of the first record from step `after` on"""
    if checks.integer("after", after, 0) > steps[-2]:
        raise ValueError(f"after must leave two records: received {after}; the last records are {tuple(steps[-2:])}")
    return next(i for i, step in enumerate(steps) if step >= after)


def _outputs(run: Solution) -> Tensor:
    """(R, ..) all outputs at each record"""
    tests = [] if run.f_test is None else [run.f_test.flatten(1)]
    return torch.cat([run.f.flatten(1), *tests], 1).double().cpu()


def _start(series: Tensor) -> tuple[int, bool]:
    """Of series (R, n) twice the record from which the mean of what is left has the least error, were records independent (White 1997):
    there the rest of the start is as large as that error. At most half of the run, and whether the record lies before."""
    backwards = series.flip(0)
    count = torch.arange(1, len(series) + 1, dtype=torch.float64)[:, None]
    mean = backwards.cumsum(0) / count
    squares = (backwards.square().cumsum(0) / count - mean.square()).clamp(min=0).sum(1)
    error = (squares / count[:, 0]).flip(0)
    half = len(series) // 2  # beyond, the little that is left looks calm by chance
    least = int(error[: half + 1].argmin())
    return min(2 * least, half), least < half


def _correlation(series: Tensor, least: int) -> float:
    """Records (R, n) that tell as much as one independent one: 1 + 2 times the sum of the correlations, over `least` lags or more"""
    centred = series - series.mean(0)
    n = len(centred)
    spectrum = torch.fft.rfft(centred, 2 * n, dim=0)
    both = torch.fft.irfft(spectrum.abs().square(), dim=0)[:n].sum(1)
    if float(both[0]) <= 0:
        return 1.0
    total = most = 1.0
    for lag in range(1, n):
        total += 2 * float(both[lag] / both[0])
        most = max(most, total)  # what is slow and small shows late, in noise: rather too large an error than too small
        if lag >= max(least, _WINDOW * total / 2):
            break
    return most


def _observed(run: Solution, start: int) -> dict[str, Tensor]:
    """(records, ..) from step `start` on"""
    first = list(run.recorded_steps).index(start)
    found = {"f": run.f, "loss": run.loss}
    if run.f_test is not None:
        found["f_test"] = run.f_test
        if run.problem.data.y_test is not None:
            found["test_loss"] = run.test_loss
    seen = {name: value[first:].double().cpu() for name, value in found.items()}
    for name, kernel in run.kernels.items():
        steps = [step for step in run.snapshots if step in kernel.steps and step >= start]
        if len(steps) > 1:
            seen[str(name)] = torch.stack([kernel.at(step).double().cpu() for step in steps])
    return seen


def _average(series: Sequence[Tensor], independent: float) -> tuple[Tensor, Tensor]:
    """Mean and standard error of series (records, ..) of as many runs, each with so many independent records at most"""
    means = torch.stack([one.mean(0) for one in series])
    runs = len(series)
    if runs >= _RUNS:
        return means.mean(0), means.std(0) / math.sqrt(runs)
    within = torch.stack([one.var(0) for one in series]).mean(0)
    return means.mean(0), (within / (runs * min(len(series[0]), independent))).sqrt()
