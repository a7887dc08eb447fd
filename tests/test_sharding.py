"""Neurons and particles divided over processes: the numbers of one process, complete on the first, and an end with a message."""

import pickle
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
import torch

import meanfield as mf
from meanfield.measures.particle_measure import sobol_particles
from solvers import RankLost, WassersteinFlow, checkpointed
from solvers.dmft.neurons import exact_neurons, plain_neurons, sobol_neurons
from solvers.running.sharding import Ranks, Shard, current, normal_part, over_ranks
from tests import running
from tests.running import ROOT
from tests.sharded_cases import CASES, EVERY, MORE, RESUMED, on_gpu

pytestmark = pytest.mark.processes
SOME = ("deep", "particles")  # a sweep and a flow
F32, F64 = torch.float32, torch.float64


def environment(gpus=""):
    """What all processes get: the threads of this one, the loopback, and the GPUs that are named"""
    return running.environment() | {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": gpus}


@contextmanager
def started(ranks, *arguments, gpus=""):
    """One process per rank, with the environment that torchrun gives"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-m", "tests.sharded_cases", *map(str, arguments)]
    with ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            own = environment(gpus) | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)  # before its pipes are closed
            processes.append(process)
        yield processes


def run(ranks, folder, task, *arguments, gpus=""):
    """What each of the ranks left in RANK.pt: a dictionary"""
    with started(ranks, folder, task, *arguments, gpus=gpus) as processes:
        for process in processes:
            words = process.communicate(timeout=240)[1]
            assert process.returncode == 0, words
    return found_by(ranks, folder)


def found_by(ranks, folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def everything(request, tmp_path_factory):
    """Everything that `ranks` processes found"""
    path = tmp_path_factory.mktemp(f"{request.param} ranks")
    torch.save({name: CASES[name][1](CASES[name][0]) for name in RESUMED}, path / "whole.pt")
    return run(request.param, path, "compare")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A flow and a sweep by four processes"""
    return run(4, tmp_path_factory.mktemp("four"), "compare", *SOME)


def assert_same(found, expected, tolerance):
    """Outputs, kernels and what is gathered; factors and bases may be turned"""
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.f, expected.f, **close)
    torch.testing.assert_close(found.f_test, expected.f_test, **close)
    assert found.kernels.keys() == expected.kernels.keys()
    for name, kernel in expected.kernels.items():
        assert found.kernels[name].steps == kernel.steps
        for t in (kernel.steps[0], -1):
            torch.testing.assert_close(found.kernels[name].at(-1, t), kernel.at(-1, t), **close)
    for name, response in expected.responses.items():
        torch.testing.assert_close(found.responses[name].correlation(), response.correlation(), **close)
    torch.testing.assert_close(found.tangent_kernels, expected.tangent_kernels, **close)


def assert_numbers_of_one(results, name, expected):
    """Of all ranks; fields, particles and state are complete on the first, and only there"""
    tolerance = 1e-5 if expected.solver["dtype"] == "float32" and name != "linear" else 1e-11
    first, *others = (found[name] for found in results)
    assert_same(first, expected, tolerance)
    assert first.solver == expected.solver
    for other in others:
        assert_same(other, expected, tolerance)
        assert torch.equal(first.f, other.f)
        assert not other.fields
        assert not other.particles
        assert not other.state
    close = dict(rtol=10 * tolerance, atol=10 * tolerance)
    assert first.fields.keys() == expected.fields.keys()
    assert first.particles.keys() == expected.particles.keys()
    assert first.state.keys() == expected.state.keys()
    for key, field in expected.fields.items():
        torch.testing.assert_close(first.fields[key], field, **close)
    for step, measure in expected.particles.items():
        for a, b in zip(first.particles[step].tensors, measure.tensors, strict=True):
            torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("name", CASES)
def test_many_processes_give_the_numbers_of_one(everything, name):
    asked, solver = CASES[name]
    assert_numbers_of_one(everything, name, solver(asked))


