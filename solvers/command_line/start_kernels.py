"""Files of `meanfield nngp`: kernels at the start and the data they are of, as arrays of numpy (.npz), read without unpickling."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from torch import Tensor, from_numpy

from meanfield.files import storage
from meanfield.problem.dataset import Dataset

_ABOUT = "about"  # a text in JSON: when, by what and by which command


@dataclass(frozen=True, eq=False)
class StartKernels:
    """Kernels at the start, between training samples and then test samples, with these samples"""

    nngp: Tensor
    ntk: Tensor
    data: Dataset

    def __str__(self) -> str:
        told = [f"kernels at the start between {self.data.points} samples, {self.data.samples} of them for training"]
        for name in ("nngp", "ntk"):
            kernel = getattr(self, name)
            diagonal = kernel.reshape(math.isqrt(kernel.numel()), -1).diagonal()
            told.append(f"{name}: {tuple(kernel.shape)}, diagonal {diagonal.min():.4g} to {diagonal.max():.4g}")
        return "\n".join(told)


def save(kernels: StartKernels, out: Path) -> None:
    """Whole or not at all"""
    data = {name: getattr(kernels.data, name) for name in ("x", "y", "x_test", "y_test")}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in data.items() if value is not None}
    told = {"kind": "StartKernels", "title": str(kernels).splitlines()[0]}
    told |= {"data": kernels.data.name, "classes": kernels.data.classes}
    about = json.dumps(told | storage.provenance(kernels))
    with tempfile.NamedTemporaryFile(dir=out.parent, suffix=".npz", delete=False) as whole:
        np.savez(whole, nngp=kernels.nngp.numpy(), ntk=kernels.ntk.numpy(), **arrays | {_ABOUT: np.array(about)})  # type: ignore[arg-type]
    os.replace(whole.name, out)


def opened(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
    """Arrays and attributes; ValueError for a file that `nngp` did not write"""
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: no intact .npz archive of plain arrays ({error})") from error
    missing = [name for name in ("nngp", "ntk", "x", "y") if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}, which `meanfield nngp` writes: it holds {', '.join(arrays) or 'nothing'}; data of your "
            f"own are read by --data file --data.path {path}"
        )
    about = arrays.pop(_ABOUT, np.array("{}"))
    return arrays, json.loads(str(about))


def load(path: Path) -> StartKernels:
    """What `nngp` kept"""
    arrays, told = opened(path)
    given: dict[str, Any] = {
        name: from_numpy(arrays[name]) for name in ("x", "y", "x_test", "y_test") if name in arrays
    }
    return StartKernels(from_numpy(arrays["nngp"]), from_numpy(arrays["ntk"]), _data(given, told))


def _data(given: dict[str, Any], told: Mapping[str, Any]) -> Dataset:
    """The samples, with the names of their classes"""
    return Dataset(**given, name=str(told.get("data", "data")), classes=tuple(told.get("classes", ())))
