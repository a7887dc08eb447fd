"""How far training moves neurons of their own size, and which precision resolves that (equation 28b)."""

from __future__ import annotations

import torch

from meanfield.problem.problem import Problem


def learned(problem: Problem) -> float:
    """How far training moves the neurons, of their own size: |Delta| at f = 0, root mean square over samples, over Gamma"""
    y, scaling = problem.data.y, problem.in_plane
    delta = problem.loss_function.delta(torch.zeros_like(y), y)
    return (float(delta.square().sum(-1).mean().sqrt()) or 1.0) / scaling.products(scaling.reference_width).gamma


def must_resolve(problem: Problem, kind: torch.dtype) -> None:
    """ValueError where rounding spoils f, which is Gamma times a sum that cancels but for what is learned"""
    moved = learned(problem)
    error = torch.finfo(kind).eps / moved
    if error > 1e-3:
        name = str(kind).removeprefix("torch.")
        remedy = "TangentKernelLimit, the limit gamma0 -> 0" if name == "float64" else "dtype='float64'"
        raise ValueError(
            f"training moves the neurons by {moved:.1g} of their size only (gamma0 times the targets' size), and {name} would round "
            f"f by {error:.1g} of its size: take {remedy}"
        )
