"""`checked`: public functions and classes, whose arguments must fit their type hints before any work, and whose numbers are their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.own_numerics import own_numerics

T = TypeVar("T", bound=Callable[..., Any])

_WORDS: dict[Any, tuple[str, str]] = {  # one, many
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    Tensor: ("an array of numbers", "arrays of numbers"),
    Callable: ("a function", "functions"),
    NoneType: ("None", "None"),
    Any: ("anything", "anything"),
}
_EXAMPLES = {
    "Dataset": "mf.digits()",
    "Network": "mf.Network(depth=1)",
    "Problem": "mf.Problem(mf.digits())",
    "Scaling": "mf.ntk()",
    "Solution": "what a solver returned",
    "Training": "mf.Training(steps=100)",
}


def checked(made: T) -> T:
    """A function, or a class with its public methods, that refuses arguments which its type hints exclude: a ValueError that names them.

    What stands for the right thing becomes it: whole floats, numbers of numpy and torch, arrays where tensors are meant. All of it, and
    the properties of a class, run in `own_numerics`.
    """
    if isinstance(made, type):
        for name, member in [*vars(made).items()]:
            if name in ("__init__", "__call__") or not name.startswith("_"):
                if inspect.isfunction(member):
                    setattr(made, name, checked(member))
                elif isinstance(member, staticmethod):
                    setattr(made, name, staticmethod(checked(member.__func__)))
                elif isinstance(member, property):
                    setattr(made, name, property(own_numerics()(cast(Any, member.fget))))
                elif isinstance(member, cached_property):
                    member.func = own_numerics()(member.func)
        return cast(T, made)
    signature = inspect.signature(made)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = {name for name, parameter in signature.parameters.items() if parameter.kind not in several}

    @wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound, hints = signature.bind(*args, **kwargs), _hints(made)
        except TypeError as error:  # Python's own names the argument alone
            takes = ", ".join(name for name in signature.parameters if name != "self")
            raise TypeError(f"{_called(made)}: {error}; it takes {takes or 'nothing'}") from None
        with own_numerics():
            for name in single & bound.arguments.keys() & hints.keys():
                bound.arguments[name] = fitted(name, bound.arguments[name], hints[name])
            return made(*bound.args, **bound.kwargs)

    return cast(T, call)


def _called(made: Callable[..., Any]) -> str:
    """As a caller writes it: a class for its __init__"""
    return f"{made.__qualname__.removesuffix('.__init__').removesuffix('.__call__')}()"


@cache
def _hints(made: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(made)


def fitted(name: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` says; ValueError that names it otherwise. Which words a Literal admits is left to whoever looks them up."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, UnionType):
        return _one_of(name, value, inner)
    if origin is Literal:
        return fitted(name, value, type(inner[0]))
    if hint is int:
        return checks.integer(name, value)
    if hint is float:
        return checks.number(name, value)
    if hint is Tensor:
        return checks.array(name, value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else _refuse(name, value, hint)
        fit = {k: fitted(f"{name}[{k!r}]", v, inner[1]) for k, v in pairs}
        return value if all(fit[k] is v for k, v in pairs) else fit
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return _several(name, value, hint)
    # torch's own names of dtypes and devices are as good as texts
    kinds = {str: (str, torch.dtype, torch.device), bool: (bool, np.bool_)}.get(hint, origin or hint)
    _must(isinstance(value, kinds), name, value, hint)
    return bool(value) if hint is bool else value


def _one_of(name: str, value: Any, hints: tuple[Any, ...]) -> Any:
    """As the first of several hints that takes it; arrays come last, since a list of numbers is one too."""
    if value is None and NoneType in hints:
        return None
    some = sorted((hint for hint in hints if hint is not NoneType), key=lambda hint: hint is Tensor)
    if isinstance(value, Tensor) and Tensor in some:
        return value
    errors = []
    for hint in some:
        try:
            return fitted(name, value, hint)
        except ValueError as error:
            errors.append(error)
    lists = [error for error, hint in zip(errors, some, strict=True) if _is_several(value) and get_origin(hint)]
    if len(some) == 1 or lists:
        raise (lists or errors)[-1]
    _refuse(name, value, *some)


def _several(name: str, value: Any, hint: Any) -> tuple[Any, ...]:
    inner, origin = get_args(hint), get_origin(hint)
    _must(_is_several(value), name, value, hint)
    value = tuple(value)
    kinds = inner if origin is tuple and inner[-1] is not ... else inner[:1] * len(value)
    _must(len(kinds) == len(value), name, value, hint)
    return tuple(fitted(f"{name}[{i}]", v, kind) for i, (v, kind) in enumerate(zip(value, kinds, strict=True)))


def _is_several(value: Any) -> bool:
    return (
        isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) and getattr(value, "ndim", 1) > 0
    )


def _must(right: bool, name: str, value: Any, hint: Any) -> None:
    if not right:
        _refuse(name, value, hint)


def _refuse(name: str, value: Any, *hints: Any) -> NoReturn:
    known = [_EXAMPLES[hint.__name__] for hint in hints if getattr(hint, "__name__", "") in _EXAMPLES]
    example = f"; give e.g. {known[0]}" if known else ""
    if isinstance(value, type) and any(isinstance(hint, type) and issubclass(value, hint) for hint in hints):
        example = f"; give one of it, {value.__name__}(..)"
    example = getattr(value, "instead", example)  # what a value of another kind is for, and what serves here
    raise ValueError(f"{name} must be {' or '.join(map(_one, hints))}: received {checks.shown(value)}{example}")


def _one(hint: Any, many: bool = False) -> str:
    """What a hint asks for, in words"""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS or origin in _WORDS:
        return _WORDS[hint if hint in _WORDS else origin][many]
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(_one(kind, many) for kind in inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dictionary of {_one(inner[1], True)}"
    if origin is tuple and inner[-1] is not ...:
        return f"({', '.join(map(_one, inner))})"
    if origin:
        return f"a sequence of {_one(inner[0], True)}"
    return f"{hint.__name__}s" if many else f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
