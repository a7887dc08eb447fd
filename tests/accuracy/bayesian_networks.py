"""Where noise leads deep networks: averages over time of the limit, of networks, and the Gaussian process that gamma0 -> 0 leaves (124)."""

from __future__ import annotations

import time

import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, gibbs_fixed_point

TRAINING = mf.Training(0.05, 120, temperature=1.0, weight_decay=1.0)
SNAPSHOTS = tuple(range(60, 121, 12))
WIDTHS = {64: 64, 256: 32}  # and seeds


def bayesian_networks() -> None:
    """|mean over time - that of the limit| beside its noise; digits 0/1, P = 3, L = 2, tanh, eta = 0.05, tau = lambda = 1, T = 120"""
    data = mf.digits((0, 1), n_train=3, n_test=1)
    print("| gamma0 | of | seconds | forgotten after | correlation time | f | f, test | Phi2 |\n" + "|---" * 8 + "|")
    for gamma0 in (0.1, 0.5, 2.0):
        problem = mf.Problem(data, mf.Network(2, "tanh"), mf.mean_field(gamma0), TRAINING)
        start = time.perf_counter()
        solvers = [CausalDMFT(2048, seed=k, snapshots=SNAPSHOTS, progress=False) for k in range(6)]
        limit = mf.stationary([solve(problem) for solve in solvers], after=60)
        _told(gamma0, "limit, 6 runs of 2048", limit, time.perf_counter() - start, _own(limit))
        print(f"| | Gaussian process | | | | {' | '.join(_of_process(problem, limit))} | |")
        for width, seeds in WIDTHS.items():
            start = time.perf_counter()
            nets = FiniteWidth(width, snapshots=SNAPSHOTS, progress=False).ensemble(problem, seeds)
            found = mf.stationary(nets, after=60)
            _told(gamma0, f"{seeds} networks of {width}", found, time.perf_counter() - start, _apart(found, limit))


def _told(gamma0: float, name: str, found: mf.StationaryAverages, seconds: float, shown: list[str]) -> None:
    cells = f"{gamma0:g} | {name} | {seconds:.1f} | {found.time:g} | {found.correlation_time:.2g} | {' | '.join(shown)}"
    print(f"| {cells} |", flush=True)


_SHOWN = ("f", "f_test", "Phi2")


def _own(found: mf.StationaryAverages) -> list[str]:
    sizes = {name: found.means[name].norm() for name in _SHOWN}
    return [
        f"{float(size):.4f}, own error {float(found.errors[name].norm() / size):.3f}" for name, size in sizes.items()
    ]


def _apart(found: mf.StationaryAverages, limit: mf.StationaryAverages) -> list[str]:
    shown = []
    for name in _SHOWN:
        size = limit.means[name].norm()
        noise = (found.errors[name].square().sum() + limit.errors[name].square().sum()).sqrt()
        shown.append(f"{float((found.means[name] - limit.means[name]).norm() / size):.3f} / {float(noise / size):.3f}")
    return shown


def _of_process(problem: mf.Problem, limit: mf.StationaryAverages) -> list[str]:
    """Its posterior means, with the NNGP kernel and noise lambda P, beside the limit's"""
    kernel, p = mf.nngp_and_ntk(problem.network, mf.ntk(), problem.data.all_x)[0], problem.data.samples
    right = kernel[:, :p] @ torch.linalg.solve(kernel[:p, :p] + p * torch.eye(p, dtype=torch.float64), problem.data.y)
    shown = []
    for name, value in {"f": right[:p], "f_test": right[p:]}.items():
        mean, error = limit.means[name], limit.errors[name]
        shown.append(f"{float((value - mean).norm() / mean.norm()):.3f} / {float(error.norm() / mean.norm()):.3f}")
    return shown


def free_energy_of_a_run() -> None:
    """Free energy against time, digits 0/1, P = 4, tanh, gamma0 = 0.8, tau = 0.5, lambda = 0.4, 2^14 particles; last, the least there is"""
    problem = mf.Problem(
        mf.digits((0, 1), n_train=4, n_test=2),
        mf.Network(1, "tanh", bias_std=0.4),
        mf.mean_field(0.8),
        mf.Training(0.05, 300, temperature=0.5, weight_decay=0.4),
    )
    solver = WassersteinFlow(2**14, snapshots=(0, 5, 10, 20, 40, 80, 150, 300), progress=False)
    print(mf.free_energy(solver(problem)))
    print(gibbs_fixed_point(problem))


CLAIMS = {"bayesian_networks": bayesian_networks, "free_energy_of_a_run": free_energy_of_a_run}
