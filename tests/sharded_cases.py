"""Runs that tests/test_sharding.py compares between one process and many: `torchrun --nproc-per-node 2 -m tests.sharded_cases FOLDER`."""

import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import torch

import meanfield as mf
from solvers import CausalDMFT, Interrupted, WassersteinFlow
from solvers.limit_network import LimitNetwork
from solvers.sharding import Ranks, over_ranks


def problem(depth=1, activation="tanh", steps=4, classes=1, scaling=None, loss="squared", training=None, **network):
    """Eight training and four test points in six dimensions; data of the library's own would load scikit-learn in every process"""
    g = torch.Generator().manual_seed(1)
    x, labels = torch.randn(12, 6, generator=g, dtype=torch.float64), torch.arange(12) % 3
    y = torch.eye(3, dtype=torch.float64)[labels] if classes == 3 else torch.sign(x[:, :1])
    data, training = mf.Dataset(x[:8], y[:8], x[8:], y[8:]), mf.Training(0.2, steps, **(training or {}))
    return mf.Problem(data, mf.Network(depth, activation, **network), scaling or mf.mean_field(1.0), training, loss)


def cloud():
    """A measure with unequal weights"""
    g = torch.Generator().manual_seed(3)
    m = torch.rand(203, generator=g, dtype=torch.float64)
    a, w = (torch.randn(203, n, generator=g, dtype=torch.float64) for n in (1, 6))
    return mf.ParticleMeasure(a, w, m / m.sum())


FLOW = {"optimiser": "gradient_flow"}
FINE = dict(dtype="float64", tolerance=1e-3)
CASES: dict[str, tuple[mf.Problem, CausalDMFT | WassersteinFlow]] = {
    "deep": (
        problem(3, classes=3, loss="cross_entropy", training=dict(momentum=0.5, weight_decay=0.01, batch_size=5)),
        CausalDMFT(514, keep_state=True, responses=True, **FINE),
    ),
    "residual": (
        problem(4, residual=0.7, bias_std=0.3, weight_std=1.1),
        CausalDMFT(512, draws="plain", two_time=False, keep_state=True, **FINE),
    ),
    "single": (problem(2, "relu"), CausalDMFT(1024, dtype="float32")),
    "linear": (problem(3, "linear", bias_std=0.3), CausalDMFT(301)),
    "deep flow": (problem(2, steps=2, training=FLOW), CausalDMFT(333, draws="plain", **FINE)),
    "particles": (
        problem(bias_std=0.4, training=dict(momentum=0.5)),
        WassersteinFlow(1001, snapshots=(0, 2, -1)),
    ),
    "three classes": (problem(classes=3, loss="cross_entropy"), WassersteinFlow(1024, initial="iid")),
    "given": (problem(), WassersteinFlow(initial=cloud(), snapshots=(0, -1))),
    "particle flow": (problem(1, "gelu", 2, training=FLOW), WassersteinFlow(500, initial="iid")),
    "initial condition": (problem(scaling=mf.ic_mean_field()), WassersteinFlow(512, dtype="float32")),
}
RESUMED = ("deep", "residual", "particles")  # from files of one process, "NAME whole.nc"
MORE = 2


def _interrupted(ranks: Ranks) -> mf.Solution | None:
    """Ctrl-C reaches the last rank only, in its third step"""
    advance, seen = LimitNetwork.advance, []

    def then_interrupt(self, state, f, weights):
        seen.append(1)
        if len(seen) == 3 and ranks.rank == ranks.count - 1:
            signal.raise_signal(signal.SIGINT)
        return advance(self, state, f, weights)

    with mock.patch.object(LimitNetwork, "advance", then_interrupt):
        try:
            return CASES["residual"][1](CASES["residual"][0])
        except Interrupted as error:
            return error.solution


def _die(ranks: Ranks, how: str) -> None:
    """The last rank ends, or falls silent, in its third step"""
    advance, seen = LimitNetwork.advance, []

    def then_die(self, state, f, weights):
        seen.append(1)
        if len(seen) == 3 and ranks.rank == ranks.count - 1:
            time.sleep(20) if how == "silent" else os._exit(9)
        return advance(self, state, f, weights)

    with mock.patch.object(LimitNetwork, "advance", then_die):
        CASES["single"][1](CASES["single"][0])


def main(folder: Path, how: str = "") -> None:
    torch.set_num_threads(1)
    with over_ranks(timeout=4.0 if how == "silent" else 60.0) as ranks:
        if how:
            _die(ranks, how)
        for name, (asked, solver) in CASES.items():
            mf.save(solver(asked), folder / f"{name} {ranks.rank}.nc")
        for name in RESUMED:
            whole = mf.load(folder / f"{name} whole.nc")
            mf.save(CASES[name][1].resume(whole, MORE), folder / f"{name} resumed {ranks.rank}.nc")
        mf.save(_interrupted(ranks), folder / f"interrupted {ranks.rank}.nc")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
