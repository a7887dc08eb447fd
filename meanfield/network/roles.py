"""Roles: what each parameter of a module is, by which of its axes grow with the width (equation 79).

input     only the outputs grow                 hidden    inputs and outputs grow          readout   only the inputs grow
vector    one wide axis without a fan-in        plain     no wide axis                     output bias   the bias of a readout
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import nn

Role = Literal["input", "hidden", "readout", "vector", "plain", "output bias"]
Kind = Literal["linear", "convolution", "embedding", "own"]

UNIT = 96  # of widths, which most numbers of heads and groups divide


@dataclass(frozen=True)
class Axis:
    """size: how many, or for a wide axis how many times the width."""

    size: Fraction
    wide: bool

    def at(self, width: int, called: str = "the width") -> int:
        """Its size in a network of this width; ValueError for one that it does not divide, which `called` names"""
        size, parts = self.size * width if self.wide else self.size, self.size.denominator
        if size.denominator != 1:
            raise ValueError(
                f"{called} must be a multiple of {parts}, since the network has an axis of {self}: received {width}; give e.g. "
                f"{parts * math.ceil(width / parts)}"
            )
        return int(size)

    def __str__(self) -> str:
        if not self.wide:
            return str(self.size)
        times, parts = self.size.numerator, self.size.denominator
        return ("" if times == 1 else str(times)) + "n" + ("" if parts == 1 else f"/{parts}")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module by its name: what it is, in which kind of layer, and its axes in torch's order."""

    name: str
    role: Role
    kind: Kind
    axes: tuple[Axis, ...]

    def shape(self, width: int, called: str = "the width") -> tuple[int, ...]:
        return tuple(axis.at(width, called) for axis in self.axes)

    @property
    def layer(self) -> str:
        """The name of the module that owns it"""
        return self.name.rpartition(".")[0] or self.name

    @property
    def key(self) -> str:
        """What is recorded of it is called by: the name of its layer, its own if it is no layer's weight"""
        return self.name.removesuffix(".weight")

    @property
    def offsets(self) -> int:
        """How many matrices it holds: the positions of a filter"""
        return math.prod(int(axis.size) for axis in self.axes[2:]) if self.kind == "convolution" else 1

    @property
    def above(self) -> Axis:
        """The axis of the outputs of a weight"""
        return self.axes[1 if self.kind == "embedding" else 0]

    @property
    def below(self) -> Axis:
        """The axis of the inputs of a weight, of which a filter sees several times as many"""
        return self.axes[0 if self.kind == "embedding" else 1]

    def fan_in(self, width: int) -> int:
        """How many terms each output of a weight adds up; of an embedding one"""
        return 1 if self.kind == "embedding" else self.below.at(width) * self.offsets


@dataclass(frozen=True)
class Description:
    """What is known of a builder without running its network: parameters in torch's order; where its code is, and the sha256 of that.

    source: "package.module:Name", empty for code that has no such place; digest: empty for code that cannot be read. unit: its multiples
    are widths that the builder takes.
    """

    parameters: tuple[Parameter, ...]
    source: str = ""
    digest: str = ""
    unit: int = UNIT

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def having(self, *roles: Role) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.role in roles)

    def must_describe(self, net: nn.Module, width: int) -> None:
        """ValueError for a network build(width) whose parameters are others than the widths that were looked at tell"""
        must_be_alike(self.parameters, net, width, lambda p: p.shape(width))

    def table(self) -> list[list[str]]:
        """[name, role, kind, axis, ..] of each parameter, as files hold them"""
        return [[p.name, p.role, p.kind, *map(str, p.axes)] for p in self.parameters]


def must_be_alike(
    parameters: Sequence[Parameter], net: nn.Module, width: int, expected: Callable[[Parameter], tuple[int, ...]]
) -> None:
    own, known = dict(net.named_parameters()), {p.name: p for p in parameters}
    if names := sorted(own.keys() ^ known.keys()):
        raise ValueError(
            f"build(n) must give the same parameters at every width: {names[0]!r} is in one of build({width}) and smaller ones alone"
        )
    for name, p in known.items():
        if tuple(own[name].shape) != expected(p):
            raise ValueError(
                f"an axis of the parameter {name!r} is another at other widths: build({width}) gives the shape {tuple(own[name].shape)}, "
                f"but its axes are {' x '.join(map(str, p.axes))} at some widths; each must be one number, or one multiple of n, at all of "
                "them: no min(n, ..), max(n, ..) or choice by n"
            )
