"""Processor time of lazy kernels against a straightforward numpy recursion in the same run."""

import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import meanfield as mf
from meanfield.kernels.dense_kernels import nngp_and_ntk
from solvers import KernelBlocks
from tests.benchmarks.timing import interleaved, over_rounds, ratio, spread
from tests.memory import forget_peak, peak


def numpy_recursion(x: np.ndarray, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of `hidden` ReLU layers with unit weights, as one writes them down from equation 43"""
    sigma = x @ x.T / x.shape[1]
    theta = sigma.copy()
    for _ in range(hidden):
        std = np.sqrt(np.diag(sigma))
        norm = np.outer(std, std)
        angle = np.arccos(np.clip(sigma / norm, -1, 1))
        sigma = norm * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / (2 * math.pi)
        theta = sigma + theta * (math.pi - angle) / (2 * math.pi)
    return sigma, theta


def frugal_numpy_recursion(x: np.ndarray, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with as few transcendental functions and temporaries as plain numpy allows: the fairer opponent"""
    sigma = x @ x.T
    sigma /= x.shape[1]
    theta = sigma.copy()
    for _ in range(hidden):
        std = np.sqrt(np.diag(sigma))
        rho = sigma / std[:, None]
        rho /= std
        np.clip(rho, -1, 1, out=rho)
        rest = np.arccos(rho)
        np.subtract(math.pi, rest, out=rest)
        sigma = np.sqrt(1 - rho * rho)
        rho *= rest
        sigma += rho
        sigma *= (std / (2 * math.pi))[:, None]
        sigma *= std
        rest /= 2 * math.pi
        theta *= rest
        theta += sigma
    return sigma, theta


def dense_relu(points: int = 2000, inputs: int = 784, hidden: int = 3, repetitions: int = 7) -> dict:
    """NNGP + NTK of hidden ReLU layers, float64: processor seconds, interleaved repetitions, one thread"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.randn(points, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = mf.Network(hidden, "relu")
    runs = {
        "meanfield": lambda: nngp_and_ntk(network, mf.ntk(), x),
        "numpy": lambda: numpy_recursion(x.numpy(), hidden),
        "frugal numpy": lambda: frugal_numpy_recursion(x.numpy(), hidden),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.process_time()
            results[name] = run()
            seconds[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    ours = [k.numpy() for k in results["meanfield"]]
    apart = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, results["numpy"], strict=True))
    found: dict = {
        "points": points,
        "inputs": inputs,
        "hidden": hidden,
        "seconds": seconds,
        "relative_difference": apart,
    }
    print("| | processor s, min | median | max | times ours, min | median | max |\n|---|---|---|---|---|---|---|")
    for name, many in seconds.items():
        ratio = [a / b for a, b in zip(many, seconds["meanfield"], strict=True)]
        if name != "meanfield":
            found[f"{name} over ours"] = over_rounds(ratio)
        cells = [min(many), statistics.median(many), max(many), min(ratio), statistics.median(ratio), max(ratio)]
        print(f"| {name} | " + " | ".join(f"{c:.3g}" for c in cells) + " |")
    print(f"\nlargest difference from numpy, relative: {apart:.1e} (its rounding on the diagonal)")
    return found


def kernel_blocks(points: int = 10_000, inputs: int = 784, hidden: int = 3, repetitions: int = 2) -> dict:
    """NNGP + NTK of hidden ReLU layers of many points, kept in float32: wall seconds, taking turns, and memory beside what was there"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.randn(points, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked, blocks = (mf.Network(hidden, "relu"), mf.ntk(), x), KernelBlocks(1024, "float32")
    expected = blocks.estimate(*asked)
    start = get_context("spawn")
    with ProcessPoolExecutor(2, start, torch.set_num_threads, (1,)) as pool, TemporaryDirectory() as folder:
        list(pool.map(abs, range(2)))
        blocks(asked[0], asked[1], x[:2000], executor=pool)  # loads what the first one needs
        names = iter(range(10**6))
        runs: dict[str, Any] = {
            "one process": lambda: blocks(*asked),
            "two processes, into a folder": lambda: blocks(
                *asked, executor=pool, folder=Path(folder, str(next(names)))
            ),
            "frugal numpy": lambda: frugal_numpy_recursion(x.numpy(), hidden),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        gigabytes: dict[str, float] = {}
        for _ in range(repetitions):
            for name, run in runs.items():
                before, began = forget_peak(), time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
                gigabytes[name] = (peak() - before) / 1e9
    torch.set_num_threads(threads)
    print(f"The estimate for one process: {expected}.\n")
    print("| | wall s, min | max | memory of the calling process, GB |\n|---|---|---|---|")
    for name, many in seconds.items():
        print(f"| {name} | {min(many):.3g} | {max(many):.3g} | {gigabytes[name]:.2g} |")
    found: dict = {"points": points, "seconds": seconds, "gigabytes": gigabytes, "expected": expected.seconds}
    for name in ("one process", "frugal numpy"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["two processes, into a folder"], strict=True)]
        found[f"{name} over two processes"] = over_rounds(ratios)
    return found


def plain_vectorised(x: torch.Tensor, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ReLU convolutions (3 x 3, zeros around), a readout of all pixels, as one writes them: all pairs of images (P^2, 1, H, W) at once"""
    p, channels, height, width = x.shape
    c = torch.einsum("achw,bchw->abhw", x, x).reshape(p * p, 1, height, width) / channels
    theta = torch.zeros_like(c)
    for _ in range(hidden):
        c = torch.nn.functional.avg_pool2d(c, 3, 1, 1)
        theta = torch.nn.functional.avg_pool2d(theta, 3, 1, 1) + c
        v = c.reshape(p, p, height, width).diagonal(0, 0, 1).movedim(-1, 0).sqrt()
        c, slope = _arccos(c, (v[:, None] * v[None]).reshape(c.shape))
        theta = theta * slope
    nngp = c.mean((1, 2, 3)).reshape(p, p)
    return nngp, nngp + theta.mean((1, 2, 3)).reshape(p, p)


def plain_average(x: torch.Tensor, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with the mean over pixels before the readout, which needs all pairs of pixels: pair of images after pair of images"""
    p, channels = x.shape[:2]
    each: list[list[torch.Tensor]] = []
    for image in x:
        v, found = image.square().mean(0), []
        for _ in range(hidden):
            v = torch.nn.functional.avg_pool2d(v[None, None], 3, 1, 1)[0, 0]
            found.append(v.sqrt())
            v = v / 2
        each.append(found)
    kernels = torch.empty(2, p, p, dtype=x.dtype)
    for a in range(p):
        for b in range(a, p):
            c = torch.einsum("chw,ckl->hwkl", x[a], x[b]) / channels
            theta = torch.zeros_like(c)
            for l in range(hidden):
                c = _moved(c)
                theta = _moved(theta) + c
                c, slope = _arccos(c, each[a][l][:, :, None, None] * each[b][l])
                theta = theta * slope
            kernels[:, a, b] = kernels[:, b, a] = torch.stack([c.mean(), c.mean() + theta.mean()])
    return kernels[0], kernels[1]


def _moved(c: torch.Tensor) -> torch.Tensor:
    """The mean over the offsets of a filter that moves over both images together"""
    height, width = c.shape[:2]
    padded = torch.nn.functional.pad(c, (1, 1, 1, 1, 1, 1, 1, 1))
    parts = [padded[i : i + height, j : j + width, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return sum(parts[1:], parts[0]) / 9


def _arccos(c: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rho = (c / norm).clamp(-1, 1)
    rest = math.pi - torch.acos(rho)
    return norm * ((1 - rho * rho).sqrt() + rest * rho) / (2 * math.pi), rest / (2 * math.pi)


def convolution_kernels(hidden: int = 3, repetitions: int = 3) -> dict:
    """NNGP + NTK of 3 ReLU convolutions, float64: processor seconds of whole calls of a ConvNetwork, of the same network as a module of
    torch, and of what one writes in plain torch, taking turns, one thread
    """
    cases = {  # images, pixels of a side
        "all pixels, 8 x 8, 300 images": ("vectorised", 300, 8, plain_vectorised),
        "all pixels, 32 x 32, 60 images": ("vectorised", 60, 32, plain_vectorised),
        "mean over pixels, 8 x 8, 60 images": ("global_average", 60, 8, plain_average),
        "mean over pixels, 32 x 32, 4 images": ("global_average", 4, 32, plain_average),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(
        "| | ConvNetwork: s | module: s | plain torch: s | plain torch over module | largest difference |\n|---|---|---|---|---|---|"
    )
    found = {}
    for name, (readout, images, side, plain) in cases.items():
        x = torch.randn(images, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        asked = mf.ConvNetwork(hidden, "relu", 3, "same", readout)  # type: ignore[arg-type]
        build = partial(Filters, hidden=hidden, pixels=side * side if readout == "vectorised" else 1)
        runs = interleaved(
            {
                "network": partial(mf.nngp_and_ntk, asked, mf.ntk(), x),
                "module": partial(mf.nngp_and_ntk, build, mf.ntk(), x),
                "plain": partial(plain, x, hidden),
            },
            repetitions,
        )
        kernels = [run.result for run in runs.values()]
        apart = max(
            float((kernel - right).abs().max() / right.abs().max())
            for ours in kernels[:2]
            for kernel, right in zip(ours, kernels[2], strict=True)
        )
        found[f"{name}: plain over module"] = over = ratio(runs["plain"], runs["module"])
        cells = [spread(run.summary()["processor"]) for run in runs.values()]
        print(f"| {name} | " + " | ".join(cells) + f" | {spread(over)} | {apart:.1e} |", flush=True)
    torch.set_num_threads(threads)
    return found


class Filters(torch.nn.Module):
    """The network of `convolution_kernels` as a module"""

    def __init__(self, n: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(n if l else 1, n, 3, padding=1, bias=False) for l in range(hidden)
        )
        self.pixels, self.out = pixels, torch.nn.Linear(n * pixels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.out(x.flatten(1) if self.pixels > 1 else x.mean((2, 3)))


BENCHMARKS = {"dense_relu": dense_relu, "kernel_blocks": kernel_blocks, "convolution_kernels": convolution_kernels}
