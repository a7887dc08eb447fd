"""Objects in a few lines: as text without the numbers of their arrays, and as a small table for notebooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from html import escape
from typing import Any

import numpy as np
from torch import Tensor

_FEW = 4  # entries that are told one by one
_LONG = 160  # letters of one of them
_STYLE = "text-align:left;vertical-align:top;padding:2px 8px"


def brief(self: Any) -> str:
    """ "Class(name=value, ..)" of a dataclass: its settings but those that are as if left out, arrays by their shapes. A `__repr__`."""
    told = ", ".join(f"{name}={text}" for name, text in parts(self).items())
    return f"{type(self).__name__}({told})"


def in_full(thing: Any) -> str:
    """A dataclass of settings with all of them, as text that tells it from any other: for what a file compares"""
    told = ", ".join(f"{f.name}={getattr(thing, f.name)!r}" for f in fields(thing) if f.repr)
    return f"{type(thing).__qualname__}({told})"


def parts(thing: Any) -> dict[str, str]:
    """What `brief` tells, by name"""
    asked = [f for f in fields(thing) if f.init]
    needed = any(f.default is MISSING and f.default_factory is MISSING for f in asked)
    usual = {f.name: f.default for f in asked} if needed else vars(type(thing)())
    values = {f.name: getattr(thing, f.name) for f in fields(thing) if f.repr}
    always = getattr(thing, "_always_told", ())
    return {
        name: of_value(value)
        for name, value in values.items()
        if name in always or not _same(value, usual.get(name, MISSING))
    }


def of_value(value: Any) -> str:
    """A value in at most a line"""
    if isinstance(value, Tensor | np.ndarray):
        return _of_array(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return _joined(
            [f"{key}: {of_value(one)}" if len(value) <= _FEW else str(key) for key, one in value.items()], "{}"
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _joined([_within(one) for one in value[: _FEW + 1]], "()", len(value))
    text = getattr(value, "__qualname__", None) or repr(value)  # of functions and classes their names
    return text if len(text) <= _LONG else f"{text[: _LONG - 2]}.."


def html(self: Any) -> str:
    """A table of what `brief` tells, or of an object whose text is a table, that text. A `_repr_html_`; nothing in it is taken as tags."""
    name, text = escape(type(self).__name__), str(self)
    if "\n" in text:
        return f"<div><b>{name}</b><pre style='line-height:1.25;overflow-x:auto'>{escape(text)}</pre></div>"
    return as_table(type(self).__name__, parts(self))


def as_table(title: str, rows: Mapping[str, str]) -> str:
    """Names and texts as a table, all letters as they are"""
    lines = (
        f"<tr><th style='{_STYLE}'>{escape(name)}</th><td style='{_STYLE}'>{escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    return f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{''.join(lines)}</table>"


def _within(value: Any) -> str:
    """Of several"""
    text = of_value(value)
    return text if len(text) <= _LONG // 4 or not is_dataclass(value) else f"{type(value).__name__}(..)"


def _of_array(value: Tensor | np.ndarray) -> str:
    shape = tuple(value.shape)
    if len(shape) <= 1 and math.prod(shape) <= _FEW:
        return _joined([f"{float(one):.4g}" for one in np.atleast_1d(np.asarray(value))], "[]")
    return f"{type(value).__name__} {' x '.join(map(str, shape))}"


def _joined(texts: Sequence[str], ends: str, count: int | None = None) -> str:
    count = len(texts) if count is None else count
    kept = texts if count <= _FEW else [*texts[: _FEW - 1], f".. {count} in all"]
    return ends[0] + ", ".join(kept) + ("," if ends == "()" and count == 1 else "") + ends[1]


def _same(value: Any, usual: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return False
    try:
        return bool(value == usual)
    except (RuntimeError, TypeError, ValueError):  # of arrays
        return False
