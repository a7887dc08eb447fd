"""The points of a problem, some or all: what the first layer's weights multiply there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from meanfield.problem.problem import Problem
from meanfield.problem.two_layers import two_layers

# of the points, training samples first: all of them, the training samples, or the indices of a batch
Rows = slice | Tensor
EVERYWHERE = slice(None)
_BLOCK = 2**20  # numbers that are formed at a time, where batches need few of them


class Inputs:
    """What the first layer's weights multiply, (P + P_test, D), training samples first. Formed once; where steps take batches, formed as it
    is used, so that many samples are not kept twice.
    """

    def __init__(self, problem: Problem, like: Tensor) -> None:
        self.problem, self.like, self.points = problem, like, problem.data.points
        self.network = two_layers(problem).inner
        self.all = None if problem.training.batch_size else self._formed(slice(0, self.points))
        self.of_a_step = self(slice(0, problem.training.batch_size or self.points))  # or as many of them
        self.width = self.of_a_step.shape[1]

    def __call__(self, rows: Rows) -> Tensor:
        """(n, D) those of some points"""
        return self._formed(rows) if self.all is None else self.all[rows]

    def blocks(self, rows: Rows) -> Iterator[Tensor]:
        """Those of some points, no more at a time than are to be kept"""
        if self.all is not None or isinstance(rows, Tensor):
            yield self(rows)
            return
        start, stop, _ = rows.indices(self.points)
        step = max(1, _BLOCK // self.width)
        for first in range(start, stop, step):
            yield self._formed(slice(first, min(first + step, stop)))

    def _formed(self, rows: Rows) -> Tensor:
        data = self.problem.data
        x = data.x[rows]
        if isinstance(rows, slice) and data.x_test is not None:
            start, stop, _ = rows.indices(self.points)
            if stop > data.samples:
                x = torch.cat([x, data.x_test[max(0, start - data.samples) : stop - data.samples]])
        return self.network.inputs(x).to(self.like)
