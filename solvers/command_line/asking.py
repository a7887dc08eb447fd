"""What is understood before the flags of a command: `--import`, `--config`, `--vary`, `rerun`.

A command is a list of words. These turn a list into others, which hold nothing but a command and its own flags.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from solvers.command_line.builders import inside, opened
from solvers.command_line.config_files import from_toml
from solvers.command_line.taking import Commands, Taken, Words, flags_of, taken


class Asked(NamedTuple):
    """One command of one or of many"""

    words: Words
    named: str
    """What distinguishes it from the others, e.g. gamma0=0.1; empty if there are none"""
    folder: Path | None = None
    """In which all of them lie"""


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


def configured(words: Sequence[str], commands: Commands) -> Words:
    """`words` with those of --config FILE.toml, or of the command that made the file of `rerun FILE`; flags given beside come first"""
    if words[:1] == ["rerun"]:
        if len(words) < 2 or words[1].startswith("--"):
            raise ValueError("rerun needs a file that a command of meanfield made: meanfield rerun FILE --out OTHER")
        made = made_by(Path(words[1]), commands)
        if not any(word == "--out" or word.startswith("--out=") for word in words):
            raise ValueError(f"rerun needs --out: {words[1]} itself is made by {shown(command_of(Path(words[1])))}")
        return _joined(list(words[2:]), made, commands)
    named, rest = _without("--config", words, 1)
    if not named:
        return rest
    if len(named) > 1 or not named[0]:
        raise ValueError("--config takes one .toml file")
    own = bool(rest) and not rest[0].startswith("--")
    return _joined(rest, from_toml(Path(named[0][0]), commands, rest[0] if own else ""), commands)


def varied(words: Sequence[str]) -> list[Asked]:
    """One command for each value of --vary SETTING VALUE ..; with several settings, for each combination. --out becomes their folder."""
    named, rest = _without("--vary", words)
    if not named:
        return [Asked(rest, "")]
    values: dict[str, list[str]] = {}
    for setting, *given in (one or [""] for one in named):
        flag = f"--{_flag_of(setting)}"
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
    found = []
    for combination in itertools.product(*values.values()):
        given = dict(zip(values, combination, strict=True))
        name = ",".join(
            f"{flag.rpartition('.')[2].removeprefix('--')}={'-'.join(v.split())}" for flag, v in given.items()
        )
        flags = itertools.chain(*([flag, *value.split()] for flag, value in given.items()))
        found.append(Asked([*rest, *flags, "--out", str(folder / f"{name}{ending}")], name, folder))
    return found


def command_of(path: Path) -> Words:
    """The words after `meanfield` by which a file, or all files of a folder, were made; ValueError if Python made it, or several did"""
    files = inside(path) if path.is_dir() else [path]
    told = {file: opened(file)[1].get("command") for file in files}
    made = [*dict.fromkeys(told.values())]
    if not made:
        raise ValueError(f"{path} is a folder without results (.nc): give a file, or the folder of a sweep")
    if len(made) > 1:
        some = ", ".join(map(str, files[:4])) + (f", .. ({len(files)} in all)" if len(files) > 4 else "")
        raise ValueError(f"{path} holds results of {len(made)} commands: give one of its files, {some}")
    if made[0] is None:
        raise ValueError(
            f"{path} was made in Python, not by a command of meanfield: load it, and call its solver again there"
        )
    return shlex.split(made[0])


def made_by(path: Path, commands: Commands) -> Taken:
    """The same taken apart; ValueError for a command that this version does not have"""
    found = taken(command_of(path), commands)
    if found.command not in commands:
        raise ValueError(f"{path} was made by `meanfield {found.command}`, which this version does not have")
    return found


def shown(words: Iterable[str]) -> str:
    """The command as a shell reads it"""
    return "meanfield " + shlex.join(words)


def _joined(first: Words, made: Taken, commands: Commands) -> Words:
    """`first` and those flags of `made` that neither it nor its --vary gives; the files of `made` unless it has its own"""
    varying, rest = _without("--vary", first)
    own, known = taken(rest, commands, made.command), flags_of(commands[made.command])
    varied = {_flag_of(setting) for setting, *_ in varying if setting}
    kept = {name: values for name, values in made.flags.items() if name not in varied}
    whole = Taken(made.command, own.files or made.files, kept | own.flags)
    return [*whole.words(known), *itertools.chain(*(["--vary", *values] for values in varying))]


def _flag_of(setting: str) -> str:
    """What --vary names, as a flag without dashes"""
    return setting.removeprefix("--").removeprefix("scaling.").replace("_", "-")


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
