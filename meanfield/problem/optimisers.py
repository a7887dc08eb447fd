"""Optimisers that act entry by entry, in units in which they have a limit (equation 112)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.problem.words import worded

_NUMBERS = ("beta1", "beta2", "epsilon", "ratio")


class Entrywise:
    """What changes each number by its own gradients alone; the numbers that it needs are the fields of a frozen dataclass.

    memories: how many averages it keeps of each number's gradients, which start at 0. low_rank: whether what a matrix between wide axes
    learns is a sum of as few products as its gradients are.
    """

    name: ClassVar[str]
    memories: ClassVar[int]
    low_rank: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            if f.name in _NUMBERS:
                share = f.name.startswith("beta")
                below = 1.0 if share else float("inf")
                value = checks.positive(f.name, getattr(self, f.name), share, below, usual=f.default)  # type: ignore[arg-type]
                object.__setattr__(self, f.name, value)

    def _direction(self, u: Tensor, memory: Sequence[Tensor], count: int) -> Tensor:
        raise NotImplementedError


def _above_zero(epsilon: float, like: Tensor) -> float:
    """What the precision holds of it"""
    return max(epsilon, torch.finfo(like.dtype).tiny)


@checked
@dataclass(frozen=True)
class Adam(Entrywise):
    """Steps along averaged gradients over the root of averaged squares; with Training(weight_decay=..) this is AdamW.

    Example:
        >>> import meanfield as mf
        >>> mf.Training(0.01, 50, optimiser="adam").optimiser == mf.Adam()
        True
        >>> slower = mf.Training(0.01, 50, optimiser=mf.Adam(beta1=0.95), weight_decay=0.1)
    """

    name = "adam"
    memories = 2

    beta1: float = 0.9
    """How much of the averaged gradient a step keeps"""
    beta2: float = 0.999
    """How much of the averaged square a step keeps"""
    epsilon: float = 1e-8
    """Added to the root, in units of the velocity of gradient descent, which do not depend on the width"""

    def _direction(self, u: Tensor, memory: Sequence[Tensor], count: int) -> Tensor:
        mean, square = memory
        mean.lerp_(u, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(u, u, value=1 - self.beta2)
        root = square.sqrt().div_((1 - self.beta2**count) ** 0.5).add_(_above_zero(self.epsilon, u))
        return (mean / root).div_(1 - self.beta1**count)


@checked
@dataclass(frozen=True)
class RMSprop(Entrywise):
    """Steps along the gradient over the root of averaged squares, whose start is not corrected.

    Example:
        >>> import meanfield as mf
        >>> mf.Training(0.01, 50, optimiser="rmsprop").optimiser == mf.RMSprop(beta2=0.99)
        True
    """

    name = "rmsprop"
    memories = 1

    beta2: float = 0.99
    """How much of the averaged square a step keeps"""
    epsilon: float = 1e-8
    """Added to the root, in units of the velocity of gradient descent, which do not depend on the width"""

    def _direction(self, u: Tensor, memory: Sequence[Tensor], count: int) -> Tensor:
        del count
        (square,) = memory
        square.mul_(self.beta2).addcmul_(u, u, value=1 - self.beta2)
        return u / square.sqrt().add_(_above_zero(self.epsilon, u))


@checked
@dataclass(frozen=True)
class SignDescent(Entrywise):
    """Steps of the learning rate along the signs of averaged gradients (signum).

    Example:
        >>> import meanfield as mf
        >>> signum = mf.Training(0.01, 50, optimiser=mf.SignDescent(beta1=0.9))
    """

    name = "sign_descent"
    memories = 1

    beta1: float = 0.0
    """How much of the averaged gradient a step keeps; 0 takes the signs of the gradient alone"""

    def _direction(self, u: Tensor, memory: Sequence[Tensor], count: int) -> Tensor:
        del count
        return memory[0].lerp_(u, 1 - self.beta1).sign()


@checked
@dataclass(frozen=True)
class Muon(Entrywise):
    """Matrices between hidden layers move along the orthogonalised average of gradients (equation 114), all else as by `others`.

    Example:
        >>> import meanfield as mf
        >>> mixed = mf.Muon(others=mf.Adam(beta2=0.95), ratio=0.2)  # inputs and readouts by Adam, at a fifth of the rate
        >>> mf.Training(0.05, 50, optimiser=mixed).optimiser.others.beta2
        0.95
    """

    name = "muon"
    memories = 2
    low_rank = True

    beta1: float = 0.95
    """How much of the averaged gradient of a matrix a step keeps"""
    nesterov: bool = True
    """Whether the step's own gradient is added to the average once more"""
    iterations: int = 5
    """Of Newton and Schulz's, with the coefficients of Jordan et al. (2024)"""
    others: Adam = field(default_factory=Adam)
    """What moves input weights, readouts, biases and gains"""
    ratio: float = 1.0
    """The rate of these, in units of the learning rate"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.normalise(self, iterations=1)

    def _direction(self, u: Tensor, memory: Sequence[Tensor], count: int) -> Tensor:
        return self.others._direction(u, memory, count).mul_(self.ratio)


_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, iterations: int) -> Tensor:
    """U p(S) V^T of U S V^T (.., rows, columns), p near 1 but for small singular values, which grow by 3.4 an iteration (equation 114)"""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / x.flatten(-2).norm(dim=-1).clamp(min=1e-30)[..., None, None]
    for _ in range(iterations):
        a, b, c = _NEWTON_SCHULZ
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def direction(optimiser: Entrywise, u: Tensor, memory: Sequence[Tensor], count: int) -> Tensor:
    """Of the step number `count` = 1, 2, .. along descent's velocity u; the averages in `memory` are brought up to date in place"""
    return optimiser._direction(u, memory, count)


NAMED: dict[str, type[Entrywise]] = {
    "adam": Adam,
    "adamw": Adam,  # weight_decay shrinks weights beside the step, never its gradients
    "muon": Muon,
    "rmsprop": RMSprop,
    "sign_descent": SignDescent,
}


def named(text: str) -> str | Entrywise:
    """By name, "adam", or with numbers of its own, "adam(beta1=0.8)"; other texts as they are"""
    found = worded("optimiser", text, {name: [f.name for f in fields(kind)] for name, kind in NAMED.items()})  # type: ignore[arg-type]
    name, own = found or (text, {})
    return NAMED[name](**own) if name in NAMED else text


def told(optimiser: str | Entrywise) -> str | dict[str, Any]:
    """For files: a name, with its numbers"""
    if isinstance(optimiser, str):
        return optimiser
    own = {f.name: getattr(optimiser, f.name) for f in fields(optimiser)}  # type: ignore[arg-type]
    return {"name": optimiser.name} | {k: told(v) if isinstance(v, Entrywise) else v for k, v in own.items()}


def recalled(told: str | Mapping[str, Any]) -> Any:
    """The inverse of `told`. ValueError for a name that is not known"""
    if isinstance(told, str):
        return told
    own = {k: recalled(v) if isinstance(v, Mapping) else v for k, v in told.items() if k != "name"}
    return checks.lookup("optimiser", told.get("name"), NAMED)(**own)
