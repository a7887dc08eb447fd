"""Neurons and particles divided over processes on this machine (gloo, one thread each): sums, speed and memory against one process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean, median
from typing import Any

import numpy as np

from tests.benchmarks.sharded_runs import LARGE, SMALL
from tests.benchmarks.timing import over_rounds, spread
from tests.wires import Machine

Table = dict[str, Any]
Found = list[Table]  # of every rank
RANKS = (1, 2, 4)
HERE = Machine("127.0.0.1", "lo", ())


def together(name: str, options: Table, count: int, machines: Sequence[Machine] = ()) -> Found:
    """What each of `count` processes that share a run of sharded_runs measured; on the loopback, or one on each of the machines"""
    on = machines or [HERE] * count
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": on[0].address, "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [*machine.enter, sys.executable, "-m", "tests.benchmarks.sharded_runs", name, json.dumps(options)],
            env=os.environ | address | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": machine.interface},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, machine in enumerate(on)
    ]
    said = [run.communicate() for run in runs]
    for run, (_, words) in zip(runs, said, strict=True):
        if run.returncode:
            raise RuntimeError(f"a measured process failed: {words[-2000:]}")
    return [json.loads(words.splitlines()[-1]) for words, _ in said]


def _rounds(name: str, options: Table, rounds: int, ranks: Sequence[int] = RANKS) -> list[dict[int, Found]]:
    """Numbers of processes take turns, so that a busy machine slows all of them alike."""
    return [{count: together(name, options, count) for count in ranks} for _ in range(rounds)]


def all_reduce(rounds: int = 3) -> Table:
    """one all-reduce (float32, gloo on the loopback): microseconds by bytes, median [range] over rounds of the median of 300 (40 at 4 MB);
    and its fit 2 (R - 1) alpha + 2 (R - 1) / R x bytes / bandwidth. The limit: a ring of two sends half of the bytes each way, twice;
    a bare socket of the same two processes sends them there and back
    """
    sizes = [2**k for k in (6, 10, 14, 18, 22)]
    measured, found = _rounds("reduce", {"sizes": sizes}, rounds, RANKS[1:]), {}
    heads = ["ranks", *(f"{size} B" for size in sizes), "alpha, us", "bandwidth, GB/s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for count in RANKS[1:]:
        times = [extent([run[count][0]["us"][i] for run in measured]) for i in range(len(sizes))]
        alpha, rate = _fit(count, sizes[0], times[0]["median"] * 1e-6, sizes[-1], times[-1]["median"] * 1e-6)
        found[str(count)] = {"us": times, "alpha_us": 1e6 * alpha, "gb_per_s": rate / 1e9}
        print(f"| {count} | {' | '.join(map(spread, times))} | {1e6 * alpha:.3g} | {rate / 1e9:.2g} |", flush=True)
    two = [run[2][0] for run in measured]
    bare = [extent([run["bare_us"][i] for run in two]) for i in range(len(sizes))]
    over = [over_rounds([run["us"][i] / run["bare_us"][i] for run in two], "lower") for i in range(len(sizes))]
    print(f"| bare, 2 | {' | '.join(map(spread, bare))} | | |\n| 2 over bare | {' | '.join(map(spread, over))} | | |")
    found["2"]["over bare"] = {f"{size} B": ratio for size, ratio in zip(sizes, over, strict=True)}
    return found


def sharded_dmft(samples: int = 2**15, points: int = 32, steps: int = 16, rounds: int = 3) -> Table:
    """a step of CausalDMFT (tanh, L = 3, float32, plain draws) by processes of one thread each, interleaved rounds: median [range].
    A steady step is one in which no field stuck out of its basis: its sums and bytes are asserted to be the model's. Model: 1 process / R
    + sums x one sum, from latency and bandwidth measured in the same processes. Memory is per process, the largest: matrices of the bases;
    all tensors alive at the last step; peak of the process during the run above what it held before, libraries loaded
    """
    measured = _rounds("dmft", {"samples": samples, "points": points, "steps": steps}, rounds)
    print(f"S = {samples}, P = {points}, T = {steps}\n")
    found = {str(count): _dmft_row(measured, count, points) for count in RANKS}
    heads = [
        "processes",
        "steady step, ms",
        "speed-up",
        "model, ms",
        "sums",
        "kB",
        "ms in sums",
        "growing step, ms",
        "sums",
        "whole run, s",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for count, row in found.items():
        cells = [spread(row["steady"]), spread(row["speed_up"]), spread(row["model"]), f"{row['sums']}", f"{row['kB']:.3g}",
                 spread(row["in_sums"]), spread(row["growing"]), f"{row['growing_sums']:.3g}", spread(row["seconds"])]  # fmt: skip
        print(f"| {count} | {' | '.join(cells)} |")
    print(f"\nsteady steps: {found['1']['steady_steps']} of {steps - 2}")
    _print_memory(found, {"matrices": "matrices", "live": "all tensors", "peak": "peak"})
    return found


def _dmft_row(measured: list[dict[int, Found]], count: int, points: int) -> Table:
    alone, own = ([_steps(run, of) for run in measured] for of in (1, count))
    for step in own[0][0]:
        assert count == 1 or (step["sums"], step["bytes"]) == steady_model(step["bases"], points, points), step
    steady = [[_mean(part, "ms") for part in steps] for steps in own]
    one = [_mean(steps[0], "ms") for steps in alone]
    sums, size = own[0][0][-1]["sums"], own[0][0][-1]["bytes"]
    return {
        "steady": extent([ms for ms, _ in steady]), "growing": extent([ms for _, ms in steady]),
        "speed_up": _speed_up(count, [a / ms for a, (ms, _) in zip(one, steady, strict=True)]),
        "model": extent([a / count + 1e3 * _model(run[count][0], count, sums, size) for a, run in zip(one, measured, strict=True)]),
        "sums": sums, "kB": size / 1e3, "in_sums": extent([_mean(steps[0], "in_sums") for steps in own]),
        "growing_sums": _mean(own[0][1], "sums"), "steady_steps": len(own[0][0]),
        "seconds": extent([run[count][0]["seconds"] for run in measured]), "deviation": _deviation(measured, count),
        "matrices": _memory(measured, count, lambda rank: rank["rows"][-1]["matrices"]),
        "live": _memory(measured, count, lambda rank: rank["rows"][-1]["live"]),
        "peak": _memory(measured, count, lambda rank: rank["peak"]),
    }  # fmt: skip


def steady_model(bases: Sequence[Sequence[int]], points: int, gradients: int, outputs: int = 1) -> tuple[int, int]:
    """Sums and bytes of a step of CausalDMFT(two_time=False), float32, none of whose bases (K, J) of each matrix grows: per matrix one sum
    forward, (K + J) points and a square, one backward, (J + K) gradients and a square; and one sum of the outputs
    """
    numbers = sum((k + j) * (points + gradients) + 2 for k, j in bases) + points * outputs
    return 2 * len(bases) + 1, 4 * numbers


def _steps(run: dict[int, Found], count: int) -> tuple[list[Table], list[Table]]:
    """Steady and growing steps: what lies between two stamps; the first, which loads, is left out. The sums of many tell which are which"""

    def between(rows: list[Table]) -> list[Table]:
        return [
            {
                "ms": 1e3 * (b["at"] - a["at"]),
                "sums": b["calls"] - a["calls"],
                "bytes": b["bytes"] - a["bytes"],
                "in_sums": 1e3 * (b["seconds"] - a["seconds"]),
                "bases": b["bases"],
            }
            for a, b in pairwise(rows[1:])
        ]

    own, told = (between(run[of][0]["rows"]) for of in (count, max(count, RANKS[1])))
    least = min(step["sums"] for step in told)
    steady = [step["sums"] == least for step in told]
    return [s for s, still in zip(own, steady, strict=True) if still], [
        s for s, still in zip(own, steady, strict=True) if not still
    ]


def sharded_flow(particles: int = 2**20, points: int = 64, steps: int = 4, rounds: int = 3) -> Table:
    """a run of WassersteinFlow (tanh, D = 16, float32) by processes of one thread each, interleaved rounds: median [range].
    One sum of the outputs, 4 P bytes, per evaluation is asserted. Model and memory as for sharded_dmft; state: a, w, m of the particles,
    which the first gathers at the end
    """
    measured = _rounds("flow", {"particles": particles, "points": points, "steps": steps}, rounds)
    print(f"N = {particles}, P = {points}, T = {steps}\n")
    found = {str(count): _flow_row(measured, count, points, steps) for count in RANKS}
    for count in RANKS:
        found[str(count)]["state"] = extent([4e-6 * 18 * -(-particles // count)])
    heads = ["processes", "run, s", "speed-up", "model, s", "sums", "bytes of each", "ms in sums"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for count, row in found.items():
        cells = [
            spread(row["seconds"]),
            spread(row["speed_up"]),
            spread(row["model"]),
            f"{row['sums']}",
            f"{4 * points}",
        ]
        print(f"| {count} | {' | '.join(cells)} | {spread(row['in_sums'])} |")
    _print_memory(
        found, {"state": "own part of the state", "peak": "peak of the first", "others": "peak of the others"}
    )
    return found


def _flow_row(measured: list[dict[int, Found]], count: int, points: int, steps: int) -> Table:
    own, one = [run[count][0] for run in measured], [run[1][0]["seconds"] for run in measured]
    sums = own[0]["sums"]
    assert count == 1 or (sums, own[0]["bytes_summed"]) == (steps + 1, 4 * points * (steps + 1)), own[0]
    return {
        "seconds": extent([rank["seconds"] for rank in own]),
        "speed_up": _speed_up(count, [a / rank["seconds"] for a, rank in zip(one, own, strict=True)]),
        "model": extent([a / count + _model(rank, count, sums, own[0]["bytes_summed"]) for a, rank in zip(one, own, strict=True)]),
        "sums": sums, "in_sums": extent([1e3 * rank["seconds_in_sums"] for rank in own]),
        "deviation": _deviation(measured, count),
        "peak": _memory(measured, count, lambda rank: rank["peak"], slice(1)),
        "others": _memory(measured, count, lambda rank: rank["peak"], slice(min(1, count - 1), None)),
    }  # fmt: skip


def _fit(count: int, small: int, fast: float, large: int, slow: float) -> tuple[float, float]:
    """Latency alpha (s) and bandwidth (bytes/s) of a ring from the seconds of a small and of a large sum"""
    extra = max(1e-9, slow - fast)
    return fast / (2 * (count - 1)), 2 * (count - 1) / count * (large - small) / extra


def _model(rank: Table, count: int, sums: int, size: int) -> float:
    """Seconds of `sums` sums of `size` bytes in all"""
    if count == 1:
        return 0.0
    alpha, rate = _fit(count, SMALL, rank["sums_cost"]["small"], LARGE, rank["sums_cost"]["large"])
    return 2 * (count - 1) * (sums * alpha + size / count / rate)


def _deviation(measured: list[dict[int, Found]], count: int) -> float:
    return float(np.abs(np.array(measured[0][count][0]["f"]) - np.array(measured[0][1][0]["f"])).max())


def _memory(
    measured: list[dict[int, Found]], count: int, of: Callable[[Table], int], ranks: slice = slice(None)
) -> dict[str, float]:
    """MB: the largest of the ranks, over rounds"""
    return extent([max(map(of, run[count][ranks])) / 1e6 for run in measured])


def _print_memory(found: Table, columns: dict[str, str]) -> None:
    """MB per process, and the share of what one process needs"""
    print(f"\n| processes | {', MB | '.join(columns.values())}, MB | deviation of f |\n|{'---|' * (len(columns) + 2)}")
    for count, row in found.items():
        shares = {key: row[key]["median"] / found["1"][key]["median"] for key in columns}
        cells = [f"{spread(row[key])}: {shares[key]:.2f}" for key in columns]
        print(f"| {count} | {' | '.join(cells)} | {row['deviation']:.1g} |", flush=True)


def _mean(steps: list[Table], key: str) -> float:
    """The mean for counts, the median for times"""
    values = [step[key] for step in steps]
    return 0.0 if not values else mean(values) if key == "sums" else median(values)


def _speed_up(count: int, values: list[float]) -> Table:
    """Of two processes the regression check looks after it; more of them may share a core"""
    return over_rounds(values) if count == 2 else extent(values)


def extent(values: list[float]) -> dict[str, float]:
    """Of the rounds, as `spread` prints them"""
    return {"min": min(values), "median": median(values), "max": max(values)}


BENCHMARKS = {"all_reduce": all_reduce, "sharded_dmft": sharded_dmft, "sharded_flow": sharded_flow}
