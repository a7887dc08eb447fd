"""Where the code of a builder is, and a hash by which a change of it is seen; nothing is imported or run."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any

from torch import nn

from meanfield.checking.short import in_full
from meanfield.network.making import Build


def place(build: Build) -> str:
    """ "package.module:Name"; empty for code that has no such place"""
    module, name = getattr(build, "__module__", None), getattr(build, "__qualname__", "<")
    return f"{module}:{name}" if module and "<" not in name else ""


def digest(build: Build, net: nn.Module) -> str:
    """sha256 of the source of a builder, of what it encloses and has as defaults, and of the classes of its modules, torch's own apart;
    empty for a builder whose source cannot be read. Functions that these call by name are not looked at.
    """
    text = _source(build, set())
    if text is None:
        return ""
    kinds = {kind for module in net.modules() for kind in type(module).__mro__ if not _is_known(kind)}
    texts = sorted(_source(kind, set()) or kind.__qualname__ for kind in kinds)
    return hashlib.sha256("\n".join([text, *texts]).encode()).hexdigest()


def _is_known(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "typing", "collections")


def _source(code: Any, seen: set[int]) -> str | None:
    """Of a function, class or partial with what belongs to it; None if it cannot be read"""
    if id(code) in seen:
        return ""
    seen.add(id(code))
    if isinstance(code, partial):
        inner = _source(code.func, seen)
        return None if inner is None else inner + _shown([code.args, code.keywords], seen)
    try:
        text = inspect.getsource(code)
    except (OSError, TypeError):
        return None
    cells = [cell.cell_contents for cell in getattr(code, "__closure__", None) or ()]
    own = [*cells, getattr(code, "__defaults__", None), getattr(code, "__kwdefaults__", None)]
    return text + "".join(_shown(value, seen) for value in own if value is not None)


def _shown(value: Any, seen: set[int]) -> str:
    """A value as text, without the addresses of objects"""
    if isinstance(value, (list, tuple)):
        return "".join(_shown(v, seen) for v in value)
    if isinstance(value, Mapping):
        return "".join(f"{k!r}{_shown(v, seen)}" for k, v in value.items())
    text = (
        _source(value, seen)
        if inspect.isfunction(value) or inspect.isclass(value) or isinstance(value, partial)
        else None
    )
    if text is None:
        text = in_full(value) if is_dataclass(value) and not isinstance(value, type) else repr(value)
        text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return text
