"""The same limit from three kinds of particle cloud: independent draws, scrambled Sobol points, Gauss-Hermite quadrature.

Two inputs, so that quadrature is affordable. The error is that of f over the whole run, against a reference of many Sobol particles.
Expected: independent draws converge like N^-1/2, Sobol points and quadrature about like 1/N.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

import meanfield as mf
from solvers import WassersteinFlow

from . import folder, keep, slope

_KINDS = {"iid": "independent draws", "sobol": "Sobol points", "gauss_hermite": "Gauss-Hermite quadrature"}


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Measure errors against the number of particles; quick: fewer seeds and sizes."""
    sizes, seeds = ((2**6, 2**8, 2**10, 2**12), 4) if quick else ((2**6, 2**8, 2**10, 2**12, 2**14), 16)
    problem = mf.Problem(
        data=mf.multi_index_teacher(n_train=16, n_test=0, inputs=2, directions=2),
        training=mf.Training(learning_rate=0.5, steps=10 if quick else 40),
    )
    reference = WassersteinFlow(2**17 if quick else 2**19, seed=10_000, snapshots=())(problem).f
    errors: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for kind in _KINDS:
        draws = range(1 if kind == "gauss_hermite" else seeds)
        runs = [
            [WassersteinFlow(size, seed, kind, snapshots=())(problem) for seed in draws]  # type: ignore[arg-type]
            for size in sizes
        ]
        squares = [[float((s.f - reference).square().sum() / reference.square().sum()) for s in row] for row in runs]
        errors[kind] = [float(np.sqrt(np.mean(row))) for row in squares]
        counts[kind] = [row[0].stats["particles"] for row in runs]
    print("relative error of f" + "".join(f"{label:>28}" for label in _KINDS.values()))
    for i, size in enumerate(sizes):
        cells = (f"{f'{errors[k][i]:.2e} ({counts[k][i]})':>28}" for k in _KINDS)
        print(f"{f'up to {size} particles':>19}" + "".join(cells))
    powers = {kind: slope(counts[kind], errors[kind]) for kind in _KINDS}
    print("power of the number    " + "".join(f"{powers[kind]:>28.2f}" for kind in _KINDS))
    if out is not None:
        _, ax = plt.subplots(figsize=(5.4, 4.0), layout="constrained")
        for kind, marker in zip(_KINDS, "os^", strict=True):
            ax.loglog(counts[kind], errors[kind], marker + "-", label=f"{_KINDS[kind]}, $N^{{{powers[kind]:.2f}}}$")
        ax.set(xlabel="particles", ylabel=f"relative error of $f$, whole run, {seeds} seeds")
        ax.legend(fontsize="small")
        keep(ax, folder(out) / "quadrature_against_sampling.png")
    return powers


if __name__ == "__main__":
    tyro.cli(main)
