"""Feature kernels of every layer of a deep network before and after training: the infinite-width limit, the lazy limit, a real net.

Digits 0 against 1, three hidden ReLU layers. Expected: at gamma0 = 2 the kernels align with the task, more so the deeper the layer,
and a network of width 512 learns the same kernels; in the lazy limit (gamma0 near 0) they stay as they were.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the rich and the lazy limit and train one network; quick: fewer samples, steps and neurons."""
    depth, gamma0 = 3, 2.0
    problem = mf.Problem(
        data=mf.digits(classes=(0, 1), n_train=8 if quick else 24, n_test=0),
        network=mf.Network(depth=depth, activation="relu"),
        scaling=mf.mean_field(gamma0),
        training=mf.Training(learning_rate=0.1, steps=15 if quick else 60),
    )
    solver = CausalDMFT(2**10 if quick else 2**12, two_time=False)
    rich, lazy = solver(problem), solver(replace(problem, scaling=mf.mean_field(1e-2)))
    net = FiniteWidth(128 if quick else 512, dtype="float32")(problem)
    solved = {"limit": rich, "lazy limit": lazy, f"N = {net.width}": net}
    print(f"{'':<12}" + "".join(f"{f'alignment {l}':>14}{f'movement {l}':>13}" for l in range(1, depth + 1)))
    found = {}
    for label, solution in solved.items():
        cells = []
        for l in range(1, depth + 1):
            aligned = float(mf.alignment(solution.kernels[f"Phi{l}"].at(), problem.data.y))
            moved = float(mf.movement(solution, f"Phi{l}"))
            cells.append(f"{aligned:>14.3f}{moved:>13.3f}")
            found[f"{label}, movement {l}"] = moved
        print(f"{label:<12}" + "".join(cells))
    if out is not None:
        for l in range(1, depth + 1):
            keep(mf.plot.kernels([rich, net], f"Phi{l}"), folder(out) / f"layer{l}.png")
        keep(mf.plot.kernels([lazy], f"Phi{depth}"), folder(out) / "lazy.png")
    return found


if __name__ == "__main__":
    tyro.cli(main)
