"""Classes as targets: a column of -1 and +1 for two, or a one-hot row; labels in words or numbers become them, and keep their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks

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
    signs = count == FEWEST and bool(((labels == 1) | (labels == -1)).all())
    index = (labels + 1) / 2 if signs else labels
    wrong = ((index != index.round()) | (index < 0) | (index >= count)).nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        right = "-1 and +1, or 0 and 1" if count == FEWEST else f"whole numbers from 0 to {count - 1}"
        raise ValueError(
            f"{name} does not fit its {count} classes: received {labels[row].item():g} in row {row}; give {right}"
        )
    return as_signs(index.long()) if count == FEWEST else one_hot(index.long(), count)


def as_signs(index: Tensor) -> Tensor:
    """(P, 1) -1 for class 0 and +1 for class 1"""
    return (2.0 * index.double() - 1.0)[:, None]


def one_hot(index: Tensor, count: int) -> Tensor:
    """(P, C)"""
    return torch.nn.functional.one_hot(index, count).double()
