"""Commands that solve a limit, one for each solver: what each is asked. cli.py makes flags of the fields and help of the docstrings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

from meanfield.problem import Problem
from solvers.causal_dmft import CausalDMFT
from solvers.fixed_point_dmft import FixedPointDMFT
from solvers.infinite_logits import InfiniteLogitsLimit
from solvers.keeping import solve, told
from solvers.tangent_kernel import TangentKernelLimit
from solvers.wasserstein_flow import WassersteinFlow

_LIMITS = {  # solver and what it is for
    "Flow": (WassersteinFlow, "Solve a two-layer network of infinite width, as the flow of a measure of particles."),
    "Dmft": (CausalDMFT, "Solve a network of infinite width and any depth, by dynamical mean-field theory."),
    "Fixedpoint": (
        FixedPointDMFT,
        "Solve the same equations by the classical iteration over the whole training window, as a cross-check of dmft.",
    ),
    "Lazy": (
        TangentKernelLimit,
        "Solve the lazy limit of a network of any depth, in which the tangent kernel stays as it started.",
    ),
    "Logits": (
        InfiniteLogitsLimit,
        "Solve a two-layer classifier whose outputs grow with the width, as with --scaling default and sym_default.",
    ),
}
_FIELDS = (
    "out: file to write (.nc). overwrite: replace a file that holds another run. "
    "threads: of the processor; those of OMP_NUM_THREADS, or all, if left out. "
    "dry_run: print the time and memory that it would take, found in a few seconds, and keep nothing. "
    "checkpoint: keep the state every so many steps; the same command again goes on from there."
)


def _command(name: str, solver: type, about: str) -> type:
    """The dataclass of one command"""
    shared = [("out", Path), ("problem", Problem), ("solver", solver), ("overwrite", bool, field(default=False))]
    shared.append(("threads", int | None, field(default=None)))
    shared += [("dry_run", bool, field(default=False))]
    shared.append(("checkpoint", int | None, field(default=None)))
    made = make_dataclass(name, shared, frozen=True)
    made.__doc__ = f"{about}\n\n{_FIELDS}"
    return made


def _limit(asked: Any) -> int:
    if asked.dry_run:
        return told(asked.solver.estimate(asked.problem))
    return solve(
        asked.problem, asked.solver, lambda: asked.solver(asked.problem), asked.out, asked.overwrite, asked.checkpoint
    )


COMMANDS: dict[type, Callable[[Any], int]] = {
    _command(name, solver, about): _limit for name, (solver, about) in _LIMITS.items()
}
