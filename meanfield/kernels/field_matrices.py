"""Matrices on fields: layers, convolutions, products of two fields over their neurons, attention (equations 97 and 98)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meanfield.kernels.field_affine import (
    affine,
    arguments,
    fields_of,
    outputs_axes,
    weights_of,
)
from meanfield.kernels.field_maps import Filter
from meanfield.kernels.field_nodes import ONE, REMEDY, Mixed, Node, Rooted, scaled
from meanfield.kernels.field_plan import Call
from meanfield.kernels.field_reading import Field, Reading, Rule, Weight, replaced


def linear(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """x W^T + b"""
    x, weight, bias = arguments(args, kwargs, ("input", "weight", "bias"), (None, None, None))
    if isinstance(weight, Weight):
        out = times_matrix(reading, x, weight, call, last=True)
    elif isinstance(x, Field) and isinstance(weight, Field):
        out = averaged(reading, F.linear, call, (x, weight), {})
    else:
        out = affine(reading, F.linear, call, (x, weight), {})
    return out if bias is None else plus(reading, out, bias, call)


def plus(reading: Reading, out: Any, bias: Any, call: Call) -> Any:
    return affine(reading, torch.add, call, (out, bias), {})


def times_matrix(reading: Reading, x: Any, weight: Weight, call: Call, last: bool) -> Field:
    """An infinite matrix on a field, whose neurons are its last axis; last: whether they meet the last axis of the matrix, x W^T"""
    after = reading.axes(call)
    if after is None:  # of a readout: the outputs stand in the place of neurons
        sizes = call.results[0]
        after = outputs_axes(reading, sizes, len(sizes) - 1)
    node = x.node if isinstance(x, Field) else _constant(reading, x, weight)
    reading.must_be_one_way(weight.law.name, weight.turned != last)
    return Field.of(scaled(Mixed.of(weight.law, node), weight.factor), after)


def _constant(reading: Reading, x: Any, weight: Weight) -> Node:
    """A plain tensor in the place of a field: the same for all neurons"""
    if not isinstance(x, Tensor) or not bool((x == x[..., :1]).all()):
        raise ValueError(f"numbers of its own stand in the place of a field; {REMEDY}")
    return Rooted.of(ONE, x[..., :1].reshape(reading.samples if x.ndim > 1 and len(x) == reading.samples else 1, -1, 1))


def convolution(dims: int) -> Rule:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def rule(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        x, weight, bias, stride, padding, dilation, groups = arguments(
            args, kwargs, names, (None, None, None, 1, 0, 1, 1)
        )
        if groups != 1:
            raise ValueError(f"groups={groups}: no kernel is known; {REMEDY}")
        if not isinstance(weight, Weight):
            out = affine(reading, lambda w: convolve(x, w, None, stride, padding, dilation), call, (weight,), {})
        else:
            if (
                not isinstance(x, Field)
                or weight.turned
                or x.ndim != dims + 2
                or x.axes.wide != 1
                or x.axes.sample != 0
            ):
                raise ValueError("a convolution takes fields of the shape (samples, neurons, ..)")
            space, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
            stride, dilation = (_each(v, dims) for v in (stride, dilation))
            padding = padding if isinstance(padding, str) else _each(padding, dims)
            moves = Filter.of(space, kernel, stride, padding, dilation)
            after = reading.axes(call) or outputs_axes(reading, call.results[0], 1)
            out = Field.of(Mixed.of(weight.law, x.node, moves), after)
        if bias is None:
            return out
        return affine(reading, lambda h, b: h + b.reshape(-1, *(1,) * dims), call, (out, bias), {})

    return rule


def _each(value: Any, dims: int) -> tuple[int, ...]:
    many = (value,) * dims if isinstance(value, int) else tuple(value)
    return many * dims if len(many) == 1 else many


def matmul(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    left, right = args[:2]
    if isinstance(right, Weight) and isinstance(left, Field):
        return times_matrix(reading, left, right, call, last=False)
    if weights_of(args):
        raise ValueError(f"a matrix between wide axes must stand on the right of a field, h @ w; {REMEDY}")
    if isinstance(left, Field) and isinstance(right, Field):
        return averaged(reading, func, call, args, kwargs)
    return affine(reading, func, call, args, kwargs)


def einsum(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    operands = args[1:] if not isinstance(args[1], (tuple, list)) else tuple(args[1])
    weights = weights_of(operands)
    if weights:
        letters, _, out = args[0].replace(" ", "").partition("->")
        first, second = letters.split(",")
        x, weight, ours, theirs = (
            (*operands, first, second) if isinstance(operands[1], Weight) else (*operands[::-1], second, first)
        )
        if len(theirs) != 2 or not isinstance(x, Field) or ours[:-1] != out[:-1] or ours[-1] not in theirs:
            raise ValueError(f"einsum {args[0]!r} of a matrix between wide axes: write nn.Linear or h @ w")
        return times_matrix(reading, x, weight, call, last=theirs[1] == ours[-1])
    if len(fields_of(operands)) > 1:
        return averaged(reading, lambda *fields: torch.einsum(args[0], *fields), call, operands, {})
    return affine(reading, func, call, args, kwargs)


def averaged(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Tensor:
    """A sum over neurons of the product of two fields: n times their second moment, which is no random number"""
    first, second = fields_of(args, kwargs) if len(fields_of(args, kwargs)) == 2 else (args[0], args[0])
    if reading.axes(call) is not None:
        raise ValueError(f"a product of fields that leaves an axis of neurons: no kernel is known; {REMEDY}")
    n, within = first.shape[first.axes.wide], reading.within
    reading.averages += 1
    c = within.moments(first.node, second.node, same=False)[0]
    batch = reading.samples if first.axes.sample is not None or second.axes.sample is not None else 1
    c = torch.zeros(first.node.size, second.node.size, 1, dtype=torch.float64) if c is None else c
    if reading.noise:
        size = within.size(first.node)[:, None] * within.size(second.node)[None]
        c = c + reading.noise * size / math.sqrt(n) * reading.drawn(c)
    c = c.movedim(-1, 0).expand(batch, -1, -1)
    eye = torch.eye(second.node.size, dtype=torch.float64).expand(batch, -1, -1)
    if first is second:
        values = func(first.axes.tensor(c), first.axes.tensor(eye))
    else:
        new = {id(first): first.axes.tensor(c), id(second): second.axes.tensor(eye)}
        values = func(*replaced(args, new), **replaced(kwargs, new))
    return values * n


def attention(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """softmax(q k^T scale + mask) v"""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    q, k, v, mask, p, causal, scale = arguments(args, kwargs, names, (None, None, None, None, 0.0, False, None))
    if p:
        raise ValueError("dropout_p draws masks: no kernel is known")
    sizes = (*call.results[0][:-1], call.results[0][-2])
    inner = Call("matmul", (tuple(type(sizes[0])(s.number, False, s.sample) for s in sizes),))
    logits = averaged(reading, lambda a, b: a @ b.transpose(-1, -2), inner, (q, k), {})
    logits = logits * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return affine(reading, torch.matmul, call, (logits.softmax(-1), v), {})
