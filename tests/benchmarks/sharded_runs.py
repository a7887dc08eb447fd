"""What each process of the benchmarks in sharding.py runs: `torchrun .. -m tests.benchmarks.sharded_runs NAME JSON`.

It prints a JSON dictionary of what this process measured.
"""

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import meanfield as mf
from solvers import CausalDMFT, WassersteinFlow
from solvers.dmft import causal_dmft
from solvers.dmft.basis import Rows
from solvers.dmft.perceptron import LimitNetwork, LimitPass
from solvers.running.integrator import State
from solvers.running.sharding import Ranks, over_ranks
from tests.memory import forget_peak, peak

SMALL, LARGE = 64, 2**20  # bytes of the sums that give latency and bandwidth
Found = dict[str, Any]


def reduce(ranks: Ranks, sizes: list[int]) -> Found:
    """Microseconds of an all-reduce by bytes; and of the first two ranks' bare exchange of half of them each way, as two ranks of a ring"""
    bare = bare_exchanges(ranks, [size // 2 for size in sizes])
    us = [1e6 * one_sum(ranks, size, 300 if size < 2**20 else 40) for size in sizes]
    return {"us": us, "bare_us": [1e6 * seconds for seconds in bare]}


def dmft(ranks: Ranks, samples: int, points: int, steps: int, sums: int = 200) -> Found:
    """Every step of a sweep: its time, its sums, whether a basis grew; and the memory. Before it, so many small sums are timed"""
    rows: list[Found] = []

    class Stamped(LimitNetwork):
        def backward(self, passed: LimitPass) -> State:
            tally, sizes = self.shard.ranks.tally, [(len(q.e), len(q.f)) for q in self.layers]
            rows.append(
                {
                    "at": time.perf_counter(), "calls": tally.calls, "bytes": tally.bytes, "seconds": tally.seconds,
                    "bases": sizes, "matrices": sum(map(_bytes, matrices(self))), "live": live() if len(rows) == steps - 1 else 0,
                }
            )  # fmt: skip
            return super().backward(passed)

    def solve(samples: int, steps: int) -> mf.Solution:
        training = mf.Training(0.02, steps)
        asked = mf.Problem(_data(points), mf.Network(3, "tanh"), mf.mean_field(1.0), training)
        options = dict(draws="plain", two_time=False, keep_neurons=False, snapshots=())
        with mock.patch.object(causal_dmft, "LimitNetwork", Stamped):
            return CausalDMFT(samples, **options)(asked)  # type: ignore[arg-type]

    def measured() -> Found:
        rows.clear()
        found = solve(samples, steps)
        return {"rows": rows, "f": found.f.flatten().tolist(), "seconds": found.stats["seconds"]}

    solve(8 * points, 2)
    return _with_memory(ranks, measured, sums)


def flow(ranks: Ranks, particles: int, points: int, steps: int, sums: int = 200) -> Found:
    """A run of WassersteinFlow: seconds of an evaluation of f with its step, sums, memory. Before it, so many small sums are timed"""

    def solve(particles: int, steps: int) -> mf.Solution:
        asked = mf.Problem(_data(points), mf.Network(1, "tanh"), mf.mean_field(1.0), mf.Training(0.2, steps))
        options = dict(initial="iid", engine="chunked", dtype="float32", snapshots=())
        return WassersteinFlow(particles, **options)(asked)  # type: ignore[arg-type]

    def measured() -> Found:
        found = solve(particles, steps)
        stats = {key: found.stats.get(key, 0) for key in ("seconds", "sums", "bytes_summed", "seconds_in_sums")}
        return stats | {"f": found.f.flatten().tolist()}

    solve(1024, 2)
    return _with_memory(ranks, measured, sums)


def latency(ranks: Ranks, sweep: Found, cloud: Found) -> Found:
    """On a slow wire: bare exchanges of SMALL and LARGE bytes, sums of SMALL, then a sweep and a flow where their options are given"""
    small, large = bare_exchanges(ranks, [SMALL, LARGE], 20) or (0.0, 0.0)
    found: Found = {"small": small, "large": large, "sum": one_sum(ranks, SMALL, 30)}
    return found | {"sweep": dmft(ranks, **sweep, sums=0), "cloud": flow(ranks, **cloud, sums=0)} if sweep else found


def _data(points: int) -> mf.Dataset:
    return mf.single_index_teacher(n_train=points, n_test=0, inputs=16, seed=1)


def _with_memory(ranks: Ranks, measured: Callable[[], Found], sums: int) -> Found:
    """After a small run, which has loaded all libraries: latency and bandwidth, then the run, with its peak above what was held before."""
    cost = {"small": one_sum(ranks, SMALL, sums), "large": one_sum(ranks, LARGE, sums // 5)} if sums else {}
    gc.collect()
    before = forget_peak()
    return measured() | {"peak": peak() - before, "sums_cost": cost}


def one_sum(ranks: Ranks, size: int, repetitions: int) -> float:
    """Seconds of one all-reduce of `size` bytes: the median"""
    if ranks.count == 1:
        return 0.0
    x, times = torch.zeros(size // 4), []
    for _ in range(repetitions + 10):
        start = time.perf_counter()
        dist.all_reduce(x)
        times.append(time.perf_counter() - start)
    return median(times[10:])


def bare_exchanges(ranks: Ranks, sizes: Sequence[int], repetitions: int = 100) -> list[float]:
    """Seconds in which so many bytes go from the first rank to the second over a socket of their own, and as many come back: medians.

    Other ranks, and one alone, measure nothing.
    """
    if ranks.count == 1:
        return []
    host = os.environ["MASTER_ADDR"]
    with socket.create_server((host, 0)) if ranks.first else nullcontext() as server:
        port = torch.tensor([server.getsockname()[1] if server else 0])
        dist.broadcast(port, 0)
        if ranks.rank > 1:
            return []
        with server.accept()[0] if server else socket.create_connection((host, int(port))) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return [_exchange(line, ranks.first, size, repetitions) for size in sizes]


def _exchange(line: socket.socket, first: bool, size: int, repetitions: int) -> float:
    there, times = bytes(size), []
    for _ in range(repetitions + 10):
        start = time.perf_counter()
        if first:
            line.sendall(there)
        line.recv(size, socket.MSG_WAITALL)
        if not first:
            line.sendall(there)
        times.append(time.perf_counter() - start)
    return median(times[10:])


def live() -> int:
    """Bytes of all tensors that are alive in this process, each storage once"""
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def matrices(network: LimitNetwork) -> list[Rows]:
    """The matrices over neurons that a network holds, of all its layers"""
    layers = [
        (q.e.fields, q.f.fields, q.u, q.r, q.known_below[0].fields, q.known_above[0].fields) for q in network.layers
    ]
    return [rows for layer in layers for rows in layer]


def _bytes(rows: Rows) -> int:
    return rows.rows.numel() * rows.rows.element_size()


RUNS = {run.__name__: run for run in (reduce, dmft, flow, latency)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    with over_ranks() as everyone:
        print(json.dumps(RUNS[sys.argv[1]](everyone, **json.loads(sys.argv[2]))))
