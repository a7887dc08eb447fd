"""The points of a problem, some or all: what the first layer's weights multiply there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.two_layers import two_layers

# of the points, training samples first: all of them, the training samples, or the indices of a batch; or fresh samples, no points
Rows = slice | Tensor | Dataset
EVERYWHERE = slice(None)
_BLOCK = 2**20  # numbers that are formed at a time, where batches need few of them


def at(rows: Rows, values: Tensor, name: Literal["x", "y"]) -> Tensor:
    """Of some rows the inputs or targets, of which `values` are those of the training samples"""
    return getattr(rows, name).to(values) if isinstance(rows, Dataset) else values[rows]


def trained(rows: Rows, samples: int) -> int:
    """How many of some rows, the first, are trained on, of so many training samples"""
    return samples if isinstance(rows, slice) else rows.samples if isinstance(rows, Dataset) else len(rows)


class Inputs:
    """What the first layer's weights multiply, (P + P_test, D), training samples first. Formed once; where steps take batches, formed as it
    is used, so that many samples are not kept twice.
    """

    def __init__(self, problem: Problem, like: Tensor) -> None:
        self.problem, self.like, self.points = problem, like, problem.data.points
        self.network = two_layers(problem).inner
        self.all = None if problem.training.batch_size else self._formed(slice(0, self.points))
        self.of_a_step = self._step()
        self.width = self.of_a_step.shape[1]

    def _step(self) -> Tensor:
        """(B, D) of a step, or as many"""
        count = self.problem.batch or self.points
        return self(torch.arange(count) % self.problem.data.samples if count > self.points else slice(0, count))

    def __call__(self, rows: Rows) -> Tensor:
        """(n, D) those of some points"""
        return self._formed(rows) if self.all is None or isinstance(rows, Dataset) else self.all[rows]

    def blocks(self, rows: Rows) -> Iterator[Tensor]:
        """Those of some points, no more at a time than are to be kept"""
        if self.all is not None or not isinstance(rows, slice):
            yield self(rows)
            return
        start, stop, _ = rows.indices(self.points)
        step = max(1, _BLOCK // self.width)
        for first in range(start, stop, step):
            yield self._formed(slice(first, min(first + step, stop)))

    def _formed(self, rows: Rows) -> Tensor:
        data = self.problem.data
        x = at(rows, data.x, "x")
        if isinstance(rows, slice) and data.x_test is not None:
            start, stop, _ = rows.indices(self.points)
            if stop > data.samples:
                x = torch.cat([x, data.x_test[max(0, start - data.samples) : stop - data.samples]])
        return self.network.inputs(x).to(self.like)
