"""What the library says, in a shell's words: settings as the flags of a command, solvers as the commands that run them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from meanfield.network.perceptron import Network
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.scaling import scaling
from meanfield.scaling.scaling import Scaling
from solvers.command_line.flags import DATA


def flags_of(command: type) -> dict[str, str]:
    """{name of a setting: its flag} of a command, but for names that several settings share"""
    found: dict[str, set[str]] = {}
    for name, flag in _walked(command, "--"):
        found.setdefault(name, set()).add(flag)
    return {name: next(iter(flags)) for name, flags in found.items() if len(flags) == 1}


def _walked(kind: type, prefix: str) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(kind)
    for f in fields(kind):
        parts = (*get_args(hints[f.name]), hints[f.name])
        own = next((known for known in (Network, Scaling, Dataset, Problem) if known in parts), hints[f.name])
        if own in (Scaling, Dataset):
            makers, start = (scaling.NAMED, prefix) if own is Scaling else (DATA, f"{prefix}data.")
            yield f.name, f"{prefix}{f.name}"
            yield from ((name, start + _dashed(name)) for name in _arguments(makers.values()))
        elif is_dataclass(own):
            if own is Network:
                yield f.name, f"{prefix}{f.name}"
            yield from _walked(own, prefix if own is Problem else f"{prefix}{_dashed(f.name)}.")  # type: ignore[arg-type]
        else:
            yield f.name, prefix + _dashed(f.name)


def _arguments(makers: Iterable[Any]) -> set[str]:
    return {name for make in makers for name in inspect.signature(make).parameters}


def in_shell(message: str, flags: Mapping[str, str], commands: Mapping[str, str]) -> str:
    """The message with flags for names of settings and `meanfield NAME` for names of solvers, where they are meant as such"""
    message = re.sub(r"; make yours known with meanfield\.register_\w+ before loading", "", message)
    unknown = r"(unknown (?:activation|loss): received [^;]*; known: [\w, ]*\w)"
    message = re.sub(unknown, r"\1; for one of your own give --import MODULE, which registers it", message)
    parts = re.split(r"(\w[\w.]*\([^()]*\))", message)  # every other one is a call or a value as Python writes it
    return "".join(part if i % 2 else _translated(part, flags, commands) for i, part in enumerate(parts))


def _translated(message: str, flags: Mapping[str, str], commands: Mapping[str, str]) -> str:
    message = re.sub(r"^unknown (\w+): ", lambda m: _unknown(m, flags), message)
    message = re.sub(r"^(\w+)(?= must )", lambda m: flags.get(m[1], flags.get(f"{m[1]}s", m[1])), message)
    message = re.sub(r"(?<![\w.(])(\w+)=('[^']*'|\"[^\"]*\"|[\w.+-]+)", lambda m: _given(m, flags), message)
    known = "|".join(re.escape(name) for name in flags if "_" in name)
    message = re.sub(rf"(?<![\w.('\"-])({known})(?![\w(='\"])", lambda m: flags[m[1]], message) if known else message
    solvers = "|".join(commands)
    return re.sub(rf"(?<![\w.(])({solvers})(?![\w(.])", lambda m: f"`meanfield {commands[m[1]]}`", message)


def _unknown(match: re.Match[str], flags: Mapping[str, str]) -> str:
    """The flag before a message of an unknown name, unless that is the flag's own"""
    flag = flags.get(match[1], f"--{match[1]}")
    return match[0] if flag == f"--{match[1]}" else f"{flag}: {match[0]}"


def _given(match: re.Match[str], flags: Mapping[str, str]) -> str:
    """name=value as a flag"""
    flag, value = flags.get(match[1]), match[2].strip("'\"")
    if flag is None:
        return match[0]
    if value in ("True", "False"):
        table, _, key = flag.removeprefix("--").rpartition(".")
        return "--" + f"{table}." * bool(table) + "no-" * (value == "False") + key
    return f"{flag} {value}"


def _dashed(name: str) -> str:
    return name.replace("_", "-")
