"""Kernels and responses at all pairs of steps in low-rank form, and the tangent kernel that they make (equations 10, 11 and 34)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, of_value
from meanfield.measures import reductions
from meanfield.network.layered import branch2
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import MeasureLimit


def same(field: Tensor) -> Tensor:
    return field


@checked
class TwoTimeKernel:
    """Averages over neurons of products of fields at recorded steps, from a factor (steps, K, Q): never stored as (steps Q)^2.

    Q = P for feature kernels Phi^l; Q = P C, sample-major, for gradient kernels G^l. Given the neurons' averages at any steps in
    place of a factor, what is looked at is made then, and kept: `at` one (Q, Q) average, `factor` all of them.

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> kernel = CausalDMFT(samples=128)(problem).kernels["Phi2"]
        >>> kernel.at(0, -1).shape  # between the first and the last recorded step
        torch.Size([4, 4])
    """

    def __init__(self, steps: Sequence[int], factor: Tensor | Callable[..., NeuronAverages]) -> None:
        self.steps = tuple(steps)
        self._source = factor
        self._blocks: dict[tuple[int, int], Tensor] = {}

    def __repr__(self) -> str:
        size = f", Q = {self._source.shape[2]}" if isinstance(self._source, Tensor) else ""
        return f"{type(self).__name__}(steps={of_value(self.steps)}{size})"

    @cached_property
    def factor(self) -> Tensor:
        """(steps, K, Q) c with kernel(t, s) = c(t)^T c(s)"""
        return self._source if isinstance(self._source, Tensor) else self._source(*self.steps).factor()

    @property
    def made(self) -> bool:
        """Whether `factor` is there already"""
        return isinstance(self._source, Tensor) or "factor" in self.__dict__

    def at(self, t: int = -1, s: int | None = None) -> Tensor:
        """(Q, Q) the kernel between step t and step s (default: t); -1 is the last recorded step. ValueError if not recorded."""
        i = recorded(t, self.steps)
        j = i if s is None else recorded(s, self.steps, "s")
        if isinstance(self._source, Tensor):
            return self._source[i].T @ self._source[j]
        if (j, i) in self._blocks:
            return self._blocks[j, i].T
        if (i, j) not in self._blocks:
            chosen = tuple(dict.fromkeys((self.steps[i], self.steps[j])))
            self._blocks[i, j] = self._source(*chosen).block()
        return self._blocks[i, j]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TwoTimeKernel):
            return NotImplemented
        return self.steps == other.steps and torch.equal(self.factor, other.factor)

    __hash__ = object.__hash__

    @staticmethod
    def from_fields(
        steps: Sequence[int],
        m: Tensor,
        fields: Sequence[Tensor],
        columns: int,
        feature: Callable[..., Tensor] = same,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> TwoTimeKernel:
        """The kernel of q(t) = feature(field(t)) (N, Q), averaged with weights m (N,), fields given for each step: made at once.

        total: adds to a Gram matrix those of other processes, which hold the other neurons.
        """
        return TwoTimeKernel(steps, NeuronAverages(m, fields, columns, feature, total).factor())


@dataclass(frozen=True)
class NeuronAverages:
    """Averages over neurons with weights m (N,) of q(t) = feature(field(t)) (N, Q), fields given for each step.

    Memory N Q at most; when there are more neurons than columns in all, only the (steps Q)^2 Gram matrix.
    """

    m: Tensor
    fields: Sequence[Tensor]
    columns: int
    feature: Callable[..., Tensor]
    total: Callable[[Tensor], Tensor] | None = None

    def factor(self) -> Tensor:
        joined, count = len(self.fields) * self.columns, len(self.fields)
        size = min(joined, len(self.m)) * joined
        checks.memory(
            f"a kernel of {self.columns} columns at {count} snapshots", 24.0 * size, "take fewer samples or snapshots"
        )
        if self.total is None and len(self.m) <= joined:
            factor = torch.stack([self.m.sqrt()[:, None] * self.feature(q) for q in self.fields])
        else:
            joint = self._gram()
            factor = _square_root(joint).reshape(-1, count, self.columns).transpose(0, 1)
        return factor.contiguous().to("cpu")

    def block(self) -> Tensor:
        """(columns, columns) between the first field and the last, of one or two"""
        size = (len(self.fields) * self.columns) ** 2
        checks.memory(f"a kernel of {self.columns} columns", 24.0 * size, "take fewer samples")
        return self._gram()[: self.columns, -self.columns :].to("cpu")

    def _gram(self) -> Tensor:
        def joined(*tiles: Tensor) -> Tensor:
            return torch.cat([self.feature(q) for q in tiles], 1)

        joint = reductions.gram(joined, self.m, *self.fields, columns=len(self.fields) * self.columns)
        return joint if self.total is None else self.total(joint)


@checked
@dataclass(frozen=True, eq=False)
class TwoTimeResponse:
    """A response function A(t, s) of features to gradients, or B(t, s) of gradients to features, at steps 0, 1, .. (equation 34).

    What is well defined is its action on the fields q(s) of the other kind, A q, and the correlation with their images,
    A(t, .) <q q> = left(t)^T right(.), kept in low rank: left (T+1, K, Q) and right (T+1, K, Q'). Where the fields q of different
    times are nearly dependent, `at` gives the causal response of least norm. instant: whether s = t belongs to it.
    """

    left: Tensor
    right: Tensor
    instant: bool

    __repr__ = brief

    def correlation(self, t: int = -1, s: int = 0) -> Tensor:
        """(Q, Q') the response at t integrated against the kernel of the fields up to t, at s"""
        return self.left[self._index(t)].T @ self.right[self._index(s, "s")]

    def at(self, t: int = -1, s: int = 0) -> Tensor:
        """(Q, Q') the response at step t to a field at step s; zero unless s < t (s <= t for `instant`). ValueError if not recorded."""
        t, s = self._index(t), self._index(s, "s")
        earlier = self.to_earlier(t)
        return earlier[s] if s < len(earlier) else self.left.new_zeros(self.left.shape[2], self.right.shape[2])

    def to_earlier(self, t: int = -1) -> Tensor:
        """(t, Q, Q') the response at step t to the fields at steps 0, 1, .. (t included for `instant`)"""
        t = self._index(t)
        last = t + 1 if self.instant else t
        fields = self.right[:last].transpose(0, 1).flatten(1).double()  # (K, last Q')
        weights = torch.linalg.pinv(fields, rtol=1e-4) @ self.left[t].double()  # (last Q', Q)
        return weights.reshape(last, self.right.shape[2], self.left.shape[2]).transpose(1, 2).to(self.left)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TwoTimeResponse):
            return NotImplemented
        return self.instant == other.instant and all(
            torch.equal(getattr(self, k), getattr(other, k)) for k in ("left", "right")
        )

    def _index(self, step: int, name: str = "t") -> int:
        return recorded(step, range(len(self.left)), name)


def recorded(step: int, steps: Sequence[int], name: str = "t") -> int:
    """The index of `step` among the recorded steps; -1 is the last one. ValueError listing them otherwise."""
    step = checks.integer(name, step)
    if not steps:
        raise ValueError("nothing was recorded: give the solver snapshots, e.g. snapshots=(0, -1)")
    if step == -1:
        return len(steps) - 1
    if step not in steps:
        every = list(steps) == list(range(len(steps)))
        shown = f"0..{len(steps) - 1}, all that were taken"
        more = f"{tuple(steps)}: ask the solver for more with snapshots=(...)"
        raise ValueError(f"step {step} was not recorded; recorded are {shown if every else more}")
    return list(steps).index(step)


def tangent_of(problem: Problem, limit: MeasureLimit, phi: Sequence[Tensor], g: Iterable[Tensor]) -> Tensor:
    """K (P, C, P, C) from Phi^1..Phi^L (P, P) and G^1..G^L (P C, P C) of one time (equation 11)."""
    depth, branched, shares = len(phi), branch2(problem.layered or problem.perceptron), _shares(problem)

    def trained(l: int, below: Tensor) -> Tensor:
        rate, (weights, biases) = limit.kappa_a if l == depth else limit.kappa_w * (branched if l else 1.0), shares[l]
        return rate * limit.gamma * (weights * below + biases)

    return summed(problem, trained, phi, g)


def _shares(problem: Problem) -> list[tuple[float, float]]:
    """Of each layer's weights and biases the square of their multiplier times what multiplies their rate"""
    if problem.trial is None:
        network = problem.perceptron
        return [(network.weight_std**2, network.bias_std**2)] * (network.depth + 1)
    own = problem.architecture
    by_layer: dict[str, list[float]] = {}
    for p in own.description:
        share = own.rate_of(p) * (own.std(p) or 0.0) ** 2
        by_layer.setdefault(p.layer, []).append(share)
    return [(weights, sum(biases)) for weights, *biases in by_layer.values()]


def summed(
    problem: Problem, trained: Callable[[int, Tensor], Tensor], phi: Sequence[Tensor], g: Iterable[Tensor]
) -> Tensor:
    """K (P, C, P, C) of the shares trained(l, Phi^l) times G^{l+1}, l = 0..L-1, and trained(L, Phi^L) of the readout"""
    p, c = problem.data.y.shape
    x = problem.data.x.to(phi[0]) / math.sqrt(problem.data.inputs)
    total = trained(len(phi), phi[-1])[:, None, :, None] * torch.eye(c).to(x)[:, None, :]
    for l, (below, gradients) in enumerate(zip([x @ x.T, *phi[:-1]], g, strict=True)):
        total += trained(l, below)[:, None, :, None] * gradients.reshape(p, c, p, c)
    return total


def _square_root(gram: Tensor) -> Tensor:
    """c (K, n) with c^T c = gram: Cholesky if the matrix is safely definite, else its positive eigen-directions."""
    lower, failed = torch.linalg.cholesky_ex(gram)
    if not int(failed):
        return lower.T
    values, vectors = torch.linalg.eigh(gram)
    keep = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    if not bool(keep.any()):
        keep[-1] = True
    return vectors[:, keep].T * values[keep].clamp(min=0).sqrt()[:, None]
