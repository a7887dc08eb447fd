"""Laws of the numbers that parameters start with: mean 0, variance 1, as functions of a Gaussian (equation 121)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from meanfield.checking import checks

_CUT = 2.0  # standard deviations of a Gaussian at which it is cut, as torch.nn.init.trunc_normal_ does
_BEYOND = 0.5 * math.erfc(_CUT / math.sqrt(2))  # of one side
_CUT_VARIANCE = 1 - 2 * _CUT * math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi) / (1 - 2 * _BEYOND)
_T = re.compile(r"student_t\(([^()]+)\)")
KNOWN = "normal, uniform, rademacher, truncated_normal, laplace, student_t(df) with df > 2, e.g. student_t(5)"


@dataclass(frozen=True)
class Law:
    """A symmetric law by the size of its quantile at a tail p <= 1/2; two of one name are equal."""

    name: str

    @property
    def gaussian(self) -> bool:
        return self.name == "normal"

    @property
    def zero(self) -> bool:
        """Whether it is the number 0"""
        return self.name == "zero"

    def of(self, z: Tensor) -> Tensor:
        """Numbers of this law from N(0, 1) numbers z, one by one and in their order; z itself if it is Gaussian"""
        if self.gaussian:
            return z
        tail = (
            torch.special.erfc(z.double().abs() / math.sqrt(2)) / 2
        )  # of the smaller side, which floating point resolves
        size = _SIZES[self.name](tail) if self.name in _SIZES else _student(tail, float(_T.fullmatch(self.name)[1]))  # type: ignore[index]
        return torch.where(z < 0, -size, size).to(z)


NORMAL, ZERO = Law("normal"), Law("zero")


def law(what: str, given: object) -> Law:
    """The law of a name; ValueError for others, and for tails without a variance"""
    if isinstance(given, str):
        if given == "normal" or (given in _SIZES and given != "zero"):
            return Law(given)
        if match := _T.fullmatch(given.replace(" ", "")):
            return Law(f"student_t({_freedom(what, given, match[1])!r})")
    raise ValueError(f"{what} must name a law of mean 0 and variance 1: received {checks.shown(given)}; known: {KNOWN}")


def _freedom(what: str, given: str, number: str) -> float:
    try:
        df = float(number)
    except ValueError:
        df = math.nan
    if not 2 < df < math.inf:
        raise ValueError(
            f"{what} must have a finite variance, df > 2 (no variance, no limit): received {given!r}; give e.g. 'student_t(3)'"
        )
    return df


def _student(tail: Tensor, df: float) -> Tensor:
    lower = torch.from_numpy(np.asarray(stdtrit(df, tail.cpu().numpy()))).to(tail)
    return lower.mul_(-math.sqrt((df - 2) / df))


def _truncated(tail: Tensor) -> Tensor:
    return -torch.special.ndtri(_BEYOND + tail * (1 - 2 * _BEYOND)) / math.sqrt(_CUT_VARIANCE)


_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "rademacher": torch.ones_like,
    "uniform": lambda tail: math.sqrt(3) * (1 - 2 * tail),
    "truncated_normal": _truncated,
    "laplace": lambda tail: -(2 * tail).log() / math.sqrt(2),
}
