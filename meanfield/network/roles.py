"""Roles: which axes of a module's parameters grow with its width, and what each parameter therefore is (equation 79).

    input     only the outputs grow                 hidden    inputs and outputs grow          readout   only the inputs grow
    vector    one wide axis without a fan-in        plain     no wide axis                     output bias   the bias of a readout

Read off builds of three widths without numbers: an axis whose size is not the same in all is wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal

from torch import nn

from meanfield.network.making import Build, made
from meanfield.network.refusals import refuse_modules
from meanfield.network.sources import digest, place

Role = Literal["input", "hidden", "readout", "vector", "plain", "output bias"]
Kind = Literal["linear", "convolution", "embedding", "own"]

# of which the widths are 2, 3 and 5 times as many; most numbers of heads and groups divide the first, 64, 9, 5, 7 or 25 another
_UNITS = (96, 192, 288, 480, 672, 800)
_TIMES = (2, 3, 5)
_PARTS = 64  # of which several may make an axis: more are what a division leaves, n // 11 = 61 n/672 at these widths
_LAYERS: dict[type[nn.Module], Kind] = {
    nn.Linear: "linear",
    nn.Conv1d: "convolution",
    nn.Conv2d: "convolution",
    nn.Conv3d: "convolution",
    nn.Embedding: "embedding",
}


@dataclass(frozen=True)
class Axis:
    """size: how many, or for a wide axis how many times the width."""

    size: Fraction
    wide: bool

    def at(self, width: int) -> int:
        """Its size in a network of this width; ValueError for one that it does not divide"""
        size = self.size * width if self.wide else self.size
        if size.denominator != 1:
            raise ValueError(
                f"the width must be a multiple of {self.size.denominator}, since the network has an axis of {self}: received {width}"
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

    def shape(self, width: int) -> tuple[int, ...]:
        return tuple(axis.at(width) for axis in self.axes)

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
    unit: int = _UNITS[0]

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def having(self, *roles: Role) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.role in roles)

    def table(self) -> list[list[str]]:
        """[name, role, kind, axis, ..] of each parameter, as files hold them"""
        return [[p.name, p.role, p.kind, *map(str, p.axes)] for p in self.parameters]


def describe(build: Build) -> Description:
    """The parameters of build(n) with their roles (equation 79).

    ValueError for what is no network with a width, and for modules that have no width limit, with the reason and the remedy.
    """
    first, failed = None, []
    for unit in _UNITS:
        widths = [times * unit for times in _TIMES]
        try:
            nets = [made(build, width) for width in widths]
            first = first or (nets, widths)
            found = _read(nets, widths)
        except ValueError as error:
            failed.append(error)
            continue
        if all(map(partial(_holds, found), *first)):
            return Description(found, place(build), digest(build, nets[0]), unit)
    raise failed[0]


def _read(nets: Sequence[nn.Module], widths: Sequence[int]) -> tuple[Parameter, ...]:
    """The parameters of one network at these widths"""
    refuse_modules(*nets[:2])
    owners = dict(nets[0].named_modules(remove_duplicate=False))
    shapes = [dict(net.named_parameters(remove_duplicate=False)) for net in nets]
    for width, own in zip(widths[1:], shapes[1:], strict=True):
        if names := sorted(shapes[0].keys() ^ own.keys()):
            raise ValueError(
                f"build(n) must give the same parameters at every width: {names[0]!r} is in one of build({widths[0]}) and build({width}) "
                "alone"
            )
    owned = {name: owners[name.rpartition(".")[0]] for name in shapes[0]}
    every = {name: _described(name, owned[name], [own[name] for own in shapes], widths) for name in owned}
    if not any(axis.wide for parameter in every.values() for axis in parameter.axes):
        raise ValueError(
            f"no parameter of the network grows with its width: build({widths[0]}) and build({widths[1]}) have equal shapes; "
            "give a function of the width n that makes layers of n neurons, e.g. lambda n: nn.Sequential(nn.Linear(3, n), nn.Tanh(), "
            "nn.Linear(n, 1))"
        )
    every = _with_output_biases(every)
    _refuse_ties(every, shapes[0])
    return tuple(every[name] for name, _ in nets[0].named_parameters())


def _holds(parameters: Sequence[Parameter], net: nn.Module, width: int) -> bool:
    """Whether a network of a width that an axis need not divide has these axes, but for what the division leaves"""
    named = dict(net.named_parameters())
    return all(
        abs(size - axis.size * (width if axis.wide else 1)) < 1
        for p in parameters
        for size, axis in zip(named[p.name].shape, p.axes, strict=True)
    )


def _described(name: str, owner: nn.Module, given: Sequence[nn.Parameter], widths: Sequence[int]) -> Parameter:
    if not given[0].dtype.is_floating_point:
        raise ValueError(f"the parameter {name!r} must hold real numbers: received {given[0].dtype}")
    if not given[0].requires_grad:
        raise ValueError(
            f"the parameter {name!r} is not trained: leave requires_grad as it is, and give frozen=({name!r},)"
        )
    if len({p.ndim for p in given}) > 1:
        raise ValueError(f"the parameter {name!r} has another number of axes at another width: it must be the same")
    axes = tuple(_axis(name, sizes, widths) for sizes in zip(*(p.shape for p in given), strict=True))
    weighs = name.rpartition(".")[2] == "weight"
    known: list[Kind] = [kind for layer, kind in _LAYERS.items() if isinstance(owner, layer)] if weighs else []
    kind = known[0] if known else "own"
    if kind == "own":
        return Parameter(name, _own_role(name, axes), kind, axes)
    if any(axis.wide for axis in axes[2:]):
        raise ValueError(f"the filter of {name!r} grows with the width: its size must be a fixed number")
    weight = Parameter(name, "plain", kind, axes)
    if kind == "embedding" and weight.below.wide:
        raise ValueError(f"the number of embeddings of {name!r} grows with the width: it must be a fixed number")
    roles: dict[tuple[bool, bool], Role] = {
        (True, True): "hidden",
        (True, False): "input",
        (False, True): "readout",
        (False, False): "plain",
    }
    return Parameter(name, roles[weight.above.wide, weight.below.wide], kind, axes)


def _axis(name: str, sizes: Sequence[int], widths: Sequence[int]) -> Axis:
    if len(set(sizes)) == 1:
        return Axis(Fraction(sizes[0]), False)
    times = [Fraction(size, width) for size, width in zip(sizes, widths, strict=True)]
    other = next((i for i, one in enumerate(times) if one != times[0]), 0)
    if other or (times[0].numerator > 1 and times[0].denominator > _PARTS):
        raise ValueError(
            f"an axis of the parameter {name!r} must be a fixed number or a multiple of the width: received {sizes[0]} at width "
            f"{widths[0]} and {sizes[other or 1]} at width {widths[other or 1]}; give a builder of e.g. n, 4 * n or n // 8 neurons"
        )
    return Axis(times[0], True)


def _own_role(name: str, axes: tuple[Axis, ...]) -> Role:
    """The role of a parameter that is no layer's weight"""
    wide = [axis for axis in axes if axis.wide]
    if len(wide) < 2:
        return "vector" if wide else "plain"
    if len(axes) == 2 and wide[0] == wide[1]:
        return "hidden"
    raise ValueError(
        f"the parameter {name!r} has {len(wide)} wide axes in the shape {' x '.join(map(str, axes))}, which does not tell its inputs from "
        "its outputs: write each matrix as an nn.Linear, or as a parameter of the shape (n, n)"
    )


def _with_output_biases(parameters: dict[str, Parameter]) -> dict[str, Parameter]:
    readouts = {p.layer for p in parameters.values() if p.role == "readout"}
    return {
        name: replace(p, role="output bias") if p.role == "plain" and p.layer in readouts else p
        for name, p in parameters.items()
    }


def _refuse_ties(parameters: dict[str, Parameter], tensors: dict[str, nn.Parameter]) -> None:
    """One tensor by two names must be the same thing by both"""
    first: dict[int, Parameter] = {}
    for name, tensor in tensors.items():
        parameter = parameters[name]
        other = first.setdefault(id(tensor), parameter)
        if other.role != parameter.role:
            raise ValueError(
                f"{other.name!r} ({other.role}) and {name!r} ({parameter.role}) are one tensor, which has no width limit: entries of an "
                "input weight are of order 1, those of a readout of order 1/n. Give each a parameter of its own"
            )
