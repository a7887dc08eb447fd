"""The measurements behind docs/accuracy.md. Each prints its table and asserts the claim."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch

import meanfield as mf
from meanfield.measures import reductions
from solvers import FiniteWidth, WassersteinFlow, predicted_variance, width_sweep

WIDTHS, SEEDS = (64, 128, 256, 512, 1024, 2048), 32


def digits(activation: str, gamma0: float, eta: float, steps: int) -> mf.Problem:
    data = mf.digits((0, 1), n_train=32, n_test=64)
    return mf.Problem(data, mf.Network(1, activation), mf.mean_field(gamma0), mf.Training(eta, steps))


def exponents() -> None:
    """digits 0/1, P = 32, eta = 0.2, T = 60, N = 64..2048, 32 seeds: the deviation of nets falls like N^-1/2, their variance like 1/N"""
    print(
        "| activation | gamma0 | observable | deviation, N=64 | N=2048 | its slope | slope of variance "
        "| bias, N=64 | limit's error |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for activation in ("tanh", "relu"):
        for gamma0 in (0.3, 1.0, 3.0):
            problem = digits(activation, gamma0, 0.2, 60)
            limits = [WassersteinFlow(2**14, seed=s)(problem) for s in (0, 1)]
            nets = width_sweep(problem, WIDTHS, SEEDS, FiniteWidth(dtype="float32", keep_neurons=False))
            report = mf.deviation(nets, limits, names=("f", "f_test", "loss", "Phi1", "tangent_kernel"))
            for d in report.observables.values():
                bias = f"{math.sqrt(d.bias2[0]):.2g}" if d.bias_detected[0] else f"below {d.floor[0]:.2g}"
                print(f"| {activation} | {gamma0} | {d.name} | {d.deviation[0]:.3g} | {d.deviation[-1]:.2g} | {d.exponents['deviation']} "
                      f"| {d.exponents['variance']} | {bias} | {d.reference_error:.1g} |", flush=True)  # fmt: skip
            slope = report["f"].exponents["deviation"]
            assert abs(slope.slope + 0.5) < 0.1


def quasi_monte_carlo() -> None:
    """error of the limit's f (relative, root mean square of 4 seeds) from 2^14 particles, P = 8, T = 40, against 2^20 particles"""
    print("| activation | D | i.i.d. | scrambled Sobol | ratio |\n|---|---|---|---|---|")
    for activation in ("tanh", "relu"):
        for inputs in (4, 64):
            data = mf.digits(n_train=8, n_test=0) if inputs == 64 else mf.single_index_teacher(8, 0, inputs)
            problem = mf.Problem(data, mf.Network(1, activation), mf.mean_field(1.0), mf.Training(0.3, 40))
            exact = WassersteinFlow(2**20, seed=99, snapshots=(), dtype="float32")(problem).f.double()
            errors = {}
            for initial in ("iid", "sobol"):
                runs = [WassersteinFlow(2**14, seed=s, initial=initial, snapshots=())(problem).f for s in range(4)]
                errors[initial] = math.sqrt(
                    np.mean([float((f - exact).square().sum() / exact.square().sum()) for f in runs])
                )
            ratio = errors["sobol"] / errors["iid"]
            print(
                f"| {activation} | {inputs} | {errors['iid']:.2e} | {errors['sobol']:.2e} | {ratio:.3f} |", flush=True
            )
            assert ratio < 0.2


def variance() -> None:
    """N Var f_T at N = 1024 measured with 400 seeds against the prediction made before training (digits 0/1, P = 32)"""
    print(
        "| activation | gamma0 | measured / predicted, 96 outputs | standard error | single ratios |\n|---|---|---|---|---|"
    )
    for activation in ("tanh", "relu"):
        for gamma0 in (0.3, 1.0, 3.0):
            problem = digits(activation, gamma0, 0.1 if activation == "relu" else 0.2, 40)
            nets = FiniteWidth(1024, dtype="float32", snapshots=(), keep_neurons=False).ensemble(problem, 400)
            final = torch.stack([torch.cat([s.f[-1], s.f_test[-1]]) for s in nets if s.f_test is not None]).double()[
                ..., 0
            ]
            found = predicted_variance(problem, particles=2**12, method="derivative")
            assert found.test is not None
            expected = torch.cat([found.train, found.test])[:, 0]
            ratio = 1024 * final.var(0) / expected
            rng = np.random.default_rng(0)
            draws = [float((1024 * final[rng.integers(400, size=400)].var(0) / expected).mean()) for _ in range(300)]
            print(
                f"| {activation} | {gamma0} | {ratio.mean():.3f} | {np.std(draws):.3f} | {ratio.min():.2f} .. {ratio.max():.2f} |",
                flush=True,
            )
            assert abs(float(ratio.mean()) - 1) < 0.15


