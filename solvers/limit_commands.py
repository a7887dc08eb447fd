"""Commands that solve a limit, one for each solver: what each is asked. cli.py makes flags of the fields and help of the docstrings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanfield.problem import Problem
from solvers.causal_dmft import CausalDMFT
from solvers.fixed_point_dmft import FixedPointDMFT
from solvers.infinite_logits import InfiniteLogitsLimit
from solvers.run_commands import solve
from solvers.tangent_kernel import TangentKernelLimit
from solvers.wasserstein_flow import WassersteinFlow


@dataclass(frozen=True)
class Flow:
    """Solve a two-layer network of infinite width, as the flow of a measure of particles.

    out: file to write (.nc). overwrite: replace a file that holds another run. checkpoint: keep the state every so many steps; the same
    command again goes on from there.
    """

    out: Path
    problem: Problem
    solver: WassersteinFlow
    overwrite: bool = False
    checkpoint: int | None = None


@dataclass(frozen=True)
class Dmft:
    """Solve a network of infinite width and any depth, by dynamical mean-field theory.

    out: file to write (.nc). overwrite: replace a file that holds another run. checkpoint: keep the state every so many steps; the same
    command again goes on from there.
    """

    out: Path
    problem: Problem
    solver: CausalDMFT
    overwrite: bool = False
    checkpoint: int | None = None


@dataclass(frozen=True)
class Fixedpoint:
    """Solve the same equations by the classical iteration over the whole training window, as a cross-check of dmft.

    out: file to write (.nc). overwrite: replace a file that holds another run.
    """

    out: Path
    problem: Problem
    solver: FixedPointDMFT
    overwrite: bool = False


@dataclass(frozen=True)
class Lazy:
    """Solve the lazy limit of a network of any depth, in which the tangent kernel stays as it started.

    out: file to write (.nc). overwrite: replace a file that holds another run. checkpoint: keep the state every so many steps; the same
    command again goes on from there.
    """

    out: Path
    problem: Problem
    solver: TangentKernelLimit
    overwrite: bool = False
    checkpoint: int | None = None


@dataclass(frozen=True)
class Logits:
    """Solve a two-layer classifier whose outputs grow with the width, as with --scaling default and sym_default.

    out: file to write (.nc). overwrite: replace a file that holds another run. checkpoint: keep the state every so many steps; the same
    command again goes on from there.
    """

    out: Path
    problem: Problem
    solver: InfiniteLogitsLimit
    overwrite: bool = False
    checkpoint: int | None = None


def _limit(asked: Flow | Dmft | Fixedpoint | Lazy | Logits) -> None:
    solver: Any = asked.solver
    solve(
        asked.problem,
        solver,
        lambda: solver(asked.problem),
        asked.out,
        asked.overwrite,
        getattr(asked, "checkpoint", None),
    )


COMMANDS: dict[type, Callable[[Any], None]] = dict.fromkeys((Flow, Dmft, Fixedpoint, Lazy, Logits), _limit)
