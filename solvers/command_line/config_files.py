"""Commands as .toml files: written by `meanfield show FILE --toml`, read by --config, each value as what its flag takes."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from meanfield.checking import checks
from solvers.command_line.taking import Commands, Taken, Takes, Words, files_of, flags_of

_TOLD = {bool: "true or false", int: "a whole number", float: "a number", str: 'a text in quotes, "..."'}
_SEVERAL = {bool: "of true or false", int: "of whole numbers", float: "of numbers", str: 'of texts in quotes, "..."'}
_LIKE = {bool: "true", int: "8", float: "0.5", str: '"name"'}


def from_toml(path: Path, commands: Commands, command: str = "") -> Taken:
    """What a file like to_toml's asks; ValueError that names the key. command: as the shell gives it, which comes first."""
    if not path.is_file():
        raise ValueError(f"--config: no such file: {path}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: no TOML ({error})") from error
    named, files = table.pop("command", None), table.pop("files", [])
    if not command and named is None:
        raise ValueError(
            f'--config {path}: no command: write e.g. command = "flow" at its top, or give it before --config; known: '
            f"{', '.join(commands)}"
        )
    command = command or named
    if not isinstance(command, str) or command not in commands:
        near = get_close_matches(str(command), commands, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"--config {path}: command: unknown command: received {command!r}{meant} known: {', '.join(commands)}"
        )
    told = f"--config {path}"
    given = _values(f"{told}: files", files, Takes((str,), many=True))
    if given and files_of(commands[command]) is None:
        raise ValueError(f"{told}: files: {command} takes no files: received {checks.shown(files)}; leave them out")
    return Taken(command, given, dict(_flags(table, flags_of(commands[command]), told, command)))


def _flags(table: Mapping[str, Any], known: Mapping[str, Takes], told: str, command: str, start: str = "") -> Iterator:
    for key, value in table.items():
        name = start + key.replace("_", "-")
        inside = any(flag.startswith(f"{name}.") for flag in known)
        if isinstance(value, dict) and inside:
            own = {k: v for k, v in value.items() if k != "name"}
            if "name" in value and name in known:  # [data] name = "digits" is --data digits
                yield name, _values(f"{told}: {name}.name", value["name"], known[name])
            elif "name" in value:
                own = value
            yield from _flags(own, known, told, command, f"{name}.")
        elif name not in known and inside:
            raise ValueError(f"{told}: {name} is a table, [{name}]: received {checks.shown(value)}")
        elif name not in known:
            raise ValueError(f"{told}: {_unknown(name, known, command)}")
        else:
            yield name, _values(f"{told}: {name}", value, known[name])


def _unknown(name: str, known: Mapping[str, Takes], command: str) -> str:
    """Of a key that no flag has, with those that stand where it does"""
    table, _, key = name.rpartition(".")
    here = [flag.rpartition(".")[2] for flag in known if flag.rpartition(".")[0] == table]
    tables = {flag.partition(".")[0] for flag in known if "." in flag}
    near = get_close_matches(key, here, 1)
    elsewhere = [flag for flag in known if flag.rpartition(".")[2] == key]
    meant = [f"did you mean {near[0]}?"] if near else []
    meant += [f"{key} stands in [{flag.rpartition('.')[0]}]" for flag in elsewhere if "." in flag]
    meant += [f"{key} stands above all tables" for flag in elsewhere if "." not in flag]
    where = f"[{table}]" if table else "the top"
    have = f"{where} has {', '.join(here)}" if here else f"{command} has the tables {', '.join(sorted(tables))}"
    return f"{name} is no setting of {command}: " + "; ".join([*meant, have])


def _values(told: str, value: Any, takes: Takes) -> Words:
    """As words; ValueError for what is not as the flag takes it"""
    several = value if isinstance(value, list) else [value]
    if len(several) != 1 and not takes.many:
        _refuse(told, value, takes)
    return [_word(told, one, value, takes) for one in several]


def _word(told: str, one: Any, value: Any, takes: Takes) -> str:
    kinds = takes.kinds
    if isinstance(one, bool):
        fits = bool in kinds
    elif isinstance(one, int | float):
        whole = isinstance(one, int) or (math.isfinite(one) and one == int(one))
        if int in kinds and whole:
            return str(int(one))
        fits = float in kinds or str in kinds
    else:
        fits = isinstance(one, str) and str in kinds
    if not fits:
        _refuse(told, value, takes)
    return str(one)


def _refuse(told: str, value: Any, takes: Takes) -> None:
    kind = takes.kinds[0]
    right = f"a list {_SEVERAL[kind]}" if takes.many else " or ".join(_TOLD[one] for one in takes.kinds)
    like = f"[{_LIKE[kind]}, ..]" if takes.many else _LIKE[kind]
    name = told.rpartition(": ")[2].rpartition(".")[2]
    raise ValueError(f"{told} must be {right}: received {_shown(value)}; write e.g. {name} = {like}")


def _shown(value: Any) -> str:
    """As TOML has it"""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value[:4]))}{', ..' * (len(value) > 4)}]"
    return str(value).lower() if isinstance(value, bool) else checks.shown(value)


def to_toml(asked: Taken, commands: Commands) -> str:
    """The command as a file for --config, which reads it back as the same"""
    known = flags_of(commands[asked.command]) if asked.command in commands else {}
    tables: dict[str, dict[str, str]] = {"": {}}
    for name, values in asked.flags.items():
        table, _, key = name.rpartition(".")
        if any(other.startswith(f"{name}.") for other in asked.flags):
            table, key = name, "name"
        tables.setdefault(table, {})[key] = _written(values, known.get(name, Takes((str,), len(values) > 1)))
    lines = [f"command = {json.dumps(asked.command)}"]
    lines += [f"files = [{', '.join(map(json.dumps, asked.files))}]"] if asked.files else []
    for table, entries in tables.items():
        lines += [f"\n[{table}]"] if table else []
        lines += [f"{key} = {value}" for key, value in entries.items()]
    return "\n".join(lines) + "\n"


def _written(values: Sequence[str], takes: Takes) -> str:
    found = [_as(value, takes.kinds) for value in values]
    return f"[{', '.join(found)}]" if takes.many or len(found) != 1 else found[0]


def _as(word: str, kinds: Sequence[type]) -> str:
    """One word as the first kind that reads it"""
    if bool in kinds and word in ("True", "False"):
        return word.lower()
    for kind in (kind for kind in kinds if kind in (int, float)):
        try:
            return repr(kind(word))
        except ValueError:
            continue
    return json.dumps(word, ensure_ascii=False)
