"""Networks whose matrices are revealed as they are used, against those that hold them, by width."""

from collections.abc import Sequence
from typing import Any

import meanfield as mf
from solvers import FiniteWidth, RevealedWidth
from tests.benchmarks.any_networks import images, letters
from tests.benchmarks.dmft import digits
from tests.benchmarks.timing import interleaved, ratio, spread


def revealed_networks(
    widths: Sequence[int] = (256, 512, 1024, 2048, 4096),
    alone: Sequence[int] = (16384, 100_000),
    repetitions: int = 3,
) -> dict[str, Any]:
    """Whole calls with default settings, one network: FiniteWidth against RevealedWidth, and the latter alone; tanh, L = 2, P = 8, T = 20;
    median [min, max] over rounds. K: directions of features and of gradients that were revealed
    """
    return _compared(digits(8, 2, "tanh", 20), widths, alone, repetitions)


def revealed_modules(
    widths: Sequence[int] = (256, 1024, 2048), alone: Sequence[int] = (10_000,), repetitions: int = 3
) -> dict[str, Any]:
    """The same of two convolutions with stride, tanh, P = 8, T = 10, and of a transformer block of 6 sentences of 8 letters"""
    found = {}
    for name, asked in {"convolutions": images(steps=10), "transformer": letters(steps=10)}.items():
        print(f"\n{name}:\n")
        found[name] = _compared(asked, widths, alone, repetitions)
    return found


def _compared(
    asked: mf.Problem, widths: Sequence[int], alone: Sequence[int], repetitions: int
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    print("| N | FiniteWidth: wall s | RevealedWidth: wall s | ratio | K |\n|---|---|---|---|---|")
    for width in widths:
        held, revealed = FiniteWidth(width), RevealedWidth(width)
        calls = {"held": lambda held=held: held(asked), "revealed": lambda revealed=revealed: revealed(asked)}
        peers = interleaved(calls, repetitions)
        faster = ratio(peers["held"], peers["revealed"], "wall")
        cells = [spread(peers[name].summary()["wall"]) for name in calls]
        found[str(width)] = {name: peer.summary() for name, peer in peers.items()} | {"ratio": faster}
        print(f"| {width} | {' | '.join(cells)} | {spread(faster)} | {_ranks(peers['revealed'].result)} |", flush=True)
    for width in alone:
        solver = RevealedWidth(width)
        peer = interleaved({"revealed": lambda solver=solver: solver(asked)}, 1, warm_up=False)["revealed"]
        found[str(width)] = {"revealed": peer.summary()}
        print(f"| {width} | - | {peer.wall[0]:.3g} | - | {_ranks(peer.result)} |", flush=True)
    return found


def _ranks(solution: Any) -> str:
    return ", ".join(f"{k} and {j}" for k, j in solution.stats["ranks"])


BENCHMARKS = {"revealed_networks": revealed_networks, "revealed_modules": revealed_modules}
