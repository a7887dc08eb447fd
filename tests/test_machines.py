"""Runs over several machines, as docs/distributed.md starts them: one torchrun on each.

Two on this host, and two that have a network of their own (tests/wires.py).
"""

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

import meanfield as mf
from solvers import checkpointed
from tests import wires
from tests.running import ROOT
from tests.sharded_cases import CASES, EVERY
from tests.test_sharding import assert_numbers_of_one, assert_same, environment, found_by

pytestmark = pytest.mark.processes
SOME = ("deep", "particles")  # a sweep and a flow
HERE = wires.Machine("127.0.0.1", "lo", ())


@contextmanager
def torchruns(machines, endpoint, options, own, *arguments, processes=1):
    """One on each of the machines, with its options, all in the environment `own`"""
    start = ["--nnodes", str(len(machines)), "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
    task = ["-m", "tests.sharded_cases", *map(str, arguments)]
    with ExitStack() as stack:
        agents = []
        for machine, more in zip(machines, options, strict=True):
            launch = [
                *machine.enter,
                sys.executable,
                "-m",
                "torch.distributed.run",
                *start,
                "--rdzv-endpoint",
                endpoint,
            ]
            agent = stack.enter_context(
                subprocess.Popen([*launch, *more, *task], cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(agent.terminate)  # which ends its processes too
            agents.append(agent)
        yield agents


def here(folder, task, *arguments, processes=1):
    """Two torchruns on this host, over the loopback; the first holds the store"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    options = [("--rdzv-conf", f"is_host={first}") for first in (1, 0)]
    return torchruns([HERE, HERE], endpoint, options, environment(), folder, task, *arguments, processes=processes)


def assert_done(agents, folder, processes, names):
    for agent in agents:
        words = agent.communicate(timeout=120)[1]
        assert agent.returncode == 0, words
    found = found_by(processes, folder)
    for name in names:
        asked, solver = CASES[name]
        assert_numbers_of_one(found, name, solver(asked))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_torchruns_give_the_numbers_of_one_process(tmp_path, processes):
    with here(tmp_path, "compare", *SOME, processes=processes) as agents:
        assert_done(agents, tmp_path, 2 * processes, SOME)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_when_a_machine_goes_down_the_other_ends_and_names_the_checkpoint(tmp_path, victim):
    """SIGKILL of a torchrun and of its process at record 3; one process goes on. Without the store torchrun may end before its process."""
    (asked, solver), path = CASES["residual"], tmp_path / "run.nc"
    with here(tmp_path, "killed", "residual", victim, "and its torchrun") as agents:
        words = [agent.communicate(timeout=60)[1] for agent in agents]
    codes = [agent.returncode for agent in agents]
    assert sorted(codes) == [-signal.SIGKILL, 1], words
    told = words[codes.index(1)]
    if victim or "The connection to the C10d store has failed" not in told:
        assert f"RankLost: rank {1 - victim} of 2 cannot go on: another rank ended or did not answer in time" in told
        assert f"step {EVERY} is kept in {path}: start all ranks again with the same lines to go on from it" in told
    assert mf.load(path).steps == EVERY
    assert_same(checkpointed(solver, asked, path, EVERY), solver(asked), 1e-11)


apart = pytest.mark.skipif(bool(wires.missing()), reason=f"no network of its own: {wires.missing()}")


def plain():
    """Without what a test on one host needs: the loopback named to gloo"""
    return {key: value for key, value in environment().items() if key != "GLOO_SOCKET_IFNAME"}


@apart
def test_machines_that_know_each_other_by_name_need_nothing_more(tmp_path):
    with (
        wires.machines(2) as machines,
        torchruns(machines, "machine0:29500", [(), ()], plain(), tmp_path, "compare", *SOME) as agents,
    ):
        assert_done(agents, tmp_path, 2, SOME)


@apart
@pytest.mark.slow
def test_machines_whose_names_lead_nowhere_need_addresses_and_the_interface(tmp_path):
    """As docs/distributed.md has it: the first hosts the store, each tells its address, gloo takes the interface of the wire"""
    with wires.machines(2, names=False) as machines:
        hosts = [("--rdzv-conf", "is_host=1"), ()]
        options = [(*host, "--local-addr", m.address) for host, m in zip(hosts, machines, strict=True)]
        named = plain() | {"GLOO_SOCKET_IFNAME": machines[0].interface}
        endpoint = f"{machines[0].address}:29500"
        with torchruns(machines, endpoint, options, named, tmp_path, "compare", *SOME) as agents:
            assert_done(agents, tmp_path, 2, SOME)
