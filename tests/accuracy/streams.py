"""One pass over fresh samples: networks beside the limit of their sequence, and small learning rates (equations 117 to 119)."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from tests.any_networks import Residual
from tests.test_population_loss import population_flow

WIDTHS = {64: 128, 256: 32, 1024: 12}  # and seeds
CASES = {
    "two layers, erf": (mf.Network(1, "erf"), 4),
    "L = 2, tanh": (mf.Network(2, "tanh"), 4),
    "L = 2, tanh, batches of 16": (mf.Network(2, "tanh"), 16),
    "L = 3, relu": (mf.Network(3, "relu"), 4),
    "residual module behind norms": (Residual, 4),
}


def streams() -> None:
    """|mean of networks - limit| over |limit| beside its noise, 16 watched samples; erf teacher, D = 4 (module: 64), 40 steps of 0.2"""
    print(
        "| network | limit | seconds | directions (features, gradients) | N = 64 | N = 256 | N = 1024 | one network of 1024 | "
        "another sequence |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, (network, batch) in CASES.items():
        inputs = 64 if network is Residual else 4
        stream = mf.stream(mf.Teacher(inputs, link="erf"), batch, 16)
        problem = mf.Problem(stream, network, training=mf.Training(0.2, 40, record_every=10))
        shallow, samples = isinstance(network, mf.Network) and network.depth == 1, 4096
        solver = WassersteinFlow(2**14) if shallow else CausalDMFT(samples, snapshots=(), two_time=False)
        begun = time.perf_counter()
        limits = [replace(solver, seed=seed)(problem) for seed in range(4)]
        seconds, f = (time.perf_counter() - begun) / 4, torch.stack([limit.f.double() for limit in limits])
        mean, size, own = f.mean(0), float(f.mean(0).norm()), float(f.var(0).sum().sqrt()) / 2
        row, alone = [], 0.0
        for width, seeds in WIDTHS.items():
            nets = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False).ensemble(problem, seeds)
            g = torch.stack([net.f for net in nets]).double()
            off, alone = float((g.mean(0) - mean).norm()), float(g.var(0).sum().sqrt())
            floor = (alone**2 / seeds + own**2) ** 0.5
            row.append(f"{off / size:.4f} / {floor / size:.4f}")
            assert off < 2.5 * floor + 16 * size / width, (name, width, off / size, floor / size)  # a bias ~ 1/N
        other = solver(replace(problem, data=replace(stream, seed=1)))  # on the same watched samples
        apart = float((other.f - mean).norm()) / size
        ranks = ", ".join(f"{a} and {b}" for a, b in limits[0].stats.get("ranks", ())) or "none"
        what = "flow, 16384" if shallow else f"sweep, {samples}"
        row += [f"{alone / size:.4f}", f"{apart:.2f}"]
        print(f"| {name} | {what} | {seconds:.2f} | {ranks} | {' | '.join(row)} |", flush=True)


def small_learning_rates() -> None:
    """Weights of six neurons after the time 6 from gradient flow on the population loss, root mean square over 32 streams; D = 3"""
    print("| eta | steps | batch 1 | batch 4 |\n|---|---|---|---|")
    cloud, law = mf.ParticleMeasure.iid(6, 3, seed=4), mf.Teacher(3, link="erf", seed=1)
    w, u, rates = cloud.w.numpy(), law.vectors[:, 0].numpy(), (0.4, 0.1, 0.025)
    exact = population_flow(cloud.a[:, 0].numpy(), w, u, 0.8, [6.0])[0]
    found = {}
    for rate in rates:
        training = mf.Training(rate, round(6 / rate), record_every=1000)
        for batch in (1, 4):
            off = []
            for seed in range(32):
                stream = mf.stream(law, batch, 2, seed=seed)
                problem = mf.Problem(stream, mf.Network(1, "erf"), mf.mean_field(0.8), training)
                off.append(np.sum((WassersteinFlow(initial=cloud)(problem).measure(-1).w.numpy() - exact) ** 2))
            found[rate, batch] = float(np.sqrt(np.mean(off)) / np.linalg.norm(exact - w))
        print(f"| {rate:g} | {training.steps} | {found[rate, 1]:.4f} | {found[rate, 4]:.4f} |", flush=True)
    for batch in (1, 4):
        slope = np.polyfit(np.log(rates), np.log([found[rate, batch] for rate in rates]), 1)[0]
        print(f"batch {batch}: ~ eta^{slope:.2f}")
        assert 0.35 < slope < 0.65, (batch, slope)


CLAIMS = {"streams": streams, "small_learning_rates": small_learning_rates}
