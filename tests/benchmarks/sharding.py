"""Neurons and particles divided over processes on this machine (gloo): sums, speed and memory against one process."""

import json
import os
import socket
import subprocess
import sys
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks.timing import spread

Table = dict[str, Any]
RANKS = (1, 2, 4)

_BEFORE = """
import json, resource, sys, time
import torch
import torch.distributed as dist
import meanfield as mf
from meanfield.storage import load, save
from solvers import CausalDMFT, WassersteinFlow
from solvers.sharding import over_ranks
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
before = peak()
with over_ranks() as ranks:
"""


def together(code: str, count: int) -> list[Table]:
    """Run code in `count` processes that share the work, one thread each; each leaves a JSON-able dictionary `out`"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = _BEFORE + "".join(f"    {line}\n" for line in code.splitlines())
    code += "    out |= dict(peak_gb=peak(), before_gb=before)\nprint(json.dumps(out))\n"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | address | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [run.communicate() for run in runs]
    for run, (_, words) in zip(runs, said, strict=True):
        if run.returncode:
            raise RuntimeError(f"a measured process failed: {words[-2000:]}")
    return [json.loads(words.splitlines()[-1]) for words, _ in said]


def all_reduce() -> Table:
    """one all-reduce (float32, gloo on the loopback): microseconds by bytes, median [quartiles] of 300; and its fit
    2 (R - 1) alpha + 2 (R - 1) / R x bytes / bandwidth
    """
    sizes = [2**k for k in (6, 10, 14, 18, 22)]
    code = (
        f"out = dict(times=[])\nfor size in {sizes}:\n    x, own = torch.zeros(size // 4), []\n"
        "    for i in range(320 if size < 2**20 else 40):\n        start = time.perf_counter()\n        dist.all_reduce(x)\n"
        "        own.append(1e6 * (time.perf_counter() - start))\n    out['times'].append(own[len(own) // 16:])"
    )
    found: Table = {}
    print("| ranks | " + " | ".join(f"{s} B" for s in sizes) + " | alpha, us | bandwidth, GB/s |\n|---|" + "---|" * 7)
    for count in RANKS[1:]:
        times = together(code, count)[0]["times"]
        quarters = [np.percentile(own, [25, 50, 75]) for own in times]
        alpha = float(quarters[0][1]) / (2 * (count - 1))
        rate = 2 * (count - 1) / count * sizes[-1] / max(1e-3, float(quarters[-1][1] - quarters[0][1])) * 1e-3
        found[str(count)] = {"us": [list(map(float, q)) for q in quarters], "alpha_us": alpha, "gb_per_s": rate}
        cells = " | ".join(f"{q[1]:.3g} [{q[0]:.3g}, {q[2]:.3g}]" for q in quarters)
        print(f"| {count} | {cells} | {alpha:.3g} | {rate:.2g} |", flush=True)
    return found


_DMFT = """
from unittest import mock
from solvers import causal_dmft
from solvers.limit_network import LimitNetwork
stamps = []
class Stamped(LimitNetwork):
    def advance(self, state, f, weights):
        tally = self.shard.ranks.tally
        stamps.append((time.perf_counter(), time.process_time(), tally.calls, tally.bytes, tally.seconds))
        self.rows = sum(len(r._buffer) * r._buffer.shape[1] for q in self.layers for r in (q.e.fields, q.f.fields, q.u, q.acc, q.r))
        Stamped.last = self
        return super().advance(state, f, weights)
data = mf.digits((0, 1), n_train=16, n_test=0)
asked = mf.Problem(data, mf.Network(3, 'tanh'), mf.mean_field(1.0), mf.Training(0.1, STEPS))
solver = CausalDMFT(SAMPLES, draws='plain', tolerance=0.01, two_time=False, keep_neurons=False, snapshots=())
with mock.patch.object(causal_dmft, 'LimitNetwork', Stamped):
    s = solver(asked)
