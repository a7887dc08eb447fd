"""Time of CausalDMFT as samples, steps, points and layers grow."""

import time
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar
from unittest import mock

import numpy as np
import torch

import meanfield as mf
from solvers import CausalDMFT
from solvers.dmft import causal_dmft
from solvers.dmft.perceptron import LimitNetwork, LimitPass
from solvers.running.integrator import State
from tests.benchmarks.dmft import Table, digits
from tests.benchmarks.timing import over_rounds, spread


class _Clocked(LimitNetwork):
    """Keeps stamps (wall and processor seconds) and the sum of ranks at each step."""

    wall: ClassVar[list[float]]
    processor: ClassVar[list[float]]
    ranks: ClassVar[list[int]]

    def backward(self, passed: LimitPass) -> State:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.ranks.append(sum(len(layer.e) + len(layer.f) for layer in self.layers))
        return super().backward(passed)


def dmft_growth(device: str = "cpu", samples: int = 8192, steps: int = 60, rounds: int = 3, curve: int = 400) -> Table:
    """processor time (on a GPU wall time) of all steps with S, T, P or L doubled, over that of the base case (S = 8192, T = 60, P = 16,
    L = 3) in the same round: median [min, max]; tanh, digits 0/1, gamma0 = 1, eta = 0.1, plain draws, tolerance 0.03. Expected: the
    ratio of the sums over steps of S P x (ranks of all layers). Then a step's time against its number; time per sample and rank.
    """
    solver = CausalDMFT(
        samples, draws="plain", tolerance=0.03, device=device, two_time=False, keep_neurons=False, snapshots=()
    )
    twice = replace(solver, samples=2 * samples)
    cases = {
        "base": (solver, digits(16, 3, "tanh", steps)),
        "2 S": (twice, digits(16, 3, "tanh", steps)),
        "2 T": (solver, digits(16, 3, "tanh", 2 * steps)),
        "2 P": (solver, digits(32, 3, "tanh", steps)),
        "2 L": (solver, digits(16, 6, "tanh", steps)),
    }
    clock = 1 if torch.cuda.is_available() and device != "cpu" else 0
    _steps(solver, digits(16, 3, "tanh", 5))  # the first calls load code
    runs = [{name: _steps(*case) for name, case in cases.items()} for _ in range(rounds)]
    print(
        "| | s | times the base case | expected | sum of ranks at the end | ns per sample and rank |\n"
        + "|---" * 6
        + "|"
    )
    found: Table = {}
    work = {n: own.samples * asked.data.samples * sum(runs[0][n][2]) for n, (own, asked) in cases.items()}
    for name, (own, _) in cases.items():
        seconds = over_rounds([sum(turn[name][clock]) for turn in runs])
        grown = over_rounds([sum(turn[name][clock]) / sum(turn["base"][clock]) for turn in runs], "lower")
        expected, ranks = work[name] / work["base"], runs[0][name][2]
        each = 1e9 * seconds["median"] / own.samples / sum(ranks)
        found[name] = {"seconds": seconds["median"], "expected": expected, "ranks": ranks[-1], "ns": each}
        found[name] |= {} if name == "base" else {"grown": grown}
        print(
            f"| {name} | {spread(seconds)} | {spread(grown)} | {expected:.3g} | {ranks[-1]} | {each:.3g} |", flush=True
        )
    return found | {"curve": _curve(_steps(solver, digits(16, 3, "tanh", curve)), clock)}


def _curve(run: tuple[list[float], list[float], list[int]], clock: int) -> Table:
    """Prints the time of a step against its number"""
    ms, ranks, steps = 1e3 * np.array(run[clock]), run[2], len(run[clock])
    print("\n| steps | sum of ranks at the end | ms per step: median [quartiles] |\n|---|---|---|")
    ends = [0, 10, 25, 50, *range(100, steps, 50)]
    for a, b in pairwise([end for end in ends if end < steps] + [steps]):
        low, middle, high = np.percentile(ms[a:b], [25, 50, 75])
        print(f"| {a} .. {b} | {ranks[b]} | {middle:.3g} [{low:.3g}, {high:.3g}] |")
    return {"processor_ms": [1e3 * v for v in run[0]], "wall_ms": [1e3 * v for v in run[1]], "ranks": ranks}


def _steps(solver: CausalDMFT, asked: mf.Problem) -> tuple[list[float], list[float], list[int]]:
    """Processor and wall seconds of each step, and the sum of ranks when it began"""
    _Clocked.wall, _Clocked.processor, _Clocked.ranks = [], [], []
    with mock.patch.object(causal_dmft, "LimitNetwork", _Clocked):
        solver(asked)
    return np.diff(_Clocked.processor).tolist(), np.diff(_Clocked.wall).tolist(), _Clocked.ranks


BENCHMARKS = {"dmft_growth": dmft_growth}
