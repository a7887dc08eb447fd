"""Ensembles of networks, all seeds by one call, against a loop over seeds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from solvers import FiniteWidth
from tests.benchmarks.dmft import digits
from tests.benchmarks.timing import interleaved, ratio, spread


def ensembles(
    device: str = "cpu", widths: Sequence[int] = (32, 64, 128, 256, 512, 1024), seeds: int = 16, repetitions: int = 3
) -> dict[str, Any]:
    """16 networks by FiniteWidth.ensemble, which trains as many at once as are faster together, against a loop over seeds; tanh, L = 2,
    P = 16, T = 20, float32; median [min, max] over rounds
    """
    asked = digits(16, 2, "tanh", 20)
    print("| N | at once | loop: wall s | ensemble: wall s | ratio of wall | ratio of processor time |")
    print("|---|---|---|---|---|---|")
    found = {}
    for width in widths:
        solver = FiniteWidth(width, dtype="float32", device=device, keep_neurons=False)
        peers = interleaved(
            {
                "loop": lambda solver=solver: [replace(solver, seed=s)(asked) for s in range(seeds)],
                "batch": lambda solver=solver: solver.ensemble(asked, seeds),
            },
            repetitions,
        )
        wall, processor = (ratio(peers["loop"], peers["batch"], clock) for clock in ("wall", "processor"))
        summaries = {name: peer.summary() for name, peer in peers.items()}
        found[str(width)] = summaries | {"wall": wall, "processor": processor}
        at_once = min(seeds, solver.seeds_at_once(asked))
        cells = [*(spread(summaries[name]["wall"]) for name in ("loop", "batch")), spread(wall), spread(processor)]
        print(f"| {width} | {at_once} | {' | '.join(cells)} |", flush=True)
    return found


BENCHMARKS = {"ensembles": ensembles}
