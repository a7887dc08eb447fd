"""Neurons and particles divided over processes: the numbers of one process, complete on the first, and an end with a message."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

import meanfield as mf
from meanfield.measure import sobol_particles
from solvers.neurons import exact_neurons, normal_part, plain_neurons, sobol_neurons
from solvers.sharding import Ranks, Shard, current, over_ranks
from tests.sharded_cases import CASES, MORE, RESUMED

ROOT = Path(__file__).parents[1]
F32, F64 = torch.float32, torch.float64


@contextmanager
def started(ranks, *arguments):
    """One process per rank, with the environment that torchrun gives; gloo on this machine"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.sharded_cases", *map(str, arguments)]
    with ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            own = os.environ | address | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            process = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)  # before its pipes are closed
            processes.append(process)
        yield processes


def run(ranks, folder):
    for name in RESUMED:
        mf.save(CASES[name][1](CASES[name][0]), folder / f"{name} whole.nc")
    with started(ranks, folder) as processes:
        for process in processes:
            words = process.communicate(timeout=240)[1]
            assert process.returncode == 0, words


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    """Everything that `ranks` processes found"""
    path = tmp_path_factory.mktemp(f"{request.param} ranks")
    run(request.param, path)
    return path


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


@pytest.mark.parametrize("name", CASES)
def test_many_processes_give_the_numbers_of_one(folder, name):
    asked, solver = CASES[name]
    expected, tolerance = solver(asked), 1e-5 if solver.dtype == "float32" and name != "linear" else 1e-11
    first, second = (mf.load(folder / f"{name} {rank}.nc") for rank in (0, 1))
    assert_same(first, expected, tolerance)
    assert_same(second, expected, tolerance)
    assert torch.equal(first.f, second.f)
    assert first.solver == expected.solver
    close = dict(rtol=10 * tolerance, atol=10 * tolerance)
    assert first.fields.keys() == expected.fields.keys()
    assert first.particles.keys() == expected.particles.keys()
    assert not second.fields
    assert not second.particles
    for key, field in expected.fields.items():
        torch.testing.assert_close(first.fields[key], field, **close)
    for step, measure in expected.particles.items():
        for a, b in zip(first.particles[step].tensors, measure.tensors, strict=True):
            torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("name", RESUMED)
def test_a_state_goes_on_with_any_number_of_processes(folder, name):
    """Kept by one and resumed by many, kept by many and resumed by one"""
    asked, solver = CASES[name]
    expected = solver(asked.with_steps(asked.training.steps + MORE))
    assert_same(mf.load(folder / f"{name} resumed 0.nc"), expected, 1e-11)
    assert_same(solver.resume(mf.load(folder / f"{name} 0.nc"), MORE), expected, 1e-11)


def test_all_processes_end_at_the_step_at_which_one_is_interrupted(folder):
    first, second = (mf.load(folder / f"interrupted {rank}.nc") for rank in (0, 1))
    assert first.status is second.status is mf.Status.INTERRUPTED
    assert first.steps == second.steps == 3
    asked, solver = CASES["residual"]
    assert_same(solver.resume(first, asked.training.steps - 3), solver(asked), 1e-11)


def test_what_is_sent_is_what_the_model_says(folder):
    """A flow: one sum of the outputs (points, C) at each record; two exchanges for the balance, one for each kernel"""
    asked, solver = CASES["particles"]
    stats = mf.load(folder / "particles 0.nc").stats
    outputs, p, snapshots = asked.training.steps + 1, 12, len(solver.snapshots)
    assert stats["sums"] == outputs + 2 + 2
    assert stats["bytes_summed"] == 8 * (outputs * p + (p * p + p) + p + 2 * (8 * snapshots) ** 2)


@pytest.mark.parametrize("how", ["dead", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_rank_that_is_lost_ends_the_others_with_a_message(tmp_path, how):
    with started(2, tmp_path, how) as (first, _):
        words = first.communicate(timeout=90)[1]
    assert first.returncode == 1
    assert "RankLost: rank 0 of 2 cannot go on: another rank ended or did not answer in time" in words
    assert "start all ranks again, from the last state kept" in words


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
