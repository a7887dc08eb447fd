"""Plan: what `predicted_variance` is asked, checked before any work."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from meanfield.checking import checks
from meanfield.checking.array_input import untracked
from meanfield.checking.warning import warn
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.activations import Activation
from meanfield.problem.problem import Problem
from meanfield.problem.stream import beside
from solvers.fluctuations.kinks import softened
from solvers.fluctuations.observed import Observables, asked_rows, asked_steps, default_names, must_fit
from solvers.fluctuations.own_averages import other_than_draws, own_averages
from solvers.fluctuations.starts import Start, start_of
from solvers.two_layer.wasserstein_flow import Initial

Method = Literal["derivative", "networks"]
METHODS: tuple[Method, ...] = ("derivative", "networks")
OF_NETWORKS = 20  # groups into which narrow networks are divided
NARROW, OF_TWO_LAYERS = 256, 4096  # their width if it is left out: two layers cost in proportion to it
FEW_OF_MODULES = 16  # numbers from which on networks, which show all at once, cost less than a derivative for each
OWN_CODE = "a module that does more with its neurons than weigh them"
_OWN: dict[Method, tuple[str, ...]] = {  # arguments of one way alone
    "derivative": ("particles", "groups", "initial", "kink_width"),
    "networks": ("width", "networks"),
}


@dataclass(frozen=True)
class Plan:
    """What is asked of `predicted_variance`, once all of it is checked"""

    problem: Problem
    observables: Observables
    at: tuple[int, ...]
    way: Method
    particles: int
    seed: int
    initial: Initial | ParticleMeasure
    phi: Activation | None  # of the derivative
    groups: int
    tolerance: float
    width: int
    networks: int
    why: str = ""  # networks are asked, where that was not said
    free: bool = False  # whether networks may still be asked

    def start(self, group: int) -> Start:
        return start_of(self.problem, self.particles, self.seed + group, self.initial, self.tolerance, self.phi)

    def of_networks(self) -> Plan:
        """The same of networks, since a layer has too many directions for the particles"""
        return replace(self, way="networks", why=f"the directions of a layer, too many for {self.particles} particles")

    def at_end_of(self, steps: int) -> Plan:
        """The same for training of so many steps, observed at its end alone"""
        problem = replace(self.problem, training=replace(self.problem.training, steps=steps, record_every=1))
        return replace(self, problem=problem, observables=replace(self.observables, problem=problem), at=(steps,))


def planned(
    problem: Problem,
    particles: int = 2**10,
    seed: int = 0,
    points: Sequence[int] | None = None,
    initial: Initial | ParticleMeasure = "sobol",
    kink_width: float = 0.2,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    groups: int = 4,
    tolerance: float = 1e-3,
    method: Method | None = None,
    width: int | None = None,
    networks: int = 400,
) -> Plan:
    """What `predicted_variance` will do; ValueError or MemoryError for what it cannot"""
    particles, groups = checks.integer("particles", particles, 2), checks.integer("groups", groups, 1)
    usual = OF_TWO_LAYERS if problem.trial is None and problem.perceptron.depth == 1 else NARROW
    narrow = checks.integer("width", usual if width is None else width, 2)
    networks = checks.integer("networks", networks, 2 * OF_NETWORKS)
    seed = checks.seed("seed", seed)
    if method is not None:
        checks.lookup("method", method, dict.fromkeys(get_args(Method)))
    problem.in_plane.measure_limit()  # other scalings have no lim N Var
    observables = Observables(problem, default_names(problem, observed), asked_rows(problem, points))
    at = asked_steps(problem, steps)
    numbers, beyond = observables.count(len(at)), _beyond(problem)
    why = beyond or _dearer(problem, numbers)
    way: Method = method or ("networks" if why else "derivative")
    given = {"particles": particles, "groups": groups, "initial": initial, "kink_width": kink_width}
    given |= {"width": width, "networks": networks}
    _must_serve(way, "" if method or way == "derivative" else f" because of {why}", given)
    if way == "derivative":
        _must_be_followed(problem, beyond)
    _warn_of_random_numbers(problem)
    parts = 1 if way == "networks" else populations(problem)
    held = OF_NETWORKS * numbers**2 + networks * numbers if way == "networks" else groups * parts * numbers**2
    checks.memory(
        f"the covariances of {numbers} numbers", 16.0 * held, "ask for fewer points, steps, groups or networks"
    )
    if way == "derivative":
        must_fit(problem, "particles", particles, tolerance)
    phi = (
        softened(problem.perceptron.nonlinearity, checks.positive("kink_width", kink_width))
        if way == "derivative" and problem.trial is None
        else None
    )
    if isinstance(initial, ParticleMeasure):
        initial = ParticleMeasure(*(untracked("the initial measure", tensor) for tensor in initial.tensors))
    fixed = isinstance(initial, ParticleMeasure) or initial == "gauss_hermite"  # each group would be the same
    groups = 1 if fixed else groups
    usual_particles = inspect.signature(planned).parameters["particles"].default
    free = method is None and problem.trial is not None and particles == usual_particles
    why = "" if method else why
    return Plan(
        problem, observables, at, way, particles, seed, initial, phi, groups, tolerance, narrow, networks, why, free
    )


def populations(problem: Problem) -> int:
    """Of neurons that have weights of their own"""
    if problem.trial is None:
        return problem.perceptron.depth
    return len({axis for p in problem.architecture.description for axis in p.axes if axis.wide})


def _beyond(problem: Problem) -> str:
    """What derivatives cannot follow; empty if they can. Kinks of perceptrons are softened."""
    followed = ("momentum", "weight_decay", "batch_size", "schedule", "warmup")
    if other := beside(problem.data) or problem.training.other_than(*followed):
        return other
    if problem.trial is None:
        return ""
    if problem.has_kinks:
        return "a module with kinks"
    hidden = problem.architecture.description.having("hidden")
    if not all((law := problem.architecture.law_of(p)) and law.gaussian for p in hidden):
        return "a matrix that does not start as Gaussian numbers"
    if fixed := other_than_draws(problem.architecture)[0]:
        return f"{fixed[0]!r}, which starts with fixed numbers, another for each neuron"
    try:
        own_averages(problem)
    except ValueError:
        return OWN_CODE
    return ""


def _dearer(problem: Problem, numbers: int) -> str:
    """Why networks are asked although derivatives could be taken; empty if they are not"""
    if problem.has_kinks and problem.training.steps:
        return "a kink of the activation"
    if problem.trial is not None and numbers > FEW_OF_MODULES:
        return f"the {numbers} numbers of a module, each of which costs a derivative"
    return ""


def _must_be_followed(problem: Problem, beyond: str) -> None:
    """ValueError for what derivatives cannot follow"""
    if beyond == OWN_CODE:
        own_averages(problem)  # says more
    if beyond:
        raise ValueError(
            f"method='derivative' follows smooth networks by gradient_descent: received {beyond}; method='networks' takes any"
        )


def _warn_of_random_numbers(problem: Problem) -> None:
    if problem.trial is not None and (random := other_than_draws(problem.architecture)[1]):
        warn(
            f"{', '.join(map(repr, random))} of no neuron start at random in each network: networks of any width differ by them, and N Var "
            "has no limit; let them start alike",
            RuntimeWarning,
        )


def _must_serve(way: Method, why: str, given: Mapping[str, Any]) -> None:
    """ValueError for arguments that belong to the other way; why: networks are trained, empty where they were asked for"""
    usual, other = inspect.signature(planned).parameters, METHODS[way == METHODS[0]]
    if found := ", ".join(f"{name}={given[name]!r}" for name in _OWN[other] if given[name] != usual[name].default):
        told = "networks are trained" if way == "networks" else "derivatives of the limit are taken"
        raise ValueError(
            f"{', '.join(_OWN[other])} belong to method={other!r}: received {found} where {told}{why}; leave it out, and take "
            f"{', '.join(_OWN[way])}"
        )
