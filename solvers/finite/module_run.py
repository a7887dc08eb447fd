"""A batch of modules on their way through training, with what their solutions show of them (equations 79, 80 and 88)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.network.keys import Key
from meanfield.network.recording import neuron_by_neuron, parted
from meanfield.problem.problem import Problem
from meanfield.scaling.units import module_width
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel
from solvers.finite.modules import ModuleNetworks, ModulePass
from solvers.finite.networks import fall
from solvers.running.integrator import State
from solvers.running.method import Method
from solvers.running.noise import source
from solvers.running.skeleton import Samples
from solvers.running.trajectory import Trajectory


@dataclass(frozen=True)
class Snapshot:
    """Of one network c (N, Q) of each kernel c^T c, over neurons, what its architecture records, and the tangent kernel (P, C, P, C) of few
    outputs
    """

    kernels: dict[str, Tensor]
    recorded: dict[str, Tensor]
    tangent: Tensor | None


class ModuleRun(ModuleNetworks, Method):
    """Networks of one width and several seeds; the state is theta of each trained parameter, with a leading axis of seeds."""

    def __init__(self, problem: Problem, width: int, seeds: Sequence[int], like: Tensor) -> None:
        data = Samples(problem.data.x, problem.data.y, problem.data.x_test)
        n = module_width(problem.scaling, width)
        super().__init__(problem.architecture, problem.scaling, n, seeds, data, problem.loss_function, like)
        self.problem, self.y = problem, self.data.y
        self.described = {parameter.name: parameter for parameter in self.network.description}

    def state_of(self, solution: Solution) -> State:
        if len(self.names) < len(self.units):
            self.initial_state()  # which finds what stays as it starts
        return tuple(solution.state[name].to(self.like, copy=True)[None] for name in self.names)

    def fall(self, passed: ModulePass, velocity: State) -> Tensor:
        del passed
        return fall(velocity, self.rates)

    def diffused(self, passed: ModulePass, state: State, size: float, at: int) -> State:
        del passed
        for e, seed in enumerate(self.seeds):
            g = source(self.problem.training, at, seed, self.width)
            for name, tensor in zip(self.names, state, strict=True):
                noise = torch.randn(tensor[e].shape, generator=g, dtype=torch.float64).to(tensor)
                tensor[e].add_(
                    self.skeleton.without_padding(self.described[name], noise), alpha=size * self.units[name].noise
                )
        return state

    def capture(self, state: State, passed: ModulePass) -> list[Snapshot]:
        """Of each seed"""
        del passed
        return [self._snapshot(state, e) for e in range(len(self.seeds))]

    def _snapshot(self, state: State, e: int) -> Snapshot:
        keys, few = {p.name: p.key for p in self.network.description}, self.problem.gradients_recorded
        found: dict[str, Tensor] = {}
        for name, rows in self.fields(state, e, few).items():
            kind, _, parameter = name.partition(" ")
            found[Key(kind, keys[parameter])] = (rows.T / math.sqrt(rows.shape[1])).cpu()
        assert self.problem.trial is not None
        seen = neuron_by_neuron(self.recorded(state, e), self.problem.trial.neurons)
        recorded = {name: tensor.cpu() for name, tensor in seen.items()}
        return Snapshot(found, recorded, self.tangent_kernel(state, e).cpu() if few else None)

    def solution(
        self,
        run: Trajectory,
        e: int,
        solver: Mapping[str, Any],
        wanted: Sequence[int],
        answer: Mapping[str, Any],
        previous: Solution | None,
    ) -> Solution:
        """The solution of the e-th seed; wanted: steps of its snapshots"""
        own = _earlier(previous) | {step: captured[e] for step, captured in run.captured.items()}
        steps = [step for step in sorted(own) if step in wanted]
        kept = [own[step] for step in steps]
        recorded, fields = parted([snapshot.recorded for snapshot in kept])
        tangents = [snapshot.tangent for snapshot in kept if snapshot.tangent is not None]
        state = {name: tensor[e].cpu() for name, tensor in run.named_state(self.names).items()}
        return Solution(
            problem=self.problem,
            solver=solver,
            **answer,
            state={} if run.status.blew_up else state,
            snapshots=tuple(steps),
            kernels={
                name: TwoTimeKernel(steps, torch.stack([snapshot.kernels[name] for snapshot in kept]))
                for name in (kept[0].kernels if kept else ())
            },
            recorded=recorded,
            fields=fields if solver.get("keep_neurons", True) else {},
            tangent=torch.stack(tangents) if tangents else None,
            stats=dict(run.stats),
        )


def _earlier(previous: Solution | None) -> dict[int, Snapshot]:
    """Snapshots of the run that is continued, by step"""
    found = {}
    for i, step in enumerate(previous.snapshots if previous else ()):
        tangents = previous.tangent_kernels  # type: ignore[union-attr]
        kernels = {name: kernel.factor[i] for name, kernel in previous.kernels.items()}  # type: ignore[union-attr]
        recorded = {name: t[i] for name, t in (*previous.recorded.items(), *previous.fields.items())}  # type: ignore[union-attr]
        found[step] = Snapshot(kernels, recorded, None if tangents is None else tangents[i])
    return found
