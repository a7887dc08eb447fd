"""measured_exponents: the powers of the width of a scaling, from finite networks, beside the predicted ones (equation 72)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.scaling_reports import POWERS, PowerLaw, PowersReport
from meanfield.comparison.statistics import Exponent, exponent_of, left_out_means
from meanfield.problem.problem import Problem
from meanfield.scaling.plane import Exponents, exponents
from meanfield.solution.solution import Solution
from solvers.finite.finite_width import FiniteWidth


@checked
def measured_exponents(
    problem: Problem,
    widths: Sequence[int] = (64, 256, 1024, 4096),
    seeds: int | Sequence[int] = 16,
    solver: FiniteWidth | None = None,
) -> PowersReport:
    """Train two-layer networks of several widths and fit a power of the width to f0, K(0), f(T), movements of a, w and K.

    Intervals are 95 % (equation 16), from the seeds and the scatter about the line. Two steps at least: in the first, weights see
    only the independent a(0), so that w does not move by all that it will under default(). ValueError for deep networks, fewer than
    three widths, fewer than two steps or two seeds.

    Example:
        >>> import meanfield as mf
        >>> from solvers import measured_exponents
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), scaling=mf.mean_field(1.0), training=mf.Training(0.2, 3))
        >>> report = measured_exponents(problem, widths=(32, 64, 128), seeds=8)
        >>> report["kernel"].predicted, abs(report["kernel"].measured.slope) < 0.2  # the first tangent kernel is finite
        (0.0, True)
    """
    widths = tuple(sorted(checks.integers("widths", widths, 1)))
    chosen = checks.seeds(seeds)
    depth = problem.perceptron_for("measured_exponents").depth
    for wrong, message in (
        (depth != 1, f"the powers are known for depth 1: received depth {depth}"),
        (len(widths) < 3, f"a power needs at least 3 widths: received {widths}"),
        (len(chosen) < 2, f"an interval needs at least 2 seeds: received {chosen}"),
        (problem.training.steps < 2, f"at least 2 steps are needed: received {problem.training.steps}"),
    ):
        if wrong:
            raise ValueError(message)
    predicted = exponents(problem.in_plane)
    solver = replace(solver or FiniteWidth(), snapshots=(0, -1), keep_neurons=True, raise_on_failure=True)
    nets = (replace(solver, width=n).ensemble(problem, chosen) for n in widths)
    squares = np.array([[_squares(net) for net in same] for same in nets])  # (widths, seeds, quantities)
    laws = {
        name: _law(name, np.array(widths, dtype=float), squares[..., i], predicted) for i, name in enumerate(POWERS)
    }
    return PowersReport(problem.in_plane, widths, len(chosen), problem.training.steps, laws)


def _squares(net: Solution) -> list[float]:
    """Mean squares of what POWERS lists, for one network"""
    before, after = net.measure(0), net.measure(-1)
    start, end = net.tangent_kernel(0), net.tangent_kernel(-1)
    return [
        float(net.f[0].double().square().mean()),
        float(start.double().square().mean()),
        float(net.f[-1].double().square().mean()),
        float((after.a - before.a).double().square().mean()),
        float((after.w - before.w).double().square().mean()),
        float((end - start).double().square().sum() / start.double().square().sum()),
    ]


def _law(name: str, widths: np.ndarray, squares: np.ndarray, predicted: Exponents) -> PowerLaw:
    e, values = squares.shape[1], squares.mean(1)
    fitted = exponent_of(widths, values, [left_out_means(row) for row in squares], 0.5)
    spread = squares.std(1, ddof=1) / np.sqrt(e) / (2 * np.sqrt(values))
    unknown = Exponent(np.nan, np.nan, np.nan)
    return PowerLaw(np.sqrt(values), spread, getattr(predicted, name), unknown if fitted is None else fitted)
