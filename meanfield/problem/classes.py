"""Classes as targets: a column of -1 and +1 for two, or a one-hot row; labels in words or numbers become them, and keep their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.array_input import words

FEWEST = 2


def named(classes: Any) -> tuple[str, ...]:
    """The names of classes, none or at least two different texts"""
    if not isinstance(classes, list | tuple) and getattr(classes, "ndim", 0) != 1:
        raise ValueError(f"classes must be names: received {checks.shown(classes)}; give a tuple of texts")
    names = tuple(classes)
    for position, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"classes[{position}] must be a name: received {checks.shown(name)}; give text, e.g. 'cat'"
            )
        if name in names[:position]:
            raise ValueError(f"classes holds the name {name!r} twice: give each class a name of its own")
    if len(names) == 1:
        raise ValueError(f"classes holds one name, {names[0]!r}: at least two are needed")
    return tuple(map(str, names))


def encoded(name: str, y: Tensor, classes: Sequence[str]) -> Tensor:
    """Targets (P, .., C) of classes with these names: rows as they are; one column of whole numbers 0..C-1, or of -1 and +1, as classes.

    Two classes become -1 and +1, more one-hot rows. ValueError for what fits none of these.
    """
    count = len(classes)
    if y.shape[-1] == count:
        return y
    labels = y[:, 0] if y.shape[1:] == (1,) else None
    if labels is None:
        raise ValueError(
            f"classes holds {count} names, but {name} has samples of shape {tuple(y.shape[1:])}: give a name for each column, or one "
            "column of whole numbers that count classes"
        )
    if count == FEWEST and not torch.equal(labels, labels.round()):
        return y  # targets between and about the classes, as those that a start's outputs shift
    signs = count == FEWEST and bool(((labels == 1) | (labels == -1)).all())
    index = (labels + 1) / 2 if signs else labels
    wrong = ((index != index.round()) | (index < 0) | (index >= count)).nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        right = "-1 and +1, or 0 and 1" if count == FEWEST else f"whole numbers from 0 to {count - 1}"
        raise ValueError(
            f"{name} does not fit its {count} classes: received {labels[row].item():g} in row {row}; give {right}"
        )
    return as_signs(index.long()) if count == FEWEST else rows(index.long(), count)


def ordered(column: Any) -> tuple[str, ...]:
    """The categories of a column whose kind gives them an order, in it: of pandas, polars (Enum) and pyarrow; none of others"""
    kind = getattr(column, "dtype", None)
    if getattr(kind, "ordered", False) or type(kind).__name__ == "Enum":
        return tuple(str(category).strip() for category in getattr(kind, "categories", ()))
    if getattr(getattr(column, "type", None), "ordered", False):
        chunks = getattr(column, "unify_dictionaries", lambda: column)()
        first = next(iter(getattr(chunks, "chunks", [chunks])), None)
        return () if first is None else tuple(str(category).strip() for category in first.dictionary.to_pylist())
    return ()


def labelled(
    given: dict[str, Any], one_hot: bool | None, order: Sequence[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """{"y": .., "y_test": ..} as targets, and the names of their classes, sorted; as they are, without names, if they are numbers.

    order: of the names, where they have another one.

    Words and truth values are classes; numbers if `one_hot` is given, True for one-hot rows, False for -1 and +1.
    """
    texts = {name: words(name, y) for name, y in given.items()}
    if all(found is None for found in texts.values()):
        if one_hot is None:
            return given, ()
        texts = {name: _whole(name, checks.samples(name, y, targets=True)) for name, y in given.items()}
    labels = {name: _one_column(name, found) for name, found in texts.items()}
    every = np.concatenate(list(labels.values()))
    kinds, index = np.unique(every, return_inverse=True)
    names = tuple(map(str, kinds))
    if {*names} <= {*order}:
        places = np.argsort([order.index(name) for name in names])
        names, index = tuple(names[k] for k in places), np.argsort(places)[index]
    if len(names) < FEWEST:
        raise ValueError(f"y holds one class only, {names[0]!r}: at least two are needed")
    if len(names) == len(every) > FEWEST:
        raise ValueError(
            f"y holds {len(every)} labels that are all different ({names[0]!r}, {names[1]!r}, ..): classes come again; take numbers as "
            "targets, or another column"
        )
    if one_hot is False and len(names) > FEWEST:
        raise ValueError(f"{len(names)} classes need one-hot targets: leave out one_hot=False, or give two classes")
    parts = np.split(index, np.cumsum([len(found) for found in labels.values()])[:-1])
    signs = len(names) == FEWEST and not one_hot
    made = [as_signs(t) if signs else rows(t, len(names)) for t in map(torch.from_numpy, parts)]
    return dict(zip(labels, made, strict=True)), names


def _whole(name: str, y: Tensor) -> np.ndarray:
    """Numbers that are classes; ValueError for others"""
    wrong = (y != y.round()).nonzero()
    if len(wrong):
        raise ValueError(
            f"{name} holds {y[tuple(wrong[0])].item():g} in row {int(wrong[0, 0])}: classes are words or whole numbers; leave out one_hot "
            "if targets are no classes"
        )
    return y.long().numpy()


def _one_column(name: str, labels: np.ndarray | None) -> np.ndarray:
    if labels is None:
        raise ValueError(f"{name} holds no words: give y and y_test alike")
    if labels.ndim > 1 and labels.shape[1:] != (1,):
        raise ValueError(f"classes are one column: received {name} of shape {labels.shape}; give one target column")
    return labels.reshape(-1)


def as_signs(index: Tensor) -> Tensor:
    """(P, 1) -1 for class 0 and +1 for class 1"""
    return (2.0 * index.double() - 1.0)[:, None]


def rows(index: Tensor, count: int) -> Tensor:
    """(P, C) one-hot"""
    return torch.nn.functional.one_hot(index, count).double()
