"""predicted_variance: N Var f of width-N networks, from the limit alone, before any network is trained (equation 18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from meanfield import checks, reductions
from meanfield.activations import Activation
from meanfield.problem import Problem
from solvers.wasserstein_flow import WassersteinFlow, all_inputs


@dataclass(frozen=True)
class PredictedVariance:
    """lim N Var f_T: train (P, C) and test (P_test, C), or nan where it was not asked for."""

    train: Tensor
    test: Tensor | None


def predicted_variance(
    problem: Problem,
    particles: int = 2**12,
    seed: int = 0,
    points: Sequence[int] | None = None,
    kink_width: float = 0.1,
    progress: bool | None = None,
) -> PredictedVariance:
    """The variance over particles of d f_T(x) / d m_r, one backward pass through the flow per output (equation 18).

    points: rows of [x; x_test] to predict (None: all). kink_width: at a kink of the activation (ReLU) phi'' is a delta function, here a
    Gaussian of this width in h; smooth activations do not use it. Memory O(steps particles (D + C)). Gradient descent only.
    """
    if problem.training.optimiser != "gradient_descent":
        raise ValueError("predicted_variance follows gradient_descent: for gradient_flow take a small learning_rate")
    flow = WassersteinFlow(particles, seed, snapshots=())
    flow.check(problem)
    x = all_inputs(problem, torch.float64, "cpu")
    rows = list(range(len(x))) if points is None else [checks.integer("points", p, 0) for p in points]
    if rows and max(rows) >= len(x):
        raise ValueError(f"points must be rows of the {len(x)} samples (train, then test): received {max(rows)}")
    c, steps = problem.data.outputs, problem.training.steps
    per_step = particles * (3 * (x.shape[1] + c) + 3 * problem.data.samples)
    checks.memory("the backward pass", 8.0 * steps * per_step, "take fewer particles or steps")
    measure = flow.initial_measure(problem)
    m = measure.m.requires_grad_()
    f = _final_outputs(
        problem,
        measure.a,
        measure.w,
        m,
        x,
        _softened(problem.network.nonlinearity, checks.positive("kink_width", kink_width)),
    )
    variance = torch.full((len(x), c), math.nan, dtype=torch.float64)
    bar = tqdm([(row, k) for row in rows for k in range(c)], desc="predicted variance", delay=2, leave=False,
               disable=None if progress is None else not progress)  # fmt: skip
    for row, k in bar:
        (influence,) = torch.autograd.grad(f[row, k], m, retain_graph=True)
        mean = measure.m.detach() @ influence
        variance[row, k] = measure.m.detach() @ (influence - mean).square()
    train = problem.data.samples
    return PredictedVariance(variance[:train], variance[train:] if len(x) > train else None)


def _final_outputs(problem: Problem, a: Tensor, w: Tensor, m: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """f_T (rows of x, C) by gradient descent on the particles, remembered by autograd (equations 7 to 9)."""
    network, training, loss = problem.network, problem.training, problem.loss_function
    gain, rate_a, rate_w = problem.scaling.measure_limit()
    train, y, std = problem.data.samples, problem.data.y, network.weight_std
    b = a.new_zeros(a.shape[1])
    for _ in range(training.steps):
        f = gain * std * reductions.outputs(a, w, m, x[:train], activation, "dense") + b
        delta = loss.delta(f, y)
        va, vw = reductions.velocity(a, w, x[:train], delta, activation, "dense")
        b = b + training.learning_rate * gain * rate_a * network.bias_std**2 * delta.mean(0)
        a, w = a + training.learning_rate * rate_a * std * va, w + training.learning_rate * rate_w * std * vw
    return gain * std * reductions.outputs(a, w, m, x, activation, "dense") + b


def _softened(activation: Activation, width: float) -> Activation:
    """The activation with phi'' = Gaussians of the given width at its kinks, in derivatives of phi' only."""
    if not activation.kinks:
        return activation
    return Activation(f"softened {activation.name}", activation.phi, lambda h: _SoftKinks.apply(h, activation, width))


class _SoftKinks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, activation: Activation, width: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.kinks, ctx.width = activation.kinks, width
        return activation.dphi(h)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (h,) = ctx.saved_tensors
        density = sum(
            jump * torch.exp(-0.5 * ((h - at) / ctx.width) ** 2) / (ctx.width * math.sqrt(2 * math.pi))
            for at, jump in ctx.kinks
        )
        return cotangents[0] * density, None, None
