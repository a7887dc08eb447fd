"""How often 95 % intervals hold the truth, and how wide they are, on synthetic networks whose powers of the width are known."""

from collections.abc import Sequence

import numpy as np

from meanfield.comparison.statistics import (
    Exponent,
    bias_exponent,
    exponent_of,
    gaussian_kl_interval,
    jackknife_error,
    left_out_means,
    left_out_moments,
    moments,
)

OUTPUTS = 6
LADDER = (32, 32, 24, 12, 5, 2)
REPETITIONS = 2000


def noise(kind: str, rng: np.random.Generator, seeds: int) -> np.ndarray:
    """(seeds, outputs) of unit variance about 0; "heavy": each seed has a size of its own, of log-normal law (kurtosis 8.2)"""
    z = rng.standard_normal((seeds, OUTPUTS))
    return z if kind == "gauss" else z * np.exp(0.5 * rng.standard_normal((seeds, 1)) - 0.25)


def fitted(
    kind: str,
    seeds: Sequence[int],
    rng: np.random.Generator,
    bias: float = 0.0,
    scatter: float = 0.0,
    rule: bool = False,
) -> dict[str, Exponent | None]:
    """Exponents from networks bias / N + noise / sqrt(N), at each width times a size of its own with `scatter` in its log.

    rule: the bias only over the widths where it is detected (equation 15), as in a report; else over all.
    """
    widths, e = 64 * 2.0 ** np.arange(len(seeds)), np.array(seeds)
    sizes = np.exp(scatter * rng.standard_normal(len(widths))) if scatter else np.ones(len(widths))
    apart = [s * (noise(kind, rng, n) / w**0.5 + bias / w) for s, w, n in zip(sizes, widths, seeds, strict=True)]
    grams = [a @ a.T for a in apart]
    left_out = [left_out_moments(gram, 0.0) for gram in grams]
    table = np.array([moments(gram, 0.0) for gram in grams])
    distances = [(a**2).sum(1) ** 0.5 for a in apart]
    errors = np.array([jackknife_error(rows[2]) for rows in left_out])
    seen = table[:, 2] > 1.96 * errors if rule else np.full(len(widths), True)
    return {
        "deviation": exponent_of(widths, table[:, 0], [rows[0] for rows in left_out], 0.5),
        "variance": exponent_of(widths, table[:, 1], [rows[1] for rows in left_out], 1.0),
        "distance": exponent_of(widths, [d.mean() for d in distances], [left_out_means(d) for d in distances], 1.0),
        "|bias|": bias_exponent(widths[seen], table[seen, 2], errors[seen], e[seen]),
    }


def coverage(found: Sequence[Exponent | None], truth: float) -> tuple[float, float]:
    """Share of the intervals that hold the truth, and their median width"""
    given = [e for e in found if e is not None]
    return float(np.mean([e.low <= truth <= e.high for e in given])), float(np.median([e.high - e.low for e in given]))


def noise_of_share(count: int) -> float:
    """Four standard errors of the share of `count` intervals that hold the truth 95 % of times"""
    return 4 * (0.95 * 0.05 / count) ** 0.5


def intervals_of_exponents() -> None:
    """share of 95 % intervals that hold the true power (their median width), 2000 repetitions (standard error 0.005); six outputs,
    noise Gaussian or with a size of its own for each seed (log-normal, kurtosis 8). No share may lie four standard errors below 0.95
    """
    print(
        "| seeds at each width | widths | deviation, Gaussian | variance, Gaussian | deviation, heavy | variance, heavy |\n"
        "|---|---|---|---|---|---|"
    )
    rng = np.random.default_rng(0)
    for seeds in (*((e,) * w for e in (2, 3, 8, 32) for w in (3, 6)), LADDER):
        cells = []
        for kind in ("gauss", "heavy"):
            found = [fitted(kind, seeds, rng) for _ in range(REPETITIONS)]
            for name, truth in (("deviation", -0.5), ("variance", -1.0)):
                held, width = coverage([f[name] for f in found], truth)
                cells.append(f"{held:.2f} ({width:.2g})")
                assert held + noise_of_share(REPETITIONS) >= 0.95, (seeds, kind, name, held)
        label = seeds[0] if len(set(seeds)) == 1 else ", ".join(map(str, seeds))
        print(f"| {label} | {len(seeds)} | {' | '.join(cells)} |", flush=True)


