"""Descent: a step along the gradient, with momentum, decay, clipping and noise (2, 111 and 113), or entry by entry (112)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.problem.optimisers import Entrywise, Muon, direction, orthogonalised
from meanfield.problem.training import Training
from solvers.running.gradient_flow import Flow
from solvers.running.integrator import State, weighted
from solvers.running.method import Method, Pass, Step, Underway

_LARGEST = 1e30


@dataclass
class Descent:
    """state <- (1 - eta decay) state + eta memory + noise, memory <- momentum memory + velocity. Memory of the state is used again."""

    training: Training
    memory: State = ()

    def __post_init__(self) -> None:
        self.rate = self.training.rate_by_step()

    def __call__(self, method: Method, state: State, passed: Pass, at: int, underway: Underway) -> State:
        del underway
        training, eta, velocity = self.training, self.rate(at), _velocity(method, passed, self.training.clip)
        if training.momentum:
            earlier = self.memory or tuple(torch.zeros_like(v) for v in velocity)
            velocity = self.memory = tuple(
                _added(m.mul_(training.momentum), v) for m, v in zip(earlier, velocity, strict=True)
            )
        moved = tuple(
            tensor if still else _added(_shrunk(tensor, eta * training.weight_decay, own), v, eta)
            for tensor, v, still, own in zip(state, velocity, *_by_tensor(method, state), strict=True)
        )
        if training.temperature:
            size = math.sqrt(2 * eta) * math.sqrt(training.temperature)
            moved = method.diffused(passed, moved, min(size, _LARGEST), at)
        return method.finished(moved, eta, at)


@dataclass
class EntryByEntry:
    """state <- (1 - eta decay) state + eta unit direction(velocity / unit): in units in which a step of every number is of order 1.

    memory: the optimiser's averages, all first ones, then all second ones.
    """

    training: Training
    optimiser: Entrywise
    memory: State = ()

    def __post_init__(self) -> None:
        self.rate = self.training.rate_by_step()

    def __call__(self, method: Method, state: State, passed: Pass, at: int, underway: Underway) -> State:
        del underway
        eta, velocity = self.rate(at), _velocity(method, passed, self.training.clip)
        decay, count = eta * self.training.weight_decay, len(state)
        memory = list(self.memory or map(torch.zeros_like, velocity * self.optimiser.memories))
        moved = []
        for i, (tensor, v, still, own) in enumerate(zip(state, velocity, *_by_tensor(method, state), strict=True)):
            if still:
                moved.append(tensor)
                continue
            _shrunk(tensor, decay, own)
            if isinstance(self.optimiser, Muon) and method.matrix_steps[i]:
                memory[i] = _added(memory[i].mul_(self.optimiser.beta1), v)
                tensor = _added(tensor, _orthogonal(self.optimiser, v, memory[i]), eta * method.matrix_steps[i])
            elif unit := method.step_sizes[i]:
                tensor = _added(tensor, direction(self.optimiser, v / unit, memory[i::count], at + 1), eta * unit)
            moved.append(tensor)
        self.memory = tuple(memory)
        return tuple(moved)


def _by_tensor(method: Method, state: State) -> tuple[Sequence[bool], Sequence[float | Tensor]]:
    """Which stay as they start, and what multiplies the decay of each"""
    return method.still or [False] * len(state), method.decays or [1.0] * len(state)


def _shrunk(tensor: Tensor, decay: float, own: float | Tensor) -> Tensor:
    """In place (equation 120)"""
    return tensor.mul_(1 - decay * own) if decay else tensor


def _orthogonal(muon: Muon, v: Tensor, average: Tensor) -> Tensor:
    """The step of a matrix (rows, columns), or of filters (seeds, rows, columns, ..)"""
    u = weighted((1.0, muon.beta1), ((v,), (average,)))[0] if muon.nesterov else average
    return orthogonalised(u.flatten(2) if u.ndim > 2 else u, muon.iterations).reshape(u.shape)


def step_of(training: Training, flow: Flow, memory: State = ()) -> Step:
    """As the training asks; memory: of a run that goes on"""
    if training.entrywise is not None:
        return EntryByEntry(training, training.entrywise, memory)
    return Descent(training, memory) if training.optimiser == "gradient_descent" else flow


def _velocity(method: Method, passed: Pass, clip: float | None) -> State:
    """As `backward` gives it, shortened where the gradient's norm is above `clip` (equation 111)"""
    velocity = method.backward(passed)
    if clip is None:
        return velocity
    part = (clip / method.fall(passed, velocity).clamp(min=1e-300).sqrt()).clamp(
        max=1
    )  # of each of an ensemble's seeds
    return tuple(v.mul_(part.to(v).reshape(part.shape + (1,) * (v.ndim - part.ndim))) for v in velocity)


def _added(tensor: Tensor, change: Tensor, weight: float = 1.0) -> Tensor:
    """In place, unless the change has more rows or columns; a weight that no precision holds is large enough to be seen as a blow-up"""
    weight = min(weight, torch.finfo(tensor.dtype).max)
    if tensor.shape == change.shape:
        return tensor.add_(change, alpha=weight)
    return weighted((weight, 1.0), ((change,), (tensor,)))[0]
