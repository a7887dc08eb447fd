"""predicted_variance: N Var f of width-N networks, from the limit alone, before any network is trained (equation 18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.measures import reductions
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.activations import Activation
from meanfield.problem.problem import Problem
from solvers.running.clock import progress_bar
from solvers.running.inputs import EVERYWHERE, Inputs
from solvers.two_layer.wasserstein_flow import Initial, WassersteinFlow


@checked
@dataclass(frozen=True)
class PredictedVariance:
    """lim N Var f_T, or nan where it was not asked for."""

    train: Tensor
    """(P, C) at the training samples"""
    test: Tensor | None
    """(P_test, C) at the test samples, if there are any"""


@torch.inference_mode(False)
@torch.enable_grad()
@checked
def predicted_variance(
    problem: Problem,
    particles: int = 2**12,
    seed: int = 0,
    points: Sequence[int] | None = None,
    initial: Initial | ParticleMeasure = "sobol",
    kink_width: float = 0.2,
    progress: bool | None = None,
) -> PredictedVariance:
    """The variance over particles of d f_T(x) / d m_r, and the readout bias's, one backward pass per output (equation 18).

    points: rows of [x; x_test] to predict (None: all). kink_width: at a kink of the activation (ReLU) phi'' is a delta function, here a
    Gaussian of this width in h (equation 19); steps that move preactivations by much more make the prediction wrong there, and are warned
    of. Smooth activations are exact. Memory O(steps particles (D + C)). Gradient descent only.
    """
    if problem.training.optimiser != "gradient_descent" or not problem.training.plain:
        raise ValueError(
            "predicted_variance follows plain full-batch gradient_descent: leave out momentum, weight_decay and batch_size; for "
            "gradient_flow take a small learning_rate"
        )
    flow = WassersteinFlow(particles, seed, initial, snapshots=())
    flow.check(problem)
    x = Inputs(problem, torch.empty(0, dtype=torch.float64))(EVERYWHERE)
    rows = list(range(len(x))) if points is None else [checks.integer("points", p, 0) for p in points]
    if rows and max(rows) >= len(x):
        raise ValueError(f"points must be rows of the {len(x)} samples (train, then test): received {max(rows)}")
    c, steps = problem.data.outputs, problem.training.steps
    per_step = particles * (3 * (x.shape[1] + c) + 3 * problem.data.samples)
    checks.memory("the backward pass", 8.0 * steps * per_step, "take fewer particles or steps")
    measure = flow.initial_measure(problem)
    a, w, m = (t.clone() for t in measure.tensors)  # a cloud that was given stays as it is
    m, b = m.requires_grad_(), torch.zeros(c, dtype=torch.float64, requires_grad=True)
    # N times the variance of a network's readout bias
    own = (problem.in_plane.measure_limit().gamma * problem.perceptron.bias_std) ** 2
    activation = _softened(problem.perceptron.nonlinearity, checks.positive("kink_width", kink_width))
    f, stride = _final_outputs(problem, a, w, m, b, x, activation)
    if problem.perceptron.nonlinearity.kinks and stride > kink_width:
        warn(
            f"a step moves preactivations by up to {stride:.2g} (root mean square), more than kink_width={kink_width:g}: the "
            f"prediction for {problem.perceptron.nonlinearity.name} is unreliable; take a smaller learning_rate",
            RuntimeWarning,
        )
    variance = torch.full((len(x), c), math.nan, dtype=torch.float64)
    for row, k in progress_bar("predicted variance", progress, iterable=[(row, k) for row in rows for k in range(c)]):
        influence, through_bias = torch.autograd.grad(f[row, k], (m, b), retain_graph=True)
        mean = measure.m @ influence
        variance[row, k] = measure.m @ (influence - mean).square() + own * through_bias.square().sum()
    train = problem.data.samples
    return PredictedVariance(variance[:train], variance[train:] if len(x) > train else None)


def _final_outputs(
    problem: Problem, a: Tensor, w: Tensor, m: Tensor, b: Tensor, x: Tensor, activation: Activation
) -> tuple[Tensor, float]:
    """f_T (rows of x, C) by gradient descent on the particles, remembered by autograd (equations 7 to 9), and the largest root
    mean square step of a preactivation.
    """
    network, training, loss = problem.perceptron, problem.training, problem.loss_function
    gain, rate_a, rate_w = problem.in_plane.measure_limit()
    train, y, std = problem.data.samples, problem.data.y, network.weight_std
    stride = 0.0
    for _ in range(training.steps):
        f = gain * std * reductions.outputs(a, w, m, x[:train], activation, "dense") + b
        delta = loss.delta(f, y)
        va, vw = reductions.velocity(a, w, x[:train], delta, activation, "dense")
        b = b + training.learning_rate * gain * rate_a * network.bias_std**2 * delta.mean(0)
        dw = training.learning_rate * rate_w * std * vw
        stride = max(stride, float((dw.detach() @ x[:train].T).square().mean().sqrt()))
        a, w = a + training.learning_rate * rate_a * std * va, w + dw
    return gain * std * reductions.outputs(a, w, m, x, activation, "dense") + b, stride


def _softened(activation: Activation, width: float) -> Activation:
    """The activation with phi'' = Gaussians of the given width at its kinks, in derivatives of phi' only."""
    if not activation.kinks:
        return activation
    name = f"softened {activation.name}"
    return Activation(name, activation.phi, lambda h: _SoftKinks.apply(h, activation, width), tried=True)


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
