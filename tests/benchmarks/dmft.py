"""CausalDMFT against ensembles of wide networks, its speed and memory, its growth; ensembles of networks against a loop over seeds."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, causal_dmft
from solvers.evolve import State
from solvers.limit_network import LimitNetwork
from tests.benchmarks.timing import alone, interleaved, over_rounds, ratio, spread

Table = dict[str, Any]


def digits(samples: int, depth: int, activation: str, steps: int) -> mf.Problem:
    data = mf.digits((0, 1), n_train=samples, n_test=0)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps))


def outputs(solutions: Sequence[mf.Solution]) -> torch.Tensor:
    """(E, M) f of the whole run"""
    return torch.stack([s.f.double().flatten() for s in solutions])


# time to a given error


def time_to_error(device: str = "cpu") -> Table:
    """processor time to a relative error of f over the whole run; tanh, L = 2, P = 10, T = 60, gamma0 = 1, eta = 0.1, digits 0/1, float32.

    Networks: cost(N) E at v / (N E) + (b / N)^2 <= error^2, with variance v / N and bias b / N as measured, by their 1/sqrt N law where N
    was not run: at the best N and E, and with E = 1. Sweep: the smallest S = 2^k whose error (Sobol draws, root mean square of 8 seeds)
    is below the target.
    """
    asked = digits(10, 2, "tanh", 60)
    solver = CausalDMFT(dtype="float32", device=device, two_time=False, keep_neurons=False, snapshots=())
    reference = outputs([replace(solver, samples=2**17, seed=100 + s)(asked) for s in range(4)])
    exact, own = reference.mean(0), float(reference.var(0).sum()) / len(reference)
    print(f"reference: 4 runs of 2^17 samples, its own error {math.sqrt(own) / float(exact.norm()):.1g}\n")
    sweeps = _sweep_errors(asked, solver, exact, own)
    law = _network_law(asked, exact, device)
    print(
        "\n| error of f | sweep: samples | processor s | best networks: N x seeds | processor s | ratio | one network: N | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    targets = []
    for target in (1e-2, 3e-3, 1e-3):
        samples = min((s for s in sweeps if sweeps[s]["error"] <= target), default=max(sweeps))
        reached, each = sweeps[samples]["error"] <= target, sweeps[samples]["seconds"]
        fast = median(each)
        n, e, slow = _best_split(law, target)
        one = (law["v"] + math.sqrt(law["v"] ** 2 + (2 * target * law["b"]) ** 2)) / (2 * target**2)
        single = _cost(law, one)
        targets.append({"error": target, "reached": reached, "samples": samples, "seconds": fast, "N": n, "seeds": e, "networks": slow,
                        "ratio": over_rounds([slow / s for s in each]), "single_N": one, "single": single,
                        "single_ratio": over_rounds([single / s for s in each])})  # fmt: skip
        ratios = [spread(targets[-1][key]) for key in ("ratio", "single_ratio")]
        cells = (
            f"{samples}{'' if reached else ', not reached'} | {fast:.2g} | {n:.0f} x {e:.0f} | {slow:.3g} | {ratios[0]}"
        )
        print(f"| {target:.1%} | {cells} | {one:.0f} | {ratios[1]} |", flush=True)
    named = {f"error {row['error']:.1%}": row for row in targets}
    return {"sweeps": sweeps, "law": law, "targets": named, "reference_error": math.sqrt(own) / float(exact.norm())}


def _sweep_errors(asked: mf.Problem, solver: CausalDMFT, exact: torch.Tensor, own: float) -> dict[int, Table]:
    """Error and processor seconds by samples, until the error is below 0.1 %; own: squared error of `exact`"""
    found: dict[int, Table] = {}
    print("| samples | error of f | processor s | ranks |\n|---|---|---|---|")
    for s in (2**k for k in range(9, 18)):
        seconds, runs = map(
            list, zip(*(_clocked(replace(solver, samples=s, seed=k), asked) for k in range(8)), strict=True)
        )
        square = float((outputs(runs) - exact).square().sum(1).mean()) - own
        error = math.sqrt(max(0.0, square)) / float(exact.norm())
        found[s] = {"error": error, "seconds": seconds, "ranks": runs[0].stats["ranks"]}
        print(f"| {s} | {error:.2g} | {spread(over_rounds(seconds, 'lower'))} | {runs[0].stats['ranks']} |", flush=True)
        if error < 1e-3:
            break
    return found


def _clocked(call: Any, *arguments: Any) -> tuple[float, Any]:
    """(processor seconds, result); on a GPU of the clock"""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    result = call(*arguments)
    return clock() - start, result


def _network_law(asked: mf.Problem, exact: torch.Tensor, device: str) -> Table:
    """v and b of variance v / N and bias b / N (relative), cost N^power of a seed in a batched ensemble"""
    seeds = {64: 4096, 128: 2048, 256: 512, 512: 48, 1024: 12, 2048: 4}
    solver = FiniteWidth(dtype="float32", device=device, snapshots=(), keep_neurons=False)
    print("\n| N | seeds | processor s per seed | N x variance | N x bias (standard error) |\n|---|---|---|---|---|")
    table, design, means = {}, [], []
    for n, e in seeds.items():
        seconds, runs = _clocked(replace(solver, width=n).ensemble, asked, e)
        seconds /= e
        apart = (outputs(runs) - exact) / exact.norm()
        v = n * float(apart.var(0).sum())
        bias = math.sqrt(max(0.0, n**2 * float(apart.mean(0).square().sum()) - n * v / e))
        table[n] = {"seeds": e, "seconds": seconds, "v": v, "b": bias}
        print(f"| {n} | {e} | {seconds:.2g} | {v:.3g} | {bias:.2g} ({math.sqrt(n * v / e):.2g}) |", flush=True)
        if n <= 256:  # there the bias is seen best: mean deviation = vector / N
            design.append(e * n / n**2)
            means.append(e * n / n * apart.mean(0))
    vector = torch.stack(means).sum(0) / sum(design)  # weighted least squares, weights N E
    v = float(np.average([row["v"] for row in table.values()], weights=[row["seeds"] - 1 for row in table.values()]))
    noise2 = v / sum(design)
    b = math.sqrt(max(0.0, float(vector.square().sum()) - noise2))
    wide = [n for n in table if n >= 512]
    power, log_cost = np.polyfit(np.log(wide), np.log([table[n]["seconds"] for n in wide]), 1)
    print(
        f"\nv = {v:.3g}, b = {b:.2g} (its noise {math.sqrt(noise2):.2g}), cost = {math.exp(log_cost):.2g} N^{power:.2f} s from N = 512 on",
        flush=True,
    )
    return {
        "widths": table,
        "v": v,
        "b": b,
        "b_noise": math.sqrt(noise2),
        "cost": math.exp(log_cost),
        "power": float(power),
    }


def _cost(law: Table, n: float) -> float:
    """Processor seconds of one seed: between the widths that were run, or by the power law above them"""
    widths = law["widths"]
    if n > max(widths):
        return law["cost"] * n ** law["power"]
    seconds = [row["seconds"] for row in widths.values()]
    return math.exp(float(np.interp(math.log(n), np.log(list(widths)), np.log(seconds))))


def _best_split(law: Table, target: float) -> tuple[float, float, float]:
    """(N, E, processor seconds) that reach the target error most cheaply"""
    best = (math.nan, math.nan, math.inf)
    for n in np.geomspace(min(law["widths"]), 1e7, 4000):
        room = target**2 - (law["b"] / n) ** 2
        if room > 0:
            seeds = max(1, math.ceil(law["v"] / (n * room)))
            best = min(best, (float(n), float(seeds), _cost(law, n) * seeds), key=lambda split: split[2])
    return best


# speed, memory, growth


def dmft_speed(device: str = "cpu", repetitions: int = 3) -> Table:
    """wall time and peak memory of one run in a process of its own, with and without the two-time kernels; digits 0/1, gamma0 = 1,
    eta = 0.1, T = 100, 8192 samples, float32, three processes each
    """
    print("| problem | kernels at | wall s | processor s | ranks (E, F) by layer | peak, GB | before the run, GB |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for activation, depth, samples in (("tanh", 3, 64), ("relu", 2, 32)):
        for two_time in (False, True):
            code = (
                f"p = mf.Problem(mf.digits((0, 1), n_train={samples}, n_test=0), mf.Network({depth}, {activation!r}), mf.mean_field(1.0), "
                f"mf.Training(0.1, 100))\nw, c = time.perf_counter(), time.process_time()\n"
                f"s = solvers.CausalDMFT(8192, dtype='float32', device={device!r}, two_time={two_time}, keep_neurons=False)(p)\n"
                "out = dict(wall=time.perf_counter() - w, processor=time.process_time() - c, ranks=s.stats['ranks'])"
            )
            runs = [alone(code) for _ in range(repetitions)]
            last = runs[-1]
            clocks = {k: {"min": min(r[k] for r in runs), "median": median(r[k] for r in runs), "max": max(r[k] for r in runs)}
                      for k in ("wall", "processor")}  # fmt: skip
            name = f"{activation}, L = {depth}, P = {samples}"
            found[f"{name}, {'all pairs' if two_time else 'snapshots'}"] = clocks | {
                k: last[k] for k in ("ranks", "peak_gb", "before_gb")
            }
            print(f"| {name} | {'all pairs of steps' if two_time else 'snapshots'} | {spread(clocks['wall'])} | "
                  f"{spread(clocks['processor'])} | {last['ranks']} | "
                  f"{max(r['peak_gb'] for r in runs):.2f} | {last['before_gb']:.2f} |", flush=True)  # fmt: skip
    return found


class _Clocked(LimitNetwork):
    """Keeps stamps (wall and processor seconds) and the sum of ranks at each step."""

    wall: ClassVar[list[float]]
    processor: ClassVar[list[float]]
    ranks: ClassVar[list[int]]

    def advance(self, state: State, f: torch.Tensor, weights: torch.Tensor | None) -> State:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.ranks.append(sum(len(layer.e) + len(layer.f) for layer in self.layers))
        return super().advance(state, f, weights)


def dmft_growth(device: str = "cpu", samples: int = 8192, steps: int = 60, rounds: int = 3, curve: int = 400) -> Table:
    """processor time (on a GPU wall time) of all steps with S, T, P or L doubled, over that of the base case (S = 8192, T = 60, P = 16,
    L = 3) in the same round: median [min, max]; tanh, digits 0/1, gamma0 = 1, eta = 0.1, plain draws, tolerance 0.03. Expected: the
    ratio of the sums over steps of S P x (ranks of all layers). Then a step's time against its number; time per sample and rank.
    """
    solver = CausalDMFT(
        samples, draws="plain", tolerance=0.03, device=device, two_time=False, keep_neurons=False, snapshots=()
    )
    twice = replace(solver, samples=2 * samples)
    cases = {
        "base": (solver, digits(16, 3, "tanh", steps)),
        "2 S": (twice, digits(16, 3, "tanh", steps)),
        "2 T": (solver, digits(16, 3, "tanh", 2 * steps)),
        "2 P": (solver, digits(32, 3, "tanh", steps)),
        "2 L": (solver, digits(16, 6, "tanh", steps)),
    }
    clock = 1 if torch.cuda.is_available() and device != "cpu" else 0
    _steps(solver, digits(16, 3, "tanh", 5))  # the first calls load code
    runs = [{name: _steps(*case) for name, case in cases.items()} for _ in range(rounds)]
    print(
        "| | s | times the base case | expected | sum of ranks at the end | ns per sample and rank |\n"
        + "|---" * 6
        + "|"
    )
    found: Table = {}
    work = {n: own.samples * asked.data.samples * sum(runs[0][n][2]) for n, (own, asked) in cases.items()}
    for name, (own, _) in cases.items():
        seconds = over_rounds([sum(turn[name][clock]) for turn in runs])
        grown = over_rounds([sum(turn[name][clock]) / sum(turn["base"][clock]) for turn in runs], "lower")
        expected, ranks = work[name] / work["base"], runs[0][name][2]
        each = 1e9 * seconds["median"] / own.samples / sum(ranks)
        found[name] = {"seconds": seconds["median"], "expected": expected, "ranks": ranks[-1], "ns": each}
        found[name] |= {} if name == "base" else {"grown": grown}
        print(
            f"| {name} | {spread(seconds)} | {spread(grown)} | {expected:.3g} | {ranks[-1]} | {each:.3g} |", flush=True
        )
    return found | {"curve": _curve(_steps(solver, digits(16, 3, "tanh", curve)), clock)}


def _curve(run: tuple[list[float], list[float], list[int]], clock: int) -> Table:
    """Prints the time of a step against its number"""
    ms, ranks, steps = 1e3 * np.array(run[clock]), run[2], len(run[clock])
    print("\n| steps | sum of ranks at the end | ms per step: median [quartiles] |\n|---|---|---|")
    ends = [0, 10, 25, 50, *range(100, steps, 50)]
    for a, b in pairwise([end for end in ends if end < steps] + [steps]):
        low, middle, high = np.percentile(ms[a:b], [25, 50, 75])
        print(f"| {a} .. {b} | {ranks[b]} | {middle:.3g} [{low:.3g}, {high:.3g}] |")
    return {"processor_ms": [1e3 * v for v in run[0]], "wall_ms": [1e3 * v for v in run[1]], "ranks": ranks}


def _steps(solver: CausalDMFT, asked: mf.Problem) -> tuple[list[float], list[float], list[int]]:
    """Processor and wall seconds of each step, and the sum of ranks when it began"""
    _Clocked.wall, _Clocked.processor, _Clocked.ranks = [], [], []
    with mock.patch.object(causal_dmft, "LimitNetwork", _Clocked):
        solver(asked)
    return np.diff(_Clocked.processor).tolist(), np.diff(_Clocked.wall).tolist(), _Clocked.ranks


def ensembles(device: str = "cpu") -> Table:
    """16 networks in one batched run (FiniteWidth.ensemble) against a loop over seeds; tanh, L = 2, P = 16, T = 20; three rounds"""
    asked = digits(16, 2, "tanh", 20)
    print("| N | loop: wall s | batch: wall s | ratio of wall | ratio of processor time |\n|---|---|---|---|---|")
    found = {}
    for width in (32, 64, 128, 256, 512):
        solver = FiniteWidth(width, dtype="float32", device=device, keep_neurons=False)
        peers = interleaved(
            {
                "loop": lambda solver=solver: [replace(solver, seed=s)(asked) for s in range(16)],
                "batch": lambda solver=solver: solver.ensemble(asked, 16),
            },
            repetitions=3,
        )
        wall, processor = (ratio(peers["loop"], peers["batch"], clock) for clock in ("wall", "processor"))
        found[str(width)] = {name: peer.summary() for name, peer in peers.items()} | {
            "wall": wall,
            "processor": processor,
        }
        seconds = [spread(peers[name].summary()["wall"]) for name in ("loop", "batch")]
        print(f"| {width} | {seconds[0]} | {seconds[1]} | {spread(wall)} | {spread(processor)} |", flush=True)
    return found


BENCHMARKS = {f.__name__: f for f in (time_to_error, dmft_speed, dmft_growth, ensembles)}
