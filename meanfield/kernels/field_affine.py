"""Functions that are linear in fields and mix neither neurons nor samples: what they do to nodes (equation 98)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from meanfield.checking.own_numerics import default_device
from meanfield.kernels.field_maps import Axes, LinearMap
from meanfield.kernels.field_nodes import ONE, REMEDY, Node, Rooted, Total, mapped, total
from meanfield.kernels.field_plan import Call
from meanfield.kernels.field_reading import Field, Reading, Weight, replaced


def affine(reading: Reading, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
    """A function that is linear in its fields, but for what is the same for all neurons, and mixes neither neurons nor samples"""
    if weights_of((args, kwargs)):
        raise ValueError("a matrix between wide axes must multiply fields, as it is, transposed or times a number")
    fields = fields_of(args, kwargs)
    results = [reading.axes(call, i) for i in range(len(call.results))]
    outputs = [_is_output(field) for field in fields]
    if any(outputs) and not all(outputs):
        raise ValueError(
            f"outputs are used as fields, which stay random for all neurons together: no kernel is known; {REMEDY}"
        )
    if all(axes is None for axes in results) and all(outputs):
        results = _of_outputs(reading, func, call, fields, args, kwargs)
    if any(axes is None for axes in results):
        raise ValueError(f"it leaves no axis of neurons, and is no mean over them; {REMEDY}")
    for axes in results:
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
            new[id(field)] = field.axes.tensor(
                torch.zeros(batch, zero, k, dtype=torch.float64) if given is None else given.clone()
            )  # which functions that work in place change
        found = func(*replaced(args, new), **replaced(kwargs, new))
        several = [t for t in tree_flatten(found)[0] if isinstance(t, Tensor)]
        if any(t.shape[axes.wide] != k for axes, t in zip(results, several, strict=True)):  # type: ignore[union-attr]
            raise ValueError(f"it changes the number of neurons, or mixes them: no kernel is known; {REMEDY}")
        return [axes.points(t) for axes, t in zip(results, several, strict=True)]  # type: ignore[union-attr]

    constants = values({})
    if any(outputs) and any(bool(constant.any()) for constant in constants):
        raise ValueError(
            f"numbers are added to the outputs, which a kernel does not hold: leave them out, and take them off the targets; {REMEDY}"
        )

    def linear_part(columns: dict[int, Tensor]) -> list[Tensor]:
        return [v - c if bool(c.any()) else v for v, c in zip(values(columns), constants, strict=True)]

    terms: list[list[Node]] = [[] for _ in results]
    for i, field in enumerate(fields):
        nodes = field.node.terms if isinstance(field.node, Total) else (field.node,)
        maps = None
        if reading.apart:
            _must_keep_neurons_apart(field.axes, linear_part, i)
        if reading.apart and field.axes.sample is not None:
            _must_keep_samples_apart(field.axes, linear_part, i)
        for node in nodes:
            if isinstance(node, Rooted):
                for own, root in zip(terms, linear_part({i: node.root}), strict=True):
                    own.append(Rooted.of(node.leaf, root))
                continue
            if maps is None:
                batch = reading.samples if field.axes.sample is not None else 1
                eye = torch.eye(node.size, dtype=torch.float64).expand(batch, -1, -1)
                maps = [LinearMap.of(dense) for dense in linear_part({i: eye})]
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
    new = {id(f): torch.empty(with_columns(f.axes, k), dtype=torch.float64, device="meta") for f in fields}
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, Tensor) and not isinstance(value, Field):
            new[id(value)] = value.to("meta")
    found = [t for t in tree_flatten(func(*replaced(args, new), **replaced(kwargs, new)))[0] if isinstance(t, Tensor)]
    if any(t.ndim != len(sizes) or k not in t.shape for t, sizes in zip(found, call.results, strict=True)):
        raise ValueError(
            "keep the axis of outputs as it is, of one output too, (samples, .., 1): all other axes are positions, and a mean over outputs "
            "belongs to the readout"
        )
    return [outputs_axes(reading, sizes, tuple(t.shape).index(k)) for t, sizes in zip(found, call.results, strict=True)]


_SEVERAL = {"chunk", "split", "unbind", "tensor_split"}


def _must_keep_neurons_apart(axes: Axes, values: Callable[[dict[int, Tensor]], list[Tensor]], i: int) -> None:
    """What is done to each neuron alone, and the same to all, commutes with any mixture of them"""
    generator = torch.Generator().manual_seed(0)
    batch = 1 if axes.sample is None else axes.samples
    columns, mixture = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu").to(default_device())
        for shape in ((batch, axes.size, 3), (3, 3))
    )
    for found, mixed in zip(values({i: columns}), values({i: columns @ mixture}), strict=True):
        if not torch.allclose(mixed, found @ mixture, rtol=1e-9, atol=1e-9):
            raise ValueError(
                "it mixes neurons with their neighbours, or treats each by its number, which has no meaning at infinite width; "
                f"{REMEDY}"
            )


def _must_keep_samples_apart(axes: Axes, values: Callable[[dict[int, Tensor]], list[Tensor]], i: int) -> None:
    for moved in range(axes.samples):
        one = torch.zeros(axes.samples, axes.size, axes.size, dtype=torch.float64)
        one[moved] = torch.eye(axes.size, dtype=torch.float64)
        for found in values({i: one}):
            others = found.clone()
            others[moved] = 0
            if bool(others.any()):
                raise ValueError("it mixes samples: the output of one depends on the others, and no kernel is known")


def with_columns(axes: Axes, k: int) -> list[int]:
    """Its shape with k columns in the place of neurons"""
    return [k if axis == axes.wide else size for axis, size in enumerate(axes.shape)]


def fields_of(args: Any, kwargs: Any = None) -> list[Field]:
    found = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Field)]
    return list({id(value): value for value in found}.values())


def weights_of(args: Any) -> list[Weight]:
    return [value for value in tree_flatten(args)[0] if isinstance(value, Weight)]


def outputs_axes(reading: Reading, sizes: Sequence[Any], at: int) -> Axes:
    sample = [i for i, size in enumerate(sizes) if size.sample]
    shape = tuple(size.at(reading.width, reading.samples) for size in sizes)
    return Axes(shape, at, sample[0] if sample else None, reading.samples, outputs=True)


def arguments(args: Sequence[Any], kwargs: dict[str, Any], names: Sequence[str], defaults: Sequence[Any]) -> list[Any]:
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name, default) for name, default in zip(names, defaults, strict=True)]


def plain_values(field: Field, values: Tensor | None) -> Tensor:
    """(points, b or 1) as a tensor with one column in the place of neurons"""
    values = torch.zeros(field.node.size, 1, dtype=torch.float64) if values is None else values
    batch = _batch(field)
    return field.axes.tensor(values.T.expand(batch, -1)[:, :, None])


def _batch(field: Field) -> int:
    return field.axes.samples if field.axes.sample is not None else 1
