"""Streams: fresh samples in each step, the same ones for every solver, width and resumed run (equation 117)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.seeding import seeded
from meanfield.problem.data_laws import Law, Mixture, Teacher
from meanfield.problem.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Stream(Dataset):
    """A law of samples of which each step sees fresh ones; x and y are samples of it that are watched and never trained on.

    `stream` makes one. Memory does not grow with the steps: samples are drawn when their step comes.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth
        >>> fresh = mf.stream(mf.Teacher(inputs=5), batch=4, watched=8)
        >>> run = FiniteWidth(32)(mf.Problem(fresh, training=mf.Training(0.1, 10)))
        >>> run.f.shape  # of the samples that are watched, which no step trains on
        torch.Size([11, 8, 1])
    """

    law: Law | None = None
    """Teacher, Mixture or a function (count, generator) -> (x, y); None where a file could not keep it"""
    batch: int = 1
    """B, fresh samples a step"""
    seed: int = 0
    """Of all samples"""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.normalise(self, batch=1)
        if self.law is not None:
            _must_be_a_law(self.law)

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, batch={self.batch}, inputs={self.inputs}, outputs={self.outputs}, watched={self.samples})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stream):
            return NotImplemented
        own = (self.law, self.batch, self.seed) == (other.law, other.batch, other.seed)
        return own and bool(super().__eq__(other))

    __hash__ = None  # type: ignore[assignment]

    def fresh(self, step: int) -> Dataset:
        """The B samples of a step, a function of (law, seed, step) alone"""
        step = checks.integer("step", step, 0)
        self.must_be_known()
        assert self.law is not None
        with telling(self.name, f"step {step}"):
            return Dataset(*_drawn(self.law, self.batch, _generator(self.seed, 1, step)), name=f"step {step}")

    def watched_again(self) -> Dataset:
        """The watched samples as the law gives them for the seed"""
        self.must_be_known()
        assert self.law is not None
        with telling(self.name, "the watched samples"):
            return Dataset(*_watched(self.law, self.samples, self.seed))

    @property
    def test_targets(self) -> Tensor:
        """(P_test, .., C); ValueError if there are none"""
        if self.y_test is None:
            raise ValueError(
                f"the stream {self.name!r} has no test samples beside its watched ones, which no step sees: their .loss is the test loss"
            )
        return self.y_test

    def must_be_known(self) -> None:
        """ValueError for a law that a file did not keep"""
        if self.law is None:
            raise ValueError(
                f"the law of the stream {self.name!r} is code of yours, which a file does not keep, so there are no samples to train on: "
                "give it again, replace(problem, data=replace(problem.data, law=..)) with dataclasses.replace"
            )


@checked
def stream(law: Law, batch: int = 1, watched: int = 256, seed: int = 0, name: str | None = None) -> Stream:
    """Fresh samples of a law in every step of a run: one-pass descent (equation 117).

    `law` is mf.Teacher(..), mf.Mixture(..), or a function (count, generator) -> x (count, ..), y (count, ..) that draws from this torch
    generator alone. The data of a problem: f, losses and kernels of its solutions are those of the `watched` samples, which no step sees
    (of a Teacher without its noise), so that losses are test losses. Each solver, width and resumed run sees the same samples.
    ValueError for a law that gives no samples, not as many as asked for, or others for the same generator.

    Args:
        law: Where samples come from
        batch: Fresh samples a step
        watched: Samples on which outputs, losses and kernels are recorded
        seed: Of all samples
        name: In reports; the law's own if left out

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> def law(count, generator):
        ...     x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        ...     return x, x[:, :1].sign()
        >>> mf.stream(law, batch=4, watched=8).y.shape
        torch.Size([8, 1])
    """
    batch, watched = checks.integer("batch", batch, 1), checks.integer("watched", watched, 1)
    seed = checks.seed("seed", seed)
    _must_be_a_law(law)
    told = str(name or getattr(law, "name", None) or getattr(law, "__name__", type(law).__name__))
    with telling(told, "the watched samples"):
        numbers = sum(math.prod(getattr(one, "shape", ())) for one in _drawn(law, 1, _generator(seed, 0)))
        for what, count in (("watched", watched), ("batch", batch)):
            checks.memory(f"{what}={count} samples", 24.0 * count * numbers, "take fewer")
        made = Stream(*_watched(law, watched, seed), name=told, law=law, batch=batch, seed=seed)
    if made.fresh(0) != made.fresh(0):
        raise ValueError(
            f"the law {told!r} gave two different batches for step 0, but samples are a function of the seed and the step alone: draw "
            "from the torch generator that the law is handed, its second argument, and from nothing else, e.g. "
            "torch.randn(count, 3, generator=generator)"
        )
    return made


@contextmanager
def telling(name: str, what: str) -> Iterator[None]:
    """A ValueError about samples says which law gave them, and when: they are none that the user gave"""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the law of the stream {name!r} failed at {what}: {error}") from error


def beside(data: Dataset) -> str:
    """A stream in words, empty for samples that come again"""
    return f"the stream {data.name!r}, of which each step sees fresh samples" if isinstance(data, Stream) else ""


def must_come_again(data: Dataset, who: str) -> None:
    """ValueError for a stream, which `who` cannot take"""
    if found := beside(data):
        raise ValueError(
            f"{who} takes samples that are there in every step: received {found}; give a Dataset, or take WassersteinFlow, CausalDMFT, "
            "RevealedWidth or FiniteWidth"
        )


def laws_must_be_known(one: Dataset, other: Dataset) -> None:
    """ValueError for streams of which all is the same but for a law that a file did not keep: nothing tells whether they are one"""
    if not (isinstance(one, Stream) and isinstance(other, Stream)) or (one.law is None) == (other.law is None):
        return
    if replace(one, law=None) == replace(other, law=None):
        raise ValueError(
            f"the law of the stream {one.name!r} is code of yours, which a file does not keep, so that nothing tells whether it is the "
            "same for all that is compared: give it again to what was loaded, replace(solution, problem=replace(problem, "
            "data=replace(problem.data, law=..))) with problem = solution.problem and dataclasses.replace"
        )


def told(law: Law | None) -> dict[str, Any]:
    """What a file keeps of a law: nothing of the user's own code"""
    if not isinstance(law, tuple(_KEPT.values())):
        return {}
    named: dict[str, Any] = {f.name: getattr(law, f.name) for f in fields(law)}  # type: ignore[arg-type]
    return {"kind": type(law).__name__} | named if isinstance(named.get("link", ""), str) else {}


