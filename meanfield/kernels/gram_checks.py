"""Gram matrices as they are given: their shape, whether they can be inverted, and which of their rows say the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked

_SHOWN = 5  # groups of rows in a message


@checked
def check_gram(kernel: Tensor, name: str = "kernel", jitter: float = 0.0) -> Tensor:
    """`kernel` + jitter * mean diagonal * identity (P, P), if it can be inverted safely in its precision; jitter is stated, never silent.

    ValueError with the smallest eigenvalue and the remedy if that is below P eps times the largest; with the rows if points coincide.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> kernel = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> mf.check_gram(kernel, jitter=0.5)
        tensor([[3., 1.],
                [1., 3.]], dtype=torch.float64)
    """
    jitter = checks.positive("jitter", jitter, zero=True)
    own = _symmetric(name, kernel.detach())  # what is returned carries its derivatives
    scale, precision = float(own.diagonal().mean()), rounding(kernel)
    values = torch.linalg.eigvalsh(own + jitter * scale * torch.eye(len(own), dtype=own.dtype))
    threshold = len(own) * precision * float(values[-1])
    if float(values[0]) <= threshold:
        advice = advised(float(values[0]), threshold, scale)
        remedy = f"give jitter={jitter + advice:.0e} (times the mean diagonal {scale:.3g})"
        raise ValueError(singular(name, own, values, threshold, precision, remedy))
    return kernel + jitter * scale * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)


def singular(name: str, own: Tensor, values: Tensor, threshold: float, precision: float, remedy: str) -> str:
    """What to tell of a Gram matrix with these eigenvalues, rising, the smallest of which is below the threshold"""
    rows = indistinct(own, precision, threshold)
    return (
        f"{name} is numerically singular: its smallest eigenvalue is {float(values[0]):.3g}, the largest {float(values[-1]):.3g}, "
        f"and below {threshold:.1e} an inverse is rounding error{named(rows, what='point')}; remove such points, or {remedy}"
    )


def advised(smallest: float, threshold: float, scale: float = 1.0) -> float:
    """A power of 10, in units of `scale`, that lifts the smallest eigenvalue ten times above the threshold"""
    needed = (threshold - min(smallest, 0.0)) / max(scale, torch.finfo(torch.float64).tiny)
    return 10.0 ** math.ceil(math.log10(max(needed, 1e-300)) + 1)


def gram_matrix(
    kernel: Tensor, samples: int, outputs: int, name: str = "the kernel", positions: tuple[int, ...] = ()
) -> Tensor:
    """The kernel as a symmetric float64 matrix, (P, P) or (P C, P C); ValueError for another shape, NaN, or an asymmetric kernel.

    Of outputs at positions it is (P, positions, P, positions), each a row, or (P, C, P, C) with all outputs of a sample.
    """
    shape, plain, full = tuple(kernel.shape), (samples, *positions) * 2, (samples, outputs) * 2
    if shape not in {plain, full}:
        either = f" or {full}" if outputs > 1 else ""
        raise ValueError(f"{name} must have shape {plain}{either}: received {shape}")
    rows = math.prod(shape[: len(shape) // 2])
    return _symmetric(name, kernel.reshape(rows, rows))


def _symmetric(name: str, kernel: Tensor) -> Tensor:
    """A matrix in float64 on the CPU; ValueError if it is not square, finite and symmetric"""
    gram = checks.matrix(name, kernel)
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"{name} must be a square matrix: received shape {tuple(gram.shape)}")
    apart, size = float((gram - gram.T).abs().max()), float(gram.abs().max())
    if apart > math.sqrt(rounding(kernel)) * size:
        raise ValueError(
            f"{name} is not symmetric: entries differ from their mirror images by up to {apart:.3g} (largest entry {size:.3g}); "
            "give K(x, x) with the same samples in rows and columns"
        )
    return (gram + gram.T) / 2


def rounding(kernel: Tensor) -> float:
    """Relative precision of a tensor's numbers"""
    return torch.finfo(kernel.dtype if kernel.is_floating_point() else torch.float64).eps


def indistinct(gram: Tensor, precision: float, least: float) -> tuple[tuple[int, ...], ...]:
    """Groups of rows of a float64 Gram matrix that are equal to its rounding, and, each alone, rows of zeros

    An eigenvalue of at most `least` belongs to every row of a group but one, and to every row of zeros.
    """
    size = gram.diagonal()
    apart = size[:, None] + size - 2 * gram  # squared distances
    near = apart <= (16 * precision * (size[:, None] + size)).clamp(max=2 * least)
    near.fill_diagonal_(True)
    first = near.to(torch.uint8).argmax(1)
    first, zero = first[first].tolist(), (size == 0).tolist()
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(first):
        groups.setdefault(row if zero[row] else one, []).append(row)
    return tuple(tuple(rows) for one, rows in groups.items() if len(rows) > 1 or zero[one])


def named(groups: tuple[tuple[int, ...], ...], outputs: int = 1, explained: int = 0, what: str = "training row") -> str:
    """What to tell of `indistinct` rows, each of which stands for one of `outputs` of a sample"""
    if not groups:
        return ""
    samples = sorted({tuple(dict.fromkeys(row // outputs for row in rows)) for rows in groups})
    same = [
        f"{what}s {', '.join(map(str, rows[:-1]))} and {rows[-1]} are duplicates" for rows in samples if len(rows) > 1
    ]
    zero = [f"{what} {rows[0]} is zero" for rows in samples if len(rows) == 1]
    many = same + zero
    more = f", and {len(many) - _SHOWN} more such groups" if len(many) > _SHOWN else ""
    return f"{f', {explained} of them because' if explained else ';'} {', '.join(many[:_SHOWN])}{more}"
