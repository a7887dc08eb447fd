"""What a file keeps of an architecture, and the architecture found again: nothing that a file names is imported or run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from meanfield.checking.warning import warn
from meanfield.network.architecture import Architecture, architecture, made
from meanfield.network.making import Build

_SETTINGS = ("name", "weight_std", "rate", "frozen", "averaged", "decay", "initial_law")


class CodeMissing(ValueError):
    """A network whose code this process does not have"""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        """Where it was, "package.module:Name"; empty where no import finds it"""
        self.what = f"its network {name!r} is code, which files do not hold"
        remedy = "import the module that has it first, or give the class or function, mf.load(path, network=Net)"
        super().__init__(f"{self.what}: {remedy}")


def told(network: Architecture) -> dict[str, Any]:
    """The builder's import path, the hash of its source, the table of parameters and the settings; `recalled` is the inverse."""
    found = network.description
    code = {"source": found.source, "digest": found.digest, "parameters": found.table(), "record": network.records}
    return code | settings(network)


def settings(network: Architecture) -> dict[str, Any]:
    """All that an Architecture is given beside its builder and what it records, but for what is as usual in newer fields"""
    usual = {"averaged": (), "decay": (), "initial_law": "normal"}
    found = {key: getattr(network, key) for key in _SETTINGS}
    return {key: value for key, value in found.items() if key not in usual or value != usual[key]}


def recalled(kept: Mapping[str, Any], given: Build | Architecture | None = None) -> Architecture:
    """The architecture of which that is told: of the builder that is given, else one that this process has made or imported.

    ValueError where there is none, and for one with other parameters. UserWarning for one whose code has changed, which is then not equal
    to that of today's code.
    """
    if given is None:
        same = (
            network for network in made() if kept["digest"] and _but_for_place(told(network)) == _but_for_place(kept)
        )
        if (network := next(same, None)) is not None:
            return network
        given = _imported(kept["source"])
        if given is None:
            raise CodeMissing(kept["source"] or kept["name"], kept["source"])
    own = given if isinstance(given, Architecture) else architecture(given)
    asked, found = [list(map(str, row)) for row in kept["parameters"]], own.description.table()
    if asked != found:
        row, other = next((a, b) for a, b in zip([*asked, None], [*found, None], strict=False) if a != b)
        raise ValueError(
            f"the network {own.name!r} has other parameters than the one that was saved: received {_row(other)} where the file has "
            f"{_row(row)}"
        )
    if kept["digest"] and own.description.digest != kept["digest"]:
        warn(
            f"the code of the network {own.name!r} is not what it was when the result was saved: numbers are those of the old code",
            UserWarning,
        )
    if not isinstance(given, Architecture):
        own = Architecture(given, **{key: kept[key] for key in _SETTINGS if key in kept})
        object.__setattr__(own, "records", tuple(kept.get("record", ())))  # functions that record are not kept
    if own.description.digest != kept["digest"]:
        own = replace(own)  # of its own, since it is that of the file
        object.__setattr__(own, "records", tuple(kept.get("record", ())))
        object.__setattr__(own, "description", replace(own.description, digest=kept["digest"]))
    return own


def _but_for_place(kept: Mapping[str, Any]) -> str:
    """The same code is the same network in a script and in a module that is imported"""
    return json.dumps({name: value for name, value in kept.items() if name != "source"}, sort_keys=True)


def _imported(source: str) -> Callable[[int], Any] | None:
    """What "package.module:Name" names, if that module is imported already"""
    module, _, name = source.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split(".") if name else ():
        found = getattr(found, part, None)
    return found if name and callable(found) else None


def _row(row: list[str] | None) -> str:
    return "none" if row is None else f"{row[0]} ({' x '.join(row[3:])}, {row[1]})"
