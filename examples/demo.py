"""Two-layer networks approach their infinite-width limit like N^-1/2, with a variance known before any of them is trained.

Digits 0 against 1, tanh, mean-field scaling with gamma0 = 1. The limit is solved twice (two seeds tell its error), networks of several
widths and seeds are trained, and the report compares outputs, losses, kernels and preactivations. Expected: deviations fall like
N^-1/2, variances like 1/N, the bias is below its floor, and N Var f(T) equals the prediction within its error bars.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import tyro

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow, predicted_variance, width_sweep

from . import folder, keep


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Compare networks with their limit; quick: fewer and narrower ones."""
    start = time.perf_counter()
    widths, seeds, particles = ((16, 32, 64, 128), 8, 2**10) if quick else ((64, 128, 256, 512, 1024, 2048), 16, 2**14)
    problem = mf.Problem(
        data=mf.digits(classes=(0, 1), n_train=32, n_test=64),
        network=mf.Network(depth=1, activation="tanh"),
        scaling=mf.mean_field(gamma0=1.0),
        training=mf.Training(learning_rate=0.3, steps=20 if quick else 60),
    )
    limits = [WassersteinFlow(particles, seed=seed, dtype="float32")(problem) for seed in (0, 1)]
    _done("limit solved twice", start)
    predicted = predicted_variance(problem, particles=128 if quick else 512, points=range(problem.data.samples))
    _done("variance predicted", start)
    nets = width_sweep(problem, widths, seeds, FiniteWidth(dtype="float32"))
    _done(f"{len(nets)} networks trained", start)
    report = mf.deviation(nets, limits, predicted=predicted)
    _done("compared", start)
    print(report.table())
    if out is not None:
        _keep(folder(out), nets, limits, report)
        _done(f"pictures and files written to {out}", start)
    return {
        "exponent": report["f"].exponents["deviation"].slope,
        "n_var": float(report.n_var[-1]),
        "predicted_n_var": report.predicted_n_var,
    }


def _keep(out: Path, nets: list[mf.Solution], limits: list[mf.Solution], report: mf.DeviationReport) -> None:
    narrow, limit = nets[0], limits[0]
    (out / "deviation.txt").write_text(report.table() + "\n", encoding="utf-8")
    keep(mf.plot.loss(nets, limits), out / "loss.png")
    keep(mf.plot.loss(nets, limits, test=True), out / "test_loss.png")
    keep(mf.plot.outputs(nets, limits), out / "outputs.png")
    keep(mf.plot.outputs(nets, limits, difference=True), out / "outputs_difference.png")
    keep(mf.plot.deviation(report), out / "deviation.png")
    keep(mf.plot.variance(report), out / "variance.png")
    keep(mf.plot.kernels([limit, narrow]), out / "feature_kernels.png")
    keep(mf.plot.kernels([limit, narrow], "tangent_kernel"), out / "tangent_kernels.png")
    keep(mf.plot.preactivations(nets, limit), out / "preactivations.png")
    keep(mf.plot.particles(limit), out / "particles.png")
    mf.save(limit, out / "limit.nc")
    mf.save(report, out / "report.nc")


def _done(what: str, start: float) -> None:
    print(f"{time.perf_counter() - start:6.1f} s  {what} ({torch.get_num_threads()} threads)", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
