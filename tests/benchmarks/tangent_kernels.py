"""Processor time of `module_tangent_kernel`: each of its three ways, and what it chooses, against the plain way with torch.func."""

import math
from collections.abc import Callable
from itertools import pairwise
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import solvers.finite.module_derivatives as derivatives
import solvers.finite.module_tangent_kernel as tangent
from solvers import module_tangent_kernel
from solvers.finite.module_derivatives import Differentiated, plain_operations
from tests.any_networks import Language
from tests.benchmarks.timing import Timing, interleaved, over_rounds, ratio, spread

WAYS = {  # PER_PRODUCT, PER_PASS by which one way is taken wherever it can be
    "entries": (math.inf, math.inf),
    "factors": (-math.inf, math.inf),
    "products with vectors": (derivatives.PER_PRODUCT, 0),
}


def perceptron(width: int, outputs: int) -> nn.Module:
    sizes = (64, width, width, outputs)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convolutional(channels: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()),
        *(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10)),
    )


def plainly(module: nn.Module, x: Tensor) -> Tensor:
    """(P, O, P, O) from the derivatives of all samples in all parameters, as one writes it down with torch.func"""
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def f(own: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(module, own, (one[None],)).flatten()

    found = vmap(jacrev(f), (None, 0))(weights, x)
    j = torch.cat([slope.flatten(2) for slope in found.values()], 2)
    return (j.flatten(0, 1) @ j.flatten(0, 1).T).view(*j.shape[:2], *j.shape[:2])


def in_way(module: nn.Module, x: Tensor, way: str) -> Callable[[], Tensor]:
    def run() -> Tensor:
        product, one_pass = WAYS[way]
        with patch.object(derivatives, "PER_PRODUCT", product), patch.object(tangent, "PER_PASS", one_pass):
            return module_tangent_kernel(module, x)

    return run


def module_tangent_kernels(repetitions: int = 3) -> dict:
    """Tangent kernels of torch modules, float64, one thread: processor seconds, taking turns"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cases: dict[str, tuple[nn.Module, Tensor]] = {
            "perceptron, 1 output": (perceptron(256, 1), torch.randn(64, 64, generator=g)),
            "perceptron, 10 outputs": (perceptron(256, 10), torch.randn(32, 64, generator=g)),
            "convolutions, 10 outputs": (convolutional(24), torch.randn(10, 1, 8, 8, generator=g)),
            "transformer, 104 outputs": (Language(64), torch.randint(0, 13, (4, 8), generator=g)),
        }
    sums = _sums()
    print(
        "| | chosen: s | " + " | ".join(WAYS) + " | torch.func | torch.func over chosen | a number of a sum | a pass |"
    )
    print("|---" * 8 + "|")
    found = {}
    with plain_operations():
        for name, (module, x) in cases.items():
            x = x.double() if x.is_floating_point() else x
            found[name] = _case(name, module.double(), x, repetitions, sums)
    torch.set_num_threads(threads)
    return found


def _sums() -> float:
    """Seconds that a number of a sum over rows takes, as factors have them"""
    b, o, r = 8, 4, 24
    lefts, rights = torch.ones(b, o, r, b, o, r, dtype=torch.float64), torch.ones(b, r, b, r, dtype=torch.float64)
    runs = {"sum": lambda: [(lefts * rights[:, None, :, :, None, :]).sum((2, 5)) for _ in range(20)]}
    return min(interleaved(runs, 5)["sum"].processor) / (20 * lefts.numel())


def _case(name: str, module: nn.Module, x: Tensor, repetitions: int, sums: float) -> dict:
    runs = {way: in_way(module, x, way) for way in WAYS}
    runs |= {"chosen": lambda: module_tangent_kernel(module, x), "torch.func": lambda: plainly(module, x)}
    timings: dict[str, Timing] = interleaved(runs, repetitions)
    right = timings["torch.func"].result
    for way, timing in timings.items():
        apart = float((timing.result.reshape(right.shape) - right).abs().max() / right.abs().max())
        assert apart < 1e-10, (name, way, apart)
    kernel = Differentiated(module, dict.fromkeys(dict(module.named_parameters()), 1.0), x)
    pairs, o = len(x) * (len(x) + 1) / 2, kernel.outputs
    seconds = {way: min(timing.processor) for way, timing in timings.items()}
    entry = seconds["entries"] / (pairs * o**2 * kernel.parameters)  # of a multiplication
    one_pass = seconds["products with vectors"] / (pairs * o * kernel.pass_work)
    own = ratio(timings["torch.func"], timings["chosen"])
    print(
        f"| {name} | {seconds['chosen']:.3g} | "
        + " | ".join(f"{seconds[way]:.3g}" for way in (*WAYS, "torch.func"))
        + f" | {spread(own)} | {sums / entry:.2g} | {one_pass / entry:.2g} |"
    )
    best = [min(turn) for turn in zip(*(timings[way].processor for way in WAYS), strict=True)]
    chosen = [a / b for a, b in zip(timings["chosen"].processor, best, strict=True)]
    return {"torch.func over ours": own, "chosen over the best way": over_rounds(chosen, "lower")}


BENCHMARKS = {"module_tangent_kernels": module_tangent_kernels}
