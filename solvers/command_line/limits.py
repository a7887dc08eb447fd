"""Commands that solve a limit, one for each solver, and what other commands share with them.

flags.py makes flags of the fields, help of the texts under them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanfield.problem.problem import Problem
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.dmft.fixed_point_dmft import FixedPointDMFT
from solvers.dmft.revealed_width import RevealedWidth
from solvers.lazy.tangent_kernel_limit import TangentKernelLimit
from solvers.running.keeping import solve, told
from solvers.running.solver import Solver
from solvers.two_layer.infinite_logits import InfiniteLogitsLimit
from solvers.two_layer.wasserstein_flow import WassersteinFlow


def usually(*scalings: str, **usual: Any) -> dict[str, Any]:
    """Of a command's problem: the scalings that are offered, all if none is named, the usual one first; values where nothing is asked"""
    return {"usual": usual | ({"scaling": scalings} if scalings else {})}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command that solves is asked"""

    out: Path
    """File to write (.nc)"""
    problem: Problem
    """What is asked"""
    threads: int | None = None
    """Threads of the processor; those of OMP_NUM_THREADS, or all, if left out"""


@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """What a command that solves once is asked"""

    solver: Solver
    """Numerical settings"""
    overwrite: bool = False
    """Replace a file that holds another run"""
    checkpoint: int | None = None
    """Keep the state every so many steps; the same command again goes on from there"""
    dry_run: bool = False
    """Print the time and memory that it would take, found in a few seconds, and keep nothing"""


@dataclass(frozen=True, kw_only=True)
class Flow(Run):
    """Solve a two-layer network of infinite width, as the flow of a measure of particles."""

    problem: Problem = field(metadata=usually("mean_field", "ic_mean_field"))
    """What is asked"""
    solver: WassersteinFlow


@dataclass(frozen=True, kw_only=True)
class Dmft(Run):
    """Solve a network of infinite width and any depth, by dynamical mean-field theory; linear ones exactly."""

    problem: Problem = field(metadata=usually("mean_field"))
    """What is asked"""
    solver: CausalDMFT


@dataclass(frozen=True, kw_only=True)
class Revealed(Run):
    """Train one network of finite, large width, whose matrices are drawn only where training multiplies by them; as net does in law."""

    problem: Problem = field(metadata=usually("mean_field"))
    """What is asked"""
    solver: RevealedWidth


@dataclass(frozen=True, kw_only=True)
class Fixedpoint(Run):
    """Solve the same equations by the classical iteration over the whole training window, as a cross-check of dmft."""

    problem: Problem = field(metadata=usually("mean_field", training={"steps": 10}))
    """What is asked"""
    solver: FixedPointDMFT


@dataclass(frozen=True, kw_only=True)
class Lazy(Run):
    """Solve the lazy limit of a network of any depth, in which the tangent kernel stays as it started.

    With --scaling ntk it is the limit of infinite width, with mean_field that of small gamma0 after it, up to gamma0^2.
    """

    problem: Problem = field(metadata=usually("ntk", "mean_field"))
    """What is asked"""
    solver: TangentKernelLimit


@dataclass(frozen=True, kw_only=True)
class Logits(Run):
    """Solve a two-layer classifier whose outputs grow with the width, as with --scaling default and sym_default."""

    problem: Problem = field(metadata=usually("default", "sym_default", loss="logistic"))
    """What is asked"""
    solver: InfiniteLogitsLimit


def run(asked: Run) -> int:
    """Solve, or print what it would take"""
    problem, solver = asked.problem, asked.solver
    if asked.dry_run:
        return told(solver.estimate(problem))
    return solve(problem, solver, lambda: solver(problem), asked.out, asked.overwrite, asked.checkpoint)


COMMANDS: dict[type, Callable[[Any], int]] = dict.fromkeys((Flow, Dmft, Revealed, Fixedpoint, Lazy, Logits), run)
