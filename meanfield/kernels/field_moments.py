"""Second moments C = <u v> over neurons and tangent kernels Theta = sum of rate du dv between two nodes (equation 97).

Between the samples of two batches arrays are (points, points', b, b'); of points with themselves alone (points, b, b'). Within each
sample of one batch (`own`) the last axis is b alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from meanfield.kernels import field_arrays as arrays
from meanfield.kernels.field_arrays import Both, Part
from meanfield.kernels.field_nodes import (
    Folded,
    Joined,
    Mapped,
    Node,
    Parted,
    Pointwise,
    Product,
    Rooted,
    Share,
    Total,
    every,
    sources,
)
from meanfield.kernels.gaussian_averages import gaussian_mean

Tables = dict[bytes, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]
PairRules = Sequence[tuple[type[Node], Callable[..., Both]]]  # the first that suits one of two nodes counts
DEEPEST = 24  # calls that wait for each other, some ten frames of Python's stack each
FEW = 64  # pairs that are not worth a table of averages


class _Deeper(Exception):
    """Asks for a pair of nodes to be found first"""

    def __init__(self, key: tuple[Node, Node, bool]) -> None:
        super().__init__()
        self.key = key


class Within:
    """What is needed of each sample alone: means over neurons, variances and moments between the points of a sample."""

    def __init__(self, rules: PairRules) -> None:
        self.rules = rules
        self.means: dict[Node, Part] = {}
        self.variances: dict[Pointwise, Tensor] = {}
        self.moments = Moments(self, self, own=True)

    def mean(self, node: Node) -> Part:
        """(points, b or 1)"""
        if node not in self.means:
            self.means[node] = None if node.gaussian else self._mean(node)
        return self.means[node]

    def square(self, node: Node) -> Tensor:
        """<u^2> (points, b or 1)"""
        c = self.moments(node, node, same=True)[0]
        return torch.zeros(node.size, 1, dtype=torch.float64) if c is None else c

    def variance(self, node: Pointwise) -> Tensor:
        """Of the Gaussian below"""
        if node not in self.variances:
            self.variances[node] = self.square(node.child)
        return self.variances[node]

    def size(self, node: Node) -> Tensor:
        """About how large its entries are"""
        if isinstance(node, Product):
            return self.size(node.first) * self.size(node.second)
        return self.square(node).sqrt()

    def at_activations(self, node: Node) -> list[tuple[Pointwise, Tensor]]:
        """Each activation that leads to a node, those below before those above, and the variance that it sees"""
        return [(below, self.variance(below)) for below in every(node) if isinstance(below, Pointwise)]

    def _mean(self, node: Node) -> Part:
        if isinstance(node, Rooted):
            return (node.root @ node.leaf.mean.to(node.root)).T
        if isinstance(node, Mapped):
            m = self.mean(node.child)
            return None if m is None else node.map.applied(m, 0, -1)
        if isinstance(node, Total):
            return arrays.added(self.mean(term) for term in node.terms)
        if isinstance(node, Product):
            if sources(node.first) & sources(node.second):
                return self.moments(node.first, node.second, same=True)[0]
            return arrays.times(self.mean(node.first), self.mean(node.second))
        if isinstance(node, Share):
            return self.mean(node.child)
        if isinstance(node, Joined):
            return arrays.added(
                arrays.scaled(self.mean(part), share) for part, share in zip(node.parts, node.shares, strict=True)
            )
        if isinstance(node, Parted):
            m = self.mean(node.child)
            return None if m is None else m.repeat_interleave(node.parts, 0)
        if isinstance(node, Folded):
            m = self.mean(node.child)
            return None if m is None else m[node.folds].mean(0)
        assert isinstance(node, Pointwise)
        return gaussian_mean(node.phi.phi, node.phi, self.variance(node))


class Moments:
    """Between the nodes of two batches, or within each sample of one. tables: averages prepared for the pairs of all batches, by phi."""

    def __init__(self, left: Within, right: Within, own: bool = False, tables: Tables | None = None) -> None:
        self.left, self.right, self.own, self.tables = left, right, own, tables or {}
        self.known: dict[tuple[Node, Node, bool], Both] = {}
        self.depth = 0  # of calls that wait for each other

    def __call__(self, u: Node, v: Node, same: bool) -> Both:
        """same: of points with themselves alone, of nodes with as many points"""
        key = (u, v, same)
        if key not in self.known:
            if self.depth == DEEPEST:
                raise _Deeper(key)
            self._find(key) if self.depth else self._find_from_below(key)
        return self.known[key]

    def _find(self, key: tuple[Node, Node, bool]) -> None:
        u, v, same = key
        all_pairs = self.known.get((u, v, False)) if same else None
        self.depth += 1
        try:
            self.known[key] = self._found(u, v, same) if all_pairs is None else arrays.diagonal(all_pairs)
        finally:
            self.depth -= 1

    def _find_from_below(self, key: tuple[Node, Node, bool]) -> None:
        """What lies too deep for Python's stack is found before what waits for it, which begins again then"""
        waiting = [key]
        while waiting:
            try:
                self._find(waiting[-1])
                waiting.pop()
            except _Deeper as deeper:
                waiting.append(deeper.key)

    def _found(self, u: Node, v: Node, same: bool) -> Both:
        if not u.links & v.links:
            return self.outer(self.left.mean(u), self.right.mean(v), same), None
        if isinstance(u, Total) or isinstance(v, Total):
            return arrays.sums(self(a, b, same) for a, b in self._terms(u, v))
        for kind, rule in self.left.rules:
            if isinstance(u, kind) or isinstance(v, kind):
                return rule(self, u, v, same)
        raise AssertionError(f"no rule for {type(u).__name__} and {type(v).__name__}")

    def _terms(self, u: Node, v: Node) -> Iterator[tuple[Node, Node]]:
        """Pairs of terms of two sums, but for those that are independent and of mean zero"""
        first, second = (node.terms if isinstance(node, Total) else (node,) for node in (u, v))
        with_link: dict[str, set[int]] = {}
        with_mean = {i for i, b in enumerate(second) if self.right.mean(b) is not None}
        for i, b in enumerate(second):
            for link in b.links:
                with_link.setdefault(link, set()).add(i)
        for a in first:
            met = set().union(*(with_link.get(link, ()) for link in a.links))
            for i in sorted(met if self.left.mean(a) is None else met | with_mean):
                yield a, second[i]

    def outer(self, m: Part, n: Part, same: bool) -> Part:
        """m n^T"""
        if m is None or n is None:
            return None
        if not self.own:
            m, n = m[..., :, None], n[..., None, :]
        return m * n if same else m[:, None] * n[None]
