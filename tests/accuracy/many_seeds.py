"""Exponents of single networks that sixteen seeds do not settle: root mean square and median over many seeds."""

from __future__ import annotations

import numpy as np
import torch

from meanfield.comparison.observables import observe
from meanfield.comparison.statistics import exponent_of, left_out_means
from solvers import CausalDMFT, FiniteWidth
from tests.accuracy.agreement import kept
from tests.accuracy.any_networks import CASES, chosen

WIDTHS, SEEDS, SWEEPS, SAMPLES = (64, 128, 256, 512, 1024), 64, 8, 8192
OF_RESIDUAL = ("f", "tangent_kernel", "Phi[out]", "G[read]")
OBSERVED = {  # at the end of so many steps
    ("convolutional, tanh", 10): ("f",),
    ("residual, eta = 0.05", 10): OF_RESIDUAL,
    ("residual, eta = 0.05", 5): OF_RESIDUAL,
    ("transformer", 10): ("Phi[head]",),
}


def exponents_over_many_seeds() -> None:
    """cases of any_networks, 64 networks (seeds from 1000 on, float32) of each of five widths, the limit: 8 sweeps of 8192 samples.
    Of the distances of single networks from the limit (relative): root mean square less the limit's own, its slope (95 %, jackknife),
    median and its slope (95 %, bootstrap), and the largest over the median at each width
    """
    print(
        "| network | observable | root mean square, N = 64 .. 1024 | its slope | median | its slope | largest / median |"
    )
    print("|---|---|---|---|---|---|---|")
    for (case, steps), names in OBSERVED.items():
        if case not in chosen():
            continue
        problem = CASES[case]().with_steps(steps)
        last = () if names == ("f",) else (-1,)
        limits = [CausalDMFT(SAMPLES, seed=seed, snapshots=last)(problem) for seed in range(SWEEPS)]
        exact = {name: torch.stack([observe(run, name).double() for run in limits]) for name in names}
        squares: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for width in WIDTHS:
            seeds = range(1000, 1000 + SEEDS)
            nets = [
                net
                for some in range(0, SEEDS, 16)
                for net in FiniteWidth(width, dtype="float32", snapshots=last).ensemble(
                    problem, seeds[some : some + 16]
                )
            ]
            for name in names:
                f = torch.stack([observe(net, name).double() for net in nets])
                mean = exact[name].mean(0)
                apart = (f - mean).flatten(1).square().sum(1) / mean.square().sum()
                squares[name].append(apart.numpy())
        for name in names:
            mean = exact[name].mean(0)
            own = float(exact[name].var(0).sum() / mean.square().sum()) / SWEEPS
            _row(f"{case}, T = {steps}", name, squares[name], own)


def _row(case: str, name: str, squares: list[np.ndarray], own: float) -> None:
    widths, draw = np.array(WIDTHS, float), np.random.default_rng(0)
    mean2 = [float(s.mean()) - own for s in squares]
    slope = exponent_of(widths, mean2, [left_out_means(s) - own for s in squares], 0.5)
    medians = np.array([np.median(np.sqrt(s)) for s in squares])
    again = [[np.median(np.sqrt(draw.choice(s, len(s)))) for s in squares] for _ in range(2000)]
    fits = np.polyfit(np.log(widths), np.log(np.array(again)).T, 1)[0]
    fit = float(np.polyfit(np.log(widths), np.log(medians), 1)[0])
    low, high = fit - 1.96 * fits.std(), fit + 1.96 * fits.std()
    root = np.sqrt(np.maximum(mean2, 0))
    tails = [float(np.sqrt(s.max()) / m) for s, m in zip(squares, medians, strict=True)]
    row = {"case": case, "name": name, "rms": root.tolist(), "slope": str(slope), "median": medians.tolist()}
    kept("exponents_over_many_seeds", row | {"median_slope": [fit, low, high], "tails": tails})
    cells = [" ".join(f"{v:.2g}" for v in values) for values in (root, medians, tails)]
    print(
        f"| {case} | {name} | {cells[0]} | {slope} | {cells[1]} | {fit:.2f} [{low:.2f}, {high:.2f}] | {cells[2]} |",
        flush=True,
    )


CLAIMS = {f.__name__: f for f in (exponents_over_many_seeds,)}
