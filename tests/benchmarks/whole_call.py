"""What a default call costs beyond its loop: set-up, records and all."""

import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from tests.benchmarks.dmft import digits
from tests.benchmarks.timing import over_rounds, spread


def whole_call(
    device: str = "cpu", rounds: int = 3, particles: int = 100_000, points: int = 1000, steps: int = 20
) -> dict[str, Any]:
    """a default call over its own loop through time (stats["seconds"]), wall time, median [min, max] over rounds: a flow of N = 10^5,
    P = 10^3, D = 2, T = 20; a deep sweep; networks, also of many outputs. Goal: at most 1.5. Then, over the same loop: looking at the
    flow's tangent kernels, keeping kernels at all pairs of steps (the loop over that with two_time=False), saving, and comparing.
    """
    flat = mf.Problem(mf.single_index_teacher(points, 1, inputs=2, seed=1), training=mf.Training(0.1, steps))
    cases = {
        "WassersteinFlow": (WassersteinFlow(particles, device=device, progress=False), flat),
        "WassersteinFlow, float32": (WassersteinFlow(particles, dtype="float32", device=device, progress=False), flat),
        "CausalDMFT": (CausalDMFT(4096, device=device, progress=False), digits(32, 3, "tanh", 2 * steps)),
        "FiniteWidth": (FiniteWidth(512, device=device, progress=False), digits(32, 3, "tanh", 2 * steps)),
        "FiniteWidth, 10 outputs": (FiniteWidth(128, device=device, progress=False), _ten_classes(300, 2 * steps)),
    }
    print("| call | whole, s | loop, s | whole over loop |\n|---|---|---|---|")
    found: dict[str, Any] = {}
    for name, (solver, problem) in cases.items():
        solution = solver(problem.with_steps(1))
        whole, loop = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            solution = solver(problem)
            whole.append(time.perf_counter() - start)
            loop.append(solution.stats["seconds"])
        over = over_rounds([a / b for a, b in zip(whole, loop, strict=True)], "lower")
        found[name] = {"whole": over_rounds(whole, "lower")["median"], "over the loop": over}
        print(f"| {name} | {min(whole):.2g} | {min(loop):.2g} | {spread(over)} |", flush=True)
        for title, (seconds, base) in _beside(name, solver, problem, solution).items():
            found[title] = {"over the loop": over_rounds([seconds / base], "lower")}
            print(f"| {title} | {seconds:.2g} | {base:.2g} | {seconds / base:.2g} |", flush=True)
    return found


def _beside(name: str, solver: Any, problem: mf.Problem, solution: mf.Solution) -> dict[str, tuple[float, float]]:
    """Seconds of what may follow a run, and those of its loop"""
    loop = solution.stats["seconds"]
    if name == "WassersteinFlow":
        return {"its tangent kernels, looked at": (_seconds(lambda: solution.tangent_kernel(0)), loop)}
    if name == "CausalDMFT":
        without = replace(solver, two_time=False)(problem).stats["seconds"]
        with TemporaryDirectory() as folder:
            saving = _seconds(lambda: mf.save(solution, f"{folder}/run.nc"))
        return {"its loop, with kernels at all pairs of steps": (loop, without), "saving it": (saving, loop)}
    if name == "FiniteWidth":
        nets, limit = solver.ensemble(problem, 4), CausalDMFT(4096, progress=False)(problem)
        runs = sum(net.stats["seconds"] for net in nets)
        return {"comparing four of them with the limit": (_seconds(lambda: mf.deviation(nets, limit)), runs)}
    return {}


def _ten_classes(points: int, steps: int) -> mf.Problem:
    data = mf.digits(tuple(range(10)), n_train=points, n_test=10)
    return mf.Problem(data, mf.Network(2, "tanh"), mf.mean_field(1.0), mf.Training(0.1, steps))


def _seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


BENCHMARKS = {"whole_call": whole_call}
