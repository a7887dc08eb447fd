"""Fields as sums, maps and functions of independent Gaussians, neuron by neuron, as a forward pass makes them (equation 97)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from meanfield.kernels.field_maps import Filter, LinearMap
from meanfield.network.activations import Activation

REMEDY = "solvers.monte_carlo_kernels(build, ..) has the kernels of real networks of it"


@dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter without a wide fan-in: of each of its entries (D,) along the other axes the mean over neurons, the variance, and
    `theta`, its learning rate times what multiplies it squared."""

    name: str
    mean: Tensor
    variance: Tensor
    theta: Tensor

    @cached_property
    def random(self) -> bool:
        return bool(self.variance.any())


ONE = Leaf("", *(torch.full((1,), v, dtype=torch.float64) for v in (1.0, 0.0, 0.0)))  # what is the same for all neurons


@dataclass(frozen=True)
class MatrixLaw:
    """What an infinite matrix does to moments: C = variance Phi, Theta = feature Phi + slope Theta (equation 97)"""

    name: str
    variance: float
    feature: float
    slope: float


@dataclass(frozen=True, eq=False)
class Node:
    """size: points. gaussian: whether its neurons are, with mean zero. links: names of the parameters that its neurons share with others:
    what passes through a matrix is independent of all that does not pass through the same one last."""

    size: int
    gaussian: bool
    links: frozenset[str]


@dataclass(frozen=True, eq=False)
class Rooted(Node):
    """A linear function of a leaf, root (b or 1, points, D)"""

    leaf: Leaf
    root: Tensor

    @staticmethod
    def of(leaf: Leaf, root: Tensor) -> Rooted:
        gaussian = not bool(leaf.mean.any())
        links = frozenset((leaf.name,) if leaf.random or bool(leaf.theta.any()) else ())
        return Rooted(root.shape[1], gaussian, links, leaf, root)


@dataclass(frozen=True, eq=False)
class Mixed(Node):
    """An infinite matrix on a field, or the matrices of a filter"""

    law: MatrixLaw
    child: Node
    filter: Filter | None = None

    @staticmethod
    def of(law: MatrixLaw, child: Node, filter: Filter | None = None) -> Mixed:
        size = child.size if filter is None else math.prod(filter.after)
        return Mixed(size, True, frozenset((law.name,)), law, child, filter)


@dataclass(frozen=True, eq=False)
class Mapped(Node):
    """A linear map of the points of a node"""

    map: LinearMap
    child: Node


@dataclass(frozen=True, eq=False)
class Total(Node):
    """A sum of nodes"""

    terms: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Pointwise(Node):
    """phi of a Gaussian node"""

    phi: Activation
    key: bytes  # phi's values at some places, by which it is known
    child: Node


@dataclass(frozen=True, eq=False)
class Product(Node):
    """The product of two nodes, and where it is written"""

    first: Node
    second: Node
    place: str = ""


@dataclass(frozen=True, eq=False)
class Parted(Node):
    """Neurons in `parts` parts, which become points: (points, parts)"""

    parts: int
    child: Node


@dataclass(frozen=True, eq=False)
class Share(Node):
    """One of several equal parts of the neurons, which is independent of the others"""

    parts: int
    which: int
    child: Node


@dataclass(frozen=True, eq=False)
class Folded(Node):
    """Points (folds, points) that become neurons"""

    folds: Tensor
    child: Node


@dataclass(frozen=True, eq=False)
class Joined(Node):
    """Neurons of several nodes side by side, each a share of them all"""

    parts: tuple[Node, ...]
    shares: tuple[float, ...]


def joined(parts: list[Node], shares: list[float]) -> Node:
    """Neurons side by side; of a join its own parts"""
    every = [
        (part, own * share)
        for node, share in zip(parts, shares, strict=True)
        for part, own in (zip(node.parts, node.shares, strict=True) if isinstance(node, Joined) else ((node, 1.0),))
    ]
    links = frozenset().union(*(part.links for part, _ in every))
    nodes, sizes = zip(*every, strict=True)
    return Joined(nodes[0].size, False, links, nodes, sizes)


