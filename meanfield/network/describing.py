"""The roles of a builder's parameters, read off builds of three widths without numbers: an axis whose size is not the same in all is wide
(equation 79)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

from torch import nn

from meanfield.network.making import Build, made, thinly_made
from meanfield.network.refusals import refuse_modules
from meanfield.network.roles import UNIT, Axis, Description, Kind, Parameter, Role, must_be_alike
from meanfield.network.sources import digest, place

# of which the widths are 2, 3 and 5 times as many; 64, 9, 5, 7 or 25 heads divide another than the first
_UNITS = (UNIT, 192, 288, 480, 672, 800)
_TIMES = (2, 3, 5)
_FAR, _NEAR = 128, 3  # how far from a unit widths lie at which axes must be the same multiples and numbers, too
_PARTS = 64  # of which several may make an axis: more are what a division leaves, n // 11 = 61 n/672 at these widths
_LAYERS: dict[type[nn.Module], Kind] = {
    nn.Linear: "linear",
    nn.Conv1d: "convolution",
    nn.Conv2d: "convolution",
    nn.Conv3d: "convolution",
    nn.Embedding: "embedding",
}


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
            _must_hold_far_from(found, build, unit)
            return Description(found, place(build), digest(build, nets[0]), unit)
    raise failed[0]


def _must_hold_far_from(parameters: Sequence[Parameter], build: Build, unit: int) -> None:
    """ValueError for axes that grow otherwise far beyond the widths that were looked at, and for numbers that are others far below them"""
    for width in (_FAR * unit, unit // _NEAR):
        net = thinly_made(build, width)
        if net is None:
            continue  # it need not take these widths
        own = dict(net.named_parameters())

        def expected(p: Parameter, width: int = width, own: dict[str, nn.Parameter] = own) -> tuple[int, ...]:
            """Near 0 wide axes may be as they are, and what a division leaves is left anywhere"""
            return tuple(
                size
                if axis.wide and (width < unit or abs(size - axis.size * width) < 1)
                else round(axis.size * (width if axis.wide else 1))
                for size, axis in zip(own[p.name].shape, p.axes, strict=True)
            )

        must_be_alike(parameters, net, width, expected)


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
