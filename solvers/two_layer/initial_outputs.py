"""f0, the outputs at step 0 that stay random at infinite width: a draw of a Gaussian process, or a given network's (equation 68)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.process import draws
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import ntk
from meanfield.solution.solution import Solution


def initial_outputs(problem: Problem, given: Tensor | Solution | None, seed: int) -> Tensor:
    """(P + P_test, C) f0 at training and then test samples, at the scale of the reference width.

    given: f0 itself or a solution, whose outputs at step 0 are taken; None draws GP(0, sigma*^2 N* NNGP) by `seed`.
    """
    data = problem.data
    expected = (data.points, data.outputs)
    if given is None:
        return initial_draws(problem, (seed,))[0]
    if isinstance(given, Solution):
        first = given.f[:1] if given.f_test is None else torch.cat([given.f[:1], given.f_test[:1]], 1)
        given = first[0] if len(first) else first.reshape(0, 0)
    f0 = checks.matrix("f0", given)
    if tuple(f0.shape) != expected:
        raise ValueError(
            f"f0 must hold the outputs at the training and then the test samples, shape {expected}: received {tuple(f0.shape)}"
        )
    return f0


def initial_draws(problem: Problem, seeds: Sequence[int]) -> Tensor:
    """(E, P + P_test, C) f0 for each seed, from one covariance: those of solvers with these seeds"""
    return draws(initial_covariance(problem), problem.data.samples, problem.data.outputs, seeds)


def initial_covariance(problem: Problem) -> Tensor:
    """(P + P_test, P + P_test) the covariance of each output of f0 of a network of width N*, by the central limit theorem over neurons"""
    scaling, x = problem.in_plane, problem.data.all_x
    network = problem.perceptron_for("the frozen part of ic_mean_field")
    return scaling.sigma**2 * scaling.reference_width * nngp_and_ntk(network, ntk(), x)[0]
