"""Architecture: a network as `build(width) -> torch.nn.Module`, with what its builder cannot say (equations 79 and 80)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar
from weakref import WeakValueDictionary

from torch import Tensor, nn

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.network.describing import describe
from meanfield.network.keys import parts
from meanfield.network.making import Build
from meanfield.network.recording import Recorded
from meanfield.network.roles import Description, Parameter

_TAKEN = {"f", "f_test", "loss", "test_loss", "tangent_kernel", "tangent_kernels", "tangent", "measure"}
Patterned = tuple[tuple[str, float], ...]
T = TypeVar("T")
_MADE: WeakValueDictionary[int, Architecture] = WeakValueDictionary()  # by identity


@checked
@dataclass(frozen=True)
class Architecture:
    """A network of any width. Patterns are names of parameters, with * and ? as in names of files, e.g. "blocks.*.up.weight"; of
    several that fit, the first counts.

    ValueError, when it is made, for a module that has no width limit and for a pattern that fits no parameter.
    """

    build: Callable[[int], nn.Module] = field(compare=False)
    """A function or class: build(n) is a torch.nn.Module of width n."""
    weight_std: float | Mapping[str, float] | Patterned = 1.0
    """Of all input, hidden and readout weights, as a multiple of equation 79's; or {pattern: multiple}, 1 elsewhere. A bias or another
    vector that a pattern names starts as N(0, 1) times this rather than as its author starts it."""
    rate: Mapping[str, float] | Patterned = ()
    """{pattern: multiple} of the learning rates of equation 80."""
    frozen: Iterable[str] = ()
    """Patterns of parameters that stay as they start."""
    name: str = ""
    """For tables and files; the builder's own, unless it is given."""
    record: Mapping[str, str | Callable[[nn.Module, Tensor], Tensor]] | Recorded = field(default=(), compare=False)
    """{name: what} that snapshots keep beside the kernels: the path of a submodule, e.g. "blocks.0.attention", for its output (that of its
    last call), or a function of (module, x). What has an axis of neurons is kept neuron by neuron, as preactivations by that name."""
    averaged: Iterable[str] = ()
    """Patterns of the names in Phi[..] and G[..] whose kernels are those of averages over the positions (and calls) of a sample, which are
    much smaller (equation 88b)."""
    records: tuple[str, ...] = field(init=False, repr=False)
    """The names of `record`, which files keep."""
    description: Description = field(init=False, repr=False)
    """Parameters and their roles, found when it is made."""

    def __post_init__(self) -> None:
        found = describe(self.build)
        object.__setattr__(self, "description", found)
        std = self.weight_std
        several = isinstance(std, (Mapping, tuple))
        object.__setattr__(
            self, "weight_std", _pairs("weight_std", std, found) if several else checks.deviation("weight_std", std)
        )
        object.__setattr__(self, "rate", _pairs("rate", self.rate, found))
        object.__setattr__(self, "frozen", tuple(_fitting("frozen", pattern, found) for pattern in self.frozen))
        keys = [parameter.key for parameter in found]
        object.__setattr__(
            self,
            "averaged",
            tuple(_one_of("averaged", pattern, keys, "layers, as Phi[..] and G[..] do") for pattern in self.averaged),
        )
        record = self.record.items() if isinstance(self.record, Mapping) else self.record
        object.__setattr__(self, "record", tuple((_word(name), what) for name, what in record))
        object.__setattr__(self, "records", tuple(name for name, _ in self.recordings))
        object.__setattr__(self, "name", self.name or getattr(self.build, "__name__", type(self.build).__name__))
        _MADE[id(self)] = self

    @property
    def recordings(self) -> Recorded:
        """`record` as pairs"""
        return tuple(self.record.items() if isinstance(self.record, Mapping) else self.record)

    @property
    def averages(self) -> frozenset[str]:
        """Names of the parameters whose kernels are those of averages over positions"""
        patterns = tuple(self.averaged)
        return frozenset(p.name for p in self.description if any(fnmatchcase(p.key, pattern) for pattern in patterns))

    def std(self, parameter: Parameter) -> float | None:
        """weight_std of a parameter; None for one that starts as its author starts it"""
        drawn = parameter.role in ("input", "hidden", "readout")
        if isinstance(self.weight_std, tuple):
            return _first(self.weight_std, parameter, 1.0 if drawn else None)
        return float(self.weight_std) if drawn and not isinstance(self.weight_std, Mapping) else None

    def rate_of(self, parameter: Parameter) -> float:
        """What multiplies the learning rate of equation 80; 0 for a frozen parameter"""
        if any(fnmatchcase(parameter.name, pattern) for pattern in self.frozen):
            return 0.0
        return _first(self.rate if isinstance(self.rate, tuple) else (), parameter, 1.0)


def made() -> list[Architecture]:
    """Those of this process that are in use"""
    return list(_MADE.values())


def architecture(network: Build | Architecture) -> Architecture:
    """An architecture as it is, or that of a builder alone"""
    return network if isinstance(network, Architecture) else Architecture(network)


def _first(pairs: Patterned, parameter: Parameter, otherwise: T) -> T | float:
    return next((value for pattern, value in pairs if fnmatchcase(parameter.name, pattern)), otherwise)


def _pairs(what: str, given: object, description: Description) -> Patterned:
    if not isinstance(given, (Mapping, tuple)):
        raise ValueError(f"{what} must be a mapping of patterns to numbers: received {checks.shown(given)}")
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    if what == "rate" and (
        still := [pattern for pattern, value in pairs if value == 0 and isinstance(value, (int, float))]
    ):
        raise ValueError(
            f"rate[{still[0]!r}] must be positive: received 0; parameters that stay as they start are frozen=({still[0]!r},)"
        )
    number = checks.deviation if what == "weight_std" else checks.positive
    return tuple((_fitting(what, p, description), number(f"{what}[{p!r}]", value)) for p, value in pairs)


def _word(name: str) -> str:
    """A name by which something is recorded, and kept in files; ValueError for one that is no word"""
    if not name.isidentifier():
        raise ValueError(f"record must have words as names: received {name!r}")
    if name in _TAKEN or parts(name)[1] is not None:
        raise ValueError(
            f"record must have names that nothing else has: received {name!r}, an observable; give e.g. 'my_{name}'"
        )
    return name


def _fitting(what: str, pattern: object, description: Description) -> str:
    """A pattern that fits some parameter"""
    return _one_of(what, pattern, [parameter.name for parameter in description], "parameters")


def _one_of(what: str, pattern: object, names: Iterable[str], kind: str) -> str:
    if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in names):
        raise ValueError(f"{what} must name {kind}: received {checks.shown(pattern)}; known: {', '.join(names)}")
    return pattern
