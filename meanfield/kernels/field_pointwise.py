"""Functions number by number: activations, sums and products of fields (equation 97)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from meanfield.kernels.field_affine import (
    affine,
    arguments,
    fields_of,
    weights_of,
    with_columns,
)
from meanfield.kernels.field_functions import Shape, activated, combined, pointwise, shape
from meanfield.kernels.field_maps import Axes
from meanfield.kernels.field_nodes import (
    ONE,
    REMEDY,
    Folded,
    Joined,
    Mapped,
    Node,
    Rooted,
    Total,
    folded,
    joined,
    product,
    scaled,
    total,
)
from meanfield.kernels.field_places import where
from meanfield.kernels.field_plan import Call
from meanfield.kernels.field_reading import Field, Reading, Rule, Weight, replaced
from meanfield.kernels.gaussian_averages import two_lines


def times(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """mul and div"""
    fields = fields_of(args, kwargs)
    weights = weights_of(args)
    if weights:
        number = next((v for v in args if isinstance(v, (int, float))), None)
        if number is None:
            raise ValueError("a matrix between wide axes may be multiplied by numbers alone")
        factor = 1 / number if "div" in call.name else number
        w = weights[0]
        return Weight.of(w.law, w.shape, w.factor * factor, w.turned)
    over = "div" in call.name
    if call.name in ("__rdiv__", "__rtruediv__") or (over and isinstance(args[1], Field)):
        alike = len(fields) == 2 and fields[0].axes == fields[1].axes
        both = combined(fields[0].node, fields[1].node, torch.div) if alike else None
        return elementwise(reading, func, call, args, kwargs) if both is None else Field.of(both, fields[0].axes)
    if call.name.strip("_") in ("neg", "negative"):
        return Field.of(scaled(fields[0].node, -1.0), fields[0].axes)
    if len(fields) == 1 and (number := _number(args)) is not None:
        return Field.of(scaled(fields[0].node, 1 / number if over else number), fields[0].axes)
    if len(fields) == 1 and not (isinstance(args[0], Field) and len(args) > 1 and args[0] is args[1]):
        return affine(reading, func, call, args, kwargs)
    return multiplied_fields(reading, args[0], args[1], call)


def _number(args: Sequence[Any]) -> float | None:
    """The only number among two arguments"""
    given = [a for a in args[:2] if not isinstance(a, Field)]
    if len(given) != 1 or not (
        isinstance(given[0], (int, float)) or (isinstance(given[0], Tensor) and given[0].ndim == 0)
    ):
        return None
    return float(given[0])


def multiplied_fields(reading: Reading, first: Field, second: Field, call: Call) -> Field:
    after = reading.axes(call)
    if after is None or first.axes.outputs or second.axes.outputs:
        raise ValueError(f"outputs are multiplied with each other or with fields: no kernel is known; {REMEDY}")
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
        return t.expand(with_columns(after, t.shape[field.axes.wide]))

    return affine(reading, widened, Call("expand", call.results), (field,), {}).node


def add(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """Sums; of functions of the same neurons as one function"""
    if len(args) > 1 and isinstance(args[0], Field) and isinstance(args[1], Field) and not kwargs:
        first, second = (field.node for field in args)
        if args[0].axes == args[1].axes and (_has_function(first) or _has_function(second)):
            fused = combined(first, second, func)
            if fused is not None:
                return Field.of(fused, args[0].axes)
    return affine(reading, func, call, args, kwargs)


def _has_function(node: Node) -> bool:
    found = shape(node)
    return found is not None and not found.linear


def elementwise(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """A function of each number; of one field, or of several that are functions of the same neurons"""
    after, fields = reading.axes(call), fields_of(args, kwargs)
    if after is None:
        raise ValueError(
            f"a function of the outputs, whose law is no Gaussian then: leave it to the loss, e.g. loss='cross_entropy'; {REMEDY}"
        )
    if len(fields) > 1:
        raise ValueError(f"a function of two fields, but for sums and products, has no rule; {REMEDY}")
    field = fields[0]
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, Tensor) and value is not field and value.numel() > 1:
            raise ValueError(f"a function of a field and of other numbers at each point has no rule; {REMEDY}")

    def function(h: Tensor) -> Tensor:
        new = {id(field): h.clone()}  # some functions change what they are given
        return func(
            *replaced(args, new), **(replaced(kwargs, new) | ({"inplace": False} if "inplace" in kwargs else {}))
        )

    node = _evened(field.node) if reading.noise else field.node
    return Field.of(applied(node, function, _kinks(call.name, args, kwargs)), after)


def _evened(node: Node) -> Node:
    """With the same number at all points in the place of averages that fluctuate: enough to tell whether they matter"""
    if isinstance(node, Joined):
        return joined([_evened(part) for part in node.parts], list(node.shares))
    if not isinstance(node, Total):
        return node
    return total(
        [
            Rooted.of(ONE, term.root.mean((0, 1), keepdim=True).expand_as(term.root))
            if isinstance(term, Rooted) and term.leaf is ONE
            else term
            for term in node.terms
        ]
    )


def _differs(node: Node) -> bool:
    """Whether it is a function of Gaussian neurons times or plus numbers of each point"""
    if isinstance(node, Mapped):
        return shape(node.child) is not None or _differs(node.child)
    if not isinstance(node, Total):
        return False
    rest = [term for term in node.terms if not isinstance(term, Rooted) or term.leaf is not ONE]
    return len(rest) == 1 and (shape(rest[0]) is not None or _differs(rest[0]))


def applied(node: Node, function: Callable[[Tensor], Tensor], kinks: tuple[float, ...]) -> Node:
    """The function of a node; ValueError for one that is no function of Gaussians"""
    if isinstance(node, Folded):
        return folded(applied(node.child, function, kinks), node.folds)
    if isinstance(node, Joined):
        return joined([applied(part, function, kinks) for part in node.parts], list(node.shares))
    inner = shape(node)
    if inner is None and _is_square(function):
        return product(node, node, where())
    if inner is None:
        if _differs(node):
            raise ValueError(
                "a function of a field plus, or times, numbers that differ from point to point, such as a table of positions that all "
                "neurons share or the mean over neurons of an activation: no rule; draw positions for each neuron, put a matrix between, "
                f"or a norm before the activation; {REMEDY}"
            )
        raise ValueError(
            f"a function of a field that is no Gaussian, such as a sum of activations of several layers: no kernel is known; {REMEDY}"
        )

    def composed(h: Tensor) -> Tensor:
        return function(inner.function(h))

    if inner.linear and not inner.kinks:
        at = torch.tensor([0.0, 1.0], dtype=torch.float64)
        start, end = inner.function(at).tolist()
        places = tuple(sorted((kink - start) / (end - start) for kink in kinks))
        return pointwise(Shape(inner.base, composed, places, linear=False))
    if kinks and two_lines(composed, (*kinks, *inner.kinks)) is None:
        raise ValueError(
            f"a function with kinks of another function of the same neurons has no rule: register both as one activation; {REMEDY}"
        )
    return pointwise(Shape(inner.base, composed, kinks or inner.kinks, linear=False))


def _is_square(function: Callable[[Tensor], Tensor]) -> bool:
    at = torch.tensor([-1.5, 0.0, 3.0], dtype=torch.float64)
    return torch.equal(function(at), at * at)


def _kinks(name: str, args: Any, kwargs: Any) -> tuple[float, ...]:
    name = name.strip("_")
    if name in ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "threshold"):
        return tuple(sorted(map(float, filter(_is_number, (*args[1:], *kwargs.values()))))) or (-1.0, 1.0)
    if name in ("hardshrink", "softshrink"):
        at = float(args[1] if len(args) > 1 else kwargs.get("lambd", 0.5))
        return (-at, at)
    return _KINKS.get(name, ())


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
        isinstance(value, Tensor) and not value.ndim
    )


_KINKS = dict.fromkeys(
    ["relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute", "elu", "selu", "celu", "softsign"], (0.0,)
) | {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0)}


def extreme(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """maximum and minimum of a field and a number"""
    number = next((v for v in args if isinstance(v, Tensor) and not isinstance(v, Field) and v.numel() == 1), None)
    if number is None:
        raise ValueError(f"the larger of two fields has no rule; {REMEDY}")
    field, at = fields_of(args)[0], float(number)
    after = reading.axes(call)
    assert after is not None
    function = (lambda h: h.clamp_min(at)) if "max" in call.name else (lambda h: h.clamp_max(at))
    return Field.of(applied(field.node, function, (at,)), after)


def by_activation(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """An activation whose averages are known, or its kinks"""
    field, phi = args
    if phi.name == "linear":
        return field
    return Field.of(activated(field.node, phi), field.axes)


def off(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """dropout that is off"""
    p, training = arguments(args, kwargs, ("input", "p", "training"), (None, 0.5, True))[1:]
    if p and training:
        raise ValueError("masks drawn in each pass: no kernel is known")
    return args[0]


def same(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    return args[0]


def like(value: float) -> Rule:
    return lambda reading, func, call, args, kwargs: torch.full((), value, dtype=torch.float64)
