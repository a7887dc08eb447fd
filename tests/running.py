"""What tests, accuracy tables and benchmarks share: the surroundings of a process, finding functions, the machine in words."""

import importlib
import os
import pkgutil
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).parents[1]


def environment(threads: int | None = None) -> dict[str, str]:
    """For a Python that a test starts: these packages, and as many threads as here unless told, since they decide the last bits."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads or torch.get_num_threads())}


@contextmanager
def dask_workers(count: int) -> Iterator[Any]:
    """A dask client of processes with as many threads as this one, or the test is skipped; dask leaves MKL_NUM_THREADS=1 in os.environ"""
    import pytest  # which the GPU's table does without

    distributed = pytest.importorskip("distributed")
    own = {name: str(torch.get_num_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        mock.patch.dict(os.environ),
        distributed.LocalCluster(count, env=own, **quiet) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def gathered(package: ModuleType, name: str) -> dict[str, Callable[..., Any]]:
    """The dictionaries called `name` (title -> function) of all modules of a package, merged; ValueError for a title used twice."""
    found: dict[str, Callable[..., Any]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "__main__"):
        own = getattr(importlib.import_module(f"{package.__name__}.{module}"), name, {})
        if twice := sorted(found.keys() & own.keys()):
            raise ValueError(
                f"{package.__name__}.{module} repeats {', '.join(twice)}: give each function of {name} its own name"
            )
        found |= own
    return found


def machine() -> dict[str, str]:
    """Processor, cores, memory, GPU, versions and threads, in words."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{os.cpu_count()} cores ({models[0] if models else platform.machine()}), {size:.0f} GiB of memory",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        "threads": str(torch.get_num_threads()),
        "load of the machine at the start": f"{os.getloadavg()[0]:.1f}",
    }
