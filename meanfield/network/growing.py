"""Sums over neurons without 1/n, found in copies: a network in which each neuron stands twice (equation 89).

Copies of neurons have copies of weights, those between neurons and those of readouts divided by the number of copies. Whatever acts neuron
by neuron or averages over neurons then has the values that it had, exactly and before any training; a sum over neurons is larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from meanfield.network.calls import Call, Log, size, tensors, wide, words
from meanfield.network.roles import Description, Parameter

_CLEAR = 0.3  # a power of the number of copies that is none by chance, and no correction of relative order 1/n
_SCALED = words(  # other functions of c x than of x
    "tanh sigmoid logsigmoid softmax softmin log_softmax exp expm1 exp2 erf erfc gelu silu mish softplus elu selu celu sin cos atan",
    "arctan hardtanh hardsigmoid hardswish relu6 softsign tanhshrink softshrink hardshrink",
)
_LINEAR = words(  # in each argument, but for divisors
    "linear conv1d conv2d conv3d matmul __matmul__ __rmatmul__ mm bmm einsum mul __mul__ __rmul__ __imul__ div __truediv__ __itruediv__",
    "neg __neg__ sum mean masked_fill where flatten reshape view unflatten unsqueeze squeeze transpose permute movedim contiguous expand",
    "repeat clone __getitem__",
)


def spread(small: nn.Module, large: nn.Module, description: Description, widths: tuple[int, int]) -> None:
    """Gives the small network weights of order 1, and the large one copies of all parameters and buffers of the small"""
    g, copies = torch.Generator().manual_seed(0), widths[1] // widths[0]
    others = dict(large.named_parameters()) | dict(large.named_buffers())
    with torch.no_grad():
        for p in description:
            w, other, share = small.get_parameter(p.name), others.pop(p.name), 1.0
            if p.role in ("input", "hidden", "readout"):
                fan = p.fan_in(widths[0])
                w.copy_(_drawn(p, w, g) / (fan if p.role == "readout" else fan**0.5))
                share = 1.0 if p.role == "input" else 1 / copies
            elif p.role == "output bias":
                w.zero_()  # what stands beside the readout would hide that it vanishes
            elif p.role == "vector":
                share = copies ** _half_power(w, other, copies)
            other.copy_(_copied(w, other) * share)
        for name, buffer in small.named_buffers():
            others[name].copy_(_copied(buffer, others[name]))


def _drawn(p: Parameter, like: Tensor, g: torch.Generator) -> Tensor:
    """N(0, 1) numbers, which k neighbours along an axis of k n inputs share: a copy of each is the same then whether the neurons stand
    before or behind the positions that were flattened with them"""
    axis, blocks = p.axes.index(p.below), int(p.below.size) if p.below.wide else 1
    if p.kind == "embedding" or blocks < 2 or p.below.size.denominator > 1:
        return torch.randn(like.shape, generator=g, dtype=like.dtype)
    shape = [size // blocks if i == axis else size for i, size in enumerate(like.shape)]
    return torch.randn(shape, generator=g, dtype=like.dtype).repeat_interleave(blocks, axis)


def _half_power(small: Tensor, large: Tensor, copies: int) -> float:
    """How what its author starts goes with the width: 0, -1/2, ..; the lower one where a few random numbers do not tell"""
    if not size(small) or not size(large):
        return 0.0
    noise = 0.0 if float(small.abs().std(correction=0)) < 1e-9 * size(small) else 2 / math.sqrt(small.numel())
    return round(2 * (math.log(size(large) / size(small), copies) - noise)) / 2


def _copied(small: Tensor, large: Tensor) -> Tensor:
    for axis in wide(tuple(small.shape), tuple(large.shape)):
        small = small.repeat_interleave(large.shape[axis] // small.shape[axis], axis)
    return small


@dataclass(frozen=True)
class _Growth:
    """How a tensor goes with the number of copies, since `by` summed over neurons.

    doubt: by how much the power may be lower where neurons are independent: sums of terms of any sign grow like sqrt(n) there.
    """

    power: float
    doubt: float
    by: str

    @property
    def sure(self) -> bool:
        return self.power - self.doubt >= _CLEAR or (self.power <= -_CLEAR and self.doubt == 0)


class Growing(Log):
    """The log of a network of copies, beside that of the network of which they are copies. wrong: what to say of the first function that
    gets numbers of another size, empty if none does.
    """

    def __init__(self, small: Sequence[Call], copies: int) -> None:
        super().__init__()
        self.small, self.copies, self.wrong = small, copies, ""
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def seen(self, name: str, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given = list(tensors((args, list(kwargs.values()))))
        grown = {i: self.known[tensor] for i, tensor in enumerate(given) if tensor in self.known}
        if name == "__get__":  # h.T, h.mT
            if grown and isinstance(result, Tensor):
                self.known[result] = grown[0]
            return
        here = len(self.calls) - 1
        if here >= len(self.small) or self.small[here].name != name:
            return  # another code, of which others tell
        if name in _SCALED and 0 in grown:
            self.judge(given[0], f"what {name} is given")
        for i, found in enumerate(tensors(result)):
            self.known.pop(found, None)
            growth = self._growth(here, i, grown, lambda: _of_one_sign(func, args, kwargs))
            if growth is not None:
                self.known[found] = growth

    def judge(self, tensor: Tensor, what: str) -> None:
        """Notes what is wrong with a tensor whose size must be of order 1"""
        growth = self.known.get(tensor)
        if growth is not None and growth.sure and not self.wrong:
            goes = "grows with the width" if growth.power > 0 else "vanishes as the width grows"
            self.wrong = (
                f"{growth.by} sums over neurons without 1/n, so that {what} {goes}: take the mean over neurons, e.g. "
                "h.square().mean(-1), q @ k.mT / q.shape[-1], h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5"
            )

    def _growth(
        self, here: int, i: int, grown: Mapping[int, _Growth], of_one_sign: Callable[[], bool]
    ) -> _Growth | None:
        """Of the i-th result of a call"""
        small, large = self.small[here], self.calls[here]
        sizes = small.sizes[i], large.sizes[i]
        power = math.log(sizes[1] / sizes[0], self.copies) if all(sizes) else 0.0
        if abs(power) < _CLEAR:
            return None
        axes = max((len(wide(*pair)) for pair in zip(small.given, large.given, strict=True)), default=0)
        fewer = len(wide(small.found[i], large.found[i])) < axes
        doubt, before = sum(own.doubt for own in grown.values()), sum(own.power for own in grown.values())
        if fewer and power - before >= _CLEAR:
            return _Growth(power, doubt if of_one_sign() else doubt + 0.5, large.name)
        if not grown:  # by a power of n in the code
            return _Growth(power, math.inf, "")
        inverse = "div" in large.name and 0 not in grown
        if doubt and (inverse or large.name not in _LINEAR):
            doubt = math.inf
        return _Growth(power, doubt + 0.5 * (fewer and doubt > 0), next(iter(grown.values())).by)


def _of_one_sign(func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether most terms of a sum have one sign, so that those of independent neurons do not cancel"""
    whole, signless = func(*args, **kwargs), lambda a: a.abs() if isinstance(a, Tensor) and a.is_floating_point() else a
    return max(map(size, tensors(func(*tree_map(signless, args), **tree_map(signless, kwargs))))) < 2 * max(
        map(size, tensors(whole))
    )
