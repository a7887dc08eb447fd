"""One step of a two-layer network (outputs, Delta, velocity) against the autograd loop one would write, and against matrix products."""

from typing import Any

import torch
from torch import Tensor

import meanfield as mf
from meanfield import reductions
from meanfield.activations import Activation
from tests.benchmarks.timing import Timing, interleaved, ratio, spread

Sums = tuple[Tensor, Tensor, Tensor]


def by_autograd(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> Sums:
    """f, v_a, v_w by torch's gradient of the risk over one N x P matrix: the loop that a user would write"""
    a, w = a.detach().requires_grad_(), w.detach().requires_grad_()
    f = act.phi(x @ w.T) @ (m[:, None] * a)
    grad_a, grad_w = torch.autograd.grad(0.5 * (y - f).square().sum() / len(x), (a, w))
    return f.detach(), grad_a / -m[:, None], grad_w / -m[:, None]


def by_sums(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> Sums:
    """The same by outputs and velocity, as WassersteinFlow does"""
    f = reductions.outputs(a, w, m, x, act)
    return f, *reductions.velocity(a, w, x, y - f, act)


def by_step(act: Activation, a: Tensor, w: Tensor, m: Tensor, x: Tensor, y: Tensor) -> Sums:
    """The same by one call, which may pass over the data once"""
    return reductions.step(a, w, m, x, lambda f, rows: y[rows] - f, act)


def cloud(n: int, p: int, d: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """a, w, m, x, y of n particles and p points in d dimensions, |h| of order 1"""
    g = torch.Generator().manual_seed(0)
    a, w, x, y = (torch.randn(*s, generator=g, dtype=dtype) for s in ((n, 1), (n, d), (p, d), (p, 1)))
    return [t.to(device) for t in (a, w / d**0.5, torch.full((n,), 1 / n, dtype=dtype), x, y)]


def two_layer_step(device: str = "cpu", particles: int = 100_000, points: int = 1000, repetitions: int = 3) -> dict:
    """one step, C = 1; times autograd: how many times faster (median [min, max] of rounds); times 4 N P D: time over that of as many
    operations in a product of square matrices of side 2000 (the least that the step's own products need).
    """
    print(
        "| phi | precision | D | engine | outputs + velocity, times autograd | step, times autograd | wall | step, times 4 N P D |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for dtype in (torch.float32, torch.float64):
        for d in (2, 10, 64, 784):
            for name in ("tanh", "relu"):
                rows.append(_row(mf.activation(name), dtype, d, device, particles, points, repetitions))
    return {"particles": particles, "points": points, "rows": rows}


def _row(act: Activation, dtype: torch.dtype, d: int, device: str, n: int, p: int, repetitions: int) -> dict[str, Any]:
    problem, side = cloud(n, p, d, dtype, device), 2000
    square = torch.ones(side, side, dtype=dtype, device=device)
    ways = {"autograd": by_autograd, "sums": by_sums, "step": by_step}
    peers: dict[str, Any] = {key: lambda way=way: way(act, *problem) for key, way in ways.items()}
    timings = interleaved(peers | {"product": lambda: square @ square}, repetitions)
    _agree(timings, dtype)
    faster = {
        f"{key}_{clock}": ratio(timings["autograd"], timings[key], clock)
        for key in ("sums", "step")
        for clock in ("processor", "wall")
    }
    work = 4 * n * p * d / (2 * side**3)
    against = {k: v / work for k, v in ratio(timings["step"], timings["product"]).items()}
    engine = reductions.choose(n, p, d, torch.device(device), act)
    cells = [spread(faster[key]) for key in ("sums_processor", "step_processor", "step_wall")] + [spread(against)]
    print(f"| {act.name} | {str(dtype)[6:]} | {d} | {engine} | " + " | ".join(cells) + " |", flush=True)
    found = {
        "activation": act.name,
        "dtype": str(dtype),
        "D": d,
        "engine": engine,
        "faster": faster,
        "times_4NPD": against,
    }
    return found | {key: t.summary() for key, t in timings.items()}


def _agree(timings: dict[str, Timing], dtype: torch.dtype) -> None:
    """RuntimeError unless all peers gave the same sums"""
    tolerance = 1e3 * torch.finfo(dtype).eps
    for key in ("sums", "step"):
        for found, exact in zip(timings[key].result, timings["autograd"].result, strict=True):
            apart = float((found - exact).abs().max() / exact.abs().max())
            if not apart <= tolerance:
                raise RuntimeError(
                    f"{key} differs from autograd by {apart:.1g} of the largest entry: at most {tolerance:.1g} was expected"
                )
        timings[key].result = None
    timings["autograd"].result = None


BENCHMARKS = {"two_layer_step": two_layer_step}
