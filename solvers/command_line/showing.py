"""meanfield show: what a kept file holds, how it was made, and how to go on, in words or as JSON for scripts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meanfield.files import in_words
from meanfield.network.recalled import CodeMissing
from meanfield.solution.solution import Solution
from solvers.command_line import asking, fluctuations, kernels, limits, results, runs, studies
from solvers.command_line.builders import Reads, every, loaded, opened
from solvers.command_line.config_files import to_toml
from solvers.running.keeping import DONE

_ROOMS: tuple[Any, ...] = (limits, runs, kernels, studies, fluctuations, results)
_MAKERS: dict[str, type] = {
    command.__name__.lower(): command for room in _ROOMS for command in room.COMMANDS
}  # of files
_FEW = 64  # numbers of an array that are printed in JSON


@dataclass(frozen=True)
class Show(Reads):
    """Print what a kept file holds: settings, status, arrays, how it was made and how to go on. Runs of torch modules need no --network."""

    files: tuple[Path, ...] = field(metadata={"positional": True})
    """Runs, reports (.nc) and kernels (.npz), or folders of them"""
    json: bool = False
    """Print one JSON object for each file and line, for scripts: small arrays with their numbers, others with their shapes"""
    toml: bool = False
    """Print the command that made it as a file for --config"""


def _show(asked: Show) -> int:
    if asked.toml:
        if len(asked.files) != 1:
            raise ValueError(f"--toml writes one command: give one file, received {len(asked.files)}")
        print(to_toml(asking.made_by(asked.files[0], _MAKERS), _MAKERS), end="")
        return DONE
    for path in every(asked.files):
        arrays, attributes = opened(path)
        if asked.json:
            print(json.dumps(_as_json(path, arrays, attributes)))
        else:
            print("\n".join(_in_words(path, arrays, attributes, asked.network)))
    return DONE


def _in_words(path: Path, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any], network: str | None) -> list[str]:
    lines = [f"{path}: {told.get('kind', 'a file without a kind')}", *_indented(_itself(path, told, network))]
    versions = json.loads(told.get("versions", "{}"))
    by = {"meanfield": told.get("meanfield_version", "?"), "commit": told.get("git_commit", "")[:12]}
    by |= {name: versions.get(name, "?") for name in ("torch", "python")} | {"threads": told.get("threads", "?")}
    made = ", ".join(f"{name} {value}" for name, value in by.items() if value)
    lines.append(f"  made     {told.get('created', '?')}, by {made}")
    command = told.get("command")
    lines.append(f"  command  {asking.shown(shlex.split(command)) if command else 'none: it was made in Python'}")
    settings = json.loads(told.get("settings", "{}"))
    lines += [f"  {part:8} {in_words.line(value, 80)}" for part, value in in_words.by_part(settings).items()]
    held = [
        f"{name} {tuple(a.shape)}" if a.ndim else f"{name} = {_number(a)}"
        for name, a in arrays.items()
        if not name.startswith("size_")
    ]
    return [*lines, *_wrapped("  holds    ", held)]


def _itself(path: Path, told: Mapping[str, Any], network: str | None) -> str:
    """The result in its own words; its title where that needs code which is not at hand"""
    try:
        result = loaded(path, network)
    except ValueError as error:
        if network is not None:
            raise
        code = isinstance(error.__cause__, CodeMissing)
        why = "give --network for more: its network is code, which files do not hold" if code else f"no more: {error}"
        return f"{told.get('title', '')}\n({why})"
    if not isinstance(result, Solution):
        return str(result)
    more = [str(result.stats[name]) for name in ("reason", "warning") if result.stats.get(name)]
    left = result.problem.training.steps - result.steps
    go_on = [f"go on with: meanfield resume {path}"] if left and result.state else []
    return "\n".join([str(result), *more, *go_on])


def _as_json(path: Path, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value.item() if isinstance(value, np.generic) else value for name, value in told.items()}
    given = {
        name: value for name, value in given.items() if isinstance(value, str | int | float)
    }  # HDF5 has some of its own
    parsed = {name: json.loads(str(given[name])) for name in ("settings", "versions") if name in given}
    shown = {
        name: {"shape": list(a.shape)} | ({"values": _plain(a.tolist())} if a.size <= _FEW else {})
        for name, a in arrays.items()
    }
    return {"file": str(path)} | given | parsed | {"arrays": shown}


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have as null"""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(array: np.ndarray) -> str:
    return f"{array.item():.5g}" if array.dtype.kind == "f" else str(array.item())


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _wrapped(start: str, parts: list[str], width: int = 120) -> list[str]:
    lines = [start]
    for part in parts:
        if len(lines[-1]) + len(part) > width and lines[-1].strip():
            lines.append(" " * len(start))
        lines[-1] += part + ("" if part is parts[-1] else ", ")
    return lines


COMMANDS: dict[type, Callable[[Any], int]] = {Show: _show}
