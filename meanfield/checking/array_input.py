"""Numbers as users hold them (arrays, tensors, lists, data frames) as a float64 tensor, or a refusal that names the place.

All of it passes through numpy: torch reads Python's floats in its default dtype and takes no reversed or big-endian arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Complex, Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

WHOLE = 2**53  # beyond it float64 leaves out whole numbers
_MISSING = {"", "-", ".", "?", "na", "n/a", "nan", "nat", "nil", "none", "null", "<na>", "#n/a", "missing"}
_MASKED = "masked; fill in or remove what is masked"
_NOT_FINITE = "missing, NaN or infinite; remove or fill them"
_INEXACT = (
    "whole numbers that float64 cannot hold; keep them within 2^53 in size, or give floats if rounding does no harm"
)
_NO_NUMBERS = {  # by the kind of numpy's dtype
    "U": "text; turn it into numbers or leave it out",
    "c": "complex; give real and imaginary parts as columns of their own",
    "M": "dates; turn them into numbers, e.g. days since the first one",
    "m": "time differences; turn them into numbers, e.g. divide them by one day",
    "V": "records or raw bytes; give plain columns, e.g. numpy.column_stack([a['u'], a['v']])",
}


def numbers(name: str, value: Any, tokens: bool = False) -> Tensor:
    """A copy of `value`, of the same shape: finite float64 on the CPU, contiguous; int64, if `tokens`, of an array of integers.

    ValueError, with row and column (from 0), for entries that are masked, missing, NaN, infinite or no numbers, and for whole numbers that
    float64 cannot hold.
    """
    is_frame = hasattr(value, "columns") and hasattr(value, "items")
    raw = None if is_frame else _raw(name, value)
    array = _frame(name, value) if raw is None else _float64(name, raw)
    whole = raw is not None and raw.dtype.kind in "iu" and not isinstance(value, (list, tuple))
    if tokens and whole and bool((np.abs(array) < WHOLE).all()):
        array = array.astype(np.int64)
    with torch.inference_mode(False):  # else nothing could be differentiated beside it
        return torch.from_numpy(array)


def table(name: str, columns: Mapping[str, Any]) -> np.ndarray:
    """(P, D) float64 of columns by their names. ValueError, with row (from 0) and column, as of `numbers`, and for other lengths."""
    found = [_float64(name, _raw(name, column), repr(label)) for label, column in columns.items()]
    for label, column in zip(columns, found, strict=True):
        if column.shape != found[0].shape or column.ndim != 1:
            raise ValueError(
                f"{name} must have columns of one length: received {found[0].shape[0] if found[0].ndim else 'one number'} in "
                f"{next(iter(columns))!r}, the shape {column.shape} in {label!r}"
            )
    return np.stack(found, 1)


def words(name: str, value: Any, column: str = "") -> np.ndarray | None:
    """Labels as texts, of the shape of `value`; None if it holds neither text nor truth values. ValueError for words among numbers."""
    array = _raw(name, value)
    if isinstance(array, np.ma.MaskedArray):
        return None
    if array.dtype.kind == "b":
        return array.astype(str)
    entries = array.astype(object)
    text = np.array([isinstance(entry, str) and not is_missing(entry) for entry in entries.flat], bool)
    if array.dtype.kind not in "OUST" or not text.any():
        return None
    faults = np.array([_fault(entry) for entry in entries.flat], dtype=object).reshape(array.shape)
    _none(faults == _NOT_FINITE, _NOT_FINITE, name, entries, column)
    if not text.all():
        _none(
            text.reshape(array.shape), "words among numbers; give words alone, or numbers alone", name, entries, column
        )
    return np.char.strip(array.astype(str))


def tracked(value: Any) -> bool:
    """Whether autograd follows a tensor at this moment"""
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()


def untracked(name: str, tensor: Tensor) -> Tensor:
    """The tensor without its history; ValueError if autograd follows it, whose derivatives would be lost in silence"""
    if tracked(tensor):
        raise ValueError(
            f"{name} requires gradients, which do not pass through here: give {name}.detach(), or call this within torch.no_grad()"
        )
    return tensor.detach()


def precision(value: Any) -> torch.dtype:
    """float32 for arrays and tensors of float32, of any byte order; float64 for all else"""
    return torch.float32 if str(getattr(value, "dtype", "")).endswith(("float32", "f4")) else torch.float64


def exact(number: int) -> bool:
    """Whether float64 holds this whole number"""
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def is_missing(text: str) -> bool:
    """Whether a text is one of those that stand for a missing value"""
    return text.strip().lower() in _MISSING


def unnamed(label: Any) -> bool:
    """Whether a column has no name, or the one that pandas gives to those without"""
    return isinstance(label, str) and (not label or label.startswith("Unnamed: "))


def _frame(name: str, frame: Any) -> np.ndarray:
    """The columns of a data frame, each from its own dtype: one that fits them all may be object or hold fewer digits."""
    columns = []
    for position, (label, column) in enumerate(frame.items()):
        if unnamed(label):
            raise ValueError(
                f"{name} has no name for its column {position} ({label!r}), as if an index had been written into a file with the data: "
                "drop it, or rename it if it is an input"
            )
        columns.append(_float64(name, _raw(name, column), f"{position} ({label!r})"))
    return np.ascontiguousarray(np.stack(columns, 1)) if columns else np.empty(frame.shape)


def _raw(name: str, value: Any) -> np.ndarray:
    """The array (or masked array) that `value` is, in its own dtype"""
    sparse = hasattr(value, "toarray") or (isinstance(value, Tensor) and (value.layout != torch.strided))
    if sparse or hasattr(value, "get_mask"):
        why = "sparse: give all entries, .to_dense() or .toarray()" if sparse else "masked: fill in or remove"
        raise ValueError(f"{name} is no array of numbers: received {type(value).__name__}, which is {why}")
    try:
        if isinstance(value, Tensor):
            here = untracked(name, value).cpu().resolve_neg()
            return (here.double() if here.is_floating_point() else here.resolve_conj()).numpy()
        if hasattr(value, "to_numpy"):
            value = value.to_numpy()
        return _from_list(name, value) if isinstance(value, (list, tuple)) else np.asanyarray(value)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} is no array of numbers: received {type(value).__name__} ({error})") from error


def _from_list(name: str, value: list | tuple) -> np.ndarray:
    """Lists of numbers, of lists, of arrays"""
    rows = [_raw(name, row) if isinstance(row, Tensor) or hasattr(row, "to_numpy") else row for row in value]
    try:
        array = np.ma.array(rows) if any(isinstance(row, np.ma.MaskedArray) for row in rows) else np.array(rows)
    except ValueError as error:
        lengths = [len(row) if hasattr(row, "__len__") else "no" for row in rows]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
        why = str(error) if other is None else f"row {other} has {lengths[other]} entries, row 0 has {lengths[0]}"
        raise ValueError(f"{name} is no array of numbers: received rows of different lengths ({why})") from error
    changed = array.dtype.kind in "USc" or (array.dtype.kind == "f" and bool((np.abs(array) >= WHOLE).any()))
    if not changed or isinstance(array, np.ma.MaskedArray):
        return array
    return np.array(rows, dtype=object)  # the entries themselves: numpy made text of them all, or rounded


def _float64(name: str, array: np.ndarray, column: str = "") -> np.ndarray:
    """A copy in float64. `column` says which one, where `array` is a column of a frame."""
    if isinstance(array, np.ma.MaskedArray):
        _none(np.ma.getmaskarray(array), _MASKED, name, array.data, column)
    array = np.asarray(array)
    kind = array.dtype.kind
    if kind in "OUST":
        return _from_objects(name, array.astype(object), column)
    if kind in _NO_NUMBERS:
        _none(np.ones(array.shape, bool), _NO_NUMBERS[kind], name, array, column)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.array(array, dtype=np.float64, order="C")
        if kind in "iu":  # what is rounded up to a power of 2 may not fit the integers any more
            end = 2.0 ** (8 * array.itemsize - (kind == "i"))
            inexact = (converted >= end) | (converted.astype(array.dtype) != array)
            _none(inexact, _INEXACT, name, array, column)
    _none(~np.isfinite(converted), _NOT_FINITE, name, converted, column)
    return converted


def _from_objects(name: str, array: np.ndarray, column: str) -> np.ndarray:
    """Entry by entry, as Python objects"""
    if not array.ndim:
        raise ValueError(f"{name} is no array of numbers: received {type(array[()]).__name__}; give e.g. a numpy array")
    quick = set(map(type, array.flat)) <= {bool, int, float, np.float64} and all(-WHOLE < e < WHOLE for e in array.flat)
    fault = None if quick else next((found for found in map(_fault, array.flat) if found), None)
    if fault:
        faults = np.array([_fault(entry) for entry in array.flat], dtype=object).reshape(array.shape)
        fault = _NOT_FINITE if (faults == _NOT_FINITE).any() else fault  # the text '?' matters more than text around it
        _none(faults == fault, fault, name, array, column)
    return array.astype(np.float64, order="C")


def _fault(entry: Any) -> str | None:
    """What keeps a Python object from being a number here, and the remedy"""
    if isinstance(entry, (str, bytes)):
        return _NOT_FINITE if is_missing(str(entry)) else _NO_NUMBERS["U"]
    if isinstance(entry, Integral):
        return None if exact(int(entry)) else _INEXACT
    if isinstance(entry, (Real, Decimal, np.bool_)):
        return None if math.isfinite(entry) else _NOT_FINITE
    if entry is None or type(entry).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return _NOT_FINITE
    return _NO_NUMBERS["c"] if isinstance(entry, Complex) else f"of type {type(entry).__name__}; give plain numbers"


def _none(bad: np.ndarray, fault: str, name: str, array: np.ndarray, column: str) -> None:
    """ValueError if any entry is `bad`"""
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        entry = array[index]
        shown = repr(entry)[:40] if isinstance(entry, (str, bytes)) else str(entry)[:40]
        what, remedy = fault.split("; ", 1)
        raise ValueError(
            f"{name} holds {int(bad.sum())} value(s) that are {what}: the first, {shown}, at {_place(index, column)}; {remedy}"
        )


def _place(index: tuple[int, ...], column: str) -> str:
    """ "row 3, column 1", "row 3", or of more axes "position [3, 1, 0]" """
    if len(index) > 2:
        return f"position {[*map(int, index)]}"
    places = [str(i) for i in index] + [column] * bool(column)
    words = [f"{word} {i}" for word, i in zip(("row", "column"), places, strict=False)]
    return ", ".join(words) or "its only entry"
