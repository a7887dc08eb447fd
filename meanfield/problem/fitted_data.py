"""Data as a network takes them: matrices for a perceptron; for a module tokens, and targets of the shape of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.problem.classes import as_signs, rows
from meanfield.problem.dataset import Dataset
from meanfield.problem.losses import Loss
from meanfield.problem.stream import Stream


def for_perceptron(data: Dataset, loss: Loss) -> Dataset:
    """x (P, D) real, y (P, C). ValueError for more axes, and for targets that the loss does not count."""
    for name in ("x", "y"):
        shape = tuple(getattr(data, name).shape)
        if len(shape) > 2:
            raise ValueError(
                f"a perceptron takes x (P, D) and y (P, C): received {name} of shape {shape}; give {name}.flatten(1), or as network a "
                "module that takes this shape"
            )
    left_out = torch.zeros(0) if loss.counted is None else (~loss.counted(data.y).bool()).nonzero()
    if len(left_out):
        row = int(left_out[0])
        raise ValueError(
            f"row {row} of y is not counted by the loss {loss.name!r} ({data.y[row].tolist()}), but all samples of a perceptron are: leave "
            "it out, or watch it in x_test"
        )
    if data.x.is_floating_point():
        return data
    return replace(data, x=data.x.double(), x_test=None if data.x_test is None else data.x_test.double())


def must_suit_modules(data: Dataset) -> None:
    """ValueError for integer inputs that are no tokens"""
    for name in ("x", "x_test"):
        x = getattr(data, name)
        if x is not None and not x.is_floating_point() and bool((x < 0).any()):
            place = (x < 0).nonzero()[0].tolist()
            raise ValueError(
                f"{name} holds integers, which a module is given as tokens, and those must not be negative: received "
                f"{int(x[tuple(place)])} at position {place}; give {name}.double() if they are real numbers"
            )


def in_classes(data: Dataset, loss: Loss, outputs: tuple[int, ...] | None = None) -> Dataset:
    """The data with one column of classes as the loss takes them: one-hot rows for the cross-entropy, -1 and +1 for the logistic loss.

    Classes are those with names, or else the whole numbers, from 0 on, that a column holds; -1 and +1 are two. `outputs` of a module for
    one sample decide for named classes. Other targets, and those of streams, as they are.
    """
    if isinstance(data, Stream):
        return data
    which, signed = loss.at_finite_logits().name, data.y.shape[1:] == (1,)
    if not data.classes:
        return _counted(data, which) if signed and (outputs is None or which == "logistic") else data
    count = len(data.classes)
    if outputs is None:
        wanted = {"cross_entropy": (count,), "logistic": (1,)}.get(which)
    else:
        wanted = outputs if outputs in ((count,), (1,)) else None
    if count != 2 or wanted in (None, tuple(data.y.shape[1:])) or data.y.ndim != 2:
        return data
    change = (lambda y: rows((y[:, 0] > 0).long(), 2)) if signed else (lambda y: y[:, 1:] - y[:, :1])
    return replace(data, **_targets_of(data, change))


def _counted(data: Dataset, which: str) -> Dataset:
    """Whole numbers of a column as classes of the losses that take classes, named by these numbers"""
    found = torch.cat(list(_targets_of(data, lambda y: y[:, 0]).values())).unique()
    whole, signs = bool((found == found.round()).all()), found.tolist() == [-1, 1]
    fits = whole and (signs or bool((found >= 0).all())) and len(found) > 1
    if not fits or not (which == "cross_entropy" or (which == "logistic" and len(found) == 2 and not signs)):
        return data
    made = _targets_of(data, lambda y: (y == found).long().argmax(1))
    encode = as_signs if which == "logistic" else lambda index: rows(index, len(found))
    names = tuple(str(int(label)) for label in found)
    return replace(data, classes=names, **{name: encode(index) for name, index in made.items()})


def _targets_of(data: Dataset, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(y) for name in ("y", "y_test") if (y := getattr(data, name)) is not None}


def with_classes(data: Dataset, outputs: tuple[int, ...], loss: Loss) -> Dataset:
    """The data with targets of the shape (P, *outputs), the outputs of a module for one sample.

    For the cross-entropy classes 0..C-1 of each position, y (P, *outputs[:-1]), or (P, 1) without positions, become one-hot rows. Negative
    ones (torch's ignore_index is -100) mark positions that are not counted: their rows are zeros. ValueError for other shapes and
    labels, MemoryError for rows that do not fit.
    """
    given = {name: y for name in ("y", "y_test") if (y := getattr(data, name)) is not None}
    fitting = {name: _like_outputs(name, y, outputs, loss) for name, y in given.items()}
    return data if all(fitting[name] is y for name, y in given.items()) else replace(data, **fitting)


def _like_outputs(name: str, y: Tensor, outputs: tuple[int, ...], loss: Loss) -> Tensor:
    shape = tuple(y.shape[1:])
    if shape == outputs:
        return y
    of_classes = shape in (outputs[:-1], (*outputs[:-1], 1))
    by_class = loss.at_finite_logits().name == "cross_entropy"
    if not (of_classes and by_class):
        hint = "; take the loss 'cross_entropy' if they are classes" if of_classes else ""
        hint = hint or f"; or give classes, of shape {outputs[:-1] or (1,)}" * by_class
        raise ValueError(
            f"the network's outputs and {name} must have the same shape: received {outputs} and {shape} for one sample{hint}"
        )
    return _one_hot(name, y.reshape(len(y), *outputs[:-1]), outputs[-1])


def _one_hot(name: str, labels: Tensor, classes: int) -> Tensor:
    """(P, .., C) of labels (P, ..)"""
    for wrong, why in (
        (labels != labels.round(), "classes must be whole numbers, or negative where they are not counted"),
        (labels >= classes, f"the network has {classes} outputs, for the classes 0 to {classes - 1}"),
    ):
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            where = f"row {place[0]}" if len(place) == 1 else f"position {place}"
            raise ValueError(
                f"{name} does not fit the loss 'cross_entropy': received the label {labels[tuple(place)].item():g} at {where}; {why}"
            )
    if bool((labels < 0).all()):
        raise ValueError(f"{name} has no label that is counted: all are negative; give the classes 0 to {classes - 1}")
    checks.memory(
        f"a row of {classes} numbers for each of {labels.numel()} labels in {name}",
        16.0 * labels.numel() * classes,
        "give fewer samples",
    )
    index = labels.long().unsqueeze(-1)
    rows = torch.zeros(*labels.shape, classes, dtype=torch.float64)
    return rows.scatter_(-1, index.clamp(min=0), (index >= 0).double())
