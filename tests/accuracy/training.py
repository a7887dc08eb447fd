"""Ways of training: means of networks beside their limit, and how both scatter (equations 110 to 114)."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
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


def ways_of_training() -> None:
    """|mean of networks - limit| over |limit| beside its noise, all steps and samples; digits 0/1, P = 6, T = 20, squared loss"""
    print(
        "| training | limit | seconds | own error | N = 64 | N = 256 | N = 1024 | one network of 1024 | its scatter ~ N^ |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    data = mf.digits((0, 1), n_train=6, n_test=2)
    for name, (network, training) in CASES.items():
        problem = mf.Problem(data, network, mf.mean_field(0.3 if "0.3" in name else 1.0), training)
        shallow = isinstance(network, mf.Network) and network.depth == 1
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


CLAIMS = {"ways_of_training": ways_of_training}
