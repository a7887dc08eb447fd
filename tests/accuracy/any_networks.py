"""Networks written as torch modules approach CausalDMFT's limit of them, and do not without its responses; how the limit's error falls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import meanfield as mf
import solvers.dmft.infinite_dense
from meanfield.comparison.observables import observe
from meanfield.comparison.statistics import exponent_of, left_out_means
from meanfield.network.architecture import perceptron
from meanfield.network.layered import branch
from solvers import CausalDMFT, FiniteWidth
from solvers.dmft.causal_dmft import Draws
from tests.accuracy.agreement import compared, kept, largest_z, networks_and_limit
from tests.any_networks import Convolutional, Language, Recurrent, Residual, digits, text

SEEDS = {64: 16, 128: 16, 256: 16, 512: 16, 1024: 16}
SAMPLES, SWEEPS, STEPS = 8192, 4, 10
SIZES = (256, 512, 1024, 2048, 4096, 8192)
NETWORKS = (
    mf.Network(2, "tanh"),
    mf.Network(3, "relu", bias_std=0.5),
    mf.Network(3, "gelu", residual=1.0),
    mf.Network(3, "linear", bias_std=0.3, residual=0.7),
)


class Next(Language):
    """The letter behind a text: a transformer block on embeddings, read at the last position"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, -1]


class Relu(Convolutional):
    def __init__(self, n: int) -> None:
        super().__init__(n, torch.relu)


class Tanh(Convolutional):
    def __init__(self, n: int) -> None:
        super().__init__(n, torch.tanh)


class Gelu(Convolutional):
    def __init__(self, n: int) -> None:
        super().__init__(n, nn.functional.gelu)


def images(network: type[nn.Module], eta: float, image: bool = False) -> mf.Problem:
    x, y = digits(12, image)
    data = mf.Dataset(x[:8], y[:8], x[8:], y[8:])
    return mf.Problem(data, network, mf.mean_field(1.5), mf.Training(eta, STEPS))


