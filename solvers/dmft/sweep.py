"""Sweep: a network in the limit on its way through time, and what a solution shows of it (equations 10, 11 and 34)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.network.keys import Key, parts
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel, TwoTimeResponse, tangent_of
from solvers.dmft.perceptron import LimitNetwork, LimitPass
from solvers.running.failures import in_layer
from solvers.running.inputs import Rows
from solvers.running.integrator import State
from solvers.running.method import Growing
from solvers.running.sharding import Shard
from solvers.running.trajectory import Trajectory


@dataclass(frozen=True)
class Snapshot:
    """Of the neurons at one step, (S, points) each: preactivations of each layer, features of the last, gradients of the first"""

    h: list[Tensor]
    phi: Tensor
    g: Tensor


class Sweep(Growing):
    """The network with its records: coefficients of features and gradients, whose products are kernels at all pairs of steps.

    two_time: also those of the last features and the first gradients, which no matrix needs; responses: of A and B.
    """

    def __init__(self, network: LimitNetwork, two_time: bool, responses: bool) -> None:
        self.network, self.two_time, self.responses = network, two_time, responses
        self.population, self.shard, self.names = network.population, network.shard, network.names
        self.step_sizes, self.matrix_steps, self.still = network.step_sizes, network.matrix_steps, network.still
        self.initial_state, self.norm = network.initial_state, network.norm
        self.last_features, self.first_gradients = network.basis(), network.basis()

    def forward(self, state: State, rows: Rows, differentiated: bool) -> LimitPass:
        return self.network.forward(state, rows, differentiated)

    def backward(self, passed: LimitPass) -> State:
        return self.network.backward(passed)

    def fall(self, passed: LimitPass, velocity: State) -> Tensor:
        return self.network.fall(passed, velocity)

    def diffused(self, passed: LimitPass, state: State, size: float, at: int) -> State:
        return self.network.diffused(passed, state, size, at)

    def noted(self, passed: LimitPass) -> dict[str, Tensor]:
        """Coefficients (K, Q) of the training samples"""
        network, samples = self.network, self.network.train
        kept: dict[str, Tensor] = {Key("Phi", l): c[:, :samples] for l, c in enumerate(passed.c, 1)}
        if self.responses:
            for l, (layer, phi) in enumerate(zip(network.layers, passed.phi, strict=False), 1):
                kept[Key("A", l)] = network.std * layer.pulled(phi[:samples])
        if self.two_time:
            with in_layer(f"hidden layer {network.depth}", network.population.samples):
                kept[Key("Phi", network.depth)] = self.last_features.reveal(passed.phi[-1][:samples])[0]
        g = network.gradients(passed)
        kept |= {Key("G", l): d for l, d in enumerate(passed.d, 2)}
        if self.responses:
            kept |= {
                Key("B", l): network.std * layer.pushed(g[l].flatten(0, 1)) for l, layer in enumerate(network.layers, 1)
            }
        if self.two_time:
            with in_layer("hidden layer 1", network.population.samples):
                kept[Key("G", 1)] = self.first_gradients.reveal(g[0].flatten(0, 1))[0]
        return kept

    def capture(self, state: State, passed: LimitPass) -> Snapshot:
        del state
        samples, first = passed.train, self.network.gradients(passed)[0]
        return Snapshot(
            [h[:samples].T.clone() for h in passed.h], passed.phi[-1][:samples].T.clone(), first.flatten(0, 1).T.clone()
        )

    @staticmethod
    def named(snapshot: Snapshot) -> dict[str, Tensor]:
        return {f"h{i}": h for i, h in enumerate(snapshot.h)} | {"phi": snapshot.phi, "g": snapshot.g}

    def snapshot(self, named: Mapping[str, Tensor]) -> Snapshot:
        """The inverse of `named`"""
        return Snapshot([named[f"h{i}"] for i in range(self.network.depth)], named["phi"], named["g"])

    def growing(self) -> dict[str, Any]:
        """All that grows, by name"""
        own = {"last_features": self.last_features.fields, "first_gradients": self.first_gradients.fields}
        return self.network.growing() | own

    def solution(
        self,
        run: Trajectory,
        solver: Mapping[str, Any],
        state: dict[str, Tensor],
        previous: Solution | None,
        keep_neurons: bool,
    ) -> Solution:
        network, problem, shard = self.network, self.network.problem, self.network.shard
        steps, kept = sorted(run.captured), [run.captured[step] for step in sorted(run.captured)]
        answer, records = run.answer(previous), _records(run, previous)
        kernels = {
            name: TwoTimeKernel(answer["recorded_steps"], c)
            for name, c in records.items()
            if parts(name)[0] in ("Phi", "G")
        }
        if kept and not self.two_time:
            kernels |= _at_snapshots(steps, kept, network.depth, shard)
        names = [problem.keys(kind) for kind in ("Phi", "G")]
        fields = [[shard.gather(h) for h in snapshot.h] for snapshot in kept] if keep_neurons else []
        limit = problem.in_plane.measure_limit()
        tangents = [tangent_of(problem, limit, *([kernels[n].at(t) for n in own] for own in names)) for t in steps]
        ends = run.noted[-1] if run.noted else {}
        sides = zip(names[0][:-1], names[1][1:], strict=True) if ends else ()
        ranks = tuple((len(ends[below]), len(ends[above])) for below, above in sides)
        return Solution(
            problem=problem,
            solver=solver,
            **answer,
            state=state,
            snapshots=tuple(steps),
            kernels={name: kernels[name] for own in names for name in own if name in kernels},
            responses=_responses(records, network.depth) if self.responses else {},
            tangent=torch.stack(tangents) if tangents else None,
            fields={key: torch.stack([h[l] for h in fields]) for l, key in enumerate(problem.keys("h"))}
            if fields and shard.ranks.first
            else {},
            stats=run.stats
            | {"ranks": ranks, "tolerances": (network.tolerance, network.coarse), "exact": network.population.exact}
            | shard.stats(),
        )


def _records(run: Trajectory, previous: Solution | None) -> dict[str, Tensor]:
    """(R, K, Q) of each name from step 0 on, zeros below where a basis was still smaller; a solution has them as factors"""
    earlier: dict[str, Tensor] = {}
    if previous is not None:
        factors = {name: k.factor for name, k in previous.kernels.items() if k.steps == previous.recorded_steps}
        factors |= {name: response.left for name, response in previous.responses.items()}
        earlier = {name: factor[: run.earlier(previous)] for name, factor in factors.items()}
    names = run.noted[-1] if run.noted else earlier
    return {name: _stacked([*earlier.get(name, ()), *(noted[name] for noted in run.noted)]) for name in names}


def _stacked(rows: list[Tensor]) -> Tensor:
    most = max(map(len, rows))
    return torch.stack([torch.nn.functional.pad(c, (0, 0, 0, most - len(c))) for c in rows])


def _responses(records: Mapping[str, Tensor], depth: int) -> dict[str, TwoTimeResponse]:
    """A^l and B^l of equations 20 and 21 from the recorded correlations (equation 34)"""
    found = {}
    for l in range(1, depth):
        a, d, b, c = (records[name] for name in (Key("A", l), Key("G", l + 1), Key("B", l), Key("Phi", l)))
        found[Key("A", l)] = TwoTimeResponse(_same_rank(a, d), d, instant=False)
        found[Key("B", l)] = TwoTimeResponse(_same_rank(b, c), c, instant=True)
    return found


def _at_snapshots(steps: list[int], kept: list[Snapshot], depth: int, shard: Shard) -> dict[str, TwoTimeKernel]:
    """The kernels that no matrix needs, from the neurons"""
    m = kept[0].phi.new_full((shard.local,), 1 / shard.size)
    fields = {Key("Phi", depth): [snapshot.phi for snapshot in kept], Key("G", 1): [snapshot.g for snapshot in kept]}
    return {
        name: TwoTimeKernel.from_fields(steps, m, own, own[0].shape[1], total=shard.total)
        for name, own in fields.items()
    }


def _same_rank(left: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.pad(left, (0, 0, 0, like.shape[1] - left.shape[1]))
