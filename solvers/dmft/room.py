"""How many directions the fields of a deep sweep may span, and whether its samples have room for them (equation 117)."""

from __future__ import annotations

from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream


def must_have_room(problem: Problem, samples: int, directions: int) -> None:
    """ValueError for a stream whose fresh samples bring too many directions"""
    if samples > 2 * directions:
        return
    enough, ranks = 1 << (2 * directions).bit_length(), max(least_rank(problem), samples // 4)
    raise ValueError(
        f"samples={samples} are too few for {problem.training.steps} steps of {problem.batch} fresh samples, whose features and "
        f"gradients may span {directions} directions: take samples={enough} or more, fewer steps or a smaller batch; or, for fields "
        f"of few inputs, which are alike, max_rank={ranks}: the run then ends where they span more"
    )


def least_rank(problem: Problem) -> int:
    """Directions that the features and gradients of the first step may span"""
    return max(problem.data.points, problem.data.samples * problem.data.outputs)


def rank_to_expect(problem: Problem) -> int:
    """`least_rank`; of a stream the directions that the fresh samples of all steps may bring besides, where some matrix sees them"""
    data = problem.data
    if not isinstance(data, Stream):
        return least_rank(problem)
    shallow = problem.trial is None and problem.perceptron.depth == 1
    if shallow or not problem.architecture.description.having("hidden"):
        return least_rank(problem)
    return (data.samples + data.batch * problem.training.steps) * data.outputs