@pytest.mark.parametrize("name", SOME)
def test_four_processes_give_the_numbers_of_one(four, name):
    asked, solver = CASES[name]
    assert_numbers_of_one(four, name, solver(asked))


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_give_the_numbers_of_one(tmp_path):
    """NCCL, which over_ranks takes where torch finds GPUs"""
    results = run(2, tmp_path, "cuda", gpus="0,1")
    for name in CASES:
        assert_numbers_of_one(results, name, on_gpu(name))


@pytest.mark.parametrize("name", RESUMED)
def test_a_state_goes_on_with_any_number_of_processes(everything, name):
    """Kept by one and resumed by many, kept by many and resumed by one"""
    asked, solver = CASES[name]
    expected = solver(asked.with_steps(asked.training.steps + MORE))
    assert_same(everything[0][f"{name} resumed"], expected, 1e-11)
    assert_same(solver.resume(everything[0][name], MORE), expected, 1e-11)


def test_all_processes_end_at_the_step_at_which_one_is_interrupted(everything):
    first, second = (found["interrupted"] for found in everything[:2])
    assert first.status is second.status is mf.Status.INTERRUPTED
    assert first.steps == second.steps == 3
    asked, solver = CASES["residual"]
    assert_same(solver.resume(first, asked.training.steps - 3), solver(asked), 1e-11)


def test_what_is_sent_is_what_the_model_says(everything):
    """A flow: one sum of the outputs (points, C) at each record; two exchanges for the balance, one for each kernel"""
    asked, solver = CASES["particles"]
    stats = everything[0]["particles"].stats
    outputs, p, snapshots = asked.training.steps + 1, 12, len(solver.snapshots)
    assert stats["sums"] == outputs + 2 + 2
    assert stats["bytes_summed"] == 8 * (outputs * p + (p * p + p) + p + 2 * (8 * snapshots) ** 2)


