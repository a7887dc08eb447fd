"""Sums of two-layer networks: the engines beside what the card can do, which one `auto` should take, and how KeOps' sums are best split."""

from functools import partial
from itertools import product

import torch

import meanfield as mf
from meanfield.checking import checks
from meanfield.measures import keops, reductions, tiles
from tests.benchmarks.two_layer import by_step, cloud
from tests.gpu.card import Card, row

ENGINES: tuple[reductions.Engine, ...] = ("dense", "chunked", "keops")


def ceilings(card: Card) -> None:
    """bytes read and written per second in a large copy; operations per second in a large product; tanh per second"""
    buffer = torch.empty(2, card.size(2**28, 2**20), dtype=torch.float32, device=card.device)
    found = card.seconds(lambda: buffer[0].copy_(buffer[1]))
    row(what="copy", per_second=2 * buffer[0].nbytes / found["median"], seconds=found)
    found = card.seconds(lambda: torch.tanh(buffer[1], out=buffer[0]))
    row(what="tanh float32", per_second=buffer.shape[1] / found["median"], seconds=found)
    for kind, tf32 in (("float32", False), ("float32", True), ("float64", False)):
        if tf32 and not card.device.startswith("cuda"):
            continue
        side = card.size(8192, 256)
        left, right = (torch.randn(side, side, dtype=checks.DTYPES[kind], device=card.device) for _ in range(2))
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
        found = card.seconds(lambda l=left, r=right: l @ r)
        torch.backends.cuda.matmul.allow_tf32 = before
        row(what=f"product {'tf32' if tf32 else kind}", per_second=2 * side**3 / found["median"], seconds=found)


def engines(card: Card) -> None:
    """one step (outputs and velocity), C = 1; its least work is 4 N P D operations and N P values of phi"""
    cases = [("tanh", "float32", d) for d in (2, 10, 64, 784)] + [("relu", "float32", d) for d in (2, 64)]
    cases += [("tanh", "float64", d) for d in (2, 64, 784)]
    cases = cases[: 1 if card.tiny else None]
    for engine in ENGINES:
        for name, kind, d in cases:
            if engine != "keops" or d <= 100:
                _step(card, engine, name, kind, d, card.size(2**20 if d <= 64 else 2**18, 512))


def keops_wide(card: Card) -> None:
    """one step by KeOps where D is large: the reason why `auto` does not take it there; compiling can take minutes"""
    _step(card, "keops", "tanh", "float32", card.size(784, 2), card.size(2**18, 64))


def _step(card: Card, engine: reductions.Engine, name: str, kind: str, d: int, n: int) -> None:
    act, p = mf.activation(name), card.size(1000, 20)
    problem = cloud(n, p, d, checks.DTYPES[kind], card.device)
    served = reductions.serving(engine, n, problem[3], act)
    if served != engine:
        row(phi=name, dtype=kind, D=d, N=n, P=p, engine=engine, why=f"{served} serves instead")
        return
    step = partial(by_step, act, *problem, room=tiles.Room(), engine=engine)
    (_, memory), found = card.peak(step), card.seconds(step)
    pairs = n * p
    row(phi=name, dtype=kind, D=d, N=n, P=p, engine=engine, seconds=found, operations=4 * pairs * d,
        pairs_per_second=pairs / found["median"], memory_gb=memory)  # fmt: skip


def tile_sizes(card: Card) -> None:
    """one step by tiles of so many bytes, float32: seconds"""
    before = tiles._CUDA_TILE
    for name, d in [*product(("tanh", "relu"), (2, 64)), ("tanh", 784)][: 1 if card.tiny else None]:
        n, act = card.size(2**20 if d <= 64 else 2**18, 512), mf.activation(name)
        problem, seconds = cloud(n, card.size(1000, 20), d, torch.float32, card.device), {}
        for size in (22, 23, 24, 25, 26, 27, 28, 29, 30)[: 2 if card.tiny else None]:
            tiles._CUDA_TILE = 2**size
            step = partial(by_step, act, *problem, room=tiles.Room(), engine="chunked")
            seconds[f"2^{size}"] = card.seconds(step, least=0.05)["median"]
        row(phi=name, N=n, D=d, best=min(seconds, key=seconds.__getitem__), **seconds)
    tiles._CUDA_TILE = before


def choice(card: Card) -> None:
    """the engine that `auto` takes against the fastest, tanh, float32"""
    shapes = [
        *product((2**10, 2**14, 2**18, 2**22), (30, 1000), (2, 20)),
        *product((2**10, 2**14, 2**18), (1000,), (100, 500)),
    ]
    for n, p, d in shapes if not card.tiny else [(64, 10, 2)]:
        problem, act = cloud(n, p, d, torch.float32, card.device), mf.activation("tanh")
        seconds = {}
        for engine in ENGINES:
            if engine == "dense" and not card.holds(5 * 4 * n * p):  # the five (N, P) arrays of a dense step
                continue
            if reductions.serving(engine, n, problem[3], act) == engine and not (engine == "keops" and d > 100):
                step = partial(by_step, act, *problem, room=tiles.Room(), engine=engine)
                seconds[engine] = card.seconds(step, least=0.05)
        best, auto = min(seconds, key=lambda e: seconds[e]["median"]), reductions.serving("auto", n, problem[3], act)
        row(
            N=n,
            P=p,
            D=d,
            auto=auto,
            best=best,
            auto_over_best=seconds[auto]["median"] / seconds[best]["median"],
            **seconds,
        )


def parts(card: Card) -> None:
    """KeOps' outputs with the sum over particles split into as many rows of partial sums as _CUDA_ROWS says"""
    n, d, act = card.size(2**22, 2**10), 2, mf.activation("tanh")
    for p in (10, 100, 1000, 10_000)[: 1 if card.tiny else None]:
        a, w, m, x, _ = cloud(n, p, d, torch.float32, card.device)
        if reductions.serving("keops", n, x, act) != "keops":
            row(N=n, P=p, why="no KeOps")
            return
        before, seconds = keops._CUDA_ROWS, {}
        for rows in (1, 2**14, 2**16, 2**17, 2**18, 2**19, 2**20, 2**22)[: 2 if card.tiny else None]:
            keops._CUDA_ROWS = rows
            call = partial(reductions.outputs, a, w, m, x, act, "keops")
            seconds[f"rows {rows}"] = card.seconds(call, least=0.05)["median"]
        keops._CUDA_ROWS = before
        row(N=n, P=p, D=d, best=min(seconds, key=seconds.__getitem__), **seconds)
