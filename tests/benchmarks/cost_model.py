"""What `solver.estimate(problem)` says beside what is then measured."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, FixedPointDMFT, TangentKernelLimit, WassersteinFlow
from solvers.rates import measure_again
from tests.benchmarks.timing import alone, over_rounds


def _problem(
    depth: int, activation: str, samples: int, steps: int, tests: int = 0, classes: tuple[int, ...] = (0, 1)
) -> mf.Problem:
    data = mf.digits(classes, n_train=samples, n_test=tests)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps))


def _lazy(
    depth: int, activation: str, samples: int, tests: int, steps: int, loss: str = "squared", **training: Any
) -> mf.Problem:
    """Gaussian points of 64 dimensions: digits of two classes are few"""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples + tests, 64, generator=g, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1]).sign()
    held = (x[samples:], y[samples:]) if tests else (None, None)
    data = mf.Dataset(x[:samples], y[:samples], x_test=held[0], y_test=held[1])
    return mf.Problem(data, mf.Network(depth, activation), mf.ntk(), mf.Training(0.05, steps, **training), loss=loss)


_FLOW = "gradient_flow"
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
    "fixed point, S = 4096, L = 1, P = 8": (FixedPointDMFT(4096), _problem(1, "tanh", 8, 20)),
    "fixed point, S = 4096, L = 2, P = 8 + 8": (FixedPointDMFT(4096), _problem(2, "tanh", 8, 10, 8)),
    "fixed point, S = 2048, L = 2, P = 16": (FixedPointDMFT(2048), _problem(2, "tanh", 16, 12)),
    "fixed point, S = 8192, L = 3, P = 4, relu": (FixedPointDMFT(8192), _problem(3, "relu", 4, 8)),
    "fixed point, S = 2048, L = 2, P = 6, C = 3": (FixedPointDMFT(2048), _problem(2, "tanh", 6, 8, 0, (0, 1, 2))),
    "fixed point, linear, L = 2, P = 16": (FixedPointDMFT(), _problem(2, "linear", 16, 12)),
    "lazy, P = 1000 + 200, L = 2, relu": (TangentKernelLimit(), _lazy(2, "relu", 1000, 200, 50)),
    "lazy, P = 400, L = 3, tanh": (TangentKernelLimit(), _lazy(3, "tanh", 400, 0, 100)),
    "lazy, P = 100, T = 3000, L = 2, relu": (TangentKernelLimit(), _lazy(2, "relu", 100, 0, 3000, "logistic")),
    "lazy, P = 1000, L = 2, relu, flow": (TangentKernelLimit(), _lazy(2, "relu", 1000, 0, 50, optimiser=_FLOW)),
    "lazy, P = 200, L = 2, relu, flow, logistic": (TangentKernelLimit(), _lazy(2, "relu", 200, 0, 40, "logistic", optimiser=_FLOW)),
}  # fmt: skip


def cost_model(rounds: int = 3) -> dict[str, Any]:
    """time measured over time estimated just before, with rates measured anew: median [lowest, highest]; the claim is a factor of two"""
    print("| run | estimated s | measured s | ratio |\n|---|---|---|---|")
    found = {}
    for name, (solver, problem) in CASES.items():
        expected, measured = [], []
        for _ in range(rounds):
            measure_again()
            expected.append(solver.estimate(problem).seconds)
            start = time.perf_counter()
            solver(problem)
            measured.append(time.perf_counter() - start)
        found[name] = _compared(name, expected, measured, ".2g")
    return found


def _compared(name: str, expected: list[float], measured: list[float], form: str) -> dict[str, Any]:
    """Prints the row of one run. What the regression check compares is by how much estimates are off, in either direction."""
    ratios = [m / e for m, e in zip(measured, expected, strict=True)]
    print(
        f"| {name} | {median(expected):{form}} | {median(measured):{form}} [{min(measured):{form}}, {max(measured):{form}}] "
        f"| {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |",
        flush=True,
    )
    over = over_rounds([max(r, 1 / r) for r in ratios], better="lower")
    return {"estimated": expected, "measured": measured, "over": over}


_PROBLEM = "mf.Problem(mf.digits({classes}, {n}, 0), mf.Network({depth}, {phi!r}), mf.mean_field(1.0), mf.Training({training}))"
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
    "fixed point, S = 2^15, L = 2, P = 8": ("FixedPointDMFT(2**15)", 2, "tanh", 8, "0.1, 8"),
    "fixed point, S = 2^16, L = 3, P = 4, float32": ("FixedPointDMFT(2**16, dtype='float32')", 3, "relu", 4, "0.1, 6"),
    "fixed point, linear, L = 2, P = 16": ("FixedPointDMFT()", 2, "linear", 16, "0.1, 25"),
    "lazy, P = 1750, no snapshots": ("TangentKernelLimit(snapshots=())", 2, "relu", 1750, "0.1, 3", "range(10)"),
    "lazy, P = 600, C = 10": ("TangentKernelLimit()", 2, "relu", 600, "0.1, 3", "range(10)"),
    "lazy, P = 350, T = 20,000": ("TangentKernelLimit()", 2, "relu", 350, "1e-3, 20000"),
}  # fmt: skip


def in_its_own_process(
    solver: str, depth: int, phi: str, samples: int, training: str, classes: str = "(0, 1)"
) -> dict[str, Any]:
    """peak_gb, before_gb (after a run that loads the code), and expected: of the estimate"""
    asked = _PROBLEM.format(n=samples, depth=depth, phi=phi, training=training, classes=classes)
    small = _PROBLEM.format(n=4, depth=depth, phi=phi, training="0.1, 1", classes="(0, 1)")
    name = solver.split("(")[0]
    few = "" if name == "TangentKernelLimit" else "64"
    first = f"solvers.{name}({few})({small})\nasked, solver = {asked}, solvers.{solver}"
    return alone("solver(asked)\nout = dict(expected=solver.estimate(asked).bytes / 1e9)", first)


def memory_model(rounds: int = 3) -> dict[str, Any]:
    """peak of a process that does nothing else, less its peak before the run, over the memory estimated: median [lowest, highest];
    the claim is a factor of two
    """
    print("| run | estimated GB | measured GB | ratio |\n|---|---|---|---|")
    found = {}
    for name, case in MEMORY.items():
        runs = [in_its_own_process(*case) for _ in range(rounds)]
        measured, expected = [run["peak_gb"] - run["before_gb"] for run in runs], [run["expected"] for run in runs]
        found[name] = _compared(name, expected, measured, ".2f")
    return found


BENCHMARKS = {"cost_model": cost_model, "memory_model": memory_model}
