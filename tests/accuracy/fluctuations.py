"""Variance and bias of finite networks, predicted without their limit's help or theirs, against trained networks (equations 100 to 103)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, predicted_bias, predicted_variance

CASES = {
    "tanh, L = 1": (mf.Network(1, "tanh"), 1.0, {}, "squared"),
    "tanh, L = 2": (mf.Network(2, "tanh"), 1.0, {}, "squared"),
    "tanh, L = 2, gamma0 = 0.3": (mf.Network(2, "tanh"), 0.3, {}, "squared"),
    "tanh, L = 2, gamma0 = 3": (mf.Network(2, "tanh"), 3.0, {}, "squared"),
    "tanh, L = 3": (mf.Network(3, "tanh"), 1.0, {}, "squared"),
    "tanh, L = 4": (mf.Network(4, "tanh"), 1.0, {}, "squared"),
    "erf, L = 2, biases": (mf.Network(2, "erf", 1.2, 0.4), 1.0, {}, "squared"),
    "gelu, L = 2": (mf.Network(2, "gelu"), 1.0, {}, "squared"),
    "tanh, L = 3, residual": (mf.Network(3, "tanh", residual=0.7), 1.0, {}, "squared"),
    "tanh, L = 2, logistic": (mf.Network(2, "tanh"), 1.0, {}, "logistic"),
    "tanh, L = 2, momentum, decay, batches": (
        mf.Network(2, "tanh"),
        1.0,
        {"momentum": 0.5, "weight_decay": 0.1, "batch_size": 3},
        "squared",
    ),
    "linear, L = 3": (mf.Network(3, "linear"), 1.0, {}, "squared"),
}


def _problem(name: str) -> mf.Problem:
    network, gamma0, training, loss = CASES[name]
    data = mf.digits((0, 1), n_train=6, n_test=2)
    return mf.Problem(data, network, mf.mean_field(gamma0), mf.Training(0.2, 20, **training), loss)


def _measured(problem: mf.Problem, width: int, seeds: int) -> tuple[Tensor, Tensor]:
    """(seeds, 8) final outputs at training and test samples, and (seeds,) final losses"""
    nets = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False).ensemble(problem, seeds)
    outputs = [torch.cat([s.f[-1], s.f_test[-1]])[:, 0] for s in nets if s.f_test is not None]
    return torch.stack(outputs).double(), torch.stack([s.loss[-1] for s in nets]).double()


def variance_of_deep_networks() -> None:
    """N Var f_T, measured over predicted, digits 0/1, P = 6, two test samples, eta = 0.2, T = 20; 400 networks a width"""
    print(
        "| network | sum of 8 outputs, N = 256 | N = 1024 | error | of the prediction | single outputs, N = 1024 | parts of layers |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name in CASES:
        problem, rng = _problem(name), np.random.default_rng(0)
        found = predicted_variance(problem, progress=False)
        assert found.test is not None
        expected = torch.cat([found.train, found.test])[:, 0]
        error = torch.cat([found.error("f")[-1], found.error("f_test")[-1]])[:, 0]
        ratios: list[Tensor] = []
        sums: list[float] = []
        for width in (256, 1024):
            final, _ = _measured(problem, width, 400)
            ratios.append(width * final.var(0) / expected)
            total = width * final.var(0).sum() / expected.sum()
            draws = [
                float(width * final[rng.integers(400, size=400)].var(0).sum() / expected.sum()) for _ in range(300)
            ]
            sums.append(float(total))
            spread = float(np.std(draws))
        parts = found.by_part("f")[:, -1].mean((1, 2))
        print(
            f"| {name} | {sums[0]:.3f} | {sums[1]:.3f} | {spread:.3f} | {float(error.sum() / expected.sum()):.3f} | "
            f"{ratios[1].min():.2f} .. {ratios[1].max():.2f} | {' '.join(f'{part:.2f}' for part in parts / parts.sum())} |",
            flush=True,
        )
        assert abs(sums[1] - 1) < 0.15


def bias_of_deep_networks() -> None:
    """N (E f_N - f) at the training samples, from 200 networks of width 128 beside their halves and from means of 8000 of width 64"""
    print("| network | predicted, 6 outputs | error | measured | error | chi^2 of 6 |\n|---|---|---|---|---|---|")
    for name in ("tanh, L = 2", "erf, L = 2, biases", "linear, L = 3"):
        problem = _problem(name)
        found = predicted_bias(problem, progress=False)
        limits = torch.stack(
            [CausalDMFT(16384, seed=s, tolerance=2e-3, progress=False)(problem).f[-1, :, 0].double() for s in range(4)]
        )
        final, _ = _measured(problem, 64, 8000)
        exact = problem.is_linear
        seen = 64 * (final[:, :6].mean(0) - limits.mean(0))
        error2 = 64**2 * (final[:, :6].var(0) / 8000 + (0 if exact else limits.var(0) / 4))
        predicted, own = found.train[:, 0], found.error()[-1, :, 0]
        chi2 = float(((predicted - seen).square() / (error2 + own.square())).sum())
        print(
            f"| {name} | {' '.join(f'{v:.2f}' for v in predicted)} | {own.mean():.2f} | {' '.join(f'{v:.2f}' for v in seen)} | "
            f"{error2.sqrt().mean():.2f} | {chi2:.1f} |",
            flush=True,
        )


CLAIMS = {f.__name__: f for f in (variance_of_deep_networks, bias_of_deep_networks)}
