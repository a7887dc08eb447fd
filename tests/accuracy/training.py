"""Ways of training, settings by layer and laws of the start: means of networks beside their limit, and how both scatter (equations 110 to
114, 120 and 121)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, coordinate_check
from tests.any_networks import Residual

WIDTHS = {64: 256, 256: 64, 1024: 24}  # and seeds
ONE, TWO = mf.Network(1, "tanh", bias_std=0.3), mf.Network(2, "tanh")
CASES = {
    "two layers, Adam": (ONE, mf.Training(0.05, 20, "adam")),
    "two layers, Langevin": (ONE, mf.Training(0.2, 20, temperature=0.3, weight_decay=0.3)),
    "L = 2, cosine with warm-up": (TWO, mf.Training(0.4, 20, schedule="cosine", warmup=4)),
    "L = 2, clipped": (TWO, mf.Training(0.4, 20, clip=0.2)),
    "L = 2, Adam": (TWO, mf.Training(0.05, 20, "adam")),
    "L = 2, AdamW, gamma0 = 0.3": (TWO, mf.Training(0.015, 20, "adamw", weight_decay=1.0)),
    "L = 2, RMSprop": (TWO, mf.Training(0.02, 20, "rmsprop")),
    "L = 2, signs": (TWO, mf.Training(0.05, 20, "sign_descent")),
    "L = 2, Muon": (TWO, mf.Training(0.05, 20, "muon")),
    "L = 3, Adam, batches of 3": (mf.Network(3, "tanh"), mf.Training(0.04, 20, "adam", batch_size=3)),
    "L = 2, Langevin": (TWO, mf.Training(0.2, 20, temperature=0.3, weight_decay=0.3)),
    "residual module behind norms, Adam": (Residual, mf.Training(0.03, 20, "adam")),
    "residual module behind norms, Muon": (Residual, mf.Training(0.03, 20, "muon")),
}

DECAYING = mf.Training(0.3, 20, weight_decay=0.2)
SHALLOW = mf.Architecture(ONE, rate={"input": 2.0, "readout": 1.5}, decay={"*.bias": 0.0, "readout": 0.5})
DEEP = mf.Architecture(
    TWO, rate={"input": 2.0, "hidden.1": 0.3, "readout": 1.5}, decay={"hidden.1": 2.0, "readout": 0.5}
)
LAYERS = {
    "two layers, rates and decays by layer": (SHALLOW, DECAYING),
    "two layers, Rademacher": (mf.Architecture(ONE, initial_law="rademacher"), DECAYING),
    "two layers, student_t(3)": (mf.Architecture(ONE, initial_law="student_t(3)"), DECAYING),
    "two layers, readout 0": (mf.Architecture(ONE, weight_std={"readout": 0}), DECAYING),
    "L = 2, rates and decays by layer": (DEEP, DECAYING),
    "L = 2, Rademacher": (mf.Architecture(TWO, initial_law="rademacher"), DECAYING),
    "L = 2, Rademacher matrix, else normal": (mf.Architecture(TWO, initial_law={"hidden.1": "rademacher"}), DECAYING),
    "L = 2, student_t(3)": (mf.Architecture(TWO, initial_law="student_t(3)"), DECAYING),
    "L = 2, readout 0": (mf.Architecture(TWO, weight_std={"readout": 0}), DECAYING),
    "L = 2, frozen matrix, Adam": (mf.Architecture(TWO, frozen=("hidden.1",)), mf.Training(0.05, 20, "adam")),
}


def ways_of_training() -> None:
    """|mean of networks - limit| over |limit| beside its noise, all steps and samples; digits 0/1, P = 6, T = 20, squared loss"""
    _measured(CASES)


def by_layer() -> None:
    """The same of settings by layer and laws of the start"""
    _measured(LAYERS)


def _measured(cases: Mapping[str, tuple[Any, mf.Training]]) -> None:
    print(
        "| training | limit | seconds | own error | N = 64 | N = 256 | N = 1024 | one network of 1024 | its scatter ~ N^ |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    data = mf.digits((0, 1), n_train=6, n_test=2)
    for name, (network, training) in cases.items():
        problem = mf.Problem(data, network, mf.mean_field(0.3 if "0.3" in name else 1.0), training)
        shallow = problem.layered is not None and problem.layered.depth == 1
        samples = 2**14 if shallow else 512 if network is Residual else 2048
        start, limits = time.perf_counter(), []
        for seed in range(4):
            solver = (
                WassersteinFlow(samples, seed) if shallow else CausalDMFT(samples, seed, snapshots=(), two_time=False)
            )
            limits.append(solver(problem).f.double())
        seconds, limit = (time.perf_counter() - start) / 4, torch.stack(limits)
        mean, size, own = limit.mean(0), float(limit.mean(0).norm()), float(limit.var(0).sum().sqrt()) / 2
        row, scatter = [], []
        for width, seeds in WIDTHS.items():
            f = _outputs(problem, width, seeds // (4 if network is Residual else 1))
            noise, scatter = float((f.var(0).sum() / len(f)).sqrt()), [*scatter, float(f.var(0).sum().sqrt())]
            off, floor = float((f.mean(0) - mean).norm()), (noise**2 + own**2) ** 0.5
            row.append(f"{off / size:.4f} / {floor / size:.4f}")
            assert off < 2.5 * floor + size / width**0.5 / 2, (name, width, off / size, floor / size)
        slope = np.polyfit(np.log(list(WIDTHS)), np.log(scatter), 1)[0]
        what = f"{'flow' if shallow else 'sweep'}, {samples}"
        print(
            f"| {name} | {what} | {seconds:.2f} | {own / size:.4f} | {' | '.join(row)} | {scatter[-1] / size:.4f} | {slope:.2f} |",
            flush=True,
        )


def _outputs(problem: mf.Problem, width: int, seeds: int) -> Tensor:
    """(seeds, T + 1, P, C)"""
    nets = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False).ensemble(problem, seeds)
    return torch.stack([net.f for net in nets]).double()


def adam_and_its_limit() -> None:
    """Orders of the width under Adam; error and seconds of runs beside the mean of 8 limits; digits, P = 6, L = 2, tanh, T = 20"""
    data = mf.digits((0, 1), n_train=6, n_test=2)
    problem = mf.Problem(data, TWO, mf.mean_field(1.0), mf.Training(0.05, 20, "adam"))
    print(coordinate_check(problem, (64, 256, 1024), 8))
    limits = [CausalDMFT(2048, seed=k, progress=False, snapshots=()) for k in range(8)]
    nets = {
        n: [FiniteWidth(n, seed=k, dtype="float32", progress=False, snapshots=()) for k in range(3)]
        for n in (2048, 4096, 8192)
    }
    mean = None
    print("\n| | error of one | seconds of one |\n|---|---|---|")
    for name, solvers in {"limit, 2048": limits, **{f"network, {n}": some for n, some in nets.items()}}.items():
        runs = [solver(problem) for solver in solvers]
        f = torch.stack([run.f for run in runs]).double()
        share = 1.0 if mean is not None else len(f) / (len(f) - 1)  # of a mean that they are part of
        mean = f.mean(0) if mean is None else mean
        error = (share * (f - mean).square().sum() / len(f)).sqrt() / mean.norm()
        seconds = sorted(run.stats["seconds"] for run in runs)[len(runs) // 2]
        print(f"| {name} | {float(error):.4f} | {seconds:.2f} |", flush=True)


CLAIMS = {"adam_and_its_limit": adam_and_its_limit, "ways_of_training": ways_of_training, "by_layer": by_layer}
