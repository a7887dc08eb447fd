"""Stand-ins for the matrices of a module whose widths are infinite: its own `forward` meets them where it meets a weight (equation 84)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.places import Places, by_phase, convolution
from solvers.running.failures import in_layer


@dataclass(frozen=True)
class Trace:
    """What one application of a matrix leaves for its learning: L moves along `factor` left right^T."""

    name: str
    use: int  # which in the pass
    factor: float
    d: Tensor  # <F, g> (J, n')
    seen: Tensor  # <E, v>, by offset (K O, n')
    left: Tensor  # the same two, or of a matrix that learns entry by entry the fields themselves
    right: Tensor


@dataclass(frozen=True)
class Use:
    """One application of a matrix, or of its transpose: coefficients (K, n) of what it was applied to, and how many fields it gave.

    used: of a filter by phases the input positions that this phase sees, None for all.
    """

    name: str
    turned: bool
    c: Tensor
    images: int
    used: Tensor | None = None


@dataclass
class Record:
    """What the matrices of a pass were applied to, in turn, and traces of the last backward pass.

    anchor: a number on which all images depend, so that autograd reaches matrices on features that nothing trained lies below.
    """

    anchor: Tensor
    uses: list[Use] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)


@dataclass(frozen=True)
class Met:
    """An infinite matrix as a pass meets it: `factor` times it, or times its transpose. A convolution is one for each phase.

    width: n, of which its axes are multiples.
    """

    name: str
    layer: InfiniteDense
    learned: Tensor
    scale: float
    factor: float
    record: Record
    width: int
    turned: bool = False
    where: Places | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        return _Image.apply(rows, self.record.anchor, self)  # type: ignore[return-value]

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the layer, without the factor"""
        with self._named():
            return self.layer.forward(v, self.learned, self.scale, self.where)

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Of the layer, without the factor"""
        with self._named():
            return self.layer.backward(g, self.learned, self.scale, self.where)

    def _named(self) -> AbstractContextManager[None]:
        return in_layer(f"the layer {self.name.partition('[')[0].removesuffix('.weight')!r}", self.width)


class _Image(torch.autograd.Function):
    """factor W v and its derivative. Fields g = n dLoss/dh are of order 1 whatever the number n of neurons."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, anchor: Tensor, met: Met) -> Tensor:  # type: ignore[override]
        layer, ctx.met, ctx.use = met.layer, met, len(met.record.uses)
        if met.turned:
            z, ctx.kept = met.backward(v)
            ctx.side = layer.left(ctx.kept, v)
            met.record.uses.append(Use(met.name, True, ctx.kept, len(z)))
            return z.mul_(met.factor * layer.above.samples / layer.below.samples)
        image, c, ctx.kept = met.forward(v)
        ctx.side = layer.right(ctx.kept, v, met.where)
        met.record.uses.append(Use(met.name, False, c, len(image), met.where.used if met.where else None))
        return image.mul_(met.factor)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        met: Met = ctx.met
        above, below = met.layer.above.samples, met.layer.below.samples
        if met.turned:
            image, _, seen = met.forward(slope * below)
            sides = ctx.side, met.layer.right(seen, slope * below)
            met.record.traces.append(Trace(met.name, ctx.use, met.factor * above / below, ctx.kept, seen, *sides))
            return image.mul_(met.factor / below), slope.new_zeros(()), None
        z, d = met.backward(slope * above)
        left = met.layer.left(d, slope * above)
        met.record.traces.append(Trace(met.name, ctx.use, met.factor, d, ctx.kept, left, ctx.side))
        return z.mul_(met.factor / below), slope.new_zeros(()), None


