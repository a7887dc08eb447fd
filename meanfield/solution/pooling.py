"""pooled: one solution from independent ones of the same problem, their mean with its standard error (equation 35)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.problem.stream import laws_must_be_known
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel


@checked
def pooled(solutions: Sequence[Solution], solver: Mapping[str, Any] | None = None) -> Solution:
    """The mean over independent runs (other seeds) of outputs, kernels and tangent kernels, with `standard_errors`.

    An error of n runs is itself known to 1/sqrt(2 (n - 1)); it does not contain what all runs share (the bias of a sampled solver, of
    order 1/samples). Neurons are joined; responses, particles and state stay with the single runs. solver: settings to name the result
    by. ValueError for fewer than two solutions, other problems, equal seeds or runs of unequal length.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 5))
        >>> both = mf.pooled([WassersteinFlow(particles=64, seed=seed)(problem) for seed in (0, 1)])
        >>> both.standard_errors["f"].shape
        torch.Size([6, 4, 1])
    """
    solutions = list(solutions)
    _check(solutions)
    first = solutions[0]
    errors: dict[str, Tensor] = {}

    def mean(name: str, values: Sequence[Tensor | None]) -> Tensor:
        stack = torch.stack([value for value in values if value is not None])
        errors[name] = stack.double().std(0).div(math.sqrt(len(stack))).to(stack)
        return stack.mean(0)

    f = mean("f", [s.f for s in solutions])
    f_test = None if first.f_test is None else mean("f_test", [s.f_test for s in solutions])
    mean("loss", [s.loss for s in solutions])
    if first.f_test is not None and first.problem.data.y_test is not None:
        mean("test_loss", [s.test_loss for s in solutions])
    recorded = first.tangent_kernels is not None
    tangents = mean("tangent_kernels", [s.tangent_kernels for s in solutions]) if recorded else None
    kernels = {name: _mean_kernel([s.kernels[name] for s in solutions]) for name in first.kernels}
    for name, kernel in first.kernels.items():
        steps = [step for step in first.snapshots if step in kernel.steps]
        if steps:
            mean(name, [torch.stack([s.kernels[name].at(t) for t in steps]) for s in solutions])
    own = {name: mean(name, [s.recorded[name] for s in solutions]) for name in first.recorded}
    return replace(
        first,
        solver=dict(solver or first.solver),
        f=f,
        f_test=f_test,
        state={},
        kernels=kernels,
        responses={},
        standard_errors=errors,
        tangent=tangents,
        particles={},
        recorded=own,
        fields={name: torch.cat([s.fields[name] for s in solutions], 1) for name in first.fields},
        stats=dict(first.stats) | {"seconds": sum(s.stats.get("seconds", 0.0) for s in solutions)},
    )


def _check(solutions: Sequence[Solution]) -> None:
    if len(solutions) < 2:
        raise ValueError(f"a standard error needs at least two independent solutions: received {len(solutions)}")
    first, seeds = solutions[0], [s.solver.get("seed") for s in solutions]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"solutions must have different seeds to be independent: received {seeds}")
    for s in solutions[1:]:
        laws_must_be_known(s.problem.data, first.problem.data)
        if s.problem != first.problem or s.solver.get("name") != first.solver.get("name"):
            raise ValueError("solutions of different problems or solvers cannot be pooled")
        alike = (
            s.recorded.keys() == first.recorded.keys()
            and s.kernels.keys() == first.kernels.keys()
            and s.fields.keys() == first.fields.keys()
        )
        if s.f.shape != first.f.shape or s.snapshots != first.snapshots or not alike:
            raise ValueError(
                f"pooled solutions must share their steps and snapshots: received {s.steps} steps with snapshots {s.snapshots} "
                f"beside {first.steps} with {first.snapshots}"
            )


def _mean_kernel(kernels: Sequence[TwoTimeKernel]) -> TwoTimeKernel:
    """The factor of a mean of c^T c is all factors on top of each other."""
    return TwoTimeKernel(kernels[0].steps, torch.cat([k.factor for k in kernels], 1) / math.sqrt(len(kernels)))
