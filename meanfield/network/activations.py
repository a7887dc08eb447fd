"""Activations: phi and phi', stable from |h| = 0 to 1e4 in float32 and float64.

To add one: write an `Activation` into the tuple below `_KNOWN` (or `register` your own) and it is known everywhere by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.own_functions import check_activation


@checked
@dataclass(frozen=True)
class Activation:
    """A pointwise nonlinearity phi with its derivative.

    ValueError, when it is made, if phi' is not the derivative that autograd finds, for outputs of another shape or dtype, for NaN, and for
    jumps of phi' that are not declared; the KeOps formulas are not tried.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> quadratic = mf.Activation("quadratic", phi=lambda h: h + h**2 / 4, dphi=lambda h: 1 + h / 2)
        >>> mf.Network(depth=1, activation=quadratic).activation.phi(torch.tensor([0.0, 2.0]))
        tensor([0., 3.])
    """

    name: str
    """By which it is found, and what files keep"""
    phi: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    """The nonlinearity, of tensors of any shape"""
    dphi: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    """phi'"""
    keops: tuple[str, str] | None = field(default=None, repr=False, compare=False)
    """Formulas of (phi, phi') in KeOps' language, with `{h}` for the argument; without them KeOps does not serve this activation"""
    keops_constants: Callable[[], tuple[float, ...]] = field(default=tuple, repr=False, compare=False)
    """`{k[i]}` in the formulas (KeOps' own rational constants are rounded to float32)"""
    kinks: tuple[tuple[float, float], ...] = field(default=(), repr=False, compare=False)
    """(location, jump of phi'): there phi'' is a delta function, which pathwise derivatives cannot see"""
    tried: bool = field(default=False, repr=False, compare=False)
    """Leaves out the trial against autograd, for pieces that passed one"""

    def __post_init__(self) -> None:
        if not self.tried:
            check_activation(self.name, self.phi, self.dphi, self.kinks)

    def __call__(self, h: Tensor) -> Tensor:
        return self.phi(h)

    def __reduce__(self):  # other processes look the library's own up by name; a user's must be picklable itself
        return (activation, (self.name,)) if self.name in _OWN else super().__reduce__()


def activation(which: str | Activation) -> Activation:
    """The activation called `which`; ValueError listing the known names.

    Example:
        >>> import meanfield as mf
        >>> relu = mf.activation("relu")
        >>> relu.name, relu.kinks  # where phi' jumps, and by how much
        ('relu', ((0.0, 1.0),))
    """
    return which if isinstance(which, Activation) else checks.lookup("activation", which, _KNOWN)


@checked
def register(new: Activation) -> Activation:
    """Make a user's activation known by its name; ValueError if the name is taken by another one.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> known = mf.register_activation(mf.Activation("arcus tangens", torch.arctan, lambda h: 1 / (1 + h**2)))
        >>> mf.Network(depth=2, activation="arcus tangens").activation.name
        'arcus tangens'
    """
    if _KNOWN.setdefault(new.name, new) is not new:
        raise ValueError(f"the activation name {new.name!r} is taken: choose another")
    return new


def names() -> tuple[str, ...]:
    return tuple(sorted(_KNOWN))


def _gaussian_density(h: Tensor) -> Tensor:
    return torch.exp(-0.5 * h * h) / math.sqrt(2 * math.pi)


def _gaussian_cumulative(h: Tensor) -> Tensor:
    return 0.5 * torch.erfc(h * -math.sqrt(0.5))


def _sech2(h: Tensor) -> Tensor:
    t = torch.tanh(h)
    return torch.addcmul(t.new_ones(()), t, t, value=-1)  # 1 - t^2 in one pass


def _sigmoid_slope(h: Tensor) -> Tensor:
    return torch.sigmoid(h) * torch.sigmoid(-h)  # keeps its digits in both tails


@cache
def _erfc_polynomial() -> tuple[float, ...]:
    """Coefficients c_i of exp(z^2) erfc(z) = sum_i c_i s^i, s = (2 - z) / (2 + z) in (-1, 1], for z >= 0; error below 2e-14."""
    import numpy as np
    from scipy.special import erfcx

    def scaled(s):
        return erfcx(2 * (1 - s) / (1 + s + 1e-300))

    chebyshev = np.polynomial.chebyshev.chebinterpolate(scaled, 30)
    return tuple(float(c) for c in np.polynomial.chebyshev.cheb2poly(chebyshev))


def _erf_constants() -> tuple[float, ...]:
    return (*_erfc_polynomial(), 2 / math.sqrt(math.pi), math.sqrt(0.5), 1 / math.sqrt(2 * math.pi))


def _erf_formula(h: str) -> str:
    """erf in KeOps' language, which has none: sign(h) (1 - exp(-h^2) sum_i c_i s^i), by Horner's rule."""
    s = f"((IntCst(2)-Abs({h}))/(IntCst(2)+Abs({h})))"
    terms = 31
    horner = f"{{k[{terms - 1}]}}"
    for i in reversed(range(terms - 1)):
        horner = f"({{k[{i}]}}+{s}*{horner})"
    return f"(Sign({h})*(IntCst(1)-Exp(-Square({h}))*{horner}))"


_E = "Exp(-(IntCst(2)*Abs({h})))"  # bounded by 1, so nothing overflows
_EXP = "Exp(-Abs({h}))"
_SIGMOID = f"((Step({{h}})+(IntCst(1)-Step({{h}}))*{_EXP})/(IntCst(1)+{_EXP}))"
_CUMULATIVE = f"((IntCst(1)+{_erf_formula('({k[32]}*{h})')})/IntCst(2))"

_library = partial(Activation, tried=True)  # by the tests, not at every import
_KNOWN: dict[str, Activation] = {}
for _activation in (
    _library("linear", lambda h: h, torch.ones_like, ("{h}", "IntCst(1)")),
    _library(
        "tanh",
        torch.tanh,
        _sech2,
        (f"(Sign({{h}})*(IntCst(1)-{_E})/(IntCst(1)+{_E}))", f"(IntCst(4)*{_E}/Square(IntCst(1)+{_E}))"),
    ),
    _library(
        "relu",
        torch.relu,
        lambda h: (h > 0).to(h.dtype),
        ("ReLU({h})", "(IntCst(1)-Step(-{h}))"),  # KeOps' Step(0) is 1; phi'(0) = 0 here, as in torch
        kinks=((0.0, 1.0),),
    ),
    _library(
        "erf",
        torch.erf,
        lambda h: torch.exp(-h * h) * (2 / math.sqrt(math.pi)),
        (_erf_formula("{h}"), "({k[31]}*Exp(-Square({h})))"),
        _erf_constants,
    ),
    _library("sigmoid", torch.sigmoid, _sigmoid_slope, (_SIGMOID, f"({_EXP}/Square(IntCst(1)+{_EXP}))")),
    _library(
        "softplus",
        lambda h: torch.logaddexp(h, torch.zeros_like(h)),
        torch.sigmoid,
        (f"(ReLU({{h}})+Log(IntCst(1)+{_EXP}))", _SIGMOID),
    ),
    _library("sin", torch.sin, torch.cos, ("Sin({h})", "Cos({h})")),
    _library(
        "gelu",
        lambda h: h * _gaussian_cumulative(h),
        lambda h: _gaussian_cumulative(h) + h * _gaussian_density(h),
        (f"({{h}}*{_CUMULATIVE})", f"({_CUMULATIVE}+{{h}}*{{k[33]}}*Exp(-(Square({{h}})/IntCst(2))))"),
        _erf_constants,
    ),
):
    register(_activation)
_OWN = frozenset(_KNOWN)
