"""Losses of networks written as modules lie above the limit's: by how much, and how much of it is the spread of their outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from meanfield.problem.losses import averaged
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution
from solvers import CausalDMFT, FiniteWidth
from tests.accuracy.agreement import kept
from tests.accuracy.any_networks import CASES, chosen

WIDTHS, SEEDS, SWEEPS, SAMPLES = (256, 1024), 64, 8, 8192


def losses_of_networks() -> None:
    """the cases of any_networks, N = 256 and 1024, 64 seeds each (float32), the limit: 8 sweeps of 8192 samples. Mean over steps 1 to T of
    the training loss: of the networks less that of the limit; of that L averaged over networks less L of their mean f; and the rest, that
    of the mean f; relative to the limit's loss in per cent, with standard errors (jackknife); z of the rest
    """
    print("| network | N | networks less limit | of it by the spread of f | rest, of the mean f | its z |")
    print("|---|---|---|---|---|---|")
    every: dict[int, list[float]] = {width: [] for width in WIDTHS}
    whole: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for case in chosen():
        if case == "residual, eta = 0.1":  # of the same networks as at half the rate
            continue
        problem = CASES[case]()
        limits = [CausalDMFT(SAMPLES, seed=seed, snapshots=())(problem) for seed in range(SWEEPS)]
        for width in WIDTHS:
            nets = FiniteWidth(width, dtype="float32", snapshots=()).ensemble(problem, SEEDS)
            parts = _parts(problem, nets, limits)
            row = {"case": case, "width": width, "parts": parts}
            kept("losses_of_networks", row)
            cells = [f"{100 * value:+.3f} ± {100 * error:.3f}" for value, error in parts]
            z = parts[2][0] / parts[2][1]
            every[width].append(z)
            whole[width].append(parts[0][0] / parts[0][1])
            print(f"| {case} | {width} | {' | '.join(cells)} | {z:+.1f} |", flush=True)
    for width in WIDTHS:
        sums = [sum(z) / math.sqrt(len(z)) for z in (whole[width], every[width])]
        print(
            f"\nN = {width}: sum of z over the root of their number: {sums[0]:+.1f} of the whole, {sums[1]:+.1f} of the rest"
        )
        assert max(map(abs, every[width])) < 4


def _parts(problem: Problem, nets: Sequence[Solution], limits: Sequence[Solution]) -> list[tuple[float, float]]:
    """(value, standard error) of the difference, of the part of the spread of f and of the rest, over the limit's loss"""
    ours, theirs = (torch.stack([run.f.double() for run in runs])[:, 1:] for runs in (nets, limits))
    found = np.array(_differences(problem, ours, theirs))
    variance = np.zeros(3)
    for k, many in enumerate((ours, theirs)):
        n = len(many)
        left = [torch.cat([many[:i], many[i + 1 :]]) for i in range(n)]
        values = np.array([_differences(problem, *((some, theirs) if k == 0 else (ours, some))) for some in left])
        variance += (n - 1) / n * ((values - values.mean(0)) ** 2).sum(0)
    return list(zip(found.tolist(), np.sqrt(variance).tolist(), strict=True))


def _differences(problem: Problem, ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """The limit's own sampling error is taken off like the networks' spread"""
    (mean, own), (limit, _) = (_loss(problem, f) for f in (ours, theirs))
    return (mean + own - limit) / limit, own / limit, (mean - limit) / limit


def _loss(problem: Problem, f: Tensor) -> tuple[float, float]:
    """(of the exact mean of f, how much more the mean loss is) over steps; f (n, T, P, .., C)"""
    y, of = problem.data.y, problem.loss_function
    each = float(torch.stack([torch.stack([averaged(of, step, y) for step in run]).mean() for run in f]).mean())
    mean = float(torch.stack([averaged(of, step, y) for step in f.mean(0)]).mean())
    spread = (each - mean) * len(f) / (len(f) - 1)  # the mean of n has an n-th of the spread
    return each - spread, spread


CLAIMS = {f.__name__: f for f in (losses_of_networks,)}
