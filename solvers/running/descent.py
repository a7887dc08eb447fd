"""Descent: a step of gradient descent, with momentum and weight decay (equation 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.problem.training import Training
from solvers.running.gradient_flow import Flow
from solvers.running.integrator import State, weighted
from solvers.running.method import Method, Pass, Step, Underway


@dataclass
class Descent:
    """state <- (1 - eta decay) state + eta memory, memory <- momentum memory + velocity. Memory of the state is used again."""

    training: Training
    memory: State = ()

    def __call__(self, method: Method, state: State, passed: Pass, underway: Underway) -> State:
        del underway
        training, velocity = self.training, method.backward(passed)
        eta, keep = training.learning_rate, 1 - training.learning_rate * training.weight_decay
        if training.momentum:
            earlier = self.memory or tuple(torch.zeros_like(v) for v in velocity)
            velocity = self.memory = tuple(
                _added(m.mul_(training.momentum), v) for m, v in zip(earlier, velocity, strict=True)
            )
        pairs = zip(state, velocity, strict=True)
        return tuple(_added(tensor.mul_(keep) if keep != 1 else tensor, v, eta) for tensor, v in pairs)


def step_of(training: Training, flow: Flow, memory: State = ()) -> Step:
    """As the training asks; memory: of a run that goes on"""
    return Descent(training, memory) if training.optimiser == "gradient_descent" else flow


def _added(tensor: Tensor, change: Tensor, weight: float = 1.0) -> Tensor:
    """In place, unless the change has more rows or columns"""
    if tensor.shape == change.shape:
        return tensor.add_(change, alpha=weight)
    return weighted((weight, 1.0), ((change,), (tensor,)))[0]
