"""What is understood before the flags of a command: `--import`, `--config`, `--vary`, `rerun`, and what files and shells make of them.

A command is a list of words. These turn a list into others, which hold nothing but a command and its own flags.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shlex
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meanfield.files import storage

Words = list[str]


class Asked(NamedTuple):
    """One command of one or of many"""

    words: Words
    named: str
    """What distinguishes it from the others, e.g. gamma0=0.1; empty if there are none"""


def imported(words: Sequence[str]) -> Words:
    """`words` without --import NAME .., whose modules are imported as Python started in this folder would"""
    named, rest = _without("--import", words, 1)
    if named and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in itertools.chain(*named):
        try:
            importlib.import_module(module.removesuffix(".py"))
        except Exception as error:  # it is code of the user's, which may fail in any way
            raise ValueError(f"--import {module}: {type(error).__name__}: {error}") from error
    if [] in named:
        raise ValueError("--import needs the name of a module, e.g. --import mypieces for mypieces.py in this folder")
    return rest


def configured(words: Sequence[str]) -> Words:
    """`words` with those of --config FILE.toml, or of the command that made the file of `rerun FILE`; flags given beside come first"""
    if words[:1] == ["rerun"]:
        if len(words) < 2 or words[1].startswith("--"):
            raise ValueError("rerun needs a file that a command of meanfield made: meanfield rerun FILE --out OTHER")
        made = command_of(Path(words[1]))
        if not any(word == "--out" or word.startswith("--out=") for word in words):
            raise ValueError(f"rerun needs --out: {words[1]} itself is made by {shown(made)}")
        return _joined(list(words[2:]), made)
    named, rest = _without("--config", words, 1)
    if not named:
        return rest
    if len(named) > 1 or not named[0]:
        raise ValueError("--config takes one .toml file")
    return _joined(rest, from_toml(Path(named[0][0])))


def varied(words: Sequence[str]) -> list[Asked]:
    """One command for each value of --vary SETTING VALUE ..; with several settings, for each combination. --out becomes their folder."""
    named, rest = _without("--vary", words)
    if not named:
        return [Asked(rest, "")]
    values: dict[str, list[str]] = {}
    for setting, *given in (one or [""] for one in named):
        flag = "--" + setting.removeprefix("--").removeprefix("scaling.").replace("_", "-")
        if flag in values or any(word == flag or word.startswith(f"{flag}=") for word in rest):
            raise ValueError(f"{flag} is given twice: leave it to --vary")
        if len(set(given)) < 2:
            raise ValueError(
                f"--vary needs a setting and two values at least, e.g. gamma0 0.1 1: received {[setting, *given]}"
            )
        values[flag] = list(dict.fromkeys(given))
    outs, rest = _without("--out", rest, 1)
    if len(outs) != 1 or not outs[0]:
        raise ValueError("with --vary, --out is the folder of the results: give it once")
    folder, ending = Path(outs[0][0]), "" if rest[:1] == ["sweep"] else ".nc"
    if folder.suffix == ".nc":
        raise ValueError(f"with --vary, --out is a folder, which has a file for each value: received {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for combination in itertools.product(*values.values()):
        given = dict(zip(values, combination, strict=True))
        name = ",".join(
            f"{flag.rpartition('.')[2].removeprefix('--')}={'-'.join(v.split())}" for flag, v in given.items()
        )
        flags = itertools.chain(*([flag, *value.split()] for flag, value in given.items()))
        found.append(Asked([*rest, *flags, "--out", str(folder / f"{name}{ending}")], name))
    return found


def command_of(path: Path) -> Words:
    """The words after `meanfield` by which a file was made; ValueError if Python made it"""
    told = storage.opened(path)[1].get("command")
    if told is None:
        raise ValueError(
            f"{path} was made in Python, not by a command of meanfield: load it, and call its solver again there"
        )
    return shlex.split(told)


def shown(words: Iterable[str]) -> str:
    """The command as a shell reads it"""
    return "meanfield " + shlex.join(words)


def from_toml(path: Path) -> Words:
    """The words of a file like to_toml's"""
    if not path.is_file():
        raise ValueError(f"--config: no such file: {path}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: no TOML ({error})") from error
    command, files = table.pop("command", None), table.pop("files", [])
    given = [str(command)] if command else []
    return [*given, *map(str, files if isinstance(files, list) else [files]), *_flags(table, "--")]