def intervals_of_scattered_points() -> None:
    """the same where the points of all widths scatter by 0.5 in their log, which seeds do not tell: share of the deviation's intervals"""
    print("| seeds at each width | 3 widths | 6 widths |\n|---|---|---|")
    rng = np.random.default_rng(1)
    for seeds in (2, 8, 32):
        held = [
            coverage([fitted("gauss", (seeds,) * w, rng, scatter=0.5)["deviation"] for _ in range(REPETITIONS)], -0.5)
            for w in (3, 6)
        ]
        print(f"| {seeds} | {' | '.join(f'{share:.2f} ({width:.2g})' for share, width in held)} |", flush=True)
        assert min(share for share, _ in held) > 0.75


def intervals_of_the_bias() -> None:
    """bias / N beside Gaussian noise / sqrt(N), 2000 repetitions, only widths where the bias is detected (at least three): how often
    there is an interval, its share that holds the power -1, its median width; and how often a bias is detected at one width without one
    """
    print(
        "| seeds | widths | bias | fitted in | hold -1 (median width) | detected at a width |\n|---|---|---|---|---|---|"
    )
    rng = np.random.default_rng(2)
    for seeds, widths, bias in ((4, 3, 60), (8, 4, 30), (32, 4, 15), (8, 4, 8), (32, 4, 5), (32, 6, 5)):
        found = [fitted("gauss", (seeds,) * widths, rng, bias, rule=True)["|bias|"] for _ in range(REPETITIONS)]
        made = sum(e is not None for e in found)
        held, width = coverage(found, -1.0)
        cells = f"{made / REPETITIONS:.2f} | {held:.2f} ({width:.2g}) | {detected(seeds, bias, rng):.3f}"
        print(f"| {seeds} | {widths} | {bias} | {cells} |", flush=True)
        if made == REPETITIONS:
            assert held > 0.85
    for seeds in (3, 4, 8, 32):
        share = detected(seeds, 0.0, rng)
        print(f"| {seeds} | 1 | 0 | | | {share:.3f} |", flush=True)
        assert share < 0.08


def detected(seeds: int, bias: float, rng: np.random.Generator) -> float:
    """The share of sets of networks of width 64 whose bias counts as detected (equation 15)"""
    seen = 0
    for _ in range(REPETITIONS):
        a = noise("gauss", rng, seeds) / 8 + bias / 64
        gram = a @ a.T
        seen += int(moments(gram, 0.0)[2] > 1.96 * jackknife_error(left_out_moments(gram, 0.0)[2]))
    return seen / REPETITIONS


def runs_and_networks(
    kind: str, rng: np.random.Generator, runs: int, nets: int, shift: float, size: float, repetitions: int
) -> tuple[np.ndarray, np.ndarray]:
    """(runs, repetitions, outputs) of a limit, shift + size z, and as many of networks, z: unit variance, correlations of 1/2 of outputs"""

    def z(count: int) -> np.ndarray:
        common = rng.standard_normal((count, repetitions, 1))
        found = (rng.standard_normal((count, repetitions, OUTPUTS)) + common) / 2**0.5
        return found if kind == "gauss" else found * np.exp(0.5 * rng.standard_normal(common.shape) - 0.25)

    return shift + size * z(runs), z(nets)


def kl_of(shift: float, size: float) -> float:
    """KL( N(shift, size^2) || N(0, 1) )"""
    return 0.5 * (size**2 - 1 - 2 * float(np.log(size)) + shift**2)


def intervals_of_the_kl() -> None:
    """share of 95 % intervals that hold the true KL(limit || network) of Gaussian fits (their median width), 2000 repetitions (standard
    error 0.005), six correlated outputs. No share may lie four standard errors below 0.95 (Gaussian), 0.92 (heavy)
    """
    cases = ((0.0, 1.0), (0.3, 1.0), (1.5, 1.0), (0.0, 3.0), (0.0, 0.3))
    print(
        f"| runs, networks | noise | {' | '.join(f'KL = {kl_of(*case):.2g}' for case in cases)} |\n|---|---|{'---|' * len(cases)}"
    )
    rng = np.random.default_rng(3)
    for runs, nets in ((3, 4), (8, 8), (12, 40), (64, 256), (256, 256)):
        for kind, least in (("gauss", 0.95), ("heavy", 0.92)):
            cells = []
            for case in cases:
                _, low, high = gaussian_kl_interval(*runs_and_networks(kind, rng, runs, nets, *case, REPETITIONS))
                held = float(np.mean((low <= kl_of(*case)) & (kl_of(*case) <= high)))
                cells.append(f"{held:.2f} ({np.median(high - low):.2g})")
                assert held + noise_of_share(REPETITIONS) >= least, (runs, nets, kind, case, held)
            print(f"| {runs}, {nets} | {kind} | {' | '.join(cells)} |", flush=True)


CLAIMS = {
    f.__name__: f
    for f in (intervals_of_exponents, intervals_of_scattered_points, intervals_of_the_bias, intervals_of_the_kl)
}
