"""Second moments C = <u v> over neurons and tangent kernels Theta = sum of rate du dv between two nodes (equation 93).

Between the samples of two batches arrays are (points, points', b, b'); of points with themselves alone (points, b, b'). Within each sample of
one batch (`own`) the last axis is b alone. None stands for zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from meanfield.kernels.field_nodes import (
    Folded,
    Mapped,
    Mixed,
    Node,
    Parted,
    Pointwise,
    Product,
    Rooted,
    Share,
    Total,
    is_fixed,
    sources,
    through_gain,
)
from meanfield.kernels.gaussian_averages import GaussianAverages, gaussian_averages
from meanfield.kernels.gaussian_quadrature import Quadrature
from meanfield.network.activations import Activation

Part = Tensor | None
Both = tuple[Part, Part]  # C, Theta
Tables = dict[bytes, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]
FEW = 64  # pairs that are not worth a table of averages
REMEDY = "solvers.monte_carlo_kernels(build, ..) has the kernels of real networks of it"


class Within:
    """What is needed of each sample alone: means over neurons, variances and moments between the points of a sample."""

    def __init__(self) -> None:
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

    def _mean(self, node: Node) -> Part:
        if isinstance(node, Rooted):
            return (node.root @ node.leaf.mean).T
        if isinstance(node, Mapped):
            m = self.mean(node.child)
            return None if m is None else node.map.applied(m, 0, -1)
        if isinstance(node, Total):
            return _added(self.mean(term) for term in node.terms)
        if isinstance(node, Product):
            if sources(node.first) & sources(node.second):
                return self.moments(node.first, node.second, same=True)[0]
            return _times(self.mean(node.first), self.mean(node.second))
        if isinstance(node, Share):
            return self.mean(node.child)
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

    def __call__(self, u: Node, v: Node, same: bool) -> Both:
        """same: of points with themselves alone, of nodes with as many points"""
        key = (u, v, same)
        if key not in self.known:
            every = self.known.get((u, v, False)) if same else None
            self.known[key] = self._found(u, v, same) if every is None else _diagonal(every)
        return self.known[key]

    def _found(self, u: Node, v: Node, same: bool) -> Both:
        if not u.links & v.links:
            return self._outer(self.left.mean(u), self.right.mean(v), same), None
        if isinstance(u, Total) or isinstance(v, Total):
            ends = [node.terms if isinstance(node, Total) else (node,) for node in (u, v)]
            return _sum(self(a, b, same) for a in ends[0] for b in ends[1])
        for kind, rule in _RULES:
            if isinstance(u, kind) or isinstance(v, kind):
                return rule(self, u, v, same)
        raise AssertionError(f"no rule for {type(u).__name__} and {type(v).__name__}")

    def _outer(self, m: Part, n: Part, same: bool) -> Part:
        """m n^T"""
        if m is None or n is None:
            return None
        if not self.own:
            m, n = m[..., :, None], n[..., None, :]
        return m * n if same else m[:, None] * n[None]

    def _mapped(self, u: Node, v: Node, same: bool) -> Both:
        alike = isinstance(u, Mapped) and isinstance(v, Mapped) and _equal(u.map.index, v.map.index)
        if same and not (alike and u.map.index is not None):  # type: ignore[attr-defined]
            return _diagonal(self(u, v, False))
        inner = [node.child if isinstance(node, Mapped) else node for node in (u, v)]
        parts = self(inner[0], inner[1], same)
        for axis, node in enumerate((u, v)):
            if isinstance(node, Mapped):
                batch = -1 if self.own or axis else -2
                if same and axis:  # its points are in place
                    parts = _each(lambda x: _weighted(x, v.map.weight, batch), parts)  # type: ignore[attr-defined]
                else:
                    parts = _each(lambda x: node.map.applied(x, 0 if same else axis, batch), parts)
        return parts

    def _folded(self, u: Node, v: Node, same: bool) -> Both:
        if not (isinstance(u, Folded) and isinstance(v, Folded) and u.folds.shape == v.folds.shape):
            raise ValueError(
                f"neurons that were points before meet others that were not and depend on them: no rule; {REMEDY}"
            )
        one = same or u.size == 1
        parts = self(u.child, v.child, one)
        if one:
            averaged = _each(lambda x: x[u.folds].mean(0), parts)
            return averaged if same else _each(lambda x: x[None], averaged)
        return _each(lambda x: _mean_of_folds(x, u.folds, v.folds), parts)

    def _parted(self, u: Node, v: Node, same: bool) -> Both:
        if not (isinstance(u, Parted) and isinstance(v, Parted) and u.parts == v.parts):
            raise ValueError(f"a part of the neurons meets all of them: no rule; {REMEDY}")
        c, theta = self(u.child, v.child, same)
        if same:
            return _each(lambda x: x.repeat_interleave(u.parts, 0), (c, theta))
        across = self._outer(self.left.mean(u.child), self.right.mean(v.child), False)
        return _parts(c, u.parts, across), _parts(theta, u.parts, None)

    def _share(self, u: Node, v: Node, same: bool) -> Both:
        if not (isinstance(u, Share) and isinstance(v, Share)):
            raise ValueError(f"a part of the neurons meets all of them: no rule; {REMEDY}")
        return self(u.child, v.child, same)

    def _mixed(self, u: Mixed, v: Mixed, same: bool) -> Both:
        """Of one matrix, which both share"""
        law, first, second = u.law, u.reads, v.reads
        if same and not _equal(first, second):
            return _diagonal(self(u, v, False))
        phi, theta = self(u.child, v.child, same)
        if first is not None and second is not None:
            phi, theta = _each(lambda x: _over_offsets(x, first, second, same), (phi, theta))
        c = _scaled(phi, law.variance)
        return c, _added((_scaled(phi, law.feature), _scaled(theta, law.slope)))

    def _rooted(self, u: Rooted, v: Rooted, same: bool) -> Both:
        leaf = u.leaf
        second = leaf.mean[:, None] * leaf.mean  # <w w^T>, of leaves that are the same for all neurons
        moments = [second if bool(second.any()) else None, leaf.theta]
        if leaf.random:
            moments[0] = leaf.variance
        return tuple(self._between_roots(u.root, v.root, m, same) for m in moments)  # type: ignore[return-value]

    def _between_roots(self, a: Tensor, b: Tensor, w: Part, same: bool) -> Part:
        if w is None or not bool(w.any()):
            return None
        a = a * w if w.ndim == 1 else a @ w
        if same:
            return torch.einsum("bsd,bsd->sb" if self.own else "bsd,csd->sbc", *self._matched(a, b))
        if self.own:
            return torch.einsum("bsd,btd->stb", *self._matched(a, b))
        out = a.flatten(0, 1) @ b.flatten(0, 1).T
        return out.reshape(len(a), a.shape[1], len(b), -1).permute(1, 3, 0, 2)

    def _matched(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Roots that are the same for all samples beside others"""
        if not self.own or len(a) == len(b):
            return a, b
        return a.expand(max(len(a), len(b)), -1, -1), b.expand(max(len(a), len(b)), -1, -1)

    def _product(self, u: Node, v: Node, same: bool) -> Both:
        first, second = u, v
        if not isinstance(first, Product):
            return self._product_with(v, u, same, turned=True)
        if not isinstance(second, Product):
            return self._product_with(u, v, same, turned=False)
        for a, b in ((second.first, second.second), (second.second, second.first)):
            if not sources(first.first) & sources(b) and not sources(first.second) & sources(a):
                c1, theta1 = self(first.first, a, same)
                c2, theta2 = self(first.second, b, same)
                return _times(c1, c2), _added((_times(theta1, c2), _times(c1, theta2)))
        places = f"{first.place or second.place}: " if first.place or second.place else ""
        raise ValueError(
            f"{places}products of fields that depend on each other, and are not functions of the same neurons, have no rule; {REMEDY}"
        )

    def _product_with(self, u: Node, w: Node, same: bool, turned: bool) -> Both:
        """Between a product and what depends on one of its factors alone"""
        assert isinstance(u, Product)
        for a, b in ((u.first, u.second), (u.second, u.first)):
            if not sources(b) & sources(w):
                end = (self.right if turned else self.left).mean(b)
                if end is None:
                    return None, None
                place = (None, slice(None)) if turned else (slice(None), None)  # of its points
                batch = (..., None, slice(None)) if turned else (..., slice(None), None)
                end = end if self.own else end[batch]
                end = end if same else end[place]
                parts = self(w, a, same) if turned else self(a, w, same)
                return _each(lambda x: x * end, parts)
        raise ValueError(f"a product of fields meets another field that both of its factors depend on: no rule; {REMEDY}")

    def _pointwise(self, u: Node, v: Node, same: bool) -> Both:
        if not isinstance(u, Pointwise) or not isinstance(v, Pointwise):
            return self._by_stein(u, v, same)
        if u.key != v.key:
            raise ValueError(
                f"two functions of neurons that depend on each other, {u.phi.name} and {v.phi.name}, are added or used by one matrix: no "
                f"rule; {REMEDY}"
            )
        averages, alike = gaussian_averages(u.phi), u is v and self.left is self.right
        p, q = self.left.variance(u), self.right.variance(v)
        c, theta = (p, self(u.child, v.child, same)[1]) if alike and self.own and same else self(u.child, v.child, same)
        c = _zeros(p, q, self.own, same) if c is None else c
        phi, slope = self._averages(u.key, averages, p, q, c, same, alike)
        at_gains, below = None, theta
        if (gain := gained(u.child)) is not None:
            at_gains, below = self._through_gain(gain, gained(v.child), (u, v), (p, q, c), theta, same)
        return phi, _added((_times(slope, below), at_gains))

    def _averages(
        self, key: bytes, averages: GaussianAverages, p: Tensor, q: Tensor, c: Tensor, same: bool, alike: bool
    ) -> tuple[Tensor, Tensor]:
        """Both averages at c; those of points with themselves from their variances"""
        if alike and self.own and same:
            return averages.single(p)
        if self.own:
            batch = c.shape[-1]
            p, q = p.T.expand(batch, -1), q.T.expand(batch, -1)
            given = (p[..., None], q[..., None], c.T[..., None, None]) if same else (p, q, c.movedim(-1, 0))
        else:
            given = (p, q, c) if same else (p[:, None], q[None], c)
        pair = None if self.own else self.tables.get(key)
        pair = pair or (averages.pair if c.numel() <= FEW else averages.prepare(p, q, c.numel()))
        found = pair(*given)
        if self.own:
            found = [x[..., 0, 0].T if same else x.movedim(0, -1) for x in found]
        if alike:
            for full, exact in zip(found, averages.single(self._of_itself(p)), strict=True):
                _itself(full, self.own, same).copy_(exact)
        return found[0], found[1]

    def _of_itself(self, p: Tensor) -> Tensor:
        return p.T if self.own else p

    def _through_gain(
        self,
        gain: tuple[Node, Node],
        other: tuple[Node, Node] | None,
        ends: tuple[Pointwise, Pointwise],
        at: tuple[Tensor, Tensor, Tensor],
        theta: Part,
        same: bool,
    ) -> Both:
        """Theta of phi(g y) in the gain g, and what remains of Theta below it: g moves phi by phi'(h) h / g, which is no constant"""
        if other is None:
            raise ValueError(f"a gain meets the same function without one: no rule; {REMEDY}")
        (inner, vector), (inner2, vector2) = gain, other
        moved = self(vector, vector2, same)[1]
        if moved is None:
            return None, theta
        means = self._outer(self.left.mean(vector), self.right.mean(vector2), same)
        assert means is not None
        phi, key = through_gain(ends[0].phi)
        alike = ends[0] is ends[1] and self.left is self.right
        flat = self._averages(key, gaussian_averages(phi), *at, same, alike)[0]
        rest = _times(self(inner, inner2, same)[0], moved)
        return flat * moved / means, _added((theta, None if rest is None else -rest))

    def _by_stein(self, u: Node, v: Node, same: bool) -> Both:
        """<u phi(g)> = <u g> <phi'(g)> for a Gaussian u"""
        node, other, turned = (u, v, False) if isinstance(u, Pointwise) else (v, u, True)
        assert isinstance(node, Pointwise)
        if not other.gaussian:
            raise ValueError(f"a function of neurons meets another field that depends on them and is not Gaussian: no rule; {REMEDY}")
        end = self.right if turned else self.left
        slope = gaussian_mean(node.phi.dphi, node.phi, end.variance(node))
        slope = slope if self.own else slope[(..., None, slice(None)) if turned else (..., slice(None), None)]
        slope = slope if same else slope[(None, slice(None)) if turned else (slice(None), None)]
        parts = self(u, node.child, same) if turned else self(node.child, v, same)
        return _each(lambda x: x * slope, parts)


