"""CausalDMFT against ensembles of wide networks: time to a given error."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth
from tests.benchmarks.timing import over_rounds, spread

Table = dict[str, Any]
WIDTHS = {64: 4096, 128: 2048, 256: 512, 512: 48, 1024: 12, 2048: 4}


def digits(samples: int, depth: int, activation: str, steps: int, tested: int = 0) -> mf.Problem:
    data = mf.digits((0, 1), n_train=samples, n_test=tested)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(0.1, steps))


def outputs(solutions: Sequence[mf.Solution]) -> torch.Tensor:
    """(E, M) f of the whole run"""
    return torch.stack([s.f.double().flatten() for s in solutions])


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
    nets = FiniteWidth(dtype="float32", snapshots=(), keep_neurons=False)
    law = network_law(replace(nets, device=device), asked, exact, WIDTHS, own / float(exact.square().sum()))
    print(
        "\n| error of f | sweep: samples | processor s | best networks: N x seeds | processor s | ratio | one network: N | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    targets = []
    for target in (1e-2, 3e-3, 1e-3):
        samples = min((s for s in sweeps if sweeps[s]["error"] <= target), default=max(sweeps))
        reached, each = sweeps[samples]["error"] <= target, sweeps[samples]["seconds"]
        fast = median(each)
        n, e, slow = best_split(law, target)
        one = (law["v"] + math.sqrt(law["v"] ** 2 + (2 * target * law["b"]) ** 2)) / (2 * target**2)
        single = cost(law, one)
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
            list, zip(*(clocked(replace(solver, samples=s, seed=k), asked) for k in range(8)), strict=True)
        )
        square = float((outputs(runs) - exact).square().sum(1).mean()) - own
        error = math.sqrt(max(0.0, square)) / float(exact.norm())
        found[s] = {"error": error, "seconds": seconds, "ranks": runs[0].stats["ranks"]}
        print(f"| {s} | {error:.2g} | {spread(over_rounds(seconds, 'lower'))} | {runs[0].stats['ranks']} |", flush=True)
        if error < 1e-3:
            break
    return found


def clocked(call: Any, *arguments: Any) -> tuple[float, Any]:
    """(processor seconds, result); on a GPU of the clock"""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    result = call(*arguments)
    return clock() - start, result


def network_law(
    solver: FiniteWidth,
    asked: mf.Problem,
    exact: torch.Tensor,
    widths: Mapping[int, int],
    own: float = 0.0,
    narrow: int = 256,
    wide: int = 512,
) -> Table:
    """v and b of variance v / N and bias b / N (relative), cost N^power of a seed in a batched ensemble, by the widths from `wide` on

    widths: seeds by N; the bias is taken from those up to `narrow`, where it is seen best. own: relative squared error of `exact`.
    """
    print("\n| N | seeds | processor s per seed | N x variance | N x bias (standard error) |\n|---|---|---|---|---|")
    table, design, means = {}, [], []
    for n, e in widths.items():
        seconds, runs = clocked(replace(solver, width=n).ensemble, asked, e)
        seconds /= e
        apart = (outputs(runs) - exact) / exact.norm()
        v = n * float(apart.var(0).sum())
        bias = math.sqrt(max(0.0, n**2 * float(apart.mean(0).square().sum()) - n * v / e))
        table[n] = {"seeds": e, "seconds": seconds, "v": v, "b": bias}
        print(f"| {n} | {e} | {seconds:.2g} | {v:.3g} | {bias:.2g} ({math.sqrt(n * v / e):.2g}) |", flush=True)
        if n <= narrow:  # mean deviation = vector / N
            design.append((e, e / n))
            means.append(e * apart.mean(0))
    ones, weight = map(sum, zip(*design, strict=True))
    vector = torch.stack(means).sum(0) / weight  # weighted least squares, weights N E
    v = float(np.average([row["v"] for row in table.values()], weights=[row["seeds"] - 1 for row in table.values()]))
    noise2 = v / weight + own * (ones / weight) ** 2
    b = math.sqrt(max(0.0, float(vector.square().sum()) - noise2))
    far = [n for n in table if n >= wide]
    power, log_cost = np.polyfit(np.log(far), np.log([table[n]["seconds"] for n in far]), 1)
    print(
        f"\nv = {v:.3g}, b = {b:.2g} (its noise {math.sqrt(noise2):.2g}), "
        f"cost = {math.exp(log_cost):.2g} N^{power:.2f} s from N = {wide} on",
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


def cost(law: Table, n: float) -> float:
    """Processor seconds of one seed: between the widths that were run, or by the power law above them"""
    widths = law["widths"]
    if n > max(widths):
        return law["cost"] * n ** law["power"]
    seconds = [row["seconds"] for row in widths.values()]
    return math.exp(float(np.interp(math.log(n), np.log(list(widths)), np.log(seconds))))


def best_split(law: Table, target: float) -> tuple[float, float, float]:
    """(N, E, processor seconds) that reach the target error most cheaply"""
    best = (math.nan, math.nan, math.inf)
    for n in np.geomspace(min(law["widths"]), 1e7, 4000):
        room = target**2 - (law["b"] / n) ** 2
        if room > 0:
            seeds = max(1, math.ceil(law["v"] / (n * room)))
            best = min(best, (float(n), float(seeds), cost(law, n) * seeds), key=lambda split: split[2])
    return best


BENCHMARKS = {"time_to_error": time_to_error}
