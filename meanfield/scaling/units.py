"""Units: what multiplies each parameter of a module in a given scaling, and its learning rate (equations 44, 45 and 80)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from meanfield.network.architecture import Architecture
from meanfield.network.laws import Law
from meanfield.network.perceptron import Network
from meanfield.network.roles import Parameter
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard


@dataclass(frozen=True)
class Layers:
    """Of a perceptron: the widths of its hidden layers, the output multiplier, and what multiplies the learning rate of each parameter:
    weights W0.., readout a, their biases b0.., b, all of which are N(0, 1) at the start.

    steps: by how much an optimiser that acts entry by entry moves each number of a parameter at the rate 1 (equation 112). matrices: by
    how much one that orthogonalises moves those between hidden layers along a matrix of norm 1 (equation 114).
    """

    widths: tuple[int, ...]
    sigma: float
    rates: dict[str, float]
    steps: dict[str, float]
    matrices: dict[str, float]


def layers(network: Network, scaling: Scaling | Standard, inputs: int, width: int) -> Layers:
    """ValueError for widths of a standard parameterization, of which `width` is the multiple, that do not fit the network"""
    names = [*(f"W{l}" for l in range(network.depth)), "a"]
    biases = [*(f"b{l}" for l in range(network.depth)), "b"] if network.bias_std else []
    if isinstance(scaling, Standard):
        reference = scaling.layers(network)
        widths = tuple(width * n for n in reference)
        fans = (inputs, *(reference if scaling.improved else widths))
        rates = {name: fan / network.weight_std**2 for name, fan in zip(names, fans, strict=True)}
        rates |= dict.fromkeys(biases, 1 / network.bias_std**2) if biases else {}
        steps = {name: math.sqrt(rate) for name, rate in rates.items()}  # of the weights themselves: one rate for all
        matrices = {f"W{l}": steps[f"W{l}"] * math.sqrt(widths[l] / widths[l - 1]) for l in range(1, network.depth)}
        return Layers(widths, scaling.output_multiplier(widths[-1]), rates, steps, matrices)
    rate_a, rate_w = scaling.learning_rate_multipliers(width)
    rates = {name: rate_a if name in ("a", "b") else rate_w for name in (*names, *biases)}
    matrices = {f"W{l}": width**0.5 for l in range(1, network.depth)}
    steps = {name: width**-0.5 if name in matrices else width**0.5 if name == "b" else 1.0 for name in rates}
    return Layers((width,) * network.depth, scaling.output_multiplier(width), rates, steps, matrices)


@dataclass(frozen=True)
class Unit:
    """A module's parameter w is multiplier times theta, which descends at `rate` times Training.learning_rate.

    law: of the numbers that theta starts with; None where w starts as the author of the module starts it. decay: multiplies the weight
    decay (equation 120). step: by how much an optimiser that acts
    entry by entry moves each of its numbers at the rate 1 (equation 112); matrix: by how much one that orthogonalises moves it along a
    matrix of norm 1, 0 for what is none between wide axes (equation 114). noise: multiplies that of Langevin descent (equation 125).
    """

    multiplier: float
    rate: float
    law: Law | None
    step: float
    matrix: float
    decay: float
    noise: float

    @property
    def drawn(self) -> bool:
        return self.law is not None


def module_width(scaling: Scaling | Standard, width: int) -> int:
    """n of the module that is meant by a width: itself, or of a standard parameterization the multiple of its reference"""
    return width * scaling.reference if isinstance(scaling, Standard) else width


def units(network: Architecture, scaling: Scaling | Standard, width: int) -> dict[str, Unit]:
    """Of every parameter by name, in a network build(width); ValueError for a standard parameterization that does not fit the builder."""
    if isinstance(scaling, Standard):
        reference = scaling.reference if scaling.improved else width
        return {parameter.name: _standard(network, reference, width, parameter) for parameter in network.description}
    return {parameter.name: _unit(network, scaling, width, parameter) for parameter in network.description}


def _standard(network: Architecture, reference: int, width: int, parameter: Parameter) -> Unit:
    """In the standard parameterization of build(reference), whose weights stand divided by sqrt(width / reference) in a wider network"""
    std = network.std(parameter)
    multiplier = start = std or 1.0
    if parameter.role in ("input", "hidden", "readout"):
        multiplier, start = (multiplier / math.sqrt(parameter.fan_in(n)) for n in (width, reference))
    own = network.rate_of(parameter)
    stretch = _stretch(parameter, width) / math.sqrt(parameter.fan_in(width)) if parameter.role == "hidden" else 0.0
    law, decay = network.law_of(parameter), network.decay_of(parameter)
    return Unit(multiplier, own / start**2, law, own / start, own / start * stretch, decay, math.sqrt(own))


def _unit(network: Architecture, scaling: Scaling, width: int, parameter: Parameter) -> Unit:
    std = network.std(parameter)
    eta_a, eta_w = scaling.learning_rate_multipliers(width)
    multiplier, rate, step = std or 1.0, eta_w, 1.0
    if parameter.role in ("input", "hidden"):
        multiplier /= math.sqrt(parameter.fan_in(width))
        step = parameter.fan_in(width) ** -0.5 if parameter.role == "hidden" else 1.0
    elif parameter.role == "readout":
        multiplier, rate = multiplier * scaling.output_multiplier(parameter.fan_in(width)), eta_a
    elif parameter.role == "output bias":
        multiplier, rate = multiplier * scaling.output_multiplier(width) * math.sqrt(width), eta_a
        step = math.sqrt(width)
    elif parameter.role == "plain":
        rate = scaling.eta_w * scaling.reference_width**-scaling.q_w
    own, law, decay = network.rate_of(parameter), network.law_of(parameter), network.decay_of(parameter)
    return Unit(multiplier, rate * own, law, step * own, own * _stretch(parameter, width), decay, math.sqrt(own))


def _stretch(parameter: Parameter, width: int) -> float:
    """Of N(0, 1) numbers over the root of the fan-in: the norm of a matrix whose images are as large, root mean square over neurons, as
    what it is applied to; 0 for other parameters
    """
    if parameter.role != "hidden":
        return 0.0
    return math.sqrt(parameter.fan_in(width) * parameter.above.at(width) / parameter.below.at(width))
