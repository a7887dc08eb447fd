"""Networks of one to four hidden layers approach CausalDMFT's limit: exponents, agreement of the mean, and where a prediction fails."""

import os
import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, predicted_variance
from tests.accuracy.agreement import kept, largest_z, networks_and_limit

SEEDS = {
    64: 48,
    128: 40,
    256: 32,
    512: 14,
    1024: 6,
    2048: 3,
}  # N * seeds, the precision of the mean, is about the same from N = 256 on
SWEEPS = 2
EDGE = 1.8  # of 2, where descent is unstable: the small sweep that measures it may be off by a tenth
WIDE = 256  # from here on deviations are small enough for a bias linear in 1/N


def problem(network: mf.Network, gamma0: float, steps: int = 100) -> mf.Problem:
    data = mf.digits((0, 1), n_train=16, n_test=8)
    return mf.Problem(data, network, mf.mean_field(gamma0), mf.Training(0.1, steps))


def kernels(depth: int) -> list[str]:
    return [f"{kind}{l}" for kind in ("Phi", "G") for l in range(1, depth + 1)]


def _cases() -> Iterator[tuple[str, float, int]]:
    """All, or those whose name ("relu 2 3": activation, gamma0, L) holds one of the comma-separated words of $DEEP_NETWORKS"""
    asked = [word.strip() for word in os.environ.get("DEEP_NETWORKS", "").split(",")]
    for depth, activation, gamma0 in product((1, 2, 3, 4), ("tanh", "relu", "gelu"), (0.5, 1.0, 2.0)):
        if any(word in f"{activation} {gamma0:g} {depth}" for word in asked):
            yield activation, gamma0, depth


def networks(asked: mf.Problem) -> dict[int, list[mf.Solution]]:
    return {n: FiniteWidth(n, dtype="float32", keep_neurons=False).ensemble(asked, e) for n, e in SEEDS.items()}


def sharpness(asked: mf.Problem) -> float:
    """The largest eta lambda_max(K(t)) / P of the run, from a small sweep; above 2 descent is unstable and amplifies any difference"""
    steps = range(0, asked.training.steps + 1, 2)
    solution = CausalDMFT(2048, tolerance=3e-2, two_time=False, keep_neurons=False, snapshots=steps)(asked)
    largest = max(float(torch.linalg.eigvalsh(solution.tangent_kernel(t).double())[-1]) for t in steps)
    return asked.training.learning_rate * largest / asked.data.samples


