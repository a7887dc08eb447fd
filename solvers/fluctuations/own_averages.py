"""Averages over neurons that a module takes in its own code, between weighted neurons, and the trial that tells whether all are known.

Layers of torch that end at a readout or a matrix are not among these: their weights have the weights of neurons (equation 101).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meanfield.network.architecture import Architecture
from meanfield.network.calls import Log, wide
from meanfield.network.making import made, written_for
from meanfield.network.roles import Parameter
from meanfield.problem.problem import Problem
from solvers.dmft.stand_in import Matrix

Share = Callable[
    [int], Tensor | None
]  # n m of the neurons of an axis of this size; None for one that has none of its own

_FEW = 3  # samples


@dataclass(frozen=True)
class Where:
    """A call of a module's forward: the function, and of each tensor that it is given the axes of neurons"""

    name: str
    axes: tuple[tuple[int, ...], ...]


class Averages(TorchFunctionMode):
    """Within it averages over neurons are weighted: calls as in a trial, by the shares n m of the neurons. weights: parameters, which have
    the shares already.
    """

    def __init__(self, calls: Sequence[Where], share: Share, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls, self.share, self.at = calls, share, 0
        self.weights = {_place(w) for w in weights if type(w) is Tensor}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        where, self.at = self.calls[self.at] if self.at < len(self.calls) else None, self.at + 1
        if where is None or where.name != name:
            raise ValueError(f"the network's forward calls {name!r} where a trial of it did not")
        rule = _RULES.get(name)
        if rule is None or not any(where.axes) or any(map(self._is_weight, args)):
            return func(*args, **kwargs)
        return rule(func, where.axes, self.share, *args, **kwargs)

    def _is_weight(self, given: Any) -> bool:
        return isinstance(given, Matrix) or (type(given) is Tensor and _place(given) in self.weights)


def _place(t: Tensor) -> int:
    """Where its numbers lie: the same for a transposed one"""
    return t.untyped_storage().data_ptr()


def _weighted(x: Tensor, share: Share, axes: Sequence[int]) -> Tensor:
    """x times the shares of its neurons along these axes"""
    for axis in axes:
        own = share(x.shape[axis])
        if own is not None:
            x = x * along(own, axis, x.ndim)
    return x


def along(numbers: Tensor, axis: int, dimensions: int) -> Tensor:
    """Numbers (n,) as a factor for the axis of a tensor of so many dimensions"""
    return numbers.reshape([-1 if i == axis else 1 for i in range(dimensions)])


def _reduced(
    func: Any, axes: Any, share: Share, x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any
) -> Tensor:
    """mean or sum"""
    if dim is None:
        return func(_weighted(x, share, axes[0]), **options)
    over = [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    return func(_weighted(x, share, [a for a in axes[0] if a in over]), dim, keepdim, **options)


def _product(func: Any, axes: Any, share: Share, left: Tensor, right: Tensor) -> Tensor:
    return func(_weighted(left, share, [a for a in axes[0] if a == left.ndim - 1]), right)


def _product_from_the_right(func: Any, axes: Any, share: Share, right: Tensor, left: Tensor) -> Tensor:
    return func(right, _weighted(left, share, [a for a in axes[1] if a == left.ndim - 1]))


def _attention(func: Any, axes: Any, share: Share, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return func(_weighted(query, share, [a for a in axes[0] if a == query.ndim - 1]), *args, **kwargs)


def _einsum(func: Any, axes: Any, share: Share, equation: str, *operands: Tensor) -> Tensor:
    inputs, _, output = equation.replace(" ", "").partition("->")
    found, done = list(operands), set(output)
    for i, letters in enumerate(inputs.split(",") if output and "." not in equation else ()):
        found[i] = _weighted(found[i], share, [a for a in axes[i] if letters[a] not in done])
        done |= {letters[a] for a in axes[i]}
    return func(equation, *found)


def _norm(func: Any, axes: Any, share: Share, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The root of a sum of squares"""
    return func(
        _weighted(x, lambda size: None if (own := share(size)) is None else own.sqrt(), axes[0]), *args, **kwargs
    )


def _rms_norm(
    func: Any,
    axes: Any,
    share: Share,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    own = _of_last(axes, share, input, normalized_shape)
    if own is None:
        return func(input, normalized_shape, weight, eps)
    least = torch.finfo(input.dtype).eps if eps is None else eps
    out = input / ((input.square() * own).mean(-1, keepdim=True) + least).sqrt()
    return out if weight is None else out * weight


def _layer_norm(
    func: Any,
    axes: Any,
    share: Share,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The RMS norm of what is left without the mean, and a bias"""
    own = _of_last(axes, share, input, normalized_shape)
    if own is None:
        return func(input, normalized_shape, weight, bias, eps)
    apart = input - (input * own).mean(-1, keepdim=True)
    out = _rms_norm(func, axes, share, apart, normalized_shape, weight, eps)
    return out if bias is None else out + bias


def _of_last(axes: Any, share: Share, input: Tensor, shape: Any) -> Tensor | None:
    """Shares of the neurons that a norm is over; None for one over anything else"""
    return share(input.shape[-1]) if len(shape) == 1 and input.ndim - 1 in axes[0] else None


_RULES: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "__rmatmul__": _product_from_the_right,
    **dict.fromkeys(("mean", "sum"), _reduced),
    **dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm"), _norm),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), _product),
}


def own_averages(problem: Problem) -> tuple[Where, ...]:
    """The calls of a module's forward, once a trial has shown that with weights in those that average over neurons it is what it is with
    as many copies of each neuron.

    ValueError for a module that averages over neurons in another way, or looks at which neuron is which: heads, concatenated fields.
    """
    network, x = problem.architecture, problem.data.x[:_FEW]
    x = x.double() if x.is_floating_point() else x
    unit = network.description.unit
    few, many = (_Trial(network, k * unit) for k in (2, 3))
    copies = {size: _copies(size) for size in few.sizes}
    parameters, buffers = few.drawn(), dict(few.net.named_buffers())
    twice = many.of_copies(parameters, copies) | many.of_copies(buffers, copies)
    with torch.no_grad(), written_for(torch.empty(0, dtype=torch.float64)):
        logs = Log(), Log()
        with logs[0]:
            few(parameters, x)
        with logs[1]:
            expected = many(twice, x)
        calls = tuple(
            Where(a.name, tuple(wide(*pair) for pair in zip(a.given, b.given, strict=False)))
            for a, b in zip(*(log.calls for log in logs), strict=False)
        )
        shares = {size: torch.bincount(chosen).double() * (2 / 3) for size, chosen in copies.items()}
        given = few.weighted(parameters, shares)
        try:
            with Averages(calls, shares.get, (given[p.name] for p in network.description.having("hidden", "readout"))):
                found = few(given, x)
        except (ValueError, TypeError):  # arguments that a rule does not know
            found = None
    if found is None or not torch.allclose(found, expected, rtol=1e-6, atol=1e-9):
        raise ValueError(
            "method='derivative' weighs the neurons of a module in its layers, in layer norms, means, sums, norms and products of fields. "
            "Received one that uses them in another way (several heads, fields put beside each other, a transposed matrix, variances); "
            "method='networks' takes any"
        )
    return calls


def other_than_draws(network: Architecture) -> tuple[list[str], list[str]]:
    """(parameters that start with fixed numbers, other ones for each neuron; numbers of no neuron that start at random)"""
    one, two = (made(network.builder, 2 * network.description.unit, 2**62, seed) for seed in (0, 1))
    fixed, random = [], []
    for p in network.description:
        law, wide_axes = network.law_of(p), [i for i, axis in enumerate(p.axes) if axis.wide]
        a, b = (net.get_parameter(p.name).detach() for net in (one, two))
        if len(wide_axes) == 1 and law is None and torch.equal(a, b):
            rows = a.movedim(wide_axes[0], 0)
            fixed += [p.name] if bool((rows != rows[:1]).any()) else []
        elif p.role == "plain" and (not law.zero if law else not torch.equal(a, b)):
            random.append(p.name)
    return fixed, random


def _copies(size: int) -> Tensor:
    """(3/2 size,) which neuron each one is a copy of: half of them, chosen at random, stand twice"""
    g = np.random.default_rng(size)
    return torch.from_numpy(g.permutation(np.concatenate([np.arange(size), g.permutation(size)[: size // 2]])))


class _Trial:
    """A module of some width with parameters of order 1"""

    def __init__(self, network: Architecture, width: int) -> None:
        self.network, self.width = network.description, width
        self.net: nn.Module = made(network.builder, width, least=2**62).to(torch.float64)
        self.sizes = {axis.at(width) for p in self.network for axis in p.axes if axis.wide}

    def __call__(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(self.net, dict(given), (x,))

    def drawn(self) -> dict[str, Tensor]:
        """Parameters of which no two neurons have the same"""
        g, found = torch.Generator().manual_seed(0), {}
        for p in self.network:
            w = self.net.get_parameter(p.name).detach()
            noise = torch.randn(w.shape, generator=g, dtype=w.dtype)
            if p.role in ("input", "hidden", "readout"):
                found[p.name] = noise / p.fan_in(self.width) ** (1.0 if p.role == "readout" else 0.5)
            else:
                found[p.name] = w + 0.3 * noise  # a gate that starts at 0 would hide what is behind it
        return found

    def weighted(self, given: Mapping[str, Tensor], shares: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Matrices and readouts with the shares of the neurons that they average over"""
        found = dict(given)
        for p in self.network.having("hidden", "readout"):
            found[p.name] = _weighted(given[p.name], shares.get, [_averaged_axis(p)])
        return found

    def of_copies(self, few: Mapping[str, Tensor], copies: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Its parameters or buffers, of copies of the neurons of a network that has fewer"""
        own, averaging = dict(self.net.state_dict()), self.network.having("hidden", "readout")
        shares, found = {p.name: 2 / 3 for p in averaging}, {}
        for name, t in few.items():
            for axis in wide(tuple(t.shape), tuple(own[name].shape)):
                t = t.index_select(axis, copies[t.shape[axis]]) if t.shape[axis] in copies else own[name]
            found[name] = t * shares.get(name, 1) if t.is_floating_point() else t
        return found


def _averaged_axis(p: Parameter) -> int:
    """Of a matrix or readout that of the neurons which it averages over"""
    return p.axes.index(p.below) if p.role == "readout" else 1
