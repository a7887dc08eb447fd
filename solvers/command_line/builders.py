"""Networks that a shell names: `--network package.module:Net`, whose module is imported; and files of theirs, which hold no code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from meanfield.checking import checks
from meanfield.files import storage
from meanfield.network.architecture import Architecture
from meanfield.network.making import Build
from meanfield.network.perceptron import Network
from meanfield.network.recalled import CodeMissing
from solvers.command_line import start_kernels

NAMED = "MODULE:NAME"
TOLD = (
    "A torch module of any width in the place of a perceptron: a class or function of Python that makes it of the width, as mynets:Net, "
    "or an Architecture of one"
)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What every command that reads kept runs is asked"""

    network: str | None = field(default=None, metadata={"metavar": NAMED})
    """For runs of a torch module, whose code files do not hold: what their --network was, as mynets:Net"""


def inside(folder: Path) -> list[Path]:
    """The results of a folder, and of the folders that --vary makes in it"""
    return sorted((*folder.glob("*.nc"), *folder.glob("*=*/*.nc")))


def every(paths: Sequence[Path]) -> list[Path]:
    """Files, and those of folders; ValueError if there are none"""
    found = [one for path in paths for one in (inside(path) if path.is_dir() else [path])]
    if not found:
        raise ValueError(
            f"no .nc files in {', '.join(map(str, paths)) or 'nothing'}: give files or folders that hold some"
        )
    return found


def opened(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
    """The arrays and attributes of a file"""
    return start_kernels.opened(path) if path.suffix == ".npz" else storage.opened(path)


def loaded(path: Path, network: str | None) -> Any:
    """What is kept in a file; ValueError, with the flag to give, for a run of a module whose code was not imported"""
    if path.suffix == ".npz":
        return start_kernels.load(path)
    try:
        return storage.load(path, None if network is None else builder(network))
    except ValueError as error:
        missing = error.__cause__
        if not isinstance(missing, CodeMissing):
            raise
        flag = f"--network {missing.source or NAMED}"
        raise ValueError(f"{path} cannot be loaded: {missing.what}: give {flag}") from error


def network(which: str | None = None, **settings: Any) -> Network | Architecture:
    """A perceptron, or the module that is named; ValueError for settings that only perceptrons have"""
    if which is None:
        return Network(**settings)
    named, usual = builder(which), {f.name: f.default for f in fields(Network)}
    for name, value in settings.items():
        if value == usual[name] or (name == "weight_std" and not isinstance(named, Architecture)):
            continue
        flag = f"--network.{name.replace('_', '-')}"
        if name == "weight_std":
            raise ValueError(f"{flag} is given by the architecture: leave it out with --network {which}")
        raise ValueError(f"{flag} belongs to perceptrons: leave it out with --network {which}")
    return named if isinstance(named, Architecture) else Architecture(named, weight_std=settings.get("weight_std", 1.0))


def builder(which: str) -> Build | Architecture:
    """What "package.module:Name" names, imported as Python started in this folder would; ValueError for what cannot be found"""
    module, _, name = which.partition(":")
    if not module or not name:
        raise ValueError(f"--network must be {NAMED}, e.g. mynets:Net: received {which!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--network {which}: the module {module!r} cannot be imported ({error})") from error
    except Exception as error:  # it is code of the user's, which may fail in any way
        raise ValueError(f"--network {which}: {module!r} fails: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"--network {which}: {module!r} has no {name!r}")
        found = getattr(found, part)
    if isinstance(found, Architecture) or callable(found):
        return cast(Any, found)
    raise ValueError(f"--network {which} is {checks.shown(found)}: give {TOLD[TOLD.index('a class') :]}")