def lazy() -> None:
    """gamma0 -> 0: distance of f_T from the network linearised at its start (digits 0/1, P = 16, T = 50, tanh), relative"""
    print("| gamma0 | distance |\n|---|---|")
    problem = mf.Problem(mf.digits(n_train=16, n_test=0), training=mf.Training(0.3, 50))
    apart = []
    for gamma0 in (0.3, 0.1, 0.03, 0.01, 1e-3):
        solution = WassersteinFlow(2**12)(replace(problem, scaling=mf.mean_field(gamma0)))
        f, kernel = torch.zeros_like(problem.data.y), solution.tangent_kernel(0)
        for _ in range(50):
            f = f + 0.3 * kernel @ (problem.data.y - f) / 16
        apart.append(float((solution.f[-1] - f).norm() / f.norm()))
        print(f"| {gamma0} | {apart[-1]:.2e} |")
    assert apart[-1] < 1e-4


def engines() -> None:
    """largest relative difference of outputs, velocities and gradients between engines, N = 3000, P = 300, D = 5, C = 2, float64"""
    g = torch.Generator().manual_seed(0)
    a, w, m, x, d = (
        torch.randn(s, generator=g, dtype=torch.float64) for s in ((3000, 2), (3000, 5), (3000,), (300, 5), (300, 2))
    )
    m = m.abs() / m.abs().sum()
    print("| activation | chunked against dense | KeOps against dense |\n|---|---|---|")
    for name in ("tanh", "relu", "gelu"):
        results = {}
        for engine in ("dense", "chunked", "keops"):
            t = [v.clone().requires_grad_() for v in (a, w, m, x, d)]
            f = reductions.outputs(t[0], t[1], t[2], t[3], mf.activation(name), engine)
            va, vw = reductions.velocity(t[0], t[1], t[3], t[4], mf.activation(name), engine)
            results[engine] = [
                f,
                va,
                vw,
                *torch.autograd.grad(f.square().sum() + va.sin().sum() + vw.square().sum(), t),
            ]
        apart = {
            e: max(
                float((p - q).abs().max() / q.abs().max()) for p, q in zip(results[e], results["dense"], strict=True)
            )
            for e in ("chunked", "keops")
        }
        print(f"| {name} | {apart['chunked']:.1e} | {apart['keops']:.1e} |", flush=True)
        assert max(apart.values()) < 1e-10


def one_step_of_a_million_particles() -> None:
    """N = 1,000,000, P = 1,000, D = 64, one step of WassersteinFlow in float32: peak memory of the whole process"""
    code = (
        "import resource, time, torch, meanfield as mf; from solvers import WassersteinFlow; g = torch.Generator().manual_seed(0);"
        "x, y = torch.randn(1000, 64, generator=g), torch.randn(1000, 1, generator=g);"
        "p = mf.Problem(mf.Dataset(x, y), mf.Network(1, 'tanh'), mf.mean_field(1.0), mf.Training(0.1, 1));"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; t = time.perf_counter();"
        "s = WassersteinFlow(10**6, dtype='float32', snapshots=(), balanced=False)(p);"
        "print(base / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, s.stats['seconds'], time.perf_counter() - t)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    before, peak, step, total = map(float, out)
    print(
        f"peak {peak:.2f} GB, {before:.2f} GB before the run; {step:.1f} s for a step and two records, {total:.1f} s with the draw"
    )
    assert peak < 1.5


CLAIMS = {
    f.__name__: f for f in (engines, lazy, quasi_monte_carlo, variance, exponents, one_step_of_a_million_particles)
}