def deep_networks() -> None:
    """digits 0/1, P = 16, P_test = 8, eta = 0.1, T = 100; N = 64, 128, .., 2048 with 32, 32, 24, 12, 5, 2 seeds (float32); the limit: 2
    sweeps of 8192 samples. Slopes of the deviation with 95 % intervals; then distance of the mean over seeds (floor from noise alone, z)
    at N = 1024 and 2048 together, and of its extrapolation linear in 1/N from N = 256 on; Phi, G: the layer of the largest z. Cases that
    come near the edge of stability, eta lambda_max / P > 1.8 at some step (last column), are shown and claim nothing
    """
    print(
        "| network | gamma0 | observable | deviation, N = 64 | N = 2048 | its slope | mean, N >= 1024: distance (floor) z "
        "| extrapolated | edge |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    plain, extrapolated = [], []
    for activation, gamma0, depth in _cases():
        asked = problem(mf.Network(depth, activation), gamma0)
        row = {"activation": activation, "gamma0": gamma0, "depth": depth, "sharpness": sharpness(asked)} | _measured(
            asked
        )
        if row["sharpness"] < EDGE:
            plain += [found["wide"]["z"] for found in row["observables"].values()]
            extrapolated += [found["extrapolated"]["z"] for found in row["observables"].values()]
        kept("deep_networks", row)
        _print(row)
    if not plain:
        return
    limit = largest_z(len(plain))
    for words, z in (("mean at N >= 1024", plain), ("extrapolated", extrapolated)):
        print(f"\n{words}: largest of {len(z)} z: {max(z):.1f}, mean {np.mean(z):+.2f}, above 2: {sum(v > 2 for v in z)} "
              f"(noise alone: {len(z) * 0.023:.0f}); noise alone passes {limit:.1f} once in a thousand such tables.")  # fmt: skip
    assert max(plain + extrapolated) < limit


def _measured(asked: mf.Problem) -> dict[str, Any]:
    """Slopes, variances, biases and agreement of every observable of one case"""
    limits = [CausalDMFT(8192, seed=seed, two_time=False, keep_neurons=False)(asked) for seed in range(SWEEPS)]
    nets = networks(asked)
    names = ("f", "f_test", *kernels(asked.perceptron.depth), "tangent_kernel")
    report = mf.deviation([net for group in nets.values() for net in group], limits, names)
    found = {}
    for name in names:
        d = report[name]
        line = [net for n in SEEDS if n >= WIDE for net in nets[n]]
        found[name] = {
            "deviation": d.deviation.tolist(),
            "slope": vars(d.exponents["deviation"]),
            "variance": vars(d.exponents["variance"]),
            "bias2": d.bias2.tolist(),
            "bias2_se": d.bias2_se.tolist(),
            "floor": d.floor.tolist(),
            "limit": d.reference_error,
            "wide": vars(networks_and_limit([*nets[1024], *nets[2048]], limits, name)),
            "extrapolated": vars(networks_and_limit(line, limits, name, extrapolate=True)),
        }
    seconds = {"sweep": limits[0].stats["seconds"]} | {str(n): group[0].stats["seconds"] for n, group in nets.items()}
    return {"ranks": limits[0].stats["ranks"], "seconds": seconds, "observables": found}


def _print(row: dict[str, Any]) -> None:
    all_kernels, found = kernels(row["depth"]), row["observables"]
    halves = all_kernels[: row["depth"]], all_kernels[row["depth"] :]
    for name in ("f", *(max(half, key=lambda n: found[n]["extrapolated"]["z"]) for half in halves), "tangent_kernel"):
        r, s = found[name], found[name]["slope"]
        cells = [f"{v['distance']:.2g} ({v['floor']:.2g}) {v['z']:+.1f}" for v in (r["wide"], r["extrapolated"])]
        slope = f"{s['slope']:+.2f} [{s['low']:+.2f}, {s['high']:+.2f}]"
        head = f"{row['activation']}, L = {row['depth']} | {row['gamma0']:g} | {name} | {r['deviation'][0]:.2g} | {r['deviation'][-1]:.2g}"
        print(f"| {head} | {slope} | {' | '.join(cells)} | {row['sharpness']:.1f} |", flush=True)


def biases_and_residual_branches() -> None:
    """digits 0/1, P = 16, P_test = 8, eta = 0.1, T = 60, 24 seeds, two sweeps of 8192 samples: distance of the mean over seeds from the
    limit (floor from noise alone) z
    """
    print("| network | N | f | last Phi | G1 | tangent kernel |\n|---|---|---|---|---|---|")
    cases = {
        "tanh, L = 2, gamma0 = 1": (mf.Network(2, "tanh"), 1.0, 1024),
        "gelu, L = 3, gamma0 = 1, bias_std = 0.4": (mf.Network(3, "gelu", bias_std=0.4), 1.0, 512),
        "relu, L = 3, gamma0 = 2": (mf.Network(3, "relu"), 2.0, 512),
        "tanh, L = 4, gamma0 = 1, residual = 0.8, bias_std = 0.3": (mf.Network(4, "tanh", bias_std=0.3, residual=0.8), 1.0, 512),
    }  # fmt: skip
    z = []
    for words, (network, gamma0, width) in cases.items():
        asked = problem(network, gamma0, 60)
        limits = [CausalDMFT(8192, seed=seed, two_time=False, keep_neurons=False)(asked) for seed in (0, 1)]
        nets = FiniteWidth(width, dtype="float32", keep_neurons=False).ensemble(asked, 24)
        found = [
            networks_and_limit(nets, limits, name) for name in ("f", f"Phi{network.depth}", "G1", "tangent_kernel")
        ]
        z += [d.z for d in found]
        cells = [f"{d.distance:.4f} ({d.floor:.4f}) {d.z:+.1f}" for d in found]
        print(f"| {words} | {width} | " + " | ".join(cells) + " |", flush=True)
    print(
        f"\nLargest z of {len(z)}: {max(z):.1f}; noise alone passes {largest_z(len(z)):.1f} once in a thousand such tables."
    )
    assert max(z) < largest_z(len(z))


def variance_at_a_kink() -> None:
    """ReLU, L = 1, digits 0/1, P = 4, gamma0 = 2, N = 8192, 128 seeds: N Var f_T over the prediction with kink_width = 0.2, eta T = 8. Long
    steps carry particles across the kink at once, which no derivative describes; the prediction recovers as eta falls
    """
    print(
        "| eta | T | measured / predicted, mean of 6 outputs | standard error | single ratios | warned |\n|---|---|---|---|---|---|"
    )
    found = {}
    for eta in (0.4, 0.2, 0.1):
        data = mf.digits((0, 1), n_train=4, n_test=2)
        asked = mf.Problem(data, mf.Network(1, "relu"), mf.mean_field(2.0), mf.Training(eta, round(8 / eta)))
        nets = FiniteWidth(8192, dtype="float32", snapshots=(), keep_neurons=False).ensemble(asked, 128)
        final = torch.stack([torch.cat([s.f[-1], s.f_test[-1]]) for s in nets if s.f_test is not None]).double()[..., 0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predicted = predicted_variance(asked, particles=2**12, kink_width=0.2, method="derivative")
        assert predicted.test is not None
        expected = torch.cat([predicted.train, predicted.test])[:, 0]
        ratio = 8192 * final.var(0) / expected
        rng = np.random.default_rng(0)
        draws = [float((8192 * final[rng.integers(128, size=128)].var(0) / expected).mean()) for _ in range(300)]
        found[eta] = float(ratio.mean()), float(np.std(draws))
        print(f"| {eta:g} | {asked.training.steps} | {ratio.mean():.2f} | {np.std(draws):.2f} | {ratio.min():.2f} .. {ratio.max():.2f} | "
              f"{'yes' if caught else 'no'} |", flush=True)  # fmt: skip
    assert abs(found[0.1][0] - 1) < 4 * found[0.1][1]
    assert found[0.4][0] - 1 > 4 * found[0.4][1]


CLAIMS = {f.__name__: f for f in (deep_networks, biases_and_residual_branches, variance_at_a_kink)}