_RULES: tuple[tuple[type[Node], Callable[..., Both]], ...] = (
    (Mapped, Moments._mapped),
    (Folded, Moments._folded),
    (Parted, Moments._parted),
    (Share, Moments._share),
    (Product, Moments._product),
    (Pointwise, Moments._pointwise),
    (Mixed, Moments._mixed),
    (Rooted, Moments._rooted),
)


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


def gaussian_mean(function: Callable[[Tensor], Tensor], phi: Activation, p: Tensor) -> Tensor:
    """<f(h)> of h ~ N(0, p), for a function with the kinks of phi"""
    rule, s = Quadrature(phi), p.reshape(-1).sqrt()
    unique, back = torch.unique(s, return_inverse=True)
    level = rule.level(unique)
    parts = []
    for some in unique.split(256):
        z, weight = rule.nodes(torch.zeros_like(some), some, rule.kinks(some), level)
        parts.append((function(some[:, None] * z) * weight).sum(-1))
    return torch.cat(parts)[back].reshape(p.shape)


def _zeros(p: Tensor, q: Tensor, own: bool, same: bool) -> Tensor:
    points = (len(p),) if same else (len(p), len(q))
    batch = (max(p.shape[1], q.shape[1]),) if own else (p.shape[1], q.shape[1])
    return torch.zeros(*points, *batch, dtype=torch.float64)


