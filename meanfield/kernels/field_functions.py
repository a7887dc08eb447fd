"""Functions of the same neurons: what a node is as a function of a Gaussian one, and such functions as nodes (equation 97)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from meanfield.kernels.field_nodes import (
    REMEDY,
    Mapped,
    Node,
    Pointwise,
    Product,
    Rooted,
    Total,
    is_fixed,
    sources,
    total,
)
from meanfield.kernels.field_places import where
from meanfield.network import activations
from meanfield.network.activations import Activation

Function = Callable[[Tensor], Tensor]
_PROBES = torch.linspace(-4, 4, 41, dtype=torch.float64) + 0.0137  # where functions are compared


@dataclass(frozen=True)
class Shape:
    """A function of one Gaussian node: base and function, with the places of its kinks"""

    base: Node
    function: Function
    kinks: tuple[float, ...] = ()
    linear: bool = field(default=True)


def shape(node: Node) -> Shape | None:
    """The node as a function, neuron by neuron, of a Gaussian node; None if it is none"""
    if isinstance(node, Pointwise):
        inner = shape(node.child)
        assert inner is not None
        kinks = tuple(at for at, _ in node.phi.kinks)
        return Shape(inner.base, _after(node.phi.phi, inner.function), _back(inner, kinks), linear=False)
    if isinstance(node, Mapped):
        number, inner = node.map.number, shape(node.child)
        if number is not None and inner is not None:
            return replace(inner, function=lambda h: number * inner.function(h))
    if isinstance(node, Total):
        fixed = [term for term in node.terms if is_fixed(term) and not term.gaussian]
        rest = [term for term in node.terms if term not in fixed]
        number = _number(fixed)
        inner = shape(total(rest)) if fixed and rest else None
        if number is not None and inner is not None:
            return replace(inner, function=lambda h: inner.function(h) + number)
    return Shape(node, lambda h: h) if node.gaussian else None


def _after(outer: Function, inner: Function) -> Function:
    return lambda h: outer(inner(h))


def _back(inner: Shape, kinks: tuple[float, ...]) -> tuple[float, ...]:
    """Where the kinks of a function of `inner` lie, for a linear `inner`"""
    if not kinks:
        return inner.kinks
    if not inner.linear:
        raise ValueError(
            "a function with kinks of a function of the same neurons has no rule: write both as one activation, registered with its kinks"
        )
    at = torch.tensor([0.0, 1.0], dtype=torch.float64)
    start, end = inner.function(at).tolist()
    return tuple((kink - start) / (end - start) for kink in kinks)


def _number(nodes: list[Node]) -> float | None:
    """The number that all points of fixed nodes have together"""
    if not nodes:
        return None
    values = reduce(torch.add, [node.root @ node.leaf.mean for node in nodes if isinstance(node, Rooted)])
    return float(values.flatten()[0]) if bool((values == values.flatten()[0]).all()) else None


def pointwise(outer: Shape) -> Node:
    """The function of a Gaussian node as a node"""
    phi, key = known(outer.function, outer.kinks, where())
    base = outer.base
    return Pointwise(base.size, False, base.links, phi, key, base)


def activated(node: Node, phi: Activation) -> Node:
    """phi of a node; ValueError for one that is no Gaussian"""
    if not node.gaussian:
        raise ValueError(f"an activation of what is no Gaussian field: no kernel is known; {REMEDY}")
    return Pointwise(node.size, False, node.links, phi, phi(_PROBES).numpy().tobytes(), node)


def combined(first: Node, second: Node, how: Callable[[Tensor, Tensor], Tensor]) -> Node | None:
    """Two functions of the same neurons, at least one of them no linear one, as one; None if they are not"""
    one, other = shape(first), shape(second)
    if one is None or other is None or one.base is not other.base:
        return None
    kinks = tuple(sorted({*one.kinks, *other.kinks}))
    return pointwise(Shape(one.base, lambda h: how(one.function(h), other.function(h)), kinks, linear=False))


def known(function: Function, kinks: tuple[float, ...], place: str) -> tuple[Activation, bytes]:
    """An activation that does what the function does, one with a name if there is one, else called after its place, and its key"""
    values = function(_PROBES.clone())
    for name in activations.names():
        phi = activations.activation(name)
        if torch.allclose(phi(_PROBES), values, rtol=1e-14, atol=1e-15):
            return phi, phi(_PROBES).numpy().tobytes()
    phi = Activation(place, function, slope_of(function), kinks=tuple((at, 0.0) for at in kinks), tried=True)
    return phi, values.numpy().tobytes()


def slope_of(function: Function) -> Function:
    """Its derivative, number by number"""

    def slope(h: Tensor) -> Tensor:
        with torch.enable_grad():
            at = h.detach().requires_grad_()
            return torch.autograd.grad(function(at).sum(), at)[0]

    return slope


def through_gain(phi: Activation) -> tuple[Activation, bytes]:
    """h phi'(h): the derivative of phi(g h) in a gain g at 1"""
    return known(lambda h: h * phi.dphi(h), tuple(at for at, _ in phi.kinks), phi.name)


def gained(node: Node) -> tuple[Node, Node] | None:
    """(y, g) of a node g y + what is fixed, with a trained gain g; ValueError for one that is added to what is random"""
    found = list(_gains(node))
    if not found:
        return None
    random = [term for term in (node.terms if isinstance(node, Total) else (node,)) if sources(term)]
    if len(found) > 1 or len(random) > 1:
        raise ValueError(
            f"a trained gain of a norm is followed by a sum with other fields and then an activation: no rule; freeze it, or "
            f"{REMEDY}"
        )
    return found[0]


def _gains(node: Node) -> Iterable[tuple[Node, Node]]:
    """Reached from a node by sums, maps and products"""
    if isinstance(node, Total):
        for term in node.terms:
            yield from _gains(term)
    elif isinstance(node, Mapped):
        yield from _gains(node.child)
    elif isinstance(node, Product):
        for inner, vector in ((node.first, node.second), (node.second, node.first)):
            if is_fixed(vector) and vector.links:
                yield inner, vector
            yield from _gains(inner)
