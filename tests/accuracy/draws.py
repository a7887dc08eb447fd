"""Where a sweep's Gaussians come from: the distribution of its errors for several constructions and sizes of blocks."""

from collections.abc import Callable, Sequence
from functools import cache
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

import meanfield as mf
from meanfield.measure import SobolPoints
from solvers import CausalDMFT, limit_network
from solvers.neurons import Neurons
from tests.accuracy.sweep_numerics import digits

SEEDS, SAMPLES, REFERENCE = 50, 2048, 32768
Points = Callable[[int, int, int], Tensor]  # (neurons, dimensions, seed) -> (neurons, dimensions) in the unit cube


def sobol(n: int, size: int, seed: int) -> Tensor:
    return SobolPoints(size, seed % 2**31).draw(n, dtype=torch.float64)


def plain(n: int, size: int, seed: int) -> Tensor:
    return torch.rand(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def halton(n: int, size: int, seed: int) -> Tensor:
    return torch.from_numpy(qmc.Halton(size, seed=seed).random(n))


def scipy_sobol(n: int, size: int, seed: int) -> Tensor:
    return torch.from_numpy(qmc.Sobol(size, bits=60, seed=seed).random(n))


def latin(n: int, size: int, seed: int) -> Tensor:
    return torch.from_numpy(qmc.LatinHypercube(size, seed=seed).random(n))


def lattice(n: int, size: int, seed: int) -> Tensor:
    """Korobov's lattice with a random shift"""
    shift = torch.from_numpy(np.random.default_rng(seed).random(size))
    return (torch.arange(n)[:, None] * korobov(n, size) / n + shift) % 1


@cache
def korobov(n: int, size: int) -> Tensor:
    """(1, a, a^2, ..) mod n with the least worst-case error of 200 multipliers a (coordinate j of weight 1 / j^2)"""
    best, weights = (np.inf, np.ones(size, int)), 1 / np.arange(1, size + 1) ** 2
    for a in np.random.default_rng(0).integers(1, n // 2, 200) * 2 + 1:
        z = np.array([pow(int(a), j, n) for j in range(size)])
        x = np.arange(n)[:, None] * z % n / n
        error = np.prod(1 + weights * 2 * np.pi**2 * (x**2 - x + 1 / 6), 1).mean()
        best = min(best, (error, z), key=lambda pair: pair[0])
    return torch.from_numpy(best[1])


def neurons(points: Sequence[Points], size: int) -> Callable[..., Neurons]:
    """In place of `sobol_neurons`: blocks of so many dimensions, shuffled against each other; the last kind of points goes on"""

    def made(samples: int, seed: int, dtype: torch.dtype, device: str, shard: object = None) -> Neurons:
        @cache
        def block(index: int) -> Tensor:
            own = seed * 1_000_003 + index
            u = points[min(index, len(points) - 1)](samples, size, own % 2**31)
            u = u[torch.randperm(samples, generator=torch.Generator().manual_seed(own))]
            return torch.special.ndtri(u.clamp(2.0**-31, 1 - 2.0**-31)).T.to(device=device, dtype=dtype)

        def draw(start: int, count: int) -> Tensor:
            return torch.stack([block(k // size)[k % size] for k in range(start, start + count)])

        return Neurons(samples, draw)

    return made


KINDS: dict[str, Callable[..., Neurons]] = {
    "plain": neurons([plain], 32),
    "Latin hypercube": neurons([latin], 32),
    **{f"Sobol, blocks of {size}": neurons([sobol], size) for size in (8, 16, 32, 64, 128, 256)},
    "Sobol, 32, then plain": neurons([sobol, plain], 32),
    "Sobol of scipy, blocks of 32": neurons([scipy_sobol], 32),
    "Halton, blocks of 32": neurons([halton], 32),
    "Korobov, blocks of 32": neurons([lattice], 32),
}


def problems() -> dict[str, mf.Problem]:
    teacher = mf.single_index_teacher(12, 0, 4)
    residual = mf.Network(3, "tanh", bias_std=0.5, residual=1.0)
    return {
        "tanh, L = 3": digits(12, 3, "tanh", 20, 0.2),
        "relu, L = 2": digits(8, 2, "relu", 20, 0.1),
        "tanh, L = 3, residual, biases": mf.Problem(teacher, residual, mf.mean_field(1.0), mf.Training(0.1, 20)),
    }


def outputs(asked: mf.Problem, samples: int, seeds: Sequence[int]) -> Tensor:
    """(seeds, M) f of the whole run"""
    runs = [CausalDMFT(samples, seed=s, two_time=False, keep_neurons=False, snapshots=()) for s in seeds]
    return torch.stack([solver(asked).f.double().flatten() for solver in runs])


def draws() -> None:
    """digits 0/1, P = 12 and 8, and a teacher in four dimensions, P = 12; T = 20, gamma0 = 1, S = 2048: the relative error of f over the
    whole run, 50 seeds for each way to draw. Reference: the mean of 12 runs of S = 32768 with the draws of the solver
    """
    for name, asked in problems().items():
        many = outputs(asked, REFERENCE, range(1000, 1012))
        exact = many.mean(0)
        own = float((many.var(0).sum() / len(many)).sqrt() / exact.norm())
        print(f"\n{name} (error of the reference {own:.1e})\n")
        print("| draws | root mean square | median | 95 % | largest |\n|---|---|---|---|---|")
        for kind, source in KINDS.items():
            with patch.object(limit_network, "sobol_neurons", source):
                errors = ((outputs(asked, SAMPLES, range(SEEDS)) - exact).norm(dim=1) / exact.norm()).numpy()
            square = errors**2
            rms = square.mean() ** 0.5
            deviation = square.std(ddof=1) / SEEDS**0.5 / (2 * rms)  # standard error of the root
            cells = [f"{e:.5f}" for e in (np.median(errors), np.quantile(errors, 0.95), errors.max())]
            print(f"| {kind} | {rms:.5f} ± {deviation:.5f} | {' | '.join(cells)} |", flush=True)


CLAIMS = {"draws": draws}
