"""Files that something happened to: damage, lost digests, full disks, kills in mid-write. Nothing wrong is loaded, nothing good is lost."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import meanfield as mf
from meanfield.files import sealed, storage
from meanfield.files.storage import load, save
from solvers import (
    CausalDMFT,
    WassersteinFlow,
    WidthFor,
    gibbs_fixed_point,
    lazy_prediction,
    learning_rate_transfer,
    measured_exponents,
    predicted_bias,
    predicted_variance,
    proxy_comparison,
)
from tests.test_storage import _report


def _problem(depth=1, scaling=None, loss="squared"):
    data = mf.digits(n_train=4, n_test=2)
    return mf.Problem(data, mf.Network(depth), scaling or mf.mean_field(1.0), mf.Training(0.2, 3), loss)


def _noisy():
    return replace(_problem(), training=mf.Training(0.1, 120, temperature=0.2, weight_decay=5.0))


RESULTS = {
    "solution": lambda: WassersteinFlow(8)(_problem()),
    "state": lambda: CausalDMFT(64, keep_state=True)(_problem(2)),
    "report": _report,
    "prediction": lambda: lazy_prediction(_problem(2, mf.ntk())),
    "powers": lambda: measured_exponents(_problem(1, mf.default(8), "logistic"), (8, 16, 32), 3),
    "transfer": lambda: learning_rate_transfer(_problem(), (0.1, 0.2, 0.3), (4, 8), 2, WassersteinFlow(8)),
    "variance": lambda: predicted_variance(_problem(), 16, groups=2, observed=("f", "Phi1")),
    "bias": lambda: predicted_bias(_problem(2), 16, 2),
    "ensembles": lambda: mf.EnsembleLoss(
        1.0, 4.0, 0.4, 2.0, 0.2, 3.0, (8, 16), (1, 4), np.ones((2, 2)), np.ones((2, 2))
    ),
    "gibbs": lambda: gibbs_fixed_point(_noisy(), points=16),
    "averages": lambda: mf.stationary(WassersteinFlow(64)(_noisy()), after=0),
    "energies": lambda: mf.free_energy(WassersteinFlow(64)(_noisy())),
    "width": lambda: WidthFor(100, 2.5, 0.01, 1, 0.3, 0.2, 0.9),
    "proxy": lambda: proxy_comparison(_problem(1, None, "logistic"), 8, ("ntk", "mean_field"), 4, 4),
}


def _damages(whole, draw):
    """Bits turned over, blocks of zeros, files cut short and bytes behind the end: at random places, and in the digest itself"""
    size = len(whole)
    for place in (*draw.integers(size, size=150), *range(size - sealed._LENGTH, size)):
        turned = bytearray(whole)
        turned[place] ^= 1 << int(draw.integers(8))
        yield bytes(turned)
    for place in draw.integers(size, size=60):
        length = int(2 ** draw.uniform(3, 13))
        yield whole[:place] + bytes(len(whole[place : place + length])) + whole[place + length :]
    yield from (whole[:place] for place in (*draw.integers(size, size=30), *range(size - sealed._LENGTH + 1, size)))
    yield from (whole + bytes(n) for n in (1, sealed._LENGTH, 512))


@pytest.mark.parametrize("kind", RESULTS)
def test_every_damage_is_refused_before_hdf5_sees_it(kind, tmp_path, monkeypatch):
    path = save(RESULTS[kind](), tmp_path / "run.nc")
    whole, refused = path.read_bytes(), 0

    def parse(path):
        raise AssertionError("HDF5 was given a damaged file")

    monkeypatch.setattr(storage, "_read", parse)
    for damaged in _damages(whole, np.random.default_rng(0)):
        if damaged == whole:  # zeros that were zero
            continue
        path.write_bytes(damaged)
        with pytest.raises(sealed.DamagedFile, match=r"run\.nc is (damaged|truncated)"):
            load(path)
        refused += 1
    assert refused > 350


def test_the_digest_is_that_of_all_bytes_before_it(tmp_path):
    whole = save(_report(), tmp_path / "run.nc").read_bytes()
    content, last = whole[: -sealed._LENGTH], whole[-sealed._LENGTH :]
    assert last.split() == [b"meanfield", b"sha256", hashlib.sha256(content).hexdigest().encode()]
    with xr.open_dataset(tmp_path / "run.nc") as dataset:
        assert dataset.format_version == 2


def test_a_file_that_has_lost_its_digest_is_refused(tmp_path):
    path = save(_report(), tmp_path / "run.nc")
    path.write_bytes(path.read_bytes()[: -sealed._LENGTH])
    with pytest.raises(sealed.DamagedFile, match="ends without a digest"):
        load(path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB of its own"""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def _wide():
    return WassersteinFlow(2**13)(_problem())  # some MB


def test_a_full_disk_is_an_error_that_leaves_the_older_file(small_disk):
    path = save(_report(), small_disk / "run.nc")
    large = _wide()
    with pytest.raises(OSError, match=r"No space left on device; \d{7,} bytes were to be written: .*run\.nc") as caught:
        save(large, path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert load(path) == _report()
    assert [p.name for p in small_disk.iterdir()] == ["run.nc"]


def test_a_limit_on_the_size_of_files_is_such_an_error(tmp_path):
    large, path = _wide(), save(_report(), tmp_path / "run.nc")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert load(path) == _report()
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]
    assert load(save(large, path)) == large


@pytest.mark.processes
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    code = f"""if True:
        import os, pathlib, time
        from meanfield.files import sealed
        os.fsync = lambda file: time.sleep(60)  # a slow disk
        sealed.write(pathlib.Path({str(tmp_path / "run.nc")!r}), memoryview(b"half"))
    """
    writer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (left := [p for p in tmp_path.glob(".run.nc.*.tmp") if p.stat().st_size > 4]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    path = save(_report(), tmp_path / "run.nc")
    assert left[0].exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (tmp_path / ".other.nc.0.tmp").touch()
    save(_report(), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.nc.0.tmp", "run.nc"]
