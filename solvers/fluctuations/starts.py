"""A weighted network and its start: particles of a two-layer network, or Gaussians of a deep one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.activations import Activation
from meanfield.problem.problem import Problem
from solvers.dmft.neurons import Population
from solvers.dmft.perceptron import directions
from solvers.fluctuations.weighted import WeightedNetwork
from solvers.fluctuations.weighted_module import WeightedModule
from solvers.running.integrator import State
from solvers.running.sharding import Shard
from solvers.two_layer.wasserstein_flow import Initial, WassersteinFlow


@dataclass(frozen=True)
class Start:
    """A network whose neurons have weights that can be differentiated, how it begins, and the names of its populations of neurons

    sizes: neurons of each population over the width.
    """

    network: WeightedNetwork | WeightedModule
    begin: Callable[[], State]
    parts: tuple[str, ...]
    sizes: tuple[float, ...] = (1.0,)


def start_of(
    problem: Problem,
    particles: int,
    seed: int,
    initial: Initial | ParticleMeasure,
    tolerance: float,
    phi: Activation | None,
) -> Start:
    """phi: the activation of a perceptron, whose derivative may be another one's than autograd finds"""
    if problem.trial is not None:
        return _of_module(problem, particles, seed, initial, tolerance)
    assert phi is not None
    if problem.perceptron.depth == 1:
        return _of_particles(problem, particles, seed, initial, tolerance, phi)
    if initial != "sobol":
        raise ValueError(f"initial is the measure of two-layer networks: received depth {problem.perceptron.depth}")
    like = torch.empty(0, dtype=torch.float64)
    population = Population(particles, seed, "sobol", like, Shard(particles))
    depth, shared = problem.perceptron.depth, problem.perceptron.residual is not None
    own = [torch.full((particles,), 1 / particles, dtype=torch.float64, requires_grad=True) for _ in range(depth)]
    network = WeightedNetwork(problem, population, tolerance, [own[0]] * depth if shared else own)
    network.act = phi
    parts = ("neurons of all layers",) if shared else tuple(f"layer {l}" for l in range(1, depth + 1))
    return Start(network, network.initial_state, parts, (1.0,) * len(parts))


def _of_module(
    problem: Problem, particles: int, seed: int, initial: Initial | ParticleMeasure, tolerance: float
) -> Start:
    if initial != "sobol":
        raise ValueError("initial is the measure of two-layer networks: received a module")
    network = WeightedModule(problem, particles, seed, tolerance)
    parts = ("neurons of all layers",) if len(network.axes) == 1 else tuple(f"axes of {axis}" for axis in network.axes)
    return Start(network, network.initial_state, parts, tuple(float(axis.size) for axis in network.axes))


def _of_particles(
    problem: Problem, particles: int, seed: int, initial: Initial | ParticleMeasure, tolerance: float, phi: Activation
) -> Start:
    flow = WassersteinFlow(particles, seed, initial, snapshots=())
    flow.check(problem)
    measure = flow.initial_measure(problem)
    count = len(measure)
    population = Population(count, seed, "plain", torch.empty(0, dtype=torch.float64), Shard(count))
    network = WeightedNetwork(problem, population, tolerance, [measure.m.clone().requires_grad_()])
    network.act = phi
    w, a = (measure.w @ directions(problem)).T, measure.a.T
    return Start(network, lambda: network.started(w, [], a), ("layer 1",))
