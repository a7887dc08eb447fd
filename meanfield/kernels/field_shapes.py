"""Shapes of fields: neurons in parts, points that become neurons, shares of the neurons (equation 98)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from meanfield.kernels.field_affine import (
    affine,
    arguments,
    fields_of,
    with_columns,
)
from meanfield.kernels.field_maps import Axes, LinearMap
from meanfield.kernels.field_nodes import REMEDY, folded, joined, mapped, parted, share, sources
from meanfield.kernels.field_plan import Call
from meanfield.kernels.field_pointwise import applied, multiplied_fields
from meanfield.kernels.field_reading import Field, Reading, Weight


def reshaped(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """Another shape, in which neurons may fall into parts or take in points"""
    field, after = fields_of(args, kwargs)[0], reading.axes(call)
    if field.axes.outputs:
        return affine(reading, func, call, args, kwargs)
    if after is None:
        raise ValueError(f"it leaves no axis of neurons; {REMEDY}")
    before = field.axes
    old, new = before.shape[before.wide], after.shape[after.wide]
    if old == new:
        return affine(reading, lambda t: t.reshape(with_columns(after, t.shape[before.wide])), call, (field,), {})
    if old > new and old % new == 0:
        return _into_parts(field, after, old // new)
    if new > old and new % old == 0:
        return _points_folded(field, after, new // old)
    raise ValueError(f"an axis of {old} neurons becomes one of {new}: no kernel is known; {REMEDY}")


def expanded(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """expand, whose sizes may name the width"""
    field, after = fields_of(args)[0], reading.axes(call)
    if field.axes.outputs:
        return affine(reading, func, call, args, kwargs)
    if after is None or field is not args[0]:
        raise ValueError(f"it leaves no axis of neurons; {REMEDY}")
    return affine(reading, lambda t: t.expand(with_columns(after, t.shape[field.axes.wide])), call, (field,), {})


def _into_parts(field: Field, after: Axes, parts: int) -> Field:
    """n -> (parts, n/parts) or (n/parts, parts)"""
    before = field.axes
    # points (.., parts) in the order of nodes, with the parts where the new axis lies
    place = next(
        (a for a in (after.wide - 1, after.wide + 1) if 0 <= a < len(after.shape) and after.shape[a] == parts), None
    )
    if place is None or place == after.sample or len(after.shape) != len(before.shape) + 1:
        raise ValueError(f"neurons become {after.shape} from {before.shape}: no kernel is known; {REMEDY}")
    node = parted(field.node, parts)
    order = torch.arange(node.size).reshape(before.size, parts)  # of the node
    shape = [size for axis, size in enumerate(after.shape) if axis != after.wide and axis != after.sample]
    which = [axis for axis in range(len(after.shape)) if axis not in (after.wide, after.sample)].index(place)
    folded_samples = 1 if after.sample is None else after.shape[after.sample] // after.samples
    rest = [s for i, s in enumerate(shape) if i != which]
    table = order.reshape(folded_samples, *rest, parts).movedim(-1, which + 1).reshape(-1)
    return Field.of(mapped(LinearMap(table, None), node), after)


def _points_folded(field: Field, after: Axes, folds: int) -> Field:
    """(parts, n/parts) -> n, or (n, H, W) -> n H W: neighbouring axes of points become neurons"""
    before = field.axes
    axes = [axis for axis in range(len(before.shape)) if axis not in (before.wide, before.sample)]
    taken = next(
        (
            span
            for span in _spans(before.wide, len(before.shape))
            if before.sample not in span and math.prod(before.shape[a] for a in span) == folds
        ),
        None,
    )
    if taken is None:
        raise ValueError(f"{before.shape} becomes {after.shape}: no kernel is known; {REMEDY}")
    samples = 1 if before.sample is None else before.shape[before.sample] // before.samples
    table = torch.arange(before.size).reshape(samples, *(before.shape[a] for a in axes))
    inside = [i + 1 for i, a in enumerate(axes) if a in taken]
    table = table.permute(*inside, 0, *(i + 1 for i, a in enumerate(axes) if a not in taken)).reshape(folds, -1)
    node = folded(field.node, table)
    assert after.size == node.size
    return Field.of(node, after)


def _spans(wide: int, axes: int) -> list[tuple[int, ...]]:
    """Runs of neighbouring axes that begin or end beside the wide one"""
    spans = []
    for length in range(1, axes):
        for start in range(axes - length):
            span = tuple(a for a in range(start, start + length + 1))
            if wide in span:
                spans.append(tuple(a for a in span if a != wide))
    return spans


def shared(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """Parts of a wide axis, chunk and split, or affine along others"""
    field = fields_of(args, kwargs)[0]
    if field.axes.outputs:
        return affine(reading, func, call, args, kwargs)
    results = [reading.axes(call, i) for i in range(len(call.results))]
    sizes = [None if axes is None else axes.shape[axes.wide] for axes in results]
    old = field.axes.shape[field.axes.wide]
    if all(size == old for size in sizes):
        return affine(reading, func, call, args, kwargs)
    if any(size is None or size * len(sizes) != old for size in sizes):
        raise ValueError(f"neurons are taken in unequal parts, {sizes} of {old}: no kernel is known; {REMEDY}")
    return tuple(_part(field, axes, len(sizes), i) for i, axes in enumerate(results))  # type: ignore[arg-type]


def halved(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Field:
    """glu: the first half, along any axis, times the sigmoid of the second; ValueError where both depend on the same neurons"""
    field, dim = arguments(args, kwargs, ("input", "dim"), (None, -1))
    both = Call("chunk", call.results * 2)
    first, second = shared(reading, lambda t: t.chunk(2, dim), both, (field,), {})
    if dim % len(field.shape) != field.axes.wide and sources(first.node) & sources(second.node):
        raise ValueError(
            f"the gate of a value stands at another position of the same neurons: no rule; halve the axis of neurons, {field.axes.wide}, "
            f"or take a matrix of its own for the gates; {REMEDY}"
        )
    gate = Field.of(applied(second.node, torch.sigmoid, ()), second.axes)
    return multiplied_fields(reading, first, gate, call)


def _part(field: Field, after: Axes, parts: int, which: int) -> Field:
    return Field.of(share(field.node, parts, which), after)


def concatenated(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """cat and stack: along neurons a join, along other axes linear"""
    tensors, after = list(args[0]), reading.axes(call)
    if after is None or not all(isinstance(t, Field) for t in tensors):
        return affine(reading, func, call, args, kwargs)
    sizes = [t.shape[t.axes.wide] for t in tensors]
    whole = after.shape[after.wide]
    if call.name == "stack" or sum(sizes) != whole or sizes[0] == whole:
        return affine(reading, func, call, args, kwargs)
    if len({t.axes.sample for t in tensors}) > 1:
        raise ValueError(
            f"neurons that are the same for all samples are joined to others: no kernel is known; {REMEDY}"
        )
    return Field.of(joined([t.node for t in tensors], [size / whole for size in sizes]), after)


def indexed(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """h[..]: a share of the neurons where it cuts their axis"""
    field, after = args[0], reading.axes(call)
    if isinstance(field, Field) and field.axes.outputs:
        return affine(reading, func, call, args, kwargs)
    if not isinstance(field, Field) or after is None:
        raise ValueError(f"neurons are taken by number; {REMEDY}")
    old, new = field.axes.shape[field.axes.wide], after.shape[after.wide]
    if old == new:
        return affine(reading, func, call, args, kwargs)
    marks = torch.arange(old).reshape([-1 if axis == field.axes.wide else 1 for axis in range(len(field.axes.shape))])
    taken = func(marks.expand(field.axes.shape), *args[1:], **kwargs).movedim(after.wide, -1).reshape(-1, new)[0]
    if old % new or not torch.equal(taken, taken[0] + torch.arange(new)) or int(taken[0]) % new:
        raise ValueError(f"neurons are taken in unequal parts, {new} of {old}: no kernel is known; {REMEDY}")
    whole = _part(field, field.axes, old // new, int(taken[0]) // new)
    start = int(taken[0])

    def rest(t: Tensor) -> Tensor:
        """The same selection along the other axes"""
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        own = [
            slice(None)
            if isinstance(i, slice) and (i.start or 0) % old in (start, start - old) and i != slice(None)
            else i
            for i in index
        ]
        return t[tuple(own)]

    return affine(reading, rest, call, (whole,), {}) if after.shape != whole.axes.shape else Field.of(whole.node, after)


def transposed(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    if isinstance(args[0], Weight):
        w = args[0]
        return Weight.of(w.law, tuple(w.shape)[::-1], w.factor, not w.turned)
    return affine(reading, func, call, args, kwargs)
