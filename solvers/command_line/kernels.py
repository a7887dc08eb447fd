"""Commands on kernels at the start of infinitely wide networks, without training: the matrices, and a kernel in its eigen-directions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanfield.files import storage
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.spectrum import spectrum
from meanfield.problem.problem import Problem
from solvers.command_line import start_kernels
from solvers.command_line.limits import Command, usually
from solvers.running.keeping import DONE, free, kept


@dataclass(frozen=True, kw_only=True)
class Nngp(Command):
    """Covariance of the outputs (nngp) and tangent kernel (ntk) of infinitely wide networks at their random start, as arrays.

    The file is one of numpy's: nngp and ntk between x, then x_test (those of x alone first), and x, y, x_test, y_test themselves;
    show and plot read it, too.
    """

    out: Path
    """File to write (.npz)"""
    problem: Problem = field(metadata=usually("ntk", "mean_field"))
    """Its data, network and scaling count"""
    overwrite: bool = False
    """Replace an older file"""


@dataclass(frozen=True, kw_only=True)
class Spectrum(Command):
    """Eigenvalues of a kernel at the start, and the share of the targets in each direction: what is learned, how fast (equation 56)."""

    problem: Problem = field(metadata=usually("ntk", "mean_field"))
    """Its data, network and scaling count"""
    nngp: bool = False
    """Take the covariance of the outputs in the place of the tangent kernel"""
    overwrite: bool = False
    """Replace an older file"""


def _nngp(asked: Nngp) -> int:
    out, problem = asked.out, asked.problem
    if out.suffix != ".npz":
        raise ValueError(f"kernels are kept in files that end in .npz: received {str(out)!r}; give e.g. {out.stem}.npz")
    free(out, asked.overwrite)
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"the folder of {str(out)!r} does not exist or cannot be written to: create {out.parent} first"
        )
    data = problem.data
    nngp, ntk = nngp_and_ntk(problem.network, problem.scaling, data.all_x)
    kernels = start_kernels.StartKernels(nngp, ntk, data)
    start_kernels.save(kernels, out)
    print(kernels)
    print(f"kept in {out}")
    return DONE


def _spectrum(asked: Spectrum) -> int:
    free(storage.writable(asked.out), asked.overwrite)
    data = asked.problem.data
    nngp, ntk = nngp_and_ntk(asked.problem.network, asked.problem.scaling, data.x)
    return kept(spectrum(nngp if asked.nngp else ntk, data.y), asked.out)


COMMANDS: dict[type, Callable[[Any], int]] = {Nngp: _nngp, Spectrum: _spectrum}
