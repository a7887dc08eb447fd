"""How a tensor of a forward pass holds a field, and what a linear function does to its points (equation 98).

The points of a field are the entries along its axes but those of neurons and samples, in one row. Samples are not mixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axes:
    """The shape of a tensor, its axis of neurons, and that of samples (None for what is the same for all of them); how many samples;
    whether outputs stand in the place of neurons."""

    shape: tuple[int, ...]
    wide: int
    sample: int | None
    samples: int
    outputs: bool = False

    @property
    def size(self) -> int:
        """How many points it has"""
        return math.prod(self.shape) // (self.shape[self.wide] * (1 if self.sample is None else self.samples))

    def points(self, tensor: Tensor) -> Tensor:
        """(samples or 1, points, k) of a tensor with k columns in the place of neurons"""
        rows = tensor.movedim(self.wide, -1)
        if self.sample is None:
            return rows.reshape(1, -1, rows.shape[-1])
        return rows.movedim(self._first, 0).reshape(self.samples, -1, rows.shape[-1])

    def tensor(self, points: Tensor) -> Tensor:
        """The tensor whose points these are"""
        k = points.shape[-1]
        shape = [size for axis, size in enumerate(self.shape) if axis != self.wide]
        if self.sample is None:
            return points.reshape(*shape, k).movedim(-1, self.wide)
        first = shape.pop(self._first)
        return (
            points.expand(self.samples, -1, -1).reshape(first, *shape, k).movedim(0, self._first).movedim(-1, self.wide)
        )

    @property
    def _first(self) -> int:
        """The axis of samples where that of neurons is left out"""
        assert self.sample is not None
        return self.sample - (self.sample > self.wide)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear map of points, of one or of each sample: weight (b, outputs) times the input `index` (outputs,); or dense (b, outputs,
    inputs).

    b is 1 for a map that is the same for all samples; number is that of a map which is one number whatever the samples.
    """

    index: Tensor | None
    weight: Tensor | None
    dense: Tensor | None = None
    number: float | None = None

    @staticmethod
    def of(dense: Tensor) -> LinearMap:
        """The map of numbers (b, outputs, inputs), in its simplest form"""
        if len(dense) > 1 and bool((dense == dense[:1]).all()):
            dense = dense[:1]
        seen = (dense != 0).any(0)
        if dense.shape[2] == 0 or bool((seen.sum(1) > 1).any()):
            return LinearMap(None, None, dense.contiguous())
        index = seen.to(torch.int8).argmax(1)
        weight = dense.gather(2, index.expand(len(dense), -1)[:, :, None])[..., 0]
        return LinearMap(index, None if bool((weight == 1).all()) else weight)

    @staticmethod
    def scale(weight: Tensor) -> LinearMap:
        """Each point times a number, weight (b, points)"""
        return LinearMap(torch.arange(weight.shape[1]), weight)

    @staticmethod
    def times(number: float, points: int) -> LinearMap:
        """All points times one number"""
        weight = torch.full((1, points), float(number), dtype=torch.float64)
        return LinearMap(torch.arange(points), weight, number=float(number))

    @property
    def outputs(self) -> int:
        return len(self.index) if self.index is not None else self.dense.shape[1]  # type: ignore[union-attr]

    def is_identity(self, inputs: int) -> bool:
        return self.weight is None and self.index is not None and torch.equal(self.index, torch.arange(inputs))

    def applied(self, x: Tensor, axis: int, batch: int) -> Tensor:
        """x with its points along `axis` mapped; `batch` (from the end, -2 or -1) is the axis of the samples that the map belongs to"""
        if self.index is not None:
            out = x.index_select(axis, self.index)
            if self.weight is None:
                return out
            shape = [1] * x.ndim
            shape[axis], shape[batch] = self.weight.shape[1], len(self.weight)
            return out * self.weight.T.reshape(shape)
        assert self.dense is not None
        rows = x.movedim(axis, 0)
        if len(self.dense) == 1:
            return (self.dense[0] @ rows.flatten(1)).reshape(-1, *rows.shape[1:]).movedim(0, axis)
        rows = rows.movedim(batch, 0)  # (b, inputs, ..)
        out = (self.dense @ rows.flatten(2)).reshape(len(self.dense), -1, *rows.shape[2:])
        return out.movedim(0, batch if batch == -1 else x.ndim + batch).movedim(0, axis)


@dataclass(frozen=True)
class Filter:
    """A convolution over points in space: along each axis the size before, that of the filter, and how it moves"""

    space: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(
        space: tuple[int, ...],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
    ) -> Filter:
        """As torch places its padding"""
        totals = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        ends = tuple((t // 2, t - t // 2) for t in totals)
        return Filter(
            space, kernel, stride, ends if isinstance(padding, str) else tuple((p, p) for p in padding), dilation
        )

    @property
    def after(self) -> tuple[int, ...]:
        """The size of space afterwards"""
        axes = zip(self.space, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + sum(ends) - d * (k - 1) - 1) // s + 1 for size, k, s, ends, d in axes)

    def mean(self, x: Tensor, ends: int) -> Tensor:
        """Over the offsets, of x (points, ..), or (points, points', ..) for 2 ends, on both of which the filter lies at the same offset"""
        rest = x.shape[ends:]
        wide = x.reshape(*self.space * ends, *rest)
        sides = [side for axis in reversed(self.padding * ends) for side in axis]
        if any(sides):
            wide = torch.nn.functional.pad(wide, [0, 0] * len(rest) + sides)
        total = None
        for offset in product(*map(range, self.kernel)):
            cuts = tuple(
                slice(o * d, o * d + s * (n - 1) + 1, s)
                for o, d, s, n in zip(offset, self.dilation, self.stride, self.after, strict=True)
            )
            part = wide[cuts * ends]
            total = part.clone() if total is None else total.add_(part)
        assert total is not None
        return total.div_(math.prod(self.kernel)).reshape(*(math.prod(self.after),) * ends, *rest)
