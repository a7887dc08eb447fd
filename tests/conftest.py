"""Settings shared by all tests: one thread unless told, marks that skip what this machine lacks, and no process without its mark."""

import multiprocessing.process
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before libraries read it: the same rounding and speed with and without xdist

import pytest
import torch

import meanfield as mf


@pytest.fixture
def leaves_no_picture_behind():
    """Pictures change no setting of matplotlib, and are closed after each test"""
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


def pytest_collection_modifyitems(items):
    lacks = {
        "keops": None if any(map(shutil.which, ("c++", "g++", "clang++"))) else "no C++ compiler",
        "cuda": None if torch.cuda.is_available() else "no CUDA device",
    }
    for item in items:
        for mark, reason in lacks.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _processes_are_marked(request, monkeypatch):
    """CI runs the tests that start Python again with other numbers of threads, by their mark: none may lack it."""
    if any(map(request.node.get_closest_marker, ("processes", "keops"))):  # KeOps asks Python for its folders
        return
    start = subprocess.Popen.__init__

    def refuse(*_):
        pytest.fail("a test that starts Python carries the mark `processes`")

    def unless_python(self, args, *more, **options):
        if sys.executable in args:
            refuse()
        start(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", unless_python)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


def _threads() -> dict[str, str | int]:
    return {"torch": torch.get_num_threads()} | {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}


@pytest.fixture(autouse=True)
def _threads_stay():
    """They decide the last bits, of this process and of those that later tests start"""
    before = _threads()
    yield
    assert _threads() == before, "the test leaves another number of threads to those after it"


@pytest.fixture(autouse=True)
def _no_figures_are_left():
    """Tests of examples count those that are open, whichever tests ran before them"""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _one_compiler_at_a_time(request):
    """KeOps' cache on disk is not safe against two processes that compile: xdist's workers take turns."""
    if request.node.get_closest_marker("keops") is None:
        yield
        return
    import fcntl

    with (Path(tempfile.gettempdir()) / "meanfield-tests-keops.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def tiny_problem():
    """Six samples of a single-index teacher in three dimensions, tanh, ten steps."""
    return mf.Problem(
        data=mf.single_index_teacher(n_train=6, n_test=4, inputs=3, seed=1),
        network=mf.Network(depth=1, activation="tanh"),
        scaling=mf.mean_field(gamma0=1.0),
        training=mf.Training(learning_rate=0.2, steps=10),
    )
