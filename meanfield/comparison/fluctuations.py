"""What networks of width N add to their limit, to leading order in 1/N: results of `predicted_variance` and `predicted_bias`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.problem.problem import Problem


@checked
@dataclass(frozen=True, eq=False)
class _Observed:
    """Numbers that were observed at some steps, in the limit or in narrow networks, and where each lies among all of them"""

    problem: Problem
    """What was asked"""
    steps: tuple[int, ...]
    """R steps, at each of which every number was observed"""
    values: Mapping[str, Tensor] = field(repr=False)
    """(R, ..) by name, at the width they were found at; nan where not asked for"""
    index: Mapping[str, Tensor] = field(repr=False)
    """(R, ..) by name, the place of each number among all Q; -1 where not asked for"""
    settings: Mapping[str, object]
    """How it was found"""

    @property
    def train(self) -> Tensor:
        """(P, .., C) what is predicted of f at the training samples, at the last of the steps"""
        return self._mean("f")[-1]

    @property
    def test(self) -> Tensor | None:
        """(P_test, .., C) what is predicted of f at the test samples, at the last of the steps, if there are any"""
        return self._mean("f_test")[-1] if "f_test" in self.index else None

    @checked
    def error(self, name: str = "f") -> Tensor:
        """(R, ..) the standard error of what is predicted, from the scatter of its independent estimates; nan for one"""
        return self._of(name, _standard_error(self._estimates))

    @checked
    def each(self, name: str = "f") -> Tensor:
        """(n, R, ..) the independent estimates, groups or draws, of which what is predicted is the mean"""
        return self._of(name, self._estimates)

    @property
    def _estimates(self) -> Tensor:
        """(n, Q) independent estimates of what is predicted of each number"""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Observables of which some number was asked for"""
        return tuple(name for name, index in self.index.items() if bool((index >= 0).any()))

    def _mean(self, name: str) -> Tensor:
        return self._of(name, self._estimates.mean(0))

    def _of(self, name: str, numbers: Tensor) -> Tensor:
        """(.., R, ..) of numbers (.., Q)"""
        index = checks.lookup("observable", name, self.index)
        chosen = numbers[..., index.clamp(min=0)]
        return torch.where(index < 0, math.nan, chosen)

    @property
    def _how(self) -> str:
        """The method and its sizes; the first versions of the bias had halves alone"""
        sizes = ("networks", "draws", "width", "groups", "particles")
        told = ", ".join(f"{name}={self.settings[name]}" for name in sizes if name in self.settings)
        why = f", because of {self.settings['because']}" if self.settings.get("because") else ""
        return f"{self.settings.get('method', 'halves')} ({told}){why}"

    def _table(self, title: str) -> str:
        """Means over the numbers of each observable, a row for each of the steps"""
        lines = [title, f"{'observable':<18}{'step':>7}{'numbers':>9}{'mean':>12}{'rms':>12}{'std. error':>12}"]
        for name in self.names:
            for step, mean, error in zip(self.steps, self._mean(name), self.error(name), strict=True):
                seen = ~mean.isnan()
                cells = float(mean[seen].mean()), float(mean[seen].square().mean().sqrt()), float(error[seen].mean())
                numbers = "".join(f"{cell:>12.4g}" for cell in cells)
                lines.append(f"{name:<18}{step:>7}{int(seen.sum()):>9}{numbers}")
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        """Same problem and numbers"""
        if not isinstance(other, type(self)):
            return NotImplemented
        return all(_alike(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))


