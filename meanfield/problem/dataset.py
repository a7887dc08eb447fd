"""Dataset: samples and targets of any shape, to train on and to watch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.short import html
from meanfield.problem.classes import encoded, named
from meanfield.problem.transformation import Transformation

_ALIKE = (  # what must agree along which axis
    ("x", "y", "rows", 0),
    ("x", "x_test", "columns", 1),
    ("x_test", "y_test", "rows", 0),
    ("y", "y_test", "columns", 1),
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training samples with their targets, and optionally test samples; copies on the CPU, float64 but for inputs that are integers.

    Lists, numpy arrays, torch tensors and data frames will do. ValueError, with the place, for entries that are masked, missing,
    infinite or no numbers, for whole numbers beyond 2^53 that float64 cannot hold, and for empty or mismatched arrays.

    Example:
        >>> import meanfield as mf
        >>> mf.Dataset(x=[[0.0, 1.0], [1.0, 0.0]], y=[1.0, -1.0], name="mine")
        Dataset('mine', samples=2, inputs=2, outputs=1, test=0)
    """

    x: Tensor
    """(P, D) training samples, or (P, ..) of any shape for a module; an array of integers holds tokens and stays integer (int64)"""
    y: Tensor
    """(P, C) their targets, (P, positions, .., C) for a module with outputs of that shape; (P,) is taken as (P, 1)"""
    x_test: Tensor | None = None
    """(P_test, D) samples that are watched, not trained on; of the shape of x but for their number"""
    y_test: Tensor | None = None
    """(P_test, C) their targets, for the test loss"""
    name: str = "data"
    """Of the data, in reports and pictures"""
    classes: tuple[str, ...] = ()
    """Names of the classes, if targets are some: of the columns of one-hot rows, or of -1 and +1 in one column. y may then be one column
    of whole numbers 0..C-1 as well, and becomes -1 and +1 for two classes, one-hot rows for more. Kept for pictures and files"""
    transformation: Transformation | None = None
    """What x and x_test went through before they came here (`from_file` and its like), for new points: see `transform`"""

    _repr_html_ = html

    def __post_init__(self) -> None:
        given = {key: getattr(self, key) for key in ("x", "y", "x_test", "y_test")}
        if given["x_test"] is None and given["y_test"] is not None:
            raise ValueError("y_test was given without x_test: give both, or x_test alone")
        for key, value in given.items():
            if value is not None or key in ("x", "y"):
                object.__setattr__(self, key, checks.samples(key, value, targets=key.startswith("y")))
        for a, b, what, axis in _ALIKE:
            one, other = getattr(self, a), getattr(self, b)
            if one is not None and other is not None:
                _same_sizes(a, one, b, other, what, axis)
                same_labels(a, given[a], b, given[b], what, axis)
        self._must_be_a_transformation()
        if self.x_test is not None and self.x_test.dtype != self.x.dtype:  # integers beside real numbers are no tokens
            for key in ("x", "x_test"):
                object.__setattr__(self, key, getattr(self, key).double())
        if not isinstance(self.name, str):
            raise ValueError(f"name must be text: received {self.name!r}; give e.g. name='data'")
        object.__setattr__(self, "classes", named(self.classes))
        for key in ("y", "y_test"):
            if self.classes and getattr(self, key) is not None:
                object.__setattr__(self, key, encoded(key, getattr(self, key), self.classes))

    def __repr__(self) -> str:
        classes = f", classes={len(self.classes)}" if self.classes else ""
        return (
            f"Dataset({self.name!r}, samples={self.samples}, inputs={self.inputs}, outputs={self.outputs}, "
            f"test={self.points - self.samples}{classes})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dataset):
            return NotImplemented
        about = [(data.name, data.classes, data.transformation) for data in (self, other)]
        return about[0] == about[1] and all(
            (a is None and b is None) or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
            for a, b in ((getattr(self, k), getattr(other, k)) for k in ("x", "y", "x_test", "y_test"))
        )

    def transform(self, x: Any) -> Tensor:
        """(P, ..) new points, treated as x was before it came here; as they are if nothing was done. Real numbers, in float64.

        ValueError for samples of another shape.
        """
        if self.transformation is not None:
            return self.transformation(x)
        found = checks.samples("x", x).double()
        _same_sizes("the new x", found, "x", self.x, "columns", 1)
        return found

    def _must_be_a_transformation(self) -> None:
        done = self.transformation
        if done is None:
            return
        if not isinstance(done, Transformation):
            raise ValueError(f"transformation must be a Transformation or None: received {checks.shown(done)}")
        if done.shift.shape != self.x.shape[1:]:
            raise ValueError(
                f"transformation is of samples of the shape {tuple(done.shift.shape)}: received x with samples {tuple(self.x.shape[1:])}; "
                "give transformation=None with other inputs"
            )
        if done.target_shift is not None and done.target_shift.shape != self.y.shape[1:]:
            raise ValueError(
                f"transformation is of targets of the shape {tuple(done.target_shift.shape)}: received y with targets "
                f"{tuple(self.y.shape[1:])}; give transformation=None with other targets"
            )

    @property
    def samples(self) -> int:
        """P"""
        return self.x.shape[0]

    @property
    def points(self) -> int:
        """P + P_test, the training and the test samples"""
        return self.samples + (0 if self.x_test is None else len(self.x_test))

    @property
    def test_targets(self) -> Tensor:
        """(P_test, .., C); ValueError if there are none"""
        return for_tests(self.y_test, "targets", "x_test and y_test")

    @property
    def all_x(self) -> Tensor:
        """(P + P_test, ..) the training samples, then the test samples"""
        return self.x if self.x_test is None else torch.cat([self.x, self.x_test])

    @property
    def inputs(self) -> int:
        """D, the numbers of one sample"""
        return math.prod(self.x.shape[1:])

    @property
    def outputs(self) -> int:
        """C, the outputs of one sample at all its positions"""
        return math.prod(self.y.shape[1:])


def for_tests(value: Tensor | None, what: str = "samples", give: str = "x_test") -> Tensor:
    """What a problem has of test samples; ValueError if it has none"""
    if value is None:
        raise ValueError(f"the problem has no test {what}: give the Dataset {give}")
    return value


def split(
    x: Tensor,
    y: Tensor,
    n_test: int,
    name: str,
    classes: tuple[str, ...] = (),
    transformation: Transformation | None = None,
) -> Dataset:
    """The last `n_test` rows as test samples, the others for training"""
    n = len(x) - n_test
    tests = (x[n:], y[n:]) if n_test else (None, None)
    return Dataset(x[:n], y[:n], *tests, name, classes, transformation)


def _same_sizes(a: str, one: Tensor, b: str, other: Tensor, what: str, axis: int) -> None:
    """ValueError if two arrays have other numbers of rows, or samples of other shapes"""
    sizes = [tuple(t.shape[1:] if axis else t.shape[:1]) for t in (one, other)]
    if sizes[0] == sizes[1]:
        return
    if all(len(size) == 1 for size in sizes):
        raise ValueError(f"{a} and {b} must have the same number of {what}: received {sizes[0][0]} and {sizes[1][0]}")
    raise ValueError(f"{a} and {b} must have samples of the same shape: received {sizes[0]} and {sizes[1]}")


def same_labels(a: str, one: Any, b: str, other: Any, what: str, axis: int) -> None:
    """ValueError if data frames name their rows (or columns) differently: they are matched by position."""
    labels = [getattr(frame, ("index", "columns")[axis], ()) for frame in (one, other)]
    if any(callable(found) for found in labels):  # a list has a method of that name
        return
    for position, (first, second) in enumerate(zip(*labels, strict=False)):
        if first != second:
            raise ValueError(
                f"{a} and {b} name their {what} differently: received {first!r} and {second!r} at position {position}; put them into the "
                "same order, or give .to_numpy() if they belong together by position"
            )
