"""InfiniteDense: an infinitely wide Gaussian matrix between two layers of neurons, revealed as it is used (equations 23 to 27).

A layer is represented by S neurons; a field is a vector over them, kept as a row, with the inner product <a, b> = sum_s a_s b_s / S.
Nothing here knows a network, a loss or a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK = 128  # Sobol dimensions drawn together


class RankError(ValueError):
    """More directions than the neurons can represent."""


class Rows:
    """A matrix (n, S) that grows by rows, in a buffer of doubling size."""

    def __init__(self, size: int, like: Tensor) -> None:
        self._buffer, self._count = like.new_empty(0, size), 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        return self._buffer[: self._count]

    def append(self, new: Tensor) -> None:
        total = self._count + len(new)
        if total > len(self._buffer):
            grown = self._buffer.new_empty(max(total, 2 * len(self._buffer), 64), self._buffer.shape[1])
            grown[: self._count] = self.rows
            self._buffer = grown
        self._buffer[self._count : total] = new
        self._count = total


class Basis:
    """Orthonormal fields, extended whenever a field sticks out by more than the tolerance.

    tolerance: directions are dropped whose mean square is below tolerance^2 times that of the largest field of the call, so a
    dropped part is at most a fraction `tolerance` of it (root mean square).
    """

    def __init__(self, size: int, tolerance: float, like: Tensor) -> None:
        self.size, self.tolerance, self.fields = size, tolerance, Rows(size, like)

    def __len__(self) -> int:
        return len(self.fields)

    def coefficients(self, v: Tensor) -> Tensor:
        """<E, v> (K, n) of the fields v (n, S)"""
        return self.fields.rows @ v.T / self.size

    def reveal(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """(coefficients (K, n) of v (n, S), new rows of the basis or None)"""
        c = self.coefficients(v)
        power = v.square().mean(1, dtype=torch.float64)
        largest, eps = float(power.max()), torch.finfo(v.dtype).eps
        if not math.isfinite(largest):  # a blow-up: it shows in the outputs
            return c, None
        threshold = max(self.tolerance, 30 * eps) ** 2 * largest  # finer than rounding there is nothing to reveal
        cheap = self.tolerance**2 > 100 * eps  # then Pythagoras tells how much sticks out
        if cheap and float((power - c.double().square().sum(0)).sum()) <= threshold:
            return c, None
        start = len(self)
        while True:  # a pass resolves directions down to rounding of the largest one it finds
            residual = v - c.T @ self.fields.rows
            values, vectors = torch.linalg.eigh((residual @ residual.T).double() / self.size)
            keep = values > max(threshold, 1e3 * eps * float(values[-1]))
            if float(values[-1]) <= threshold:
                return c, self.fields.rows[start:] if len(self) > start else None
            if len(self) + int(keep.sum()) >= self.size:
                raise RankError(
                    f"the fields span more directions than the {self.size} samples can represent: take more samples or a larger tolerance"
                )
            new = (vectors[:, keep] / values[keep].sqrt()).T.to(v.dtype) @ residual
            new = orthonormal(new, self.fields.rows)
            self.fields.append(new)
            c = torch.cat([c, new @ v.T / self.size])


def orthonormal(e: Tensor, known: Tensor) -> Tensor:
    """Rows e (k, S) without their part in the span of the orthonormal rows `known` (n, S), made orthonormal."""
    size = e.shape[1]
    if len(known):
        e = e - (e @ known.T / size) @ known
    gram = (e @ e.T).double() / size
    values, vectors = torch.linalg.eigh(gram)
    return (vectors / values.clamp(min=1e-30).sqrt() @ vectors.T).to(e.dtype) @ e


class Neurons:
    """S neurons of one layer with the source of every Gaussian they will ever need."""

    def __init__(self, samples: int, draw: Callable[[int, int], Tensor], exact: bool = False) -> None:
        self.samples, self.exact, self._draw, self.used = samples, exact, draw, 0

    def fresh(self, count: int, known: Tensor | None = None) -> Tensor:
        """(count, S) independent unit Gaussians, orthogonal to the orthonormal rows `known`."""
        e = self._draw(self.used, count)
        self.used += count
        return e if self.exact or known is None else orthonormal(e, known)


def sobol_neurons(samples: int, seed: int, dtype: torch.dtype, device: str) -> Neurons:
    """Each neuron's Gaussians are the coordinates of one scrambled Sobol point, in blocks of 128 that are shuffled against each other."""
    blocks: dict[int, Tensor] = {}

    def block(index: int) -> Tensor:
        if index not in blocks:
            g = torch.Generator().manual_seed(seed * 1_000_003 + index)
            own = int(torch.randint(2**31, (1,), generator=g))
            u = torch.quasirandom.SobolEngine(_BLOCK, scramble=True, seed=own).draw(samples, dtype=torch.float64)
            if index:
                u = u[torch.randperm(samples, generator=g)]
            blocks.clear()
            blocks[index] = torch.special.ndtri(u.clamp_(0, 1 - 2.0**-30).add_(2.0**-31)).T.to(
                dtype=dtype, device=device
            )
        return blocks[index]

    def draw(start: int, count: int) -> Tensor:
        pieces = []
        while count:
            index, offset = divmod(start, _BLOCK)
            take = min(count, _BLOCK - offset)
            pieces.append(block(index)[offset : offset + take])
            start, count = start + take, count - take
        return torch.cat(pieces)

    return Neurons(samples, draw)


