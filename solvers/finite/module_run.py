"""A batch of modules on their way through training, with what their solutions show of them (equations 79, 80 and 88)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meanfield.network.keys import Key
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel
from solvers.finite.modules import ModuleNetworks, ModulePass
from solvers.running.integrator import State
from solvers.running.method import Method
from solvers.running.skeleton import Samples
from solvers.running.trajectory import Trajectory

Factors = dict[str, Tensor]  # (N, Q) of each kernel: c of neurons with kernel c^T c


class ModuleRun(ModuleNetworks, Method):
    """Networks of one width and several seeds; the state is theta of each trained parameter, with a leading axis of seeds."""

    def __init__(self, problem: Problem, width: int, seeds: Sequence[int], like: Tensor) -> None:
        data = Samples(problem.data.x, problem.data.y, problem.data.x_test)
        super().__init__(problem.architecture, problem.scaling, width, seeds, data, problem.loss_function, like)
        self.problem, self.y = problem, self.data.y

    def state_of(self, solution: Solution) -> State:
        if len(self.names) < len(self.units):
            self.initial_state()  # which finds what stays as it starts
        return tuple(solution.state[name].to(self.like, copy=True)[None] for name in self.names)

    def capture(self, state: State, passed: ModulePass) -> list[Factors]:
        """Of each seed"""
        del passed
        return [self._factors(state, e) for e in range(len(self.seeds))]

    def _factors(self, state: State, e: int) -> Factors:
        keys = {p.name: p.key for p in self.network.description}
        found: Factors = {}
        for name, rows in self.fields(state, e).items():
            kind, _, parameter = name.partition(" ")
            found[Key(kind, keys[parameter])] = (rows.T / math.sqrt(rows.shape[1])).cpu()
        return found

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
        own = {step: captured[e] for step, captured in run.captured.items()}
        if previous is not None:
            before = {
                step: {name: kernel.factor[i] for name, kernel in previous.kernels.items()}
                for i, step in enumerate(previous.snapshots)
            }
            own = before | own
        steps = [step for step in sorted(own) if step in wanted]
        names = own[steps[0]] if steps else ()
        state = {name: tensor[e].cpu() for name, tensor in run.named_state(self.names).items()}
        return Solution(
            problem=self.problem,
            solver=solver,
            **answer,
            state={} if run.status.blew_up else state,
            snapshots=tuple(steps),
            kernels={name: TwoTimeKernel(steps, torch.stack([own[step][name] for step in steps])) for name in names},
            stats=dict(run.stats),
        )
