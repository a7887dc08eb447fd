"""What `solver.estimate(problem)` says before a run beside what is then measured."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch

import meanfield as mf
from solvers import (
    CausalDMFT,
    Estimate,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    TangentKernelLimit,
    WassersteinFlow,
    residual,
)
from solvers.dmft.certificate import planned
from tests.benchmarks.timing import alone, over_rounds, spread


def digits(
    depth: int, activation: str, samples: int, steps: int, tests: int = 0, outputs: int = 1, **training: Any
) -> mf.Problem:
    data = mf.digits(range(max(2, outputs)), samples, tests)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps, **training))


def points(
    depth: int,
    activation: str,
    samples: int,
    steps: int,
    inputs: int = 64,
    tests: int = 0,
    scaling: mf.Scaling | None = None,
    loss: str = "squared",
    **training: Any,
) -> mf.Problem:
    """Gaussian points: digits of two classes are few"""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples + tests, inputs, generator=g, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1]).sign()
    held = {"x_test": x[samples:], "y_test": y[samples:]} if tests else {}
    data = replace(mf.Dataset(x[:samples], y[:samples]), **held)
    asked = mf.Training(0.05, steps, **training)
    return mf.Problem(data, mf.Network(depth, activation), scaling or mf.mean_field(1.0), asked, loss=loss)


def lazy(depth: int, activation: str, samples: int, steps: int, tests: int = 0, **more: Any) -> mf.Problem:
    return points(depth, activation, samples, steps, tests=tests, scaling=mf.ntk(), **more)


def stiff(size: float, steps: int = 10) -> mf.Problem:
    """One sample far out, whose tangent kernel is 2 size^2"""
    x = torch.full((1, 1), size, dtype=torch.float64)
    data = mf.Dataset(x, torch.ones_like(x))
    return mf.Problem(data, mf.Network(1, "linear"), training=mf.Training(0.1, steps, "gradient_flow"))


class Certificate:
    """A certificate of a sweep, in the manner of a solver"""

    def __init__(self, samples: int, problem: mf.Problem) -> None:
        self.solution = CausalDMFT(samples)(problem)

    def estimate(self, problem: mf.Problem) -> Estimate:
        return Estimate(planned(self.solution, steps=-1).seconds, float("nan"))

    def __call__(self, problem: mf.Problem) -> None:
        residual(self.solution, steps=-1)


FLOW = "gradient_flow"
SETTINGS = {
    "flow, N = 2^14, P = 32 + 64": lambda: (WassersteinFlow(2**14), digits(1, "tanh", 32, 150, 64)),
    "flow, N = 2^16, P = 32, relu, float32": lambda: (WassersteinFlow(2**16, dtype="float32"), digits(1, "relu", 32, 60)),
    "flow, N = 2^12, P = 8": lambda: (WassersteinFlow(2**12), digits(1, "tanh", 8, 1000)),
    "flow, N = 10^5, P = 1000, D = 2": lambda: (WassersteinFlow(100_000, dtype="float32"), points(1, "tanh", 1000, 20, 2)),
    "flow, N = 2^12, P = 10^4, D = 10, relu": lambda: (WassersteinFlow(2**12), points(1, "relu", 10_000, 30, 10)),
    "flow, N = 2^12, P = 20,000, batches of 100": lambda: (WassersteinFlow(2**12), points(1, "tanh", 20_000, 20, 10, batch_size=100)),
    "the same, a record every 50 steps": lambda: (WassersteinFlow(2**12), points(1, "tanh", 20_000, 400, 10, batch_size=100, record_every=50)),  # noqa: E501
    "flow, N = 2^14, P = 48, C = 3, gelu, momentum": lambda: (WassersteinFlow(2**14), digits(1, "gelu", 48, 60, 0, 3, momentum=0.9)),
    "flow, N = 2^13, P = 64, 20 snapshots": lambda: (WassersteinFlow(2**13, snapshots=range(0, 200, 10)), digits(1, "tanh", 64, 200)),
    "flow, N = 2^12, P = 16, gradient flow": lambda: (WassersteinFlow(2**12), digits(1, "tanh", 16, 20, optimiser=FLOW)),
    "flow, N = 2^12, stiff, x = 10": lambda: (WassersteinFlow(2**12), stiff(10.0)),
    "logits, N = 2^14, P = 32": lambda: (InfiniteLogitsLimit(2**14), points(1, "tanh", 32, 150, scaling=mf.default(64), loss="logistic")),
    "DMFT, S = 4096, L = 2, P = 16": lambda: (CausalDMFT(4096), digits(2, "tanh", 16, 150)),
    "DMFT, S = 4096, L = 3, P = 32": lambda: (CausalDMFT(4096, two_time=False), digits(3, "tanh", 32, 60)),
    "DMFT, S = 4096, L = 2, P = 16, relu": lambda: (CausalDMFT(4096), digits(2, "relu", 16, 60)),
    "DMFT, S = 2048, L = 6, P = 16": lambda: (CausalDMFT(2048), digits(6, "tanh", 16, 60)),
    "DMFT, S = 4096, L = 2, P = 64": lambda: (CausalDMFT(4096), digits(2, "tanh", 64, 60)),
    "DMFT, linear, L = 3, P = 20": lambda: (CausalDMFT(512), digits(3, "linear", 20, 150)),
    "DMFT, S = 2048, L = 2, P = 10, 4 groups": lambda: (CausalDMFT(2048, groups=4), digits(2, "tanh", 10, 100)),
    "DMFT, S = 2048, L = 2, P = 10, gradient flow": lambda: (CausalDMFT(2048), digits(2, "tanh", 10, 60, optimiser=FLOW)),
    "fixed point, S = 4096, L = 1, P = 8": lambda: (FixedPointDMFT(4096), digits(1, "tanh", 8, 25)),
    "fixed point, S = 4096, L = 2, P = 8 + 8": lambda: (FixedPointDMFT(4096), digits(2, "tanh", 8, 14, 8)),
    "fixed point, S = 8192, L = 3, P = 4, relu": lambda: (FixedPointDMFT(8192), digits(3, "relu", 4, 20)),
    "fixed point, linear, L = 2, P = 16": lambda: (FixedPointDMFT(), digits(2, "linear", 16, 22)),
    "network, N = 512, L = 2, P = 32": lambda: (FiniteWidth(512, dtype="float32"), digits(2, "tanh", 32, 800)),
    "network, N = 2048, L = 3, P = 16, relu": lambda: (FiniteWidth(2048, dtype="float32"), digits(3, "relu", 16, 40)),
    "network, N = 256, L = 10, P = 64": lambda: (FiniteWidth(256), digits(10, "tanh", 64, 150)),
    "16 networks, N = 512, L = 2, P = 32": lambda: (FiniteWidth(512, dtype="float32"), digits(2, "tanh", 32, 60), 16),
    "network, N = 512, L = 2, P = 2000, batches of 50": lambda: (FiniteWidth(512), points(2, "tanh", 2000, 20, batch_size=50)),
    "network, N = 256, L = 2, P = 16, gradient flow": lambda: (FiniteWidth(256), digits(2, "tanh", 16, 40, optimiser=FLOW)),
    "lazy, P = 1500 + 300, L = 2, relu": lambda: (TangentKernelLimit(), lazy(2, "relu", 1500, 50, 300)),
    "lazy, P = 2000, T = 1000, L = 3, relu, logistic": lambda: (TangentKernelLimit(), lazy(3, "relu", 2000, 1000, loss="logistic")),
    "lazy, P = 400, L = 3, tanh, 64 starts": lambda: (TangentKernelLimit(), lazy(3, "tanh", 400, 2000), 64),
    "lazy, P = 300, logistic, gradient flow": lambda: (TangentKernelLimit(), lazy(2, "relu", 300, 200, loss="logistic", optimiser=FLOW)),
    "certificate, S = 2048, L = 2, P = 8, T = 12": lambda: (Certificate(2048, digits(2, "tanh", 8, 12)), digits(2, "tanh", 8, 12)),
}  # fmt: skip


MEMORY = {  # a third of a gigabyte or so each, well above what a process has anyway
    "flow, N = 2^18, D = 64": ("WassersteinFlow(2**18)", "digits(1, 'tanh', 16, 2)"),
    "flow, N = 2^18, no snapshots, momentum": ("WassersteinFlow(2**18, snapshots=())", "digits(1, 'tanh', 16, 2, momentum=0.9)"),
    "flow, N = 2^18, 5 snapshots, float32": ("WassersteinFlow(2**18, dtype='float32', snapshots=range(5))", "digits(1, 'relu', 64, 4)"),
    "flow, N = 2^15, gradient flow": ("WassersteinFlow(2**15)", "digits(1, 'tanh', 8, 1, optimiser=FLOW)"),
    "DMFT, S = 2^16, L = 2, P = 16, float32": ("CausalDMFT(2**16)", "digits(2, 'tanh', 16, 20)"),
    "DMFT, S = 2^15, L = 3, P = 16, float64": ("CausalDMFT(2**15, dtype='float64')", "digits(3, 'tanh', 16, 10)"),
    "DMFT, S = 2^14, L = 2, P = 16, relu": ("CausalDMFT(2**14)", "digits(2, 'relu', 16, 20)"),
    "DMFT, S = 2^15, linear, L = 2, P = 16": ("CausalDMFT(2**15)", "digits(2, 'linear', 16, 20)"),
    "network, N = 4096, L = 2": ("FiniteWidth(4096)", "digits(2, 'tanh', 16, 2)"),
    "network, N = 4096, L = 2, momentum": ("FiniteWidth(4096)", "digits(2, 'tanh', 16, 2, momentum=0.9)"),
    "network, N = 2^17, L = 1, float32": ("FiniteWidth(2**17, dtype='float32')", "digits(1, 'tanh', 16, 2)"),
    "network, N = 1024, L = 2, gradient flow": ("FiniteWidth(1024)", "digits(2, 'tanh', 16, 1, optimiser=FLOW)"),
    "fixed point, S = 2^15, L = 2, P = 8": ("FixedPointDMFT(2**15)", "digits(2, 'tanh', 8, 8)"),
    "fixed point, S = 2^16, L = 3, P = 4, float32": ("FixedPointDMFT(2**16, dtype='float32')", "digits(3, 'relu', 4, 6)"),
    "fixed point, linear, L = 2, P = 16": ("FixedPointDMFT()", "digits(2, 'linear', 16, 25)"),
    "lazy, P = 1750, no snapshots": ("TangentKernelLimit(snapshots=())", "lazy(2, 'relu', 1750, 3)"),
    "lazy, P = 350, T = 20,000": ("TangentKernelLimit()", "lazy(2, 'relu', 350, 20_000)"),
}  # fmt: skip

_FIRST = """from tests.benchmarks.estimates import *
asked = {problem}
solver = {solver}
found = solver.estimate(asked)
given_back()"""
_CODE = "solver(asked)\nout = dict(bound=found.bytes / 1e9)"


def given_back() -> None:
    """Memory that is free goes back to the system, where it can be told to"""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def in_its_own_process(solver: str, problem: str) -> dict[str, float]:
    """peak_gb, before_gb and the bound that the estimate gave"""
    return alone(_CODE, _FIRST.format(problem=problem, solver=solver))


def estimates(rounds: int = 1) -> dict[str, Any]:
    """seconds estimated, by a rehearsal of about three, and measured just after it, median [lowest, highest] of their ratio; the claim is a
    factor of two
    """
    print("| run | rehearsal s | estimated s | measured s | measured / estimated |\n|---|---|---|---|---|")
    found = {}
    for name, setting in SETTINGS.items():
        solver, problem, *seeds = setting()
        runs = [_compared(solver, problem, *seeds) for _ in range(rounds)]
        ratios = [measured / expected for _, expected, measured in runs]
        shown = " | ".join(f"{median(values):.2g}" for values in zip(*runs, strict=True))
        print(f"| {name} | {shown} | {spread(over_rounds(ratios))} |", flush=True)
        found[name] = {"runs": runs, "over": over_rounds([max(r, 1 / r) for r in ratios], "lower")}
    return found


def _compared(solver: Any, problem: mf.Problem, *seeds: int) -> tuple[float, float, float]:
    """Seconds of the rehearsal, expected, and measured"""
    start = time.perf_counter()
    expected = solver.estimate(problem, *seeds).seconds
    middle = time.perf_counter()
    solver.ensemble(problem, *seeds) if seeds else solver(problem)
    return middle - start, expected, time.perf_counter() - middle


def bounds(rounds: int = 1) -> dict[str, Any]:
    """peak of a process that does nothing else, less its memory before the run, and the bound that the estimate gave, median [lowest,
    highest] of their ratio; the claim is between a half and one
    """
    print("| run | bound GB | measured GB | measured / bound |\n|---|---|---|---|")
    found = {}
    for name, setting in MEMORY.items():
        runs = [in_its_own_process(*setting) for _ in range(rounds)]
        measured = [run["peak_gb"] - run["before_gb"] for run in runs]
        ratios = [size / run["bound"] for size, run in zip(measured, runs, strict=True)]
        print(
            f"| {name} | {runs[0]['bound']:.2f} | {median(measured):.2f} | {spread(over_rounds(ratios))} |", flush=True
        )
        found[name] = {"runs": runs, "over": over_rounds([max(r, 1 / r) for r in ratios], "lower")}
    return found


BENCHMARKS = {"estimates": estimates, "bounds": bounds}
