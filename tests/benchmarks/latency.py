"""A sum, a sweep and a flow over machines joined by a slow wire (emulated by tests/wires.py), against the model of docs/distributed.md."""

from collections.abc import Sequence

from tests.benchmarks.sharded_runs import LARGE, SMALL
from tests.benchmarks.sharding import Found, Table, extent, together
from tests.benchmarks.timing import over_rounds, spread
from tests.wires import machines, missing

Times = tuple[float, int, int]  # seconds, sums, their bytes
SOLVERS = {"sweep": "CausalDMFT", "cloud": "WassersteinFlow"}


def latency(
    delays: Sequence[float] = (0.0, 5e-4, 2e-3, 5e-3),
    samples: int = 2**15,
    particles: int = 2**15,
    steps: int = 10,
    rounds: int = 3,
) -> Table:
    """one process on each of R machines, whose packets travel for `delay` seconds; interleaved rounds, median [range]. Model, nothing
    fitted: a sum of B bytes takes 2 (R - 1) t + 2 (R - 1) / R x B / bandwidth, t the round trip and bandwidth of a bare socket in the same
    processes; a run takes that of one process / R + its sums and flags. Added: what the delay adds to the run of the first row, measured
    over model; where that is a small part of the run, it is lost in noise. Sweep: tanh, L = 3, P = 32; flow: tanh, D = 16, P = 64;
    float32, one thread
    """
    if why := missing():
        print(f"left out: {why}")
        return {}
    asked = {
        "sweep": {"samples": samples, "points": 32, "steps": steps},
        "cloud": {"particles": particles, "points": 64, "steps": 4 * steps},
    }
    alone: list[Found] = []
    two: dict[float, list[Found]] = {delay: [] for delay in delays}
    more: dict[tuple[int, float], list[Found]] = {(count, delay): [] for count in (3, 4) for delay in delays[-1:]}
    for _ in range(rounds):
        alone.append(together("latency", asked, 1))
        for delay, runs in two.items():
            runs.append(_over_wire(asked, 2, delay))
    for (count, delay), runs in more.items():
        runs.append(_over_wire({"sweep": {}, "cloud": {}}, count, delay))
    found: Table = {"sum": _print_sums({(2, delay): runs for delay, runs in two.items()} | more)}
    for solver, name in SOLVERS.items():
        found[name] = _print_runs(solver, name, alone, two)
    return found


def _over_wire(asked: Table, count: int, delay: float) -> Found:
    with machines(count, delay) as on:
        return together("latency", asked, count, on)


def _print_sums(measured: dict[tuple[int, float], list[Found]]) -> Table:
    """One sum of SMALL bytes by machines and delay; those of two machines are compared by the regression check"""
    print("| machines | delay, ms | round trip, ms | one sum, ms | over 2 (R - 1) round trips |\n|---|---|---|---|---|")
    found = {}
    for (count, delay), runs in measured.items():
        row = {key: extent([1e3 * run[0][key] for run in runs]) for key in ("small", "sum")}
        over = [run[0]["sum"] / _sums(count, 1, SMALL, run[0]) for run in runs]
        row["over model"] = _closeness(over) if count == 2 and delay else extent(over)
        print(f"| {count} | {1e3 * delay:g} | {spread(row['small'])} | {spread(row['sum'])} | {spread(extent(over))} |")
        found[f"{count} machines, {1e3 * delay:g} ms"] = row
    return found


def _print_runs(solver: str, name: str, alone: list[Found], two: dict[float, list[Found]]) -> Table:
    """Runs on two machines by delay: does the second machine pay, and where does the model say that it no longer does"""
    one = [_times(run[0][solver])[0] for run in alone]
    print(f"\n{name}, one machine: {spread(extent(one))} s\n")
    heads = [
        "delay, ms",
        "two machines, s",
        "model, s",
        "measured / model",
        "added",
        "speed-up",
        "model",
        "sums and flags",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    found: Table = {"one": extent(one)}
    start: list[tuple[float, float]] = []
    for delay, runs in two.items():
        own = [_times(run[0][solver]) for run in runs]
        model = [a / 2 + _sums(2, *of[1:], run[0]) for a, of, run in zip(one, own, runs, strict=True)]
        both = [(of[0], m) for of, m in zip(own, model, strict=True)]
        added = [(s - s0) / (m - m0) for (s, m), (s0, m0) in zip(both, start, strict=True)] if start else []
        start, over = start or both, [s / m for s, m in both]
        row = {
            "seconds": extent([s for s, _ in both]), "model": extent(model), "sums": own[0][1],
            "speed-up": extent([a / s for a, (s, _) in zip(one, both, strict=True)]),
            "model of it": extent([a / m for a, m in zip(one, model, strict=True)]),
        }  # fmt: skip
        cells = [
            spread(row["seconds"]),
            spread(row["model"]),
            spread(extent(over)),
            spread(extent(added)) if added else "-",
        ]
        cells += [spread(row["speed-up"]), spread(row["model of it"])]
        print(f"| {1e3 * delay:g} | {' | '.join(cells)} | {row['sums']} |", flush=True)
        found[f"{1e3 * delay:g} ms"] = row | {"over model": _closeness(over) if delay else extent(over)}
    return found


def _closeness(ratios: Sequence[float]) -> Table:
    """The larger of each ratio and its inverse, for the regression check"""
    return over_rounds([max(r, 1 / r) for r in ratios], "lower")


def _times(rank: Table) -> Times:
    """Of a sweep from its second stamp to its last (the first step loads), of a flow as a whole. The flag of each record is a sum too"""
    if "rows" not in rank:
        return rank["seconds"], 2 * rank["sums"], rank["bytes_summed"] + 8 * rank["sums"]
    (_, start, *_, stop), flags = rank["rows"], len(rank["rows"]) - 2
    return stop["at"] - start["at"], stop["calls"] - start["calls"] + flags, stop["bytes"] - start["bytes"] + 8 * flags


def _sums(count: int, sums: int, size: int, rank: Table) -> float:
    """Seconds of `sums` sums of `size` bytes in all, by what a bare socket takes"""
    per_byte = max(0.0, rank["large"] - rank["small"]) / (2 * (LARGE - SMALL))
    return 2 * (count - 1) * (sums * rank["small"] + size / count * per_byte)


BENCHMARKS = {"latency": latency}
