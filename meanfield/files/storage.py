"""Solutions and reports as netCDF files: `save(result, "run.nc")`, `load("run.nc")`; `xarray.open_dataset` reads them too.

Each ends with a digest of its content (`sealed`), behind the last byte that HDF5 knows of. Nothing is pickled.

This is the only file that imports h5netcdf and h5py; solutions.py and reports.py say what lies where in a file.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from meanfield.checking.arguments import checked
from meanfield.files import sealed
from meanfield.files.reports import KINDS, Result
from meanfield.files.sealed import DamagedFile
from meanfield.files.solutions import Arrays
from meanfield.network.architecture import Architecture
from meanfield.solution.solution import Solution

COMMAND: ContextVar[str] = ContextVar("the words after `meanfield` in a shell, which results note")
FORMAT = 2  # to be raised when an older `load` would misread the file; from 2 on files have a digest


class Unwritable(ValueError, OSError):
    """A folder that is missing or cannot be written to."""


@checked
def save(result: Result, path: str | Path) -> Path:
    """Write `result` to a .nc file, whole or not at all, in place of any older file of that name; returns the path.

    The file is made in memory, so that a full disk is an OSError with path and bytes, after which the older file is as it was.
    ValueError, before anything is written, for a path that will not do and for an activation or loss that no file could name.

    Example:
        >>> import tempfile
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> solution = WassersteinFlow(particles=64)(mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = mf.save(solution, f"{folder}/limit.nc")
        ...     mf.load(path) == solution
        True
    """
    path = writable(path)
    kind = next(k for k in KINDS if isinstance(result, k.type))
    arrays = Arrays()
    settings = json.dumps(kind.pack(result, arrays))
    title = str(result).splitlines()[0]
    attributes = {"kind": kind.name, "format_version": FORMAT, "title": title, "settings": settings}
    sealed.write(path, _image(arrays, attributes | provenance(result)))
    return path


@checked
def load(path: str | Path, network: Architecture | Callable[[int], nn.Module] | None = None) -> Any:
    """The result kept in `path`, equal to the one saved. ValueError for a file that is broken, too new or none of ours.

    network: the builder of a module, which is code that files do not hold; not needed where its own module was imported before.
    Its digest is checked before HDF5 sees the file, which on damaged ones may hang.

    Example:
        >>> import tempfile
        >>> import meanfield as mf
        >>> from solvers import lazy_prediction
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(2), mf.ntk(), mf.Training(0.2, 5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = mf.save(lazy_prediction(problem), folder + "/lazy.nc")
        ...     found = mf.load(path)
        >>> found == lazy_prediction(problem)
        True
    """
    path = Path(path)
    arrays, attributes = opened(path)
    name, written = attributes.get("kind"), attributes.get("format_version")
    kind = next((k for k in KINDS if k.name == name), None)
    if kind is None:
        raise ValueError(f"{path} holds a {name!r}; known: {', '.join(repr(k.name) for k in KINDS)}")
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"{path} has the format version {written}; meanfield {version('meanfield')} reads versions up to {FORMAT}: update it"
        )
    try:
        settings = _tuples(json.loads(attributes["settings"]))
        if network is not None and "problem" in settings:
            settings["problem"]["network"]["given"] = network
        return kind.unpack(arrays, settings)
    except (KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}): save the result again") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error


def opened(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and attributes of a file of ours, whatever its kind; ValueError if it is none or damaged"""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the .nc file itself")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    sealed.verify(path)
    return _read(path)


def writable(path: str | Path) -> Path:
    """`path`, if a result can be written there; ValueError otherwise."""
    path = Path(path)
    if path.suffix != ".nc":
        good = f"{path.stem or 'result'}.nc"
        raise ValueError(f"results are kept in files that end in .nc: received {str(path)!r}; give e.g. {good!r}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file, e.g. {str(path / 'result.nc')!r}")
    if not path.parent.is_dir():
        raise Unwritable(f"the folder of {str(path)!r} does not exist: create {path.parent} first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Unwritable(f"the folder {path.parent} cannot be written to: give another one")
    return path


def _image(arrays: Arrays, attributes: dict[str, Any]) -> memoryview:
    """The file's bytes, in memory: on a full disk HDF5 would take the process down.

    By h5netcdf: xarray, which reads the file, takes ten times as long to write it, which counts for a sweep of networks.
    """
    import h5netcdf
    import h5py

    everything, image = arrays.coordinates | arrays.data, io.BytesIO()
    with h5netcdf.File(image, "w") as file:
        file.dimensions = {
            dim: n for dims, array, _ in everything.values() for dim, n in zip(dims, array.shape, strict=True)
        }
        for name, (dims, array, told) in everything.items():
            text = array.dtype.kind == "U"
            kept = array.astype(np.int8) if array.dtype.kind == "b" else array.astype(object) if text else array
            variable = file.create_variable(name, dims, dtype=h5py.string_dtype() if text else kept.dtype, data=kept)
            notes = told | ({"dtype": "bool"} if array.dtype.kind == "b" else {})
            beside = " ".join(
                c for c, (own, *_) in arrays.coordinates.items() if [c] != own and set(own) <= set(dims) and c != name
            )
            variable.attrs.update(notes | ({"coordinates": beside} if beside and name in arrays.data else {}))
        file.attrs.update(attributes)
    return image.getbuffer()


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and attributes. By h5py: xarray takes ten times as long, which counts for a folder of networks."""
    import h5py

    try:
        with h5py.File(path) as file:
            arrays = {name: _array(d) for name, d in file.items() if isinstance(d, h5py.Dataset)}
            return arrays, {name: _value(v) for name, v in file.attrs.items()}
    except Exception as error:  # OSError, KeyError, RuntimeError, ..: it depends on the place of the damage
        raise DamagedFile(f"{path} is truncated or no netCDF-4 file: {type(error).__name__}: {error}") from error


def _array(stored: Any) -> np.ndarray:
    if stored.dtype.kind == "O":
        return np.array(stored.asstr()[()], dtype=str)
    return np.asarray(stored[()], dtype=stored.attrs.get("dtype"))  # xarray's note on bool, kept as int8


def _value(stored: Any) -> Any:
    """Of an attribute: numbers are arrays of one entry or, by h5netcdf below 1.4, numpy's scalars"""
    return stored.item() if isinstance(stored, np.ndarray | np.generic) and stored.size == 1 else stored


def _tuples(value: Any) -> Any:
    """JSON's arrays as tuples"""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def described(result: Result) -> dict[str, Any]:
    """Settings of a result, and whatever else of it is no array, as they stand in a file"""
    return next(k for k in KINDS if isinstance(result, k.type)).pack(result, Arrays())


def provenance(result: object) -> dict[str, Any]:
    """When, by what and by which command a result is written: attributes of its file"""
    packages = ("torch", "numpy", "scipy", "xarray", "h5netcdf", "h5py")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    told = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "meanfield_version": version("meanfield"),
        "versions": json.dumps(versions),
        "git_commit": _commit(),
        "command": COMMAND.get(None),
        "seed": result.solver.get("seed") if isinstance(result, Solution) else None,
        "threads": result.stats.get("threads") if isinstance(result, Solution) else torch.get_num_threads(),
    }
    return {name: value for name, value in told.items() if value is not None}


@cache
def version(package: str) -> str:
    """Of an installed package, as files and `--version` tell it"""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@cache
def _commit() -> str | None:
    """The commit of the source tree, with "-dirty" if it was changed since; None for an installed package or without git."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # or the tree around it belongs to another project
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