class Matrix(Tensor):
    """A tensor without numbers, in the shape of a weight; what torch functions do with it is done by `met`, for filters by all `phases`."""

    phases: tuple[Met, ...]

    @staticmethod
    def of(phases: tuple[Met, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Matrix:
        matrix = torch.empty(shape, dtype=dtype, device="meta").as_subclass(Matrix)
        matrix.phases = phases
        return matrix

    @property
    def met(self) -> Met:
        return self.phases[0]

    def changed(self, shape: tuple[int, ...], **new: Any) -> Matrix:
        return Matrix.of(tuple(replace(met, **new) for met in self.phases), shape, self.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func)
        if rule is not None:
            return rule(*args, **(kwargs or {}))
        if func in _PLAIN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        matrix = next((a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Matrix)), None)
        raise _unknown(matrix, getattr(func, "__name__", str(func)))


def _unknown(matrix: Matrix | None, what: str) -> ValueError:
    name = f"the matrix {matrix.met.name!r}" if isinstance(matrix, Matrix) else "a matrix"
    return ValueError(
        f"{name} between two wide axes must multiply fields, in linear, conv1d, conv2d, conv3d, matmul (@) or einsum, as it is, transposed "
        f"or times a number: received {what!r}, which needs its entries; write what it does on the fields"
    )


def _along_last(x: Tensor, met: Met) -> Tensor:
    out = met(x.reshape(-1, x.shape[-1]).contiguous())
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _linear(input: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, Matrix):
        raise _unknown(None, "linear with a matrix as its input")
    out = _along_last(input, weight.met)
    return out if bias is None else out + bias


def _convolution(dims: int) -> Callable[..., Tensor]:
    def rule(
        input: Tensor,
        weight: Matrix,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not isinstance(weight, Matrix) or weight.met.turned or groups != 1:
            raise _unknown(weight, f"conv{dims}d with groups={groups}")
        several = input if input.ndim == dims + 2 else input[None]
        space, kernel = tuple(several.shape[2:]), tuple(weight.shape[2:])
        pads = padding if isinstance(padding, str) else _each(padding, dims)
        where = convolution(space, kernel, _each(stride, dims), pads, _each(dilation, dims), str(input.device))
        rows = by_phase(several.movedim(1, -1).flatten(1, -2), where)
        images = [
            replace(met, where=own)(seen) for met, own, seen in zip(weight.phases, where.places, rows, strict=True)
        ]
        out = sum(images[1:], images[0]).reshape(len(several), *where.space, -1)
        out = (out if bias is None else out + bias).movedim(-1, 1)
        return out if input.ndim == dims + 2 else out[0]

    return rule


def _each(value: Any, dims: int) -> tuple[int, ...]:
    many = (value,) * dims if isinstance(value, int) else tuple(value)
    return many * dims if len(many) == 1 else many


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    if isinstance(left, Matrix) and not isinstance(right, Matrix):
        return _linear(right, left) if right.ndim == 1 else _linear(right.mT, left).mT
    if isinstance(right, Matrix) and not isinstance(left, Matrix):
        return _linear(left, _turned(right))
    raise _unknown(left, "matmul of two matrices")  # type: ignore[arg-type]


def _turned(matrix: Matrix, *axes: Any) -> Matrix:
    if matrix.ndim != 2 or (axes and {a % 2 for a in (axes[0] if isinstance(axes[0], tuple) else axes)} != {0, 1}):
        raise _unknown(matrix, "permute")
    return matrix.changed(tuple(matrix.shape)[::-1], turned=not matrix.met.turned)


def _permuted(matrix: Matrix, *axes: Any) -> Matrix:
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    return matrix if [a % 2 for a in order] == [0, 1] else _turned(matrix)


def _times(left: Any, right: Any) -> Matrix:
    matrix, number = (left, right) if isinstance(left, Matrix) else (right, left)
    if not isinstance(number, (int, float)):
        raise _unknown(matrix, "a product with a tensor")
    return matrix.changed(tuple(matrix.shape), factor=matrix.met.factor * number)


def _over(matrix: Any, number: Any) -> Matrix:
    if not isinstance(matrix, Matrix) or not isinstance(number, (int, float)):
        raise _unknown(matrix, "a division by a tensor")
    return _times(matrix, 1 / number)


def _einsum(equation: str, *operands: Tensor) -> Tensor:
    """One field and one matrix, which share the axis that is summed"""
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    which = [i for i, operand in enumerate(operands) if isinstance(operand, Matrix)]
    if len(operands) != 2 or len(which) != 1 or not output or len(terms[which[0]]) != 2:
        raise _unknown(next((o for o in operands if isinstance(o, Matrix)), None), f"einsum {equation!r}")
    matrix, ours, x, theirs = operands[which[0]], terms[which[0]], operands[1 - which[0]], terms[1 - which[0]]
    summed = [i for i in ours if i in theirs and i not in output]
    if len(summed) != 1 or sorted(theirs.replace(summed[0], ours.replace(summed[0], ""))) != sorted(output):
        raise _unknown(matrix, f"einsum {equation!r}")  # type: ignore[arg-type]
    out = _linear(x.movedim(theirs.index(summed[0]), -1), matrix if ours[1] == summed[0] else _turned(matrix))  # type: ignore[arg-type]
    found = theirs.replace(summed[0], "") + ours.replace(summed[0], "")
    return out.permute([found.index(i) for i in output])


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    torch.einsum: _einsum,
    torch.functional.einsum: _einsum,
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv), _matmul
    ),
    **dict.fromkeys((torch.t, Tensor.t, _getter("T"), _getter("mT"), torch.transpose, Tensor.transpose), _turned),
    **dict.fromkeys((torch.permute, Tensor.permute), _permuted),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _times),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _over),
    Tensor.__rmatmul__: lambda right, left: _matmul(left, right),
}
_PLAIN = {
    _getter(name) for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_meta", "is_cuda", "layout")
}
_PLAIN |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}
