"""One step of a two-layer network (outputs, Delta, velocity) against the loops one would write, eager and compiled, and against what the
machine can do: a large matrix product, a large copy."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

import meanfield as mf
from meanfield.checking import checks
from meanfield.measures import reductions, tiles
from meanfield.network.activations import Activation
from tests.benchmarks.compiled import Compiled
from tests.benchmarks.timing import Timing, interleaved, over_rounds, ratio, rounds, spread

Sums = tuple[Tensor, Tensor, Tensor]


def by_autograd(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> Sums:
    """f, v_a, v_w by torch's gradient of the risk over one N x P matrix: the loop that a user would write"""
    return _by_gradient(risk, act, a, w, m, x, y)


def _by_gradient(of: Callable[..., Any], act: Activation, a: Tensor, w: Tensor, m: Tensor, *data: Tensor) -> Sums:
    a, w = a.detach().requires_grad_(), w.detach().requires_grad_()
    value, f = of(act, a, w, m, *data)
    grad_a, grad_w = torch.autograd.grad(value, (a, w))
    return f.detach(), grad_a / -m[:, None], grad_w / -m[:, None]


def risk(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The risk and f"""
    f = act.phi(x @ w.T) @ (m[:, None] * a)
    return 0.5 * (y - f).square().sum() / len(x), f


def by_loops(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> Sums:
    """The same without products of matrices, D unrolled: what a compiler can turn into two loops that never hold N x P numbers"""

    def fields(left: Tensor, right: Tensor) -> Tensor:
        return sum((u[:, None] * v[None] for u, v in zip(left.T, right.T, strict=True)), start=left.new_zeros(1, 1))

    f = (act.phi(fields(x, w)) * (m * a[:, 0])).sum(1, keepdim=True)
    h, delta = fields(w, x), (y - f)[:, 0] / len(x)
    slope = act.dphi(h) * delta
    return f, (act.phi(h) * delta).sum(1, keepdim=True), a * torch.stack([(slope * xk).sum(1) for xk in x.T], 1)


def by_sums(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> Sums:
    """The same by outputs and velocity, one after the other"""
    f = reductions.outputs(a, w, m, x, act)
    return f, *reductions.velocity(a, w, x, y - f, act)


def by_step(
    act: Activation,
    a: Tensor,
    w: Tensor,
    m: Tensor,
    x: Tensor,
    y: Tensor,
    room: tiles.Room | None = None,
    engine: reductions.Engine = "auto",
) -> Sums:
    """The same by one call, which may pass over the data once, in the memory of the step before, as WassersteinFlow does"""
    return reductions.step(a, w, m, x, lambda f, rows: y[rows] - f, act, engine, room=room)


def cloud(n: int, p: int, d: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """a, w, m, x, y of n particles and p points in d dimensions, |h| of order 1"""
    g = torch.Generator().manual_seed(0)
    a, w, x, y = (torch.randn(*s, generator=g, dtype=dtype) for s in ((n, 1), (n, d), (p, d), (p, 1)))
    return [t.to(device) for t in (a, w / d**0.5, torch.full((n,), 1 / n, dtype=dtype), x, y)]


_COLUMNS = (
    "phi",
    "precision",
    "D",
    "engine",
    "outputs + velocity, times autograd",
    "step, times autograd",
    "wall",
    "step, times compiled autograd",
    "step, times compiled loops",
    "compile s",
    "step over 4 N P D",
    "step over the copy",
)


def two_layer_step(
    device: str = "cpu",
    particles: int = 100_000,
    points: int = 1000,
    repetitions: int = 3,
    dimensions: Sequence[int] = (2, 10, 64, 784),
    dtypes: Sequence[str] = ("float32", "float64"),
    compiled: bool = True,
) -> dict:
    """one step, C = 1; processor time (on a GPU wall time), median [min, max] over rounds; how many times faster than: autograd; autograd
    compiled by torch.compile (D up to 64); loops without N x P numbers, compiled (D up to 10). How many times the least that the machine
    needs: 4 N P D operations, as many in products of square matrices of side 2000; reading the particles and writing their velocity once,
    as in a copy of 256 MiB. Compile s: wall time of the first calls of the two, with what inductor's cache on disk held.
    """
    print("| " + " | ".join(_COLUMNS) + " |\n" + "|---" * len(_COLUMNS) + "|")
    rows = {}
    for dtype in dtypes:
        for d in dimensions:
            for name in ("tanh", "relu"):
                problem = cloud(particles, points, d, checks.DTYPES[checks.dtype(dtype)], device)
                rows[f"{name} {dtype} D = {d}"] = _row(mf.activation(name), problem, repetitions, compiled)
    return {"particles": particles, "points": points, "rows": rows}


_SIDE, _COPIED = 2000, 2**28  # of the product; bytes


def _row(act: Activation, problem: list[Tensor], repetitions: int, compiled: bool) -> dict[str, Any]:
    a, w, _, x, _ = problem
    (n, d), clock = w.shape, "wall" if w.is_cuda else "processor"
    square, buffer = w.new_ones(_SIDE, _SIDE), w.new_ones(2, _COPIED // w.element_size())
    ways = {"autograd": by_autograd, "sums": by_sums, "step": partial(by_step, room=tiles.Room())}
    peers: dict[str, Any] = {key: lambda way=way: way(act, *problem) for key, way in ways.items()}
    found = _compiled_peers(act, problem) if compiled else {}
    peers |= {key: call for key, (watch, call, _) in found.items() if not watch.state}
    least = {"4 N P D": 4 * n * len(x) * d / (2 * _SIDE**3), "copy": (a.nbytes + w.nbytes) / _COPIED}
    count = max(1, int(least["4 N P D"] / 3))  # products for long enough to see what slows the step

    def products() -> None:
        for _ in range(count):
            torch.mm(square, square)

    least["4 N P D"] /= count
    limits = {"product": products, "copy": lambda: buffer[0].copy_(buffer[1])}
    timings = interleaved(peers | limits, repetitions)
    _agree({key: timings[key] for key in peers}, w.dtype)
    faster = {f"{key}, {of}": ratio(timings["autograd"], timings[key], of)
              for key in ("sums", "step") for of in dict.fromkeys((clock, "wall"))}  # fmt: skip
    faster |= {
        key: ratio(timings[key], timings["step"], clock) for key, (watch, _, _) in found.items() if not watch.state
    }
    above = {
        key: over_rounds([r / work for r in rounds(timings["step"], timings[limit], clock)], "lower")
        for (key, work), limit in zip(least.items(), limits, strict=True)
    }
    words = {key: watch.state or spread(faster[key]) for key, (watch, _, _) in found.items()}
    seconds = " + ".join(f"{first:.2g}" for _, _, first in found.values())
    engine = reductions.serving("auto", n, x, act)
    cells = [act.name, str(w.dtype)[6:], str(d), engine]
    cells += [spread(faster[key]) for key in (f"sums, {clock}", f"step, {clock}", "step, wall")]
    cells += [words.get("compiled", "-"), words.get("loops", "-"), seconds or "-", *map(spread, above.values())]
    print("| " + " | ".join(cells) + " |", flush=True)
    row = {"engine": engine, "times": faster, "over": above, "compiled": words, "compile_seconds": seconds}
    return row | {key: timing.summary() for key, timing in timings.items()}


def _compiled_peers(act: Activation, problem: list[Tensor]) -> dict[str, tuple[Compiled, Callable[[], Sums], float]]:
    """How it went, the call, seconds of the first call, of the compiled peers that are worth compiling at this D"""
    d, found = problem[1].shape[1], {}
    ways: dict[str, tuple[int, Callable[..., Any], Callable[..., Sums]]] = {
        "compiled": (64, risk, _by_gradient),
        "loops": (10, by_loops, lambda watch, *rest: watch(*rest)),
    }
    for key, (largest, function, way) in ways.items():
        if d <= largest:
            watch = Compiled(function)
            call = partial(way, watch, act, *problem)
            found[key] = watch, call, watch.first(call)
    return found


def _agree(timings: dict[str, Timing], dtype: torch.dtype) -> None:
    """RuntimeError unless all peers gave the same sums"""
    tolerance = 1e3 * torch.finfo(dtype).eps
    exact = timings["autograd"].result
    for key, timing in timings.items():
        for mine, right in zip(timing.result, exact, strict=True):
            apart = float((mine - right).abs().max() / right.abs().max())
            if not apart <= tolerance:
                raise RuntimeError(
                    f"{key} differs from autograd by {apart:.1g} of the largest entry: at most {tolerance:.1g} was expected"
                )
        timing.result = None


def two_layer_shapes(
    device: str = "cpu",
    particles: Sequence[int] = (1000, 10_000, 100_000),
    points: Sequence[int] = (10, 100, 1000),
    dimensions: Sequence[int] = (2, 20, 200),
    dtype: str = "float32",
    repetitions: int = 3,
) -> dict[str, Any]:
    """is `step` anywhere slower than dense? Processor time (on a GPU wall time) of autograd over one N x P matrix, and of the better of the
    two engines asked for by name, over that of `step`, which chooses by itself; median [min, max] over rounds of at least 20 ms each
    """
    print("| phi | D | N | P | engine | times autograd | times the better of dense and tiles |\n" + "|---" * 7 + "|")
    found = {}
    for name, d, n, p in product(("tanh", "relu"), dimensions, particles, points):
        act, problem = mf.activation(name), cloud(n, p, d, checks.DTYPES[checks.dtype(dtype)], device)
        room, clock = tiles.Room(), "wall" if problem[1].is_cuda else "processor"
        engines: dict[str, reductions.Engine] = {"step": "auto", "dense": "dense", "tiles": "chunked"}
        calls: dict[str, Callable[[], Any]] = {
            key: partial(by_step, act, *problem, room=room, engine=engine) for key, engine in engines.items()
        }
        peers = {
            key: _repeated(call) for key, call in (calls | {"autograd": partial(by_autograd, act, *problem)}).items()
        }
        timings = interleaved(peers, repetitions)
        each = {key: Timing([s / peers[key].keywords["count"] for s in t.processor], [s / peers[key].keywords["count"] for s in t.wall])
                for key, t in timings.items()}  # fmt: skip
        best = min(("dense", "tiles"), key=lambda key: median(getattr(each[key], clock)))
        over = {
            "autograd": ratio(each["autograd"], each["step"], clock),
            "best": ratio(each[best], each["step"], clock),
        }
        engine = reductions.serving("auto", n, problem[3], act)
        found[f"{name}, D = {d}, N = {n}, P = {p}"] = over
        print(f"| {name} | {d} | {n} | {p} | {engine} | {' | '.join(map(spread, over.values()))} |", flush=True)
    for key in ("autograd", "best"):
        least = min(found, key=lambda row: found[row][key]["median"])
        print(f"\nleast, {key}: {spread(found[least][key])} at {least}")
    return found


def _repeated(call: Callable[[], Any]) -> partial:
    """The call so often that the clock's steps do not count"""
    call()
    start = time.perf_counter()
    call()
    count = max(1, int(0.02 / (time.perf_counter() - start)))

    def several(count: int) -> None:
        for _ in range(count):
            call()

    return partial(several, count=count)


BENCHMARKS = {"two_layer_step": two_layer_step, "two_layer_shapes": two_layer_shapes}
