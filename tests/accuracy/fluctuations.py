"""Variance and bias of finite networks, predicted without their limit's help or theirs, against trained networks (equations 100 to 103)."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, PredictedBias, RevealedWidth, predicted_bias, predicted_variance
from solvers.fluctuations.observed import Observables
from solvers.fluctuations.starts import start_of
from solvers.fluctuations.unrolled import Unrolled
from tests.accuracy.any_networks import CASES as MODULES
from tests.frozen_layers import final_outputs

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
    "relu, L = 1": (mf.Network(1, "relu"), 1.0, {}, "squared"),
    "relu, L = 2": (mf.Network(2, "relu"), 1.0, {}, "squared"),
    "relu, L = 3": (mf.Network(3, "relu"), 1.0, {}, "squared"),
}
REMAINDERS = (
    "tanh, L = 1",
    "tanh, L = 2",
    "tanh, L = 3",
    "erf, L = 2, biases",
    "gelu, L = 2",
    "tanh, L = 3, residual",
    "tanh, L = 2, logistic",
    "linear, L = 3",
    "relu, L = 1",
    "relu, L = 2",
)
KINKS = tuple(name for name in CASES if name.startswith("relu"))


def _problem(name: str) -> mf.Problem:
    network, gamma0, training, loss = CASES[name]
    data = mf.digits((0, 1), n_train=6, n_test=2)
    return mf.Problem(data, network, mf.mean_field(gamma0), mf.Training(0.2, 20, **training), loss)


def _measured(problem: mf.Problem, width: int, seeds: int | range) -> tuple[Tensor, Tensor]:
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
    for name in (name for name in CASES if name not in KINKS):
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


def variance_of_relu_networks() -> None:
    """N Var f_T of 1000 other networks of two widths over what 400 narrow ones predicted, sum of 8 outputs; target 15 %"""
    print(
        "| network | N = 256 | N = 1024 | error | of the prediction | by derivative | test outputs |\n|---|---|---|---|---|---|---|"
    )
    for name in KINKS:
        problem, rng = _problem(name), np.random.default_rng(0)
        narrow, derived = (predicted_variance(problem, progress=False, method=m) for m in ("networks", "derivative"))
        sums, spread = [], math.nan
        for width in (256, 1024):
            final, _ = _measured(problem, width, range(10_000, 11_000))
            sums.append(width * final.var(0))
            draws = [float(final[rng.integers(1000, size=1000)].var(0).sum() / final.var(0).sum()) for _ in range(300)]
            spread = float(np.std(draws))
        expected, smooth = (torch.cat([f.train, f.test])[:, 0] for f in (narrow, derived) if f.test is not None)
        each = torch.cat([narrow.each("f")[:, -1, :, 0], narrow.each("f_test")[:, -1, :, 0]], 1).sum(1)
        own = float(each.std() / len(each) ** 0.5 / each.mean())
        ratios = [float(total.sum() / expected.sum()) for total in sums]
        print(
            f"| {name} | {ratios[0]:.3f} | {ratios[1]:.3f} | {spread:.3f} | {own:.3f} | {sums[1].sum() / smooth.sum():.3f} | "
            f"{sums[1][6:].sum() / smooth[6:].sum():.3f} |",
            flush=True,
        )
        assert abs(ratios[1] - 1) < 0.15


def variance_of_modules() -> None:
    """N Var f_T of networks written in torch, 1000 of width 64 and 500 of width 256, over derivatives of the limit (2048 particles); four
    outputs, of the transformer one sample's 13
    """
    print(
        "| network | T | N = 64 | N = 256 | error | of the prediction | single outputs | s | s of the networks | by axes |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    asked = {
        "convolutional, tanh": 6,
        "convolutional, gelu": 6,
        "residual, eta = 0.05": 3,
        "recurrent": 6,
        "transformer": 6,
    }
    for name, steps in asked.items():
        problem, rng, sums, spread = MODULES[name]().with_steps(steps), np.random.default_rng(0), [], math.nan
        few = 4 if problem.data.outputs == 1 else 1
        start = time.perf_counter()
        found = predicted_variance(problem, 2**11, observed=("f",), points=range(few), progress=False)
        seconds = time.perf_counter() - start
        assert found.settings["method"] == "derivative"
        expected = found.variance("f")[-1, :few].flatten()
        each = found.each("f")[:, -1, :few].flatten(1).sum(1)
        own = float(each.std() / len(each) ** 0.5 / each.mean())
        for width, count in ((64, 1000), (256, 500)):
            start = time.perf_counter()
            nets = FiniteWidth(width, dtype="float32", snapshots=(), keep_neurons=False).ensemble(problem, count)
            final = torch.stack([s.f[-1, :few].flatten() for s in nets]).double()
            ratios = width * final.var(0) / expected
            sums.append(float(width * final.var(0).sum() / expected.sum()))
            draws = [
                float(final[rng.integers(count, size=count)].var(0).sum() / final.var(0).sum()) for _ in range(300)
            ]
            spread = float(np.std(draws))
        parts = found.by_part("f")[:, -1, :few].flatten(1).sum(1)
        print(
            f"| {name} | {steps} | {sums[0]:.3f} | {sums[1]:.3f} | {spread:.3f} | {own:.3f} | {ratios.min():.2f} .. {ratios.max():.2f} | "
            f"{seconds:.0f} | {time.perf_counter() - start:.0f} | {' '.join(f'{part:.2f}' for part in parts / parts.sum())} |",
            flush=True,
        )
        assert abs(sums[1] - 1) < 4 * math.hypot(spread, own)


def variance_by_layer() -> None:
    """N Var f_T of networks of width 256 that differ in the neurons of one layer alone, 60 about each of 6 draws of the others, over the
    part that is predicted for that layer; sum of 8 outputs
    """
    print("| network | layer | predicted | measured over it | error |\n|---|---|---|---|---|")
    for name in ("tanh, L = 2", "tanh, L = 3"):
        problem = _problem(name)
        found = predicted_variance(problem, progress=False)
        parts = torch.cat([found.by_part(n)[:, -1, :, 0] for n in ("f", "f_test")], 1).sum(1)
        for layer, expected in enumerate(parts):
            seen = [256 * final_outputs(problem, 256, layer, others, 60).var(0).sum() / expected for others in range(6)]
            ratio = torch.stack(seen)
            error = ratio.std() / 6**0.5
            print(f"| {name} | {layer + 1} | {expected:.3f} | {ratio.mean():.2f} | {error:.2f} |", flush=True)
            assert abs(ratio.mean() - 1) < 4 * error


def laws_of_revealed_networks() -> None:
    """FiniteWidth and RevealedWidth, 2000 seeds each of width 24, T = 8: two-sample tests of 8 outputs f_T, their means and variances"""
    _laws({name: _problem(name).with_steps(8) for name in ("tanh, L = 2", "relu, L = 2")}, 2000)


def laws_of_revealed_modules() -> None:
    """the same of the modules of any_networks, 300 seeds each, T = 6"""
    names = ("convolutional, tanh", "residual, eta = 0.05", "recurrent", "transformer")
    _laws({name: MODULES[name]().with_steps(6) for name in names}, 300)


def _laws(problems: dict[str, mf.Problem], seeds: int) -> None:
    print("| network | smallest p of 8 | largest z of means | variances, ratio | its error |\n|---|---|---|---|---|")
    for name, problem in problems.items():
        real, revealed = (
            torch.stack([torch.cat([f[-1].flatten() for f in (s.f, s.f_test) if f is not None]) for s in nets])
            for solver in (FiniteWidth(24, snapshots=()), RevealedWidth(24, snapshots=(), keep_neurons=False))
            for nets in (solver.ensemble(problem, seeds),)
        )
        some = np.linspace(0, real.shape[1] - 1, 8).astype(int)
        tests: list[Any] = [ks_2samp(real[:, k], revealed[:, k]) for k in some]
        p = min(float(test.pvalue) for test in tests)
        z = (real.mean(0) - revealed.mean(0)) / ((real.var(0) + revealed.var(0)) / seeds).sqrt()
        ratio = float(revealed.var(0).sum() / real.var(0).sum())
        rng = np.random.default_rng(0)
        rows = [rng.integers(seeds, size=seeds) for _ in range(300)]
        spread = float(np.std([float(real[row].var(0).sum()) for row in rows]) / float(real.var(0).sum())) * 2**0.5
        print(f"| {name} | {p:.3f} | {z.abs().max():.2f} | {ratio:.3f} | {spread:.3f} |", flush=True)
        assert p > 1e-3 / 8
        assert z.abs().max() < 4.5
        assert abs(ratio - 1) < 4 * spread


def remainder_of_the_variance() -> None:
    """N Var f_T = v + r / N fitted to 1000 networks of widths 64 and 512, sum of 8 outputs, in units of the prediction"""
    print("| network | N = 64 | N = 512 | v | error | r | error |\n|---|---|---|---|---|---|---|")
    for name in REMAINDERS:
        problem, rng = _problem(name), np.random.default_rng(0)
        found = predicted_variance(problem, progress=False)
        assert found.test is not None
        expected = float(torch.cat([found.train, found.test]).sum())
        finals = [_measured(problem, width, 1000)[0] for width in (64, 512)]

        def fit(rows: list[np.ndarray], finals: list[Tensor] = finals, expected: float = expected) -> list[float]:
            small, large = (
                n * float(final[row].var(0).sum()) / expected
                for n, final, row in zip((64, 512), finals, rows, strict=True)
            )
            r = (small - large) / (1 / 64 - 1 / 512)
            return [small, large, large - r / 512, r]

        best = fit([np.arange(1000)] * 2)
        errors = np.std([fit([rng.integers(1000, size=1000) for _ in range(2)]) for _ in range(300)], axis=0)
        small, large, v, r = best
        print(
            f"| {name} | {small:.3f} | {large:.3f} | {v:.3f} | {errors[2]:.3f} | {r:.1f} | {errors[3]:.1f} |",
            flush=True,
        )
        assert abs(v - 1) < 4 * errors[2] + 0.05


def cost_of_the_variance() -> None:
    """Seconds of predictions, and of as many networks of width 512 as give the sum of 8 outputs the same error"""
    print("| network | error of the prediction | s | networks | s |\n|---|---|---|---|---|")
    for name in ("tanh, L = 1", "tanh, L = 2", "tanh, L = 3", "tanh, L = 4", "gelu, L = 2"):
        problem, rng = _problem(name), np.random.default_rng(0)
        start = time.perf_counter()
        found = predicted_variance(problem, progress=False)
        own = time.perf_counter() - start
        each = torch.cat([found.each("f")[:, -1, :, 0], found.each("f_test")[:, -1, :, 0]], 1).sum(1)
        error = float(each.std() / len(each) ** 0.5 / each.mean())
        start = time.perf_counter()
        final, _ = _measured(problem, 512, 200)
        theirs = time.perf_counter() - start
        draws = [float(final[rng.integers(200, size=200)].var(0).sum() / final.var(0).sum()) for _ in range(300)]
        count = 200 * (float(np.std(draws)) / error) ** 2
        print(f"| {name} | {error:.3f} | {own:.1f} | {count:.0f} | {theirs * count / 200:.0f} |", flush=True)


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


def cost_of_the_bias() -> None:
    """Seconds and mean error of N bias, 6 training outputs, for each way, and the seconds that each takes to an error of 0.05 (their square
    root law): 100 networks of width 128 beside their halves; 1000 of width 64 and of width 16 beside independent ones of half the width;
    4000 of width 64 beside the limit, of which four sweeps of 16384 samples are part of the time and of the error; and second derivatives
    in the weights of neurons, 10 tilts of each of 20 sweeps of 256 particles
    """
    print("| network | way | error | s | s to 0.05 |\n|---|---|---|---|---|")
    for name in ("tanh, L = 2", "relu, L = 3"):
        problem = _problem(name)
        ways: dict[str, Any] = {
            "halves, width 128": lambda p=problem: _error(predicted_bias(p, 128, 100, method="halves", progress=False)),
            "networks, width 64": lambda p=problem: _error(predicted_bias(p, 64, 1000, method="networks")),
            "networks, width 16": lambda p=problem: _error(predicted_bias(p, 16, 1000, method="networks")),
            "beside the limit, width 64": lambda p=problem: _beside_the_limit(p, 64, 4000),
            "tilted weights": lambda p=problem: _of_tilts(p, 256, 20, 10),
        }
        for way, found in ways.items():
            start = time.perf_counter()
            error = found()
            seconds = time.perf_counter() - start
            print(f"| {name} | {way} | {error:.3f} | {seconds:.1f} | {seconds * (error / 0.05) ** 2:.0f} |", flush=True)


def _error(bias: PredictedBias) -> float:
    return float(bias.error()[-1].square().mean().sqrt())


def _beside_the_limit(problem: mf.Problem, width: int, seeds: int) -> float:
    runs = (CausalDMFT(16384, seed=s, tolerance=2e-3, progress=False, snapshots=())(problem) for s in range(4))
    limits = torch.stack([run.f[-1, :, 0].double() for run in runs])
    final, _ = _measured(problem, width, seeds)
    error2 = width**2 * (final[:, :6].var(0) / seeds + limits.var(0) / 4)
    return float(error2.mean().sqrt())


def _of_tilts(problem: mf.Problem, particles: int, sweeps: int, tilts: int) -> float:
    """The error of N bias = S E[o(m + t) + o(m - t) - 2 o(m)] / (2 e^2), m = 1/S and t of the entries +-e/S, which sum to 0: a network of
    N neurons drawn from the particles has weights of that kind with e^2 = S/N
    """
    draw, e, found = torch.Generator().manual_seed(0), 0.5, []
    observables, last = Observables(problem, ("f",), None), (problem.training.steps,)
    for seed in range(sweeps):
        start = start_of(problem, particles, seed, "sobol", 1e-3, problem.perceptron.nonlinearity)
        network, beginning = start.network, start.network.mark()
        unrolled = Unrolled(problem, network, start.begin, observables, last)

        def seen(signs: list[Tensor], network: Any = network, unrolled: Any = unrolled, to: Any = beginning) -> Tensor:
            network.back_to(to)
            with torch.no_grad():
                for m, sign in zip(network.weights, signs, strict=True):
                    m.copy_((1 + e * sign) / particles)
                return torch.cat(unrolled.seen())

        rest, own = seen([torch.zeros(particles)] * len(network.weights)), []
        for _ in range(tilts):
            signs = [2.0 * torch.randint(2, (particles,), generator=draw) - 1 for _ in network.weights]
            signs = [sign - sign.mean() for sign in signs]
            both = seen(signs) + seen([-sign for sign in signs])
            own.append(particles * (both / 2 - rest) / e**2)
        found.append(torch.stack(own).mean(0))
    return float((torch.stack(found).var(0) / sweeps).mean().sqrt())


CLAIMS = {
    f.__name__: f
    for f in (
        variance_of_deep_networks,
        variance_of_modules,
        variance_of_relu_networks,
        variance_by_layer,
        laws_of_revealed_networks,
        laws_of_revealed_modules,
        remainder_of_the_variance,
        cost_of_the_variance,
        bias_of_deep_networks,
        cost_of_the_bias,
    )
}