def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(P, positions, positions) of the attention, which are zero before training"""
    assert isinstance(net, Next)
    block = net.block
    u = block.ln1(net.tok(x) + net.pos(torch.arange(x.shape[1])))
    return block.q(u) @ block.k(u).mT * (4.0 / u.shape[-1])


def attention(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(P, positions, positions) of each position to those before it"""
    found = logits(net, x)
    return found.masked_fill(torch.ones(found.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def letters() -> mf.Problem:
    x, y = text()
    network = mf.Architecture(Next, record={"attention": attention, "logits": logits})
    data = mf.Dataset(x, y[:, -1])
    return mf.Problem(data, network, mf.mean_field(2.0), mf.Training(0.06, STEPS), loss="cross_entropy")


CASES = {
    "convolutional, tanh": partial(images, Tanh, 0.5, True),
    "convolutional, relu": partial(images, Relu, 0.5, True),
    "convolutional, gelu": partial(images, Gelu, 0.5, True),
    "residual, eta = 0.1": partial(images, Residual, 0.1),
    "residual, eta = 0.05": partial(images, Residual, 0.05),
    "recurrent": partial(images, Recurrent, 0.5),
    "transformer": letters,
}


@contextmanager
def blind() -> Iterator[None]:
    """Without responses: what a direction that is new does to the fields of the other side is left out"""
    basis = solvers.dmft.infinite_dense.Basis
    whole = basis.reveal_beside

    def deaf(self: Any, v: torch.Tensor, others: torch.Tensor) -> Any:
        c, new, beside = whole(self, v, others)
        return c, new, torch.zeros_like(beside)

    basis.reveal_beside = deaf  # type: ignore[method-assign]
    try:
        yield
    finally:
        basis.reveal_beside = whole  # type: ignore[method-assign]


def chosen() -> list[str]:
    """All, or those whose name holds one of the comma-separated words of $ANY_NETWORKS"""
    asked = [word.strip() for word in os.environ.get("ANY_NETWORKS", "").split(",")]
    return [name for name in CASES if any(word in name for word in asked)]


def any_networks() -> None:
    """digits 3/8, P = 8, P_test = 4, or the letters of a sentence, P = 6; T = 10; N = 64..1024, 16 seeds (float32); the limit: 4 sweeps of
    8192 samples. Deviation of nets, its slope and that of the variance (95 %); distance of the mean over the networks of N = 1024 from the
    limit (its combined floor) z; the same without the limit's responses
    """
    print(
        "| network | observable | deviation, N = 64 | N = 1024 | its slope | slope of variance | mean, N = 1024: distance (floor) z "
        "| all N, extrapolated | without responses |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    agree, extrapolated, differ = [], [], []
    for case in chosen():
        rows = _measured(case)
        kept("any_networks", {"case": case, "observables": rows})
        for name, row in rows.items():
            cells = (
                f"{d['distance']:.2g} ({d['floor']:.2g}) {d['z']:+.1f}" for d in (row["mean"], row["extrapolated"])
            )
            print(
                f"| {case} | {name} | {row['deviation'][0]:.2g} | {row['deviation'][-1]:.2g} | {row['slope']} | {row['variance']} "
                f"| {' | '.join(cells)} | {row['blind']['distance']:.2g} {row['blind']['z']:+.1f} |",
                flush=True,
            )
            agree.append(row["mean"]["z"])
            extrapolated.append(row["extrapolated"]["z"])
        differ.append(rows["f"]["blind"]["z"])
    bound = largest_z(len(agree))
    print(f"\nlargest of {len(agree)} z: {max(agree):.1f} at N = 1024, {max(extrapolated):.1f} extrapolated; noise alone passes "
          f"{bound:.1f} once in a thousand such tables. Smallest z of f without responses: {min(differ):.1f}")  # fmt: skip
    assert max(extrapolated) < bound < min(differ)


def _measured(case: str) -> dict[str, dict[str, Any]]:
    """Slopes, and agreement with and without responses, of every observable of a case"""
    asked, last = CASES[case](), max(SEEDS)
    limits = [CausalDMFT(SAMPLES, seed=seed)(asked) for seed in range(SWEEPS)]
    with blind():
        without = [CausalDMFT(SAMPLES, seed=seed)(asked) for seed in range(2)]
    nets = {n: FiniteWidth(n, dtype="float32").ensemble(asked, seeds) for n, seeds in SEEDS.items()}
    everyone = [net for group in nets.values() for net in group]
    found = {}
    for name, d in mf.deviation(everyone, limits).observables.items():
        found[name] = {
            "deviation": d.deviation.tolist(),
            "slope": str(d.exponents["deviation"]),
            "variance": str(d.exponents["variance"]),
            "limit": d.reference_error,
            "bias2": d.bias2.tolist(),
            "floor": d.floor.tolist(),
            "mean": vars(networks_and_limit(nets[last], limits, name)),
            "extrapolated": vars(networks_and_limit(everyone, limits, name, extrapolate=True)),
            "blind": vars(networks_and_limit(nets[last], without, name)),
        }
    return found


def sampling_of_networks() -> None:
    """P = 4, T = 8: the relative error of f of a sweep against S, 8 seeds (4 at S = 8192), about the mean of 4 Sobol sweeps of 16384
    samples, whose own error is subtracted; its slope (95 %); and over 50 seeds at S = 1024 the median and the largest error
    """
    print(
        "| network | draws | "
        + " | ".join(f"S = {s}" for s in SIZES)
        + " | slope | S = 1024: median | largest / median |"
    )
    print("|---|---|" + "---|" * (len(SIZES) + 3))
    slopes = {}
    for case in (name for name in ("convolutional, tanh", "transformer") if name in chosen()):
        asked = _few(CASES[case]())
        many = _outputs(asked, 2 * SIZES[-1], "sobol", range(1000, 1004))
        exact, own = many.mean(0), float(many.var(0).sum()) / len(many)
        for draws in ("sobol", "plain"):
            squares = {s: _squares(asked, s, draws, 8 if s < SIZES[-1] else 4, exact) for s in SIZES}
            size = float(exact.square().sum())
            errors = [max(float(square.mean()) - own, 1e-12) / size for square in squares.values()]
            left_out = [(left_out_means(square) - own) / size for square in squares.values()]
            slopes[case, draws] = slope = exponent_of(np.array(SIZES, float), errors, left_out, 0.5)
            single = np.sqrt(_squares(asked, 1024, draws, 50, exact) / size)
            row = {
                "case": case,
                "draws": draws,
                "errors": np.sqrt(errors).tolist(),
                "slope": str(slope),
                "single": single.tolist(),
            }
            kept("sampling_of_networks", row)
            cells = " | ".join(f"{e**0.5:.2g}" for e in errors)
            print(
                f"| {case} | {draws} | {cells} | {slope} | {np.median(single):.2g} | {single.max() / np.median(single):.2f} |",
                flush=True,
            )
            assert slope is not None
            assert slope.low < -0.5, slope


def _few(asked: mf.Problem) -> mf.Problem:
    data = mf.Dataset(asked.data.x[:4], asked.data.y[:4])
    return replace(asked, data=data, training=replace(asked.training, steps=8))


def _outputs(asked: mf.Problem, samples: int, draws: Draws, seeds: Iterable[int]) -> torch.Tensor:
    """(seeds, M) f of the whole run"""
    runs = (CausalDMFT(samples, seed=seed, draws=draws, snapshots=())(asked) for seed in seeds)
    return torch.stack([run.f.double().flatten() for run in runs])


def _squares(asked: mf.Problem, samples: int, draws: Draws, seeds: int, exact: torch.Tensor) -> np.ndarray:
    """Squared distances of single sweeps from the exact f"""
    return (_outputs(asked, samples, draws, range(seeds)) - exact).square().sum(1).numpy()


def modules_and_perceptrons() -> None:
    """digits 0/1, P = 12, P_test = 6, T = 20, gamma0 = 1: distance of f, Phi^1, G^L and K of the perceptron as a module from the
    perceptron's own sweep, 8 seeds of S = 4096 each (floor from their spread) z; linear networks: largest difference, no seeds
    """
    print(
        "| network | "
        + " | ".join(("f", "f_test", "Phi^1", "Phi^L", "G^1", "G^L", "K"))
        + " |\n|---|---|---|---|---|---|---|---|"
    )
    found = []
    for network in NETWORKS:
        data = mf.digits((0, 1), 12, 6)
        asked = mf.Problem(data, network, mf.mean_field(1.0), mf.Training(0.1, 20))
        module = replace(asked, network=perceptron(network, data.inputs, data.outputs))
        seeds = range(1 if network.is_linear else 8)
        ours = [CausalDMFT(4096, seed=s)(module) for s in seeds]
        theirs = [CausalDMFT(4096, seed=100 + s)(asked) for s in seeds]
        deep = network.depth - 1
        layers = [
            ("Phi[mix.0]", "Phi1"),
            ("Phi[out]", f"Phi{deep + 1}"),
            ("G[read]", "G1"),
            (f"G[mix.{deep - 1}]", f"G{deep + 1}"),
        ]
        pairs = [(name, name) for name in ("f", "f_test")] + layers + [("tangent_kernel", "tangent_kernel")]
        cells = []
        for one, other in pairs:
            a = [observe(run, one) / (branch(network) ** 2 if one.startswith("G[mix") else 1) for run in ours]
            b = [observe(run, other) for run in theirs]
            if network.is_linear:
                cells.append(f"{float((a[0] - b[0]).abs().max() / b[0].abs().max()):.1e}")
                assert float(cells[-1]) < 1e-9
            else:
                d = compared(a, b)
                cells.append(f"{d.distance:.2g} ({d.floor:.2g}) {d.z:+.1f}")
                found.append(d.z)
        words = (
            f"{network.nonlinearity.name}, L = {network.depth}"
            + ", biases" * bool(network.bias_std)
            + ", residual" * (network.residual is not None)
        )
        print(f"| {words} | {' | '.join(cells)} |", flush=True)
        kept("modules_and_perceptrons", {"network": words, "cells": cells})
    print(
        f"\nlargest of {len(found)} z: {max(found):.1f}; noise alone passes {largest_z(len(found)):.1f} once in a thousand such tables"
    )
    assert max(found) < largest_z(len(found))


CLAIMS = {f.__name__: f for f in (any_networks, sampling_of_networks, modules_and_perceptrons)}
