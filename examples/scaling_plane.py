"""The scaling plane: how the output multiplier and the learning rates may depend on the width, and what becomes of the network.

Two-layer networks on the digits 3 and 8, logistic loss, in the five named scalings. Expected: the powers of the width at which
outputs, tangent kernel and weights start and move are the predicted ones; small deviations have a reason, such as f(T) under
sym-default, whose logits ~ sqrt(N) are infinite only far out.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import meanfield as mf
from meanfield.scaling.plane import classify
from meanfield.scaling.scaling import NAMED
from solvers import FiniteWidth
from solvers.studies.measured_exponents import measured_exponents

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Classify the named scalings and measure their powers of the width; quick: narrower networks, fewer seeds."""
    widths, seeds = ((64, 512, 4096), 6) if quick else ((64, 512, 4096, 32768), 16)
    data = mf.digits((3, 8), n_train=16, n_test=0)
    reports, found = [], {}
    for name, make in NAMED.items():
        print(classify(make()))
        training = mf.Training(learning_rate=2.0 if "mean_field" in name else 0.3, steps=4)
        problem = mf.Problem(data, mf.Network(1, "tanh"), make(), training, "logistic")
        reports.append(measured_exponents(problem, widths, seeds, FiniteWidth(dtype="float32")))
        print(f"{reports[-1]}\n")
        for quantity in ("f0", "kernel", "readouts"):
            law = reports[-1][quantity]
            found[f"{name}, {quantity}"] = law.measured.slope - law.predicted
    if out is not None:
        keep(mf.plot.scaling_plane(), folder(out) / "scaling_plane.png")
        keep(mf.plot.powers(reports), folder(out) / "powers.png")
    return found


if __name__ == "__main__":
    tyro.cli(main)
