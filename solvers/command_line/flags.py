"""Flags of the command line: the fields of the library's own dataclasses, and their help what stands under those fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import DocstringStyle, parse_from_object
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from meanfield.checking import checks
from meanfield.network import activations
from meanfield.network.activations import Activation
from meanfield.network.perceptron import Network
from meanfield.problem import datasets, losses
from meanfield.problem.data_files import from_file
from meanfield.problem.dataset import Dataset
from meanfield.problem.losses import Loss
from meanfield.problem.problem import Problem
from meanfield.scaling import scaling
from meanfield.scaling.scaling import Scaling
from solvers.command_line import builders
from solvers.finite.finite_width import FiniteWidth

REGISTRY = ConstructorRegistry()

_HIDDEN = {"f0", "kernel", "progress", "raise_on_failure"}  # fields that a shell cannot give, or has no use for
_IN_COMMANDS: dict[type, set[str]] = {FiniteWidth: {"width", "seed"}}  # fields that are given as the command's own

DATA: dict[str, Callable[..., Dataset]] = {
    "digits": datasets.digits,
    "file": from_file,
    "mixture": datasets.gaussian_mixture,
    "single-index": datasets.single_index_teacher,
    "multi-index": datasets.multi_index_teacher,
}
# Arguments of which a shell cannot give all kinds
SIMPLER = {"path": Path, "targets": tuple[str, ...], "classes": tuple[int, ...], "scale": tuple[str, ...]}


def hidden(kind: type) -> set[str]:
    """Fields of a dataclass that are no flags"""
    return _HIDDEN | _IN_COMMANDS.get(kind, set())


class BadValue(Exception):
    """What the library said against the flags' values; not a ValueError, which tyro would frame and wrap."""


class _Asked:
    """A dataclass and what a command takes where nothing is asked, in the place of the library's defaults: a type, which tyro hands on"""

    kind: type
    usual: Any
    """{field: value}; of a scaling: the names that are offered, the usual one first"""


def _asked(kind: type, usual: Any) -> type:
    return type(kind.__name__, (_Asked,), {"kind": kind, "usual": usual})


@REGISTRY.struct_rule
def _from_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    kind: Any = getattr(info.type, "kind", info.type)
    usual = getattr(info.type, "usual", {})
    if not is_dataclass(kind) or not kind.__module__.startswith(("meanfield.", "solvers.")):
        return None
    if kind is Dataset:
        return _one_of("data", DATA, "digits", "data.")
    if kind is Scaling:
        offered = usual or ("mean_field", *scaling.NAMED)
        makers = {name: make for name, make in scaling.NAMED.items() if name in offered}
        return _one_of("scaling", makers, offered[0], "")
    return _of_fields(kind, usual)


def _of_fields(kind: Any, usual: Mapping[str, Any]) -> StructConstructorSpec:
    """A flag for each field"""
    hints, texts, flags = get_type_hints(kind), _texts(kind), []
    if kind is Network:
        shown = {"name": "network", "prefix_name": False, "metavar": builders.NAMED}
        flags.append(_flag("which", str | None, None, builders.TOLD, **shown))
    for f in fields(kind):
        own = next((named for named in (Network, Scaling) if named in parts(hints[f.name])), hints[f.name])
        default = usual.get(f.name, tyro.MISSING_NONPROP if f.default is MISSING else f.default)
        if isinstance(own, type) and is_dataclass(own):
            titled = "" if own in (Problem, Dataset, Network, Scaling) else texts[f.name]
            asked = _asked(own, f.metadata.get("usual", usual.get(f.name, {})))
            nested: Any = Annotated[asked, tyro.conf.arg(name="" if own is Problem else None, help=titled)]
            flags.append(StructFieldSpec(f.name, nested, tyro.MISSING_NONPROP))
        elif f.name not in hidden(kind):
            shown = {"metavar": f.metadata["metavar"]} if "metavar" in f.metadata else {}
            flags.append(_flag(f.name, own, default, texts[f.name], f.metadata.get("positional", False), **shown))
    return StructConstructorSpec(_refusing(builders.network if kind is Network else kind), tuple(flags))


def _one_of(what: str, makers: Mapping[str, Callable[..., Any]], first: str, prefix: str) -> StructConstructorSpec:
    """A flag that names one of the functions `makers`, and a flag for each of their arguments."""
    shown = {"name": what, "prefix_name": False, "metavar": _either(makers)}
    flags = [_flag("which", str, first, _texts(Problem)[what], **shown)]
    takes = {name: inspect.signature(make).parameters for name, make in makers.items()}
    texts = {name: _texts(make) for name, make in makers.items()}
    for key, kind in reduce(or_, map(get_type_hints, makers.values())).items():
        if key != "return":
            default = _by_value({name: _default(of[key].default) for name, of in takes.items() if key in of})
            told = {name: of[key] for name, of in texts.items() if key in of}
            text = _by_value(told) if len(set(told.values())) > 1 else next(iter(told.values()))
            shown = {"prefix_name": bool(prefix), "help_behavior_hint": f"({default})"}
            flags.append(_flag(key, SIMPLER.get(key, kind) | None, None, text, **shown))

    return StructConstructorSpec(_refusing(partial(_called, what, makers, prefix)), tuple(flags))


