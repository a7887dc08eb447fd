"""Roles: which axes of a module's parameters grow with its width, and what each parameter therefore is (equation 79).

    input     only the outputs grow                 hidden    inputs and outputs grow          readout   only the inputs grow
    vector    one wide axis without a fan-in        plain     no wide axis                     output bias   the bias of a readout

Read off two builds without numbers: an axis whose size is not the same in both is wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from torch import nn

from meanfield.network.making import Build, made
from meanfield.network.refusals import refuse_modules
from meanfield.network.sources import digest, place

Role = Literal["input", "hidden", "readout", "vector", "plain", "output bias"]
Kind = Literal["linear", "convolution", "embedding", "own"]

WIDTHS = (192, 288)  # multiples of all numbers of heads and of groups that are usual
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

    source: "package.module:Name", empty for code that has no such place; digest: empty for code that cannot be read.
    """

    parameters: tuple[Parameter, ...]
    source: str = ""
    digest: str = ""

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
    nets = [made(build, width) for width in WIDTHS]
    refuse_modules(*nets)
    owners = dict(nets[0].named_modules(remove_duplicate=False))
    shapes = [dict(net.named_parameters(remove_duplicate=False)) for net in nets]
    if shapes[0].keys() != shapes[1].keys():
        name = sorted(shapes[0].keys() ^ shapes[1].keys())[0]
        raise ValueError(
            f"build(n) must give the same parameters at every width: {name!r} is in one of build({WIDTHS[0]}) and build({WIDTHS[1]}) alone"
        )
    owned = {name: owners[name.rpartition(".")[0]] for name in shapes[0]}
    every = _with_output_biases({name: _described(name, owned[name], [s[name] for s in shapes]) for name in owned})
    if not any(axis.wide for parameter in every.values() for axis in parameter.axes):
        raise ValueError(
            f"no parameter of the network grows with its width: build({WIDTHS[0]}) and build({WIDTHS[1]}) have equal shapes; "
            "give a function of the width n that makes layers of n neurons, e.g. lambda n: nn.Sequential(nn.Linear(3, n), nn.Tanh(), "
            "nn.Linear(n, 1))"
        )
    _refuse_ties(every, shapes[0])
    return Description(
        tuple(every[name] for name, _ in nets[0].named_parameters()), place(build), digest(build, nets[0])
    )


def _described(name: str, owner: nn.Module, pair: Sequence[nn.Parameter]) -> Parameter:
    if not pair[0].dtype.is_floating_point:
        raise ValueError(f"the parameter {name!r} must hold real numbers: received {pair[0].dtype}")
    if not pair[0].requires_grad:
        raise ValueError(
            f"the parameter {name!r} is not trained: leave requires_grad as it is, and give frozen=({name!r},)"
        )
    if pair[0].ndim != pair[1].ndim:
        raise ValueError(f"the parameter {name!r} has another number of axes at another width: it must be the same")
    axes = tuple(_axis(name, *sizes) for sizes in zip(*(p.shape for p in pair), strict=True))
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


def _axis(name: str, *sizes: int) -> Axis:
    if sizes[0] == sizes[1]:
        return Axis(Fraction(sizes[0]), False)
    times = [Fraction(size, width) for size, width in zip(sizes, WIDTHS, strict=True)]
    if times[0] != times[1]:
        raise ValueError(
            f"an axis of the parameter {name!r} must be a fixed number or a multiple of the width: received {sizes[0]} at width "
            f"{WIDTHS[0]} and {sizes[1]} at width {WIDTHS[1]}; give a builder of e.g. n, 4 * n or n // 8 neurons"
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
