"""Settings of a result, as they stand in its file, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PARTS = ("network", "scaling", "training", "loss", "solver")


def by_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of a run, without its data; nothing of other results"""
    asked = dict(settings.get("problem", {})) | {"solver": settings.get("solver")}
    return {part: asked[part] for part in _PARTS if says_something(asked.get(part))}


def says_something(value: Any) -> bool:
    return value not in (None, {}, [], ())


def line(value: Any, most: int = 160) -> str:
    """A value, or each setting that says something with its value, in at most so many letters each"""
    if isinstance(value, Mapping):
        shown = ((key, line(v, most), isinstance(v, Mapping)) for key, v in value.items() if says_something(v))
        return " ".join(f"{key}=({text})" if nested else f"{key}={text}" for key, text, nested in shown)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = json.dumps(value) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= most else f"{text[: most - 2]}.."
