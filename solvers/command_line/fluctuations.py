"""Commands on what finite width adds to a limit: variance and bias before a network is trained, the width for an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance
from meanfield.files import storage
from solvers.command_line.builders import loaded
from solvers.command_line.limits import Command
from solvers.fluctuations.plan import Method, planned
from solvers.fluctuations.predicted_bias import bias_cost, bias_plan, predicted_bias
from solvers.fluctuations.predicted_variance import predicted_variance, variance_cost
from solvers.fluctuations.width_for import width_for
from solvers.running.keeping import DONE, free, kept, told
from solvers.running.rehearsal import together


@dataclass(frozen=True, kw_only=True)
class Fluctuations(Command):
    """N times the variance of networks of width N, by the layer it comes from, and their bias, before one is trained."""

    observed: tuple[str, ...] | None = None
    """Of what (f, f_test, loss, test_loss, Phi1, G1, tangent_kernel, ..); outputs at training and test samples if left out"""
    steps: tuple[int, ...] = (-1,)
    """Of training, -1 is the last"""
    points: tuple[int, ...] | None = None
    """Rows of the samples (train, then test) at which outputs and kernels are looked at; all if left out"""
    bias: bool = False
    """Find N times the bias, too, and keep it beside, as NAME.bias.nc"""
    method: Method | None = None
    """How the variance is found: by derivatives of the limit, or by narrow networks; the first where it can be, if left out"""
    particles: int = 2**10
    """Neurons that stand for a layer, in each group (derivative)"""
    groups: int = 4
    """Independent estimates, from whose scatter errors come (derivative)"""
    width: int | None = None
    """Of the narrow networks (networks); 256 if left out, 4096 of two layers"""
    networks: int = 400
    """How many narrow networks (networks)"""
    draws: int | None = None
    """Networks beside two of half the width (bias); 200 beside their own halves, 2000 of what has none, if left out"""
    tolerance: float = 1e-3
    """The part of the fields (relative, root mean square) that may be dropped as already known (equation 28b)"""
    seed: int = 0
    """Of all random draws"""
    overwrite: bool = False
    """Replace older files"""
    dry_run: bool = False
    """Print the time and memory that it would take, found in a few seconds, and keep nothing"""


@dataclass(frozen=True, kw_only=True)
class Width(Command):
    """How wide networks must be to be as near to their limit as is asked, from their variance and bias (equation 103)."""

    error: float = 0.01
    """Root mean square distance from the limit, relative to the limit's size, at the last step"""
    ensemble: int = 1
    """Networks of which the mean is taken, which divides the variance alone"""
    name: str = "f"
    """Of what is observed (f, f_test, loss, test_loss, Phi1, G1, tangent_kernel, ..)"""
    variance: Path | None = None
    """What fluctuations kept of the same problem; found anew if left out"""
    bias: Path | None = None
    """What fluctuations --bias kept of it; found anew if left out"""
    overwrite: bool = False
    """Replace an older file"""
    dry_run: bool = False
    """Print the time and memory that it would take, found in a few seconds, and keep nothing"""


def _fluctuations(asked: Fluctuations) -> int:
    shared: dict[str, Any] = {
        "observed": asked.observed,
        "steps": asked.steps,
        "points": asked.points,
        "tolerance": asked.tolerance,
    }
    own: dict[str, Any] = {
        name: getattr(asked, name) for name in ("particles", "groups", "method", "width", "networks", "seed")
    }
    if asked.dry_run:
        costs = [variance_cost(planned(asked.problem, **shared | own))]
        costs += [bias_cost(asked.problem, draws=asked.draws, **shared)] if asked.bias else []
        return told(together(costs))
    beside = asked.out.with_suffix(".bias.nc")
    for path in (asked.out, beside) if asked.bias else (asked.out,):
        free(storage.writable(path), asked.overwrite)
    if asked.bias:
        bias_plan(asked.problem, draws=asked.draws, **shared)  # says why it cannot be, before the variance is found
    status = kept(predicted_variance(asked.problem, **shared | own), asked.out)
    if asked.bias:
        bias = predicted_bias(asked.problem, draws=asked.draws, seed=asked.seed, **shared)
        status = max(status, kept(bias, beside))
    return status


def _width(asked: Width) -> int:
    variance, bias = of_kind(PredictedVariance, asked.variance), of_kind(PredictedBias, asked.bias)
    if asked.dry_run:
        observed = (asked.name,)
        costs = [] if variance else [variance_cost(planned(asked.problem, observed=observed))]
        costs += [] if bias else [bias_cost(asked.problem, observed=observed)]
        return told(together(costs)) if costs else DONE
    free(storage.writable(asked.out), asked.overwrite)
    found = width_for(asked.problem, asked.error, asked.ensemble, asked.name, variance, bias)
    return kept(found, asked.out)


def of_kind(kind: type, path: Path | None, network: str | None = None) -> Any:
    """What is kept there; ValueError if it is another thing, None without a path"""
    if path is None:
        return None
    found = loaded(path, network)
    if not isinstance(found, kind):
        raise ValueError(
            f"{path} holds a {type(found).__name__}: a {kind.__name__} is needed here, as fluctuations keeps it"
        )
    return found


COMMANDS: dict[type, Callable[[Any], int]] = {Fluctuations: _fluctuations, Width: _width}
