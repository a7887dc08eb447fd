"""Data sets from files of the user's: .npz and .csv."""

from __future__ import annotations

import csv
import math
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.array_input import WHOLE, exact, is_missing, unnamed
from meanfield.problem.dataset import Dataset, split


@checked
def from_file(path: str | Path, targets: int | str | Sequence[str] = 1, n_test: int = 0) -> Dataset:
    """A dataset from .npz (arrays x, y, optionally x_test, y_test, of any shape) or .csv (a header that names the columns, then numbers).

    Columns are separated by commas, or by semicolons or tabs if the header has no comma. Nothing is unpickled.
    ValueError for other kinds and broken files, with line and column where a number is missing or none.

    Args:
        path: A .npz file (arrays x, y), or a .csv file whose first line names its columns
        targets: Target columns of a .csv file: their names, or how many at the right
        n_test: The last rows become as many test samples
    """
    path, n_test = Path(path), checks.integer("n_test", n_test, 0)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the .npz or .csv file itself")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"cannot read {path.name}: the ending is {path.suffix!r}; known: {', '.join(readers)}")
    try:
        arrays = readers[path.suffix.lower()](path, targets)
        data = Dataset(**arrays, name=path.stem)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not n_test:
        return data
    if data.x_test is not None:
        raise ValueError(f"{path.name} holds x_test already: leave out n_test={n_test}")
    if n_test >= data.samples:
        raise ValueError(f"n_test={n_test} leaves no training sample of the {data.samples} rows in {path.name}")
    return split(data.x, data.y, n_test, path.stem)


def _read_npz(path: Path, targets: Any) -> dict[str, Any]:
    if targets != 1:
        raise ValueError(f"targets={targets!r} belongs to .csv files: in an .npz file the targets are the array y")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # numpy and zipfile stumble over damaged files in a dozen ways
        raise ValueError(f"no intact .npz archive of plain arrays ({error}): write one with numpy.savez") from error
    known = {"x", "y", "x_test", "y_test"}
    if not {"x", "y"} <= set(arrays) <= known:
        raise ValueError(f"holds the arrays {sorted(arrays)}: needed are x and y, and optionally x_test, y_test")
    return arrays


def _read_csv(path: Path, targets: Any) -> dict[str, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _lines(file)
            header = _header(next(lines, (1, []))[1])
            names, values = _targets(targets, header), array("d")
            for number, row in lines:
                values.extend(_numbers(row, header, number))
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8 ({error}): save it as a .csv file in UTF-8") from error
    if not values:
        raise ValueError("no data: needed are a header line and at least one line of numbers")
    table = np.frombuffer(values).reshape(-1, len(header))
    return {"x": table[:, ~np.isin(header, names)], "y": table[:, [header.index(name) for name in names]]}


def _lines(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Each line that is not blank, cut into cells, and its number as an editor counts."""
    number, first = 0, file.readline()
    while first.isspace():
        number, first = number + 1, file.readline()
    try:
        blank = number
        reader = csv.reader(chain([first], file), delimiter=_separator(first), skipinitialspace=True, strict=True)
        for row in reader:
            number = blank + reader.line_num
            if row and row[0].lstrip().startswith("#"):
                raise ValueError(
                    f"line {number} is a comment, {_shown(row)}: remove comments; the first line must name the columns"
                )
            if len(row) > 1 or "".join(row).strip():
                yield number, row
    except csv.Error as error:
        raise ValueError(
            f"the line after line {number} cannot be cut into cells ({error}): check its quotes"
        ) from error


def _separator(line: str) -> str:
    """A comma if it cuts the header into cells, else a semicolon or tab that does. No number holds one of those two."""
    return next((s for s in ",;\t" if len(next(csv.reader([line], delimiter=s), [])) > 1), ",")


def _header(row: list[str]) -> list[str]:
    """The names of the columns"""
    header = [cell.strip() for cell in row]
    if not any(header):
        raise ValueError("no data: needed are a header line and at least one line of numbers")
    if all(is_missing(cell) or _is_number(cell) for cell in header):
        raise ValueError(f"no header line: the first line must name the columns, with words; received {_shown(header)}")
    if len(header) == 1:
        raise ValueError(
            f"one column only, {_shown(header)}: inputs and targets are needed, separated by commas, semicolons or tabs"
        )
    for position, name in enumerate(header):
        if unnamed(name):
            raise ValueError(
                f"column {position + 1} has no name (received {name!r}), as if an index had been written with the data: "
                "leave it out (pandas: to_csv(.., index=False)), or name it if it is an input"
            )
        if name in header[:position]:
            raise ValueError(f"the header names the column {name!r} twice: give each column a name of its own")
    return header


def _targets(targets: Any, header: list[str]) -> list[str]:
    """The names of the target columns"""
    if not isinstance(targets, Iterable):
        count = checks.integer("targets", targets, 1)
        if count >= len(header):
            raise ValueError(f"targets={count} does not fit its {len(header)} columns: one input column must stay")
        return header[-count:]
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise ValueError(f"targets is empty: name at least one of the columns {_shown(header)}")
    for name in names:
        if name not in header:
            raise ValueError(f"no column is called {name!r}: known are {_shown(header)}")
    if len(set(names)) < len(names):
        raise ValueError(f"targets names a column twice: received {_shown(names)}; each is taken once")
    if len(names) == len(header):
        raise ValueError(f"targets={_shown(names)} takes all columns: one input column must stay")
    return names


def _numbers(row: list[str], header: list[str], number: int) -> list[float]:
    """The numbers of a line"""
    if len(row) != len(header):
        why = "; write numbers as 1234.5, without other commas" if len(row) > len(header) else ""
        raise ValueError(
            f"line {number} holds {len(row)} cell(s), the header {len(header)}: received {_shown(row)}{why}"
        )
    try:
        values = [float(cell) for cell in row]
        plain = all(-WHOLE < value < WHOLE for value in values) and "_" not in "".join(row)
    except ValueError:
        values, plain = [], False
    for cell, name in [] if plain else zip(row, header, strict=True):
        if fault := _fault(cell.strip()):
            raise ValueError(f"line {number}, column {name!r}: received {cell.strip()[:40]!r}; {fault}")
    return values


def _fault(cell: str) -> str:
    """What keeps a cell from being a number; empty if nothing does"""
    if is_missing(cell):
        return "a value is missing: remove the line or fill it in"
    if not _is_number(cell):
        return "write numbers as 1234.5, without thousands separators" if "," in cell else "a number is needed"
    if not math.isfinite(float(cell)):
        return "numbers must be finite: remove the line or correct it"
    if cell.lstrip("+-").isdigit() and not exact(int(cell)):
        return "float64 cannot hold this whole number: keep it within 2^53 in size, or write it as 1.5e17 if rounding does no harm"
    return ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _shown(cells: Sequence[str]) -> str:
    """The first few cells, quoted"""
    few = ", ".join(repr(cell[:40]) for cell in cells[:8])
    return f"{few}, .. ({len(cells)} in all)" if len(cells) > 8 else few