def plain_neurons(samples: int, seed: int, dtype: torch.dtype, device: str) -> Neurons:
    """Independent pseudo-random Gaussians."""
    g = torch.Generator().manual_seed(seed)

    def draw(start: int, count: int) -> Tensor:
        del start  # the generator remembers
        return torch.randn(count, samples, generator=g, dtype=torch.float64).to(dtype=dtype, device=device)

    return Neurons(samples, draw)


def exact_neurons(capacity: int, dtype: torch.dtype, device: str) -> Neurons:
    """For linear networks: "neurons" are the coefficients of independent unit Gaussians, so that averages carry no sampling error."""

    def draw(start: int, count: int) -> Tensor:
        if start + count > capacity:
            raise RankError(f"more than {capacity} independent Gaussians are needed: raise `samples`")
        e = torch.zeros(count, capacity, dtype=dtype, device=device)
        e[torch.arange(count), torch.arange(start, start + count)] = capacity**0.5
        return e

    return Neurons(capacity, draw, exact=True)


class InfiniteDense:
    """W = W0 + learned, W0 an infinite matrix of N(0, 1/N) entries from the neurons `below` to the neurons `above`.

        W0 v   = U <E, v> + F <R, v>        E: orthonormal directions pushed forward, U: their Gaussian images
        W0^T g = R <F, g> + E <U, g>        F: orthonormal directions pulled back, R: their Gaussian images

    The second terms are the responses A and B. The learned part lives in the same basis: U becomes Acc (equation 26).
    """

    def __init__(self, below: Neurons, above: Neurons, tolerance: float, like: Tensor) -> None:
        self.below, self.above = below, above
        self.e, self.f = Basis(below.samples, tolerance, like), Basis(above.samples, tolerance, like)
        self.u, self.acc = Rows(above.samples, like), Rows(above.samples, like)
        self.r = Rows(below.samples, like)
        fine = 1e-3 if like.dtype == torch.float32 else 1e-6
        self.known_below, self.known_above = Basis(below.samples, fine, like), Basis(above.samples, fine, like)
        self.velocity = Rows(above.samples, like)
        self.scale = 1.0  # of W0 after weight decay

    def forward(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """(W phi (n, S'), coefficients <E, phi> (K, n)) of features phi (n, S)"""
        c, new = self.e.reveal(phi)
        if new is not None:
            image = self._fresh(self.above, self.known_above, len(new))
            self.u.append(image)
            self.acc.append(self.scale * image)
            self._learn(self.known_below, new)
        out = c.T @ self.acc.rows
        if len(self.f):
            out += (phi @ self.r.rows.T / self.below.samples) @ self.f.fields.rows * self.scale
        return out, c

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """(W^T g (n, S), coefficients <F, g> (J, n)) of gradients g (n, S')"""
        d, new = self.f.reveal(g)
        if new is not None:
            self.r.append(self._fresh(self.below, self.known_below, len(new)))
            self._learn(self.known_above, new)
        return (g @ self.acc.rows.T / self.above.samples) @ self.e.fields.rows + self.scale * d.T @ self.r.rows, d

    def update(self, g: Tensor, c: Tensor, momentum: float = 0.0) -> None:
        """W <- W + V with V <- momentum V + sum_n g_n phi_n^T / S, from g (n, S') and `forward`'s coefficients c (K, n) of phi"""
        if not momentum:
            self.acc.rows.addmm_(c, g)
            return
        missing = len(self.acc) - len(self.velocity)
        self.velocity.append(g.new_zeros(missing, g.shape[1]))
        self.velocity.rows.mul_(momentum).addmm_(c, g)
        self.acc.rows.add_(self.velocity.rows)

    def decay(self, factor: float) -> None:
        """W <- factor W"""
        self.acc.rows.mul_(factor)
        self.scale *= factor

    @staticmethod
    def _fresh(neurons: Neurons, known: Basis, count: int) -> Tensor:
        """Draws that are orthogonal to all that is known on their side: otherwise each injects noise of size 1/sqrt(S)."""
        if neurons.exact:
            return neurons.fresh(count)
        if len(known) + count >= neurons.samples:
            raise RankError(
                f"{len(known) + count} directions need more than the {neurons.samples} samples: take more samples or a larger tolerance"
            )
        e = neurons.fresh(count, known.fields.rows)
        known.fields.append(e)
        return e

    def _learn(self, known: Basis, directions: Tensor) -> None:
        if not self.below.exact:
            known.reveal(directions)
