"""Data of the user's, from arrays and data frames: shuffled, divided, scaled and with classes as asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.array_input import table, unnamed, words
from meanfield.checking.warning import warn
from meanfield.problem.classes import labelled, ordered
from meanfield.problem.dataset import Dataset, same_labels
from meanfield.problem.dividing import divided
from meanfield.problem.transformation import TargetWay, Way, of_targets, transformation


@checked
def from_arrays(
    x: Any,
    y: Any,
    x_test: Any = None,
    y_test: Any = None,
    n_test: int = 0,
    n_train: int | None = None,
    shuffle: int | None = None,
    stratify: bool = False,
    scale: Way | Sequence[Way] | None = None,
    one_hot: bool | None = None,
    name: str = "data",
    scale_targets: TargetWay | None = None,
) -> Dataset:
    """A dataset from arrays, x (P, ..) of any shape, divided and scaled as asked for; the scaling is kept as `.transformation`.

    Labels in words and truth values become classes with names, sorted, or in the order that ordered categories have: two of them -1 and
    +1, more one-hot rows. ValueError for arrays
    that fit no dataset, with the place, and for more samples than there are.

    Args:
        x: Samples
        y: Their targets: numbers, or one label for each
        x_test: Test samples of their own
        y_test: Their targets
        n_test: The last rows become as many test samples, after shuffling
        n_train: How many of the other rows to train on; all if left out
        shuffle: Seed of a shuffle of the rows, which stay in their order if it is left out
        stratify: Whether each class gets its share of test and training samples
        scale: Of inputs, from training samples alone: "centre" or "standardise" columns, and then "unit_norm", rows of norm sqrt(D)
        one_hot: True: targets are classes, as one-hot rows; False: two classes, as -1 and +1; left out, words are classes and numbers not
        name: Of the data
        scale_targets: Of targets that are numbers, from training samples alone: "centre" or "standardise" columns

    Example:
        >>> import meanfield as mf
        >>> x = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]
        >>> data = mf.from_arrays(x, ["cat", "dog", "dog", "cat"], n_test=1, scale=("centre", "unit_norm"))
        >>> data.classes, data.y.tolist(), data.x_test.shape
        (('cat', 'dog'), [[-1.0], [1.0], [1.0]], torch.Size([1, 2]))
    """
    return _made(
        x, y, x_test, y_test, n_test, n_train, shuffle, stratify, scale, one_hot, name, scale_targets, ordered(y)
    )


def _made(
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any,
    n_test: int,
    n_train: int | None,
    shuffle: int | None,
    stratify: bool,
    scale: Way | Sequence[Way] | None,
    one_hot: bool | None,
    name: str,
    scale_targets: TargetWay | None,
    order: Sequence[str],
) -> Dataset:
    """order: of categories that have one, none otherwise"""
    targets, classes = labelled({"y": y} | ({} if y_test is None else {"y_test": y_test}), one_hot, order)
    for a, one, b, other in (("x", x, "y", y), ("x_test", x_test, "y_test", y_test)):
        same_labels(a, one, b, other, "rows", 0)
    whole = Dataset(x, x_test=x_test, name=name, classes=classes, **targets)
    data = divided(whole, n_test, n_train, shuffle, stratify)
    return data if scale is None and scale_targets is None else _scaled(data, scale or (), scale_targets)


@checked
def from_frame(
    frame: Any,
    targets: int | str | Sequence[str] = 1,
    n_test: int = 0,
    n_train: int | None = None,
    shuffle: int | None = None,
    stratify: bool = False,
    scale: Way | Sequence[Way] | None = None,
    one_hot: bool | None = None,
    name: str = "data",
    scale_targets: TargetWay | None = None,
) -> Dataset:
    """A dataset from a data frame (pandas, polars, pyarrow) or a dict of columns; all columns but the targets are inputs.

    A first column without a name that counts the rows is an index: it is left out, with a warning. ValueError for a value that is
    missing or no number, with row and column, and as of `from_arrays`, which explains the other arguments.

    Args:
        frame: Its columns have names
        targets: Target columns: their names, or how many at the right

    Example:
        >>> import meanfield as mf
        >>> frame = {"length": [1.0, 2.0, 3.0], "width": [0.5, 0.1, 0.2], "price": [10.0, 12.0, 15.0]}
        >>> data = mf.from_frame(frame, targets="price", n_test=1)
        >>> data.x.shape, data.y.tolist()
        (torch.Size([2, 2]), [[10.0], [12.0]])
    """
    given = _columns(frame)
    columns = {label: _plain(column) for label, column in given.items()}
    if counts_rows(first := next(iter(columns)), np.asarray(columns[first])):
        del columns[first]
    chosen = target_columns(targets, list(columns))
    x = table("x", {label: column for label, column in columns.items() if label not in chosen})
    y = words("y", columns[chosen[0]], repr(chosen[0])) if len(chosen) == 1 else None
    y = table("y", {label: columns[label] for label in chosen}) if y is None else y
    order = ordered(given[chosen[0]]) if len(chosen) == 1 else ()
    return _made(x, y, None, None, n_test, n_train, shuffle, stratify, scale, one_hot, name, scale_targets, order)


def target_columns(targets: Any, header: Sequence[str]) -> list[str]:
    """The names of the target columns"""
    if not isinstance(targets, Iterable):
        count = checks.integer("targets", targets, 1)
        if count >= len(header):
            raise ValueError(f"targets={count} does not fit its {len(header)} columns: one input column must stay")
        return list(header[-count:])
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise ValueError(f"targets is empty: name at least one of the columns {quoted(header)}")
    for name in names:
        if name not in header:
            raise ValueError(f"no column is called {name!r}: known are {quoted(header)}")
    if len(set(names)) < len(names):
        raise ValueError(f"targets names a column twice: received {quoted(names)}; each is taken once")
    if len(names) == len(header):
        raise ValueError(f"targets={quoted(names)} takes all columns: one input column must stay")
    return names


def counts_rows(label: str, cells: np.ndarray) -> bool:
    """Whether a first column is an index that was written with the data: without a name, from 0 or 1 on. Says so in a warning."""
    if not unnamed(label):
        return False
    given = [str(cell).strip() for cell in cells]
    if not any(given == list(map(str, range(start, start + len(given)))) for start in (0, 1)):
        raise ValueError(
            f"column 1 has no name (received {label!r}), as if an index had been written with the data, but it does not count the rows: "
            "leave it out (pandas: to_csv(.., index=False)), or name it if it is an input"
        )
    warn(
        f"the first column has no name (received {label!r}) and counts the rows: it is left out as an index; name it if it is an input"
    )
    return True


def quoted(cells: Sequence[str]) -> str:
    """The first few cells"""
    few = ", ".join(repr(cell[:40]) for cell in cells[:8])
    return f"{few}, .. ({len(cells)} in all)" if len(cells) > 8 else few


def _columns(frame: Any) -> dict[str, Any]:
    """The columns of a frame by their names"""
    labels = (
        list(frame) if isinstance(frame, Mapping) else getattr(frame, "column_names", getattr(frame, "columns", None))
    )
    if labels is None or callable(labels):
        raise ValueError(
            f"frame must be a data frame or a dict of columns: received {checks.shown(frame)}; for arrays take mf.from_arrays(x, y)"
        )
    names = [str(label) for label in labels]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"frame names the column {name!r} twice: give each column a name of its own")
        if position and unnamed(name):
            raise ValueError(f"frame has no name for its column {position} ({name!r}): drop it, or rename it")
    if len(names) < 2:
        raise ValueError(f"frame must have inputs and targets: received the columns {names}")
    return {name: frame[label] for name, label in zip(names, labels, strict=True)}


def _plain(column: Any) -> Any:
    """A column of pyarrow by its entries, which it has of kinds that numpy has not"""
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _scaled(data: Dataset, scale: Way | Sequence[Way], scale_targets: TargetWay | None) -> Dataset:
    done = transformation(data.x, scale)
    moved = {} if not scale else {"x": done(data.x)} | ({} if data.x_test is None else {"x_test": done(data.x_test)})
    if scale_targets is not None:
        if data.classes:
            raise ValueError("scale_targets is of targets that are numbers: received classes; leave it out")
        shift, by = of_targets(data.y, scale_targets)
        done = replace(done, target_shift=shift, target_scale=by)
        moved |= {"y": done.targets(data.y)} | ({} if data.y_test is None else {"y_test": done.targets(data.y_test)})
    return replace(data, transformation=done, **moved)