def _flags(table: dict[str, Any], prefix: str) -> Iterable[str]:
    for key, value in table.items():
        name = key.replace("_", "-")
        if isinstance(value, dict):
            own = value.pop("name", None)  # [data] name = "digits" is --data digits
            yield from () if own is None else (f"{prefix}{name}", str(own))
            yield from _flags(value, f"{prefix}{name}.")
        elif isinstance(value, bool) and prefix == "--data.":  # flags that take True or False
            yield from (f"{prefix}{name}", str(value))
        elif isinstance(value, bool):
            yield f"{prefix}{name}" if value else f"{prefix}no-{name}"
        else:
            yield f"{prefix}{name}"
            yield from map(str, value if isinstance(value, list) else [value])


def to_toml(words: Sequence[str]) -> str:
    """The command as a file for --config"""
    command, *files = itertools.takewhile(lambda word: not word.startswith("--"), words)
    tables: dict[str, dict[str, str]] = {"": {}}
    rest, flags = list(words[1 + len(files) :]), {}
    while rest:
        flag, rest = rest[0], rest[1:]
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
        flags[flag.removeprefix("--")], rest = values, rest[len(values) :]
    for name, values in flags.items():
        table, _, key = name.rpartition(".")
        if any(other.startswith(f"{name}.") for other in flags):
            table, key = name, "name"
        tables.setdefault(table, {})[key] = _value(values)
    lines = [f'command = "{command}"', *([f"files = {_value(files, True)}"] if files else [])]
    for table, entries in tables.items():
        lines += [f"\n[{table}]"] if table else []
        lines += [f"{key} = {value}" for key, value in entries.items()]
    return "\n".join(lines) + "\n"


def _value(values: Sequence[str], several: bool = False) -> str:
    if not values and not several:
        return "true"
    written = [
        value if _is_number(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values
    ]
    return f"[{', '.join(written)}]" if several or len(written) > 1 else written[0]


def _is_number(text: str) -> bool:
    try:
        return str(tomllib.loads(f"n = {text}")["n"]) == text
    except tomllib.TOMLDecodeError:
        return False


def _joined(first: Words, then: Words) -> Words:
    """`first` and those flags of `then` that it does not give; the command and files of `then` unless `first` has its own"""
    given = {word.partition("=")[0] for word in first if word.startswith("--")}
    given |= {flag.replace("--", "--no-", 1) for flag in given} | {flag.replace("--no-", "--", 1) for flag in given}
    start = list(itertools.takewhile(lambda word: not word.startswith("--"), then))
    own = bool(first) and not first[0].startswith("--")
    kept: Words = []
    keep = False
    for word in then[len(start) :]:
        keep = word.partition("=")[0] not in given if word.startswith("--") else keep
        kept += [word] if keep else []
    return [*first, *kept] if own else [*start, *kept, *first]


def _without(flag: str, words: Sequence[str], most: int | None = None) -> tuple[list[Words], Words]:
    """The values of each `flag` in `words`, at most so many, and what is left of them"""
    found: list[Words] = []
    rest: Words = []
    taking = False
    for word in words:
        if word == flag or word.startswith(f"{flag}="):
            found.append([word.partition("=")[2]] if "=" in word else [])
            taking = True
        elif taking and not word.startswith("--") and (most is None or len(found[-1]) < most):
            found[-1].append(word)
        else:
            taking = False
            rest.append(word)
    return found, rest
