"""Tables as text: .csv and .tsv, whose first line names the columns; what is wrong is named by line and column."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from meanfield.checking.array_input import WHOLE, exact, is_missing, unnamed
from meanfield.problem.own_data import counts_rows, quoted, target_columns


def read_csv(path: Path, targets: Any) -> dict[str, Any]:
    """x (P, D), and y (P, C), or (P,) of words"""
    first = "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _lines(file, first)
            header = _header(next(lines, (1, []))[1])
            index = unnamed(header[0])
            chosen = target_columns(targets, header[index:])
            places = [header.index(name) for name in chosen]
            inputs = [i for i in range(index, len(header)) if i not in places]
            numbers, rows = array("d"), _Rows([header[i] for i in inputs], chosen)
            for number, row in lines:
                _must_be_whole(row, header, number)
                numbers.extend(_numbers([row[i] for i in inputs], rows.inputs, number))
                rows.add(number, row[0] if index else "", [row[i].strip() for i in places])
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8 ({error}): save it as a .csv file in UTF-8") from error
    if not rows.lines:
        raise ValueError("no data: needed are a header line and at least one line of numbers")
    if index:
        counts_rows(header[0], np.array(rows.index))
    return {"x": np.frombuffer(numbers).reshape(-1, len(inputs)), "y": rows.targets()}


class _Rows:
    """What is kept of each line beside the numbers of its inputs"""

    def __init__(self, inputs: list[str], chosen: list[str]) -> None:
        self.inputs, self.chosen = inputs, chosen
        self.lines, self.index = array("q"), list[str]()
        self.cells = list[list[str]]()

    def add(self, number: int, index: str, cells: list[str]) -> None:
        self.lines.append(number)
        self.index.append(index)
        self.cells.append(cells)

    def targets(self) -> np.ndarray:
        """(P, C) numbers, or (P,) words of one column that holds no number"""
        rows = [*zip(self.cells, self.lines, strict=True)]
        words = [_is_word(cells[0]) for cells in self.cells]
        if len(self.chosen) == 1 and not any(_is_number(cells[0]) for cells in self.cells):
            rows = [row for row, word in zip(rows, words, strict=True) if not word]  # what is missing is named first
        found = [_numbers(cells, self.chosen, number) for cells, number in rows]
        return np.array(found) if found else np.array(self.cells)[:, 0]


def _lines(file: TextIO, separators: str) -> Iterator[tuple[int, list[str]]]:
    """Each line that is not blank, cut into cells, and its number as an editor counts."""
    number, first = 0, file.readline()
    while first.isspace():
        number, first = number + 1, file.readline()
    try:
        blank = number
        reader = csv.reader(
            chain([first], file), delimiter=_separator(first, separators), skipinitialspace=True, strict=True
        )
        for row in reader:
            number = blank + reader.line_num
            if row and row[0].lstrip().startswith("#"):
                raise ValueError(
                    f"line {number} is a comment, {quoted(row)}: remove comments; the first line must name the columns"
                )
            if len(row) > 1 or "".join(row).strip():
                yield number, row
    except csv.Error as error:
        raise ValueError(
            f"the line after line {number} cannot be cut into cells ({error}): check its quotes"
        ) from error


def _separator(line: str, separators: str) -> str:
    """The first that cuts the header into cells: of a .csv a comma, else a semicolon or tab, which no number holds"""
    return next((s for s in separators if len(next(csv.reader([line], delimiter=s), [])) > 1), separators[0])


def _header(row: list[str]) -> list[str]:
    """The names of the columns"""
    header = [cell.strip() for cell in row]
    if not any(header):
        raise ValueError("no data: needed are a header line and at least one line of numbers")
    if all(is_missing(cell) or _is_number(cell) for cell in header):
        raise ValueError(f"no header line: the first line must name the columns, with words; received {quoted(header)}")
    if len(header) == 1:
        raise ValueError(
            f"one column only, {quoted(header)}: inputs and targets are needed, separated by commas, semicolons or tabs"
        )
    for position, name in enumerate(header):
        if position and unnamed(name):
            raise ValueError(
                f"column {position + 1} has no name (received {name!r}): leave it out, or name it if it is an input"
            )
        if name in header[:position]:
            raise ValueError(f"the header names the column {name!r} twice: give each column a name of its own")
    return header


def _must_be_whole(row: list[str], header: list[str], number: int) -> None:
    """ValueError for a line with more or fewer cells than the header"""
    if len(row) != len(header):
        why = "; write numbers as 1234.5, without other commas" if len(row) > len(header) else ""
        raise ValueError(
            f"line {number} holds {len(row)} cell(s), the header {len(header)}: received {quoted(row)}{why}"
        )


def _numbers(row: list[str], header: list[str], number: int) -> list[float]:
    """The numbers of cells"""
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


def _is_word(cell: str) -> bool:
    return cell.isprintable() and not is_missing(cell) and not _is_number(cell.replace(",", ""))  # 2,5 is no class


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
