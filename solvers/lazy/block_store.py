"""Kernels that are filled block by block: in memory, or in a folder that a run which was killed goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

NAMES = ("nngp", "ntk")
Kernels = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """Rows and columns of both kernels; mirrored: its transpose stands there too"""

    rows: slice
    columns: slice
    mirrored: bool


class Store(Protocol):
    """Where blocks go"""

    def missing(self, blocks: list[Block]) -> list[Block]:
        """Those that are not there yet"""
        ...

    def put(self, block: Block, kernels: Kernels) -> None: ...

    def close(self) -> None: ...

    def kernels(self) -> Kernels:
        """All of them"""
        ...


class InMemory:
    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._kernels = (torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype))

    def missing(self, blocks: list[Block]) -> list[Block]:
        return blocks

    def close(self) -> None:
        pass

    def put(self, block: Block, kernels: Kernels) -> None:
        for whole, part in zip(self._kernels, kernels, strict=True):
            whole[block.rows, block.columns] = part
            if block.mirrored:
                whole[block.columns, block.rows] = part.T

    def kernels(self) -> Kernels:
        return self._kernels


class InFolder:
    """nngp.npy and ntk.npy, with all their room from the start; problem.json says what they are, and blocks.txt has a line for each
    block that is finished, with its digest.

    What a killed process or machine left half done has no line, or another digest, and is computed again. The files are mapped for the
    time of a block alone, so that they take no memory. ValueError if the folder holds something else or is in use, OSError if the disk
    is full.
    """

    def __init__(self, folder: Path, problem: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"the folder {folder} of the blocks is a file: give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._paths = folder, [folder / f"{name}.npy" for name in NAMES]
        self._log = folder / "blocks.txt"
        self._lock = _locked(folder)
        try:
            self._open(problem, shape, dtype)
        except BaseException:
            self.close()
            raise

    def _open(self, problem: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> None:
        """ValueError if other kernels lie here"""
        folder = self._folder
        told, kept = json.dumps(problem, indent=1), folder / "problem.json"
        if kept.exists():
            _same(folder, json.loads(kept.read_text()), json.loads(told))
        elif taken := [path.name for path in (*self._paths, self._log) if path.exists()]:
            raise ValueError(f"{folder} holds {', '.join(taken)} of something else: give an empty folder")
        kind = np.dtype(str(dtype).removeprefix("torch."))
        if self._log.exists() and all(_is_there(path, shape, kind) for path in self._paths):
            return
        _write(kept, told)
        for path in self._paths:
            _reserve(path, shape, kind)
        _write(self._log, "")

    def missing(self, blocks: list[Block]) -> list[Block]:
        """Those that were not put here, or do not lie here as they were put"""
        lines, kept, missing = set(self._log.read_text().split("\n")), list[str](), list[Block]()
        for block in blocks:
            parts = [self._map(path, "r")[block.rows, block.columns] for path in self._paths]
            line = f"{_named(block)}: {_digest(parts)}"
            whole = line in lines and (not block.mirrored or self._is_mirrored(block, parts))
            kept += [line + "\n"] * whole
            missing += [block] * (not whole)
        _write(self._log, "".join(kept))  # without a line that was cut
        return missing

    def put(self, block: Block, kernels: Kernels) -> None:
        for path, part in zip(self._paths, kernels, strict=True):
            whole = self._map(path, "r+")
            whole[block.rows, block.columns] = part.numpy()
            if block.mirrored:
                whole[block.columns, block.rows] = part.T.numpy()
        with self._log.open("a") as log:
            log.write(f"{_named(block)}: {_digest([part.numpy() for part in kernels])}\n")

    def kernels(self) -> Kernels:
        """Mapped: pages are read when they are looked at, and what is changed in memory changes no file"""
        nngp, ntk = (torch.from_numpy(self._map(path, "c")) for path in self._paths)
        return nngp, ntk

    def close(self) -> None:
        """Let others have the folder"""
        os.close(self._lock)

    def _map(self, path: Path, mode: Any) -> np.ndarray:
        return np.load(path, mmap_mode=mode)

    def _is_mirrored(self, block: Block, parts: list[np.ndarray]) -> bool:
        there = (self._map(path, "r")[block.columns, block.rows] for path in self._paths)
        return all(np.array_equal(part.T, other) for part, other in zip(parts, there, strict=True))


def _named(block: Block) -> str:
    return f"rows {block.rows.start} to {block.rows.stop}, columns {block.columns.start} to {block.columns.stop}"


def _digest(parts: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def _same(folder: Path, kept: dict[str, Any], asked: dict[str, Any]) -> None:
    other = [name for name in asked if kept.get(name) != asked[name]]
    if other:
        there = "; ".join(f"{name} is {_short(kept.get(name))} there, {_short(asked[name])} here" for name in other)
        raise ValueError(f"{folder} holds other kernels: {there}; give an empty folder")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + ".."


def _is_there(path: Path, shape: tuple[int, int], dtype: np.dtype) -> bool:
    with suppress(OSError, ValueError):
        array = np.load(path, mmap_mode="r")
        return array.shape == shape and array.dtype == dtype
    return False


def _write(path: Path, text: str) -> None:
    """Whole or not at all"""
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    os.replace(beside, path)


def _reserve(path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
    """An array with its room on the disk: a mapped file that finds none later takes the process down"""
    size = int(np.prod(shape)) * dtype.itemsize
    try:
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), file.tell(), size)
            else:
                file.truncate(file.tell() + size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror or error}; {size} bytes were to be kept", str(path)) from error


def _locked(folder: Path) -> int:
    """An open file of the folder, locked as long as it is open; ValueError if another run has it"""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ValueError(
                f"another run is at work in the folder {folder}: wait for it, or give another one"
            ) from error
        except OSError:
            pass  # a file system without locks
    return lock
