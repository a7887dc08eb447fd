"""Three classes, cross-entropy and biases: the limit predicts logits and test accuracy of wide networks.

Digits 0, 1 and 2, ReLU. Expected: networks approach the limit's losses and logits with their width, and all classify alike.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow, width_sweep

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Solve the limit and train networks; quick: fewer and narrower ones."""
    widths, seeds, particles = ((32, 128), 4, 2**10) if quick else ((64, 256, 1024), 8, 2**13)
    problem = mf.Problem(
        data=mf.digits(classes=(0, 1, 2), n_train=48, n_test=200),
        network=mf.Network(activation="relu", bias_std=0.3),
        training=mf.Training(learning_rate=1.0, steps=20 if quick else 80),
        loss="cross_entropy",
    )
    limit = WassersteinFlow(particles)(problem)
    nets = width_sweep(problem, widths, seeds, FiniteWidth(dtype="float32"))
    print(f"{'':<10}{'loss':>9}{'test loss':>11}{'test accuracy':>15}{'logits, relative distance':>27}")
    found = {}
    for label, group in [("limit", [limit])] + [(f"N = {n}", [s for s in nets if s.width == n]) for n in widths]:
        loss, test = (sum(float(getattr(s, k)[-1]) for s in group) / len(group) for k in ("loss", "test_loss"))
        apart = sum(float((s.f[-1].double() - limit.f[-1]).norm() / limit.f[-1].norm()) for s in group) / len(group)
        found[label] = sum(_accuracy(s) for s in group) / len(group)
        print(f"{label:<10}{loss:>9.4f}{test:>11.4f}{found[label]:>15.3f}{apart:>27.4f}")
    if out is not None:
        path = folder(out)
        keep(mf.plot.loss(nets, limit, test=True), path / "test_loss.png")
        keep(mf.plot.outputs(nets, limit, test=True), path / "correct_logits.png")
        keep(mf.plot.kernels([limit, nets[0]]), path / "kernels.png")
    return found


def _accuracy(solution: mf.Solution) -> float:
    """The share of test samples with the largest logit at the right class, at the end"""
    f, y = solution.f_test, solution.problem.data.y_test
    assert f is not None
    assert y is not None
    return float((f[-1].argmax(1) == y.argmax(1)).double().mean())


if __name__ == "__main__":
    tyro.cli(main)
