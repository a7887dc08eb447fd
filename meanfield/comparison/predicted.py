"""Variance and bias of networks, measured beside what was predicted of them (equations 101 and 102)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meanfield.checking.short import brief
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance
from meanfield.comparison.observables import OUTPUTS, holds, observe, observed_at
from meanfield.comparison.statistics import jackknife_error, left_out_moments, moments
from meanfield.problem.stream import laws_must_be_known
from meanfield.solution.solution import Solution

WORDS = {"variance": "N Var", "bias": "N bias"}


@dataclass(frozen=True, eq=False)
class Fluctuation:
    """Variance or bias of one observable at the steps and points at which it was predicted; arrays are (widths,)."""

    kind: Literal["variance", "bias"]
    """Which of the two"""
    name: str
    """Of the observable"""
    steps: tuple[int, ...]
    """At which it was predicted"""
    numbers: int
    """How many were predicted, at all steps together"""
    whole: bool
    """Whether these are all numbers that the report compares under that name"""
    size: float
    """Their root mean square, in the limit"""
    measured: np.ndarray
    """N Var of the networks, mean over the numbers; or N times the bias, root mean square, along the predicted one"""
    measured_se: np.ndarray
    """Its standard error, of the variance nan for fewer than three seeds; of the bias with that of the limit, if several are given"""
    predicted: float
    """The same as predicted; of the bias less what its error adds, nan where that is all there is"""
    predicted_se: float
    """Its standard error, nan if unknown"""

    __repr__ = brief

    def ratio(self) -> tuple[np.ndarray, np.ndarray]:
        """(widths,) measured over predicted, and its standard error"""
        ratio = self.measured / self.predicted
        own = np.nan_to_num(self.predicted_se) / self.predicted
        return ratio, np.sqrt((self.measured_se / self.predicted) ** 2 + (ratio * own) ** 2)

    def line(self, widths: Sequence[int]) -> str:
        """As text"""
        each = ", ".join(f"{n}: {r:.3g} ± {e:.2g}" for n, r, e in zip(widths, *self.ratio(), strict=True))
        steps = " ".join(map(str, self.steps)) if len(self.steps) < 5 else f"{self.steps[0]} .. {self.steps[-1]}"
        told = f"{WORDS[self.kind]} of {self.name} at step{'s' * (len(self.steps) > 1)} {steps}"
        if math.isnan(self.predicted):
            return f"{told}: the predicted one does not stand out of its error"
        return f"{told}: predicted {self.predicted:.4g} ± {self.predicted_se:.2g}; measured over predicted {each}"

    def plain(self) -> dict[str, object]:
        """The fields, as values that can be compared"""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"measured": self.measured.tolist(), "measured_se": self.measured_se.tolist()}


def fluctuations(
    by_width: Mapping[int, Sequence[Solution]],
    limits: Sequence[Solution],
    predictions: Sequence[PredictedVariance | PredictedBias],
) -> tuple[Fluctuation, ...]:
    """Of all that was predicted and that all solutions hold. ValueError for predictions of another problem."""
    found, everyone = [], [*limits, *(net for group in by_width.values() for net in group)]
    for prediction in predictions:
        if prediction.problem != limits[0].problem:
            laws_must_be_known(prediction.problem.data, limits[0].problem.data)
            raise ValueError(
                f"this {type(prediction).__name__} is of another problem (data, network, scaling, training or loss) than the networks: "
                f"{prediction.problem!r}, not {limits[0].problem!r}"
            )
        for name in prediction.names:
            if not all(holds(s, name, prediction.steps) for s in everyone):
                continue
            if isinstance(prediction, PredictedBias):
                found.append(_bias(name, by_width, limits, prediction))
            else:
                found.append(_variance(name, by_width, limits, prediction))
    return tuple(found)


def _numbers(solution: Solution, name: str, prediction: PredictedVariance | PredictedBias) -> Tensor:
    """(n,) what the prediction is of"""
    index = prediction.index[name]
    own = torch.stack([observed_at(solution, name, step) for step in prediction.steps])
    return own.reshape(index.shape)[index >= 0].double()


def _whole(name: str, limit: Solution, prediction: PredictedVariance | PredictedBias) -> bool:
    last = name in OUTPUTS or prediction.steps[0] == limit.snapshots[-1]
    return (
        last
        and bool((prediction.index[name] >= 0).all())
        and prediction.index[name].numel() == len(observe(limit, name))
    )


def _variance(
    name: str, by_width: Mapping[int, Sequence[Solution]], limits: Sequence[Solution], prediction: PredictedVariance
) -> Fluctuation:
    reference = torch.stack([_numbers(limit, name, prediction) for limit in limits]).mean(0)
    measured = [
        scaled_variance(width, torch.stack([_numbers(net, name, prediction) for net in group]))
        for width, group in by_width.items()
    ]
    each = prediction.each(name)[:, prediction.index[name] >= 0].mean(1)
    own = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    values, errors = np.array(measured).T
    size = float(reference.square().mean().sqrt())
    whole, n = _whole(name, limits[0], prediction), len(reference)
    return Fluctuation("variance", name, prediction.steps, n, whole, size, values, errors, float(each.mean()), own)


def scaled_variance(width: int, values: Tensor) -> tuple[float, float]:
    """N Var averaged over numbers, of values (E, n) of networks, and its jackknife error (nan for two seeds)"""
    final = values.numpy()
    apart = final - final.mean(0)
    gram = apart @ apart.T / final.shape[1]
    return width * moments(gram, 0.0)[1], width * float(jackknife_error(left_out_moments(gram, 0.0))[1])


def _bias(
    name: str, by_width: Mapping[int, Sequence[Solution]], limits: Sequence[Solution], prediction: PredictedBias
) -> Fluctuation:
    """With p of n numbers, |p|^2 less the squares of its errors being n B^2: N <mean - limit, p> / (n B) is B if p is right."""
    values = torch.stack([_numbers(limit, name, prediction) for limit in limits])
    each = prediction.each(name)[:, prediction.index[name] >= 0]
    p, n = each.mean(0), each.shape[1]
    noise, along = each.var(0) / len(each), each @ p
    square, error = float((p.square() - noise).sum()), float(along.std()) / math.sqrt(len(each))
    root = math.sqrt(square / n) if square > 2 * error else math.nan
    known = float((values @ p).std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    measured = []
    for group in by_width.values():
        seen = (torch.stack([_numbers(net, name, prediction) for net in group]) - values.mean(0)) @ p
        measured.append((float(seen.mean()), math.hypot(float(seen.std()) / math.sqrt(len(seen)), known)))
    found, errors = np.array(measured).T * np.array(list(by_width)) / (n * root)
    size = float(values.mean(0).square().mean().sqrt())
    whole = _whole(name, limits[0], prediction)
    return Fluctuation("bias", name, prediction.steps, n, whole, size, found, errors, root, error / (n * root))