@checked
@dataclass(frozen=True, eq=False)
class PredictedVariance(_Observed):
    """N times the covariance of what was observed in networks of width N, for N -> infinity (equation 101).

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_variance
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), training=mf.Training(0.2, 3))
        >>> found = predicted_variance(problem, particles=64)
        >>> found.parts, found.variance("f").shape
        (('layer 1',), torch.Size([1, 3, 1]))
    """

    parts: tuple[str, ...]
    """The populations of neurons that the fluctuations come from: "layer 1", .., or "all" where they are not told apart"""
    covariances: Tensor = field(repr=False)
    """(groups, parts, Q, Q), each group an independent estimate"""

    __repr__ = brief
    _repr_html_ = html

    @checked
    def variance(self, name: str = "f") -> Tensor:
        """(R, ..) N Var of an observable at each step"""
        return self._mean(name)

    @checked
    def by_part(self, name: str = "f") -> Tensor:
        """(parts, R, ..) N Var, of which `variance` is the sum"""
        return self._of(name, self.covariances.diagonal(dim1=-2, dim2=-1).mean(0))

    @checked
    def shares(self, name: str = "f") -> Tensor:
        """(parts, R) how much of N Var, summed over the numbers of an observable, comes from each part"""
        each = self.by_part(name)
        summed = each.reshape(*each.shape[:2], -1).nansum(2)
        return summed / summed.sum(0)

    @checked
    def covariance(self, first: str = "f", second: str | None = None) -> Tensor:
        """(n, n') N Cov between all numbers of two observables (of one with itself), flattened; nan where not asked for"""
        rows, columns = (
            checks.lookup("observable", name, self.index).flatten()
            for name in (first, first if second is None else second)
        )
        chosen = self._total.mean(0)[rows.clamp(min=0)][:, columns.clamp(min=0)]
        return torch.where((rows < 0)[:, None] | (columns < 0), math.nan, chosen)

    @checked
    def of(self, function: Callable[[Mapping[str, Tensor]], Tensor]) -> tuple[float, float]:
        """(N Var, its standard error) of a differentiable number of what was observed, such as lambda o: o["Phi1"][-1].norm()"""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
            number = function(leaves)
        if not isinstance(number, Tensor) or number.numel() != 1 or not number.requires_grad:
            raise ValueError(
                "function must give one number, as a tensor made of what was observed, such as lambda o: o['f'][-1].mean(): it gave "
                + (f"a tensor of shape {tuple(number.shape)}" if isinstance(number, Tensor) else repr(number)[:80])
            )
        slopes = torch.zeros(self._total.shape[-1], dtype=torch.float64)
        found = torch.autograd.grad(number, list(leaves.values()), allow_unused=True)
        for index, slope in zip(self.index.values(), found, strict=True):
            if slope is not None:
                asked = index >= 0
                slopes.index_add_(0, index[asked], slope[asked].double())
        each = torch.einsum("i,gij,j->g", slopes, self._total, slopes)
        return float(each.mean()), float(_standard_error(each))

    @property
    def _total(self) -> Tensor:
        return self.covariances.sum(1)

    @property
    def _estimates(self) -> Tensor:
        return self._total.diagonal(dim1=-2, dim2=-1)

    def __str__(self) -> str:
        lines = [self._table(f"N times the variance of networks of width N, by {self._how}")]
        for name in self.names if len(self.parts) > 1 else ():
            shares = self.shares(name)[:, -1]
            told = ", ".join(f"{part} {share:.1%}" for part, share in zip(self.parts, shares.tolist(), strict=True))
            lines.append(f"{name} at step {self.steps[-1]} from {told}")
        return "\n".join(lines)


@checked
@dataclass(frozen=True, eq=False)
class PredictedBias(_Observed):
    """N (E o_N - o) of what was observed in networks of width N, for N -> infinity (equation 102).

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), training=mf.Training(0.2, 3))
        >>> found = predicted_bias(problem, width=16, draws=20)
        >>> found.bias("f").shape, found.error("f").shape
        (torch.Size([1, 3, 1]), torch.Size([1, 3, 1]))
    """

    estimates: Tensor = field(repr=False)
    """(draws, Q), each an independent estimate without bias but for what falls as 1/N at the width it was found at"""

    __repr__ = brief
    _repr_html_ = html

    @checked
    def bias(self, name: str = "f") -> Tensor:
        """(R, ..) N (E o_N - o) at each step"""
        return self._mean(name)

    @property
    def _estimates(self) -> Tensor:
        return self.estimates

    def __str__(self) -> str:
        return self._table(f"N times the bias of networks of width N, by {self._how}")


def _alike(one: Any, other: Any) -> bool:
    """Equal; nan is like nan"""
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, Mapping):
        return [*one] == [*other] and all(_alike(value, other[name]) for name, value in one.items())
    return one == other


def _standard_error(estimates: Tensor) -> Tensor:
    """Of the mean of independent estimates (n, ..); nan for one"""
    n = len(estimates)
    return (
        estimates.std(0) / math.sqrt(n) if n > 1 else torch.full(estimates.shape[1:], math.nan, dtype=estimates.dtype)
    )


@checked
@dataclass(frozen=True, eq=False)
class WidthFor:
    """The width at which networks are as near to the limit as was asked, to leading order in 1/N (equation 103).

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias, predicted_variance, width_for
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), training=mf.Training(0.2, 3))
        >>> variance, bias = predicted_variance(problem, particles=64), predicted_bias(problem, width=16, draws=20)
        >>> found = width_for(problem, error=0.1, variance=variance, bias=bias)
        >>> found.asked, found.width > 1
        (0.1, True)
    """

    width: int
    """Neurons in each hidden layer"""
    error: float
    """Its standard error; nan where the predictions carry none"""
    asked: float
    """The distance from the limit that was asked for, relative, root mean square"""
    ensemble: int
    """Networks of which the mean is taken"""
    n_variance: float
    """N Var of what is observed, mean over its numbers"""
    n_bias2: float
    """The square of N bias, mean over its numbers, less that of its error, so that noise alone may come out negative"""
    size: float
    """Root mean square of what is observed, in the limit"""

    def __str__(self) -> str:
        whose = "one network" if self.ensemble == 1 else f"a mean of {self.ensemble} networks"
        known = math.isfinite(self.error)
        unit = (
            10 ** max(0, math.floor(math.log10(self.error)) - 1) if known and self.error > 0 else 1
        )  # of what is sure
        error = f" +- {math.ceil(self.error / unit) * unit}" if known else ""
        noise = "" if self.n_bias2 > 0 else "; no bias stands out of its error, and none is counted"
        return f"width {math.ceil(self.width / unit) * unit}{error} for {self.asked:.2%} of the limit by {whose}{noise}"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other) if isinstance(other, WidthFor) else NotImplemented
