"""What a lazy limit starts from: the kernel between all samples and the training samples, and the covariance of f0 (equation 51)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.gram_checks import gram_matrix, rounding
from meanfield.kernels.spectrum import KernelSpectrum, spectrum
from meanfield.problem.problem import Problem
from meanfield.scaling.plane import initial_exponent
from meanfield.scaling.scaling import Scaling, settled
from meanfield.scaling.standard import Standard

Kernel = Literal["analytic"]


@dataclass(frozen=True, eq=False)
class LazyKernels:
    """ntk (Q B, P B), Q = P + P_test: B = 1 when outputs do not mix, else C; covariance (Q, Q) of each output of f0, None for f0 = 0."""

    ntk: Tensor
    covariance: Tensor | None
    samples: int
    precision: float = torch.finfo(torch.float64).eps

    def training(self) -> Tensor:
        """(P B, P B)"""
        return self.ntk[: self.ntk.shape[1]]

    def spectrum(self, y: Tensor, f0: Tensor | None = None, covariance: Tensor | None = None) -> KernelSpectrum:
        p, c = y.shape
        kernel = self.training()
        return spectrum(kernel if len(kernel) == p else kernel.reshape(p, c, p, c), y, f0, covariance, self.precision)


def lazy_kernels(problem: Problem, kernel: Kernel | Tensor, random: bool) -> LazyKernels:
    """The kernels of a problem that has a lazy limit; ValueError otherwise, and for a given kernel that does not fit.

    kernel: "analytic" or a given one between all samples, [x; x_test] in this order, (Q, Q) or (Q, C, Q, C). random: whether the
    covariance of f0 is needed; it is None in scalings in which f0 vanishes.
    """
    check_lazy(problem)
    x, p = problem.data.all_x, problem.data.samples
    random = random and has_random_start(problem.scaling)
    checks.memory(
        "the kernels", 8.0 * len(x) * (4 * p + random * 4 * len(x)), "take fewer samples; FiniteWidth needs no kernel"
    )
    if not isinstance(kernel, Tensor):
        checks.lookup("kernel", kernel, {"analytic": None})
        return LazyKernels(*_analytic(problem, x, random), p)
    given = gram_matrix(kernel, len(x), problem.data.outputs, "the given kernel, over training and test samples,")
    ntk = given[:, : p * (len(given) // len(x))]
    return LazyKernels(ntk, _analytic(problem, x, random)[1] if random else None, p, rounding(kernel))


def _analytic(problem: Problem, x: Tensor, random: bool) -> tuple[Tensor, Tensor | None]:
    """K (Q, P) and the covariance of f0 (Q, Q) (equation 43)"""
    scaling, network, p = problem.scaling, problem.network, problem.data.samples
    if isinstance(scaling, Scaling) and scaling.frozen != "none":
        # its covariance is that of the exponents of ntk(), and the kernel is the same
        scaling = replace(scaling, q_sigma=-0.5, q_a=0.0, q_w=0.0, frozen="none")
    if random:
        distinct, place = _distinct(x)
        nngp, ntk = (kernel[place][:, place] for kernel in nngp_and_ntk(network, scaling, distinct))
        return ntk[:, :p], nngp
    distinct, place = _distinct(x[:p])
    own = nngp_and_ntk(network, scaling, distinct)[1][place]
    if len(x) > p:
        own = torch.cat([own, nngp_and_ntk(network, scaling, x[p:], distinct)[1]])
    return own[:, place], None


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of x, in order, and which of them each row is: equal samples then have equal kernels, to the last bit"""
    group = torch.unique(x, dim=0, return_inverse=True)[1]
    first = group.new_full((int(group.max()) + 1,), len(x))
    first.scatter_reduce_(0, group, torch.arange(len(x)), "amin")
    order = first.argsort()
    return x[first[order]], order.argsort()[group]


def has_random_start(scaling: Scaling | Standard) -> bool:
    """Whether f0 stays random at infinite width"""
    return isinstance(scaling, Standard) or initial_exponent(scaling) >= 0


def _off_line(scaling: Scaling) -> bool:
    """Whether it is none of those with a finite kernel"""
    off = any(settled(q + 1 + 2 * scaling.q_sigma) for q in (scaling.q_a, scaling.q_w))
    return off or settled(scaling.q_sigma + 1) < 0 or settled(scaling.q_sigma + 0.5) > 0


def check_lazy(problem: Problem) -> None:
    """ValueError for a problem without a lazy limit, naming the solver that takes it (equations 51 and 58)."""
    scaling, training = problem.scaling, problem.training
    if problem.data.y.ndim > 2:
        raise ValueError(
            f"lazy limits take one row of outputs for each sample: received targets of shape {tuple(problem.data.y.shape)}, "
            "with positions; mf.nngp_and_ntk(network, scaling, x) has their kernels, FiniteWidth and CausalDMFT train them"
        )
    if isinstance(scaling, Scaling) and _off_line(scaling):
        raise ValueError(
            f"the scaling {scaling.name!r} (q_sigma={scaling.q_sigma:g}, q_a={scaling.q_a:g}, q_w={scaling.q_w:g}) has no lazy limit "
            "with a finite kernel, which needs q_a = q_w = -1 - 2 q_sigma and -1 <= q_sigma <= -1/2: take ntk(), mean_field(gamma0) "
            "with a small gamma0, or solve the finite network with FiniteWidth"
        )
    if training.weight_decay:
        raise ValueError(
            f"weight_decay={training.weight_decay:g} shrinks every weight by a finite factor, so the kernel does not stay constant: "
            "leave it out, or take CausalDMFT (mean field) or FiniteWidth"
        )
