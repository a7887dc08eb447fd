"""Kernels in blocks: the numbers of one call, spread and kept; workers, runs and files that are really lost."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import Interrupted, KernelBlocks, SolverError
from solvers.lazy import block_run, kernel_blocks
from tests import memory
from tests.running import dask_workers, environment
from tests.test_gaussian_process import Positions

NETWORK, SLOW = mf.Network(2, "relu", 1.3, 0.2), mf.Network(1, "tanh")
X = torch.randn(11, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ASK, BLOCKS = (NETWORK, mf.ntk(), X), KernelBlocks(edge=4)  # 6 blocks, of 3 x 3 with their mirror images
RIGHT = mf.nngp_and_ntk(*ASK)


def same(found, right):
    return all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def pool(workers):
    """Processes with as many threads as this one"""
    return ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),))


def lines(folder):
    log = folder / "blocks.txt"
    return log.read_text().count("\n") if log.exists() else 0


@pytest.fixture
def computed(monkeypatch):
    """The number of samples in rows and columns of each block that is computed here"""
    found, original = [], block_run.computed

    def counting(network, scaling, x, x2, dtype):
        found.append((len(x), len(x if x2 is None else x2)))
        return original(network, scaling, x, x2, dtype)

    monkeypatch.setattr(block_run, "computed", counting)
    return found


@pytest.fixture(scope="module")
def slow():
    """Of an activation whose averages take a fifth of a second for each block"""
    return BLOCKS(SLOW, mf.ntk(), X)


@pytest.mark.parametrize("edge", [1, 4, 11, 100])
@pytest.mark.parametrize("network", [NETWORK, mf.Network(3, "erf", 1.2, 0.1), mf.Network(2, "relu", residual=0.5)])
def test_blocks_are_those_of_one_call(network, edge):
    """To the rounding of its products"""
    for more in ((), (Z,)):
        right = mf.nngp_and_ntk(network, mf.improved_standard(8), X, *more)
        for kernel, other in zip(KernelBlocks(edge)(network, mf.improved_standard(8), X, *more), right, strict=True):
            torch.testing.assert_close(kernel, other, rtol=1e-14, atol=1e-14)
            assert more or torch.equal(kernel, kernel.T)


def module(n):
    return torch.nn.Sequential(torch.nn.Linear(4, n, bias=False), torch.nn.ReLU(), torch.nn.Linear(n, 1, bias=False))


@pytest.mark.processes
def test_modules_and_images_travel_to_workers(tmp_path):
    images = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    with pool(1) as executor:
        for network, x in ((module, X), (mf.Architecture(module, weight_std=1.3), X), (mf.ConvNetwork(2), images)):
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            found = BLOCKS(network, mf.ntk(), x, executor=executor, folder=folder)
            for kernel, other in zip(found, mf.nngp_and_ntk(network, mf.ntk(), x), strict=True):
                torch.testing.assert_close(kernel, other, rtol=1e-13 if x is X else 1e-6, atol=1e-14)
        with pytest.raises(SolverError, match=r"6 of 6 blocks are missing.*pickle"):
            BLOCKS(lambda n: module(n), mf.ntk(), X, executor=executor)
    with pytest.raises(ValueError, match="holds other kernels: network is"):
        BLOCKS(mf.Architecture(module, weight_std=1.4), mf.ntk(), X, folder=tmp_path / "1")


def test_outputs_at_positions_are_rows(tmp_path):
    """With and without a folder, which is gone on with; of other samples too"""
    x, z = X[:, :3], Z[:, :3]
    for more in ((), (z,)):
        right = mf.nngp_and_ntk(Positions, mf.ntk(), x, *more)
        assert right[0].shape == (11, 3, len(z) if more else 11, 3)
        for folder in (None, tmp_path / str(len(more))):
            for _ in range(2):
                found = BLOCKS(Positions, mf.ntk(), x, *more, folder=folder)
                for kernel, other in zip(found, right, strict=True):
                    torch.testing.assert_close(kernel, other, rtol=1e-13, atol=1e-14)
    assert np.load(tmp_path / "1" / "ntk.npy").shape == (33, 15)
    assert lines(tmp_path / "0") == 6
    estimate = BLOCKS.estimate(Positions, mf.ntk(), x, seconds=0.1)
    assert estimate.bytes > 2 * 8 * 33**2


def test_each_block_of_a_symmetric_kernel_is_computed_once(computed):
    BLOCKS(*ASK)
    assert sorted(computed) == sorted([(4, 4), (4, 4), (4, 3), (4, 4), (4, 3), (3, 3)])
    computed.clear()
    BLOCKS(*ASK, Z)
    assert sorted(computed) == sorted([(4, 4), (4, 1)] * 2 + [(3, 4), (3, 1)])


def test_blocks_are_small_enough_to_be_shared_and_lost(computed):
    KernelBlocks()(NETWORK, mf.ntk(), torch.ones(40, 1), torch.ones(3, 1))
    assert set(computed) == {(3, 3), (1, 3)}
    assert (
        KernelBlocks()
        .estimate(NETWORK, mf.ntk(), torch.ones(9000, 1), seconds=0.01)
        .how.split(" of ")[3]
        .startswith("512,")
    )


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, pytest.param(pool, marks=pytest.mark.processes)])
def test_any_executor_gives_the_same_bits(kind, tmp_path):
    right = BLOCKS(*ASK)
    with kind(2) as executor:
        assert same(BLOCKS(*ASK, executor=executor), right)
        assert same(BLOCKS(*ASK, executor=executor, folder=tmp_path / "kernels"), right)


def test_kernels_are_kept_in_the_precision_that_is_asked_for():
    right = [kernel.float() for kernel in BLOCKS(*ASK)]
    assert same(KernelBlocks(4, "float32")(*ASK), right)
    assert same(
        BLOCKS(NETWORK, mf.ntk(), X.float()), [k.float() for k in BLOCKS(NETWORK, mf.ntk(), X.float().double())]
    )
    tiny = mf.Network(1, "linear", 1e-12)
    assert float(KernelBlocks()(tiny, mf.ntk(), X)[0].abs().max()) < 1e-40
    with pytest.raises(
        ValueError, match=r"entries of the nngp of size .*e-4\d do not fit into torch.float32: give dtype='float64'"
    ):
        KernelBlocks(dtype="float32")(tiny, mf.ntk(), X)


def test_a_folder_keeps_the_kernels_as_arrays(tmp_path, computed):
    found = KernelBlocks(4, "float32")(*ASK, folder=tmp_path)
    for name, kernel in zip(("nngp", "ntk"), found, strict=True):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), kernel.numpy())
        assert np.load(tmp_path / f"{name}.npy").dtype == np.float32
    right = [kernel.clone() for kernel in found]
    found[0].zero_()  # in memory
    computed.clear()
    assert same(KernelBlocks(4, "float32")(*ASK, folder=tmp_path), right)
    assert computed == []


@pytest.mark.parametrize("threads", [False, True])
def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, computed, threads, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # runs in the background ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    counting = block_run.computed

    def interrupted(*asked):
        if len(computed) == 2:
            if threads:
                raise KeyboardInterrupt  # as a worker's process, which has the same terminal, ends
            signal.raise_signal(signal.SIGINT)
        return counting(*asked)

    monkeypatch.setattr(block_run, "computed", interrupted)
    with pytest.raises(
        Interrupted, match=rf"interrupted: 2 of 6 blocks are finished and kept in {tmp_path}; call again"
    ):
        BLOCKS(*ASK, folder=tmp_path, executor=ThreadPoolExecutor(1) if threads else None)
    monkeypatch.setattr(block_run, "computed", counting)
    done = len(computed)
    assert same(BLOCKS(*ASK, folder=tmp_path), BLOCKS(*ASK))
    assert len(computed) == done + 4 + 6
    monkeypatch.setattr(block_run, "computed", lambda *asked: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match="0 of 6 blocks are finished; give a folder to go on from them"):
        BLOCKS(*ASK)


def test_images_with_a_global_average_go_on_where_they_were_stopped(tmp_path, monkeypatch, computed):
    """Of all pairs of pixels: the kernels that take longest, each block of which is kept"""
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    network, blocks = mf.ConvNetwork(2, "relu", readout="global_average"), KernelBlocks(edge=2)
    counting = block_run.computed

    def stopped(*asked):
        if computed:
            raise KeyboardInterrupt
        return counting(*asked)

    monkeypatch.setattr(block_run, "computed", stopped)
    with pytest.raises(Interrupted, match="1 of 3 blocks are finished"):
        blocks(network, mf.ntk(), images, folder=tmp_path, executor=ThreadPoolExecutor(1))
    monkeypatch.setattr(block_run, "computed", counting)
    found = blocks(network, mf.ntk(), images, folder=tmp_path)
    assert len(computed) == 3
    assert same(found, blocks(network, mf.ntk(), images))
    assert blocks.estimate(network, mf.ntk(), images).seconds > 0


def test_a_block_that_fails_does_not_cost_the_others(tmp_path, monkeypatch, computed):
    counting = block_run.computed

    def failing(network, scaling, x, x2, dtype):
        if x2 is not None and len(x2) == 3:
            raise MemoryError("no room")
        return counting(network, scaling, x, x2, dtype)

    monkeypatch.setattr(block_run, "computed", failing)
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(SolverError, match=r"2 of 6 blocks are missing, 4 .*from 8: MemoryError: no room"),
    ):
        BLOCKS(*ASK, folder=tmp_path, executor=executor)
    with pytest.raises(SolverError, match=r"4 are finished \(give a folder to keep what is finished\)"):
        BLOCKS(*ASK, executor=ThreadPoolExecutor(1))
    monkeypatch.setattr(block_run, "computed", counting)
    computed.clear()
    assert same(BLOCKS(*ASK, folder=tmp_path), RIGHT)
    assert len(computed) == 2


def test_networks_that_cannot_be_computed_are_refused_before_anything_is_kept(tmp_path):
    folder = tmp_path / "kernels"
    for asked in (
        (NETWORK, mf.default(), X),
        (NETWORK, mf.ntk(), X, Z[:, :3]),
        (mf.Network(2, "linear", 1e100), mf.ntk(), X),
    ):
        with pytest.raises(ValueError, match=r"diverges|dimension|exceeds"):
            BLOCKS(*asked, folder=folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("blocks", "asked", "words"),
    [
        (BLOCKS, (mf.Network(2, "relu", 1.4, 0.2), mf.ntk(), X), r"network is .*weight_std=1.3.* there, .*weight_std=1.4.* here"),
        (BLOCKS, (NETWORK, mf.improved_standard(4), X), "scaling is Scaling"),
        (BLOCKS, (NETWORK, mf.ntk(), X + 1), r"x is \(11, 4\) sha256"),
        (BLOCKS, (NETWORK, mf.ntk(), X, X), "x2 is None there"),
        (KernelBlocks(5), ASK, "edge is 4 there, 5 here"),
        (KernelBlocks(4, "float32"), ASK, "dtype is float64 there, float32 here"),
    ],
)  # fmt: skip
def test_a_folder_of_other_kernels_is_refused(tmp_path, blocks, asked, words):
    BLOCKS(*ASK, folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"holds other kernels: {words}.*; give an empty folder"):
        blocks(*asked, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(BLOCKS(*ASK, folder=tmp_path), BLOCKS(*ASK))  # and it is free


def test_an_activation_that_is_another_under_the_same_name_is_another_problem(tmp_path):
    first, other = (
        mf.Activation("mine", phi, lambda h, s=s: s * torch.ones_like(h)) for s, phi in ((1, _plain), (2, _double))
    )
    BLOCKS(mf.Network(1, first), mf.ntk(), X[:2], folder=tmp_path)
    with pytest.raises(ValueError, match="holds other kernels: first is"):
        BLOCKS(mf.Network(1, other), mf.ntk(), X[:2], folder=tmp_path)


def _plain(h):
    return h


def _double(h):
    return 2 * h


def test_what_is_no_folder_of_ours_is_refused(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("text")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        BLOCKS(*ASK, folder=taken)
    np.save(tmp_path / "ntk.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"holds ntk.npy of something else: give an empty folder"):
        BLOCKS(*ASK, folder=tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    counting, refused = block_run.computed, []

    def second(*asked):
        with pytest.raises(ValueError, match="another run is at work in the folder") as caught:
            BLOCKS(*ASK, folder=tmp_path)
        refused.append(caught.value)
        return counting(*asked)

    monkeypatch.setattr(block_run, "computed", second)
    BLOCKS(*ASK, folder=tmp_path)
    assert len(refused) == 6


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "place", [-1, 128, 128 + 8 * 4, 128 + 8 * 11 * 4]
)  # on both diagonals, a block and its mirror image
@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_damaged_blocks_are_computed_again(tmp_path, computed, name, place):
    right = [kernel.clone() for kernel in BLOCKS(*ASK, folder=tmp_path)]
    _flip(tmp_path / f"{name}.npy", place)
    computed.clear()
    assert same(BLOCKS(*ASK, folder=tmp_path), right)
    assert len(computed) == 1


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 500)])
def test_arrays_that_are_gone_are_computed_again(tmp_path, computed, harm):
    right = [kernel.clone() for kernel in BLOCKS(*ASK, folder=tmp_path)]
    harm(tmp_path / "ntk.npy")
    computed.clear()
    assert same(BLOCKS(*ASK, folder=tmp_path), right)
    assert len(computed) == 6


def test_a_line_that_was_cut_is_no_block(tmp_path, computed):
    right = [kernel.clone() for kernel in BLOCKS(*ASK, folder=tmp_path)]
    log = tmp_path / "blocks.txt"
    log.write_text(log.read_text()[:-40])
    for again in (1, 0):
        computed.clear()
        assert same(BLOCKS(*ASK, folder=tmp_path), right)
        assert len(computed) == again
    assert lines(tmp_path) == 6


def test_a_disk_without_room_is_an_error_before_any_work(tmp_path, computed):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="4000000 bytes were to be kept") as caught:
            BLOCKS(NETWORK, mf.ntk(), torch.ones(1000, 1), folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "nngp.npy") in str(caught.value)
    assert computed == []
    assert same(
        BLOCKS(NETWORK, mf.ntk(), torch.ones(9, 1).tril(), folder=tmp_path / "other"),
        BLOCKS(NETWORK, mf.ntk(), torch.ones(9, 1).tril()),
    )


class Counting(Executor):
    """Runs nothing until somebody waits; knows how many tasks were there at once"""

    def __init__(self):
        self.inside, self.threads = [], ThreadPoolExecutor(1)
        self.alive = 0

    def submit(self, function, /, *asked):
        future = self.threads.submit(self._slow, function, *asked)
        self.alive += 1
        self.inside.append(self.alive)
        future.add_done_callback(self._done)
        return future

    def _slow(self, function, *asked):
        time.sleep(0.005)
        return function(*asked)

    def _done(self, future: Future):
        self.alive -= 1


def test_no_more_blocks_wait_than_the_memory_is_meant_to_hold(monkeypatch):
    executor = Counting()
    asked = kernel_blocks._Asked(KernelBlocks(1), NETWORK, mf.ntk(), X, None)
    monkeypatch.setattr(kernel_blocks, "_AHEAD", 3.5 * asked.of_a_block())
    assert same(KernelBlocks(1)(*ASK, executor=executor), KernelBlocks(1)(*ASK))
    assert len(executor.inside) == 66
    assert max(executor.inside) == 3


@pytest.mark.skipif(not memory.AVAILABLE, reason="the system does not tell the peak of memory")
def test_kernels_in_a_folder_take_no_memory(tmp_path):
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    blocks = KernelBlocks(256)
    blocks(NETWORK, mf.ntk(), x[:300], folder=tmp_path / "first")  # loads what the first one needs
    before = memory.forget_peak()
    blocks(NETWORK, mf.ntk(), x, folder=tmp_path / "kernels")
    assert memory.peak() - before < 4 * 3000**2 / 2  # half of one of the two


def test_an_estimate_counts_pairs_of_samples(monkeypatch):
    monkeypatch.setattr(kernel_blocks, "by_law", lambda run, most, seconds: (np.arange(most + 1.0) ** 2, 2))
    n, scaled = len(X), KernelBlocks(4).estimate(*ASK, workers=2)
    assert abs(scaled.seconds - n * (n + 1) / 2 / 2) < 1e-9  # a second for each pair
    assert scaled.how == "a block of 2 samples, of which there are 6 of 4, 16 s each"
    assert KernelBlocks(4).estimate(*ASK, Z).seconds == n * len(Z)
    assert KernelBlocks(100).estimate(*ASK).how.endswith("1 of 11, 1.2e+02 s each")
    in_folder = KernelBlocks(4).estimate(*ASK, workers=2, folder=True)
    assert scaled.bytes - in_folder.bytes == 2 * 8 * n * n
    large = KernelBlocks(30).estimate(NETWORK, mf.ntk(), torch.ones(40, 2))
    assert large.how.endswith("9e+02 s each; a smaller edge would lose less with a worker")


def test_an_estimate_is_rehearsed_with_blocks():
    found = KernelBlocks(64).estimate(NETWORK, mf.ntk(), torch.randn(150, 3), seconds=0.05)
    assert 0 < found.seconds < 10
    assert "of which there are 6 of 64" in str(found)


@pytest.mark.processes
def test_a_worker_that_is_killed_costs_the_blocks_in_work(tmp_path, slow):
    asked, victims = (SLOW, mf.ntk(), X), []

    def kill(executor):
        while lines(tmp_path) < 1:
            time.sleep(0.005)
        victims.append(next(iter(executor._processes)))
        os.kill(victims[0], signal.SIGKILL)

    with pool(1) as executor:
        threading.Thread(target=kill, args=(executor,), daemon=True).start()
        with pytest.raises(
            SolverError, match=r"finished and kept in .* \(call again, with a new executor\): .*BrokenProcessPool"
        ):
            BLOCKS(*asked, executor=executor, folder=tmp_path)
    assert victims
    assert 1 <= lines(tmp_path) < 6
    with pool(1) as executor:
        found = BLOCKS(*asked, executor=executor, folder=tmp_path)
    assert same(found, slow)


@pytest.mark.processes
def test_a_run_that_is_killed_goes_on(tmp_path, slow, computed):
    """To the bits of one that was not"""
    code = f"from tests.test_kernel_blocks import *\nBLOCKS(SLOW, mf.ntk(), X, folder={str(tmp_path)!r})\n"
    run = subprocess.Popen([sys.executable, "-c", code], env=environment())
    deadline = time.monotonic() + 100
    while lines(tmp_path) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    run.kill()
    run.wait()
    kept = lines(tmp_path)
    assert 2 <= kept < 6
    found = BLOCKS(SLOW, mf.ntk(), X, folder=tmp_path)
    assert len(computed) in (6 - kept, 7 - kept)  # one may have had no line yet
    assert same(found, slow)
    assert json.loads((tmp_path / "problem.json").read_text())["edge"] == 4


@pytest.mark.processes
def test_dask_loses_nothing_when_a_worker_is_killed(tmp_path, slow):
    killed = threading.Event()

    def kill(pid):
        while lines(tmp_path) < 1:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    with dask_workers(2) as client:
        victim = min(client.run(os.getpid).values())
        threading.Thread(target=kill, args=(victim,), daemon=True).start()
        found = BLOCKS(SLOW, mf.ntk(), X, executor=client.get_executor(), folder=tmp_path)
        assert killed.wait(5)
    assert lines(tmp_path) == 6
    assert same(found, slow)
