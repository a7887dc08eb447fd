"""Moments between two nodes by their kinds (equation 97). To add a kind of node, write its rule here and put it into RULES."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from meanfield.kernels import field_arrays as arrays
from meanfield.kernels.field_arrays import Both, Part
from meanfield.kernels.field_functions import gained, through_gain
from meanfield.kernels.field_moments import FEW, Moments, PairRules
from meanfield.kernels.field_nodes import (
    REMEDY,
    Folded,
    Joined,
    Mapped,
    Mixed,
    Node,
    Parted,
    Pointwise,
    Product,
    Rooted,
    Share,
    sources,
)
from meanfield.kernels.gaussian_averages import gaussian_averages, gaussian_mean
from meanfield.kernels.kernel_gradients import differentiable
from meanfield.network.activations import Activation


def _mapped(m: Moments, u: Node, v: Node, same: bool) -> Both:
    alike = isinstance(u, Mapped) and isinstance(v, Mapped) and arrays.equal(u.map.index, v.map.index)
    if same and not (alike and u.map.index is not None):  # type: ignore[attr-defined]
        return arrays.diagonal(m(u, v, False))
    inner = [node.child if isinstance(node, Mapped) else node for node in (u, v)]
    parts = m(inner[0], inner[1], same)
    if isinstance(u, Mapped):
        own, batch = u.map, -1 if m.own else -2
        parts = arrays.each(lambda x: own.applied(x, 0, batch), parts)
    if isinstance(v, Mapped):
        other = v.map
        if same:  # its points are in place
            return arrays.each(lambda x: arrays.weighted(x, other.weight, -1), parts)
        parts = arrays.each(lambda x: other.applied(x, 1, -1), parts)
    return parts


def _folded(m: Moments, u: Node, v: Node, same: bool) -> Both:
    if not (isinstance(u, Folded) and isinstance(v, Folded) and u.folds.shape == v.folds.shape):
        raise ValueError(
            f"neurons that were points before meet others that were not and depend on them: no rule; {REMEDY}"
        )
    one = same or u.size == 1
    parts = m(u.child, v.child, one)
    if one:
        averaged = arrays.each(lambda x: x[u.folds].mean(0), parts)
        return averaged if same else arrays.each(lambda x: x[None], averaged)
    return arrays.each(lambda x: arrays.mean_of_folds(x, u.folds, v.folds), parts)


def _joined(m: Moments, u: Node, v: Node, same: bool) -> Both:
    if not (isinstance(u, Joined) and isinstance(v, Joined) and u.shares == v.shares):
        raise ValueError(f"neurons that were joined meet others that were not and depend on them: no rule; {REMEDY}")
    parts = [m(a, b, same) for a, b in zip(u.parts, v.parts, strict=True)]
    return arrays.sums(
        arrays.each(partial(torch.mul, share), part) for part, share in zip(parts, u.shares, strict=True)
    )


def _parted(m: Moments, u: Node, v: Node, same: bool) -> Both:
    if not (isinstance(u, Parted) and isinstance(v, Parted) and u.parts == v.parts):
        raise ValueError(f"a part of the neurons meets all of them: no rule; {REMEDY}")
    c, theta = m(u.child, v.child, same)
    if same:
        return arrays.each(lambda x: x.repeat_interleave(u.parts, 0), (c, theta))
    across = m.outer(m.left.mean(u.child), m.right.mean(v.child), False)
    return arrays.parts(c, u.parts, across), arrays.parts(theta, u.parts, None)


def _share(m: Moments, u: Node, v: Node, same: bool) -> Both:
    if not (isinstance(u, Share) and isinstance(v, Share)):
        raise ValueError(f"a part of the neurons meets all of them: no rule; {REMEDY}")
    return m(u.child, v.child, same)


def _mixed(m: Moments, u: Mixed, v: Mixed, same: bool) -> Both:
    """Of one matrix, which both share"""
    law, filter = u.law, u.filter
    if filter != v.filter:
        raise ValueError(f"a filter that is used at two strides or over images of two sizes has no rule; {REMEDY}")
    phi, theta = m(u.child, v.child, same)
    if filter is not None:
        phi, theta = arrays.each(lambda x: filter.mean(x, 1 if same else 2), (phi, theta))
    c = arrays.scaled(phi, law.variance)
    return c, arrays.added((arrays.scaled(phi, law.feature), arrays.scaled(theta, law.slope)))


def _rooted(m: Moments, u: Rooted, v: Rooted, same: bool) -> Both:
    leaf = u.leaf
    second = leaf.mean[:, None] * leaf.mean  # <w w^T>, of leaves that are the same for all neurons
    phi = _between_roots(m, u.root, v.root, leaf.variance if leaf.random else second, same)
    at = int(leaf.variance.argmax())  # the first entry may be a row that stands for no token
    if leaf.random and torch.equal(leaf.theta * leaf.variance[at], leaf.theta[at] * leaf.variance):
        return phi, arrays.scaled(phi, float(leaf.theta[at] / leaf.variance[at]))
    return phi, _between_roots(m, u.root, v.root, leaf.theta, same)


def _between_roots(m: Moments, a: Tensor, b: Tensor, w: Tensor, same: bool) -> Part:
    """a w b^T, with w (D,) or (D, D)"""
    if not bool(w.any()):
        return None
    w = w.to(a.device)  # of what is the same for all neurons: on no device of its own
    a = a * w if w.ndim == 1 else a @ w
    if same and m.own:
        return torch.einsum("bsd,bsd->sb", *_matched(m, a, b))
    if same:
        return a.transpose(0, 1) @ b.permute(1, 2, 0)
    if m.own:
        return torch.einsum("bsd,btd->stb", *_matched(m, a, b))
    out = a.flatten(0, 1) @ b.flatten(0, 1).T
    return out.reshape(len(a), a.shape[1], len(b), -1).permute(1, 3, 0, 2)


def _matched(m: Moments, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Roots that are the same for all samples beside others"""
    if not m.own or len(a) == len(b):
        return a, b
    return a.expand(max(len(a), len(b)), -1, -1), b.expand(max(len(a), len(b)), -1, -1)


