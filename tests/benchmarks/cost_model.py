"""What `solver.estimate(problem)` says beside what is then measured."""

from __future__ import annotations

import time
from typing import Any

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow


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
        low, middle, high = (sorted(measured)[i] for i in (0, rounds // 2, -1))
        print(
            f"| {name} | {expected:.2g} | {middle:.2g} [{low:.2g}, {high:.2g}] "
            f"| {middle / expected:.2f} [{low / expected:.2f}, {high / expected:.2f}] |",
            flush=True,
        )
        found[name] = {"estimated": expected, "measured": measured}
    return found


BENCHMARKS = {"cost_model": cost_model}
