"""The eigen-directions of a kernel on a dataset: what of the targets is learned, how fast, at what cost (equations 52, 54 to 57)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.kernels.gram_checks import gram_matrix, indistinct, named, rounding

Times = Tensor | Sequence[float]


@checked
@dataclass(frozen=True, eq=False)
class KernelSpectrum:
    """A kernel in its eigen-directions v_i and the targets' share in each; made by `spectrum`. n = P, or P C for a kernel between outputs.

    Everything is O(1) in the width; K in units where df/dt = K Delta / P.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> kernel, y = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0], [-1.0]])
        >>> found = mf.spectrum(kernel, y)
        >>> [round(value, 6) for value in found.eigenvalues.tolist()]
        [3.0, 1.0]
        >>> [round(share, 6) for share in found.alignment.tolist()]  # all of y is in the second direction
        [0.0, 1.0]
    """

    eigenvalues: Tensor
    """(n,) from the largest"""
    eigenvectors: Tensor
    """(n, n) in columns"""
    targets: Tensor
    """(n, C) v_i . y"""
    start: Tensor
    """(n,) E |v_i . (f0 - y)|^2, the squared error at time 0"""
    samples: int
    """P"""
    precision: float = torch.finfo(torch.float64).eps
    """Relative rounding of the kernel that was given"""
    indistinct: tuple[tuple[int, ...], ...] = ()
    """Groups of rows of K that are equal to rounding, and, each alone, rows of zeros"""

    __repr__ = brief
    _repr_html_ = html

    def __str__(self) -> str:
        """Eigenvalues, how the targets lie in them, and what follows for training."""
        values, count = self.eigenvalues, len(self.eigenvalues)
        share, half = self.cumulative_alignment, [1, 2, 4, 8, 16, 32]
        told = ", ".join(f"{float(share[k - 1]):.1%} in {k}" for k in half if k <= count)
        zero = int(self.singular.sum())
        lines = [
            f"spectrum of a kernel of {count} rows, {self.samples} samples",
            f"  eigenvalues {float(values[0]):.4g} .. {float(values[-1]):.4g}, {zero} of them zero to rounding; "
            f"condition number {self.condition_number:.3g}",
            f"  of the targets {told} of the largest directions",
            f"  descent is stable below the learning rate {self.largest_learning_rate():.4g}; error that training leaves "
            f"{self.remaining_error:.3g}",
        ]
        return "\n".join(lines)

    @property
    def alignment(self) -> Tensor:
        """(n,) |v_i . y|^2 / |y|^2, the share of the targets in each direction; sums to 1 (equation 56)."""
        power = self.targets.square().sum(1)
        return power / power.sum()

    @property
    def cumulative_alignment(self) -> Tensor:
        """(n,) the share of the targets in the first i directions; early rise: a kernel that suits the task."""
        return self.alignment.cumsum(0)

    @property
    def singular(self) -> Tensor:
        """(n,) which eigenvalues are zero to rounding: nothing is learned in these directions."""
        return self.eigenvalues <= len(self.eigenvalues) * self.precision * self.eigenvalues[0]

    @property
    def remaining_error(self) -> float:
        """Mean squared error |f - y|^2 / P that no training time removes: the part of y - f0 outside the range of K."""
        return float(self.start[self.singular].sum()) / self.samples

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue; infinite when the smallest is zero to rounding."""
        return math.inf if bool(self.singular[-1]) else float(self.eigenvalues[0] / self.eigenvalues[-1])

    def largest_learning_rate(self, momentum: float = 0.0) -> float:
        """2 (1 + momentum) P / lambda_max: above it descent on the squared loss diverges (equation 55)."""
        return 2 * (1 + momentum) * self.samples / max(float(self.eigenvalues[0]), 1e-300)

    def decay(self, times: Times, learning_rate: float | None = None) -> Tensor:
        """(T, n) what is left of an error in each direction at training times eta k: equation 52.

        learning_rate: of descent, whose times are its multiples; None is gradient flow. ValueError for other times.
        """
        at, values = training_times(times, learning_rate)[:, None], self.eigenvalues.clamp(min=0)[None]
        if learning_rate is None:
            left = torch.exp(-at * values / self.samples)
        else:
            left = (1 - learning_rate * values / self.samples) ** (at / learning_rate).round()
        return torch.where((at.isinf() & self.singular) | self._never_learned, 1.0, left)

    def gain(self, times: Times, learning_rate: float | None = None, jitter: float = 0.0) -> Tensor:
        """(T, n) (1 - decay) / lambda without a division by a small lambda; at t = inf its inverse (equation 52).

        jitter, in units of the mean eigenvalue, is added to lambda at t = inf, and there only. Without it the directions of samples that
        the kernel cannot tell apart, and of those of zeros, have a gain of 0 there: nothing is learned along them at any time. ValueError
        at t = inf if other eigenvalues too are zero to rounding and jitter is zero, or if descent diverges.
        """
        at = training_times(times, learning_rate)
        finite, values = at.isfinite(), self.eigenvalues.clamp(min=0)[None]
        gain = values.new_empty(len(at), len(self.eigenvalues))
        steps = at[finite, None]
        if learning_rate is None:
            z = steps * values / self.samples
            gain[finite] = steps / self.samples * torch.where(z < 1e-12, 1 - z / 2, -torch.expm1(-z) / z.clamp(1e-12))
        else:
            gain[finite] = _geometric(learning_rate * values / self.samples, (steps / learning_rate).round())
            gain[finite] *= learning_rate / self.samples
        gain[:, self._never_learned] = 0.0  # K v = 0, of which rounding would leave some 1e-16 times the time
        if not bool(finite.all()):
            if learning_rate is not None and learning_rate >= self.largest_learning_rate():
                raise ValueError(unstable(self, learning_rate))
            gain[~finite] = self._inverse(jitter)
        return gain

    def learning_curve(self, times: Times, learning_rate: float | None = None) -> Tensor:
        """(T, n) expected squared error in each direction, E |v_i . (f_t - y)|^2; its sum is 2 P times the loss (equation 54)."""
        return self.start * self.decay(times, learning_rate).square()

    def loss(self, times: Times, learning_rate: float | None = None) -> Tensor:
        """(T,) expected squared loss (1/P) sum |f - y|^2 / 2."""
        return self.learning_curve(times, learning_rate).sum(1) / (2 * self.samples)

    def squared_norm(self, time: float = math.inf, learning_rate: float | None = None, jitter: float = 0.0) -> float:
        """|f_t - f0|^2 in the kernel's space, from f0 = 0; y^T K^+ y at t = inf, see `gain` (equation 57)."""
        gain = self.gain([time], learning_rate, jitter)[0]
        return float((self.targets.square().sum(1) * gain.square() * self.eigenvalues.clamp(min=0)).sum())

    def complexity(self, time: float = math.inf, learning_rate: float | None = None, jitter: float = 0.0) -> float:
        """sqrt(2 |f_t|^2 / P), at t = inf sqrt(2 y^T K^+ y / P) (equation 57).

        Arora et al. 2019 bound the population loss of a wide trained network by this plus O(sqrt(log(P / (lambda_min delta)) / P)), for
        inputs of norm 1, |y| <= 1 and the kernel of the input weights, of trace P/2. It changes with the units of K; `bound` does not.
        """
        return math.sqrt(2 * self.squared_norm(time, learning_rate, jitter) / self.samples)

    def bound(
        self, delta: float = 0.05, time: float = math.inf, learning_rate: float | None = None, jitter: float = 0.0
    ) -> float:
        """2 B sqrt(tr K) / P + 3 sqrt(log(2 / delta) / (2 P)), B^2 = |f_t|^2: generalisation gap of any kernel (equation 57).

        With probability 1 - delta the population value of a 1-Lipschitz loss in [0, 1] exceeds its training mean by less, for all
        functions of norm at most B, with B fixed beforehand; one output. With tr K = P/2 the first term is `complexity`.
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie between 0 and 1: received {delta!r}; give e.g. delta=0.05")
        trace, p = float(self.eigenvalues.clamp(min=0).sum()), self.samples
        norm = self.squared_norm(time, learning_rate, jitter)
        return 2 * math.sqrt(norm * trace) / p + 3 * math.sqrt(math.log(2 / delta) / (2 * p))

    @property
    def _never_learned(self) -> Tensor:
        """(n,) the directions along which the samples that the kernel cannot tell apart differ, if these are all that it has of size 0"""
        explained = sum(max(1, len(rows) - 1) for rows in self.indistinct)
        null = self.singular
        return null if int(null.sum()) <= explained else torch.zeros_like(null)

    def _inverse(self, jitter: float) -> Tensor:
        """(n,) 1 / (lambda + jitter mean(lambda)), or 0 where samples explain a lambda of 0; ValueError if they do not"""
        values, null = self.eigenvalues.clamp(min=0), self.singular
        if checks.positive("jitter", jitter, zero=True):
            return 1 / (values + jitter * values.mean())
        explained = sum(max(1, len(rows) - 1) for rows in self.indistinct)
        if int(null.sum()) > explained:
            raise ValueError(
                "the kernel on the training samples is numerically singular: smallest eigenvalue "
                f"{float(self.eigenvalues[-1]):.3g}, largest {float(self.eigenvalues[0]):.3g}, {int(null.sum())} of {len(values)} are "
                f"zero to rounding{named(self.indistinct, len(values) // self.samples, explained)}; take a finite time (which needs no "
                "inverse), fewer samples that are nearly the same, or give jitter=1e-6 (times the mean eigenvalue)"
            )
        return torch.where(null, 0.0, 1 / values.where(~null, torch.ones_like(values)))


@checked
def spectrum(
    kernel: Tensor,
    y: Tensor,
    f0: Tensor | None = None,
    covariance: Tensor | None = None,
    precision: float | None = None,
) -> KernelSpectrum:
    """The eigen-directions of a kernel (P, P) or (P, C, P, C), e.g. `solution.tangent_kernel(0)`, for targets y (P, C).

    f0: outputs at time 0, or their mean (None: 0); covariance (P, P): of each random output at time 0, which adds C v^T Sigma v to the
    error that is expected in the direction v. precision: the kernel's relative rounding, None takes that of its dtype. Time O(P^3),
    memory O(P^2). ValueError for a kernel of wrong shape, that is not symmetric or has negative eigenvalues beyond rounding.

    Example:
        >>> import meanfield as mf
        >>> data = mf.digits(n_train=16, n_test=0)
        >>> nngp, ntk = mf.nngp_and_ntk(mf.Network(2, "relu"), mf.ntk(), data.x)
        >>> found = mf.spectrum(ntk, data.y)
        >>> bool(found.eigenvalues[0] > found.eigenvalues[-1] > 0)
        True
    """
    y = checks.matrix("y", y, vector_is_column=True)
    precision = rounding(kernel) if precision is None else checks.positive("precision", precision)
    gram = gram_matrix(kernel, y.shape[0], y.shape[1])
    f0 = torch.zeros_like(y) if f0 is None else checks.matrix("f0", f0, vector_is_column=True)
    if f0.shape != y.shape:
        raise ValueError(f"f0 must have the shape of y, {tuple(y.shape)}: received {tuple(f0.shape)}")
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    if float(values[-1]) < -math.sqrt(precision) * float(values.abs().max()):
        raise ValueError(
            f"the kernel is not positive semi-definite: smallest eigenvalue {float(values[-1]):.3g}, largest {float(values[0]):.3g}; "
            "a tangent kernel is a Gram matrix"
        )
    rows = len(gram)
    start = (vectors.T @ (f0 - y).reshape(rows, -1)).square().sum(1)
    if covariance is not None:
        sigma = gram_matrix(covariance, len(y), 1, "the covariance of f0")
        own = sigma if rows == len(y) else torch.kron(sigma, torch.eye(y.shape[1], dtype=sigma.dtype))
        start = start + (y.numel() // rows) * (vectors * (own @ vectors)).sum(0)
    directions = KernelSpectrum(values, vectors, vectors.T @ y.reshape(rows, -1), start, len(y), precision)
    if not bool(directions.singular[-1]):
        return directions
    return replace(directions, indistinct=indistinct(gram, precision, len(gram) * precision * float(values[0])))


def unstable(kernel: KernelSpectrum, learning_rate: float, momentum: float = 0.0) -> str:
    """What to tell about descent beyond the edge of stability (equation 55)."""
    return (
        f"gradient descent diverges: learning_rate={learning_rate:g} exceeds 2 (1 + momentum) P / lambda_max = "
        f"{kernel.largest_learning_rate(momentum):.4g} of this kernel (lambda_max {float(kernel.eigenvalues[0]):.4g}, P {kernel.samples}); "
        "take a smaller one, or optimiser='gradient_flow'"
    )


def training_times(times: Times, learning_rate: float | None = None) -> Tensor:
    """(T,) float64, non-negative; multiples of the learning rate if there is one"""
    at = torch.as_tensor(times, dtype=torch.float64)
    if at.ndim != 1 or not len(at) or bool((at.isnan() | (at < 0)).any()):
        raise ValueError(
            f"times must be a non-empty list of non-negative training times eta k: received {checks.shown(times)}"
        )
    if learning_rate is not None:
        steps = at[at.isfinite()] / checks.positive("learning_rate", learning_rate)
        wrong = (steps - steps.round()).abs() > 1e-6 * steps.clamp(min=1)
        if bool(wrong.any()):
            raise ValueError(
                f"descent has outputs at multiples of the learning rate {learning_rate:g} only: received the time "
                f"{float(steps[wrong][0] * learning_rate):g}; take multiples, or gradient flow"
            )
    return at


def _geometric(u: Tensor, k: Tensor) -> Tensor:
    """sum_{j<k} (1 - u)^j, exact for small u; u (1, n), k (T, 1)"""
    small = u.clamp(1e-300, 0.5)
    return torch.where(u > 0.5, (1 - (1 - u) ** k) / u.clamp(min=0.5), -torch.expm1(k * torch.log1p(-small)) / small)
