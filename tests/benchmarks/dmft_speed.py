"""CausalDMFT against the matrix products that it makes, at the rate the machine shows, and against iterating to the fixed point."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import meanfield as mf
from meanfield.checking import checks
from solvers import CausalDMFT, FixedPointDMFT
from tests.benchmarks.dmft import Table, clocked, digits, outputs
from tests.benchmarks.timing import alone, over_rounds, spread

_SIDE = 2000


def _product(*shapes: Sequence[int], **_: Any) -> int:
    """Of the last two"""
    left, right = shapes[-2:]
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


_UNCOUNTED = dict.fromkeys(
    (torch.ops.aten.addmm_, torch.ops.aten.baddbmm_, torch.ops.aten.mv), _product
)  # by torch itself


def operations(call: Callable[[], Any]) -> int:
    """Additions and multiplications of all matrix products of a call, each product m n k counted as 2 m n k; decompositions are left out"""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        call()
    return counter.get_total_flops()


def rate(dtype: str, device: str = "cpu") -> float:
    """Operations per second (wall) of a product of square matrices of side 2000: the median of three"""
    square, seconds = torch.ones(_SIDE, _SIDE, dtype=checks.DTYPES[dtype], device=device), []
    for _ in range(4):
        start = time.perf_counter()
        product = square @ square
        product[0, 0].item()  # a GPU has finished
        seconds.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / median(seconds[1:])


_PROBLEM = "asked = mf.Problem(mf.digits((0, 1), n_train={}, n_test=0), mf.Network({}, {!r}), mf.mean_field(1.0), mf.Training(0.1, {}))\n"
_SOLVER = "solver = solvers.CausalDMFT({}, dtype={!r}, device={!r}, two_time={}, keep_neurons=False)\n"
_FIRST = "from tests.benchmarks.dmft_speed import operations, rate\n"
_TIMED = """rates = [rate(solver.dtype, solver.device)]
wall, processor = time.perf_counter(), time.process_time()
found = solver(asked)
out = dict(wall=time.perf_counter() - wall, processor=time.process_time() - processor, ranks=found.stats['ranks'])
out |= dict(rates=[*rates, rate(solver.dtype, solver.device)])"""
_COUNTED = "out[{!r}] = operations(lambda: solver(asked))\n"


def dmft_speed(
    device: str = "cpu",
    repetitions: int = 3,
    samples: int = 8192,
    steps: int = 100,
    problems: Sequence[tuple[str, int, int]] = (("tanh", 3, 64), ("relu", 2, 32)),
) -> Table:
    """wall time and peak memory of one run in a process of its own, with and without the two-time kernels; digits 0/1, gamma0 = 1,
    eta = 0.1, T = 100, 8192 samples, float32, three processes each, median [min, max]. Times its products: over what all its matrix
    products (counted in another run) would take at the rate of one of side 2000, measured before and after in the same process.
    """
    print("| problem | kernels at | wall s | processor s | TFLOP of products | times its products | ranks (E, F) by layer "
          "| peak, GB | before the run, GB |\n" + "|---" * 9 + "|")  # fmt: skip
    asked = {
        f"{activation}, L = {depth}, P = {points} | {'all pairs of steps' if two_time else 'snapshots'}": (
            _PROBLEM.format(points, depth, activation, steps) + _SOLVER.format(samples, "float32", device, two_time)
        )
        for activation, depth, points in problems
        for two_time in (False, True)
    }
    counting = "".join(code + _COUNTED.format(name) for name, code in asked.items())
    work = alone("out = {}\n" + counting, _FIRST)
    found = {}
    for name, code in asked.items():
        runs = [alone(code + _TIMED, _FIRST) for _ in range(repetitions)]
        found[name.replace(" |", ",")] = row = _row(runs, work[name])
        cells = [name, spread(row["wall"]), spread(row["processor"]), f"{work[name] / 1e12:.3g}"]
        cells += [spread(row["over products"]), str(row["ranks"]), f"{row['peak_gb']:.2f}", f"{row['before_gb']:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return found


def _row(runs: Sequence[Table], work: int) -> Table:
    """What is said of several runs, which make products of `work` operations each"""
    least = [work * mean(1 / rate for rate in run["rates"]) for run in runs]
    row: Table = {clock: _range([run[clock] for run in runs]) for clock in ("wall", "processor")}
    row["over products"] = over_rounds(
        [run["wall"] / seconds for run, seconds in zip(runs, least, strict=True)], "lower"
    )
    row |= {"operations": work, "rates": [run["rates"] for run in runs], "ranks": runs[-1]["ranks"]}
    return row | {"peak_gb": max(run["peak_gb"] for run in runs), "before_gb": runs[-1]["before_gb"]}


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def dmft_solvers(samples: int = 4096, steps: Sequence[int] = (20, 40), seeds: int = 4) -> Table:
    """processor time of the causal sweep against iteration to the fixed point over the whole window (FixedPointDMFT: a neuron's Gaussians
    at all times drawn from their full covariances), at equal samples, default tolerances; tanh, L = 2, P = 8, gamma0 = 1, eta = 0.1,
    digits 0/1, float32, S = 4096. By seed in turn: median [min, max]. Of f over the whole run, relative: the spread of one run over
    seeds, and the difference of the two means with its standard error.
    """
    print("| T | sweep s | fixed point s | iterations | times the fixed point | sweep: spread | fixed point: spread | difference |\n"
          + "|---" * 8 + "|")  # fmt: skip
    found = {}
    for solver in (CausalDMFT, FixedPointDMFT):  # the first calls load code
        solver(1024, dtype="float32")(digits(8, 2, "tanh", 3))
    for last in steps:
        asked, seconds, runs = digits(8, 2, "tanh", last), [], []
        for seed in range(seeds):
            both = [clocked(solver(samples, seed, dtype="float32"), asked) for solver in (CausalDMFT, FixedPointDMFT)]
            seconds.append([clock for clock, _ in both])
            runs.append([solution for _, solution in both])
        found[f"T = {last}"] = row = _compared(seconds, runs)
        cells = [str(last), *(spread(row[key]) for key in ("sweep", "fixed point")), str(row["iterations"])]
        cells += [spread(row["times"]), *(f"{row[key]:.2g}" for key in ("sweep spread", "fixed point spread"))]
        print(f"| {' | '.join(cells)} | {row['difference']:.2g} ({row['standard error']:.2g}) |", flush=True)
    return found


def _compared(seconds: Sequence[Sequence[float]], runs: Sequence[Sequence[mf.Solution]]) -> Table:
    """Of the sweep and the fixed point, by seed"""
    f = [outputs(solutions) for solutions in zip(*runs, strict=True)]
    size, variances = float(f[0].mean(0).norm()), [float(own.var(0).sum()) for own in f]
    return {
        "sweep": _range([own for own, _ in seconds]),
        "fixed point": _range([other for _, other in seconds]),
        "times": over_rounds([other / own for own, other in seconds]),
        "iterations": max(fixed.stats["iterations"] for _, fixed in runs),
        "sweep spread": math.sqrt(variances[0]) / size,
        "fixed point spread": math.sqrt(variances[1]) / size,
        "difference": float((f[0].mean(0) - f[1].mean(0)).norm()) / size,
        "standard error": math.sqrt(sum(variances) / len(runs)) / size,
    }


BENCHMARKS = {"dmft_speed": dmft_speed, "dmft_solvers": dmft_solvers}
