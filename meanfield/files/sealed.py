"""Bytes in a file: written whole or not at all, with a digest at the end by which any damage shows before the file is parsed."""

from __future__ import annotations

import glob
import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_MARK = b"\nmeanfield sha256 "
_LENGTH = len(_MARK) + 64 + 1  # the digest in hexadecimal digits, and the end of the line
_CHUNK = 2**20


class DamagedFile(ValueError):
    """A file that is not what was written; the remedy is another file, never this one."""


def write(path: Path, content: memoryview) -> None:
    """`content` and its digest, in place of any older file, as `replaced`"""
    replaced(path, content, _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n")


def replaced(path: Path, *contents: memoryview | bytes) -> None:
    """A file of these bytes, in place of any older one. OSError, which names path and bytes, leaves the older file as it was.

    What a killed process left of an earlier attempt at `path` is removed; what a living one is writing is not.
    """
    try:
        _clear(path)
        file = _temporary(path)
        try:
            with file:
                file.writelines(contents)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        needed = f"{error.strerror or error}; {sum(map(len, contents))} bytes were to be written"
        raise OSError(error.errno, needed, str(path)) from error


_READERS = {  # what else a user may have at hand
    ".npz": ", or read arrays and kernels by numpy.load",
    ".csv": ", or read data by mf.from_file",
    ".tsv": ", or read data by mf.from_file",
    ".parquet": ", or read data by mf.from_file",
}


def verify(path: Path) -> None:
    """DamagedFile unless `path` ends with the digest of all that stands before it"""
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - _LENGTH
        file.seek(max(0, left))
        end = file.read()
        if not end.startswith(_MARK):
            raise DamagedFile(
                f"{path} is truncated or no netCDF-4 file of meanfield: it ends without a digest, cut or written to by another program; "
                "save the result again" + _READERS.get(path.suffix, "")
            )
        file.seek(0)
        found = hashlib.sha256()
        while left > 0:
            chunk = file.read(min(left, _CHUNK))
            found.update(chunk)
            left -= len(chunk)
    if end != _MARK + found.hexdigest().encode() + b"\n":
        raise DamagedFile(
            f"{path} is damaged: its content is not what was saved (SHA-256); take a copy, or save it again"
        )


def _temporary(path: Path) -> BinaryIO:
    """A new file in the same folder, where replacing is atomic, locked as long as it is open."""
    while True:
        file = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp").open("xb")
        with suppress(OSError, ImportError):  # a file system or a system without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process took it for a dead one's before it was locked


def _clear(path: Path) -> None:
    """Remove the temporary files of `path` that nobody holds; where files cannot be locked, none."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError, ImportError), left.open("r+b") as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
