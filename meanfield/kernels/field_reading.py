"""A forward pass read at infinite width: torch's functions of fields, by which a module's own code makes nodes (equations 97 and 98).

What each call gives back is known beforehand (field_plan.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary
from torch.utils._pytree import tree_flatten, tree_map

from meanfield.kernels.field_maps import Axes
from meanfield.kernels.field_moments import Within
from meanfield.kernels.field_nodes import ONE, REMEDY, MatrixLaw, Node, Rooted
from meanfield.kernels.field_pairs import RULES as PAIR_RULES
from meanfield.kernels.field_places import where
from meanfield.kernels.field_plan import OF_GRADIENTS, Call, Sizes, name_of, words
from meanfield.network.activations import Activation

Rule = Callable[..., Any]


class Field(Tensor):
    """A tensor with an axis of infinitely many neurons; it has no numbers, its law is that of `node`. changes: how often it and its views
    were changed in place, shared with these, and how often when it was made or changed itself."""

    node: Node
    axes: Axes
    changes: list[int]
    seen: int

    @staticmethod
    def of(node: Node, axes: Axes) -> Field:
        made = torch.empty(axes.shape, dtype=torch.float64, device="meta").as_subclass(Field)
        made.node, made.axes, made.changes, made.seen = node, axes, [0], 0
        return made

    def changed(self, new: Field) -> Field:
        """This very tensor after a change in place"""
        self.node, self.axes = new.node, new.axes
        self.changes[0] += 1
        self.seen = self.changes[0]
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]  # the reading takes every call


class Weight(Tensor):
    """A matrix whose inputs are infinitely many neurons, in the shape of the parameter"""

    law: MatrixLaw
    factor: float
    turned: bool

    @staticmethod
    def of(law: MatrixLaw, shape: Sequence[int], factor: float = 1.0, turned: bool = False) -> Weight:
        made = torch.empty(tuple(shape), dtype=torch.float64, device="meta").as_subclass(Weight)
        made.law, made.factor, made.turned = law, factor, turned
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]


class Numbered(Tensor):
    """A buffer with other numbers for each neuron, in its shape"""

    name_of_buffer: str

    @staticmethod
    def of(name: str, shape: Sequence[int]) -> Numbered:
        made = torch.empty(tuple(shape), dtype=torch.float64, device="meta").as_subclass(Numbered)
        made.name_of_buffer = name
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]


def activated(h: Tensor, phi: Activation) -> Tensor:
    """phi(h), of which a reading knows what it is"""
    if has_torch_function_unary(h):
        return handle_torch_function(activated, (h,), h, phi)
    return phi(h)


class Reading(TorchFunctionMode):
    """One forward pass of a batch of samples.

    noise: at which averages over neurons are played as they fluctuate at a finite width, which must not matter; apart: whether functions
    are tried for mixing samples.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        calls: Sequence[Call],
        width: int,
        samples: int,
        noise: float = 0.0,
        apart: bool = False,
    ) -> None:
        super().__init__()
        self.rules, self.calls, self.width, self.samples = rules, calls, width, samples
        self.noise, self.apart = noise, apart
        self.number, self.averages, self.within = 0, 0, Within(PAIR_RULES)
        self.ways: dict[str, bool] = {}
        self.generator = torch.Generator().manual_seed(0)

    def drawn(self, like: Tensor) -> Tensor:
        """Gaussian numbers, the same on every device"""
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device="cpu").to(like.device)

    def run(self, module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Any:
        """The outputs of x (samples, ..)"""
        with torch.enable_grad(), self:
            return torch.func.functional_call(module, dict(parameters), (x,))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        if name in OF_GRADIENTS:
            return func(*args, **kwargs)
        if self.number >= len(self.calls) or self.calls[self.number].name != name:
            raise ValueError(
                "the network's forward asks for values or types of its fields, and does other things then: no kernel is known; "
                + REMEDY
            )
        call = self.calls[self.number]
        self.number += 1
        given = tree_flatten((args, kwargs))[0]
        _must_have_a_law(given, name)
        if not any(isinstance(value, (Field, Weight)) for value in given):
            return self._alike(func(*args, **kwargs), call)
        if name in _OF_SHAPE:
            return func(*args, **kwargs)
        try:
            _must_be_as_it_was(given)
            found = self.rule(name)(self, func, call, args, kwargs)
            return _kept(name, args, kwargs, found)
        except ValueError as error:
            raise ValueError(f"{name} ({where()}): {error}") from None
        except (RuntimeError, IndexError, TypeError, AttributeError, AssertionError, KeyError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{name} ({where()}): there is no rule for how it is used ({why}); {REMEDY}") from error

    def _alike(self, found: Any, call: Call) -> Any:
        """Numbers with an axis of neurons that are the same for all of them, such as torch.zeros(samples, n), are a field"""
        wide = [axis for axis, size in enumerate(call.results[0]) if size.wide] if len(call.results) == 1 else []
        if len(wide) != 1 or not isinstance(found, Tensor) or not found.is_floating_point():
            return found
        one = found.narrow(wide[0], 0, 1)
        axes = self.axes(call) if bool((found == one).all()) else None
        return found if axes is None else Field.of(Rooted.of(ONE, axes.points(one.to(torch.float64))), axes)

    def rule(self, name: str) -> Rule:
        """ValueError for a function that has none"""
        if name not in self.rules:
            if name.strip("_") in ("gt", "ge", "lt", "le", "eq", "ne", "sign", "round", "floor"):
                raise ValueError(
                    "comparisons of fields have no rule: write relu, leaky_relu, abs or clamp, of which the kinks are known; "
                    + REMEDY
                )
            raise ValueError(f"this function of a field has no rule; {REMEDY}")
        return self.rules[name]

    def axes(self, call: Call, which: int = 0) -> Axes | None:
        """Of a result of a call; None for one without neurons"""
        return self.axes_of(call.results[which])

    def axes_of(self, sizes: Sequence[Sizes]) -> Axes | None:
        wide = [i for i, size in enumerate(sizes) if size.wide]
        sample = [i for i, size in enumerate(sizes) if size.sample]
        shape = tuple(size.at(self.width, self.samples) for size in sizes)
        if not wide:
            return None
        if len(wide) > 1 or len(sample) > 1 or wide == sample:
            raise ValueError(
                f"its result has more than one axis of neurons, or neurons and samples in one: no kernel is known; {REMEDY}"
            )
        return Axes(shape, wide[0], sample[0] if sample else None, self.samples)

    def must_be_one_way(self, name: str, way: bool) -> None:
        """A matrix and its transpose are not independent"""
        if self.ways.setdefault(name, way) != way:
            raise ValueError(f"the matrix {name!r} is used as it is and transposed: no kernel is known; {REMEDY}")


_OF_SHAPE = words(
    "size dim numel is_floating_point __len__ ndimension nelement is_complex shape dtype device ndim requires_grad is_meta is_cuda layout",
    "is_sparse is_nested",
)


_VIEWS = words(
    "view reshape flatten unflatten view_as reshape_as __getitem__ select narrow chunk split unbind tensor_split transpose permute t T mT",
    "movedim moveaxis swapaxes squeeze unsqueeze expand expand_as broadcast_to contiguous to double type type_as",
)
_IN_PLACE = words("relu leaky_relu elu selu celu silu mish hardtanh relu6 hardswish hardsigmoid threshold")


def _must_have_a_law(given: Sequence[Any], name: str) -> None:
    numbered = next((value.name_of_buffer for value in given if isinstance(value, Numbered)), None)
    if numbered is not None and name not in _OF_SHAPE:
        raise ValueError(
            f"{name} ({where()}): the buffer {numbered!r} holds other numbers for each neuron, whose law is not known: fill it with one "
            f"number for all, or make it a parameter, drawn as N(0, std^2) by mf.Architecture(build, weight_std={{{numbered!r}: std}}) and "
            f"frozen there; {REMEDY}"
        )


def _must_be_as_it_was(given: Sequence[Any]) -> None:
    if not torch.is_grad_enabled():
        raise ValueError(
            "what is done within torch.no_grad is not trained through, which no rule knows: leave it out, and freeze parameters, "
            "mf.Architecture(build, frozen=(..,))"
        )
    if any(isinstance(value, Field) and value.seen != value.changes[0] for value in given):
        raise ValueError(
            "a field, or what is seen of it, was changed in place by another name: write h = h + .. instead of h += .."
        )


def _kept(name: str, args: Any, kwargs: Any, found: Any) -> Any:
    """What a function returns: views share changes with what they see, changes in place are made in the tensor itself"""
    first = args[0] if args else None
    able = name in _IN_PLACE and (kwargs.get("inplace") or any(value is True for value in args))
    if (
        able
        or (name.endswith("_") and not name.endswith("__"))
        or name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__")
    ):
        if not isinstance(first, Field) or not isinstance(found, Field):
            raise ValueError("numbers are changed in place into a field: write h = h + .. instead")
        return first.changed(found)
    if name in _VIEWS and isinstance(first, Field):
        for field in found if isinstance(found, tuple) else (found,):
            if isinstance(field, Field):
                field.changes, field.seen = first.changes, first.changes[0]
    return found


def replaced(value: Any, new: Mapping[int, Any]) -> Any:
    """Arguments with fields exchanged, by identity"""
    return tree_map(lambda v: new.get(id(v), v), value)
