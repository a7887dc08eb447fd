"""The feature-learning limit of any module: S sampled neurons in the place of its width, infinite matrices in the place of its own.

Activations, norms, attention and averages over neurons stay the module's own torch code (equations 81 to 87).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from meanfield.checking.seeding import seeded
from meanfield.network.architecture import Architecture
from meanfield.network.making import written_for
from meanfield.network.roles import Parameter
from meanfield.problem.losses import Loss, averaged
from meanfield.problem.optimisers import Entrywise, Muon
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.units import units
from solvers.dmft.basis import Basis, without_part_in
from solvers.dmft.entry_dense import EntryDense
from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.module_kernels import Ends, LimitPass, bases, noted, tangents
from solvers.dmft.module_start import Fixed, Narrow, Start, Unmet
from solvers.dmft.neurons import Neurons, Population
from solvers.dmft.places import phases
from solvers.dmft.stand_in import Matrix, Met, Record
from solvers.running.apart import Passes, passes_of, rows_of
from solvers.running.inputs import EVERYWHERE, Rows, at
from solvers.running.integrator import State, grown
from solvers.running.method import Growing
from solvers.running.sharding import Shard
from solvers.running.skeleton import Samples, Skeleton
from solvers.running.tangents import Derivative, tangent_kernel
from solvers.running.watching import Watch, shells, watchable

TOGETHER = 512  # fields that extend a basis at a time: with positions there are many


class ModuleLimit(Growing):
    """One network in the limit. The state: L of each trained matrix, theta of other trained parameters, and how much is left of each W0
    (float64, on the CPU).

    Bases and images are this object's own: they are what is known of the infinite matrices, and only grow. population: S, the width of
    the module whose neurons stand for infinitely many. tolerances: of features and of gradients (equation 28). limit: the most directions
    of one side of a matrix. narrow: whether all inputs lie in the span of the data's.
    """

    met: type[Met] = Met  # how a pass meets a matrix

    def __init__(
        self,
        network: Architecture,
        scaling: Scaling,
        data: Samples,
        loss: Loss,
        population: Population,
        tolerances: tuple[float, float],
        limit: int | None = None,
        optimiser: Entrywise | None = None,
        narrow: bool = True,
    ) -> None:
        self.optimiser, self.narrow = optimiser, narrow
        self.gain = scaling.measure_limit()[0]  # sigma n; refuses scalings without such a limit
        _must_be_possible(network, population)
        self.network, self.loss, self.population, self.like = network, loss, population, population.like
        self.tolerances, self.limit, self.width = tolerances, limit, population.samples
        self.data, self.units = data.to(self.like), units(network, scaling, self.width)
        self.skeleton = Skeleton(network, self.units, self.width, seeded(population.seed, self.width), self.like)
        self.sources: dict[int, Neurons] = {}
        hidden = network.description.having("hidden")
        self.matrices = {p.name: p for p in hidden}
        self.phases = {p.name: self._phases(p) for p in hidden}
        self.layers = {name: layer for own in self.phases.values() for name, layer in own.items()}
        self.learning = [name for p, own in self.phases.items() for name in own if self.units[p].rate]
        self.own = [name for name, unit in self.units.items() if unit.rate and name not in self.matrices]
        self.watched = tuple(name for name in watchable(network.description) if name not in self.matrices)
        self.step_sizes, self.matrix_steps = self._steps()
        self.decays = self._decays()
        self.fixed = Fixed({}, {})
        self.ends = Ends(network.description, self.width, self._basis, TOGETHER)

    def _phases(self, p: Parameter) -> dict[str, InfiniteDense]:
        """The maps of a matrix by name: one, or of a filter with a stride one for each phase"""
        below, above = (self.source(axis.at(self.width)) for axis in (p.below, p.above))
        offsets = [1]
        if p.kind == "convolution":
            layer: Any = self.skeleton.module.get_submodule(p.layer)
            offsets = [len(own) for own in phases(layer.kernel_size, layer.stride, layer.dilation)]
        if len(offsets) > 1 and isinstance(self.optimiser, Muon):
            raise ValueError(
                f"the filter {p.name!r} has a stride, of which each phase is a matrix of its own in the limit: muon, which orthogonalises "
                "them together, cannot take it; take adam"
            )
        maps = [self._map(p, below, above, count) for count in offsets]
        return {p.name + f"[{i}]" * (len(maps) > 1): layer for i, layer in enumerate(maps)}

    def _map(self, p: Parameter, below: Neurons, above: Neurons, offsets: int) -> InfiniteDense:
        fine, coarse = self.tolerances
        entrywise = self.optimiser and not self.optimiser.low_rank and self.units[p.name].rate
        made = EntryDense if entrywise else InfiniteDense
        return made(below, above, fine, self.like, self.limit, coarse, offsets, TOGETHER)

    def _basis(self, size: int) -> Basis:
        """An empty one, for fields that are only looked at"""
        return Basis(size, self.tolerances[1], self.like, self.limit)

    def source(self, size: int) -> Neurons:
        """The Gaussians of all axes of a size: one source, since the fields of any two may meet neuron by neuron (equation 85)"""
        if size not in self.sources:
            own = replace(self.population, samples=size, shard=Shard(size))
            self.sources[size] = own.neurons(size)
        return self.sources[size]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the state's tensors"""
        return (*(f"learned_{name}" for name in self.learning), *(f"theta_{name}" for name in self.own), "scales")

    @property
    def _nowhere(self) -> Record:
        """For passes of which nothing is kept"""
        return Record(self.like.new_zeros(()))

    # -- start -----------------------------------------------------------------------------------------------------------

    def initial_state(self) -> State:
        """Draws every parameter where a first pass over all points meets it, and makes the readouts' outputs vanish (equation 86)"""
        start = Start(self.network, self.units, self.skeleton, self.population, self.source, self.tolerances[0])
        start.narrow = self.narrow and self.optimiser is None
        learned = {name: self.like.new_zeros(self.layers[name].learned_shape) for name in self.learning}
        given = {name: Unmet.of(start, p) for name, p in start.drawn.items()} | start.undrawn()
        points = [x for x in (self.data.x, self.data.x_test) if x is not None]
        with torch.no_grad():
            for x in points:
                self._outputs(given, learned, {}, x, self._nowhere)
            start.spans.clear()  # what later points revealed has moved the fields of earlier ones, within the tolerance
            for x in points:
                self._outputs(given, learned, {}, x, self._nowhere)
        theta, directions = start.finished()
        self.fixed = Fixed({name: t for name, t in theta.items() if name not in self.own}, directions)
        scales = torch.ones(len(self.learning), dtype=torch.float64)
        return (*learned.values(), *(theta[name] for name in self.own), scales)

    # -- one step --------------------------------------------------------------------------------------------------------

    def forward(self, state: State, rows: Rows, differentiated: bool = True, apart: bool = False) -> LimitPass:
        """apart: so that derivatives are told apart by sample"""
        learned, theta, scales = self._parts(state)
        own = {n: t.detach().requires_grad_(differentiated) for n, t in theta.items()}
        given = {n: t * self.units[n].multiplier for n, t in self.fixed.theta.items()}
        x, y = self.data.x, self.data.y
        if not isinstance(rows, slice):
            x, y = at(rows, x, "x"), at(rows, y, "y")
        record = Record(self.like.new_zeros(()).requires_grad_(differentiated))
        watch = Watch(len(x) if apart else None)
        with torch.set_grad_enabled(differentiated):
            weights = {n: t * self.units[n].multiplier for n, t in own.items()}
            if apart:
                weights |= {n: w.expand(len(x), *w.shape) for n, w in weights.items() if n not in self.watched}
            f = self._outputs(weights | given, learned, scales, x, record, watch)
            if isinstance(rows, slice) and rows == EVERYWHERE and self.data.x_test is not None:
                with torch.no_grad():
                    f_test = self._outputs(weights | given, learned, scales, self.data.x_test, self._nowhere)
                f = torch.cat([f, f_test])
        return LimitPass(f, y, own, [t.shape for t in learned.values()], record, weights, watch)

    def _parts(self, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """L of each matrix, theta of the module's own parameters, how much is left of each W0, by name"""
        count = len(self.learning)
        learned, own = dict(zip(self.learning, state, strict=False)), dict(zip(self.own, state[count:-1], strict=True))
        return learned, own, dict(zip(self.learning, state[-1].tolist(), strict=True))

    def backward(self, passed: LimitPass) -> State:
        """Minus the gradient of the loss times the rates; of a matrix as dL (equation 84)"""
        with torch.enable_grad():
            loss = averaged(self.loss, passed.f[: len(passed.y)], passed.y)
        slopes = passed.slopes(loss, passed.leaves.values(), False)
        own = [
            leaf.new_zeros(leaf.shape) if slope is None else slope.mul_(-self.units[name].rate)
            for (name, leaf), slope in zip(passed.leaves.items(), slopes, strict=True)
        ]
        return (*self._learning(passed), *own, torch.zeros(len(self.learning), dtype=torch.float64))

    def _steps(self) -> tuple[list[float], list[float]]:
        """`step_sizes` and `matrix_steps`: what a matrix learns entry by entry moves as its N(0, 1) numbers do, times the root of the
        neurons below, and what it learns in its bases over that of those above (equations 112 and 114)
        """
        sides = [(self.units[part.partition("[")[0]], self.layers[part]) for part in self.learning]
        steps = [unit.step * math.sqrt(layer.below.samples) for unit, layer in sides]
        maps = [unit.matrix / math.sqrt(layer.above.samples) for unit, layer in sides]
        return [*steps, *(self.units[name].step for name in self.own), 0.0], maps + [0.0] * (len(self.own) + 1)

    def _decays(self) -> list[float | Tensor]:
        """Of what is left of each W0 that of its matrix"""
        learned = [self.units[part.partition("[")[0]].decay for part in self.learning]
        own = [self.units[name].decay for name in self.own]
        return [*learned, *own, torch.tensor(learned, dtype=torch.float64)]

    def fall(self, passed: LimitPass, velocity: State) -> Tensor:
        """- d loss / d time (equation 111); a matrix F L E^T is one of sqrt(S) F L E^T / S among N(0, 1) parameters"""
        del passed
        learned, own, _ = self._parts(velocity)
        units = {name: self.units[name.partition("[")[0]].rate for name in (*learned, *own)}
        weights = {name: self.layers[name].weight_of_squares for name in learned}
        parts = [
            v.double().square().sum() * weights.get(name, 1) / units[name]
            for name, v in (*learned.items(), *own.items())
        ]
        return torch.stack(parts).sum()

    def noisy(self, passed: LimitPass, state: State, size: float, noise: Callable[..., torch.Generator]) -> State:
        """Noise on all that neurons have of their own, of readouts orthogonal to what they read, and on each matrix (equation 113); biases
        of the outputs, averages over neurons, have none. noise: a source for each number.
        """
        _, own, scales = self._parts(state)
        roles = {p.name: p for p in self.network.description}
        for i, (name, theta) in enumerate(own.items()):
            p = roles[name]
            if p.role == "output bias":
                continue
            drawn = torch.randn(theta.shape, generator=noise(0, i), dtype=torch.float64).to(theta)
            drawn = drawn if name in self.fixed.directions else self.skeleton.without_padding(p, drawn)
            if p.role == "readout" and not self.population.finite:
                drawn = self._unread(drawn, [call.features for call in passed.watch.of(name)])
            theta.add_(drawn, alpha=size * self.units[name].noise)
        for i, (name, left) in enumerate(scales.items()):
            own_size = size * self.units[name.partition("[")[0]].noise
            state[-1][i] = scale = math.hypot(left, own_size)
            self.layers[name].diffuse(left / scale, own_size / scale, noise(1, i))
        return state

    def _unread(self, drawn: Tensor, features: list[Tensor]) -> Tensor:
        """A readout (outputs, S, ..) without its part in features (n, S)"""
        rows = drawn.movedim(1, -1)
        if not features or features[0].shape[1] != rows.shape[-1]:
            return drawn
        flat = rows.reshape(-1, rows.shape[-1]).clone()
        return without_part_in(torch.cat(features), flat, together=TOGETHER).reshape(rows.shape).movedim(-1, 1)

    def noted(self, passed: LimitPass) -> dict[str, Tensor]:
        """Coefficients of the features that enter each matrix, "Phi name" (K, n), and of the gradients that leave it for each of C outputs,
        "G name" (J, C n), over rows and calls (equation 88), of a filter with a stride by phase; also of the features that enter readouts
        and the gradients that leave input weights
        """
        return noted(passed, self.layers, self.ends, self.gain / self.width, self.network.averages)

    def bases(self, passed: LimitPass) -> dict[str, Basis]:
        """Those of the coefficients that `noted` gives, by their names"""
        return bases(passed, self.layers, self.ends)

    def recorded(self, state: State) -> dict[str, Tensor]:
        """What the architecture records at the training points, by name; what that reveals of the matrices is kept"""
        record, x = self.network.recordings, self.data.x
        learned, own, scales = self._parts(state)
        weights = {name: theta * self.units[name].multiplier for name, theta in (own | self.fixed.theta).items()}
        ask = lambda given: self.skeleton.recorded(given, record, x)  # noqa: E731
        with torch.no_grad():
            return self._outputs(weights, learned, scales, x, self._nowhere, ask=ask) if record else {}

    def tangent_kernel(self, state: State) -> Tensor:
        """K (P, C, P, C) at the training points, for the C outputs of a sample in the order of f.flatten(1) (equation 90); what it reveals
        of the matrices is forgotten. Derivatives take at most MOST bytes (tangents.py).
        """
        samples, mark = len(self.data.x), self.mark()
        try:
            count = self.forward(state, slice(0, samples), False).f.flatten(1).shape[1]
            found = tangent_kernel(lambda: self._tangents(state), samples * count, self.like)
        finally:
            self.back_to(mark)
        return found.reshape(samples, count, samples, count)

    def _tangents(self, state: State) -> Iterator[tuple[int, dict[str, Derivative]]]:
        samples, batch = len(self.data.x), self._passes == "batch"

        def passes() -> Iterator[tuple[int, int, LimitPass]]:
            for own in rows_of(self._passes, samples):
                rows = torch.arange(own.start, own.stop)
                yield own.start, samples if batch else 1, self.forward(state, rows, True, batch)

        return tangents(passes(), self.layers, self.units)

    @cached_property
    def _passes(self) -> Passes:
        trained = tuple(name for name, unit in self.units.items() if unit.rate)
        return passes_of(self.network.builder, self.network.description, trained, self.data.x)

    def capture(self, state: State, passed: LimitPass) -> None:
        del state, passed  # fields of single neurons are not kept

    def norm(self, state: State) -> Tensor:
        """The largest root mean square over neurons, of a matrix of what it does to fields in all directions of its basis"""
        matrices = [t.square().sum(dtype=torch.float64) for t in state[: len(self.learning)]]
        own = [t.square().mean(dtype=torch.float64) for t in state[len(self.learning) : -1]]
        return torch.stack([*matrices, *own]).max().sqrt()

    def growing(self) -> dict[str, Any]:
        """All that grows as the matrices become known, by name"""
        layers = {f"{name}_{part}": grows for name, q in self.layers.items() for part, grows in q.growing().items()}
        return (
            layers
            | self.ends.growing()
            | {f"draws{size}": source for size, source in self.sources.items()}
            | {"fixed": self.fixed}
        )

    def _learning(self, passed: LimitPass) -> list[Tensor]:
        found = {name: self.like.new_zeros(shape) for name, shape in zip(self.learning, passed.shapes, strict=True)}
        for trace in passed.record.traces:
            if trace.name not in found:
                continue
            size = self.layers[trace.name].above.samples
            d, seen = trace.left, trace.right
            d = d * (-self.units[trace.name.partition("[")[0]].rate * trace.factor / size)
            total = grown(found[trace.name], (len(d), len(seen)))
            total[: len(d), : len(seen)].addmm_(d, seen.T)
            found[trace.name] = total
        return list(found.values())

    def _outputs(
        self,
        weights: Mapping[str, Tensor],
        learned: Mapping[str, Tensor],
        scales: Mapping[str, float],
        x: Tensor,
        record: Record,
        watch: Watch | None = None,
        ask: Callable[[dict[str, Tensor]], Any] | None = None,
    ) -> Any:
        """Its outputs; or what `ask` makes of its parameters"""
        given, empty = dict(weights), self.like.new_zeros(0, 0)
        for name, directions in self.fixed.directions.items():
            given[name] = Narrow.of(directions, given[name])
        if watch is not None:
            copied = [name for name in self.own if name not in self.watched] if watch.samples else ()
            given = shells(given, self.watched, watch, copied)
        for name, p in self.matrices.items():
            factor = self.units[name].multiplier * math.sqrt(p.below.at(self.width))
            met = tuple(
                self.met(part, q, learned.get(part, empty), scales.get(part, 1.0), factor, record, self.width)
                for part, q in self.phases[name].items()
            )
            given[name] = Matrix.of(met, p.shape(self.width), self.like.dtype)
        with written_for(self.like):
            return self._asked(given, x) if ask is None else ask(given)

    def _asked(self, given: dict[str, Tensor], x: Tensor) -> Tensor:
        """The outputs of the module with these parameters"""
        return self.skeleton(given, x)


def must_be_whole(processes: int) -> None:
    """ValueError for neurons that several processes share"""
    if processes > 1:
        raise ValueError(
            "a module averages over its neurons in its own code, so that processes cannot share them: spread groups over an executor"
        )


def _must_be_possible(network: Architecture, population: Population) -> None:
    must_be_whole(population.shard.ranks.count)
    scaled = next((p for p in network.description for axis in p.axes if axis.wide and axis.size != 1), None)
    if population.exact and scaled is not None:
        raise ValueError(
            f"the exact limit of linear modules needs all wide axes to be n: received {' x '.join(map(str, scaled.axes))} for "
            f"{scaled.name!r}; take draws='sobol'"
        )
