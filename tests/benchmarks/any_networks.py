"""The limit of modules: time to an error of 1 % of f, its matrix products, filters with one basis, growth, and perceptrons as modules."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import meanfield as mf
from meanfield.network.architecture import perceptron
from solvers import CausalDMFT, FiniteWidth
from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.module_sweep import ModuleSweep
from solvers.dmft.neurons import Population
from solvers.dmft.places import convolution
from solvers.running.integrator import weighted
from solvers.running.sharding import Shard
from tests.any_networks import Convolutional, Language, digits, text
from tests.benchmarks.dmft import Table, best_split, clocked, network_law, outputs
from tests.benchmarks.dmft import digits as perceptrons
from tests.benchmarks.timing import interleaved, over_rounds, ratio, spread

_LIMIT = CausalDMFT(dtype="float32", progress=False)


def images(samples: int = 8, steps: int = 20, finer: int = 1) -> mf.Problem:
    """Two convolutions with stride and an average over positions, on threes and eights; finer: pixels along an axis for one"""
    x, y = digits(samples, True)
    x = x.repeat_interleave(finer, 2).repeat_interleave(finer, 3) / finer
    return mf.Problem(
        mf.Dataset(x, y), partial(Convolutional, phi=torch.tanh), mf.mean_field(1.0), mf.Training(0.2, steps)
    )


def letters(steps: int = 20) -> mf.Problem:
    """A transformer block over 6 sentences of 8 letters of 13"""
    return mf.Problem(mf.Dataset(*text()), Language, mf.mean_field(1.0), mf.Training(0.1, steps), loss="cross_entropy")


_SIZES = {
    "convolutions": (
        images,
        (1024, 2048, 4096),
        {16: 8192, 32: 8192, 64: 2048, 128: 48, 256: 8},
    ),  # to see so small a bias
    "transformer": (letters, (2048, 4096, 8192), {32: 256, 64: 128, 128: 48, 256: 8}),
}


def networks_to_error(
    error: float = 0.01, seeds: int = 4, sizes: Mapping[str, Sequence[Any]] | None = None, steps: int = 20
) -> Table:
    """processor time to 1 % error of f over the whole run, relative norm, float32, T = 20: the limit with the S and groups for which the
    standard error over seeds is that, against the best split of networks in widths and seeds, v / (N E) + (b / N)^2 = error^2.

    Whole calls without snapshots. sizes: by name the samples S and the seeds by width N that are run. A network's cost between widths and
    beyond them is by the power law through those that were run, the time of all E seeds E times that of one.
    """
    found: Table = {}
    for name, (problem, samples, widths) in _SIZES.items():
        samples, widths = (sizes or {}).get(name, (samples, widths))
        found[name] = row = _to_error(name, problem(steps=steps), samples, widths, error, seeds)
        limit = f"S = {row['samples']} x {row['groups']} groups, {row['seconds']:.3g} s"
        nets = f"networks N = {row['N']:.0f} x {row['seeds']:.0f} seeds, {row['networks']:.3g} s"
        print(f"\n{name}, {error:.1%}: {limit}; {nets}; ratio {spread(row['ratio'])}\n", flush=True)
    return found


def _to_error(
    name: str, asked: mf.Problem, samples: Sequence[int], widths: Mapping[int, int], error: float, seeds: int
) -> Table:
    solver, nets = replace(_LIMIT, snapshots=()), FiniteWidth(dtype="float32", progress=False, snapshots=())
    print(f"| {name}: samples | error of a run | groups | processor s of a run | of all |\n|---|---|---|---|---|")
    best: Table = {"all": math.inf}
    exact, square = torch.zeros(()), math.inf
    for s in samples:
        seconds, runs = zip(*(clocked(replace(solver, samples=s, seed=k), asked) for k in range(seeds)), strict=True)
        f = outputs(runs)
        exact, square = f.mean(0), float(f.var(0).sum() / f.mean(0).square().sum())
        groups = max(1, math.ceil(square / error**2))
        cells = [str(s), f"{math.sqrt(square):.2g}", str(groups), spread(over_rounds(seconds, "lower"))]
        print(f"| {' | '.join(cells)} | {groups * median(seconds):.3g} |", flush=True)
        if groups * median(seconds) < best["all"]:
            best = {"samples": s, "groups": groups, "each": seconds, "all": groups * median(seconds)}
    law = network_law(nets, asked, exact, widths, square / seeds, max(widths), sorted(widths)[-2])
    n, e, slow = best_split(law, error)
    ratios = over_rounds([slow / (best["groups"] * each) for each in best["each"]])
    return {**best, "seconds": best["all"], "N": n, "seeds": e, "networks": slow, "ratio": ratios, "law": law}


class _Kept(TorchDispatchMode):
    """Keeps the matrix products that are made within it, with what they multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if any(part in function.overloadpacket.__name__ for part in ("mm", "mv", "dot")):
            mine = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
            self.calls.append((function, mine, options or {}))
        return function(*arguments, **(options or {}))

    @torch.no_grad()
    def again(self) -> None:
        for function, arguments, options in self.calls:
            function(*arguments, **options)


