"""Derivatives of a module's outputs, sample by sample: in the weight of a layer as two factors, in other parameters as they are
(equation 47).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from solvers.running.watching import Call, rows, use_of

PER_PRODUCT = 12  # products of entries that take as long as a number of a sum over rows (docs/performance.md)


@dataclass(frozen=True)
class Factors:
    """Derivatives of O outputs of each of B samples in a weight: sums over R rows of left (B, O, R, a) times right (B, R, b), or of left
    times the rows of the unit matrix that right (B, R) names.
    """

    left: Tensor
    right: Tensor

    def products(self, other: Factors) -> Tensor:
        """(B, O, B2, O2) inner products with those of other samples"""
        (b, o, r, _), (b2, o2, r2, _) = self.left.shape, other.left.shape
        lefts = (self.left.flatten(0, 2) @ other.left.flatten(0, 2).T).view(b, o, r, b2, o2, r2)
        if self.right.ndim == 2:
            rights = (self.right[:, :, None, None] == other.right).to(lefts.dtype)
        else:
            rights = (self.right.flatten(0, 1) @ other.right.flatten(0, 1).T).view(b, r, b2, r2)
        if r == r2 == 1:
            return lefts[:, :, 0, :, :, 0] * rights[:, None, 0, :, None, 0]
        return (lefts * rights[:, None, :, :, None, :]).sum((2, 5))


@dataclass(frozen=True)
class Derivatives:
    """Of B samples: factors by name, and entries (B, O, n) in all that is not factored; both times the roots of the rates."""

    factors: Mapping[str, Factors]
    entries: Tensor

    def kernel(self, other: Derivatives) -> Tensor:
        """(B, O, B2, O2) inner products with those of other samples, in float64"""
        b, o, _ = self.entries.shape
        found = self.entries.flatten(0, 1) @ other.entries.flatten(0, 1).T
        total = found.to(torch.float64).view(b, o, len(other.entries), o)
        for name, own in self.factors.items():
            total += own.products(other.factors[name])
        return total


@contextmanager
def plain_operations() -> Iterator[None]:
    """Within it attention is what torch.func knows, and it does not warn of what it has no rule for, nor of what it first imports"""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        yield


class Taps(TorchFunctionMode):
    """Notes the calls of layers with the weights {id: name}, and puts `added` onto what leaves them. otherwise: weights that something
    else is done with.
    """

    def __init__(self, names: Mapping[int, str], added: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.names, self.added = names, added
        self.calls: list[Call] = []
        self.otherwise: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        own = [value for value in tree_leaves((args, kwargs)) if id(value) in self.names]
        if not own or not any(isinstance(o, Tensor) for o in tree_leaves(out)):
            return out
        alone = len(own) == 1 and len(args) > 1 and args[1] is own[0]
        use = use_of(func, own[0], args, kwargs or {}) if alone else None
        if use is None or (self.added is None and not out.requires_grad):
            self.otherwise.update(self.names[id(value)] for value in own)
            return out
        if self.added is not None:
            out = out + self.added[len(self.calls)]
        left = get_gradient_edge(out) if self.added is None else None
        self.calls.append(Call(self.names[id(own[0])], args[0], left, out.new_zeros(()).expand(out.shape), **use))
        return out


class Differentiated:
    """A module whose outputs are differentiated in the parameters that have a scale, by which the derivatives are multiplied; x (P, ..)
    are some of its samples.
    """

    def __init__(self, module: nn.Module, scales: Mapping[str, float], x: Tensor) -> None:
        self.module, self.scales = module, dict(scales)
        self.weights = {name: p.detach() for name, p in module.named_parameters() if name in scales}
        calls, self.like = self._tried(x[:1])
        self.outputs, self.made = self.like.numel(), sum(call.like.numel() for call in calls)
        self.sizes = {call.name: _sizes(calls, call.name, self.weights[call.name]) for call in calls}
        self.calls = [call for call in calls if self._pays(*self.sizes[call.name])]
        self.vectorised = True
        try:
            vmap(self._of_sample)(x[:2])
        except RuntimeError:  # vmap does not know what this module does
            self.vectorised, self.calls = False, []

    @property
    def parameters(self) -> int:
        """How many numbers are trained"""
        return sum(w.numel() for w in self.weights.values())

    @property
    def factored(self) -> set[str]:
        """The weights whose derivatives are kept as factors"""
        return {call.name for call in self.calls}

    @property
    def held(self) -> int:
        """Numbers that are held for one sample"""
        o, factored = self.outputs, [self.sizes[name] for name in self.factored]
        return o * (self._entries + 2 * self.made) + sum(o * r * a + r * b for r, a, b in factored)

    @property
    def work(self) -> float:
        """Multiplications for the products of the derivatives of two samples"""
        o, factored = self.outputs, [self.sizes[name] for name in self.factored]
        return o**2 * self._entries + sum(r**2 * (o**2 * (a + PER_PRODUCT) + b) for r, a, b in factored)

    @property
    def pass_work(self) -> int:
        """Multiplications of one sample's forward"""
        return sum(math.prod(self.sizes[name]) if name in self.sizes else w.numel() for name, w in self.weights.items())

    def __call__(self, x: Tensor) -> Derivatives:
        """Of the samples x (B, ..)"""
        slopes, plain, entered = vmap(self._of_sample)(x) if self.vectorised else self._by_autograd(x)
        entries = [slope.reshape(len(x), self.outputs, -1) * self.scales[name] for name, slope in plain.items()]
        none = self.like.new_empty(len(x), self.outputs, 0)
        return Derivatives(self._factors(slopes, entered), torch.cat([none, *entries], 2))

    @property
    def _entries(self) -> int:
        return sum(w.numel() for name, w in self.weights.items() if name not in self.factored)

    def _pays(self, r: int, a: int, b: int) -> bool:
        """Whether products take less work from factors than from entries"""
        return r**2 * (self.outputs**2 * (a + PER_PRODUCT) + b) <= self.outputs**2 * a * b

    def forward(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """f (B, C) of the samples x (B, ..) with these parameters in their places"""
        with Taps({}):  # in the presence of which torch takes no shortcuts that it cannot differentiate
            return functional_call(self.module, dict(weights), (x,)).flatten(1)

    def onwards(self, x: Tensor, tangent: Mapping[str, Tensor]) -> Tensor:
        """The derivative of f (B, C) along a change of the parameters"""
        return jvp(partial(self.forward, x=x), (self.weights,), (dict(tangent),))[1]

    def _of_sample(self, x: Tensor) -> tuple[Any, Any, Any]:
        layered = {call.name: self.weights[call.name] for call in self.calls}
        names = {id(w): name for name, w in layered.items()}

        def f(added: list[Tensor], plain: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            with Taps(names, added) as taps:
                out = functional_call(self.module, layered | plain, (x[None],))
            return out.flatten(), [call.entered for call in taps.calls]

        added = [torch.zeros_like(call.like) for call in self.calls]
        plain = {name: w for name, w in self.weights.items() if name not in layered}
        (slopes, others), entered = jacrev(f, (0, 1), has_aux=True)(added, plain)
        return slopes, others, entered

    def _by_autograd(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
        """Sample by sample and output by output"""
        found: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        for one in x:
            leaves = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
            with torch.enable_grad():
                f = functional_call(self.module, leaves, (one[None],)).flatten()
            for output in f:
                slopes = torch.autograd.grad(output, list(leaves.values()), retain_graph=True, materialize_grads=True)
                for name, slope in zip(leaves, slopes, strict=True):
                    found[name].append(slope)
        shape = (len(x), self.outputs)
        return [], {name: torch.stack(many).view(*shape, *many[0].shape) for name, many in found.items()}, []

    def _factors(self, slopes: Sequence[Tensor], entered: Sequence[Tensor]) -> dict[str, Factors]:
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for call, slope, own in zip(self.calls, slopes, entered, strict=True):
            b, o = slope.shape[:2]
            left = rows(slope, call.axis)
            left = left.reshape(b, o, -1, left.shape[-1]) * self.scales[call.name]
            right = replace(call, entered=own).multiplied
            if own.is_floating_point():
                right = right.T.reshape(b, -1, len(right))
            else:
                right = right.reshape(b, -1)
                left = left if call.nothing is None else left * (right != call.nothing)[:, None, :, None]
            parts.setdefault(call.name, []).append((left, right))
        return {
            name: Factors(torch.cat([left for left, _ in some], 2), torch.cat([right for _, right in some], 1))
            for name, some in parts.items()
        }

    def _tried(self, x: Tensor) -> tuple[list[Call], Tensor]:
        """The calls of weights that nothing else is done with, and outputs, of one sample x (1, ..)

        A weight counts whose factors are its derivative, which they are not where torch does not tell what is done with it.
        """
        leaves = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        with torch.enable_grad(), Taps({id(w): name for name, w in leaves.items() if w.ndim > 1}) as taps:
            f = functional_call(self.module, leaves, (x,))
        with torch.enable_grad():
            ramp = torch.linspace(1, 2, f.numel(), dtype=f.dtype, device=f.device)
            total = (f.flatten() * ramp).sum()
        calls = taps.calls
        edges: list[Any] = [call.left for call in calls]
        grads = torch.autograd.grad(total, [*edges, *leaves.values()], allow_unused=True)
        slopes = dict(zip(leaves, grads[len(edges) :], strict=True))
        kinds: dict[str, set[tuple[bool, bool]]] = {}
        sums: dict[str, Tensor] = {}
        for call, slope in zip(calls, grads, strict=False):
            kinds.setdefault(call.name, set()).add((call.turned, call.entered.is_floating_point()))
            sums[call.name] = sums.get(call.name, 0) + _derivative(call, slope, leaves[call.name])
        right = {
            name
            for name, found in sums.items()
            if name not in taps.otherwise and len(kinds[name]) == 1 and _same(found, slopes[name])
        }
        own = [replace(call, left=None, entered=call.entered.detach()) for call in calls]
        return [call for call in own if call.name in right], f.detach()


def _sizes(calls: Sequence[Call], name: str, weight: Tensor) -> tuple[int, int, int]:
    """R, a and b of a layer's weight"""
    own = [call.like for call in calls if call.name == name]
    a = own[0].shape[next(call.axis for call in calls if call.name == name)]
    return sum(like.numel() for like in own) // a, a, weight.numel() // a


def _derivative(call: Call, slope: Tensor | None, weight: Tensor) -> Tensor:
    left, right = call.factors(slope, 1.0)
    if right.is_floating_point():
        return (left @ right.T).reshape(weight.shape)
    return torch.zeros_like(weight).index_add(0, right, left.T)


def _same(found: Tensor, slope: Tensor | None) -> bool:
    """But for rounding"""
    right = torch.zeros_like(found) if slope is None else slope
    return bool((found - right).norm() <= math.sqrt(torch.finfo(right.dtype).eps) * right.norm())
