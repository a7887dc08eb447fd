"""From lazy to rich: how far the kernels of the infinite two-layer network move, and towards the task, as gamma0 grows.

Digits 0 against 1, tanh. Expected: for small gamma0 the kernels stay where they started (lazy, movement ~ gamma0^2); at gamma0 of
order one they move by their own size, align with the labels, and the loss falls faster.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import tyro

import meanfield as mf
from solvers import WassersteinFlow

from . import folder, keep, slope


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit for several gamma0; quick: fewer particles and steps."""
    richness = (0.1, 0.3, 1.0, 3.0) if quick else (0.03, 0.1, 0.3, 1.0, 3.0)
    solve, data = WassersteinFlow(2**10 if quick else 2**13), mf.digits(n_train=32, n_test=64)
    training = mf.Training(learning_rate=0.2, steps=40 if quick else 100)
    solutions = [solve(mf.Problem(data, scaling=mf.mean_field(g), training=training)) for g in richness]
    rows = [
        (
            float(mf.movement(s, "Phi1")),
            float(mf.movement(s, "tangent_kernel")),
            float(mf.alignment(s.kernels["Phi1"].at(-1), data.y)),
            float(s.loss[-1]),
            float(s.test_loss[-1]),
        )
        for s in solutions
    ]
    before = float(mf.alignment(solutions[0].kernels["Phi1"].at(0), data.y))
    print(f"{'gamma0':>7}{'movement Phi':>14}{'movement K':>12}{'alignment':>11}{'loss':>9}{'test loss':>11}")
    for g, (phi, k, aligned, loss, test) in zip(richness, rows, strict=True):
        print(f"{g:>7}{phi:>14.4f}{k:>12.4f}{aligned:>11.3f}{loss:>9.4f}{test:>11.4f}")
    lazy = slope(richness[:2], [row[0] for row in rows[:2]])
    print(f"alignment before training {before:.3f}; movement of Phi ~ gamma0^{lazy:.2f} while lazy")
    if out is not None:
        _draw(folder(out), richness, rows, before, solutions)
    return {"power": lazy, "alignment_before": before, "alignment_rich": rows[-1][2]}


def _draw(out: Path, richness: tuple[float, ...], rows: list, before: float, solutions: list[mf.Solution]) -> None:
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    phi, k, aligned, *_ = zip(*rows, strict=True)
    left.loglog(richness, phi, "o-", label=r"feature kernel $\Phi^1$")
    left.loglog(richness, k, "s-", label="tangent kernel $K$")
    left.set(xlabel=r"richness $\gamma_0$", ylabel="relative movement in training")
    left.legend()
    middle.semilogx(richness, aligned, "o-", label="after training")
    middle.axhline(before, color="0.4", linestyle="--", label="before")
    middle.set(xlabel=r"richness $\gamma_0$", ylabel=r"alignment of $\Phi^1$ with the labels", ylim=(0, 1))
    middle.legend()
    for i, (g, solution) in enumerate(zip(richness, solutions, strict=True)):
        colour = plt.colormaps["viridis"](0.85 * (1 - i / (len(richness) - 1)))
        right.semilogy(solution.times, solution.loss, color=colour, label=rf"$\gamma_0$ = {g:g}")
    right.set(xlabel=r"training time $\eta k$", ylabel="training loss of the limit")
    right.legend()
    keep(left, out / "lazy_to_rich.png")
    axes = mf.plot.kernels([solutions[0], solutions[-1]])
    for panel, title in zip(
        axes, [rf"$\gamma_0$ = {g:g}, {t}" for g in (richness[0], richness[-1]) for t in ("start", "end")], strict=True
    ):
        panel.set_title(title)
    keep(axes, out / "kernels.png")


if __name__ == "__main__":
    tyro.cli(main)
