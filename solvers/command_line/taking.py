"""A command taken apart: its name, its files and its flags with their words; and what each flag takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from meanfield.network.perceptron import Network
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.scaling import scaling
from meanfield.scaling.scaling import Scaling
from solvers.command_line import flags

Words = list[str]
Commands = Mapping[str, type]


class Takes(NamedTuple):
    """What one flag takes"""

    kinds: tuple[type, ...]
    """Of one value: of bool, int, float and str those that will do"""
    many: bool = False
    """Whether it takes several values"""
    pair: bool = False
    """Whether it is said without a value, --balanced or --no-balanced"""
    usual: Any = None
    """The library's default"""


@dataclass
class Taken:
    """A command without the words of --vary, --import and --config"""

    command: str
    files: Words = field(default_factory=list)
    flags: dict[str, Words] = field(default_factory=dict)
    """By names as flags have them, without their dashes; of pairs the word True or False"""

    def words(self, known: Mapping[str, Takes]) -> Words:
        """As a shell gives it"""
        found = [self.command, *self.files]
        for name, values in self.flags.items():
            if name not in known or not known[name].pair:
                found += [f"--{name}", *values]
            elif values == ["True"]:
                found.append(f"--{name}")
            elif known[name].usual is not False:  # of flags that are off as it is there is no --no-
                table, dot, key = name.rpartition(".")
                found.append(f"--{table}{dot}no-{key}")
        return found


def flags_of(command: type) -> dict[str, Takes]:
    """{flag: what it takes} of all flags of a command"""
    return dict(_walked(command, ""))


def required(command: type) -> list[str]:
    """Flags without which it does nothing"""
    return [name for name, takes in flags_of(command).items() if takes.usual is flags.MISSING]


def files_of(command: type) -> str | None:
    """What it calls its files"""
    return next((f.name for f in fields(command) if f.metadata.get("positional")), None)


def _walked(kind: type, prefix: str, offered: Sequence[str] = ()) -> Iterator[tuple[str, Takes]]:
    """offered: scalings of the command, all if there are none"""
    hints = get_type_hints(kind)
    for f in fields(kind):
        hint, name = hints[f.name], prefix + f.name.replace("_", "-")
        own = next((one for one in (Network, Scaling, Dataset, Problem) if one in (hint, *get_args(hint))), hint)
        if own in (Scaling, Dataset):
            yield name, Takes((str,))
            named = {name: scaling.NAMED[name] for name in offered or scaling.NAMED} if own is Scaling else flags.DATA
            makers: Iterable[Callable[..., Any]] = named.values()
            start = prefix if own is Scaling else f"{prefix}data."
            for key, argument in reduce(or_, map(get_type_hints, makers)).items():
                if key != "return":
                    yield start + key.replace("_", "-"), _takes(flags.SIMPLER.get(key, argument))
        elif is_dataclass(own):
            if own is Network:
                yield name, Takes((str,))
            asked = f.metadata.get("usual", {}).get("scaling", offered)
            yield from _walked(own, prefix if own is Problem else f"{name}.", asked)  # type: ignore[arg-type]
        elif f.name not in flags.hidden(kind) and not f.metadata.get("positional"):
            takes = _takes(hint)
            yield name, takes._replace(pair=takes.kinds == (bool,), usual=f.default)


def _takes(hint: Any) -> Takes:
    parts = [part for part in flags.parts(hint) if part is not type(None)]
    several = [part for part in parts if isinstance(origin := get_origin(part), type) and issubclass(origin, Sequence)]
    inner = [flags.parts(get_args(part)[0]) for part in several] or [tuple(parts)]
    plain = tuple(dict.fromkeys(one if one in (bool, int, float) else str for one in inner[0]))
    return Takes(plain, bool(several))


def files_first(words: Sequence[str], commands: Commands) -> Words:
    """A command that takes files with them before its flags, so that `--steps 3 run.nc` is one step and one file"""
    if not words or words[0] not in commands or files_of(commands[words[0]]) is None:
        return list(words)
    return taken(words, commands).words(flags_of(commands[words[0]]))


def _is_number(word: str) -> bool:
    try:
        return bool(float(word) or True)
    except ValueError:
        return False


def taken(words: Sequence[str], commands: Commands, usual: str = "") -> Taken:
    """A command of a shell; `usual` where it begins with a flag"""
    rest = list(words)
    found = Taken(rest.pop(0) if rest and not rest[0].startswith("--") else usual)
    known = flags_of(commands[found.command]) if found.command in commands else {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            found.files.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        table, dot, key = name.rpartition(".")
        off = f"{table}{dot}{key.removeprefix('no-')}"
        if name not in known and off in known and known[off].pair:
            found.flags[off] = ["False"]
        elif name in known and known[name].pair:
            found.flags[name] = [value or "True"]
        else:
            takes = known.get(name, Takes((str,), many=True))
            count = 0 if equals else len(rest) if takes.many else 1
            values = [value] if equals else []
            numbers = takes.many and not {bool, str} & {*takes.kinds}
            while (
                rest and len(values) < count and not rest[0].startswith("--") and (not numbers or _is_number(rest[0]))
            ):
                values.append(rest.pop(0))
            found.flags[name] = values
    return found
