"""Settings shared by all tests: one thread, and marks that skip what this machine lacks."""

import shutil
import tempfile
from pathlib import Path

import pytest
import torch

import meanfield as mf

torch.set_num_threads(1)  # the same rounding and the same speed with and without xdist


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
