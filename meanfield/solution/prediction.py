"""LazyPrediction: mean and covariance of the outputs of infinitely wide lazy networks over their random start (equation 53)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.checking.short import html
from meanfield.problem.dataset import for_tests
from meanfield.problem.problem import Problem


@checked
@dataclass(frozen=True, eq=False)
class LazyPrediction:
    """What `solvers.lazy_prediction` finds; every network's outputs are a draw of N(mean, covariance), equal for all widths.

    Example:
        >>> import meanfield as mf
        >>> from solvers import lazy_prediction
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(2), mf.ntk(), mf.Training(0.2, 5))
        >>> prediction = lazy_prediction(problem)
        >>> prediction.mean.shape, prediction.mean_test.shape  # records, samples, outputs
        (torch.Size([6, 4, 1]), torch.Size([6, 2, 1]))
    """

    problem: Problem
    """What was asked"""
    times: Tensor
    """(T,) training times eta k"""
    mean: Tensor
    """(T, P, C), or (T, P, positions, .., C) of outputs at positions, as of all below"""
    mean_test: Tensor | None
    """(T, P_test, .., C), if there are test samples"""
    covariance: Tensor
    """(T, Q, Q), or (T, Q, positions, .., Q, positions, ..), of one output over [x; x_test], the same for each of the C outputs, which are
    independent of each other"""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Eigenvalues, condition number, the jitter that was used"""

    _repr_html_ = html

    @property
    def std(self) -> Tensor:
        """(T, P, .., C) standard deviation over the random start, training samples"""
        return self._std()[:, : self.mean.shape[1], ..., None].expand_as(self.mean)

    @property
    def std_test(self) -> Tensor | None:
        """(T, P_test, .., C) standard deviation over the random start, test samples"""
        if self.mean_test is None:
            return None
        return self._std()[:, self.mean.shape[1] :, ..., None].expand_as(self.mean_test)

    @property
    def loss(self) -> Tensor:
        """(T,) training loss of one network, expected over the random start"""
        return self._loss(self.mean, self.std, self.problem.data.y)

    @property
    def test_loss(self) -> Tensor:
        """(T,) loss of one network on the test samples, expected over the random start; ValueError if there are none"""
        y = self.problem.data.test_targets
        return self._loss(for_tests(self.mean_test), for_tests(self.std_test), y)

    def _std(self) -> Tensor:
        """(T, Q, ..)"""
        points = self.covariance.shape[1 : self.mean.ndim - 1]
        rows = points.numel()
        variances = self.covariance.reshape(-1, rows, rows).diagonal(dim1=1, dim2=2)
        return variances.clamp(min=0).sqrt().unflatten(1, points)

    def _loss(self, mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
        return self.problem.loss_function.mean(mean, y) + 0.5 * std.square().sum(-1).flatten(1).mean(-1)

    def __repr__(self) -> str:
        ends = f"{float(self.loss[0]):.4g} -> {float(self.loss[-1]):.4g}"
        return f"LazyPrediction({len(self.times)} times, expected loss {ends})"

    def __eq__(self, other: object) -> bool:
        """Same problem and numbers"""
        if not isinstance(other, LazyPrediction):
            return NotImplemented
        tests = (self.mean_test, other.mean_test)
        same = tests[0] is tests[1] or (None not in tests and torch.equal(tests[0], tests[1]))  # type: ignore[arg-type]
        pairs = ((getattr(self, k), getattr(other, k)) for k in ("times", "mean", "covariance"))
        return self.problem == other.problem and same and all(torch.equal(a, b) for a, b in pairs)
