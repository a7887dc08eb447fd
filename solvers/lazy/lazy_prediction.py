"""lazy_prediction: mean and covariance of lazy networks over their random start, at any time, in closed form (equations 52 and 53)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.kernels.gram_checks import gram_matrix
from meanfield.kernels.spectrum import training_times, unstable
from meanfield.problem.problem import Problem
from meanfield.solution.prediction import LazyPrediction
from solvers.lazy.lazy_kernels import Kernel, in_rows, lazy_kernels
from solvers.lazy.tangent_kernel_limit import statistics
from solvers.running.memory import bound
from solvers.running.rehearsal import SECONDS, by_law, fewer
from solvers.running.solver import Estimate

_SQUARES = 12  # kernels, their decompositions and products, beside two covariances of each time


@checked
def lazy_prediction(
    problem: Problem,
    times: Tensor | Sequence[float] | None = None,
    kernel: Kernel | Tensor = "analytic",
    covariance: Tensor | None = None,
    jitter: float = 0.0,
) -> LazyPrediction:
    """Mean and covariance of f_t over f0 ~ GP(0, NNGP), train and test jointly, for the squared loss.

    times: training times eta k, math.inf for the end; None is the problem's grid. kernel: as in TangentKernelLimit, one that does not
    mix outputs. covariance (Q, Q): of f0 over [x; x_test]; None is the analytic one, zero in the mean-field scaling. Of outputs at
    positions all of these are (.., positions, .., positions), as `nngp_and_ntk` has them. jitter, in units of
    the mean eigenvalue, is added to the kernel where it is inverted, at t = inf alone. Without it samples that are equal end at the mean
    of their targets, and those where every network is 0 stay there. Memory O(T Q^2). ValueError for other losses, for a kernel that is
    singular at t = inf for any other reason without a jitter, and for descent that diverges.

    Example:
        >>> import meanfield as mf
        >>> from solvers import lazy_prediction
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=3), mf.ntk(), mf.Training(0.2, 5))
        >>> prediction = lazy_prediction(problem)
        >>> prediction.mean.shape
        torch.Size([6, 4, 1])
    """
    _check(problem, jitter)
    y, positions = in_rows(problem.data.y), problem.data.y.shape[1:-1]
    p, q = len(y), problem.data.points * positions.numel()
    at = problem.training.times if times is None else training_times(times)
    checks.memory("the covariances", 8.0 * len(at) * q * q, "give fewer times, e.g. times=[problem.training.times[-1]]")
    kernels = lazy_kernels(problem, kernel, covariance is None)
    if len(kernels.ntk) != q:
        raise ValueError(
            f"the kernel mixes outputs (shape {tuple(kernel.shape) if isinstance(kernel, Tensor) else None}): give a (Q, Q) one, "
            "of outputs at positions (Q, positions, Q, positions), "
            "or take TangentKernelLimit, which follows single draws with any kernel"
        )
    sigma = kernels.covariance
    if covariance is not None:
        name = "the given covariance, over training and test samples,"
        sigma = gram_matrix(covariance, problem.data.points, 1, name, tuple(positions))
    found = kernels.spectrum(y, None, None if sigma is None else sigma[:p, :p])
    rate = problem.training.learning_rate if problem.training.optimiser == "gradient_descent" else None
    if rate is not None and rate > found.largest_learning_rate():
        raise ValueError(unstable(found, rate))
    across = kernels.ntk @ found.eigenvectors  # (Q, P)
    root, mean, spread = None if sigma is None else _root(sigma), [], []
    for time, gain in zip(at, found.gain(at, rate, jitter), strict=True):
        learned = (across * gain) @ found.eigenvectors.T  # (Q, P), f_t = f_0 + learned (y - f_0)
        mean.append(learned @ y)
        left = found.decay(time[None], rate)[0]
        if jitter and time.isinf():
            left = jitter * found.eigenvalues.clamp(min=0).mean() * gain
        # 1 - learned on training samples, without the difference
        kept = (found.eigenvectors * left) @ found.eigenvectors.T
        spread.append(learned.new_zeros(q, q) if root is None else _spread(learned, kept, root))
    joint = torch.stack(mean).unflatten(1, (-1, *positions))
    n = problem.data.samples
    test = None if q == p else joint[:, n:]
    used = checks.positive("jitter", jitter, zero=True) if bool(at.isinf().any()) else 0.0
    joint_covariance = torch.stack(spread).reshape(len(at), -1, *positions, problem.data.points, *positions)
    return LazyPrediction(problem, at, joint[:, :n], test, joint_covariance, statistics(found, problem, used))


def prediction_cost(
    problem: Problem, times: Tensor | Sequence[float] | None, jitter: float, seconds: float = SECONDS
) -> Estimate:
    """What `lazy_prediction` with these arguments takes, by the time of predictions from few samples"""
    _check(problem, jitter)
    at = problem.training.times if times is None else training_times(times)
    slow = replace(
        problem.training, learning_rate=1e-9 * problem.training.learning_rate
    )  # few samples may be less stable
    asked, count = replace(problem, training=slow), problem.data.samples
    law, last = by_law(lambda n: lazy_prediction(fewer(asked, n), at, jitter=jitter), count, seconds)
    how = "the whole prediction" if last == count else f"predictions from up to {last} of {count} samples"
    rows = problem.data.y[0].numel() // problem.data.y.shape[-1] * problem.data.points
    return Estimate(float(law[-1]), bound({"the covariances": (8.0 * (2 * len(at) + _SQUARES) * rows**2, "")}), how)


def _root(sigma: Tensor) -> Tensor:
    """(Q, Q) R with R R^T = Sigma, rows of zeros where the variance is 0"""
    values, vectors = torch.linalg.eigh(sigma)
    return vectors * values.clamp(min=0).sqrt() * (sigma.diagonal() > 0)[:, None]


def _spread(learned: Tensor, kept: Tensor, root: Tensor) -> Tensor:
    """(Q, Q) A Sigma A^T as (A R) (A R)^T, whose small variances are squares and no differences of large numbers (equation 53b)"""
    p = len(kept)
    moved = torch.cat([kept @ root[:p], root[p:] - learned[p:] @ root[:p]])
    return moved @ moved.T


def _check(problem: Problem, jitter: float) -> None:
    checks.positive("jitter", jitter, zero=True)
    if problem.loss_function.name != "squared":
        raise ValueError(
            f"mean and covariance are known in closed form for the squared loss: received {problem.loss_function.name!r}; take draws, "
            "TangentKernelLimit().ensemble(problem, seeds=256)"
        )
    if not problem.training.plain:
        lost = problem.training.entrywise or problem.training.temperature or problem.training.weight_decay
        other = (
            "CausalDMFT or FiniteWidth: no constant kernel follows it"
            if lost
            else ("TangentKernelLimit, which steps through momentum, batches, schedules and clipping")
        )
        raise ValueError(
            f"lazy_prediction follows plain full-batch training: leave out {problem.training.other_than('optimiser')}, or take "
            + other
        )
