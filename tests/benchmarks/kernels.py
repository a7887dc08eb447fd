"""Processor time of lazy kernels against a straightforward numpy recursion in the same run."""

import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import meanfield as mf
from meanfield.kernels.dense_kernels import nngp_and_ntk
from solvers import KernelBlocks
from tests.benchmarks.timing import over_rounds
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
    print(f"largest difference from numpy, relative: {apart:.1e} (its rounding on the diagonal)")
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


BENCHMARKS = {"dense_relu": dense_relu, "kernel_blocks": kernel_blocks}
