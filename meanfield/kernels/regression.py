"""Gaussian-process regression with a kernel that is given as a matrix (equations 93 and 94)."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.kernels.gram_checks import advised, gram_matrix, rounding, singular


class Regression:
    """S = K + noise of P training points as L L^T, and S^-1 y; both carry the derivatives of K and of the noise, if they have any."""

    def __init__(self, kernel: Tensor, y: Tensor, noise: float | Tensor, name: str = "the kernel") -> None:
        own = gram_matrix(kernel.detach(), len(y), 1, name)
        gram = (kernel + kernel.T).double() / 2 if kernel.requires_grad else own
        given = gram + noise * torch.eye(len(y), dtype=torch.float64)
        size = float(noise.detach() if isinstance(noise, Tensor) else noise)
        self.y, self.factor = y, _regular(given, own, size, rounding(kernel), name)

    @cached_property
    def weights(self) -> Tensor:
        """(P, C) S^-1 y"""
        return torch.cholesky_solve(self.y, self.factor)

    def log_marginal_likelihood(self) -> Tensor:
        """Of y, all outputs together (equation 94)"""
        p, c = self.y.shape
        half = self.factor.diagonal().log().sum()  # of log det S
        return -0.5 * (self.y * self.weights).sum() - c * half - 0.5 * p * c * math.log(2 * math.pi)

    def slope(self) -> Tensor:
        """(P, P) its derivative in S"""
        inverse = torch.cholesky_inverse(self.factor)
        return (self.weights @ self.weights.T - self.y.shape[1] * inverse) / 2

    def regressor(self, across: Tensor) -> Tensor:
        """(P2, P) K(x2, x) S^-1"""
        return torch.cholesky_solve(across.T, self.factor).T

    def remaining(self, across: Tensor, test: Tensor) -> Tensor:
        """What is left of the prior covariance `test` (P2, P2), or of its diagonal (P2,) (equation 93)"""
        whitened = torch.linalg.solve_triangular(self.factor, across.T, upper=False)
        if test.ndim == 1:
            return (test - whitened.square().sum(0)).clamp(min=0)
        left = test - whitened.T @ whitened
        return (left + left.T) / 2


@checked
def kernel_posterior(
    kernel: Tensor, y: Any, noise: float, across: Tensor, test: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Mean (P2, C) and covariance of f at P2 points, given y (P, C) = f + N(0, noise) at P others, for f ~ GP(0, kernel) (equation 93).

    kernel (P, P) between the given points, across (P2, P) between the others and them, test (P2, P2) among the others, or (P2,) its
    diagonal: the covariance is of that form, that of f in each output, and outputs are independent; without it, None. `noise` is a
    variance, 0 interpolates. Variances have an absolute error of the rounding of the prior's.

    ValueError for shapes that do not fit and for a kernel + noise that is singular to rounding, with its smallest eigenvalue.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> kernel = torch.eye(2, dtype=torch.float64)
        >>> mean, variance = mf.kernel_posterior(kernel, [[1.0], [3.0]], noise=1.0, across=kernel, test=kernel.diagonal())
        >>> [round(m, 6) for m in mean.flatten().tolist()], [round(v, 6) for v in variance.tolist()]
        ([0.5, 1.5], [0.5, 0.5])
    """
    y = checks.matrix("y", y, vector_is_column=True)
    found = Regression(kernel, y, checks.positive("noise", noise, zero=True))
    across = checks.matrix("across", across)
    if across.shape[1] != len(y):
        raise ValueError(
            f"across must have shape (P2, {len(y)}), a column for each row of y: received {tuple(across.shape)}"
        )
    mean = across @ found.weights
    if test is None:
        return mean, None
    n = len(across)
    given = checks.array("test", test)
    if given.shape not in {(n,), (n, n)}:
        raise ValueError(
            f"test must have shape {(n, n)} or {(n,)}, as across has {n} rows: received {tuple(given.shape)}"
        )
    return mean, found.remaining(
        across, gram_matrix(given, n, 1, "test") if given.ndim == 2 else _column("test", given)
    )


@checked
def log_marginal_likelihood(kernel: Tensor, y: Any, noise: float | Tensor) -> Tensor:
    """log p(y) of y (P, C) ~ N(0, kernel + noise), independent columns; derivatives in kernel (P, P) and noise pass through (equation 94).

    `noise` is a variance. ValueError for a kernel + noise that is singular to rounding, with its smallest eigenvalue.

    Example:
        >>> import math
        >>> import torch
        >>> import meanfield as mf
        >>> found = mf.log_marginal_likelihood(torch.eye(2, dtype=torch.float64), [[0.0], [0.0]], noise=0.0)
        >>> round(found.item() + math.log(2 * math.pi), 12) + 0.0
        0.0
    """
    value = noise.detach() if isinstance(noise, Tensor) else noise
    checks.positive("noise", value, zero=True)
    return Regression(kernel, checks.matrix("y", y, vector_is_column=True), noise).log_marginal_likelihood()


def _column(name: str, values: Tensor) -> Tensor:
    return checks.matrix(name, values, vector_is_column=True)[:, 0]


def _regular(given: Tensor, own: Tensor, noise: float, precision: float, name: str) -> Tensor:
    """The Cholesky factor of given = own + noise; ValueError if its small eigenvalues are rounding"""
    least = max(len(own) * torch.finfo(torch.float64).eps, precision)  # in units of the largest
    factor, failed = torch.linalg.cholesky_ex(given)
    if not int(failed) and noise > least * (float(own.abs().sum(1).max()) + noise):
        return factor  # no eigenvalue of a Gram matrix with this noise can be too small
    values = torch.linalg.eigvalsh(own) + noise
    threshold = least * float(values[-1])
    if int(failed) or float(values[0]) <= threshold:
        remedy = f"give noise={noise + advised(float(values[0]), threshold):.0e}, a variance"
        raise ValueError(singular(f"{name} + noise", own, values, threshold, precision, remedy))
    return factor
