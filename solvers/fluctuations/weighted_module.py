"""WeightedModule: a module of n neurons as a function of the weight of each neuron in every average (equations 100 and 101).

It is ModuleLimit with the exact law of finite networks. A step is differentiated twice: its velocity by what moves (inner), what is
observed of the whole way by the weights (outer). For both, matrices are met with the same numbers, but not with the same derivatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meanfield.network.roles import Parameter
from meanfield.problem.losses import averaged
from meanfield.problem.problem import Problem
from solvers.dmft.module_kernels import LimitPass
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Neurons, Population
from solvers.dmft.stand_in import Met, Record, Trace
from solvers.fluctuations.own_averages import Averages, along, own_averages
from solvers.fluctuations.weighted_dense import Side, Turns, Weighted, WeightedDense, plus
from solvers.running.inputs import EVERYWHERE, Rows, at
from solvers.running.integrator import State
from solvers.running.sharding import Shard
from solvers.running.skeleton import Samples
from solvers.running.watching import Watch


@dataclass
class Twice(Record):
    """inner: whether the velocity is asked for, not the outer derivatives"""

    inner: bool = False


class WeightedMet(Met):
    """A matrix between weighted neurons. What autograd brings is m times the field g = n dLoss/dh of a neuron of weight m."""

    layer: WeightedDense  # type: ignore[assignment]
    record: Twice  # type: ignore[assignment]

    def __call__(self, rows: Tensor) -> Tensor:
        image, _, seen = self.forward(rows)
        return _Through.apply(rows, image * self.factor, self.record.anchor, self, [seen])  # type: ignore[return-value]

    def back(self, slope: Tensor, seen: Tensor) -> Tensor:
        """What a network's backward pass makes of it; the record learns of it"""
        z, d = self.backward(slope / self.layer.above.m)
        self.record.traces.append(Trace(self.name, 0, self.factor, d, seen, d, seen))
        return z * (self.layer.below.m * self.factor)