def recalled(asked: Mapping[str, Any]) -> Law | None:
    """The inverse of `told`"""
    named = dict(asked)
    kind = named.pop("kind", None)
    return None if kind is None else _KEPT[kind](**named)


_KEPT: dict[str, Any] = {"Teacher": Teacher, "Mixture": Mixture}


def _must_be_a_law(law: Any) -> None:
    """ValueError for what cannot be called as law(count, generator)"""
    right = "a function (count, generator) -> (x, y), such as mf.Teacher(inputs=10)"
    if not callable(law):
        raise ValueError(f"law must be {right}: received {checks.shown(law)}")
    if isinstance(law, type):
        raise ValueError(
            f"law must be {right}: received the class {law.__name__}; give one made of it, {law.__name__}(..)"
        )
    try:
        signature = inspect.signature(law)
    except ValueError:  # some functions written in C tell none
        return
    try:
        signature.bind(1, torch.Generator())
    except TypeError as error:
        raise ValueError(f"law must be {right}: received one with the arguments {signature} ({error})") from error


def _watched(law: Law, count: int, seed: int) -> tuple[Tensor, Tensor]:
    return _drawn(law.quiet if isinstance(law, Teacher) else law, count, _generator(seed, 0))


def _drawn(law: Law, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    found = law(count, generator)
    if not (isinstance(found, tuple | list) and len(found) == 2):
        raise ValueError(f"the law must give a pair x, y: received {type(found).__name__}")
    x, y = found
    if any(not hasattr(t, "__len__") or len(t) != count for t in (x, y)):
        raise ValueError(
            f"the law must give as many samples as it is asked for, {count}: received x and y of shapes "
            f"{tuple(getattr(x, 'shape', ()))} and {tuple(getattr(y, 'shape', ()))}"
        )
    return x, y


def _generator(seed: int, *where: int) -> torch.Generator:
    return torch.Generator().manual_seed(seeded(seed, *where))
