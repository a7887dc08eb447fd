"""What `solver.estimate(problem)` says beside what is then measured."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from tests.benchmarks.timing import alone


def _problem(depth: int, activation: str, samples: int, steps: int, tests: int = 0) -> mf.Problem:
    data = mf.digits(n_train=samples, n_test=tests)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps))


CASES = {
    "flow, N = 2^14, P = 32 + 64, float64": (WassersteinFlow(2**14), _problem(1, "tanh", 32, 40, 64)),
    "flow, N = 2^16, P = 32, relu, float32": (WassersteinFlow(2**16, dtype="float32"), _problem(1, "relu", 32, 20)),
    "flow, N = 2^12, P = 8": (WassersteinFlow(2**12), _problem(1, "tanh", 8, 60)),
    "DMFT, S = 4096, L = 2, P = 16": (CausalDMFT(4096), _problem(2, "tanh", 16, 60)),
    "DMFT, S = 8192, L = 3, P = 32": (CausalDMFT(8192, two_time=False), _problem(3, "tanh", 32, 50)),
    "DMFT, S = 4096, L = 2, P = 16, relu": (CausalDMFT(4096), _problem(2, "relu", 16, 60)),
    "DMFT, S = 1024, L = 2, P = 8": (CausalDMFT(1024), _problem(2, "tanh", 8, 30)),
    "DMFT, linear, L = 2, P = 10": (CausalDMFT(512), _problem(2, "linear", 10, 60)),
    "network, N = 512, L = 2, P = 32": (FiniteWidth(512, dtype="float32"), _problem(2, "tanh", 32, 60)),
    "network, N = 2048, L = 2, P = 16": (FiniteWidth(2048, dtype="float32"), _problem(2, "relu", 16, 10)),
    "network, N = 4096, L = 1, P = 32": (FiniteWidth(4096), _problem(1, "tanh", 32, 60)),
}


def cost_model(rounds: int = 3) -> dict[str, Any]:
    """time measured over time estimated, three runs each: median [lowest, highest]; the claim is a factor of two"""
    print("| run | estimated s | measured s | ratio |\n|---|---|---|---|")
    found = {}
    for name, (solver, problem) in CASES.items():
        expected, measured = solver.estimate(problem).seconds, []
        for _ in range(rounds):
            start = time.perf_counter()
            solver(problem)
            measured.append(time.perf_counter() - start)
        found[name] = _compared(name, expected, measured, ".2g")
    return found


def _compared(name: str, expected: float, measured: list[float], form: str) -> dict[str, Any]:
    """Prints the row of one run"""
    low, middle, high = min(measured), median(measured), max(measured)
    print(
        f"| {name} | {expected:{form}} | {middle:{form}} [{low:{form}}, {high:{form}}] "
        f"| {middle / expected:.2f} [{low / expected:.2f}, {high / expected:.2f}] |",
        flush=True,
    )
    return {"estimated": expected, "measured": measured}


_PROBLEM = "mf.Problem(mf.digits(n_train={n}, n_test=0), mf.Network({depth}, {phi!r}), mf.mean_field(1.0), mf.Training({training}))"
MEMORY = {  # a third of a gigabyte or so each, well above what a process has anyway
    "flow, N = 2^18, D = 64": ("WassersteinFlow(2**18)", 1, "tanh", 16, "0.1, 2"),
    "flow, N = 2^18, no snapshots, momentum": ("WassersteinFlow(2**18, snapshots=())", 1, "tanh", 16, "0.1, 2, momentum=0.9"),
    "flow, N = 2^18, 5 snapshots, float32": ("WassersteinFlow(2**18, dtype='float32', snapshots=range(5))", 1, "relu", 64, "0.1, 4"),
    "flow, N = 2^15, gradient flow": ("WassersteinFlow(2**15)", 1, "tanh", 8, "1e-3, 1, optimiser='gradient_flow'"),
    "flow, N = 2^13, P = 350, 10 snapshots": ("WassersteinFlow(2**13, snapshots=range(10))", 1, "tanh", 350, "0.1, 9"),
    "DMFT, S = 2^16, L = 2, P = 16, float32": ("CausalDMFT(2**16, dtype='float32')", 2, "tanh", 16, "0.1, 20"),
    "DMFT, S = 2^15, L = 3, P = 16": ("CausalDMFT(2**15)", 3, "tanh", 16, "0.1, 10"),
    "DMFT, S = 2^14, L = 2, P = 16, relu": ("CausalDMFT(2**14)", 2, "relu", 16, "0.1, 20"),
    "DMFT, S = 2^16, linear, L = 2, P = 16": ("CausalDMFT(2**16)", 2, "linear", 16, "0.1, 20"),
    "network, N = 4096, L = 2": ("FiniteWidth(4096)", 2, "tanh", 16, "0.1, 2"),
    "network, N = 4096, L = 2, momentum": ("FiniteWidth(4096)", 2, "tanh", 16, "0.1, 2, momentum=0.9"),
    "network, N = 2^17, L = 1, float32": ("FiniteWidth(2**17, dtype='float32')", 1, "tanh", 16, "0.1, 2"),
    "network, N = 1024, L = 2, gradient flow": ("FiniteWidth(1024)", 2, "tanh", 16, "1e-3, 1, optimiser='gradient_flow'"),
}  # fmt: skip


def in_its_own_process(solver: str, depth: int, phi: str, samples: int, training: str) -> dict[str, Any]:
    """peak_gb, before_gb (after a run that loads the code), and expected: of the estimate"""
    asked = _PROBLEM.format(n=samples, depth=depth, phi=phi, training=training)
    small = _PROBLEM.format(n=4, depth=depth, phi=phi, training="0.1, 1")
    first = f"solvers.{solver.split('(')[0]}(64)({small})\nasked, solver = {asked}, solvers.{solver}"
    return alone("solver(asked)\nout = dict(expected=solver.estimate(asked).bytes / 1e9)", first)


def memory_model(rounds: int = 3) -> dict[str, Any]:
    """peak of a process that does nothing else, less its peak before the run, over the memory estimated: median [lowest, highest];
    the claim is a factor of two
    """
    print("| run | estimated GB | measured GB | ratio |\n|---|---|---|---|")
    found = {}
    for name, case in MEMORY.items():
        runs = [in_its_own_process(*case) for _ in range(rounds)]
        measured, expected = [run["peak_gb"] - run["before_gb"] for run in runs], runs[0]["expected"]
        found[name] = _compared(name, expected, measured, ".2f")
    return found


BENCHMARKS = {"cost_model": cost_model, "memory_model": memory_model}