def _called(what: str, makers: Mapping[str, Callable[..., Any]], prefix: str, which: str, **options: Any) -> Any:
    """What `which` of the functions makes of the options that were given; ValueError for those that it does not take."""
    if what == "data" and which not in makers and (":" in which or which == "stream"):
        raise ValueError(
            f"--data {which}: the shell has no streams and takes no data from code; give a problem with mf.stream(..) to the solver in "
            f"Python, or take --data {', '.join(makers)}"
        )
    if what == "scaling" and which in scaling.NAMED and which not in makers:
        raise ValueError(
            f"--scaling {which} has another limit: this command takes {' and '.join(makers)}; flow, dmft, lazy and logits each "
            "have scalings of their own, net and sweep train networks in all"
        )
    make = checks.lookup(what, which, makers)
    takes, hints = inspect.signature(make).parameters, get_type_hints(make)
    values = {key: value for key, value in options.items() if value is not None}
    for key, value in values.items():
        flag = f"--{prefix}{_dashed(key)}"
        if key not in takes:
            others = ", ".join(name for name, other in makers.items() if key in inspect.signature(other).parameters)
            raise ValueError(f"{flag} does not belong to --{what} {which}: leave it out, or take --{what} {others}")
        kinds = parts(hints[key])
        if isinstance(value, tuple) and int in kinds:  # a number, unless it may be several names
            if len(value) == 1 and str(value[0]).isdecimal():
                values[key] = int(value[0])
            elif len(kinds) == 1:
                raise ValueError(f"{flag} is one number for --{what} {which}: received {value}")
    for key, argument in takes.items():
        if argument.default is argument.empty and key not in values:
            raise ValueError(f"--{what} {which} needs --{prefix}{_dashed(key)}: give it, too")
    return make(**values)


def _flag(name: str, kind: Any, default: Any, text: str, first: bool = False, /, **shown: Any) -> StructFieldSpec:
    """One flag. What the library looks up by name stays text here: the library lists what it knows."""
    each = parts(kind)
    literals = next((get_args(part) for part in each if get_origin(part) is Literal), ())
    known = {Activation: activations.names, Loss: losses.names}
    names = next((known[part]() for part in each if part in known), literals)
    names = tuple(checks.DTYPES) if name == "dtype" else names
    if names:
        kind, shown = (str | None if default is None else str), {"metavar": _either(names)} | shown
    elif get_origin(kind) is Sequence:
        kind = tuple[get_args(kind)[0], ...]
    elif default is None or first:  # as tyro shows them, but without {None}| and brackets
        many = get_origin(each[0]) is tuple
        word = (get_args(each[0])[0] if many else each[0]).__name__.upper()
        word = "{True,False}" if word == "BOOL" else f"{word} [{word} ...]" if many else word
        shown = {
            "metavar": word,
            "help_behavior_hint": "(required)" if first and default is tyro.MISSING_NONPROP else "",
        } | shown
    marks = [tyro.conf.arg(**shown), *([tyro.conf.Positional] if first else [])]
    marks += [tyro.conf.FlagCreatePairsOff] if default is False else []
    annotated: Any = reduce(lambda inner, mark: Annotated[inner, mark], marks, kind)
    return StructFieldSpec(name, annotated, default, text)


def _refusing(build: Callable[..., Any]) -> Callable[..., Any]:
    def built(**values: Any) -> Any:
        try:
            return build(**values)
        except ValueError as error:
            raise BadValue(str(error)) from error

    return built


def parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _either(names: Iterable[str]) -> str:
    return f"{{{','.join(names)}}}"


def _texts(documented: Any) -> dict[str, str]:
    """What stands under each field of a dataclass, or about each argument in the docstring of a function"""
    kinds = documented.__mro__[-2::-1] if inspect.isclass(documented) else (documented,)
    params = [param for kind in kinds for param in parse_from_object(kind, DocstringStyle.GOOGLE).params]
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def _default(value: Any) -> str:
    shown = {inspect.Parameter.empty: "required", None: "automatic"}.get(value, value)
    return " ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)


def _by_value(of: Mapping[str, str]) -> str:
    """Which names have each value, e.g. "digits: 0 1; file, mixture: 2\""""
    named: dict[str, list[str]] = {}
    for name, value in of.items():
        named.setdefault(value, []).append(name)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in named.items())


def _dashed(name: str) -> str:
    return name.replace("_", "-")
