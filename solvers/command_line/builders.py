"""Networks that a shell names: `--network package.module:Net`, whose module is imported."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import fields
from typing import Any

from meanfield.network.architecture import Architecture
from meanfield.network.making import Build
from meanfield.network.perceptron import Network

TOLD = "A torch module of any width in the place of a perceptron: a class or function of Python that makes it of the width, as mynets:Net"


def network(which: str | None = None, **settings: Any) -> Network | Architecture:
    """A perceptron, or the module that is named; ValueError for settings that only perceptrons have"""
    if which is None:
        return Network(**settings)
    usual = {f.name: f.default for f in fields(Network)}
    for name, value in settings.items():
        if name != "weight_std" and value != usual[name]:
            raise ValueError(
                f"--network.{name.replace('_', '-')} belongs to perceptrons: leave it out with --network {which}"
            )
    return Architecture(builder(which), weight_std=settings.get("weight_std", 1.0))


def builder(which: str) -> Build:
    """What "package.module:Name" names, imported as Python started in this folder would; ValueError for what cannot be found"""
    module, _, name = which.partition(":")
    if not module or not name:
        raise ValueError(f"--network must be MODULE:NAME, e.g. mynets:Net: received {which!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--network {which}: the module {module!r} cannot be imported ({error})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"--network {which}: {module!r} has no {name!r}")
        found = getattr(found, part)
    return found
