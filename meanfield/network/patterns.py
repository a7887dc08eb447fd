"""Patterns of names: of parameters, or of the layers that own them, with * and ? as in names of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from meanfield.checking import checks
from meanfield.network.roles import Description, Parameter

Patterned = tuple[tuple[str, float], ...]
T = TypeVar("T")
V = TypeVar("V")


def fits(pattern: str, parameter: Parameter) -> bool:
    """Whether a pattern names a parameter, or the layer that owns it"""
    return fnmatchcase(parameter.name, pattern) or fnmatchcase(parameter.layer, pattern)


def first(pairs: Iterable[tuple[str, V]], parameter: Parameter, otherwise: T) -> T | V:
    return next((value for pattern, value in pairs if fits(pattern, parameter)), otherwise)


def pairs_of(what: str, given: object, description: Description) -> tuple[tuple[str, object], ...]:
    if not isinstance(given, (Mapping, tuple)):
        raise ValueError(f"{what} must be a mapping of patterns to numbers: received {checks.shown(given)}")
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    return tuple((fitting(what, pattern, description), value) for pattern, value in pairs)


def numbers(what: str, given: object, description: Description) -> Patterned:
    pairs = pairs_of(what, given, description)
    if what == "rate" and (
        still := [pattern for pattern, value in pairs if value == 0 and isinstance(value, (int, float))]
    ):
        raise ValueError(
            f"rate[{still[0]!r}] must be positive: received 0; parameters that stay as they start are frozen=({still[0]!r},)"
        )
    number = checks.deviation if what == "weight_std" else checks.positive
    return tuple((p, number(f"{what}[{p!r}]", value, what != "rate")) for p, value in pairs)


def fitting(what: str, pattern: object, description: Description) -> str:
    """A pattern that fits some parameter"""
    if isinstance(pattern, str) and any(fits(pattern, parameter) for parameter in description):
        return pattern
    return one_of(what, pattern, [parameter.name for parameter in description], "parameters")


def one_of(what: str, pattern: object, names: Iterable[str], kind: str) -> str:
    if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in names):
        raise ValueError(f"{what} must name {kind}: received {checks.shown(pattern)}; known: {', '.join(names)}")
    return pattern
