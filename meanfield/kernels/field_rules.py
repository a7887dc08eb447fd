"""What each function of torch makes of fields (equations 93 and 94): a rule by its name. To add one, write it here and put it into RULES."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from meanfield.kernels.field_maps import Axes, LinearMap, reads
from meanfield.kernels.field_moments import REMEDY
from meanfield.kernels.field_nodes import (
    ONE,
    Folded,
    Mixed,
    Node,
    Pointwise,
    Product,
    Rooted,
    Shape,
    Total,
    combined,
    folded,
    mapped,
    parted,
    pointwise,
    product,
    scaled,
    shape,
    share,
    total,
)
from meanfield.kernels.field_reading import Call, Field, Reading, Weight, replaced, where

Rule = Callable[..., Any]


def rule_of(name: str) -> Rule:
    """ValueError for a function that has no rule"""
    if name not in RULES:
        raise ValueError(f"this function of a field has no rule; {REMEDY}")
    return RULES[name]


def _fields(args: Any, kwargs: Any = None) -> list[Field]:
    found = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Field)]
    return list({id(value): value for value in found}.values())


def _weights(args: Any) -> list[Weight]:
    return [value for value in tree_flatten(args)[0] if isinstance(value, Weight)]


def affine(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """A function that is linear in its fields, but for what is the same for all neurons, and mixes neither neurons nor samples"""
    if _weights((args, kwargs)):
        raise ValueError("a matrix between wide axes must multiply fields, as it is, transposed or times a number")
    fields = _fields(args, kwargs)
    results = [reading.axes(call, i) for i in range(len(call.results))]
    if all(axes is None for axes in results) and all(_is_output(field) for field in fields):
        results = _of_outputs(reading, func, call, fields, args, kwargs)
    if any(axes is None for axes in results):
        raise ValueError(f"it leaves no axis of neurons, and is no mean over them; {REMEDY}")
    for i, axes in enumerate(results):
        assert axes is not None
        if axes.sample is None and any(field.axes.sample is not None for field in fields):
            raise ValueError("it mixes samples, as batch norm does: the output of one depends on the others")

    def values(columns: dict[int, Tensor]) -> list[Tensor]:
        """Points of each result, of columns (b or 1, points, k) by field; fields that are not there are zero"""
        k = next((c.shape[-1] for c in columns.values()), 1)
        new = {}
        for i, field in enumerate(fields):
            zero = field.node.size
            given = columns.get(i)
            batch = reading.samples if field.axes.sample is not None else 1
            new[id(field)] = field.axes.tensor(torch.zeros(batch, zero, k, dtype=torch.float64) if given is None else given)
        found = func(*replaced(args, new), **replaced(kwargs, new))
        several = [t for t in tree_flatten(found)[0] if isinstance(t, Tensor)]
        return [axes.points(t) for axes, t in zip(results, several, strict=True)]  # type: ignore[union-attr]

    constants = values({})

    def linear_part(columns: dict[int, Tensor]) -> list[Tensor]:
        return [v - c if bool(c.any()) else v for v, c in zip(values(columns), constants, strict=True)]

    terms: list[list[Node]] = [[] for _ in results]
    for i, field in enumerate(fields):
        nodes = field.node.terms if isinstance(field.node, Total) else (field.node,)
        maps = None
        for node in nodes:
            if isinstance(node, Rooted):
                for own, root in zip(terms, linear_part({i: node.root}), strict=True):
                    own.append(Rooted.of(node.leaf, root))
                continue
            if maps is None:
                batch = reading.samples if field.axes.sample is not None else 1
                eye = torch.eye(node.size, dtype=torch.float64).expand(batch, -1, -1)
                maps = [LinearMap.of(dense) for dense in linear_part({i: eye})]
                if reading.apart and batch > 1:
                    _must_keep_samples_apart(field.axes, linear_part, i)
            for own, map in zip(terms, maps, strict=True):
                own.append(mapped(map, node))
    for own, constant in zip(terms, constants, strict=True):
        if bool(constant.any()):
            own.append(Rooted.of(ONE, constant))
    made = tuple(Field.of(total(own), axes) for own, axes in zip(terms, results, strict=True))  # type: ignore[arg-type]
    return made if call.name in _SEVERAL else made[0]


def _is_output(field: Field) -> bool:
    """Whether outputs stand in the place of neurons"""
    return field.axes.outputs


def _of_outputs(
    reading: Reading, func: Any, call: Call, fields: list[Field], args: Any, kwargs: Any
) -> list[Axes | None]:
    """The axes of results of outputs: that of outputs is the one whose size follows"""
    k = 7919
    new = {id(f): torch.empty(_with_columns(f.axes, k), dtype=torch.float64, device="meta") for f in fields}
    found = [t for t in tree_flatten(func(*replaced(args, new), **replaced(kwargs, new)))[0] if isinstance(t, Tensor)]
    return [
        _outputs(reading, sizes, tuple(t.shape).index(k)) if k in t.shape else None
        for t, sizes in zip(found, call.results, strict=True)
    ]


_SEVERAL = {"chunk", "split", "unbind", "tensor_split"}


def _must_keep_samples_apart(axes: Axes, values: Callable[[dict[int, Tensor]], list[Tensor]], i: int) -> None:
    for moved in range(axes.samples):
        one = torch.zeros(axes.samples, axes.size, axes.size, dtype=torch.float64)
        one[moved] = torch.eye(axes.size, dtype=torch.float64)
        for found in values({i: one}):
            others = found.clone()
            others[moved] = 0
            if bool(others.any()):
                raise ValueError("it mixes samples: the output of one depends on the others, and no kernel is known")


def reshaped(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """Another shape, in which neurons may fall into parts or take in points"""
    field, after = _fields(args, kwargs)[0], reading.axes(call)
    if after is None:
        raise ValueError(f"it leaves no axis of neurons; {REMEDY}")
    before = field.axes
    old, new = before.shape[before.wide], after.shape[after.wide]
    if old == new:
        return affine(reading, lambda t: t.reshape(_with_columns(after, t.shape[before.wide])), call, (field,), {})
    if old > new and old % new == 0:
        return _into_parts(field, after, old // new)
    if new > old and new % old == 0:
        return _points_folded(field, after, new // old)
    raise ValueError(f"an axis of {old} neurons becomes one of {new}: no kernel is known; {REMEDY}")


def _with_columns(axes: Axes, k: int) -> list[int]:
    """Its shape with k columns in the place of neurons"""
    return [k if axis == axes.wide else size for axis, size in enumerate(axes.shape)]


def expanded(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """expand, whose sizes may name the width"""
    field, after = _fields(args)[0], reading.axes(call)
    if after is None or field is not args[0]:
        raise ValueError(f"it leaves no axis of neurons; {REMEDY}")
    return affine(
        reading, lambda t: t.expand(_with_columns(after, t.shape[field.axes.wide])), call, (field,), {}
    )


def _into_parts(field: Field, after: Axes, parts: int) -> Field:
    """n -> (parts, n/parts) or (n/parts, parts)"""
    before = field.axes
    # points (.., parts) in the order of nodes, with the parts where the new axis lies
    place = next((a for a in (after.wide - 1, after.wide + 1) if 0 <= a < len(after.shape) and after.shape[a] == parts), None)
    if place is None or len(after.shape) != len(before.shape) + 1:
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
    field = _fields(args, kwargs)[0]
    results = [reading.axes(call, i) for i in range(len(call.results))]
    sizes = [None if axes is None else axes.shape[axes.wide] for axes in results]
    old = field.axes.shape[field.axes.wide]
    if all(size == old for size in sizes):
        return affine(reading, func, call, args, kwargs)
    if any(size is None or size * len(sizes) != old for size in sizes):
        raise ValueError(f"neurons are taken in unequal parts, {sizes} of {old}: no kernel is known; {REMEDY}")
    return tuple(_part(field, axes, len(sizes), i) for i, axes in enumerate(results))  # type: ignore[arg-type]


def _part(field: Field, after: Axes, parts: int, which: int) -> Field:
    return Field.of(share(field.node, parts, which), after)


def indexed(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """h[..]: a share of the neurons where it cuts their axis"""
    field, after = args[0], reading.axes(call)
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
        own = [slice(None) if isinstance(i, slice) and (i.start or 0) % old in (start, start - old) and i != slice(None) else i for i in index]
        return t[tuple(own)]

    return affine(reading, rest, call, (whole,), {}) if after.shape != whole.axes.shape else Field.of(whole.node, after)


def linear(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """x W^T + b"""
    x, weight, bias = _arguments(args, kwargs, ("input", "weight", "bias"), (None, None, None))
    if isinstance(weight, Weight):
        out = _multiplied(reading, x, weight, call)
    elif isinstance(x, Field) and isinstance(weight, Field):
        out = averaged(reading, F.linear, call, (x, weight), {})
    else:
        out = affine(reading, F.linear, call, (x, weight), {})
    return out if bias is None else _sum(reading, out, bias, call)


def _sum(reading: Reading, out: Field, bias: Any, call: Call) -> Any:
    return affine(reading, torch.add, call, (out, bias), {})


def _arguments(args: Sequence[Any], kwargs: dict[str, Any], names: Sequence[str], defaults: Sequence[Any]) -> list[Any]:
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name, default) for name, default in zip(names, defaults, strict=True)]


def _multiplied(reading: Reading, x: Any, weight: Weight, call: Call) -> Field:
    """An infinite matrix on a field, whose neurons are its last axis"""
    after = reading.axes(call)
    if after is None:  # of a readout: the outputs stand in the place of neurons
        sizes = call.results[0]
        after = _outputs(reading, sizes, len(sizes) - 1)
    node = x.node if isinstance(x, Field) else _constant(reading, x, weight)
    reading.must_be_one_way(weight.law.name, weight.turned != (call.name == "linear"))
    return Field.of(scaled(Mixed.of(weight.law, node), weight.factor), after)


def _constant(reading: Reading, x: Any, weight: Weight) -> Node:
    """A plain tensor in the place of a field: the same for all neurons"""
    if not isinstance(x, Tensor) or not bool((x == x[..., :1]).all()):
        raise ValueError(f"numbers of its own stand in the place of a field; {REMEDY}")
    return Rooted.of(ONE, x[..., :1].reshape(reading.samples if x.ndim > 1 and len(x) == reading.samples else 1, -1, 1))


def _outputs(reading: Reading, sizes: Sequence[Any], at: int) -> Axes:
    sample = [i for i, size in enumerate(sizes) if size.sample]
    shape = tuple(size.at(reading.width, reading.samples) for size in sizes)
    return Axes(shape, at, sample[0] if sample else None, reading.samples, outputs=True)


def convolution(dims: int) -> Rule:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def rule(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        x, weight, bias, stride, padding, dilation, groups = _arguments(args, kwargs, names, (None, None, None, 1, 0, 1, 1))
        if groups != 1:
            raise ValueError(f"groups={groups}: no kernel is known; {REMEDY}")
        if not isinstance(weight, Weight):
            out = affine(reading, lambda w: convolve(x, w, None, stride, padding, dilation), call, (weight,), {})
        else:
            if not isinstance(x, Field) or weight.turned or x.ndim != dims + 2 or x.axes.wide != 1 or x.axes.sample != 0:
                raise ValueError("a convolution takes fields of the shape (samples, neurons, ..)")
            space, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
            stride, dilation = (_each(v, dims) for v in (stride, dilation))
            padding = padding if isinstance(padding, str) else _each(padding, dims)
            table = reads(space, kernel, stride, padding, dilation)
            after = reading.axes(call) or _outputs(reading, call.results[0], 1)
            out = Field.of(Mixed.of(weight.law, x.node, table), after)
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
        return _multiplied(reading, left, right, call)
    if _weights(args):
        raise ValueError(f"a matrix between wide axes must stand on the right of a field, h @ w; {REMEDY}")
    if isinstance(left, Field) and isinstance(right, Field):
        return averaged(reading, func, call, args, kwargs)
    return affine(reading, func, call, args, kwargs)


def einsum(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    operands = args[1:] if not isinstance(args[1], (tuple, list)) else tuple(args[1])
    weights = _weights(operands)
    if weights:
        letters, _, out = args[0].replace(" ", "").partition("->")
        first, second = letters.split(",")
        x, weight, ours, theirs = (*operands, first, second) if isinstance(operands[1], Weight) else (*operands[::-1], second, first)
        if len(theirs) != 2 or not isinstance(x, Field) or ours[:-1] != out[:-1] or ours[-1] not in theirs:
            raise ValueError(f"einsum {args[0]!r} of a matrix between wide axes: write nn.Linear or h @ w")
        return _multiplied(reading, x, weight, call)
    if len(_fields(operands)) > 1:
        return averaged(reading, lambda *fields: torch.einsum(args[0], *fields), call, operands, {})
    return affine(reading, func, call, args, kwargs)


def averaged(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Tensor:
    """A sum over neurons of the product of two fields: n times their second moment, which is no random number"""
    first, second = _fields(args, kwargs) if len(_fields(args, kwargs)) == 2 else (args[0], args[0])
    if reading.axes(call) is not None:
        raise ValueError(f"a product of fields that leaves an axis of neurons: no kernel is known; {REMEDY}")
    n, within = first.shape[first.axes.wide], reading.within
    reading.averages += 1
    c = within.moments(first.node, second.node, same=False)[0]
    batch = reading.samples if first.axes.sample is not None or second.axes.sample is not None else 1
    c = torch.zeros(first.node.size, second.node.size, 1, dtype=torch.float64) if c is None else c
    if reading.noise:
        size = within.size(first.node)[:, None] * within.size(second.node)[None]
        c = c + reading.noise * size / math.sqrt(n) * torch.randn(c.shape, generator=reading.generator, dtype=c.dtype)
    c = c.movedim(-1, 0).expand(batch, -1, -1)
    eye = torch.eye(second.node.size, dtype=torch.float64).expand(batch, -1, -1)
    if first is second:
        values = func(first.axes.tensor(c), first.axes.tensor(eye))
    else:
        new = {id(first): first.axes.tensor(c), id(second): second.axes.tensor(eye)}
        values = func(*replaced(args, new), **replaced(kwargs, new))
    return values * n


def over_neurons(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """mean and sum, over neurons or other axes"""
    field = args[0]
    if reading.axes(call) is not None:
        return affine(reading, func, call, args, kwargs)
    m = reading.within.mean(field.node)
    reading.averages += 1
    if reading.noise:
        m = torch.zeros(field.node.size, 1, dtype=torch.float64) if m is None else m
        n = field.shape[field.axes.wide]
        size = reading.within.size(field.node).expand(-1, reading.samples if field.axes.sample is not None else 1)
        m = m + reading.noise * size / math.sqrt(n) * torch.randn(size.shape, generator=reading.generator, dtype=size.dtype)
    out = func(_plain(field, m), *args[1:], **kwargs)
    return out * field.shape[field.axes.wide] if call.name == "sum" else out


def _plain(field: Field, values: Tensor | None) -> Tensor:
    """(points, b or 1) as a tensor with one column in the place of neurons"""
    values = torch.zeros(field.node.size, 1, dtype=torch.float64) if values is None else values
    batch = _batch(field)
    return field.axes.tensor(values.T.expand(batch, -1)[:, :, None])


def _batch(field: Field) -> int:
    return field.axes.samples if field.axes.sample is not None else 1


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
    out = _plain(field, value)
    return out if kwargs.get("keepdim") else out.squeeze(field.axes.wide)


def times(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """mul and div"""
    fields = _fields(args, kwargs)
    weights = _weights(args)
    if weights:
        number = next((v for v in args if isinstance(v, (int, float))), None)
        if number is None:
            raise ValueError("a matrix between wide axes may be multiplied by numbers alone")
        factor = 1 / number if "div" in call.name else number
        w = weights[0]
        return Weight.of(w.law, w.shape, w.factor * factor, w.turned)
    over = "div" in call.name
    if over and isinstance(args[1], Field) or call.name == "__rdiv__" or call.name == "__rtruediv__" or call.name == "reciprocal":
        return elementwise(reading, func, call, args, kwargs)
    if call.name in ("neg", "__neg__", "negative"):
        return Field.of(scaled(fields[0].node, -1.0), fields[0].axes)
    if len(fields) == 1 and (number := _number(args)) is not None:
        return Field.of(scaled(fields[0].node, 1 / number if over else number), fields[0].axes)
    if len(fields) == 1 and not (isinstance(args[0], Field) and len(args) > 1 and args[0] is args[1]):
        return affine(reading, func, call, args, kwargs)
    return _product(reading, args[0], args[1], call)


def _number(args: Sequence[Any]) -> float | None:
    """The only number among two arguments"""
    given = [a for a in args[:2] if not isinstance(a, Field)]
    if len(given) != 1 or not (isinstance(given[0], (int, float)) or (isinstance(given[0], Tensor) and given[0].ndim == 0)):
        return None
    return float(given[0])


def _product(reading: Reading, first: Field, second: Field, call: Call) -> Field:
    after = reading.axes(call)
    assert after is not None
    one, other = (_broadcast(reading, field, after, call) for field in (first, second))
    fused = combined(one, other, torch.mul)
    if fused is not None:
        return Field.of(fused, after)
    return Field.of(product(one, other, where()), after)


def _broadcast(reading: Reading, field: Field, after: Axes, call: Call) -> Node:
    """Its node with the points of the result"""
    if field.axes == after:
        return field.node
    wide = after.shape[after.wide]
    if field.shape[field.axes.wide] != wide:
        raise ValueError("fields of different widths are multiplied")

    def widened(t: Tensor) -> Tensor:
        return t.expand(_with_columns(after, t.shape[field.axes.wide]))

    return affine(reading, widened, Call("expand", call.results), (field,), {}).node


def add(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """Sums; of functions of the same neurons as one function"""
    if len(args) > 1 and isinstance(args[0], Field) and isinstance(args[1], Field) and not kwargs:
        nodes = [field.node for field in args]
        if args[0].axes == args[1].axes and any(isinstance(n, (Pointwise, Product)) or _has_function(n) for n in nodes):
            fused = combined(*nodes, lambda a, b: func(a, b))
            if fused is not None:
                return Field.of(fused, args[0].axes)
    return affine(reading, func, call, args, kwargs)


def _has_function(node: Node) -> bool:
    found = shape(node)
    return found is not None and not found.linear


def elementwise(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """A function of each number; of one field, or of several that are functions of the same neurons"""
    after = reading.axes(call)
    assert after is not None
    fields = _fields(args, kwargs)
    if len(fields) > 1:
        raise ValueError(f"a function of two fields has no rule; {REMEDY}")
    field = fields[0]
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, Tensor) and value is not field and value.numel() > 1:
            raise ValueError(f"a function of a field and of other numbers at each point has no rule; {REMEDY}")

    def function(h: Tensor) -> Tensor:
        new = {id(field): h}
        return func(*replaced(args, new), **(replaced(kwargs, new) | ({"inplace": False} if "inplace" in kwargs else {})))

    return Field.of(applied(field.node, function, _kinks(call.name, args, kwargs)), after)


def applied(node: Node, function: Callable[[Tensor], Tensor], kinks: tuple[float, ...]) -> Node:
    """The function of a node; ValueError for one that is no function of Gaussians"""
    if isinstance(node, Folded):
        return folded(applied(node.child, function, kinks), node.folds)
    inner = shape(node)
    if inner is None and _is_square(function):
        return product(node, node, where())
    if inner is None:
        raise ValueError(
            f"a function of a field that is no Gaussian, such as a sum of activations of several layers: no kernel is known; {REMEDY}"
        )
    if inner.linear and not inner.kinks:
        at = torch.tensor([0.0, 1.0], dtype=torch.float64)
        start, end = inner.function(at).tolist()
        places = tuple(sorted((kink - start) / (end - start) for kink in kinks))
        return pointwise(Shape(inner.base, lambda h: function(inner.function(h)), places, linear=False))
    if kinks:
        raise ValueError(
            f"a function with kinks of another function of the same neurons has no rule: register both as one activation; {REMEDY}"
        )
    return pointwise(Shape(inner.base, lambda h: function(inner.function(h)), inner.kinks, linear=False))


def _is_square(function: Callable[[Tensor], Tensor]) -> bool:
    at = torch.tensor([-1.5, 0.0, 3.0], dtype=torch.float64)
    return torch.equal(function(at), at * at)


def _kinks(name: str, args: Any, kwargs: Any) -> tuple[float, ...]:
    if name in ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "hardtanh_", "threshold"):
        numbers = [*args[1:], *kwargs.values()]
        return tuple(sorted(float(v) for v in numbers if isinstance(v, (int, float)) and not isinstance(v, bool))) or (-1.0, 1.0)
    if name in ("hardshrink", "softshrink"):
        at = float(args[1] if len(args) > 1 else kwargs.get("lambd", 0.5))
        return (-at, at)
    return _KINKS.get(name, ())


_KINKS = dict.fromkeys(
    ("relu", "relu_", "leaky_relu", "leaky_relu_", "abs", "absolute", "elu", "elu_", "selu", "celu", "sign", "__abs__"), (0.0,)
) | {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0)}


def extreme(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """maximum and minimum of a field and a number"""
    number = next((v for v in args if isinstance(v, Tensor) and not isinstance(v, Field) and v.numel() == 1), None)
    if number is None:
        raise ValueError(f"the larger of two fields has no rule; {REMEDY}")
    field, at = _fields(args)[0], float(number)
    after = reading.axes(call)
    assert after is not None
    function = (lambda h: h.clamp_min(at)) if "max" in call.name else (lambda h: h.clamp_max(at))
    return Field.of(applied(field.node, function, (at,)), after)


def layer_norm(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """(h - mean) / sqrt(variance + eps) over neurons, and points where the norm is over these too; rms_norm without the mean"""
    centred = call.name != "rms_norm"
    if call.name == "group_norm":
        x, _, weight, bias, eps = _arguments(args, kwargs, ("input", "num_groups", "weight", "bias", "eps"), (None, 1, None, None, 1e-5))
        over = tuple(range(2, x.ndim))
        if x.axes.wide != 1:
            raise ValueError("group_norm takes fields of the shape (samples, neurons, ..)")
    else:
        names = ("input", "normalized_shape", "weight", "bias", "eps") if centred else ("input", "normalized_shape", "weight", "eps")
        values = _arguments(args, kwargs, names, (None, None, None, None, 1e-5) if centred else (None, None, None, None))
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
            out = _product(reading, out, there, call) if how is torch.mul else affine(reading, how, call, (out, there), {})
    return out


def _as_shaped(call: Call, wide: int) -> Call:
    """A call that gives a vector of neurons the number of axes of its result"""
    sizes = call.results[0]
    one = type(sizes[0])(sizes[0].number / sizes[0].number, False, False)
    return Call("reshape", (tuple(size if axis == wide else one for axis, size in enumerate(sizes)),))


def _normalised(reading: Reading, x: Field, over: tuple[int, ...], centred: bool, eps: float) -> Field:
    within, node = reading.within, x.node
    square, m = within.square(node), within.mean(node)
    square = _plain(x, square)
    mean = _plain(x, m) if centred and m is not None else torch.zeros_like(square)
    if over:
        square, mean = (v.mean(over, keepdim=True).expand(v.shape) for v in (square, mean))
    scale = ((square - mean.square()).clamp_min(0) + eps).rsqrt()
    if bool(mean.any()):
        node = total([node, Rooted.of(ONE, -x.axes.points(mean))])
    weight = x.axes.points(scale)[..., 0]
    weight = weight[:1] if bool((weight == weight[:1]).all()) else weight
    return Field.of(mapped(LinearMap.scale(weight), node), x.axes)


def attention(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """softmax(q k^T scale + mask) v"""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    q, k, v, mask, p, causal, scale = _arguments(args, kwargs, names, (None, None, None, None, 0.0, False, None))
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


def same(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    return args[0]


def like(value: float) -> Rule:
    return lambda reading, func, call, args, kwargs: torch.full((), value, dtype=torch.float64)


def transposed(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    if isinstance(args[0], Weight):
        w = args[0]
        return Weight.of(w.law, tuple(w.shape)[::-1], w.factor, not w.turned)
    return affine(reading, func, call, args, kwargs)


def off(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """dropout that is off"""
    p, training = _arguments(args, kwargs, ("input", "p", "training"), (None, 0.5, True))[1:]
    if p and training:
        raise ValueError("masks drawn in each pass: no kernel is known")
    return args[0]


def _named(rule: Rule, *lines: str) -> dict[str, Rule]:
    return dict.fromkeys((word for line in lines for word in line.split()), rule)


RULES: dict[str, Rule] = {
    **_named(
        affine,
        "rsub __rsub__ squeeze unsqueeze movedim moveaxis swapaxes",
        "select narrow index_select cat stack concat concatenate pad _pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d",
        "adaptive_avg_pool2d adaptive_avg_pool3d interpolate roll flip masked_fill where cumsum tril triu diff repeat_interleave",
        "embedding lerp atleast_2d",
    ),
    **_named(add, "add __add__ __radd__ __iadd__ add_ sub __sub__ sub_ __isub__"),
    **_named(transposed, "transpose permute t T mT"),
    **_named(reshaped, "reshape view flatten unflatten reshape_as view_as"),
    **_named(shared, "chunk split unbind tensor_split"),
    **_named(expanded, "expand expand_as broadcast_to"),
    **_named(indexed, "__getitem__"),
    **_named(times, "mul __mul__ __rmul__ __imul__ mul_ multiply div __truediv__ div_ true_divide divide __rdiv__ __rtruediv__ neg __neg__"),
    **_named(over_neurons, "mean sum"),
    **_named(spread_over_neurons, "var std norm vector_norm"),
    **_named(layer_norm, "layer_norm rms_norm group_norm"),
    **_named(matmul, "matmul __matmul__ bmm mm mv"),
    **_named(
        elementwise,
        "tanh tanh_ sigmoid sigmoid_ erf erfc sin cos exp expm1 silu silu_ gelu softplus mish softsign logsigmoid square pow __pow__ atan",
        "arctan asinh tanhshrink logaddexp relu relu_ leaky_relu leaky_relu_ abs absolute __abs__ elu elu_ selu celu relu6 hardtanh",
        "hardsigmoid hardswish clamp clip clamp_min clamp_max hardshrink softshrink threshold addcmul reciprocal sqrt rsqrt special_erf",
    ),
    **_named(extreme, "maximum minimum max min"),
    **_named(same, "contiguous clone to double type type_as requires_grad_"),
    **_named(off, "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"),
    **_named(like(0.0), "zeros_like new_zeros"),
    **_named(like(1.0), "ones_like new_ones"),
    "linear": linear,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "conv3d": convolution(3),
}