def mapped(map: LinearMap, node: Node) -> Node:
    """The map of a node; sums and the leaves below them are mapped each for itself"""
    if map.is_identity(node.size):
        return node
    if isinstance(node, Total):
        return total([mapped(map, term) for term in node.terms])
    if isinstance(node, Joined):
        return replace(joined([mapped(map, part) for part in node.parts], list(node.shares)), size=map.outputs)
    if isinstance(node, Rooted):
        return Rooted.of(node.leaf, map.applied(node.root.movedim(0, -1), 0, -1).movedim(-1, 0))
    if isinstance(node, Product):
        for one, other in ((node.first, node.second), (node.second, node.first)):
            if is_fixed(other) and isinstance(other, Rooted) and bool((other.root == other.root[:1, :1]).all()):
                return product(mapped(map, one), Rooted.of(other.leaf, other.root[:1, :1].expand(1, map.outputs, -1)))
    if isinstance(node, Product) and map.index is not None and map.weight is None:
        return product(mapped(map, node.first), mapped(map, node.second), node.place)
    return Mapped(map.outputs, node.gaussian, node.links, map, node)


def scaled(node: Node, number: float) -> Node:
    """A number times a node, which stays the same function of the same neurons"""
    if isinstance(node, Rooted) and not node.links:
        return Rooted.of(node.leaf, node.root * number)
    if isinstance(node, Mapped) and (before := node.map.number) is not None:
        node, number = node.child, before * number
    if number == 1:
        return node
    return Mapped(node.size, node.gaussian, node.links, LinearMap.times(number, node.size), node)


def total(nodes: list[Node]) -> Node:
    """The sum of nodes of the same points; those of zeros add nothing"""
    every = [term for node in nodes for term in (node.terms if isinstance(node, Total) else (node,))]
    terms = [term for term in every if not isinstance(term, Rooted) or bool(term.root.any())] or every[:1]
    if len(terms) == 1:
        return terms[0]
    links = frozenset().union(*(term.links for term in terms))
    return Total(terms[0].size, all(term.gaussian for term in terms), links, tuple(terms))


def product(first: Node, second: Node, place: str = "") -> Node:
    """Of two nodes; of those that depend on each other the mean alone is known"""
    if isinstance(first, Joined) and is_fixed(second):
        return joined([product(part, second, place) for part in first.parts], list(first.shares))
    gaussian = any(a.gaussian and is_fixed(b) for a, b in ((first, second), (second, first)))
    return Product(max(first.size, second.size), gaussian, first.links | second.links, first, second, place)


def is_fixed(node: Node) -> bool:
    """Whether it is the same for all neurons before training"""
    if isinstance(node, Total):
        return all(map(is_fixed, node.terms))
    if isinstance(node, Share):
        return is_fixed(node.child)
    return isinstance(node, Rooted) and not node.leaf.random


def sources(node: Node) -> frozenset[str]:
    """The parameters that make its neurons random"""
    if isinstance(node, Rooted):
        return frozenset((node.leaf.name,) if node.leaf.random else ())
    if isinstance(node, Mixed):
        return frozenset((node.law.name,))
    if isinstance(node, Total):
        return frozenset().union(*map(sources, node.terms))
    if isinstance(node, Product):
        return sources(node.first) | sources(node.second)
    if isinstance(node, Joined):
        return frozenset().union(*map(sources, node.parts))
    if isinstance(node, Share):
        return frozenset(_of_part(name, node.parts, node.which) for name in sources(node.child))
    return sources(node.child)  # type: ignore[attr-defined]


def parted(node: Node, parts: int) -> Node:
    """Neurons in parts"""
    if isinstance(node, Total):
        return total([parted(term, parts) for term in node.terms])
    if isinstance(node, Rooted) and not node.links:
        return Rooted.of(node.leaf, node.root.repeat_interleave(parts, 1))
    return Parted(node.size * parts, node.gaussian, node.links, parts, node)


def share(node: Node, parts: int, which: int) -> Node:
    """A part of the neurons"""
    if isinstance(node, Total):
        return total([share(term, parts, which) for term in node.terms])
    links = frozenset(_of_part(name, parts, which) for name in node.links)
    return Share(node.size, node.gaussian, links, parts, which, node) if links else node


def _of_part(name: str, parts: int, which: int) -> str:
    return f"{name}[{which}/{parts}]"


def folded(node: Node, folds: Tensor) -> Node:
    """Points become neurons"""
    return Folded(folds.shape[1], False, node.links, folds, node)


def every(node: Node) -> list[Node]:
    """A node and all that lead to it, those below before those above"""
    found: dict[Node, None] = {}
    todo = [(node, False)]
    while todo:
        one, ready = todo.pop()
        if ready:
            found[one] = None
        elif one not in found:
            ends = [getattr(one, name, None) for name in ("child", "first", "second")]
            todo.append((one, True))
            todo.extend(
                (end, False) for end in (*ends, *getattr(one, "terms", ()), *_joined(one)) if isinstance(end, Node)
            )
    return list(found)


def _joined(node: Node) -> tuple[Node, ...]:
    return node.parts if isinstance(node, Joined) else ()