def _product(m: Moments, u: Node, v: Node, same: bool) -> Both:
    first, second = u, v
    if not isinstance(first, Product):
        return _product_with(m, v, u, same, turned=True)
    if not isinstance(second, Product):
        return _product_with(m, u, v, same, turned=False)
    for a, b in ((second.first, second.second), (second.second, second.first)):
        if not sources(first.first) & sources(b) and not sources(first.second) & sources(a):
            c1, theta1 = m(first.first, a, same)
            c2, theta2 = m(first.second, b, same)
            return arrays.times(c1, c2), arrays.added((arrays.times(theta1, c2), arrays.times(c1, theta2)))
    places = f"{first.place or second.place}: " if first.place or second.place else ""
    raise ValueError(
        f"{places}products of fields that depend on each other, and are not functions of the same neurons, have no rule; {REMEDY}"
    )


def _product_with(m: Moments, u: Node, w: Node, same: bool, turned: bool) -> Both:
    """Between a product and what depends on one of its factors alone"""
    assert isinstance(u, Product)
    for a, b in ((u.first, u.second), (u.second, u.first)):
        if not sources(b) & sources(w):
            end = (m.right if turned else m.left).mean(b)
            if end is None:
                return None, None
            place = (None, slice(None)) if turned else (slice(None), None)  # of its points
            batch = (..., None, slice(None)) if turned else (..., slice(None), None)
            end = end if m.own else end[batch]
            end = end if same else end[place]
            parts = m(w, a, same) if turned else m(a, w, same)
            return arrays.each(partial(torch.mul, end), parts)
    raise ValueError(f"a product of fields meets another field that both of its factors depend on: no rule; {REMEDY}")


