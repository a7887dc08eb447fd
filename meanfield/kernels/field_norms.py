"""Averages of a field over its neurons, and norms that divide by them (equation 97)."""

from __future__ import annotations

import math
from typing import Any

import torch

from meanfield.kernels.field_affine import (
    affine,
    arguments,
    plain_values,
)
from meanfield.kernels.field_maps import LinearMap
from meanfield.kernels.field_nodes import ONE, REMEDY, Rooted, mapped, total
from meanfield.kernels.field_plan import Call
from meanfield.kernels.field_pointwise import multiplied_fields
from meanfield.kernels.field_reading import Field, Reading


def over_neurons(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """mean and sum, over neurons or other axes"""
    field = args[0]
    if field.axes.outputs or reading.axes(call) is not None:
        return affine(reading, func, call, args, kwargs)
    m = reading.within.mean(field.node)
    reading.averages += 1
    if reading.noise:
        m = torch.zeros(field.node.size, 1, dtype=torch.float64) if m is None else m
        n = field.shape[field.axes.wide]
        size = reading.within.size(field.node).expand(-1, reading.samples if field.axes.sample is not None else 1)
        m = m + reading.noise * size / math.sqrt(n) * reading.drawn(size)
    out = func(plain_values(field, m), *args[1:], **kwargs)
    return out * field.shape[field.axes.wide] if call.name == "sum" else out


def spread_over_neurons(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """var, std and norm over the axis of neurons alone"""
    field = args[0]
    dim = kwargs.get("dim", kwargs.get("axis", next((a for a in args[1:] if isinstance(a, (int, tuple, list))), None)))
    if call.name in ("norm", "vector_norm") and "dim" not in kwargs:
        dim = args[2] if len(args) > 2 else None
    dims = tuple(d % field.ndim for d in ((dim,) if isinstance(dim, int) else dim or ()))
    if dims != (field.axes.wide,):
        raise ValueError(f"over other axes than that of neurons alone it has no rule; {REMEDY}")
    square, m = reading.within.square(field.node), reading.within.mean(field.node)
    if call.name in ("norm", "vector_norm"):
        value = (square * field.shape[field.axes.wide]).sqrt()
    else:
        value = square if m is None else square - m.square()
        value = value.sqrt() if call.name == "std" else value
    out = plain_values(field, value)
    return out if kwargs.get("keepdim") else out.squeeze(field.axes.wide)


def layer_norm(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """(h - mean) / sqrt(variance + eps) over neurons, and points where the norm is over these too; rms_norm without the mean"""
    centred = call.name != "rms_norm"
    if call.name == "group_norm":
        x, _, weight, bias, eps = arguments(
            args, kwargs, ("input", "num_groups", "weight", "bias", "eps"), (None, 1, None, None, 1e-5)
        )
        over = tuple(range(2, x.ndim))
        if x.axes.wide != 1:
            raise ValueError("group_norm takes fields of the shape (samples, neurons, ..)")
    else:
        names = (
            ("input", "normalized_shape", "weight", "bias", "eps")
            if centred
            else ("input", "normalized_shape", "weight", "eps")
        )
        values = arguments(args, kwargs, names, (None, None, None, None, 1e-5) if centred else (None, None, None, None))
        x, form, weight = values[:3]
        bias, eps = (values[3] if centred else None), values[-1]
        over = tuple(a for a in range(x.ndim - len(form), x.ndim) if a != x.axes.wide)
        if x.axes.wide < x.ndim - len(form):
            raise ValueError("a norm over points alone, not over neurons, has no rule")
    eps = torch.finfo(torch.float64).eps if eps is None else eps
    out = _normalised(reading, x, over, centred, eps)
    for parameter, how in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            if not isinstance(parameter, Field) or parameter.ndim > 1:
                raise ValueError(f"the weights of a norm must be one for each neuron; {REMEDY}")
            form = [-1 if axis == x.axes.wide else 1 for axis in range(x.ndim)]
            there = affine(reading, lambda t: t.reshape(form), _as_shaped(call, x.axes.wide), (parameter,), {})  # noqa: B023
            out = (
                multiplied_fields(reading, out, there, call)
                if how is torch.mul
                else affine(reading, how, call, (out, there), {})
            )
    return out


def _as_shaped(call: Call, wide: int) -> Call:
    """A call that gives a vector of neurons the number of axes of its result"""
    sizes = call.results[0]
    one = type(sizes[0])(sizes[0].number / sizes[0].number, False, False)
    return Call("reshape", (tuple(size if axis == wide else one for axis, size in enumerate(sizes)),))


def _normalised(reading: Reading, x: Field, over: tuple[int, ...], centred: bool, eps: float) -> Field:
    within, node = reading.within, x.node
    square, m = within.square(node), within.mean(node)
    square = plain_values(x, square)
    mean = plain_values(x, m) if centred and m is not None else torch.zeros_like(square)
    if over:
        square, mean = (v.mean(over, keepdim=True).expand(v.shape) for v in (square, mean))
    scale = ((square - mean.square()).clamp_min(0) + eps).rsqrt()
    if bool(mean.any()):
        node = total([node, Rooted.of(ONE, -x.axes.points(mean))])
    weight = x.axes.points(scale)[..., 0]
    weight = weight[:1] if bool((weight == weight[:1]).all()) else weight
    return Field.of(mapped(LinearMap.scale(weight), node), x.axes)
