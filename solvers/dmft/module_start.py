"""A module in the limit before training: what is drawn where a first pass meets it, readouts whose outputs vanish (equations 85, 86).

Where the population is that of a network of finite width (equation 100), all draws are plain ones, and the outputs are random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from meanfield.checking.seeding import seeded
from meanfield.measures.particle_measure import principal_directions
from meanfield.network.architecture import Architecture
from meanfield.network.laws import NORMAL
from meanfield.network.roles import Parameter
from meanfield.scaling.units import Unit
from solvers.dmft.basis import Basis, orthonormal
from solvers.dmft.neurons import Neurons, Population
from solvers.running.failures import RankError
from solvers.running.skeleton import Skeleton
from solvers.running.watching import patches

_MANY_INPUTS = 4096  # beyond, their moments are not looked at


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


class Start:
    """Parameters before training, drawn in the order in which a first pass meets them."""

    def __init__(
        self,
        network: Architecture,
        units: Mapping[str, Unit],
        skeleton: Skeleton,
        population: Population,
        source: Callable[[int], Neurons],
        tolerance: float,
    ) -> None:
        self.network, self.units, self.skeleton, self.population = network, units, skeleton, population
        self.source, self.tolerance, self.width, self.like = source, tolerance, population.samples, population.like
        self.own = [p for p in network.description if p.role != "hidden"]
        self.drawn = {p.name: p for p in self.own if units[p.name].drawn}
        self.theta: dict[str, Tensor] = {}
        self.spans: dict[str, Basis] = {}  # of what readouts read
        self.narrow = True  # whether input weights are kept in the directions of their inputs
        self.moments: dict[str, Tensor] = {}  # (fan_in, fan_in) of what linear input weights multiply

    def undrawn(self) -> dict[str, Tensor]:
        """Parameters as their author starts them; biases that shrink with the width are 0 in the limit"""
        shrinking = () if self.population.finite else self.network.description.having("hidden", "readout")
        fans = {p.layer: p.fan_in(self.width) for p in shrinking}
        found = {}
        for p in self.own:
            if p.name in self.drawn:
                continue
            w = self.skeleton.starts[p.name]
            if p.layer in fans and float(w.abs().max()) <= 1.0001 / math.sqrt(fans[p.layer]):
                w = torch.zeros_like(w)
            found[p.name], self.theta[p.name] = w, w / self.units[p.name].multiplier
        return found

    def weight(self, p: Parameter, seen: Tensor | None) -> Tensor:
        """multiplier theta, theta drawn if it is not yet; seen (n, fan_in): what the weight multiplies"""
        if p.name not in self.theta:
            self.theta[p.name] = self._draw(p, seen)
        if p.kind == "linear" and seen is not None and seen.shape[1] <= _MANY_INPUTS:
            x = seen.double()
            self.moments[p.name] = self.moments.get(p.name, 0.0) + x.T @ x
        return self.theta[p.name] * self.units[p.name].multiplier

    def _draw(self, p: Parameter, seen: Tensor | None) -> Tensor:
        shape = p.shape(self.width)
        wide = [axis.wide for axis in p.axes]
        finite = self.population.finite
        if p.role == "output bias" and not finite:  # in units of which the outputs are of order n^(1/2)
            return self.like.new_zeros(shape)
        if not any(wide):  # a number or two, of no neuron
            g = torch.Generator().manual_seed(seeded(self.population.seed, len(self.theta)))
            own = self.units[p.name].law
            return (own or NORMAL).of(torch.randn(shape, generator=g, dtype=torch.float64)).to(self.like)
        at, law = wide.index(True), self.units[p.name].law
        assert law is not None
        rows = self.source(shape[at]).fresh(math.prod(shape) // shape[at])
        if not self.population.exact or law.zero:  # of linear networks the variance alone counts (equation 121)
            rows = law.of(rows)
        turns = (law.gaussian and not finite) or self.population.exact  # others are not the same in all directions
        if p.role == "input" and turns:
            rows = _of_inputs(rows, seen, p.kind == "embedding")
        theta = rows.reshape(*shape[:at], *shape[at + 1 :], shape[at]).movedim(-1, at).contiguous()
        return self.skeleton.without_padding(p, theta)

    def keep_apart(self, p: Parameter, features: Tensor) -> None:
        """A readout is to be orthogonal to these features (n, S)"""
        if p.name not in self.spans:
            tolerance = min(self.tolerance, 1e-3) if self.like.dtype == torch.float32 else 1e-8
            self.spans[p.name] = Basis(features.shape[1], tolerance, self.like)
        span, outputs = self.spans[p.name], math.prod(p.shape(self.width)) // features.shape[1]
        for some in features.split(512):
            span.reveal(some)
        if (needed := len(span) + outputs) > span.size:
            raise RankError(needed, span.size, None, f"the readout {p.key!r}", self.width)

    def finished(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """theta of all parameters, and directions as in `Fixed`"""
        for name, p in self.drawn.items():
            self.weight(p, None)
            if name in self.spans and not self.population.exact and not self.units[name].law.zero:  # type: ignore[union-attr]
                theta, span = self.theta[name], self.spans[name].fields.rows
                rows = theta.movedim(1, -1)
                free = orthonormal(orthonormal(rows.reshape(-1, rows.shape[-1]), span), span)
                self.theta[name] = free.reshape(rows.shape).movedim(-1, 1).contiguous()
        directions = {}
        for name, moment in self.moments.items():
            values, vectors = torch.linalg.eigh(moment)
            seen = values > 1e-14 * values[-1]
            if self.narrow and 2 * int(seen.sum()) <= len(seen):
                directions[name] = vectors[:, seen].flip(1).to(self.like)
                self.theta[name] = (self.theta[name] @ directions[name]).T.contiguous()
        return self.theta, directions


def _of_inputs(rows: Tensor, seen: Tensor | None, tokens: bool) -> Tensor:
    """An input weight (fan_in, S) of Gaussian rows: in the directions of its inputs `seen`, the main ones made orthonormal, or the tokens

    All of them, unless there are more than neurons: S/2 then, and the others stay independent.
    """
    apart = len(rows) if len(rows) < rows.shape[1] else rows.shape[1] // 2
    rows = torch.cat([orthonormal(rows[:apart], rows[:0]), rows[apart:]])
    if seen is None:
        return rows
    if not tokens:
        return principal_directions(seen, len(rows)).to(rows) @ rows
    used = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    used[seen] = True
    return rows if apart == len(rows) else rows[torch.argsort((~used).int(), stable=True).argsort()]


_SHAPE = {Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.ndim.__get__, Tensor.size, Tensor.dim}  # type: ignore[attr-defined]


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
        if func in _SHAPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)

        def whole(value: Any) -> Any:
            return (value.directions @ value.rows).T if isinstance(value, Narrow) else value

        args, kwargs = tree_map(whole, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)


class Unmet(Tensor):
    """An input weight, readout or vector before its draw: what torch does with it is done with its numbers, drawn when it is first met.

    A readout gives zeros in the linear and convolutional layers of a first pass, as it does in the limit, and remembers what it read.
    """

    start: Start
    parameter: Parameter

    @staticmethod
    def of(start: Start, parameter: Parameter) -> Unmet:
        shape = parameter.shape(start.width)
        unmet = torch.empty(shape, dtype=start.like.dtype, device="meta").as_subclass(Unmet)
        unmet.start, unmet.parameter = start, parameter
        return unmet

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SHAPE:  # is no meeting
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        seen = _seen(func, args, kwargs)

        def real(value: Any) -> Any:
            if not isinstance(value, Unmet):
                return value
            p, start = value.parameter, value.start
            weight = start.weight(p, seen if p.role == "input" else None)
            if p.role != "readout" or seen is None or not start.population.sampled:
                return weight
            start.keep_apart(p, seen.reshape(-1, weight.shape[1]))
            return torch.zeros_like(weight)

        args, kwargs = tree_map(real, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)


def _seen(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a weight multiplies in a layer: (n, fan_in) of a linear one or, for a readout by a filter, (n, ..) channels last; the tokens of
    an embedding
    """
    if func is F.embedding:
        return args[0].detach()
    if func is F.linear:
        return args[0].detach().reshape(-1, args[0].shape[-1])
    if func not in (F.conv1d, F.conv2d, F.conv3d) or len(args) < 2:
        return None
    x, weight = args[0].detach(), args[1]
    if weight.parameter.role == "readout":
        return x.movedim(-weight.ndim + 1, -1).contiguous()
    geometry = {"stride": 1, "padding": 0, "dilation": 1} | dict(
        zip(("stride", "padding", "dilation"), args[3:6], strict=False)
    )
    geometry |= {name: value for name, value in kwargs.items() if name in geometry}
    return patches(x, tuple(weight.shape[2:]), **geometry).T.contiguous()
