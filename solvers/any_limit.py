"""The feature-learning limit of any module: S sampled neurons in the place of its width, infinite maps in the place of its matrices.

Activations, norms, attention and averages over neurons stay the module's own torch code (equations 81 to 87).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meanfield.losses import Loss
from meanfield.measure import principal_directions
from meanfield.network.architecture import Architecture
from meanfield.network.roles import Parameter
from meanfield.scaling import Scaling
from meanfield.units import units
from solvers.any_finite import Samples
from solvers.infinite_dense import Basis, orthonormal
from solvers.infinite_map import InfiniteMap
from solvers.inputs import EVERYWHERE, Rows
from solvers.integrator import State
from solvers.method import Method
from solvers.module_start import Skeleton, seeded, written_for
from solvers.neurons import Neurons, Population
from solvers.places import phases
from solvers.sharding import Shard
from solvers.stand_in import Matrix, Met, Record

_MANY_INPUTS = 4096  # beyond, their moments are not looked at


@dataclass
class LimitPass:
    """Outputs f (n, ..., C) of a pass, targets y of its training samples, which are first, and what its backward pass needs."""

    f: Tensor
    y: Tensor
    leaves: dict[str, Tensor]  # theta of the module's own parameters, which autograd follows
    shapes: list[torch.Size]  # of L
    record: Record


@dataclass
class Fixed:
    """What the start decides and training leaves alone: theta of frozen parameters; of input weights the directions (fan_in, r) that any
    input has, where these are few: theta is then kept as (r, S), since what lies beyond is never seen.
    """

    theta: dict[str, Tensor]
    directions: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """By the end of a name"""
        theta = {f"_theta_{name}": t for name, t in self.theta.items()}
        return theta | {f"_directions_{name}": t for name, t in self.directions.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for end, own in (("_theta_", self.theta), ("_directions_", self.directions)):
            own |= {name.removeprefix(end): t for name, t in tensors.items() if name.startswith(end)}

    def mark(self) -> None:
        pass

    def back_to(self, mark: None) -> None:
        pass


class ModuleLimit(Method):
    """One network in the limit. The state: L of each trained matrix, theta of other trained parameters, and how much is left of each W0
    (float64, on the CPU).

    Bases and images are this object's own: they are what is known of the infinite matrices, and only grow. population: S, the width of
    the module whose neurons stand for infinitely many. tolerances: of features and of gradients (equation 28). limit: the most directions
    of one side of a matrix.
    """

    def __init__(
        self,
        network: Architecture,
        scaling: Scaling,
        data: Samples,
        loss: Loss,
        population: Population,
        tolerances: tuple[float, float],
        limit: int | None = None,
    ) -> None:
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
        self.fixed = Fixed({}, {})

    def _phases(self, p: Parameter) -> dict[str, InfiniteMap]:
        """The maps of a matrix by name: one, or of a filter with a stride one for each phase"""
        below, above = (self.source(axis.at(self.width)) for axis in (p.below, p.above))
        offsets = [1]
        if p.kind == "convolution":
            layer: Any = self.skeleton.module.get_submodule(p.layer)
            offsets = [len(own) for own in phases(layer.kernel_size, layer.stride, layer.dilation)]
        fine, coarse = self.tolerances
        maps = [InfiniteMap(below, above, fine, self.like, count, self.limit, coarse) for count in offsets]
        return {p.name + f"[{i}]" * (len(maps) > 1): layer for i, layer in enumerate(maps)}

    def source(self, size: int) -> Neurons:
        """The Gaussians of all axes of a size: one source, since the fields of any two may meet neuron by neuron (equation 85)"""
        if size not in self.sources:
            own = replace(self.population, samples=size, shard=Shard(size))
            self.sources[size] = own.neurons(size)
        return self.sources[size]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the state's tensors"""
        return (*(f"learned_{name}" for name in self.learning), *self.own, "scales")

    @property
    def _nowhere(self) -> Record:
        """For passes of which nothing is kept"""
        return Record(self.like.new_zeros(()))

    # -- start -----------------------------------------------------------------------------------------------------------

    def initial_state(self) -> State:
        """Draws every parameter where a first pass over all points meets it, and makes the readouts' outputs vanish (equation 86)"""
        start = _Start(self)
        learned = {name: self.like.new_zeros(0, 0) for name in self.learning}
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

    def forward(self, state: State, rows: Rows, differentiated: bool = True) -> LimitPass:
        count, scales = len(self.learning), dict(zip(self.learning, state[-1].tolist(), strict=True))
        learned = dict(zip(self.learning, state[:count], strict=True))
        own = {n: t.detach().requires_grad_(differentiated) for n, t in zip(self.own, state[count:-1], strict=True)}
        given = {n: t * self.units[n].multiplier for n, t in self.fixed.theta.items()}
        x, y = (t[rows] if isinstance(rows, Tensor) else t for t in (self.data.x, self.data.y))
        record = Record(self.like.new_zeros(()).requires_grad_(differentiated))
        with torch.set_grad_enabled(differentiated):
            weights = {n: t * self.units[n].multiplier for n, t in own.items()} | given
            f = self._outputs(weights, learned, scales, x, record)
            if not isinstance(rows, Tensor) and rows == EVERYWHERE and self.data.x_test is not None:
                with torch.no_grad():
                    f_test = self._outputs(weights, learned, scales, self.data.x_test, self._nowhere)
                f = torch.cat([f, f_test])
        return LimitPass(f, y, own, [t.shape for t in learned.values()], record)

    def backward(self, passed: LimitPass) -> State:
        """Minus the gradient of the loss times the rates; of a matrix as dL (equation 84)"""
        with torch.enable_grad():
            loss = self.loss.value(passed.f[: len(passed.y)], passed.y).mean()
        slopes = self._slopes(passed, loss, False)
        own = [
            leaf.new_zeros(leaf.shape) if slope is None else slope.mul_(-self.units[name].rate)
            for (name, leaf), slope in zip(passed.leaves.items(), slopes, strict=True)
        ]
        return (*self._learning(passed), *own, torch.zeros(len(self.learning), dtype=torch.float64))

    def _slopes(self, passed: LimitPass, of: Tensor, again: bool) -> tuple[Tensor | None, ...]:
        """Derivatives in the pass's leaves; the record has the traces. again: whether the pass will be asked for others"""
        passed.record.traces.clear()
        leaves = (*passed.leaves.values(), passed.record.anchor)
        return torch.autograd.grad(of, leaves, retain_graph=again, allow_unused=True)[:-1]

    def noted(self, passed: LimitPass) -> dict[str, Tensor]:
        """Coefficients of the features that enter each matrix, "Phi name" (K, n), and of the gradients that leave it for each of C outputs,
        "G name" (J, C n), over rows and calls (equation 88); those of a filter with a stride by phase
        """
        found = {f"Phi {name}": _beside(calls) for name, calls in passed.record.features.items()}
        if not passed.f.requires_grad:
            return found
        gradients: dict[str, list[Tensor]] = {}
        nominal = self.width / self.gain  # 1 / sigma
        with torch.enable_grad():
            outputs = passed.f[: len(passed.y)].flatten(1).sum(0).unbind()
        for output in outputs:
            self._slopes(passed, output, True)
            for trace in reversed(passed.record.traces):
                scale = nominal / self.layers[trace.name].above.samples
                gradients.setdefault(trace.name, []).append(scale * trace.d)
        return found | {f"G {name}": _beside(parts) for name, parts in gradients.items()}

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
        return layers | {f"draws{size}": source for size, source in self.sources.items()} | {"fixed": self.fixed}

    def mark(self) -> list[Any]:
        return [part.mark() for part in self.growing().values()]

    def back_to(self, mark: list[Any]) -> None:
        for part, to in zip(self.growing().values(), mark, strict=True):
            part.back_to(to)

    def _learning(self, passed: LimitPass) -> list[Tensor]:
        found = {name: self.like.new_zeros(shape) for name, shape in zip(self.learning, passed.shapes, strict=True)}
        for trace in passed.record.traces:
            if trace.name not in found:
                continue
            size = self.layers[trace.name].above.samples
            d = trace.d * (-self.units[trace.name.partition("[")[0]].rate * trace.factor / size)
            before = found[trace.name]
            rows, columns = max(len(before), len(d)), max(before.shape[1], len(trace.seen))
            total = F.pad(before, (0, columns - before.shape[1], 0, rows - len(before)))
            total[: len(d), : len(trace.seen)].addmm_(d, trace.seen.T)
            found[trace.name] = total
        return list(found.values())

    def _outputs(
        self,
        weights: Mapping[str, Tensor],
        learned: Mapping[str, Tensor],
        scales: Mapping[str, float],
        x: Tensor,
        record: Record,
    ) -> Tensor:
        given, empty = dict(weights), self.like.new_zeros(0, 0)
        for name, directions in self.fixed.directions.items():
            given[name] = Narrow.of(directions, given[name])
        for name, p in self.matrices.items():
            factor = self.units[name].multiplier * math.sqrt(p.below.at(self.width))
            met = tuple(
                Met(part, q, learned.get(part, empty), scales.get(part, 1.0), factor, record)
                for part, q in self.phases[name].items()
            )
            given[name] = Matrix.of(met, p.shape(self.width), self.like.dtype)
        with written_for(self.like):
            return self.skeleton(given, x)


