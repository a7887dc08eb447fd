"""The measurements of lazy kernels behind docs/accuracy.md. Each prints its table and asserts the claim."""

import numpy as np
import torch
from scipy.stats import t as student

import meanfield as mf
from meanfield.kernels.conv_kernels import conv_nngp_and_ntk
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.network.convolutional import ConvNetwork
from meanfield.scaling.standard import improved_standard, naive_standard
from solvers.finite.empirical_kernels import monte_carlo_kernels

NAMES = ("linear", "tanh", "relu", "erf", "sigmoid", "softplus", "sin", "gelu")


def _points(n: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_forms() -> None:
    """closed form against quadrature, 8 points in 3 dimensions, two opposite, two nearly equal: largest difference, relative"""
    print("| activation | std 0.3 | std 1 | std 3 |\n|---|---|---|---|")
    for name in ("linear", "relu", "erf", "sin", "gelu"):
        cells = []
        for scale in (0.3, 1.0, 3.0):
            x = _points(8, 3)
            x[3], x[4] = -1.3 * x[2], x[1] + 1e-3
            c = scale**2 * x @ x.T / 3
            p = c.diagonal().clone()
            both = [gaussian_averages(name, quadrature=q).pair(p, p, c) for q in (False, True)]
            cells.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*both, strict=True)))
        print(f"| {name} | " + " | ".join(f"{c:.1e}" for c in cells) + " |", flush=True)
        assert max(cells) < 1e-10


def kernels_of_networks() -> None:
    """NTK scaling, N = 256, 32 seeds, 4 points: largest deviation in standard errors, nngp / ntk (standard error of ntk, relative)"""
    print("| activation | bias_std | L = 1 | L = 2 | L = 3 | L = 4 |\n|---|---|---|---|---|---|")
    limit, x, seeds, worst = student.ppf(1 - 3.2e-5, 31), _points(4, 6), 0, 0.0
    for name in NAMES:
        for bias in (0.0, 0.5):
            cells = []
            for depth in (1, 2, 3, 4):
                network = mf.Network(depth, name, bias_std=bias)
                found, (nngp, ntk) = (
                    monte_carlo_kernels(network, mf.ntk(), x, 256, range(seeds, seeds + 32)),
                    nngp_and_ntk(network, mf.ntk(), x),
                )
                seeds += 32
                z = [
                    float(((a - b) / e).abs().max())
                    for a, b, e in ((found.nngp, nngp, found.nngp_error), (found.ntk, ntk, found.ntk_error))
                ]
                cells.append(f"{z[0]:.1f} / {z[1]:.1f} ({float(found.ntk_error.norm() / ntk.norm()):.3f})")
                worst = max(worst, *z)
            print(f"| {name} | {bias} | " + " | ".join(cells) + " |", flush=True)
    print(
        f"largest: {worst:.2f}; as improbable as 4 standard deviations is {limit:.2f} (Student, 31 degrees of freedom)"
    )
    assert worst < limit


def standard_parameterizations() -> None:
    """tanh, L = 2, biases, widths in ratio 1:4: traces of tangent kernels, analytic and of networks (16 seeds), s times as wide"""
    x, network = _points(4, 6), mf.Network(2, "tanh", 1.2, 0.5)
    print(
        "| s | improved (4, 16): analytic | networks | naive (4 s, 16 s): analytic | networks |\n|---|---|---|---|---|"
    )
    traces, sizes = [], (4, 8, 16, 32, 64)
    improved = nngp_and_ntk(network, improved_standard((4, 16)), x)[1].trace()
    for s in sizes:
        naive = nngp_and_ntk(network, naive_standard((4 * s, 16 * s)), x)[1].trace()
        measured = []
        for scaling, multiple in ((improved_standard((4, 16)), s), (naive_standard((4 * s, 16 * s)), 1)):
            found = monte_carlo_kernels(network, scaling, x, multiple, 16)
            measured.append(f"{found.ntk.trace():.2f} ± {found.ntk_error.diagonal().norm():.2f}")
            traces.append(float(found.ntk.trace()))
        print(f"| {s} | {improved:.2f} | {measured[0]} | {naive:.1f} | {measured[1]} |", flush=True)
    slope = np.polyfit(np.log(sizes), np.log(traces[1::2]), 1)[0]
    print(f"slope of log trace against log s for the naive one: {slope:.3f}")
    assert 0.8 < slope < 1.1
    assert abs(traces[-2] / float(improved) - 1) < 0.1


def convolutional() -> None:
    """digits (8 x 8 pixels, 4 images), L = 2, filters of 3, 128 channels, 16 seeds: largest deviation in standard errors (nngp / ntk)"""
    x = mf.digits(n_train=4, n_test=0).x.reshape(4, 1, 8, 8)
    print("| activation | padding | readout | nngp / ntk | standard error of ntk, relative |\n|---|---|---|---|---|")
    limit = student.ppf(1 - 3.2e-5, 15)
    for activation in ("relu", "erf"):
        for padding in ("same", "circular", "valid"):
            for readout in ("vectorised", "global_average"):
                network = ConvNetwork(2, activation, 3, padding, readout, bias_std=0.3)
                found, kernels = (
                    monte_carlo_kernels(network, mf.ntk(), x, 128, 16),
                    conv_nngp_and_ntk(network, mf.ntk(), x),
                )
                z = [float(((a - b) / e).abs().max())
                     for a, b, e in zip((found.nngp, found.ntk), kernels, (found.nngp_error, found.ntk_error), strict=True)]  # fmt: skip
                relative = float(found.ntk_error.norm() / kernels[1].norm())
                print(
                    f"| {activation} | {padding} | {readout} | {z[0]:.1f} / {z[1]:.1f} | {relative:.3f} |", flush=True
                )
                assert max(z) < limit


def rounding_at_correlation_one() -> None:
    """ReLU, L = 3: relative error of diagonals, and between points and their copies; exact are |x|^2 / (D 2^L) and L + 1 times that"""
    print("| dtype | nngp diagonal | ntk diagonal | nngp, copies | ntk, copies |\n|---|---|---|---|---|")
    x, network = _points(200, 784), mf.Network(3, "relu")
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        points = x.to(dtype)
        base = points.double().square().sum(1) / 784 / 2**3
        errors = []
        for kernels in (
            nngp_and_ntk(network, mf.ntk(), points),
            nngp_and_ntk(network, mf.ntk(), points, points.clone()),
        ):
            errors += [
                float((k.double().diagonal() / (f * base) - 1).abs().max())
                for k, f in zip(kernels, (1, 4), strict=True)
            ]
        print(f"| {str(dtype)[6:]} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")
        assert max(errors) < bound


CLAIMS = {
    f.__name__: f
    for f in (closed_forms, rounding_at_correlation_one, kernels_of_networks, standard_parameterizations, convolutional)
}
