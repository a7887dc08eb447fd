"""The measurements of Gaussian processes behind docs/accuracy_kernels.md. Each prints its table and asserts the claim."""

from typing import Any

import mpmath as mp

import meanfield as mf
from tests.test_gaussian_process import DIGITS, dense, exactly, normal, numbers, recursion

AT = {"noise": 0.1, "weight_std": 1.3, "bias_std": 0.4}


def posteriors() -> None:
    """4 points, 2 outputs, 3 other points, kernels and posterior in 50 digits: largest differences, of derivatives in log noise, .."""
    print("| kernel | mean | covariance | log p | d noise | d weight_std | d bias_std |\n|---|---|---|---|---|---|---|")
    for activation in ("relu", "erf"):
        for law in ("nngp", "ntk"):
            for depth in (1, 3):
                cells = _differences(activation, law, depth)
                row = " | ".join(f"{cell:.1e}" for cell in cells)
                print(f"| {law}, {activation}, L = {depth} | {row} |", flush=True)
                assert max(cells[:3]) < 1e-13
                assert max(cells[3:]) < 1e-12


def _differences(activation: str, law: str, depth: int) -> list[float]:
    """Of mean, covariance, log p and its derivatives, these relative to the sum of the sizes of what they add up (equation 96)"""
    x, y, other = normal(4, 3), normal(4, 2, seed=1), normal(3, 3, seed=2)
    network = mf.Network(depth, activation, AT["weight_std"], AT["bias_std"])
    found = mf.GaussianProcess(network, noise=AT["noise"], law=law).posterior(x, y)  # pyright: ignore[reportArgumentType]
    with mp.workdps(DIGITS):
        points = exactly(x.tolist() + other.tolist())

        def log(noise: Any, weight: Any, bias: Any) -> Any:
            return dense(recursion(exactly(x), weight, bias, depth, activation, law), exactly(y), noise)

        place = [mp.mpf(value) for value in AT.values()]
        whole = recursion(points, place[1], place[2], depth, activation, law)
        mean, covariance, value = dense(whole[:4, :4], exactly(y), place[0], whole[4:, :4], whole[4:, 4:])
        slopes = [float(mp.diff(log, place, tuple(int(i == k) for i in range(3)))) for k in range(3)]
    size = float((found._regression.slope() * found._prior[0]).abs().sum())
    gradient = zip(found.gradient().values(), slopes, AT.values(), strict=True)
    return [
        float((found.mean(other) - numbers(mean)).abs().max()),
        float((found.covariance(other) - numbers(covariance)).abs().max()),
        abs(found.log_marginal_likelihood - float(value)),
        *(abs(ours - right) * at / size for ours, right, at in gradient),
    ]


CLAIMS = {"posteriors": posteriors}