def _pointwise(m: Moments, u: Node, v: Node, same: bool) -> Both:
    if not isinstance(u, Pointwise) or not isinstance(v, Pointwise):
        return _by_stein(m, u, v, same)
    if u.key != v.key:
        names = dict.fromkeys((u.phi.name, v.phi.name))
        which = f"{' and '.join(map(repr, names))}{', twice' * (len(names) == 1)}"
        raise ValueError(
            f"two functions of neurons that depend on each other ({which}) are added or used by one matrix: no rule; {REMEDY}"
        )
    alike = u is v and m.left is m.right
    p, q = m.left.variance(u), m.right.variance(v)
    c, theta = (p, m(u.child, v.child, same)[1]) if alike and m.own and same else m(u.child, v.child, same)
    c = arrays.zeros(p, q, m.own, same) if c is None else c
    phi, slope = _averages(m, u.key, u.phi, p, q, c, same, alike)
    at_gains, below = None, theta
    if (gain := gained(u.child)) is not None:
        at_gains, below = _through_gain(m, gain, gained(v.child), (u, v), (p, q, c), theta, same)
    return phi, arrays.added((arrays.times(slope, below), at_gains))


def _averages(
    m: Moments, key: bytes, phi: Activation, p: Tensor, q: Tensor, c: Tensor, same: bool, alike: bool
) -> tuple[Tensor, Tensor]:
    """Both averages at c; those of points with themselves from their variances"""
    averages = differentiable(phi) if any(t.requires_grad for t in (p, q, c)) else gaussian_averages(phi)
    if alike and m.own and same:
        return averages.single(p)
    if m.own:
        batch = c.shape[-1]
        p, q = p.T.expand(batch, -1), q.T.expand(batch, -1)
        given = (p[..., None], q[..., None], c.T[..., None, None]) if same else (p, q, c.movedim(-1, 0))
    else:
        given = (p, q, c) if same else (p[:, None], q[None], c)
    pair = None if m.own else m.tables.get(key)
    pair = pair or (averages.pair if c.numel() <= FEW else averages.prepare(p, q, c.numel()))
    found = pair(*given)
    if m.own:
        found = [x[..., 0, 0].T if same else x.movedim(0, -1) for x in found]
    if alike and not c.requires_grad:
        for full, exact in zip(found, averages.single(_of_itself(m, p)), strict=True):
            arrays.itself(full, m.own, same).copy_(exact)
    return found[0], found[1]


def _of_itself(m: Moments, p: Tensor) -> Tensor:
    return p.T if m.own else p


def _through_gain(
    m: Moments,
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
    moved = m(vector, vector2, same)[1]
    if moved is None:
        return None, theta
    means = m.outer(m.left.mean(vector), m.right.mean(vector2), same)
    assert means is not None
    phi, key = through_gain(ends[0].phi)
    alike = ends[0] is ends[1] and m.left is m.right
    flat = _averages(m, key, phi, *at, same, alike)[0]
    rest = arrays.times(m(inner, inner2, same)[0], moved)
    return flat * moved / means, arrays.added((theta, None if rest is None else -rest))


def _by_stein(m: Moments, u: Node, v: Node, same: bool) -> Both:
    """<u phi(g)> = <u g> <phi'(g)> for a Gaussian u"""
    node, other, turned = (u, v, False) if isinstance(u, Pointwise) else (v, u, True)
    assert isinstance(node, Pointwise)
    if not other.gaussian:
        raise ValueError(
            f"a function of neurons meets another field that depends on them and is not Gaussian: no rule; {REMEDY}"
        )
    end = m.right if turned else m.left
    slope = gaussian_mean(node.phi.dphi, node.phi, end.variance(node))
    slope = slope if m.own else slope[(..., None, slice(None)) if turned else (..., slice(None), None)]
    slope = slope if same else slope[(None, slice(None)) if turned else (slice(None), None)]
    parts = m(u, node.child, same) if turned else m(node.child, v, same)
    return arrays.each(lambda x: x * slope, parts)


RULES: PairRules = (
    (Mapped, _mapped),
    (Folded, _folded),
    (Joined, _joined),
    (Parted, _parted),
    (Share, _share),
    (Product, _product),
    (Pointwise, _pointwise),
    (Mixed, _mixed),
    (Rooted, _rooted),
)
