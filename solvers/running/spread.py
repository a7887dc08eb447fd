"""Shells around parameters that samples share, which give each sample a copy, so that one pass tells derivatives apart (equation 90)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Unknown(Exception):
    """Something was done with a shared parameter for which no rule is here. No TypeError: x @ w takes one for no answer."""


class Spread(Tensor):
    """A shell around a tensor that all samples share, of which each gets a copy, so that autograd tells their derivatives apart."""

    copies: Tensor  # (P, ...)

    @staticmethod
    def of(copies: Tensor) -> Spread:
        spread = torch.empty(copies.shape[1:], dtype=copies.dtype, device="meta").as_subclass(Spread)
        spread.copies = copies
        return spread

    def over(self, dims: int, last: bool = True) -> Tensor:
        """The copies beside fields of so many axes: along their last axes, or from the second on"""
        shape = tuple(self.shape)[1 if self.ndim == dims and self.shape[0] == 1 else 0 :]
        ones = (1,) * (dims - 1 - len(shape))
        return self.copies.reshape(-1, *(ones + shape if last else shape + ones))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _POINTWISE and not any(isinstance(a, Spread) for a in kwargs.values()):
            return _pointwise(func, args, kwargs)
        if func in _AFFINE:
            return _affine(func, args, kwargs)
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if not any(isinstance(i, (Tensor, list)) for i in index):
                return Spread.of(args[0].copies[(slice(None), *index)])
        if func in (Tensor.view, Tensor.reshape, Tensor.expand):
            return _shaped(func, args[0], args[1:] if isinstance(args[1], int) else tuple(args[1]))
        if func in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            found = func(args[0].copies)
            if not isinstance(found, Tensor):
                return found
        raise Unknown(getattr(func, "__name__", str(func)))


_LOOKS = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.shape.__get__, Tensor.ndim.__get__}  # type: ignore[attr-defined]
_POINTWISE = {torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div}
_POINTWISE |= {Tensor.__add__, Tensor.__sub__, Tensor.__mul__, Tensor.__truediv__, Tensor.__radd__, Tensor.__rsub__}
_POINTWISE |= {Tensor.__rmul__, Tensor.__rtruediv__, torch.exp, Tensor.exp, torch.tanh, Tensor.tanh, Tensor.__neg__}
_POINTWISE |= {torch.sigmoid, Tensor.sigmoid, torch.relu, Tensor.relu, F.relu, F.softplus}
# where the parameters stand among the arguments, by name, and whether they lie along the last axes of what comes out
_AFFINE = {
    F.linear: ({"bias": 2}, True),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), ({"bias": 2}, False)),
    F.layer_norm: ({"weight": 2, "bias": 3}, True),
    F.rms_norm: ({"weight": 2}, True),
    F.group_norm: ({"weight": 2, "bias": 3}, False),
}


def _pointwise(func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    spread = [a for a in args if isinstance(a, Spread)]
    fields = [a for a in args if isinstance(a, Tensor) and not isinstance(a, Spread)]
    count = len(spread[0].copies)
    if any(f.ndim < s.ndim + (s.shape[:1] != (1,)) or len(f) != count for f in fields for s in spread):
        raise Unknown("a product or a sum with what is no field of all samples")
    dims = max(a.ndim for a in (*spread, *fields)) + (0 if fields else 1)
    out = func(*(a.over(dims) if isinstance(a, Spread) else a for a in args), **options)
    return out if fields else Spread.of(out)


def _shaped(func: Any, spread: Spread, sizes: tuple[int, ...]) -> Tensor:
    """In another shape, or expanded to one copy for each sample along the first axis"""
    count = len(spread.copies)
    if func is not Tensor.expand:
        return Spread.of(func(spread.copies, count, *sizes))
    if len(sizes) != spread.ndim or spread.shape[0] != 1 or sizes[0] != count:
        raise Unknown("expand")
    return spread.copies[:, 0].expand(*sizes)


def _affine(func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """A layer without those of its parameters that samples share, then these"""
    (places, last), given, own = _AFFINE[func], list(args), dict(options)
    shared: dict[str, Spread] = {}
    for name, place in places.items():
        value = given[place] if place < len(given) else own.get(name)
        if isinstance(value, Spread):
            shared[name] = value
            if place < len(given):
                given[place] = None
            else:
                own[name] = None
    if any(isinstance(a, Spread) for a in (*given, *own.values())):
        raise Unknown(func.__name__)
    if len(shared) < len(places) and len(places) > 1:  # a gain that is not trained must stand before a bias that is
        raise Unknown(func.__name__)
    out = func(*given, **own)
    if len(out) != len(next(iter(shared.values())).copies):
        raise Unknown(func.__name__)
    out = out * shared["weight"].over(out.ndim, last) if "weight" in shared else out
    return out + shared["bias"].over(out.ndim, last) if "bias" in shared else out
