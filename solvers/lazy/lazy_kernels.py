"""What a lazy limit starts from: the kernel between all samples and the training samples, and the covariance of f0 (equation 51)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.gram_checks import gram_matrix, rounding
from meanfield.kernels.module_kernels import outputs_axis
from meanfield.kernels.spectrum import KernelSpectrum, spectrum
from meanfield.problem.problem import Problem
from meanfield.problem.stream import must_come_again
from meanfield.scaling.plane import initial_exponent
from meanfield.scaling.scaling import Scaling, settled
from meanfield.scaling.standard import Standard

Kernel = Literal["analytic"]


@dataclass(frozen=True, eq=False)
class LazyKernels:
    """Between rows of outputs, P of training samples and Q of all, one for each position of a sample: ntk (Q B, P B), B = 1 when
    outputs do not mix, else C; covariance (Q, Q) of each output of f0, None for f0 = 0."""

    ntk: Tensor
    covariance: Tensor | None
    rows: int
    precision: float = torch.finfo(torch.float64).eps

    def training(self) -> Tensor:
        """(P B, P B)"""
        return self.ntk[: self.ntk.shape[1]]

    def spectrum(self, y: Tensor, f0: Tensor | None = None, covariance: Tensor | None = None) -> KernelSpectrum:
        """Of targets in rows (P, C)"""
        p, c = y.shape
        kernel = self.training()
        return spectrum(kernel if len(kernel) == p else kernel.reshape(p, c, p, c), y, f0, covariance, self.precision)


def in_rows(y: Tensor) -> Tensor:
    """Targets or outputs (P, positions, .., C), as (P positions, C)"""
    return y.flatten(0, -2)


def lazy_kernels(problem: Problem, kernel: Kernel | Tensor, random: bool) -> LazyKernels:
    """The kernels of a problem that has a lazy limit; ValueError otherwise, and for a given kernel that does not fit.

    kernel: "analytic" or a given one between all samples, [x; x_test] in this order, (Q, Q) or (Q, C, Q, C), of outputs at positions
    (Q, positions, Q, positions). random: whether the covariance of f0 is needed; it is None in scalings in which f0 vanishes.
    """
    check_lazy(problem)
    x, positions = problem.data.all_x, problem.data.y.shape[1:-1]
    each = positions.numel()
    p, q = problem.data.samples * each, len(x) * each
    random = random and has_random_start(problem.scaling)
    checks.memory("the kernels", 8.0 * q * (4 * p + random * 4 * q), "take fewer samples; FiniteWidth needs no kernel")
    if not isinstance(kernel, Tensor):
        checks.lookup("kernel", kernel, {"analytic": None})
        return LazyKernels(*_analytic(problem, x, random), p)
    name = "the given kernel, over training and test samples,"
    given = gram_matrix(kernel, len(x), problem.data.outputs, name, tuple(positions))
    ntk = given[:, : p * (len(given) // q)]
    return LazyKernels(ntk, _analytic(problem, x, random)[1] if random else None, p, rounding(kernel))


def _analytic(problem: Problem, x: Tensor, random: bool) -> tuple[Tensor, Tensor | None]:
    """K (Q, P) and the covariance of f0 (Q, Q) between rows of outputs (equation 43)"""
    scaling, network, p = problem.scaling, problem.network, problem.data.samples
    if isinstance(scaling, Scaling) and scaling.frozen != "none":
        # its covariance is that of the exponents of ntk(), and the kernel is the same
        scaling = replace(scaling, q_sigma=-0.5, q_a=0.0, q_w=0.0, frozen="none")
    _must_end_with_outputs(problem, scaling)
    if random:
        distinct, place = _distinct(x)
        nngp, ntk = (_placed(kernel, place, place) for kernel in nngp_and_ntk(network, scaling, distinct))
        return ntk[:, : p * (len(ntk) // len(x))], nngp
    distinct, place = _distinct(x[:p])
    own = _placed(nngp_and_ntk(network, scaling, distinct)[1], place, place)
    if len(x) > p:
        across = nngp_and_ntk(network, scaling, x[p:], distinct)[1]
        own = torch.cat([own, _placed(across, torch.arange(len(x) - p), place)])
    return own, None


def _placed(kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of some samples (P, positions, P2, positions) the matrix of these rows and columns of samples, each with its positions"""
    each = kernel.shape[1 : kernel.ndim // 2].numel()
    chosen = kernel.reshape(kernel.shape[0], each, -1, each)[rows][:, :, columns]
    return chosen.reshape(len(rows) * each, len(columns) * each)


def _must_end_with_outputs(problem: Problem, scaling: Scaling | Standard) -> None:
    """ValueError for a module with positions in its last axis"""
    y = problem.data.y
    if y.ndim == 2:
        return
    if (axis := outputs_axis(problem.architecture, scaling, problem.data.x)) != y.ndim - 1:
        raise ValueError(
            f"the outputs of a position must stand in the last axis: received outputs of shape {tuple(y.shape[1:])} for one sample, of "
            f"which axis {axis - 1} holds them and the others are positions; end the forward with .movedim({axis}, -1), and y likewise"
        )


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
    must_come_again(problem.data, "a limit of constant kernels")
    scaling, training = problem.scaling, problem.training
    if isinstance(scaling, Scaling) and _off_line(scaling):
        raise ValueError(
            f"the scaling {scaling.name!r} (q_sigma={scaling.q_sigma:g}, q_a={scaling.q_a:g}, q_w={scaling.q_w:g}) has no lazy limit "
            "with a finite kernel, which needs q_a = q_w = -1 - 2 q_sigma and -1 <= q_sigma <= -1/2: take ntk(), mean_field(gamma0) "
            "with a small gamma0, or solve the finite network with FiniteWidth"
        )
    if other := training.other_than(
        "optimiser", "momentum", "weight_decay", "batch_size", "schedule", "warmup", "clip"
    ):
        raise ValueError(
            f"the kernel stays constant under gradients alone: received {other}; take CausalDMFT (mean field) or FiniteWidth"
        )
    if training.weight_decay:
        raise ValueError(
            f"weight_decay={training.weight_decay:g} shrinks every weight by a finite factor, so the kernel does not stay constant: "
            "leave it out, or take CausalDMFT (mean field) or FiniteWidth"
        )
