"""Kernels that do not fit into floating point: errors that name layer and size, in place of 0, infinity or NaN (equation 48)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.network.layered import Layered

_TINY = 1e-100  # moments whose products may vanish


@dataclass(frozen=True)
class Ends:
    """Of points, nngp and ntk with themselves in float64, None for one that is 0 by the parameterization; and the smallest of the largest
    moments of the fields on the way to them that are not 0."""

    kernels: tuple[Tensor | None, ...]
    smallest: float


def living(network: Any, x: Tensor) -> Tensor | None:
    """(n,) indices of the points x (P, ..) where not every network gives 0, None for all of them

    At inputs of zero, without biases and with phi(0) = 0, outputs and their gradients vanish, and so do the rows of both kernels.
    """
    zero = (x == 0).flatten(1).all(1)
    return (~zero).nonzero()[:, 0] if bool(zero.any()) and _is_zero_at_zero(network) else None


def among_all(kernels: tuple[Tensor, Tensor], sizes: tuple[int, int], ends: Sequence[Tensor | None]) -> Any:
    """The kernels between all points, `sizes` of them, from those between the `living` ones"""
    if all(end is None for end in ends):
        return kernels
    rows, columns = (
        torch.arange(size, device=kernels[0].device) if end is None else end
        for size, end in zip(sizes, ends, strict=True)
    )
    full = tuple(kernel.new_zeros(sizes) for kernel in kernels)
    for kernel, part in zip(full, kernels, strict=True):
        kernel[rows[:, None], columns] = part
    return full


def layers_in_range(network: Any, variances: Sequence[Tensor]) -> None:
    """ValueError for the first layer whose variances (..) overflow, or fall below the normal numbers although nothing there is zero.

    Points that are exactly zero have been taken out before, or biases or phi(0) keep them alive; blank parts of images may be 0.
    """
    shrinks = _is_zero_at_zero(network)
    for l, p in enumerate(variances):
        low, high = (float(v) for v in torch.aminmax(p if p.ndim == 1 else p.amax().reshape(1)))
        if high < torch.finfo(p.dtype).max and (low >= torch.finfo(p.dtype).tiny or not shrinks):
            continue
        over = not high < torch.finfo(p.dtype).max
        before = (
            f"; it is {float(variances[l - 1].max() if over else variances[l - 1].min()):.1e} in layer {l}" if l else ""
        )
        raise ValueError(
            f"the variance of h in layer {l + 1} of {network.depth} {_outside(over, p.dtype)}{before}; {_remedy(network, over)}"
        )


def kernels_in_range(
    network: Layered, weights: tuple[float, ...], kernels: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """ValueError for kernels that overflow or underflow where they are stored; `exact` are diagonals in float64, weights 0 for none."""
    for name, weight, kernel, diagonal in zip(("nngp", "ntk"), weights, kernels, exact, strict=True):
        kind, size = torch.finfo(kernel.dtype), diagonal[diagonal != 0]
        over = not bool(torch.isfinite(kernel).all()) or not float(diagonal.max()) <= kind.max
        if not over and (not weight or (len(size) > 0 and float(size.min()) >= kind.tiny)):
            continue
        least = f", {float(size.max() if over else size.min()):.1e} on its diagonal," if len(size) else ""
        single = "; give x in float64" if kernel.dtype == torch.float32 else ""
        raise ValueError(
            f"the {name} after layer {network.depth} of {network.depth}{least} {_outside(over, kernel.dtype)}; "
            f"{_remedy(network, over)}{single}"
        )


def fields_in_range(variances: Sequence[Tensor], kernels: Sequence[Tensor], ends: Ends) -> None:
    """ValueError for variances before activations and for kernels, of any network, that overflow, fall below the normal numbers, or vanish
    behind fields that are tiny"""
    least = torch.finfo(torch.float64).tiny
    for number, p in enumerate(variances):
        most = float(p.max())
        vanished = most < least < float(variances[0].max()) and (most or ends.smallest < _TINY)
        if vanished or not most < torch.finfo(torch.float64).max:
            raise ValueError(
                f"the variance before activation {number + 1} of {len(variances)} is {most:.1e}, beyond the range of float64: give other "
                "standard deviations, mf.Architecture(build, weight_std=..), or fewer layers"
            )
    for name, kernel, exact in zip(("nngp", "ntk"), kernels, ends.kernels, strict=True):
        kind = torch.finfo(kernel.dtype)
        if not bool(torch.isfinite(kernel).all()):
            raise ValueError(
                f"the {name} exceeds {kind.max:.1e}, the largest {kernel.dtype}: give x in float64, or a smaller weight_std"
            )
        present = None if exact is None else exact[exact != 0]
        if present is not None and (float(present.min()) < kind.tiny if len(present) else ends.smallest < _TINY):
            raise ValueError(
                f"the {name} falls below {kind.tiny:.1e}, the least normal {kernel.dtype}: give larger standard deviations, "
                "mf.Architecture(build, weight_std=..), larger inputs, or fewer layers"
                + "; or x in float64"
                * (kernel.dtype == torch.float32)
            )


def sampled_in_range(what: str, kernels: Tensor, f: Tensor | None) -> None:
    """ValueError for kernels of real networks that overflow, and, where outputs f at the same points are given, for those that vanish
    although these do not"""
    kind, kernels = torch.finfo(kernels.dtype), kernels.detach()
    if not bool(torch.isfinite(kernels).all()):
        raise ValueError(f"{what} exceeds {kind.max:.1e}, the largest {kernels.dtype}: give smaller weights, or inputs")
    if f is not None and bool(f.any()) and float(kernels.abs().max()) < kind.tiny:
        raise ValueError(
            f"{what} falls below {kind.tiny:.1e}, the least normal {kernels.dtype}, while outputs are of size {float(f.abs().max()):.1e}: "
            "give larger weights, or inputs"
        )


def _is_zero_at_zero(network: Any) -> bool:
    return not network.bias_std and float(network.nonlinearity(torch.zeros(1, dtype=torch.float64))) == 0


def _outside(over: bool, dtype: torch.dtype) -> str:
    kind, name = torch.finfo(dtype), str(dtype).removeprefix("torch.")
    return (
        f"exceeds {kind.max:.1e}, the largest {name}"
        if over
        else f"falls below {kind.tiny:.1e}, the least normal {name}"
    )


def _remedy(network: Layered, over: bool) -> str:
    change = (
        "take a smaller weight_std" if over else "take a larger weight_std (relu keeps its size at sqrt(2)), biases"
    )
    return f"{change}, fewer layers, or inputs of another size: received weight_std={network.weight_std:g}"
