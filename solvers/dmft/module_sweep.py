"""ModuleSweep: a module in the limit on its way through time, and what a solution shows of it (equations 84 and 88)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanfield.network.keys import Key
from meanfield.network.recording import neuron_by_neuron, parted
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel
from solvers.dmft.basis import Basis
from solvers.dmft.module_kernels import LimitPass
from solvers.dmft.module_limit import TOGETHER, ModuleLimit
from solvers.dmft.neurons import Population
from solvers.dmft.stand_in import Use
from solvers.running.failures import enough, in_layer
from solvers.running.inputs import Rows
from solvers.running.integrator import State
from solvers.running.method import Growing
from solvers.running.noise import source
from solvers.running.skeleton import Samples
from solvers.running.tangents import MOST
from solvers.running.trajectory import Trajectory


@dataclass(frozen=True)
class Snapshot:
    """Coefficients (K, Q) of each kernel in an orthonormal basis that only grows, what the architecture records, and the tangent kernel
    (P, C, P, C) of few outputs
    """

    kernels: dict[str, Tensor]
    recorded: dict[str, Tensor]
    tangent: Tensor | None


class ModuleSweep(Growing):
    """A module's limit with its snapshots: coefficients of features and of gradients, whose products are kernels."""

    def __init__(self, problem: Problem, population: Population, tolerances: tuple[float, float], limit: int) -> None:
        data, optimiser = Samples(problem.data.x, problem.data.y, problem.data.x_test), problem.training.entrywise
        self.problem, self.population, self.shard = problem, population, population.shard
        self.network = ModuleLimit(
            problem.architecture,
            problem.in_plane,
            data,
            problem.loss_function,
            population,
            tolerances,
            limit,
            optimiser,
            narrow=not isinstance(problem.data, Stream),
        )
        self.step_sizes, self.matrix_steps = self.network.step_sizes, self.network.matrix_steps
        self.decays = self.network.decays
        self.names, self.norm, self.initial_state = self.network.names, self.network.norm, self.network.initial_state
        self.keys = {p.name: p.key for p in problem.architecture.description}
        first = {name: next(iter(parts.values())) for name, parts in self.network.phases.items()}
        known = {f"Phi {name}": layer.e for name, layer in first.items()}
        known |= {f"G {name}": layer.f for name, layer in first.items()}
        known |= {f"Phi {name}": basis for name, basis in self.network.ends.features.items()}
        known |= {f"G {name}": basis for name, basis in self.network.ends.gradients.items()}
        # what snapshots see is kept apart, so that they change no step
        self.seen = {name: Basis(b.size, b.tolerance, population.like, limit) for name, b in known.items()}

    def forward(self, state: State, rows: Rows, differentiated: bool) -> LimitPass:
        return self.network.forward(state, rows, differentiated)

    def backward(self, passed: LimitPass) -> State:
        return self.network.backward(passed)

    def fall(self, passed: LimitPass, velocity: State) -> Tensor:
        return self.network.fall(passed, velocity)

    def diffused(self, passed: LimitPass, state: State, size: float, at: int) -> State:
        training, seed = self.problem.training, self.population.seed
        return self.network.noisy(passed, state, size, lambda *own: source(training, at, seed, *own))

    def capture(self, state: State, passed: LimitPass) -> Snapshot:
        """Of the training samples"""
        del passed  # of test points too, and not always differentiated
        few, mark = self.problem.gradients_recorded, self.network.mark()
        samples, averaged = self.problem.data.samples, self.problem.architecture.averages
        training = self.network.forward(state, slice(0, samples), few, bool(averaged) and samples > 1)
        noted, bases = self.network.noted(training), self.network.bases(training)
        kept: dict[str, Tensor] = {}
        for name, parts in _by_weight(noted).items():
            some = parts if name.startswith("Phi") else parts[:1]  # what leaves has one gradient in all phases
            fields = [noted[part].T @ bases[part].fields.rows[: len(noted[part])] for part in some]
            if name.partition(" ")[2] in averaged:
                fields = [torch.stack(fields).sum(0)]
            kept[self._key(name)] = self._kept(name, fields, training.record.uses)
        del training
        assert self.problem.trial is not None
        recorded = neuron_by_neuron(self.network.recorded(state), self.problem.trial.neurons)
        self.network.back_to(mark)
        return Snapshot(kept, recorded, self.network.tangent_kernel(state) if few else None)

    def _kept(self, name: str, phases: list[Tensor], uses: list[Use]) -> Tensor:
        """Coefficients in a basis of snapshots of fields, what enters a filter by phase, which is put in the order of positions"""
        fields, basis = phases[0], self.seen[name]
        if len(phases) > 1:
            fields = torch.cat(phases)[_in_order(uses, self.network.phases[name.removeprefix("Phi ")])]
        with in_layer(f"the layer {self._key(name).layer!r}", self.population.samples):
            for some in fields.split(TOGETHER):
                basis.reveal(some)
        return basis.coefficients(fields)

    def growing(self) -> dict[str, Any]:
        """All that grows, by name"""
        return self.network.growing() | {
            "seen_" + name.replace(" ", "_"): basis.fields for name, basis in self.seen.items()
        }

    def _key(self, name: str) -> Key:
        """ "Phi conv.weight" is Phi[conv]"""
        kind, _, parameter = name.partition(" ")
        return Key(kind, self.keys[parameter])

    @staticmethod
    def named(snapshot: Snapshot) -> dict[str, Tensor]:
        recorded = {f"recorded_{name}": tensor for name, tensor in snapshot.recorded.items()}
        return {**snapshot.kernels} | recorded | ({} if snapshot.tangent is None else {"tangent": snapshot.tangent})

    @staticmethod
    def snapshot(named: Mapping[str, Tensor]) -> Snapshot:
        """The inverse of `named`"""
        recorded = {n.removeprefix("recorded_"): t for n, t in named.items() if n.startswith("recorded_")}
        kernels: dict[str, Tensor] = {
            Key.of(n): c for n, c in named.items() if "[" in n and not n.startswith("recorded_")
        }
        return Snapshot(kernels, recorded, named.get("tangent"))

    def solution(
        self,
        run: Trajectory,
        solver: Mapping[str, Any],
        state: dict[str, Tensor],
        previous: Solution | None,
        keep: bool,
    ) -> Solution:
        steps = sorted(run.captured)
        kept = [run.captured[step] for step in steps]
        recorded, fields = parted([s.recorded for s in kept])
        names = kept[0].kernels if kept else ()
        kernels = {name: TwoTimeKernel(steps, _stacked([s.kernels[name] for s in kept])) for name in names}
        tangents = [s.tangent.cpu() for s in kept if s.tangent is not None]
        ranks = {name: (len(q.e), len(q.f)) for name, q in self.network.layers.items()}
        return Solution(
            problem=self.problem,
            solver=solver,
            **run.answer(previous),
            state=state,
            snapshots=tuple(steps),
            kernels=kernels,
            recorded=recorded,
            fields=fields if keep else {},
            tangent=torch.stack(tangents) if tangents else None,
            stats=run.stats
            | {"ranks": list(ranks.values()), "tolerances": self.network.tolerances, "exact": self.population.exact},
        )


