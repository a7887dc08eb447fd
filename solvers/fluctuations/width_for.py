"""width_for: the width at which one network, or a mean of several, is as near to the limit as is asked (equation 103)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.problem.problem import Problem
from solvers.fluctuations.predicted_bias import predicted_bias
from solvers.fluctuations.predicted_variance import predicted_variance


@checked
def width_for(
    problem: Problem,
    error: float = 0.01,
    ensemble: int = 1,
    name: str = "f",
    variance: PredictedVariance | None = None,
    bias: PredictedBias | None = None,
    progress: bool | None = None,
) -> WidthFor:
    """How wide networks must be for the root mean square distance `error` of an observable from its limit, relative to the limit's size.

    At the last step, over all samples; of the mean over `ensemble` networks: averaging divides the variance alone. From N Var / (N E) +
    (N bias / N)^2 = error^2 |o|^2, whose two sides are to leading order in 1/N. variance, bias: as `predicted_variance` and
    `predicted_bias` found them, with this observable; found here if left out.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias, predicted_variance, width_for
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), training=mf.Training(0.2, 3))
        >>> known = {
        ...     "variance": predicted_variance(problem, particles=64),
        ...     "bias": predicted_bias(problem, width=16, draws=20),
        ... }
        >>> width_for(problem, error=0.01, **known).width > width_for(problem, error=0.1, **known).width
        True
    """
    for what, given in (("variance", variance), ("bias", bias)):
        if given is not None and given.problem != problem:
            raise ValueError(f"{what} was found for another problem: {given.problem!r}, not {problem!r}; leave it out")
    error, ensemble = checks.positive("error", error), checks.integer("ensemble", ensemble, 1)
    spread = variance or predicted_variance(problem, observed=(name,), progress=progress)
    shift = bias or predicted_bias(problem, observed=(name,), progress=progress)
    own, own_error, size = _means(spread.variance(name)[-1], spread.error(name)[-1], spread.values[name][-1])
    found, its = shift.bias(name)[-1], shift.error(name)[-1]
    seen = torch.isfinite(found)
    b2 = float((found.square() - its.square())[seen].mean())  # the square of noise is no bias
    b2_error = float((2 * found * its).square()[seen].sum().sqrt() / seen.sum())

    def width(v: float, b: float) -> float:
        """The root N of error^2 size N^2 = (v / ensemble) N + b^2"""
        v, b, allowed = max(v, 0.0) / ensemble, max(b, 0.0), error**2 * size
        return (v + math.sqrt(v * v + 4 * allowed * b)) / (2 * allowed)

    best, steps = width(own, b2), [(own_error, 0.0), (0.0, b2_error)]
    apart = [abs(width(own + dv, b2 + db) - best) for dv, db in steps]  # nan where one of the predictions has no error
    return WidthFor(math.ceil(best), math.hypot(*apart), error, ensemble, own, b2, math.sqrt(size))


def _means(variance: Tensor, error: Tensor, values: Tensor) -> tuple[float, float, float]:
    """Of N Var and of the limit's squares over the numbers that were asked for, and the error of the first, as if they moved together"""
    asked = torch.isfinite(variance)
    size = float(values[asked].square().mean())
    if not size:
        raise ValueError("the limit of what is observed is zero throughout: there is no relative distance from it")
    return float(variance[asked].mean()), float(error[asked].mean()), size
