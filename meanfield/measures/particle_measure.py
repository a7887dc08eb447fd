"""Weighted particle measures over the parameters (a, w) of a neuron (equation 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief

_BLOCK = 2**16  # rows drawn at a time: bounds the float64 workspace of a large float32 cloud


@checked
@dataclass(frozen=True, eq=False)
class ParticleMeasure:
    """sum_r m_r delta_(a_r, w_r), equation 6.

    Device and dtype are those of a; ValueError for shapes, devices or dtypes that differ, NaN, negative weights, or a sum other than 1.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> a, w = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> cloud = mf.ParticleMeasure(a, w, m=torch.tensor([0.5, 0.5]))
        >>> cloud.a.shape, cloud.w.shape  # (N, C) and (N, D)
        (torch.Size([2, 1]), torch.Size([2, 2]))
    """

    a: Tensor
    """(N, C) readouts"""
    w: Tensor
    """(N, D) input weights; D counts the bias column if the network has biases (Network.inputs)"""
    m: Tensor
    """(N,) weights, non-negative, of sum 1"""

    __repr__ = brief

    def __post_init__(self) -> None:
        a, w, m = self.a, self.w, self.m
        if a.ndim != 2 or w.ndim != 2 or m.ndim != 1 or not len(a) == len(w) == len(m) > 0:
            raise ValueError(
                f"a measure needs a (N, C), w (N, D) and m (N,) with N > 0: received {tuple(a.shape)}, {tuple(w.shape)}, {tuple(m.shape)}"
            )
        if len({a.device, w.device, m.device}) > 1 or len({a.dtype, w.dtype, m.dtype}) > 1:
            raise ValueError(
                f"a, w, m must share device and dtype: received {[(t.device, t.dtype) for t in (a, w, m)]}"
            )
        if not a.dtype.is_floating_point:
            raise ValueError(f"a measure needs floating-point parameters: received {a.dtype}")
        for name, t in (("a", a), ("w", w), ("m", m)):
            if not torch.isfinite(t).all():
                raise ValueError(f"the particles' {name} holds NaN or infinity: a measure has finite parameters")
        if bool((m < 0).any()):
            raise ValueError(
                f"particle weights must be non-negative: received {float(m.min()):g}; for signed outputs flip the sign of a"
            )
        total = float(m.double().sum())
        if abs(total - 1) > (1e-8 if m.dtype == torch.float64 else 1e-4):
            raise ValueError(f"particle weights must sum to 1: received the sum {total:.9g}; give m / m.sum()")

    def __len__(self) -> int:
        return len(self.m)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParticleMeasure):
            return NotImplemented
        return all(torch.equal(p, q) for p, q in zip(self.tensors, other.tensors, strict=True))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.w, self.m

    @property
    def points(self) -> Tensor:
        """(N, C + D) the particles' coordinates (a, w)"""
        return torch.cat([self.a, self.w], 1)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ParticleMeasure:
        if device is not None:
            device = checks.device(device)
        return ParticleMeasure(*(t.to(device=device, dtype=dtype) for t in self.tensors))

    def tiles(self, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Successive (a, w, m) of at most `rows` particles."""
        rows = checks.integer("rows", rows, 1)
        return zip(*(t.split(rows) for t in self.tensors), strict=True)

    @staticmethod
    def iid(particles: int, inputs: int, outputs: int = 1, seed: int = 0, dtype: str = "float64") -> ParticleMeasure:
        """Equal weights, (a, w) ~ N(0, I): the measure of a width-N network; error 1/sqrt(N)."""
        n, d, c = _sizes(particles, inputs, outputs)
        g = torch.Generator().manual_seed(checks.seed("seed", seed))
        kind = checks.DTYPES[checks.dtype(dtype)]
        a, w = torch.randn(n, c, generator=g, dtype=kind), torch.randn(n, d, generator=g, dtype=kind)
        return ParticleMeasure(a, w, _equal(n, kind))

    @staticmethod
    def sobol(
        particles: int,
        inputs: int,
        outputs: int = 1,
        seed: int = 0,
        dtype: str = "float64",
        directions: Tensor | None = None,
    ) -> ParticleMeasure:
        """Equal weights, (a, w) the Gaussian images of scrambled Sobol points; N a power of 2 is best.

        `directions` (n, D): rows whose span matters, in order of size (the network's inputs). The first, most even coordinates of
        the points become a and then w along the principal directions of these rows.
        """
        a, w = sobol_particles(particles, inputs, outputs, seed, dtype, directions)
        return ParticleMeasure(a, w, _equal(len(a), a.dtype))

    @staticmethod
    def gauss_hermite(
        nodes: int, inputs: int, outputs: int = 1, dtype: str = "float64", directions: Tensor | None = None
    ) -> ParticleMeasure:
        """The tensor-product quadrature of N(0, I) with `nodes` points per coordinate, over a and the span of `directions`.

        Exact for polynomials of degree below 2 nodes per coordinate. w has no component outside the span. ValueError above 2^22
        particles: for low dimension only.
        """
        nodes, (_, d, c) = checks.integer("nodes", nodes, 2), _sizes(1, inputs, outputs)
        basis = principal_directions(directions, d)
        if directions is not None:
            basis = basis[:, : int(torch.linalg.matrix_rank(directions.double()))]
        dims = c + basis.shape[1]
        if dims * math.log2(nodes) > 22:
            raise ValueError(
                f"{nodes} Gauss-Hermite nodes in {dims} dimensions are {nodes}^{dims} particles, more than {2**22}: "
                "take fewer nodes, or sobol for more than about 4 dimensions"
            )
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        grid = _product(torch.from_numpy(points), dims)
        mass = _product(torch.from_numpy(weights), dims).prod(1)
        measure = ParticleMeasure(grid[:, :c], grid[:, c:] @ basis.T, mass / mass.sum())
        return measure.to(dtype=checks.DTYPES[checks.dtype(dtype)])


def sobol_particles(
    particles: int,
    inputs: int,
    outputs: int,
    seed: int,
    dtype: str = "float64",
    directions: Tensor | None = None,
    part: slice | None = None,
) -> tuple[Tensor, Tensor]:
    """(a (N, C), w (N, D)) of ParticleMeasure.sobol; only the rows `part` of them, if given"""
    n, d, c = _sizes(particles, inputs, outputs)
    kind, basis = checks.DTYPES[checks.dtype(dtype)], principal_directions(directions, d)
    if c + d > torch.quasirandom.SobolEngine.MAXDIM:
        raise ValueError(
            f"Sobol points have at most {torch.quasirandom.SobolEngine.MAXDIM} dimensions: received inputs={d} and outputs={c}; take iid"
        )
    engine = SobolPoints(c + d, checks.seed("seed", seed))
    if part is not None:
        n = part.stop - part.start
        if part.start:
            engine.fast_forward(part.start)
    a, w = torch.empty(n, c, dtype=kind), torch.empty(n, d, dtype=kind)
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        # the centre of the finest cell
        u = engine.draw(rows.stop - start, dtype=torch.float64).clamp_(min=0).add_(2.0**-31)
        z = torch.special.ndtri(u)
        a[rows], w[rows] = z[:, :c], z[:, c:] @ basis.T
    return a, w


class SobolPoints(torch.quasirandom.SobolEngine):
    """Scrambled Sobol points; torch's engine keeps the first of them in torch's default dtype, here it has all its bits."""

    def __init__(self, dimension: int, seed: int) -> None:
        super().__init__(dimension, scramble=True, seed=seed)
        self._first_point = (self.quasi.double() / 2.0**self.MAXBIT).reshape(1, -1)


def principal_directions(rows: Tensor | None, inputs: int) -> Tensor:
    """(D, D) orthogonal: right singular vectors of rows (n, D) by decreasing singular value, completed; identity for None."""
    if rows is None:
        return torch.eye(inputs, dtype=torch.float64)
    if rows.ndim != 2 or rows.shape[1] != inputs:
        raise ValueError(f"directions must have shape (n, {inputs}) for inputs={inputs}: received {tuple(rows.shape)}")
    rows = rows.double().cpu()
    if len(rows) > inputs:  # the triangle has the same right singular vectors, and no (n, n) factor that nobody uses
        rows = torch.linalg.qr(rows, mode="r").R
    return torch.linalg.svd(rows, full_matrices=True).Vh.T


def seen_directions(rows: Tensor) -> Tensor:
    """(r, D) orthonormal, the span of rows (n, D): what lies beyond meets none of them"""
    directions = torch.linalg.svd(rows, full_matrices=False)
    return directions.Vh[1e-10 * directions.S[0].clamp(min=1e-300) < directions.S]


def _sizes(particles: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    given = {"particles": particles, "inputs": inputs, "outputs": outputs}
    n, d, c = (checks.integer(name, value, 1) for name, value in given.items())
    what = f"a cloud of particles={n} with inputs={d} and outputs={c}"
    checks.memory(what, 8.0 * (n * (d + c) + d * d), "take fewer particles or dimensions")
    return n, d, c


def _product(values: Tensor, times: int) -> Tensor:
    """(n^times, times) all combinations"""
    return torch.cartesian_prod(*[values] * times).reshape(-1, times)


def _equal(n: int, kind: torch.dtype) -> Tensor:
    return torch.full((n,), 1 / n, dtype=kind)