def _limit_of(asked: mf.Problem, samples: int) -> ModuleLimit:
    population = Population(samples, 0, "sobol", torch.empty(0), Shard(samples))
    solver = replace(_LIMIT, samples=samples)
    return ModuleSweep(asked, population, solver.tolerances(asked), solver.rank_limit(asked)).network


def network_products(samples: int = 4096, steps: int = 20, rounds: int = 9) -> Table:
    """a step's processor time over that of its own matrix products, made again alone with what they multiplied: after 20 steps, a step from
    the same state, whose bases do not grow any more, and the mean of all 20, whose bases grow; S = 4096, float32. Goal: at most 2.
    """
    print(
        "| | ms of a step | ms of its products | step over products | mean of all steps over products | ranks |\n"
        + "|---" * 6
        + "|"
    )
    found: Table = {}
    for name, asked in {"convolutions": images(), "transformer": letters()}.items():
        method, eta = _limit_of(asked, samples), asked.training.learning_rate
        state = method.initial_state()

        def step(state: Any = None, method: ModuleLimit = method) -> Any:
            with torch.no_grad():
                return method.backward(method.forward(state, slice(0, len(method.data.x))))

        start = time.process_time()
        for _ in range(steps):
            state = weighted((1.0, eta), (state, step(state)))
        mean = (time.process_time() - start) / steps
        step(state)  # what this state reveals
        with _Kept() as kept:
            step(state)
        peers = interleaved({"step": partial(step, state), "products": kept.again}, rounds)
        over = ratio(peers["step"], peers["products"], better="lower")
        products = median(peers["products"].processor)
        found[name] = {"over products": over, "growing, over products": over_rounds([mean / products], "lower")}
        ranks = [(len(q.e), len(q.f)) for q in method.layers.values()]
        ms = [f"{1e3 * median(peer.processor):.3g}" for peer in peers.values()]
        print(f"| {name} | {' | '.join(ms)} | {spread(over)} | {mean / products:.3g} | {ranks} |", flush=True)
    return found


def filter_bases(samples: int = 4096, batch: int = 8, rounds: int = 5) -> Table:
    """a 3 x 3 convolution over 8 x 8 positions of 8 samples as one map of 9 offsets, which share their bases, against nine maps: processor
    time of a forward and backward pass, the first, in which the bases grow, and later ones; numbers held. S = 4096, float32, plain draws.
    """
    like, draw = torch.empty(0), torch.Generator().manual_seed(0)
    population = Population(samples, 0, "plain", like, Shard(samples))
    (where,), none = convolution((8, 8), (3, 3), (1, 1), (1, 1), (1, 1), "cpu").places, torch.zeros(0, 0)
    v, g = (
        torch.tanh(torch.randn(64 * batch, 16, generator=draw) @ torch.randn(16, samples, generator=draw)) for _ in "vg"
    )
    maps = {
        "one basis": [InfiniteDense(population.neurons(0), population.neurons(1), 0.03, like, None, 0.03, 9, 512)],
        "nine": [
            InfiniteDense(population.neurons(2 * k), population.neurons(2 * k + 1), 0.03, like) for k in range(1, 10)
        ],
    }

    def shared() -> None:
        (layer,) = maps["one basis"]
        layer.forward(v, none, where=where)
        layer.backward(g, none, where=where)

    def apart() -> None:
        for call, fields, table in (("forward", v, where.reads), ("backward", g, where.writes)):
            padded = torch.nn.functional.pad(fields.reshape(batch, 64, samples), (0, 0, 0, 1))
            for layer, positions in zip(maps["nine"], table, strict=True):
                getattr(layer, call)(padded[:, positions].flatten(0, 1), none)

    acts: dict[str, Callable[[], None]] = {"one basis": shared, "nine": apart}
    first = {name: clocked(act)[0] for name, act in acts.items()}
    later = interleaved(acts, rounds)
    held = {name: sum(_numbers(layer) for layer in layers) for name, layers in maps.items()}
    print("| | first pass, s | later ones, s | numbers held | ranks |\n|---|---|---|---|---|")
    for name, (layer, *_) in maps.items():
        seconds = spread(over_rounds(later[name].processor, "lower"))
        print(f"| {name} | {first[name]:.3g} | {seconds} | {held[name]:.3g} | {len(layer.e)}, {len(layer.f)} |")
    found = {
        "first": over_rounds([first["nine"] / first["one basis"]]),
        "later": ratio(later["nine"], later["one basis"]),
    }
    found["numbers"] = over_rounds([held["nine"] / held["one basis"]])
    print(
        f"\nnine over one: first {spread(found['first'])}, later {spread(found['later'])}, numbers {spread(found['numbers'])}"
    )
    return found


