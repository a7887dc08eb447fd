"""KernelBlocks: NNGP and tangent kernel of many samples, block by block, through any executor, kept as they finish."""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import in_full
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.network.architecture import architecture
from meanfield.network.layered import Layered
from meanfield.network.recalled import told
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard
from solvers.lazy.block_run import Run
from solvers.lazy.block_store import Block, InFolder, InMemory, Kernels, Store
from solvers.running.clock import progress_bar
from solvers.running.rehearsal import by_law
from solvers.running.solver import Estimate

_AHEAD = 2.0**30  # bytes of blocks that wait for workers or for being put away
_WORK = 2.0**28  # bytes at most that a block takes beside inputs and results, unless it is given otherwise


@checked
@dataclass(frozen=True)
class KernelBlocks:
    """Both kernels of `nngp_and_ntk` for so many samples that these should be spread over processes, kept in a folder, or rounded.

    Of outputs at positions they are (P, positions, P2, positions), in files of a folder (P positions, P2 positions).
    Their numbers depend on the edge of the blocks to rounding alone, and not on executor or folder, if workers have as many threads.

    Example:
        >>> import meanfield as mf
        >>> from solvers import KernelBlocks
        >>> x = mf.digits(n_train=6, n_test=0).x
        >>> nngp, ntk = KernelBlocks(edge=4)(mf.Network(2, "relu"), mf.ntk(), x)
        >>> ntk.shape
        torch.Size([6, 6])
    """

    edge: int | None = None
    """Samples in the rows, and in the columns, of a block; if left out 512, or as many as make 16 rows or columns of blocks, and fewer
    for outputs at positions"""
    dtype: str | None = None
    """float32 or float64, in which the kernels are kept; that of x, if left out"""

    def __post_init__(self) -> None:
        checks.normalise(self, edge=1)

    def __call__(
        self,
        network: Any,
        scaling: Scaling | Standard,
        x: Any,
        x2: Any = None,
        *,
        executor: Executor | None = None,
        folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """nngp and ntk (P, P2) between x (P, ..) and x2 (P2, ..), default x, of which each block and its mirror image is computed once.

        A block that fails or a worker that dies does not cost the others: SolverError at the end, and so Interrupted after Ctrl-C; another
        call with the same folder, and a new executor if a process pool broke, computes what is missing.

        Args:
            network: Whatever `nngp_and_ntk` takes; for processes one that can be pickled: a builder that can be imported
            scaling: As there
            x: As there; the kernels are in float64 until they are kept
            x2: As there
            executor: Runs the blocks, e.g. a ProcessPoolExecutor or a dask client's; they run here if left out
            folder: Keeps each finished block, and the kernels as nngp.npy and ntk.npy, to which what is returned is mapped. ValueError if
                it holds other kernels or another run is at work in it
            progress: Show a bar; in a terminal only if left out
        """
        asked = _Asked(self, network, scaling, x, x2)
        checks.memory(
            f"the kernels between {asked.shape[0]} and {asked.shape[1]} points",
            asked.bytes(folder is not None),
            "give a folder, dtype='float32', or a smaller edge",
        )
        with closing(asked.store(folder)) as store:
            blocks = asked.blocks()
            missing = store.missing(blocks)
            done = len(blocks) - len(missing)
            with progress_bar("blocks", progress, total=len(blocks), initial=done) as bar:
                where = "" if folder is None else f" and kept in {folder}"
                run = Run(asked.inputs, asked.ahead(), store, len(blocks), done, where, bar.update)
                run(missing, executor)
            return asked.with_positions(store.kernels())

    def estimate(
        self,
        network: Any,
        scaling: Scaling | Standard,
        x: Any,
        x2: Any = None,
        *,
        workers: int = 1,
        folder: bool = False,
        seconds: float = 3.0,
    ) -> Estimate:
        """Time and memory, found in about so many `seconds` from a block, or from smaller ones if it takes longer.

        workers: processes that have as many cores to themselves as this one has threads. folder: whether there will be one, which takes
        the kernels out of the memory. Errors as of the call.
        """
        asked, workers = _Asked(self, network, scaling, x, x2), checks.integer("workers", workers, 1)
        n, m = (min(asked.edge, size) for size in asked.shape)
        most = max(n, m)
        law, last = by_law(lambda k: asked.between(slice(0, min(k, n)), slice(-min(k, m), None)), most, seconds)
        each, times = float(law[most]), asked.pairs() / (n * m)
        how = f"a block of {last} samples, of which there are {len(asked.blocks())} of {most}, {each:.2g} s each"
        if each > 600:
            how += "; a smaller edge would lose less with a worker"
        return Estimate(times * each / workers, asked.bytes(folder) + workers * _WORK, how)


class _Asked:
    """Of which kernels the blocks are"""

    def __init__(self, settings: KernelBlocks, network: Any, scaling: Scaling | Standard, x: Any, x2: Any) -> None:
        self.network, self.scaling = network, scaling
        self.dtype = array_input.precision(x) if settings.dtype is None else checks.DTYPES[settings.dtype]
        self.x = checks.samples("x", x)
        self.symmetric = x2 is None
        self.x2 = self.x if self.symmetric else checks.samples("x2", x2)
        self.shape = (len(self.x), len(self.x2))
        self.first = self.between(slice(0, 1), slice(0, 1))  # what is refused is refused now
        self.positions = self.first[0].shape[1 : self.first[0].ndim // 2]
        self.each = self.positions.numel()  # rows of a sample
        self.rows = (self.shape[0] * self.each, self.shape[1] * self.each)
        self.edge = settings.edge or max(1, min(512 // self.each, math.ceil(max(self.shape) / 16)))

    def blocks(self) -> list[Block]:
        (n, m), edge = self.rows, self.edge * self.each
        return [
            Block(slice(i, min(i + edge, n)), slice(j, min(j + edge, m)), self.symmetric and i != j)
            for i in range(0, n, edge)
            for j in range(i if self.symmetric else 0, m, edge)
        ]

    def store(self, folder: str | Path | None) -> Store:
        if folder is None:
            return InMemory(self.rows, self.dtype)
        return InFolder(Path(folder), self.problem(), self.rows, self.dtype)

    def with_positions(self, kernels: Kernels) -> Kernels:
        """As `nngp_and_ntk` gives them"""
        (n, m), positions = self.shape, self.positions
        nngp, ntk = (kernel.view(n, *positions, m, *positions) for kernel in kernels)
        return nngp, ntk

    def pairs(self) -> float:
        """Of samples whose kernels are computed: of a block on the diagonal half of them"""
        n, m = self.shape
        return n * (n + 1) / 2 if self.symmetric else float(n * m)

    def inputs(self, block: Block) -> tuple[Any, ...]:
        """Arguments of `computed`; clones, since what views of x are pickled with is all of x"""
        alone = self.symmetric and block.rows == block.columns
        rows, columns = (slice(s.start // self.each, s.stop // self.each) for s in (block.rows, block.columns))
        second = None if alone else self.x2[columns].clone()
        return self.network, self.scaling, self.x[rows].clone(), second, self.dtype

    def between(self, rows: slice, columns: slice) -> Kernels:
        return nngp_and_ntk(self.network, self.scaling, self.x[rows], self.x2[columns])

    def of_a_block(self) -> float:
        """Bytes of a block, its inputs and its results"""
        n, m = (min(self.edge, size) for size in self.shape)
        return 8.0 * (n + m) * math.prod(self.x.shape[1:]) + 2.0 * n * m * self.each**2 * self.dtype.itemsize

    def bytes(self, folder: bool) -> float:
        """That are held at once beside the work on blocks: the kernels, the inputs, and the blocks ahead"""
        n, m = self.rows
        ahead = min(len(self.blocks()), self.ahead()) * self.of_a_block()
        return 8.0 * (self.x.numel() + self.x2.numel()) + ahead + (0.0 if folder else 2.0 * n * m * self.dtype.itemsize)

    def ahead(self) -> int:
        """Blocks that are handed out at once"""
        return max(2, min(int(_AHEAD / self.of_a_block()), 64 * (os.cpu_count() or 1)))

    def problem(self) -> dict[str, Any]:
        """What a folder knows of them"""
        plain = isinstance(self.network, Layered)
        code = {} if plain else {k: v for k, v in told(architecture(self.network)).items() if k != "source"}
        data = {"x": _digest(self.x), "x2": None if self.symmetric else _digest(self.x2)}
        kept = {"edge": self.edge, "dtype": str(self.dtype).removeprefix("torch.")}
        first = ", ".join(f"{float(kernel.sum()):.8e}" for kernel in self.first)  # activations are known by name alone
        return (
            {"network": in_full(self.network) if plain else code, "scaling": in_full(self.scaling)}
            | data
            | kept
            | {"first": first}
        )


def _digest(x: Tensor) -> str:
    return f"{tuple(x.shape)} sha256 {hashlib.sha256(x.numpy().data).hexdigest()}"
