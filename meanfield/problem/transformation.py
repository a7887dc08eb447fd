"""Transformation: what was done to the inputs of a data set, kept so that new points can be treated alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked

Way = Literal["centre", "standardise", "unit_norm"]
TargetWay = Literal["centre", "standardise"]
WAYS = {
    "centre": "the mean of each column is taken away",
    "standardise": "each column gets mean 0 and standard deviation 1; constant ones become 0",
    "unit_norm": "each row gets the norm sqrt(D), so that x . x / D = 1, as mf.digits has it",
}
_ROUNDING = 1e-12  # relative: a column that varies by less is constant


@checked
@dataclass(frozen=True, eq=False)
class Transformation:
    """x -> (x - shift) / scale column by column, and then, of `unit_norm`, each row divided by its norm / sqrt(D).

    Shift and scale come from training samples alone, those of targets too, where a regression scaled them. ValueError for new points of
    another shape, and for a row of zeros, which has no direction.

    Example:
        >>> import meanfield as mf
        >>> data = mf.from_arrays([[1.0, 10.0], [3.0, 30.0]], [1.0, -1.0], scale="standardise")
        >>> data.transformation.shift, data.transformation([[2.0, 20.0]])  # for new inputs
        (tensor([ 2., 20.], dtype=torch.float64), tensor([[0., 0.]], dtype=torch.float64))
    """

    shift: Tensor
    """Of the shape of one sample: what is taken away"""
    scale: Tensor
    """Of the shape of one sample, positive: what the rest is divided by"""
    unit_norm: bool = False
    """Whether each row is brought to the norm sqrt(D) at the end"""
    target_shift: Tensor | None = None
    """Of the shape of the targets of one sample: what was taken away from them; none if targets are as they came"""
    target_scale: Tensor | None = None
    """Likewise, positive: what the rest was divided by"""

    def __post_init__(self) -> None:
        if (self.target_shift is None) != (self.target_scale is None):
            raise ValueError("target_shift and target_scale belong together: give both, or none")
        for name in ("target_shift", "target_scale") if self.target_shift is not None else ():
            object.__setattr__(self, name, checks.samples(name, getattr(self, name)[None])[0].double())
        if self.target_shift is not None and self.target_scale is not None:
            if self.target_shift.shape != self.target_scale.shape:
                raise ValueError(
                    f"target_shift and target_scale must have one shape: received {tuple(self.target_shift.shape)} and "
                    f"{tuple(self.target_scale.shape)}"
                )
            if bool((self.target_scale <= 0).any()):
                raise ValueError(f"target_scale must be positive: received {float(self.target_scale.min()):g}")
        for name in ("shift", "scale"):
            object.__setattr__(self, name, checks.samples(name, getattr(self, name)[None])[0].double())
        if self.shift.shape != self.scale.shape:
            raise ValueError(
                f"shift and scale must have the shape of a sample: received {tuple(self.shift.shape)} and {tuple(self.scale.shape)}"
            )
        if bool((self.scale <= 0).any()):
            raise ValueError(f"scale must be positive: received {float(self.scale.min()):g}")

    def __call__(self, x: Any) -> Tensor:
        """(P, ..) new points as the training samples were transformed, in float64"""
        return self._applied("x", checks.samples("x", x).double())

    def targets(self, y: Any) -> Tensor:
        """(P, ..) new targets, in the units that the data came in, as those of training are; as they are if nothing was done to them"""
        found = checks.samples("y", y, targets=True).double()
        shift, scale = self._of_targets("y", found)
        return (found - shift) / scale

    def outputs(self, f: Any) -> Tensor:
        """(.., C) outputs of networks or limits in the units that the targets came in, the inverse of `targets`: of single samples, of all,
        or of all times (R, P, C). Differences, standard deviations and errors are multiplied by `target_scale` alone.
        """
        found = checks.array("f", f).double()
        shift, scale = self._of_targets("f", found)
        return found * scale + shift

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transformation):
            return NotImplemented
        parts = (
            (getattr(self, name), getattr(other, name)) for name in ("shift", "scale", "target_shift", "target_scale")
        )
        same = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in parts)
        return same and self.unit_norm == other.unit_norm

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        targets = "" if self.target_shift is None else ", of targets too"
        return f"Transformation(of samples {tuple(self.shift.shape)}, unit_norm={self.unit_norm}{targets})"

    def _of_targets(self, name: str, value: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale; ValueError for a value whose last sizes are not those of targets"""
        if self.target_shift is None or self.target_scale is None:
            return 0.0, 1.0
        shape = tuple(self.target_shift.shape)
        if tuple(value.shape[value.ndim - len(shape) :]) != shape:
            raise ValueError(f"{name} must end with the shape of targets, {shape}: received {tuple(value.shape)}")
        return self.target_shift, self.target_scale

    def _applied(self, name: str, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shift.shape:
            raise ValueError(
                f"{name} must have samples of the shape {tuple(self.shift.shape)}, as those that were transformed: received "
                f"{tuple(x.shape[1:])}"
            )
        moved = (x - self.shift) / self.scale
        return _to_unit_norm(name, moved) if self.unit_norm else moved


def transformation(x: Tensor, ways: str | Sequence[str]) -> Transformation:
    """Of training samples (P, ..), by these ways: columns first, then rows"""
    names = (ways,) if isinstance(ways, str) else tuple(ways)
    for name in names:
        if name not in WAYS:
            known = "; ".join(f"{way!r}, {what}" for way, what in WAYS.items())
            raise ValueError(f"unknown scale: received {checks.shown(name)}; known: {known}")
    if len({*names} - {"unit_norm"}) > 1 or len({*names}) < len(names) or "unit_norm" in names[:-1]:
        raise ValueError(
            f"scale takes 'centre' or 'standardise', then 'unit_norm': received {names}; give e.g. scale=('centre', 'unit_norm')"
        )
    return Transformation(*_columns(x, names), "unit_norm" in names)


def of_targets(y: Tensor, way: str) -> tuple[Tensor, Tensor]:
    """Shift and scale of training targets (P, ..)"""
    known = [name for name in WAYS if name != "unit_norm"]
    if way not in known:
        raise ValueError(f"unknown scale_targets: received {checks.shown(way)}; known: {', '.join(known)}")
    return _columns(y, (way,))


def _columns(x: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What is taken away from columns, and what they are divided by"""
    x = x.double()
    shift, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
    if {"centre", "standardise"} & {*names}:
        shift = x.mean(0)
    if "standardise" in names:
        deviation = (x - shift).square().mean(0).sqrt()
        constant = deviation <= _ROUNDING * x.abs().amax(0)
        scale = torch.where(constant, 1.0, deviation)
        shift = torch.where(constant, x[0], shift)
    return shift, scale


def unit_norm(shape: Sequence[int]) -> Transformation:
    """Rows of norm sqrt(D) alone"""
    return Transformation(torch.zeros(*shape, dtype=torch.float64), torch.ones(*shape, dtype=torch.float64), True)


def _to_unit_norm(name: str, x: Tensor) -> Tensor:
    rows = x.flatten(1)
    norms = rows.norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise ValueError(
            f"row {int((norms[:, 0] == 0).nonzero()[0])} of {name} is zero, so that it has no direction for scale='unit_norm': leave it out"
        )
    return (rows * (math.sqrt(rows.shape[1]) / norms)).reshape(x.shape)