def _itself(x: Tensor, own: bool, same: bool) -> Tensor:
    """The view (points, b) of what each point of each sample has with itself"""
    if own:
        return x.diagonal(0, 0, 1).T
    return x.diagonal(0, -2, -1) if same else x.diagonal(0, -2, -1).diagonal(0, 0, 1).T


def _over_offsets(x: Tensor, first: Tensor, second: Tensor, same: bool) -> Tensor:
    """The mean over the offsets of a filter, which sees points `first` and `second` (offsets, points)"""
    if same:
        table, rows, sizes = first, x, first.shape[1:]
    else:
        places = first[:, :, None] * x.shape[1] + second[:, None, :]
        table = places.masked_fill((first[:, :, None] < 0) | (second[:, None, :] < 0), -1).flatten(1)
        rows, sizes = x.flatten(0, 1), (first.shape[1], second.shape[1])
    if bool((table < 0).any()):
        table = torch.where(table < 0, len(rows), table)
        rows = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    out, buffer = rows.index_select(0, table[0]), None
    for offset in table[1:]:
        buffer = torch.index_select(rows, 0, offset, out=buffer) if buffer is not None else rows.index_select(0, offset)
        out += buffer
    return out.div_(len(table)).reshape(*sizes, *x.shape[1 if same else 2 :])