def _numbers(layer: InfiniteDense) -> int:
    return sum(rows.numel() for part in layer.growing().values() for rows in part.tensors().values())


def network_growth(samples: int = 4096, points: int = 8, steps: int = 20, rounds: int = 3) -> Table:
    """processor time of whole calls without snapshots with S, P, positions or T larger, over the base case (convolutions, S = 4096, P = 8,
    16 positions behind the first convolution, T = 20) in the same round; exponent: log of the ratio over log of the factor. Expected: 1 in
    each and less where ranks saturate; with P and positions ranks grow too, up to 2.
    """
    cases = {
        "base": (samples, images(points, steps), 1),
        "2 S": (2 * samples, images(points, steps), 2),
        "4 S": (4 * samples, images(points, steps), 4),
        "2 P": (samples, images(2 * points, steps), 2),
        "4 positions": (samples, images(points, steps, 2), 4),
        "2 T": (samples, images(points, 2 * steps), 2),
    }
    solver = replace(_LIMIT, snapshots=())
    peers = {name: partial(replace(solver, samples=s), asked) for name, (s, asked, _) in cases.items()}
    timings = interleaved(peers, rounds, warm_up=False)
    print("| | s | times the base case | exponent | ranks |\n|---|---|---|---|---|")
    found: Table = {}
    for name, (_, _, factor) in cases.items():
        seconds, grown = (
            over_rounds(timings[name].processor, "lower"),
            ratio(timings[name], timings["base"], better="lower"),
        )
        power = math.log(grown["median"]) / math.log(factor) if factor > 1 else math.nan
        found[name] = {} if factor == 1 else {"grown": grown, "exponent": power}
        ranks = timings[name].result.stats["ranks"]
        print(f"| {name} | {spread(seconds)} | {spread(grown)} | {power:.2f} | {ranks} |", flush=True)
    return found


_PERCEPTRONS = {"tanh": ("tanh", 3, 16, 30), "relu": ("relu", 2, 32, 10)}


def perceptron_as_module(
    samples: int = 4096, rounds: int = 3, problems: Mapping[str, Sequence[Any]] = _PERCEPTRONS
) -> Table:
    """CausalDMFT of a perceptron as a module over that of mf.Network, processor time of whole calls with defaults (kernels of modules at
    snapshots alone, of perceptrons at all steps), and without snapshots or kernels at all steps; S = 4096, float32, also with as many
    test points; by seed in turn: median [min, max]. Goal: at most 1.1.
    """
    bare = replace(_LIMIT, snapshots=(), two_time=False, samples=samples)
    solvers = {"defaults": replace(_LIMIT, samples=samples), "loop": bare}
    print(
        "| perceptron | P + test | Network, defaults: s | module over it | Network, loop: s | module over it |\n"
        + "|---" * 6
        + "|"
    )
    found: Table = {}
    for name, (activation, depth, points, steps) in problems.items():
        for tested in (0, points):
            asked = perceptrons(points, depth, activation, steps, tested)
            network = perceptron(asked.perceptron, asked.data.x.shape[1], 1)
            both = {"ours": replace(asked, network=network), "theirs": asked}
            row, cells = {}, []
            for kind, solver in solvers.items():
                runs = {side: [] for side in both}
                for one in both.values():
                    solver(one.with_steps(1))  # the first calls load code
                for seed in range(rounds):
                    for side, one in both.items():
                        runs[side].append(clocked(replace(solver, seed=seed), one)[0])
                row[kind] = over_rounds([a / b for a, b in zip(runs["ours"], runs["theirs"], strict=True)], "lower")
                cells += [f"{median(runs['theirs']):.3g}", spread(row[kind])]
            found[f"{name}, {points} + {tested}"] = row
            print(f"| {name}, L = {depth}, T = {steps} | {points} + {tested} | {' | '.join(cells)} |", flush=True)
    return found


BENCHMARKS = {
    "networks_to_error": networks_to_error,
    "network_products": network_products,
    "filter_bases": filter_bases,
    "network_growth": network_growth,
    "perceptron_as_module": perceptron_as_module,
}
