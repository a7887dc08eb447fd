"""A problem in words: its settings by name, and what differs between several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from meanfield.network.perceptron import Network
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import Scaling

_ALWAYS = ("data", "samples", "network", "depth", "activation", "scaling", "gamma0", "loss", "learning_rate", "steps")


def settings(problem: Problem) -> dict[str, str]:
    """All settings as short texts, by the names they are given by; of the samples their number"""
    data = problem.data
    found: dict[str, Any] = {"data": data.name, "samples": data.samples, "test samples": data.points - data.samples}
    found |= {"inputs": data.inputs, "outputs": data.outputs}
    network = problem.network
    if isinstance(network, Network):
        found |= _fields(network) | {"activation": network.nonlinearity.name}
    else:
        found |= {"network": problem.network_name} | _fields(problem.architecture, but=("build", "name", "record"))
    found |= _of_scaling(problem) | _fields(problem.training)
    return {name: _short(value) for name, value in (found | {"loss": problem.loss_function.name}).items()}


def essential(problem: Problem) -> dict[str, str]:
    """The settings that every problem has, and those that are not as they are by default"""
    usual = _defaults(problem)
    return {name: text for name, text in settings(problem).items() if name in _ALWAYS or text != usual.get(name, text)}


def apart(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Of each of several problems the settings that are not the same in all; of scalings of other names the names alone, if they tell"""
    every = [settings(problem) for problem in problems]
    names = dict.fromkeys(name for found in every for name in found)
    differing = [name for name in names if len({found.get(name) for found in every}) > 1]
    if "scaling" in differing and len({found["scaling"] for found in every}) == len(every):
        differing = [name for name in differing if name not in _OF_SCALING]
    return [{name: found[name] for name in differing if name in found} for found in every]


_OF_SCALING = ("q_sigma", "q_a", "q_w", "sigma", "eta_a", "eta_w", "reference_width", "frozen part", "gamma0", "widths")


def _of_scaling(problem: Problem) -> dict[str, Any]:
    scaling = problem.scaling
    found = _fields(scaling, but=("name",))
    if isinstance(scaling, Scaling):
        found["frozen part"] = found.pop("frozen")
        gamma0 = 1 / (scaling.sigma * scaling.reference_width)
        rate = gamma0**2 * scaling.reference_width
        if scaling.q_sigma == -1 and all(abs(eta - rate) < 1e-9 * rate for eta in (scaling.eta_a, scaling.eta_w)):
            found = {key: found[key] for key in ("reference_width", "frozen part")} | {"gamma0": gamma0}
    return {"scaling": scaling.name} | found


def _defaults(problem: Problem) -> dict[str, str]:
    """Texts of the settings that need not be told"""
    network = Network() if isinstance(problem.network, Network) else None
    found = (_fields(network) if network is not None else {"weight_std": 1.0}) | _fields(type(problem.training)())
    zero = {"test samples": 0, "frozen part": "none", "reference_width": 1}
    empty = dict.fromkeys(("rate", "frozen", "averaged", "decay"), ()) | {
        "initial_law": "normal",
        "inputs": problem.data.inputs,
    }
    return {name: _short(value) for name, value in (found | zero | empty).items()}


def _fields(part: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in fields(part) if f.init and f.name not in but}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = getattr(value, "name", None) or str(value)
    return text if len(text) <= 60 else text[:57] + "..."
