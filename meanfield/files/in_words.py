"""Settings of a result, as they stand in its file, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PARTS = ("network", "scaling", "training", "loss", "solver")


def by_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of a run, without its data; nothing of other results"""
    asked = dict(settings.get("problem", {})) | {"solver": settings.get("solver")}
    asked["network"] = _briefly(asked.get("network"))
    return {part: asked[part] for part in _PARTS if says_something(asked.get(part))}


def _briefly(network: Any) -> Any:
    """What is told of a module: its name and where its code is, not each parameter"""
    if not isinstance(network, Mapping) or not isinstance(network.get("module"), Mapping):
        return network
    module = dict(network["module"])
    told = {"module": module.pop("name", None), "code": module.pop("source", None)}
    told |= {"digest": str(module.pop("digest", None) or "")[:12], "parameters": len(module.pop("parameters", ()))}
    return told | module | {key: value for key, value in network.items() if key != "module"}


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
