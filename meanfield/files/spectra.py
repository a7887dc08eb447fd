"""How a kernel in its eigen-directions lies in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meanfield.files.solutions import Arrays, Kind, Stored, tensor
from meanfield.kernels.spectrum import KernelSpectrum

_ARRAYS = {
    "eigenvalues": ("direction", "of K, from the largest, where df/dt = K Delta / P"),
    "eigenvectors": ("row direction", "v_i in columns; rows are samples, or samples and outputs"),
    "targets": ("direction output", "v_i . y"),
    "start": ("direction", "E |v_i . (f0 - y)|^2"),
}


def _pack(found: KernelSpectrum, arrays: Arrays) -> dict[str, Any]:
    for name, (dims, meaning) in _ARRAYS.items():
        arrays.put(name, getattr(found, name), dims, meaning)
    return {name: getattr(found, name) for name in ("samples", "precision", "indistinct")}


def _unpack(stored: Stored, settings: Mapping[str, Any]) -> KernelSpectrum:
    return KernelSpectrum(**{name: tensor(stored, name) for name in _ARRAYS}, **settings)


SPECTRUM = Kind("meanfield kernel spectrum", KernelSpectrum, _pack, _unpack)
