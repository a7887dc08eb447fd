"""Settings document themselves: a text stands under each field, and the help of a flag is the text of its field."""

import ast
import inspect
import io
import os
import re
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import get_type_hints
from unittest.mock import patch

import pytest

import meanfield as mf
import solvers
from meanfield.comparison.predicted import Fluctuation
from meanfield.comparison.report import Deviation
from meanfield.comparison.scaling_reports import PowerLaw
from meanfield.comparison.statistics import Exponent
from meanfield.network import activations
from meanfield.scaling import scaling
from solvers import FiniteWidth
from solvers.command_line import builders, flags
from solvers.command_line import main as cli

PROBLEM = {
    "": mf.Problem,
    "network.": mf.Network,
    "training.": mf.Training,
}
NO_FLAG = {"f0", "kernel", "progress", "raise_on_failure"}
SHARED = {"seed", "dtype", "device", "snapshots", "rtol", "evaluations", "progress", "raise_on_failure"}


PUBLIC = {getattr(package, name) for package in (mf, solvers) for name in package.__all__} | {
    Deviation,
    Fluctuation,
    PowerLaw,
    Exponent,
}


def texts(kind):
    """{field: the string under it}, read from the source of the class and its bases; "" where there is none"""
    found = {}
    for owner in (owner for owner in kind.__mro__[::-1] if is_dataclass(owner)):
        tree = ast.parse(inspect.getsource(inspect.getmodule(owner)))
        (node,) = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner.__name__)
        for field, after in pairwise([*node.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                text = " ".join(str(after.value.value).split()) if told else ""
                found[field.target.id] = text or found.get(field.target.id, "")
    return {f.name: found[f.name] for f in fields(kind)}


def flagged(kind, prefix="", without=()):
    """{flag: text} of the fields that are flags"""
    named = {name: text for name, text in texts(kind).items() if name not in NO_FLAG | set(without)}
    return {f"--{prefix}{name.replace('_', '-')}": text for name, text in named.items()}


def expected(command):
    """{flag: texts that its help must hold} of a command"""
    found, hints = {}, get_type_hints(command)
    offered = {f.name: f.metadata.get("usual", {}).get("scaling", scaling.NAMED) for f in fields(command)}
    positional = {f.name for f in fields(command) if f.metadata.get("positional")}
    told = flagged(command, without=("problem", "solver", *positional))
    if "problem" in hints:
        for prefix, kind in PROBLEM.items():
            told |= flagged(kind, prefix, ("data", "network", "scaling", "training") if kind is mf.Problem else ())
        asked = texts(mf.Problem)
        told |= {"--data": asked["data"], "--scaling": asked["scaling"], "--network": builders.TOLD}
        for prefix, makers in (("data.", flags.DATA), ("", scaling.NAMED)):
            for make in [make for name, make in makers.items() if prefix or name in offered["problem"]]:
                for name in inspect.signature(make).parameters:
                    found.setdefault(f"--{prefix}{name.replace('_', '-')}", set()).update(argued(make, name))
    if "solver" in hints:
        told |= flagged(hints["solver"], "solver.", ("width", "seed") if hints["solver"] is FiniteWidth else ())
    return {flag: {text} for flag, text in told.items()} | found


def argued(make, name):
    """What the docstring of a function says of an argument; nothing, or one line below "Args:\""""
    below = inspect.getdoc(make).partition("\nArgs:\n")[2].splitlines()
    return [line.strip().removeprefix(f"{name}: ") for line in below if line.strip().startswith(f"{name}: ")]


@cache
def helped(*command):
    with patch.dict(os.environ, COLUMNS="100"), redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    return out.getvalue()


def joined(text):
    """Without blanks, since the help is wrapped"""
    return "".join(text.split())


def shown(text):
    """{flag: what its help shows, joined} of a printed help"""
    found, flag = {}, None
    for line in (line.strip("│| ") for line in text.splitlines()):
        if line.startswith(("╭", "╰", "+")):
            flag = None
        if names := re.match(r"(--[a-z][a-z0-9.-]*)", line):
            flag = names[1]
        if flag:
            found[flag] = found.get(flag, "") + joined(line)
    return found


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.__name__.lower())
def test_the_help_of_a_flag_is_the_text_of_its_field(command):
    out = helped(command.__name__.lower())
    flags, wanted = shown(out), expected(command)
    assert set(flags) == set(wanted)
    for flag, told in wanted.items():
        assert told, f"{flag} has no text"
        assert all(text and joined(text) in flags[flag] for text in told), (flag, told, flags[flag])
    given = [texts(command)[f.name] for f in fields(command) if f.metadata.get("positional")]
    assert all(joined(text) in joined(out.replace("│", "").replace("|", "")) for text in (command.__doc__, *given))
    assert "{None}" not in out


def test_help_speaks_a_shell_s_words():
    """Names of settings stand there as flags, with dashes."""
    known = [kind for command in cli.COMMANDS for kind in (command, *get_type_hints(command).values())]
    names = {f.name for kind in (*known, mf.Network, mf.Training) if is_dataclass(kind) for f in fields(kind)}
    underscored = {name for name in names if "_" in name}
    assert "learning_rate" in underscored
    for command in cli.COMMANDS:
        out = helped(command.__name__.lower())
        assert not underscored & set(re.findall(r"[a-z_0-9]+", out)), command


def test_the_top_names_every_command():
    top = helped()
    assert all(f"• {command.__name__.lower()} " in top for command in cli.COMMANDS)
    flow = helped("flow")
    assert f"--network.activation {{{','.join(activations.names())}}}" in flow


def test_every_field_of_every_public_dataclass_has_a_text():
    kinds = [kind for kind in PUBLIC if isinstance(kind, type) and is_dataclass(kind)]
    assert len(kinds) > 25
    missing = [
        (kind.__name__, name) for kind in (*kinds, *cli.COMMANDS) for name, text in texts(kind).items() if not text
    ]
    assert not missing


def test_shared_settings_have_short_texts():
    solving = {get_type_hints(command)["solver"] for command in cli.COMMANDS if "solver" in get_type_hints(command)}
    assert len(solving) == 7
    for kind in solving:
        assert all(len(text) <= 134 for name, text in texts(kind).items() if name in SHARED), kind  # one line
