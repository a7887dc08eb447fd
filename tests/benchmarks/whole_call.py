"""What a default call costs beyond its loop: set-up, records and all."""

import time
from typing import Any

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from tests.benchmarks.dmft import digits
from tests.benchmarks.timing import over_rounds, spread


def whole_call(
    device: str = "cpu", rounds: int = 3, particles: int = 100_000, points: int = 1000, steps: int = 20
) -> dict[str, Any]:
    """a default call over its own loop through time (stats["seconds"]), wall time, median [min, max] over rounds: a flow of N = 10^5,
    P = 10^3, D = 2, T = 20; a deep sweep; networks. Goal: at most 1.5. Then what looking at the flow's tangent kernels takes.
    """
    flat = mf.Problem(mf.single_index_teacher(points, 1, inputs=2, seed=1), training=mf.Training(0.1, steps))
    cases = {
        "WassersteinFlow": (WassersteinFlow(particles, device=device, progress=False), flat),
        "WassersteinFlow, float32": (WassersteinFlow(particles, dtype="float32", device=device, progress=False), flat),
        "CausalDMFT": (CausalDMFT(4096, device=device, progress=False), digits(32, 3, "tanh", 2 * steps)),
        "FiniteWidth": (FiniteWidth(512, device=device, progress=False), digits(32, 3, "tanh", 2 * steps)),
    }
    print("| call | whole, s | loop, s | whole over loop |\n|---|---|---|---|")
    found: dict[str, Any] = {}
    for name, (solver, problem) in cases.items():
        solver(problem.with_steps(1))
        whole, loop = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            solution = solver(problem)
            whole.append(time.perf_counter() - start)
            loop.append(solution.stats["seconds"])
        over = over_rounds([a / b for a, b in zip(whole, loop, strict=True)], "lower")
        found[name] = {"whole": over_rounds(whole, "lower")["median"], "over the loop": over}
        print(f"| {name} | {min(whole):.2g} | {min(loop):.2g} | {spread(over)} |", flush=True)
        if name == "WassersteinFlow":
            start = time.perf_counter()
            solution.tangent_kernel(0)
            print(f"| its tangent kernels, looked at | {time.perf_counter() - start:.2g} | | |", flush=True)
    return found


BENCHMARKS = {"whole_call": whole_call}
