"""What the lazy limits claim, measured: predicted distributions, small gamma0, convergence with width, complexity of labels."""

import math
from dataclasses import replace
from typing import Any

import torch

import meanfield as mf
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.spectrum import spectrum
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow
from solvers.lazy.lazy_prediction import lazy_prediction
from solvers.lazy.tangent_kernel_limit import TangentKernelLimit

_SAMPLES = 2**14


def _digits(activation: str, depth: int, samples: int = 8, eta: float = 0.3, steps: int = 30) -> mf.Problem:
    data = mf.digits((0, 1), n_train=samples, n_test=samples // 2)
    return mf.Problem(data, mf.Network(depth, activation, bias_std=0.2), mf.ntk(), mf.Training(eta, steps))


def _joint(solution: mf.Solution) -> torch.Tensor:
    """(T+1, Q, C)"""
    assert solution.f_test is not None
    return torch.cat([solution.f, solution.f_test], 1).double()


def _kernel(problem: mf.Problem) -> torch.Tensor:
    """(Q, Q) the analytic tangent kernel over training and test samples"""
    return nngp_and_ntk(problem.perceptron, problem.scaling, problem.data.all_x)[1]


def ensemble_of_lazy_networks() -> None:
    """256 networks with two hidden tanh layers of width 2048, digits 0/1, P = 8 and 4 test samples, T = 30, eta = 0.5: predicted moments"""
    problem, seeds = _digits("tanh", 2, eta=0.5), 256
    solver, f = FiniteWidth(2048, snapshots=(), keep_neurons=False, dtype="float32"), torch.empty(0, 31, 12).double()
    for first in range(0, seeds, 8):  # a network keeps its 17 MB of weights
        nets = solver.ensemble(problem, range(first, first + 8))
        f = torch.cat([f, torch.stack([_joint(net)[..., 0] for net in nets])])
    predicted = lazy_prediction(problem)
    assert predicted.mean_test is not None
    mean = torch.cat([predicted.mean, predicted.mean_test], 1)[..., 0]
    print(
        "| step | mean: largest abs(z) of 12 outputs | standard deviation, mean ratio to the predicted "
        "| covariance: largest abs(z) of 78 entries |\n|---|---|---|---|"
    )
    for k in (0, 1, 3, 10, 30):
        sigma, d = predicted.covariance[k], predicted.covariance[k].diagonal()
        z = ((f[:, k].mean(0) - mean[k]) / (d / seeds).sqrt()).abs().max()
        error = ((d[:, None] * d + sigma.square()) / (seeds - 1)).sqrt()
        zs = ((torch.cov(f[:, k].T) - sigma) / error).abs().max()
        ratio = (f[:, k].std(0) / d.sqrt()).mean()
        print(f"| {k} | {z:.2f} | {ratio:.3f} | {zs:.2f} |", flush=True)
        assert max(z, zs) < 4
    kernel = _kernel(problem)
    lazy = torch.stack([_joint(TangentKernelLimit(kernel, f0[:, None])(problem))[..., 0] for f0 in f[:, 0]])
    apart, moved = f - lazy, (f - f[:, :1]).norm()
    z = (apart.mean(0)[1:] / (apart.std(0)[1:] / math.sqrt(seeds))).abs()
    print(
        f"each network against the limit from its own f0: {apart.norm() / moved:.4f} of the movement; the mean over networks "
        f"{apart.mean(0).norm() * math.sqrt(seeds) / moved:.5f} of it, largest abs(z) of {z.numel()} entries {z.max():.2f}"
    )


def lazy_convergence() -> None:
    """single networks less the lazy limit from their own f0, relative to the movement of f (digits 0/1, P = 16, T = 30, 16 seeds)"""
    widths, seeds = (64, 128, 256, 512, 1024), 16
    print(f"| activation, depth, loss | {' | '.join(f'N = {n}' for n in widths)} | slope |\n|{'---|' * 7}")
    for activation, depth, loss in (("relu", 1, "squared"), ("tanh", 3, "squared"), ("relu", 2, "logistic")):
        problem = replace(_digits(activation, depth, 16), loss=loss)
        apart, kernel = [], _kernel(problem)
        for n in widths:
            nets = FiniteWidth(n, snapshots=(), keep_neurons=False, dtype="float32").ensemble(problem, seeds)
            f = torch.stack([_joint(net) for net in nets])
            lazy = torch.stack([_joint(TangentKernelLimit(kernel, start)(problem)) for start in f[:, 0]])
            apart.append(float((f - lazy).norm() / (f - f[:, :1]).norm()))
        x = torch.log(torch.tensor(widths).double())
        slope = float(((x - x.mean()) * torch.log(torch.tensor(apart))).sum() / (x - x.mean()).square().sum())
        print(f"| {activation}, {depth}, {loss} | {' | '.join(f'{a:.4f}' for a in apart)} | {slope:.2f} |", flush=True)
        assert abs(slope + 0.5) < 0.1


def small_gamma0() -> None:
    """gamma0 -> 0 (digits 0/1, P = 8, T = 30, at 1e-3 4 seeds): relative distance of f from the lazy limit of its own initial kernel"""
    print(
        "| solver | activation, depth | gamma0 | own kernel | analytic kernel, root mean square over seeds | spread over seeds |\n"
        "|---|---|---|---|---|---|"
    )
    for activation, depth in (("tanh", 1), ("linear", 3), ("tanh", 2), ("relu", 2), ("tanh", 3)):
        problem = _digits(activation, depth)
        problem = replace(problem, data=replace(problem.data, x_test=None, y_test=None))
        for name in ("CausalDMFT", "WassersteinFlow")[: 2 if depth == 1 else 1]:
            for gamma0 in (1e-1, 1e-2, 1e-3):
                small = replace(problem, scaling=mf.mean_field(gamma0))
                analytic = TangentKernelLimit()(small).f
                exact = activation == "linear"
                own, runs = [], []
                for seed in range(4 if gamma0 == 1e-3 and not exact else 1):
                    solution = _mean_field_solver(name, small, seed)(small)
                    lazy = TangentKernelLimit(kernel=solution.tangent_kernel(0).double())(small)
                    own.append(float((solution.f - lazy.f).norm() / lazy.f.norm()))
                    runs.append(solution.f.double())
                f = torch.stack(runs)
                apart = float((f - analytic).norm() / math.sqrt(len(f)) / analytic.norm())
                many = len(f) > 1
                spread = float(f.var(0).sum().sqrt() / analytic.norm()) if many else math.nan
                print(
                    f"| {name} | {activation}, {depth} | {gamma0:g} | {max(own):.1e} | {apart:.1e} | {f'{spread:.1e}' if many else ''} |",
                    flush=True,
                )
                # each neuron at a kink adds gamma0 / gamma0: sqrt(gamma0 samples) / samples in all, and no order gamma0^2
                kinks = 5 * math.sqrt(gamma0 / _SAMPLES) if activation == "relu" else 0.0
                assert gamma0 > 1e-3 or max(own) < 1e-5 + kinks
                assert not many or apart < 3 * spread


def _mean_field_solver(name: str, problem: mf.Problem, seed: int) -> Any:
    """Accurate, and symmetric in the readouts where that can be had: then terms of order gamma0 vanish exactly"""
    if name == "CausalDMFT":
        tolerance = None if problem.perceptron.nonlinearity.name == "linear" else 1e-6
        return CausalDMFT(
            samples=_SAMPLES, seed=seed, tolerance=tolerance, dtype="float64", keep_neurons=False, two_time=False
        )
    inputs = problem.perceptron.inputs(problem.data.x)
    half = mf.ParticleMeasure.sobol(_SAMPLES // 2, inputs.shape[1], problem.data.outputs, seed, "float64", inputs)
    symmetric = mf.ParticleMeasure(torch.cat([half.a, -half.a]), half.w.repeat(2, 1), half.m.repeat(2) / 2)
    return WassersteinFlow(initial=symmetric)


def complexity_of_labels() -> None:
    """complexity sqrt(2 y^T K^-1 y / P) of digits 0/1 and of random labels (two hidden ReLU layers), and the lazy limit's test error"""
    print(
        "| P | labels | complexity | share of y in the first 5 directions | gap bound, 95 % | test error at the end |\n"
        "|---|---|---|---|---|---|"
    )
    for samples in (64, 128, 256):
        data = mf.digits((0, 1), n_train=samples, n_test=100)
        assert data.x_test is not None
        assert data.y_test is not None
        signs = torch.randint(0, 2, (samples, 1), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
        found = []
        for name, y in (("true", data.y), ("random", signs)):
            flow, network = mf.Training(0.1, 1, "gradient_flow"), mf.Network(2, "relu", bias_std=0.2)
            problem = mf.Problem(replace(data, y=y), network, mf.ntk(), flow)
            kernel = nngp_and_ntk(problem.perceptron, problem.scaling, data.x)[1]
            directions = spectrum(kernel, y)
            end = lazy_prediction(problem, [math.inf])
            assert end.mean_test is not None
            wrong = float((end.mean_test[0].sign() != data.y_test).double().mean())
            found.append(directions.complexity())
            share, gap = float(directions.cumulative_alignment[4]), directions.bound()
            print(f"| {samples} | {name} | {found[-1]:.3f} | {share:.3f} | {gap:.3f} | {wrong:.3f} |", flush=True)
        assert found[0] < 0.5 * found[1]


CLAIMS = {f.__name__: f for f in (ensemble_of_lazy_networks, lazy_convergence, small_gamma0, complexity_of_labels)}