def _mean_of_folds(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    out = sum(x[a][:, b] for a, b in zip(first, second, strict=True))
    return out / len(first)  # type: ignore[operator]


def _parts(x: Part, parts: int, across: Part) -> Part:
    """(points parts, points' parts, ..): x within each part, `across` between two"""
    like = x if x is not None else across
    if like is None:
        return None
    out = like.new_zeros(len(like), parts, like.shape[1], parts, *like.shape[2:])
    if across is not None:
        out += across[:, None, :, None]
    for part in range(parts):
        out[:, part, :, part] = 0 if x is None else x
    return out.flatten(2, 3).flatten(0, 1)


def _weighted(x: Tensor, weight: Tensor | None, batch: int) -> Tensor:
    """x (points, ..) times weights (b, points)"""
    if weight is None:
        return x
    shape = [1] * x.ndim
    shape[0], shape[batch] = weight.shape[1], len(weight)
    return x * weight.T.reshape(shape)


def _diagonal(parts: Both) -> Both:
    return _each(lambda x: x.diagonal(0, 0, 1).movedim(-1, 0), parts)


def _each(function: Callable[[Tensor], Tensor], parts: Both) -> Both:
    first, second = (None if x is None else function(x) for x in parts)
    return first, second


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _scaled(x: Part, number: float) -> Part:
    return None if x is None or number == 0 else x * number


def _times(x: Part, y: Part) -> Part:
    return None if x is None or y is None else x * y


def _added(parts: Iterable[Part]) -> Part:
    out = None
    for part in parts:
        if part is not None:
            out = part if out is None else out + part
    return out


def _sum(parts: Iterable[Both]) -> Both:
    many = list(parts)
    return _added(c for c, _ in many), _added(theta for _, theta in many)