def _by_weight(names: Iterable[str]) -> dict[str, list[str]]:
    """The phases of each weight: "Phi conv.weight[0]", "Phi conv.weight[1]", .. of "Phi conv.weight", by its name"""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.partition("[")[0], []).append(name)
    return found


def _in_order(uses: Sequence[Use], phases: Iterable[str]) -> Tensor:
    """(n,) rows of the phases of a filter, one behind the other, in the order of calls, samples and positions"""
    places = []
    for phase in phases:
        for call, use in enumerate(u for u in uses if u.name == phase):
            seen = torch.arange(1) if use.used is None else use.used.cpu()  # of all the other phases see none
            samples = torch.arange(use.c.shape[1] // max(1, len(seen)))
            places.append(torch.cartesian_prod(torch.tensor([call]), samples, seen))
    return torch.from_numpy(np.lexsort(torch.cat(places).T.flip(0).numpy()))


def largest_axis(problem: Problem, samples: int) -> int:
    """How many neurons there are on the longest axis of a module"""
    return max(axis.at(samples) for p in problem.architecture.description for axis in p.axes if axis.wide)


def must_have_neurons(problem: Problem, samples: int) -> None:
    """ValueError for an axis whose neurons cannot even represent as many features as there are data points"""
    points, hidden = problem.data.points, problem.architecture.description.having("hidden")
    for p in hidden if not problem.is_linear else ():
        axis = min(p.below, p.above, key=lambda axis: axis.size)
        if (neurons := axis.at(samples)) <= points:
            raise ValueError(
                f"samples={samples} are too few for {points} data points, whose features alone may span as many directions: the layer "
                f"{p.key!r} has an axis of {axis}, {neurons} neurons; take at least {enough(samples, neurons, points)}"
            )


def must_have_gaussian_matrices(problem: Problem) -> None:
    """ValueError for matrices between wide axes of another law, which is seen at finite width"""
    architecture = problem.architecture
    for p in architecture.description.having("hidden"):
        law = architecture.law_of(p)
        if law is None or not law.gaussian:
            raise ValueError(
                f"matrices are revealed as Gaussian ones: received {law.name if law else 'its own start'!r} for the layer {p.key!r}; "
                "FiniteWidth trains networks of any law"
            )


def bytes_of_module(problem: Problem, samples: int, rank: int, snapshots: int, itemsize: int) -> float:
    """An estimate of the peak memory: what a forward makes is kept for the backward pass; of each matrix bases of `rank` directions, images
    and buffers
    """
    assert problem.trial is not None
    data, network = problem.data, problem.architecture.description
    fields = 2 * problem.trial.numbers(samples) * data.points
    parameters = 3 * sum(math.prod(p.shape(samples)) for p in network if p.role != "hidden")
    sides = {p: p.below.at(samples) + p.above.at(samples) for p in network.having("hidden")}
    wide = sum((3 + p.offsets + bool(snapshots)) * side for p, side in sides.items())
    outputs = data.outputs if snapshots and problem.gradients_recorded else 0
    kept = snapshots * (rank * problem.trial.kept * (1 + outputs) + problem.trial.noted(samples)) * data.samples
    tangents = min(MOST, data.samples * outputs * parameters * itemsize)
    own = problem.training.entrywise
    pairs = sum(math.prod(p.shape(samples)) for p in network.having("hidden")) if own and not own.low_rank else 0
    learned = (3 + problem.training.memories) * pairs
    return (fields + parameters + 1.75 * wide * rank + learned + kept) * itemsize + tangents


def _stacked(rows: list[Tensor]) -> Tensor:
    """(snapshots, K, Q), zeros below where a basis was still smaller"""
    most = max(map(len, rows))
    return torch.stack([torch.nn.functional.pad(c, (0, 0, 0, most - len(c))) for c in rows]).cpu()
