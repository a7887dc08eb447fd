"""Depth: residual networks with branches of size 1/sqrt(L) up to 64 layers, their limit and finite networks."""

from dataclasses import replace

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth


def depth() -> None:
    """digits 0/1, P = 8, eta = 0.2, T = 12, tanh, residual = 1: the limit at L = 2..64 (4 groups of 1024) and 16 nets of N = 256"""
    data = mf.digits(n_train=8, n_test=4)
    base = mf.Problem(data, scaling=mf.mean_field(1.0), training=mf.Training(0.2, 12))
    solver = CausalDMFT(1024, groups=4, snapshots=(-1,), two_time=False, keep_neurons=False)
    problems = {L: replace(base, network=mf.Network(L, "tanh", residual=1.0)) for L in (2, 4, 8, 16, 32, 64)}
    limits = {L: solver(problem) for L, problem in problems.items()}
    deepest = limits[64].f
    print("| L | f from that of L = 64 | standard error | f: mean of nets from limit | floor "
          "| last Phi | floor | ranks, largest | seconds per group |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for L, limit in limits.items():
        nets = FiniteWidth(256, dtype="float32", snapshots=(-1,), keep_neurons=False).ensemble(problems[L], 16)
        report = mf.deviation(nets, limit, names=("f", f"Phi{L}"))
        error = float(limit.standard_errors["f"].norm() / limit.f.norm())
        f, phi = (report[name] for name in ("f", f"Phi{L}"))
        apart = float((limit.f - deepest).norm() / deepest.norm())
        ranks = max(max(pair) for pair in limit.stats["ranks"])
        print(
            f"| {L} | {apart:.4f} | {error:.4f} | {abs(f.bias2[0]) ** 0.5:.4f} | {f.floor[0]:.4f} | {abs(phi.bias2[0]) ** 0.5:.4f} "
            f"| {phi.floor[0]:.4f} | {ranks} | {limit.stats['seconds'] / 4:.1f} |",
            flush=True,
        )
        assert abs(f.bias2[0]) < (3 * f.floor[0]) ** 2


CLAIMS = {"depth": depth}
