"""Many samples of which a step sees few: memory beyond the data, and what a step costs by its batch."""

from collections.abc import Sequence
from typing import Any

import torch

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow
from tests.benchmarks.timing import alone, over_rounds, spread


def problem(points: int, inputs: int, steps: int, batch: int | None, every: int) -> mf.Problem:
    """Random data, labels of the first coordinate's sign"""
    x = torch.randn(points, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    training = mf.Training(0.1, steps, batch_size=batch, record_every=every)
    return mf.Problem(mf.Dataset(x, torch.sign(x[:, :1])), mf.Network(1, "relu"), mf.mean_field(1.0), training)


_MODEL = """import torch
from solvers import FiniteWidth, WassersteinFlow
from tests.benchmarks.many_samples import problem
solver = dict(flow=WassersteinFlow({width}, dtype="float32", snapshots=(), progress=False),
              networks=FiniteWidth({width}, dtype="float32", snapshots=(), progress=False))["{way}"]
solver(problem(100, {inputs}, 2, 10, 2))
asked = problem({points}, {inputs}, {steps}, {batch}, {steps})
"""


def many_samples(
    points: int = 100_000, inputs: int = 784, width: int = 10_000, batch: int = 128, steps: int = 2, rounds: int = 3,
    few: int = 2000, batches: Sequence[int] = (10, 100, 1000), long: int = 40,
) -> dict[str, Any]:  # fmt: skip
    """first the peak of memory that a run adds to its data, each in a process of its own: P = 10^5, D = 784, N = 10^4, batches of 128,
    float32, one record at each end. Then wall time of a whole run of 40 steps (P = N = 2000) over that of the smallest batch, with a
    record at every step and with one at each end: median [min, max].
    """
    found: dict[str, Any] = {"memory, GB": {}}
    print("| | data, GB | peak beyond it, GB |\n|---|---|---|")
    for way in ("flow", "networks"):
        model = _MODEL.format(way=way, points=points, inputs=inputs, width=width, batch=batch, steps=steps)
        run = alone("solver(asked)\nout = dict()", model)
        found["memory, GB"][way] = run["peak_gb"] - run["before_gb"]
        print(f"| {way} | {8e-9 * points * inputs:.2g} | {found['memory, GB'][way]:.2g} |", flush=True)
    flow = WassersteinFlow(few, dtype="float32", snapshots=(), progress=False)
    nets = FiniteWidth(few, dtype="float32", snapshots=(), progress=False)
    print("\n| | records | " + " | ".join(f"batch {b}" for b in batches) + " |\n" + "|---" * (2 + len(batches)) + "|")
    for name, solver in (("flow", flow), ("networks", nets)):
        for every in (1, long):
            asked = {b: problem(few, inputs, long, b, every) for b in batches}
            times: dict[int, list[float]] = {b: [] for b in batches}
            for b in (batches[0], *(b for _ in range(rounds) for b in batches)):  # the very first run loads code
                times[b].append(solver(asked[b]).stats["seconds"])
            times[batches[0]].pop(0)
            over = {
                b: over_rounds([t / least for t, least in zip(taken, times[batches[0]], strict=True)])
                for b, taken in times.items()
            }
            when = "every step" if every == 1 else "first and last"
            found[f"{name}, {when}"] = {f"batch {b}": value for b, value in over.items()}
            print(f"| {name} | {when} | {' | '.join(spread(value) for value in over.values())} |", flush=True)
    return found


BENCHMARKS = {"many_samples": many_samples}
