"""Neurons, or particles, divided over the processes of torch.distributed: who holds which, and the sums over all of them.

with over_ranks() as ranks:  # started by torchrun; without it, one process that holds all
    solution = CausalDMFT(samples=2**20)(problem)
    if ranks.first:
        mf.save(solution, "deep.nc")
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn


class RankLost(RuntimeError):
    """Another process ended or does not answer: the sums cannot be completed.

    checkpoint: the file with which `checkpointed` goes on, and `step` the step that it holds; None where nothing was kept.
    """

    def __init__(self, reason: str, checkpoint: Path | None = None, step: int | None = None) -> None:
        super().__init__(reason, checkpoint, step)
        self.reason, self.checkpoint, self.step = reason, checkpoint, step

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"{self.reason}; nothing is kept yet (solvers.checkpointed keeps every so many steps): start all ranks again"
        return f"{self.reason}; step {self.step} is kept in {self.checkpoint}: start all ranks again with the same lines to go on from it"


@dataclass
class Tally:
    """Sums and broadcasts so far: how many, the bytes of their results, and the seconds in them, waiting for slower ranks included."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that share the work, as one of them sees them. Every method but `rows` is called by all of them, in the same order.

    With one process each method gives back what it got, untouched.
    """

    rank: int = 0
    count: int = 1
    group: Any = None
    tally: Tally = field(default_factory=Tally)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, size: int, rank: int | None = None) -> slice:
        """The part of `size` rows that this (or the given) rank holds"""
        rank = self.rank if rank is None else rank
        return slice(rank * size // self.count, (rank + 1) * size // self.count)

    def sum(self, *tensors: Tensor) -> Any:
        """The sum over ranks of each tensor, by one all-reduce; the same bits on all ranks. One tensor gives a tensor, more a list."""
        if self.count > 1:
            tensors = tuple(self._merged(tensors, dist.all_reduce))
        return tensors[0] if len(tensors) == 1 else list(tensors)

    def eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and vectors of a matrix that is the same on all ranks; those of the first rank, since processors may differ."""
        values, vectors = torch.linalg.eigh(matrix)
        return tuple(self._merged((values, vectors), _broadcast)) if self.count > 1 else (values, vectors)  # type: ignore[return-value]

    def same(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor"""
        return self._merged((tensor,), _broadcast)[0] if self.count > 1 else tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank"""
        return bool(flag) if self.count == 1 else self._number(float(flag), dist.ReduceOp.MAX) > 0

    def least(self, number: int) -> int:
        """The least of the ranks' numbers"""
        return number if self.count == 1 else int(self._number(float(number), dist.ReduceOp.MIN))

    def gather(self, tensor: Tensor, size: int, dim: int) -> Tensor:
        """On the first rank, on the CPU, all `size` rows along `dim` of which each rank holds its part; on the others none of them."""
        if self.count == 1:
            return tensor.cpu()
        tensor = tensor.movedim(dim, 0).contiguous()
        if not self.first:
            self._call(lambda: dist.send(tensor, 0, group=self.group))
            return tensor[:0].movedim(0, dim).cpu()
        whole = torch.empty(size, *tensor.shape[1:], dtype=tensor.dtype)
        whole[self.rows(size)] = tensor.cpu()
        for rank in range(1, self.count):
            rows = self.rows(size, rank)
            part = tensor.new_empty(rows.stop - rows.start, *tensor.shape[1:])
            self._call(lambda part=part, rank=rank: dist.recv(part, rank, group=self.group))
            whole[rows] = part.cpu()
        return whole.movedim(0, dim)

    def _merged(self, tensors: tuple[Tensor, ...], collective: Callable[..., Any]) -> list[Tensor]:
        """One collective on all tensors, in the widest of their types"""
        kind = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else tensors[0].dtype
        joint = torch.cat([t.reshape(-1).to(kind) for t in tensors])
        start = time.perf_counter()
        self._call(lambda: collective(joint, group=self.group))
        self.tally.calls += 1
        self.tally.bytes += joint.numel() * joint.element_size()
        self.tally.seconds += time.perf_counter() - start
        parts = joint.split([t.numel() for t in tensors])
        return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def _number(self, number: float, operation: Any) -> float:
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        found = torch.tensor([number], dtype=torch.float64, device=device)
        self._call(lambda: dist.all_reduce(found, operation, group=self.group))
        return float(found)

    def _call(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise RankLost(
                f"rank {self.rank} of {self.count} cannot go on: another rank ended or did not answer in time "
                f"({str(error).strip().splitlines()[0][:200]}). Its own message, if any, says why"
            ) from error


def _broadcast(tensor: Tensor, group: Any) -> None:
    dist.broadcast(tensor, dist.get_global_rank(group, 0) if group else 0, group=group)


class Shard:
    """Of `size` neurons the `rows` that this process holds, with the sums over all of them."""

    def __init__(self, size: int, ranks: Ranks | None = None) -> None:
        self.size, self.ranks = size, ranks or Ranks()
        self.rows = self.ranks.rows(size)
        self.local = self.rows.stop - self.rows.start
        if not self.local:
            raise ValueError(f"{size} neurons cannot be divided over {self.ranks.count} ranks: take fewer ranks")

    @property
    def whole(self) -> bool:
        """Whether this process holds all neurons"""
        return self.ranks.count == 1

    def sum(self, *tensors: Tensor) -> Any:
        return self.ranks.sum(*tensors)

    @property
    def total(self) -> Callable[[Tensor], Tensor] | None:
        """`sum`, or None where there is nothing to sum"""
        return None if self.whole else self.ranks.sum

    def take(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This process' part of a tensor over all neurons, in memory of its own"""
        return tensor if self.whole else tensor.narrow(dim, self.rows.start, self.local).clone()

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The inverse of `take` on the first rank; empty on the others"""
        return self.ranks.gather(tensor, self.size, dim)

    def stats(self) -> dict[str, Any]:
        """What a Solution says about the sharding: nothing for one process"""
        tally = self.ranks.tally
        sums = {"sums": tally.calls, "bytes_summed": tally.bytes, "seconds_in_sums": tally.seconds}
        return {} if self.whole else {"processes": self.ranks.count} | sums


_ranks: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current() -> Ranks:
    """The processes of the surrounding `over_ranks`, counted from zero; outside of it, this one alone"""
    around = _ranks.get()
    return Ranks(around.rank, around.count, around.group) if around else Ranks()


def _warn_of_old_addresses() -> None:
    """torchrun --max-restarts keeps its store, in which new ranks look for each other and find the addresses of those that ended."""
    if (
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):
        warn(
            "torchrun started these ranks again; if they wait for each other until the timeout, start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )


@checked
@contextmanager
def over_ranks(backend: str | None = None, timeout: float = 600.0) -> Iterator[Ranks]:
    """CausalDMFT and WassersteinFlow inside divide their neurons over all processes that torchrun started, which all run the same lines.

    A process group that exists is used; else one is made from torchrun's environment: NCCL where torch finds a GPU (rank r on GPU
    LOCAL_RANK), gloo elsewhere, or the given backend. Without torchrun this process is alone. timeout: seconds after which a rank that
    does not answer ends the run with RankLost. Solutions are complete on the first rank; the others hold f and kernels only.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow, over_ranks
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 5))
        >>> with over_ranks():  # alone here; by `torchrun --nproc-per-node 4 program.py` one of four
        ...     run = WassersteinFlow(particles=64)(problem)
        >>> run.f.shape
        torch.Size([6, 4, 1])
    """
    made = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if made:
        backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        _warn_of_old_addresses()
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    token = _ranks.set(ranks)
    try:
        yield ranks
    finally:
        _ranks.reset(token)
    if made:  # after a failure the group is left as it is: closing it could wait for a rank that is gone
        dist.destroy_process_group()


def normal_part(
    count: int,
    length: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    rows: slice | None = None,
    columns: slice | None = None,
) -> Tensor:
    """randn(count, length)[rows, columns], the same numbers. Drawn in blocks of rows, for memory, where torch's order allows it.

    torch transforms uniform numbers in groups of 16 and treats an incomplete last group apart.
    """
    rows, columns = rows or slice(0, count), columns or slice(0, length)
    if (rows, columns) == (slice(0, count), slice(0, length)):
        return torch.randn(count, length, generator=generator, dtype=dtype)
    if count * length % 16:
        return torch.randn(count, length, generator=generator, dtype=dtype)[rows, columns].clone()
    step = 1 if length % 16 == 0 else 16
    step *= max(1, 2**18 // (step * length))
    part = torch.empty(rows.stop - rows.start, columns.stop - columns.start, dtype=dtype)
    for start in range(0, count, step):
        drawn = torch.randn(min(step, count - start), length, generator=generator, dtype=dtype)
        low, high = max(start, rows.start), min(start + len(drawn), rows.stop)
        if low < high:
            part[low - rows.start : high - rows.start] = drawn[low - start : high - start, columns]
    return part