def _must_be_possible(network: Architecture, population: Population) -> None:
    if not population.shard.whole:
        raise ValueError(
            "a module averages over its neurons in its own code, so that processes cannot share them: spread groups over an executor"
        )
    scaled = next((p for p in network.description for axis in p.axes if axis.wide and axis.size != 1), None)
    if population.exact and scaled is not None:
        raise ValueError(
            f"the exact limit of linear modules needs all wide axes to be n: received {' x '.join(map(str, scaled.axes))} for "
            f"{scaled.name!r}; take draws='sobol'"
        )


def _beside(parts: Sequence[Tensor]) -> Tensor:
    """(K, n) of all, zeros below where a basis was still smaller"""
    most = max(map(len, parts))
    return torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in parts], 1)


class _Start:
    """Parameters before training, drawn in the order in which a first pass meets them."""

    def __init__(self, limit: ModuleLimit) -> None:
        self.limit = limit
        own = [p for p in limit.network.description if p.name not in limit.matrices]
        self.drawn = {p.name: p for p in own if limit.units[p.name].drawn}
        self.theta: dict[str, Tensor] = {}
        self.spans: dict[str, Basis] = {}  # of what readouts read
        self.moments: dict[str, Tensor] = {}  # (fan_in, fan_in) of what linear input weights multiply

    def undrawn(self) -> dict[str, Tensor]:
        """Parameters as their author starts them; biases that shrink with the width are 0 in the limit"""
        limit, width = self.limit, self.limit.width
        fans = {p.layer: p.fan_in(width) for p in limit.network.description.having("hidden", "readout")}
        found = {}
        for p in limit.network.description:
            if p.name in limit.matrices or p.name in self.drawn:
                continue
            w = limit.skeleton.starts[p.name]
            if p.layer in fans and float(w.abs().max()) <= 1.0001 / math.sqrt(fans[p.layer]):
                w = torch.zeros_like(w)
            found[p.name], self.theta[p.name] = w, w / limit.units[p.name].multiplier
        return found

    def weight(self, p: Parameter, seen: Tensor | None) -> Tensor:
        """multiplier theta, theta drawn if it is not yet; seen (n, fan_in): what the weight multiplies"""
        if p.name not in self.theta:
            self.theta[p.name] = self._draw(p, seen)
        if p.kind == "linear" and seen is not None and seen.shape[1] <= _MANY_INPUTS:
            x = seen.double()
            self.moments[p.name] = self.moments.get(p.name, 0.0) + x.T @ x
        return self.theta[p.name] * self.limit.units[p.name].multiplier

    def _draw(self, p: Parameter, seen: Tensor | None) -> Tensor:
        shape = p.shape(self.limit.width)
        wide = [axis.wide for axis in p.axes]
        if not any(wide):  # a number or two, of no neuron
            g = torch.Generator().manual_seed(seeded(self.limit.population.seed, len(self.theta)))
            return torch.randn(shape, generator=g, dtype=torch.float64).to(self.limit.like)
        at = wide.index(True)
        rows = self.limit.source(shape[at]).fresh(math.prod(shape) // shape[at])
        if p.role == "input":
            rows = orthonormal(rows, rows[:0])
            if seen is not None:
                rows = principal_directions(seen, len(rows)).to(rows) @ rows
        theta = rows.reshape(*shape[:at], *shape[at + 1 :], shape[at]).movedim(-1, at).contiguous()
        return self.limit.skeleton.without_padding(p, theta)

    def keep_apart(self, p: Parameter, features: Tensor) -> None:
        """A readout is to be orthogonal to these features (n, S)"""
        if p.name not in self.spans:
            limit, rough = self.limit, self.limit.like.dtype == torch.float32
            tolerance = min(limit.tolerances[0], 1e-3) if rough else 1e-8
            self.spans[p.name] = Basis(features.shape[1], tolerance, limit.like)
        for some in features.split(512):
            self.spans[p.name].reveal(some)

    def finished(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """theta of all parameters, and directions as in `Fixed`"""
        for name, p in self.drawn.items():
            self.weight(p, None)
            if name in self.spans and not self.limit.population.exact:
                theta, span = self.theta[name], self.spans[name].fields.rows
                rows = theta.movedim(1, -1)
                free = orthonormal(orthonormal(rows.reshape(-1, rows.shape[-1]), span), span)
                self.theta[name] = free.reshape(rows.shape).movedim(-1, 1).contiguous()
        directions = {}
        for name, moment in self.moments.items():
            values, vectors = torch.linalg.eigh(moment)
            seen = values > 1e-14 * values[-1]
            if 2 * int(seen.sum()) <= len(seen):
                directions[name] = vectors[:, seen].flip(1).to(self.limit.like)
                self.theta[name] = (self.theta[name] @ directions[name]).T.contiguous()
        return self.theta, directions


class Narrow(Tensor):
    """An input weight by the few directions that its inputs have: linear layers multiply by these first."""

    directions: Tensor  # (fan_in, r)
    rows: Tensor  # (r, S)

    @staticmethod
    def of(directions: Tensor, rows: Tensor) -> Narrow:
        narrow = torch.empty(rows.shape[1], len(directions), dtype=rows.dtype, device="meta").as_subclass(Narrow)
        narrow.directions, narrow.rows = directions, rows
        return narrow

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], Narrow):
            out = args[0] @ args[1].directions @ args[1].rows
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return out if bias is None else out + bias

        def whole(value: Any) -> Any:
            return (value.directions @ value.rows).T if isinstance(value, Narrow) else value

        return func(*map(whole, args), **{key: whole(value) for key, value in kwargs.items()})


