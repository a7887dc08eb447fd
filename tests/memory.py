"""Resident memory of this process. Not ru_maxrss: a process that another one starts inherits the other's largest."""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
AVAILABLE = _CLEAR.exists()  # Linux


def forget_peak() -> int:
    """Resident bytes now, from which on `peak` counts; OSError where the system does not tell"""
    _CLEAR.write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most resident bytes since `forget_peak`"""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
