"""A whole run of WassersteinFlow, records and updates included, against the loop that a user would write: time, threads and memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

import meanfield as mf
from solvers import WassersteinFlow
from tests.benchmarks.timing import Timing, alone, interleaved, over_rounds, ratio, rounds, spread


def by_hand(asked: mf.Problem, measure: mf.ParticleMeasure) -> Tensor:
    """f (T+1, P, C) by autograd over one N x P matrix (with mini-batches N x batch, and N x P to record f)"""
    a, w, m = measure.a.clone().requires_grad_(), measure.w.clone().requires_grad_(), measure.m[:, None]
    x, y, phi = asked.perceptron.inputs(asked.data.x).to(w), asked.data.y.to(w), asked.perceptron.nonlinearity.phi
    gain, rate_a, rate_w = asked.in_plane.measure_limit()
    training, records = asked.training, []
    batches = list(training.batches(len(x)))
    for step in range(training.steps + 1):
        chosen = None if step == training.steps else batches[step]
        batch = slice(None) if chosen is None else chosen
        f = gain * phi(x[batch] @ w.T) @ (m * a)
        grads = torch.autograd.grad(0.5 * (y[batch] - f).square().sum() / len(f), (a, w))
        with torch.no_grad():
            records.append(f.detach() if len(f) == len(x) else gain * phi(x @ w.T) @ (m * a))
            if step < training.steps:
                for tensor, grad, rate in zip((a, w), grads, (rate_a, rate_w), strict=True):
                    tensor -= training.learning_rate * rate / gain * grad / m
    return torch.stack(records)


def problem(activation: str, points: int, inputs: int, steps: int, batch: int | None = None) -> mf.Problem:
    """Random data, labels of the first coordinate's sign"""
    x = torch.randn(points, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    training = mf.Training(0.1, steps, batch_size=batch)
    return mf.Problem(mf.Dataset(x, torch.sign(x[:, :1])), mf.Network(1, activation), mf.mean_field(1.0), training)


def two_layer_run(
    device: str = "cpu",
    particles: int = 50_000,
    points: int = 500,
    steps: int = 4,
    batch: int = 100,
    repetitions: int = 3,
    dimensions: Sequence[int] = (2, 64, 784),
    threads: Sequence[int] = (1, 2),
) -> dict[str, Any]:
    """a whole run in float32 from a given measure, f recorded at every step, by WassersteinFlow and by a loop of autograd that does the
    same: wall time of the loop over ours in the same round, median [min, max]; with full batches and with mini-batches; how much faster
    ours is with more threads; then memory: peak beyond what a small run of the same kind leaves, each in a process of its own.
    """
    print(
        f"N = {particles}, P = {points}, T = {steps}, float32, wall time, threads of torch: {', '.join(map(str, threads))}\n"
    )
    heads = [f"times the loop, {count} threads" if count > 1 else "times the loop, 1 thread" for count in threads]
    heads += [f"ours, {count} threads over {threads[0]}" for count in threads[1:]]
    print("| phi | D | batch | s | " + " | ".join(heads) + " |\n" + "|---" * (4 + len(heads)) + "|")
    found: dict[str, Any] = {}
    for d in dimensions:
        for name in ("tanh", "relu"):
            for size in (None, batch):
                asked, row = problem(name, points, d, steps, size), f"{name}, D = {d}, batch {size or 'full'}"
                timings = {count: _timed(asked, particles, device, repetitions, count) for count in threads}
                found[row] = _compared(timings)
                cells = [name, str(d), str(size or "all"), spread(timings[threads[0]]["ours"].summary()["wall"], 2)]
                print(f"| {' | '.join(cells + [spread(r) for r in found[row].values()])} |", flush=True)
    return found | {"memory": _memory(particles, points, max(dimensions), device)}


def _timed(asked: mf.Problem, particles: int, device: str, repetitions: int, threads: int) -> dict[str, Timing]:
    """RuntimeError unless both gave the same f"""
    solver = WassersteinFlow(particles, initial="iid", dtype="float32", device=device, snapshots=(), progress=False)
    measure = solver.initial_measure(asked)
    own = WassersteinFlow(initial=measure, dtype="float32", device=device, snapshots=(), progress=False)
    with _threads(threads):
        timings = interleaved({"hand": partial(by_hand, asked, measure), "ours": lambda: own(asked).f}, repetitions)
    f, expected = timings["ours"].result.cpu(), timings["hand"].result.cpu()
    apart = float((f - expected).norm() / expected.norm())
    if not apart < 1e-4:
        raise RuntimeError(f"the two runs differ by {apart:.1g}: at most 1e-4 was expected")
    return timings


def _compared(timings: dict[int, dict[str, Timing]]) -> dict[str, dict[str, Any]]:
    faster = {f"{count} threads": ratio(peers["hand"], peers["ours"], "wall") for count, peers in timings.items()}
    (first, one), *more = timings.items()
    gains = {f"{count} over {first}": over_rounds(rounds(one["ours"], peers["ours"], "wall")) for count, peers in more}
    return faster | gains


def _memory(particles: int, points: int, inputs: int, device: str) -> dict[str, Any]:
    """Prints and returns the peaks of both ways"""
    print("\n| D | ours, GB | the loop, GB | the loop over ours |\n|---|---|---|---|")
    found = {}
    for d in (2, inputs):
        peaks: dict[str, list[float]] = {"ours": [], "hand": []}
        for _ in range(3):
            for way, gigabytes in peaks.items():
                run = alone(_ALONE.format(way=way, points=points, d=d), _SMALL.format(particles=particles, d=d))
                gigabytes.append(run["peak_gb"] - run["before_gb"])
        more = over_rounds([hand / ours for ours, hand in zip(peaks["ours"], peaks["hand"], strict=True)])
        found[f"D = {d}"] = {"over": more} | peaks
        cells = [spread(over_rounds(values), 2) for values in peaks.values()]
        print(f"| {d} | {' | '.join(cells)} | {spread(more)} |", flush=True)
    return found


# a small run of both ways loads their code; the measure exists before memory counts
_SMALL = """from tests.benchmarks.two_layer_run import by_hand, problem
from solvers import WassersteinFlow
def ways(measure):
    flow = WassersteinFlow(initial=measure, dtype="float32", snapshots=(), progress=False)
    return dict(ours=flow, hand=lambda asked: by_hand(asked, measure))
small = problem("tanh", 4, {d}, 1)
iid = lambda n: WassersteinFlow(n, initial="iid", dtype="float32").initial_measure(small)
for way in ways(iid(64)).values():
    way(small)
measure = iid({particles})
"""
_ALONE = "asked = problem('tanh', {points}, {d}, 2)\nways(measure)['{way}'](asked)\nout = dict()"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


BENCHMARKS = {"two_layer_run": two_layer_run}