def test_one_pass_over_the_data_sums_every_block(everything):
    """From 128 dimensions on: all points at each record, and those of the batch at each step"""
    asked, solver = CASES["batches"]
    stats = everything[0]["batches"].stats
    steps, p, snapshots = asked.training.steps, 12, len(solver.snapshots)
    assert stats["sums"] == 2 * steps + 1 + 2 + 2
    outputs = (steps + 1) * p + steps * asked.training.batch_size
    assert stats["bytes_summed"] == 8 * (outputs + (p * p + p) + p + 2 * (8 * snapshots) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dead", "silent"])
def test_a_rank_that_is_lost_ends_the_others_with_a_message(tmp_path, how):
    with started(2, tmp_path, how) as (first, _):
        words = first.communicate(timeout=90)[1]
    assert first.returncode == 1
    assert "RankLost: rank 0 of 2 cannot go on: another rank ended or did not answer in time" in words
    assert "nothing is kept yet (solvers.checkpointed keeps every so many steps): start all ranks again" in words


@pytest.mark.parametrize(("name", "victim"), [("residual", 1), ("particles", 0)])
def test_a_killed_rank_leaves_a_checkpoint_and_the_others_name_it(tmp_path, name, victim):
    """SIGKILL at record 3, with checkpoints every 2 steps; one process goes on"""
    (asked, solver), path = CASES[name], tmp_path / "run.nc"
    with started(2, tmp_path, "killed", name, victim) as processes:
        words = processes[1 - victim].communicate(timeout=90)[1]
        assert processes[victim].wait(10) == -signal.SIGKILL
    assert processes[1 - victim].returncode == 1
    assert f"RankLost: rank {1 - victim} of 2 cannot go on: another rank ended or did not answer in time" in words
    assert f"step {EVERY} is kept in {path}: start all ranks again with the same lines to go on from it" in words
    assert mf.load(path).steps == EVERY
    assert_same(checkpointed(solver, asked, path, EVERY), solver(asked), 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_torchrun_starts_a_killed_run_again_and_it_goes_on(tmp_path, name):
    """--max-restarts: the result has the bits of the run that nobody killed"""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "tests.sharded_cases"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(tmp_path), "killed", name, "1"]
    fresh = environment() | {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"
    }  # else torchrun hands out addresses of dead ranks
    done = subprocess.run(command, cwd=ROOT, env=fresh, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert mf.load(tmp_path / "run.previous.nc").steps == EVERY
    again = found_by(2, tmp_path)[0][name]
    unharmed = run(2, tmp_path, "compare", name)[0][name]
    assert again.f.equal(unharmed.f)
    assert again.kernels == unharmed.kernels


def test_a_restart_over_the_old_store_is_warned_of(monkeypatch):
    """Whose ranks would wait for dead ones"""
    for name, value in {
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("warned, and went on"))
    with pytest.raises(UserWarning, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), over_ranks("gloo"):
        pass


def test_a_loss_names_the_last_good_file(tmp_path, monkeypatch):
    """Of two, and none where none is; the error can be handed on between processes"""
    (asked, solver), path = CASES["three classes"], tmp_path / "run.nc"
    for step in (1, 2):
        checkpointed(solver, asked.with_steps(step), path)

    def lost(*_):
        raise RankLost("rank 0 cannot go on")

    def told(path):
        with pytest.raises(RankLost) as caught:
            checkpointed(solver, asked, path)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        return caught.value.checkpoint, caught.value.step

    monkeypatch.setattr(WassersteinFlow, "resume", lost)
    monkeypatch.setattr(WassersteinFlow, "__call__", lost)
    assert told(path) == (path, 2)
    path.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="passed over"):
        assert told(path) == (tmp_path / "run.previous.nc", 1)
    assert told(tmp_path / "other.nc") == (None, None)


# each rank draws its own part of the same numbers


def parts(size, ranks=3):
    return [Shard(size, Ranks(rank, ranks)) for rank in range(ranks)]


@pytest.mark.parametrize("kind", [sobol_neurons, plain_neurons])
@pytest.mark.parametrize("samples", [64, 1001, 20_000])
def test_the_draws_of_all_ranks_are_those_of_one(kind, samples):
    whole, split = kind(samples, 5, F64, "cpu"), [kind(samples, 5, F64, "cpu", shard) for shard in parts(samples)]
    for count in (3, 130, 7):
        expected = whole.fresh(count)
        assert torch.equal(torch.cat([neurons.fresh(count) for neurons in split], 1), expected)


def test_exact_neurons_are_divided():
    whole, split = exact_neurons(20, F64, "cpu"), [exact_neurons(20, F64, "cpu", shard) for shard in parts(20)]
    for count in (9, 8):
        assert torch.equal(torch.cat([neurons.fresh(count) for neurons in split], 1), whole.fresh(count))


@pytest.mark.parametrize("particles", [1001, 1024, 150_000])
def test_the_particles_of_all_ranks_are_those_of_one(particles):
    rows = [shard.rows for shard in parts(particles)]
    expected = mf.ParticleMeasure.sobol(particles, 3, 1, 4)
    for i, tensor in enumerate(expected.tensors[:2]):
        assert torch.equal(torch.cat([sobol_particles(particles, 3, 1, 4, part=part)[i] for part in rows]), tensor)
    for kind in (F32, F64):
        g = torch.Generator().manual_seed(2)
        expected, after = torch.randn(particles, 3, generator=g, dtype=kind), torch.rand(1, generator=g)
        for part in rows:
            g = torch.Generator().manual_seed(2)
            assert torch.equal(normal_part(particles, 3, g, kind, rows=part), expected[part])
            assert torch.equal(torch.rand(1, generator=g), after)


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with over_ranks() as ranks:
        assert (ranks.rank, ranks.count, ranks.first) == (0, 1, True)
        assert current().count == 1
    x = torch.rand(3)
    assert ranks.sum(x) is x
    with pytest.raises(ValueError, match="2 neurons cannot be divided over 3 ranks: take fewer ranks"):
        Shard(2, Ranks(0, 3))