class Unmet(Tensor):
    """An input weight, readout or vector before its draw: what torch does with it is done with its numbers, drawn when it is first met.

    A readout gives zeros in the linear and convolutional layers of a first pass, as it does in the limit, and remembers what it read.
    """

    start: _Start
    parameter: Parameter

    @staticmethod
    def of(start: _Start, parameter: Parameter) -> Unmet:
        limit = start.limit
        shape = parameter.shape(limit.width)
        unmet = torch.empty(shape, dtype=limit.like.dtype, device="meta").as_subclass(Unmet)
        unmet.start, unmet.parameter = start, parameter
        return unmet

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seen = _seen(func, args, kwargs)

        def real(value: Any) -> Any:
            if not isinstance(value, Unmet):
                return value
            p, start = value.parameter, value.start
            weight = start.weight(p, seen if p.role == "input" else None)
            if p.role != "readout" or seen is None or start.limit.population.exact:
                return weight
            start.keep_apart(p, seen.reshape(-1, weight.shape[1]))
            return torch.zeros_like(weight)

        return func(*map(real, args), **{key: real(value) for key, value in kwargs.items()})


def _seen(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a weight multiplies in a layer: (n, fan_in) of a linear one or, for a readout by a filter, (n, ..) channels last"""
    if func is F.linear:
        return args[0].detach().reshape(-1, args[0].shape[-1])
    if func not in (F.conv1d, F.conv2d, F.conv3d) or len(args) < 2:
        return None
    x, weight = args[0].detach(), args[1]
    if weight.parameter.role == "readout":
        return x.movedim(-weight.ndim + 1, -1).contiguous()
    return _patches(x, weight, *args[3:], **{k: v for k, v in kwargs.items() if k not in ("bias", "groups")})


def _patches(
    x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> Tensor:
    """(n, fan_in) what a filter sees at each position: the convolution with unit filters"""
    del groups
    fan_in = math.prod(weight.shape[1:])
    units_ = torch.eye(fan_in, dtype=x.dtype, device=x.device).reshape(fan_in, *weight.shape[1:])
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    return convolve(x, units_, None, stride, padding, dilation).movedim(1, -1).reshape(-1, fan_in)