ranks_of = [len(b) for q in Stamped.last.layers for b in (q.e, q.f)]
out = dict(stamps=stamps, f=s.f.flatten().tolist(), ranks=ranks_of, rows_gb=4e-9 * Stamped.last.rows)
"""

_FLOW = """
data = mf.single_index_teacher(n_train=256, n_test=0, inputs=16, seed=1)
asked = mf.Problem(data, mf.Network(1, 'tanh'), mf.mean_field(1.0), mf.Training(0.2, STEPS))
s = WassersteinFlow(SAMPLES, initial='iid', engine='chunked', dtype='float32', snapshots=())(asked)
step = s.stats['seconds'] / (STEPS + 1)
sums = [s.stats.get(k, 0) for k in ('sums', 'bytes_summed', 'seconds_in_sums')]
out = dict(seconds=s.stats['seconds'], sums=sums, f=s.f.flatten().tolist())
"""


def sharded_dmft(samples: int = 2**13, steps: int = 16) -> Table:
    """a step of CausalDMFT, tanh, L = 3, P = 16, float32, plain draws, T = 16, late half, by processes of one thread each; two rounds.
    Sums and bytes per step: medians; a step without new directions takes 2 L - 1 = 5 sums. GB: matrices of the layers held by a process
    """
    code = _DMFT.replace("SAMPLES", str(samples)).replace("STEPS", str(steps))
    rounds = [{count: together(code, count) for count in RANKS} for _ in range(2)]
    print(
        "| processes | wall ms | processor ms of each | sums (first half) | kB summed | ms in sums | GB | peak less start | deviation |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    found: Table = {}
    reference = np.array(rounds[0][1][0]["f"])
    for count in RANKS:
        wall, processor, summed = [], [], []
        for runs in rounds:
            stamps = np.array(runs[count][0]["stamps"])
            late = np.array([b - a for a, b in pairwise(stamps)])[steps // 2 :]
            wall.append(1e3 * median(late[:, 0]))
            processor.append(1e3 * median(late[:, 1]))
            summed.append([median(late[:, 2]), median(late[:, 3]), 1e3 * median(late[:, 4])])
        runs = rounds[-1][count]
        row = {
            "wall": _range(wall), "processor": _range(processor), "sums": summed[-1][0], "kB": summed[-1][1] / 1e3,
            "in_sums": _range([s[2] for s in summed]), "gb": max(r["rows_gb"] for r in runs),
            "peak": max(r["peak_gb"] - r["before_gb"] for r in runs), "ranks": runs[0]["ranks"],
            "deviation": float(np.abs(np.array(runs[0]["f"]) - reference).max()),
            "first_half_sums": float(np.diff(np.array(runs[0]["stamps"])[: steps // 2, 2]).mean()),
        }  # fmt: skip
        found[str(count)] = row
        cells = [spread(row["wall"]), spread(row["processor"]), f"{row['sums']:.0f} ({row['first_half_sums']:.0f})", f"{row['kB']:.3g}",
                 spread(row["in_sums"]), f"{row['gb']:.3g}", f"{row['peak']:.3g}", f"{row['deviation']:.1g}"]  # fmt: skip
        print(f"| {count} | {' | '.join(cells)} |", flush=True)
    print(f"directions (E, F of each layer): {found['1']['ranks']}")
    return found


def sharded_flow(particles: int = 2**16, steps: int = 8) -> Table:
    """a run of WassersteinFlow, tanh, D = 16, P = 256, float32, T = 8, by processes of one thread each; two rounds"""
    code = _FLOW.replace("SAMPLES", str(particles)).replace("STEPS", str(steps))
    rounds = [{count: together(code, count) for count in RANKS} for _ in range(2)]
    print(
        "| processes | s | ratio to one process | sums | bytes per sum | ms in sums | peak less start, GB | deviation of f |\n|"
        + "---|" * 8
    )
    found: Table = {}
    for count in RANKS:
        seconds = [runs[count][0]["seconds"] for runs in rounds]
        ratios = [runs[1][0]["seconds"] / runs[count][0]["seconds"] for runs in rounds]
        last = rounds[-1][count]
        apart = np.abs(np.array(last[0]["f"]) - np.array(rounds[-1][1][0]["f"])).max()
        calls, size, _ = last[0]["sums"]
        found[str(count)] = {
            "seconds": _range(seconds), "ratio": _range(ratios), "sums": calls, "bytes": size, "deviation": float(apart),
            "in_sums": _range([1e3 * runs[count][0]["sums"][2] for runs in rounds]),
            "peak": max(r["peak_gb"] - r["before_gb"] for r in last),
        }  # fmt: skip
        row = found[str(count)]
        print(f"| {count} | {spread(row['seconds'])} | {spread(row['ratio'])} | {calls} | {size / max(1, calls):.0f} | "
              f"{spread(row['in_sums'])} | {row['peak']:.3g} | {apart:.1g} |", flush=True)  # fmt: skip
    return found


def _range(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


BENCHMARKS = {"all_reduce": all_reduce, "sharded_dmft": sharded_dmft, "sharded_flow": sharded_flow}
