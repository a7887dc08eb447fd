"""What a kept limit says of its own errors: how it ended, the scatter of its draws, how far it is from its equations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanfield.solution.solution import Solution

SURE = ("limit", "status", "error of the outputs from draws", "self-consistency")
_DMFT = ("CausalDMFT", "FixedPointDMFT")


def how_sure(run: Solution, limits: Sequence[Solution]) -> tuple[str, ...]:
    """A row of the table `SURE`; limits: all that the page shows, of which other seeds tell the scatter"""
    name = str(run.solver.get("name", "?"))
    return (
        f"{name}, seed {run.solver.get('seed', '-')}",
        run.status.value,
        _from_draws(run, limits),
        _consistent(run, name),
    )


def _from_draws(run: Solution, limits: Sequence[Solution]) -> str:
    """Of the outputs at the last step, relative to their size"""
    others = [other for other in limits if _repeats(other, run)]
    if "f" in run.standard_errors:
        count, error = run.solver.get("groups", "?"), run.standard_errors["f"][-1]
        return f"± {_relative(error, run.f[-1])}, from {count} groups"
    if len(others) > 1:
        several = torch.stack([other.f[-1] for other in others]).double()
        return f"± {_relative(several.std(0), several.mean(0))}, from {len(others)} seeds on this page"
    return "not known: solve with groups=4, or with other seeds and show them together"


def _repeats(other: Solution, run: Solution) -> bool:
    """Whether both solve one problem to the same step, with settings that differ in the seed alone"""
    alike = {**other.solver, "seed": None} == {**run.solver, "seed": None}
    return alike and other.steps == run.steps and other.problem == run.problem


def _relative(error: Tensor, size: Tensor) -> str:
    return f"{float(error.double().norm() / size.double().norm()):.1%} of their size"


def _consistent(run: Solution, name: str) -> str:
    if changes := run.stats.get("changes"):
        return f"the last of {len(changes)} iterations changed the kernels by {changes[-1]:.1e} of their size"
    if name in _DMFT:
        return "tested by: meanfield certify FILE, or meanfield report --certify"
    return "step by step: nothing is solved for"
