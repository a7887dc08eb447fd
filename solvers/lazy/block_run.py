"""The blocks of kernels that are missing, computed here or through an executor, and what becomes of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard
from solvers.lazy.block_store import Block, Kernels, Store
from solvers.running.failures import Interrupted, SolverError
from solvers.running.workers import end_with_parent


@dataclass
class Run:
    """Of the blocks that are missing"""

    inputs: Callable[[Block], tuple[Any, ...]]  # arguments of `computed`
    ahead: int  # blocks that are handed out at once
    store: Store
    total: int
    done: int  # before
    where: str  # they are kept; empty in memory
    told: Callable[[int], object]  # how many more are finished
    failures: list[str] = field(default_factory=list)

    def __call__(self, blocks: list[Block], executor: Executor | None) -> None:
        try:
            for block, kernels in self._here(blocks) if executor is None else self._spread(blocks, executor):
                self.store.put(block, kernels)
                self.done += 1
                self.told(1)
        except KeyboardInterrupt as error:
            remedy = "; call again to go on" if self.where else "; give a folder to go on from them"
            raise Interrupted(
                f"interrupted: {self.done} of {self.total} blocks are finished{self.where}{remedy}"
            ) from error
        if self.failures:
            some = "; ".join(self.failures[:3]) + ("; .." if len(self.failures) > 3 else "")
            remedy = "call again, with a new executor" if self.where else "give a folder to keep what is finished"
            raise SolverError(
                f"{self.total - self.done} of {self.total} blocks are missing, {self.done} are finished{self.where} ({remedy}): {some}"
            )

    def _here(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Kernels]]:
        for block in blocks:
            yield block, computed(*self.inputs(block))

    def _spread(self, blocks: Iterable[Block], executor: Executor) -> Iterator[tuple[Block, Kernels]]:
        """As they finish; a ValueError of any is one of all"""
        left, waiting = iter(blocks), dict[Future, Block]()
        try:
            while True:
                for block in islice(left, self.ahead - len(waiting)):
                    try:
                        waiting[executor.submit(computed, *self.inputs(block))] = block
                    except RuntimeError as error:  # it is broken or shut down: what it has finished counts
                        self._fail(block, error)
                        left = iter(())
                if not waiting:
                    return
                ended = wait(waiting, return_when=FIRST_COMPLETED).done
                for future in sorted(
                    ended, key=lambda future: future.exception() is not None
                ):  # what is finished first
                    block = waiting.pop(future)
                    try:
                        yield block, future.result()
                    except ValueError:
                        raise
                    except Exception as error:  # a worker may fail in any way; the others go on
                        self._fail(block, error)
        finally:
            for future in waiting:
                future.cancel()

    def _fail(self, block: Block, error: Exception) -> None:
        where = f"rows from {block.rows.start}, columns from {block.columns.start}"
        self.failures.append(f"{where}: {type(error).__name__}: {error}")


def computed(network: Any, scaling: Scaling | Standard, x: Tensor, x2: Tensor | None, dtype: torch.dtype) -> Kernels:
    """A block, as it will be kept, as matrices; ValueError if that dtype does not hold it"""
    end_with_parent()
    nngp, ntk = (kernel.flatten(0, kernel.ndim // 2 - 1).flatten(1) for kernel in nngp_and_ntk(network, scaling, x, x2))
    for name, kernel in (("nngp", nngp), ("ntk", ntk)):
        size, kind = float(kernel.abs().max()), torch.finfo(dtype)
        if size > kind.max or 0 < size < kind.tiny:
            raise ValueError(f"entries of the {name} of size {size:.1e} do not fit into {dtype}: give dtype='float64'")
    return nngp.to(dtype), ntk.to(dtype)
