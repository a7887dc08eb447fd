"""Whole runs on one card: many particles, a deep sweep, networks."""

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import torch

import meanfield as mf
from meanfield.measures import tiles
from solvers import CausalDMFT, FiniteWidth, Interrupted, WassersteinFlow
from tests.benchmarks.two_layer import by_step
from tests.gpu.card import Card, row


def particles(card: Card) -> None:
    """10^7 and 10^8 particles, D = 2, P = 100, tanh, float32: one step, and the whole call of WassersteinFlow with its default records"""
    p, act = card.size(100, 10), mf.activation("tanh")
    for n in (card.size(10**7, 10**3), card.size(10**8, 10**4)):
        problem = _cloud(n, p, card.device)
        step = partial(by_step, act, *problem, room=tiles.Room())
        (_, memory), found = card.peak(step), card.seconds(step)
        row(what="one step", N=n, P=p, seconds=found, pairs_per_second=n * p / found["median"], memory_gb=memory)
        del problem, step
    problem = _problem(p, 2, 1, card.size(20, 2))
    for n in (card.size(10**6, 10**3), card.size(10**7, 10**4)):
        solver = WassersteinFlow(n, dtype="float32", device=card.device, progress=False)
        start = time.perf_counter()
        solution, memory = card.peak(partial(solver, problem))
        whole = time.perf_counter() - start
        row(what="WassersteinFlow, whole call", N=n, P=p, T=solution.steps, engine=solution.stats["engine"], whole_s=whole,
            loop_s=solution.stats["seconds"], memory_gb=memory, loss=float(solution.loss[-1]))  # fmt: skip


def _cloud(n: int, p: int, device: str) -> list[torch.Tensor]:
    """As `cloud`, drawn on the device"""
    g = torch.Generator(device).manual_seed(0)
    a, w, x, y = (torch.randn(*s, generator=g, device=device) for s in ((n, 1), (n, 2), (p, 2), (p, 1)))
    return [a, w / 2**0.5, torch.full((n,), 1 / n, device=device), x, y]


def _problem(samples: int, inputs: int, depth: int, steps: int, activation: str = "tanh") -> mf.Problem:
    return mf.Problem(
        mf.single_index_teacher(n_train=samples, n_test=8, inputs=inputs, seed=1),
        mf.Network(depth, activation),
        mf.mean_field(1.0),
        mf.Training(0.2, steps),
    )


def deep(card: Card) -> None:
    """CausalDMFT, tanh, L = 3, D = 20, P = 256, T = 200, S = 10^5, float32, default records; the first row is the warm-up of 5 steps"""
    s, p = card.size(100_000, 200), card.size(256, 8)
    for steps, limit in ((card.size(5, 1), 60), (card.size(200, 2), 110)):
        problem = _problem(p, 20, 3, steps)
        solver = CausalDMFT(s, device=card.device, progress=False, snapshots=(0,))
        start = time.perf_counter()
        solution, memory = card.peak(partial(_at_most, limit, partial(solver, problem)))
        whole, ranks = time.perf_counter() - start, solution.stats["ranks"]
        products = (
            2 * s * sum(k + j for k, j in ranks) * p * 4
        )  # forward and backward, each once along and once across the basis
        row(what="CausalDMFT", S=s, P=p, T=problem.training.steps, done=solution.steps, whole_s=whole, loop_s=solution.stats["seconds"],
            ranks=ranks, last_step_operations=products, memory_gb=memory, loss=float(solution.loss[-1]))  # fmt: skip


def _at_most(seconds: float, call: partial) -> mf.Solution:
    """The solution, or what of it was there when the time was up"""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        return call()
    except Interrupted as error:
        if error.solution is None:
            raise
        return error.solution
    finally:
        timer.cancel()


class Residual(torch.nn.Module):
    """Two residual branches of twice the width behind layer norms"""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read, self.out = torch.nn.Linear(20, n), torch.nn.Linear(n, 1)
        self.norm = torch.nn.ModuleList(torch.nn.LayerNorm(n) for _ in range(2))
        self.up = torch.nn.ModuleList(torch.nn.Linear(n, 2 * n) for _ in range(2))
        self.down = torch.nn.ModuleList(torch.nn.Linear(2 * n, n) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        for norm, up, down in zip(self.norm, self.up, self.down, strict=True):
            h = h + down(torch.relu(up(norm(h))))
        return self.out(h)


class Filters(torch.nn.Module):
    """Two convolutions of 20 positions, averaged"""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.read, self.mix = torch.nn.Conv1d(1, n, 3, padding=1), torch.nn.Conv1d(n, n, 3, padding=1)
        self.out = torch.nn.Linear(n, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.mix(torch.tanh(self.read(x[:, None])))).mean(-1))


def modules(card: Card) -> None:
    """Networks written as torch modules, float32, 20 steps, default records: CausalDMFT (P = 128, S = 32768), FiniteWidth (8 seeds)"""
    steps, p = card.size(20, 2), card.size(128, 4)
    solvers = [CausalDMFT(card.size(32768, 512)), FiniteWidth(card.size(1024, 8), dtype="float32")]
    for network in (Residual, Filters):
        for solver in solvers:
            asked = replace(_problem(p, 20, 1, steps), network=network)
            there = replace(solver, device=card.device, progress=False)
            call = partial(there.ensemble, asked, 8) if isinstance(there, FiniteWidth) else partial(there, asked)
            start = time.perf_counter()
            found, memory = card.peak(call)
            one = found[0] if isinstance(found, list) else found
            row(what=type(solver).__name__, network=network.__name__, P=p, T=steps, whole_s=time.perf_counter() - start,
                loop_s=one.stats["seconds"], ranks=one.stats.get("ranks"), memory_gb=memory, loss=float(one.loss[-1]))  # fmt: skip


def networks(card: Card) -> None:
    """FiniteWidth, tanh, L = 3, P = 64, D = 20, float32, default records; least work: 6 operations per hidden weight and sample"""
    steps, p = card.size(50, 2), card.size(64, 4)
    for n, seeds in ((128, 64), (1024, 16), (4096, 4)) if not card.tiny else ((16, 2),):
        solver = FiniteWidth(n, dtype="float32", device=card.device, progress=False)
        problem = _problem(p, 20, 3, steps)
        solver.ensemble(problem.with_steps(1), seeds)
        start = time.perf_counter()
        nets, memory = card.peak(partial(solver.ensemble, problem, seeds))
        whole = time.perf_counter() - start
        loop = sum(net.stats["seconds"] for net in nets)
        row(what="FiniteWidth", N=n, seeds=seeds, T=steps, whole_s=whole, loop_s=loop,
            operations=6 * 2 * n * n * p * seeds * (steps + 1), memory_gb=memory)  # fmt: skip