class _Through(torch.autograd.Function):
    """The image of v. Inner: its derivative is what a network's backward pass gives, by the matrix that is known then; outer: all that the
    image was made of, v and directions among them, has its own.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, image: Tensor, anchor: Tensor, met: WeightedMet, seen: list[Tensor]) -> Tensor:  # type: ignore[override]
        ctx.met, ctx.seen = met, seen  # a list, so that autograd leaves its own derivatives alone
        return image.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if not ctx.met.record.inner:
            return None, slope, None, None, None
        return ctx.met.back(slope, *ctx.seen), None, slope.new_zeros(()), None, None


class WeightedModule(Weighted, ModuleLimit):
    """weights: (c n,) of the neurons of all axes of a size c n, each of sum 1; `axes` has one of each size."""

    met = WeightedMet

    def __init__(self, problem: Problem, samples: int, seed: int, tolerance: float) -> None:
        like, network = torch.empty(0, dtype=torch.float64), problem.architecture
        self.roles = {p.name: p for p in network.description}
        self.axes = list(dict.fromkeys(axis for p in network.description for axis in p.axes if axis.wide))
        sizes = [axis.at(samples) for axis in self.axes]
        self.masses = {n: torch.full((n,), 1 / n, dtype=like.dtype, requires_grad=True) for n in sizes}
        self.maps = ()
        self.begun: State = ()
        self.calls = own_averages(problem)
        population = Population(samples, seed, "finite", like, Shard(samples))
        data = Samples(problem.data.x, problem.data.y, problem.data.x_test)
        loss, fine = problem.loss_function, (tolerance, tolerance)
        super().__init__(network, problem.in_plane, data, loss, population, fine)
        self.still = [False] * len(self.names)
        self.drawn = [self.source(size) for size in sizes]

    @property
    def weights(self) -> list[Tensor]:
        return list(self.masses.values())

    @property
    def _nowhere(self) -> Twice:
        return Twice(self.like.new_zeros(()))

    def source(self, size: int) -> Neurons:
        """Sobol points: the neurons of a network, whose averages carry as little noise as can be"""
        if size not in self.sources:
            own = replace(self.population, samples=size, draws="sobol", shard=Shard(size))
            self.sources[size] = own.neurons(size)
        return self.sources[size]

    def _map(self, p: Parameter, below: Neurons, above: Neurons, offsets: int) -> WeightedDense:  # type: ignore[override]
        under, over = (Side.of(neurons, self.masses[neurons.samples]) for neurons in (below, above))
        made = WeightedDense(under, over, self.tolerances[0], offsets)
        self.maps = [*self.maps, made]
        return made

    def initial_state(self) -> State:
        """Drawn once, since the weights of neurons have no part in it, but for biases of readouts: averages over neurons"""
        if not self.begun:
            self.begun = super().initial_state()
            self.once = dict(self.fixed.theta) | self._parts(self.begun)[1]
            self.means = {name: draws for name in self.once if (draws := self._mean(name)) is not None}
            for side in self.sides:
                side.turns = Turns()
            self.beginning = self.mark()
        self.back_to(self.beginning)
        self.know(())
        theta = self._started()
        return (*self.begun[: len(self.learning)], *(theta[name] for name in self.own), self.begun[-1])

    def _started(self) -> dict[str, Tensor]:
        """theta of all parameters but matrices at the start, by the weights that neurons have now"""
        means = {name: draws @ self.masses[draws.shape[1]] for name, draws in self.means.items()}
        return self.once | {name: mean.reshape(self.once[name].shape) for name, mean in means.items()}

    def _mean(self, name: str) -> Tensor | None:
        """(numbers, S') of which theta of a readout's bias is the average over neurons; None for what is none, or is 0 at the start"""
        p, unit, w = self.roles[name], self.units[name], self.skeleton.starts.get(name)
        if p.role != "output bias" or (unit.law and unit.law.zero):
            return None
        readouts = self.network.description.having("readout")
        size = next((r.below.at(self.width) for r in readouts if r.layer == p.layer), max(self.masses))
        draws = self.source(size).fresh(self.once[name].numel())
        if w is None:
            return draws * math.sqrt(size)
        # torch's biases are uniform within one over the root of the fan-in
        if not 0 < float(w.abs().max()) <= 1.0001 / math.sqrt(size):
            return None
        return draws / (math.sqrt(3) * unit.multiplier)

    def forward(self, state: State, rows: Rows, differentiated: bool = True, apart: bool = False) -> LimitPass:
        """With all derivatives where gradients are enabled around it, with those that a step needs in any case"""
        del differentiated, apart
        outer, (learned, theta, scales) = torch.is_grad_enabled(), self._parts(state)
        own = {n: t if outer and t.requires_grad else t.detach().requires_grad_() for n, t in theta.items()}
        x, y = self.data.x, self.data.y
        if not isinstance(rows, slice):
            x, y = at(rows, x, "x"), at(rows, y, "y")
        record = Twice(self.like.new_zeros(()).requires_grad_())
        with torch.enable_grad():
            weights = {n: self._met(n, t) for n, t in (self._started() | own).items()}
            f = self._outputs(weights, learned, scales, x, record)
            if isinstance(rows, slice) and rows == EVERYWHERE and self.data.x_test is not None:
                f = torch.cat([f, self._outputs(weights, learned, scales, self.data.x_test, self._nowhere)])
        return LimitPass(f, y, own, [t.shape for t in learned.values()], record, weights, Watch())

    def backward(self, passed: LimitPass) -> State:
        """The velocity, with its derivatives where gradients are enabled around it"""
        outer, record = torch.is_grad_enabled(), passed.record
        assert isinstance(record, Twice)
        with torch.enable_grad():
            loss = averaged(self.loss, passed.f[: len(passed.y)], passed.y)
        targets, record.inner = (*passed.leaves.values(), record.anchor), True
        slopes = torch.autograd.grad(loss, targets, create_graph=outer, allow_unused=True)
        record.inner = False
        own = []
        for (name, theta), slope in zip(passed.leaves.items(), slopes[:-1], strict=True):
            share = self._share(name, theta)
            slope = torch.zeros_like(theta) if slope is None else slope
            own.append(slope * -self.units[name].rate / (1 if share is None else share))
        velocity = (*self._learning(passed), *own, torch.zeros(len(self.learning), dtype=torch.float64))
        record.traces.clear()  # what they came from refers to the record: nothing would ever be freed
        return velocity if outer else tuple(v.detach() for v in velocity)

    def _asked(self, given: dict[str, Tensor], x: Tensor) -> Tensor:
        readouts = (given[p.name] for p in self.network.description.having("readout"))
        with Averages(self.calls, self._of_axis, readouts):
            return super()._asked(given, x)

    def _of_axis(self, size: int) -> Tensor | None:
        """n m of the neurons of an axis of this size"""
        return size * self.masses[size] if size in self.masses else None

    def _learning(self, passed: LimitPass) -> list[Tensor]:
        found = {name: self.like.new_zeros(shape) for name, shape in zip(self.learning, passed.shapes, strict=True)}
        for trace in passed.record.traces:
            if trace.name in found:
                factor = -self.units[trace.name.partition("[")[0]].rate * trace.factor
                moved = (factor / self.layers[trace.name].above.samples * trace.left) @ trace.right.T
                found[trace.name] = plus(found[trace.name], moved)
        return list(found.values())

    def _met(self, name: str, theta: Tensor) -> Tensor:
        """The weight as a pass meets it: a readout averages over weighted neurons"""
        w = theta * self.units[name].multiplier
        share = self._share(name, theta) if self.roles[name].role == "readout" else None
        return w if share is None else w * share

    def _share(self, name: str, theta: Tensor) -> Tensor | None:
        """n m of each neuron along the wide axis of a parameter, in a shape that multiplies it; None for one of no neuron"""
        wide = [axis.wide for axis in self.roles[name].axes]
        if not any(wide):
            return None
        at = theta.ndim - 1 if name in self.fixed.directions else wide.index(True)
        size = theta.shape[at]
        return along(size * self.masses[size], at, theta.ndim)
