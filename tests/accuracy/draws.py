"""Where a sweep's Gaussians come from: the distribution of its errors for several constructions and sizes of blocks."""

import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

import meanfield as mf
from meanfield.measures.particle_measure import SobolPoints
from solvers import CausalDMFT
from solvers.dmft import neurons as drawn
from solvers.dmft.neurons import Neurons
from tests.accuracy.sweep_numerics import digits

SEEDS, SAMPLES, REFERENCE = 50, 2048, 32768
Points = Callable[[int, int, int], Tensor]  # (neurons, dimensions, seed) -> (neurons, dimensions) in the unit cube


def sobol(n: int, size: int, seed: int) -> Tensor:
    return SobolPoints(size, seed % 2**31).draw(n, dtype=torch.float64)


def plain(n: int, size: int, seed: int) -> Tensor:
    return torch.rand(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_scipy(engine: Callable[..., qmc.QMCEngine], **options: int) -> Points:
    return lambda n, size, seed: torch.from_numpy(engine(size, seed=seed, **options).random(n))


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
    "Latin hypercube": neurons([of_scipy(qmc.LatinHypercube)], 32),
    **{f"Sobol, blocks of {size}": neurons([sobol], size) for size in (8, 16, 32, 64, 128, 256)},
    "Sobol, 32, then plain": neurons([sobol, plain], 32),
    "Sobol of scipy, blocks of 32": neurons([of_scipy(qmc.Sobol, bits=60)], 32),
    "Halton, blocks of 32": neurons([of_scipy(qmc.Halton)], 32),
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
        squares: dict[str, tuple[float, float]] = {}
        for kind, source in KINDS.items():
            with patch.object(drawn, "sobol_neurons", source):
                errors = ((outputs(asked, SAMPLES, range(SEEDS)) - exact).norm(dim=1) / exact.norm()).numpy()
            square = errors**2
            squares[kind] = (square.mean(), square.std(ddof=1) / SEEDS**0.5)
            rms = square.mean() ** 0.5
            deviation = square.std(ddof=1) / SEEDS**0.5 / (2 * rms)  # standard error of the root
            cells = [f"{e:.5f}" for e in (np.median(errors), np.quantile(errors, 0.95), errors.max())]
            print(f"| {kind} | {rms:.5f} ± {deviation:.5f} | {' | '.join(cells)} |", flush=True)
        (ours, own), (plain, other) = squares["Sobol, blocks of 32"], squares["plain"]
        assert ours < plain + 2 * math.hypot(own, other), squares


def pairs_of_draws() -> None:
    """256 coordinates of each neuron: the largest correlation of two, of their squares (Legendre polynomials of uniform numbers) or of one
    with the other's square, in standard deviations of independent ones, 4 seeds; and processor time per Gaussian
    """
    print("| draws | S = 1024 | S = 2048 | S = 4096 | S = 8192 | ns per Gaussian |\n|---|---|---|---|---|---|")
    for kind, source in KINDS.items():
        cells, seconds = [], math.inf
        for samples in (1024, 2048, 4096, 8192):
            largest = 0.0
            for seed in range(4):
                start = time.process_time()
                x = source(samples, seed, torch.float64, "cpu").fresh(256)
                seconds = min(seconds, (time.process_time() - start) / x.numel())
                u = torch.special.ndtr(x)
                legendre = torch.cat([math.sqrt(3) * (2 * u - 1), math.sqrt(5) * (6 * u * (u - 1) + 1)])
                z = (legendre @ legendre.T / math.sqrt(samples)).fill_diagonal_(0)
                largest = max(largest, float(z.abs().max()))
            cells.append(f"{largest:.1f}")
        print(f"| {kind} | {' | '.join(cells)} | {1e9 * seconds:.0f} |", flush=True)


CLAIMS = {"draws": draws, "pairs_of_draws": pairs_of_draws}
