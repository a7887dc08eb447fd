"""Runs that tests/test_sharding.py compares between one process and many.

`torchrun --nproc-per-node 2 -m tests.sharded_cases FOLDER TASK ARGUMENTS`: TASK is the name of a function of `TASKS`.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import meanfield as mf
from solvers import CausalDMFT, Interrupted, WassersteinFlow, checkpointed
from solvers.dmft.perceptron import LimitNetwork
from solvers.running.sharding import Ranks, over_ranks


def problem(
    depth=1, activation="tanh", steps=4, classes=1, scaling=None, loss="squared", training=None, inputs=6, **network
):
    """Eight training and four test points; data of the library's own would load scikit-learn in every process"""
    g = torch.Generator().manual_seed(1)
    x, labels = torch.randn(12, inputs, generator=g, dtype=torch.float64), torch.arange(12) % 3
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
    "batches": (problem(inputs=130, training=dict(batch_size=5)), WassersteinFlow(500, engine="chunked")),
    "three classes": (problem(classes=3, loss="cross_entropy"), WassersteinFlow(1024, initial="iid")),
    "given": (problem(), WassersteinFlow(initial=cloud(), snapshots=(0, -1))),
    "particle flow": (problem(1, "gelu", 2, training=FLOW), WassersteinFlow(500, initial="iid")),
    "initial condition": (problem(scaling=mf.ic_mean_field()), WassersteinFlow(512, dtype="float32")),
}
RESUMED = ("deep", "residual", "particles")  # from what one process kept in whole.pt
MORE = 2
EVERY = 2  # steps between checkpoints


def compare(folder: Path, ranks: Ranks, *names: str) -> None:
    """What each rank finds, in RANK.pt: the cases (all, if none is named), then what is resumed and interrupted"""
    found: dict[str, mf.Solution | None] = {name: CASES[name][1](CASES[name][0]) for name in names or CASES}
    if not names:
        whole = torch.load(folder / "whole.pt", weights_only=False)
        found |= {f"{name} resumed": CASES[name][1].resume(whole[name], MORE) for name in RESUMED}
        found["interrupted"] = _interrupted(ranks)
    torch.save(found, folder / f"{ranks.rank}.pt")


def cuda(folder: Path, ranks: Ranks) -> None:
    """The cases on one GPU for each rank"""
    torch.save({name: on_gpu(name) for name in CASES}, folder / f"{ranks.rank}.pt")


def on_gpu(name: str) -> mf.Solution:
    asked, solver = CASES[name]
    return replace(solver, device="cuda")(asked)


def _interrupted(ranks: Ranks) -> mf.Solution | None:
    """Ctrl-C reaches the last rank only, in its third step"""
    with _in_third_step(ranks, lambda: signal.raise_signal(signal.SIGINT)):
        try:
            return CASES["residual"][1](CASES["residual"][0])
        except Interrupted as error:
            return error.solution


def dead(folder: Path, ranks: Ranks) -> None:
    """The last rank ends in its third step"""
    with _in_third_step(ranks, lambda: os._exit(9)):
        CASES["single"][1](CASES["single"][0])


def silent(folder: Path, ranks: Ranks) -> None:
    """The last rank sleeps in its third step"""
    with _in_third_step(ranks, lambda: time.sleep(20)):
        CASES["single"][1](CASES["single"][0])


def _in_third_step(ranks: Ranks, act: Callable[[], Any]) -> Any:
    """While it is entered, the last rank does `act` before its third step."""
    backward, seen = LimitNetwork.backward, []

    def then_act(self, *arguments):
        seen.append(1)
        if len(seen) == 3 and ranks.rank == ranks.count - 1:
            act()
        return backward(self, *arguments)

    return mock.patch.object(LimitNetwork, "backward", then_act)


def killed(folder: Path, ranks: Ranks, name: str, victim: str, machine: str = "") -> None:
    """A run with checkpoints, in which the rank `victim` is killed at record 3; started again by torchrun, it ends.

    machine: if not empty, its torchrun is killed first, as when a machine goes down
    """
    asked, seen = Ranks.any, []

    def then_kill(self, flag):  # once for each record and each checkpoint: 0, 1, 2, kept; 2, 3
        seen.append(1)
        first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if len(seen) == EVERY + 4 and ranks.rank == int(victim) and first_start:
            if machine:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return asked(self, flag)

    with mock.patch.object(Ranks, "any", then_kill):
        found = checkpointed(CASES[name][1], CASES[name][0], folder / "run.nc", EVERY)
    torch.save({name: found}, folder / f"{ranks.rank}.pt")


TASKS = {task.__name__: task for task in (compare, cuda, dead, silent, killed)}


def main(folder: str, task: str, *arguments: str) -> None:
    with over_ranks(timeout=4.0 if task == "silent" else 60.0) as ranks:
        TASKS[task](Path(folder), ranks, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
