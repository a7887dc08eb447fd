"""Architecture: a network as `build(width) -> torch.nn.Module`, with what its builder cannot say (equations 79, 80, 120 and 121)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from weakref import WeakValueDictionary

from torch import Tensor, nn

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief
from meanfield.network.describing import describe
from meanfield.network.keys import parts
from meanfield.network.laws import NORMAL, ZERO, Law, law
from meanfield.network.making import Build
from meanfield.network.module import built, made_of
from meanfield.network.patterns import Patterned, first, fits, fitting, numbers, one_of, pairs_of
from meanfield.network.perceptron import Network
from meanfield.network.recording import Recorded
from meanfield.network.roles import Description, Parameter

_TAKEN = {"f", "f_test", "loss", "test_loss", "tangent_kernel", "tangent_kernels", "tangent", "measure"}
Named = tuple[tuple[str, str], ...]
_MADE: WeakValueDictionary[int, Architecture] = WeakValueDictionary()  # by identity


@checked
@dataclass(frozen=True)
class Architecture:
    """A network of any width. Patterns are names of parameters, with * and ? as in names of files, e.g. "blocks.*.up.weight", or of
    layers, for all that they own, e.g. "blocks.*.up"; of several that fit, the first counts.

    ValueError, when it is made, for a module that has no width limit and for a pattern that fits no parameter.

    Example:
        >>> from torch import nn
        >>> import meanfield as mf
        >>> def build(n):
        ...     return nn.Sequential(nn.Linear(64, n), nn.Tanh(), nn.Linear(n, 1))
        >>> slow = mf.Architecture(build, rate={"0.*": 0.1}, name="slow")  # the first layer learns at a tenth of the rate
        >>> [p.name for p in slow.description]
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    build: Callable[[int], nn.Module] | Network = field(compare=False)
    """A function or class: build(n) is a torch.nn.Module of width n. Or a perceptron, whose layers are input, hidden.1 (W^1 of equation 1),
    hidden.2, .. and readout."""
    weight_std: float | Mapping[str, float] | Patterned = 1.0
    """Of all input, hidden and readout weights, as a multiple of equation 79's, of a perceptron's own; or {pattern: multiple}, 1
    elsewhere. A bias or another vector that a pattern names starts as N(0, 1) times this rather than as its author starts it. What has 0
    starts at 0 and learns as with 1: readouts (f_0 = 0) and biases, not input or hidden weights."""
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
    decay: Mapping[str, float] | Patterned = ()
    """{pattern: multiple} of the weight decay; 0 for what does not decay (equation 120)."""
    initial_law: str | Mapping[str, str] | Named = "normal"
    """Of the numbers of variance 1 that all drawn parameters start with, or {pattern: law}, normal elsewhere: normal, uniform, rademacher,
    truncated_normal (at two standard deviations), laplace or student_t(df) with df > 2 (equation 121)."""
    records: tuple[str, ...] = field(init=False, repr=False)
    """The names of `record`, which files keep."""
    description: Description = field(init=False, repr=False)
    """Parameters and their roles, found when it is made."""

    __repr__ = brief

    def __post_init__(self) -> None:
        if isinstance(self.build, Network):
            object.__setattr__(self, "build", made_of(self.build, 1, 1))  # of which a problem or x tells the sizes
        found = describe(self.builder)
        object.__setattr__(self, "description", found)
        std, keys = self.weight_std, [parameter.key for parameter in found]
        several = isinstance(std, (Mapping, tuple))
        own = {
            "weight_std": numbers("weight_std", std, found) if several else checks.deviation("weight_std", std),
            "rate": numbers("rate", self.rate, found),
            "decay": numbers("decay", self.decay, found),
            "initial_law": self._laws(found),
            "frozen": tuple(fitting("frozen", pattern, found) for pattern in self.frozen),
            "averaged": tuple(one_of("averaged", p, keys, "layers, as Phi[..] and G[..] do") for p in self.averaged),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)
        record = self.record.items() if isinstance(self.record, Mapping) else self.record
        object.__setattr__(self, "record", tuple((_word(name), what) for name, what in record))
        object.__setattr__(self, "records", tuple(name for name, _ in self.recordings))
        usual = "perceptron" if self.perceptron else getattr(self.build, "__name__", type(self.build).__name__)
        object.__setattr__(self, "name", self.name or usual)
        self._must_start_somewhere()
        _MADE[id(self)] = self

    def _laws(self, found: Description) -> str | Named:
        """By name"""
        given = self.initial_law
        if isinstance(given, str):
            return law("initial_law", given).name
        return tuple((p, law(f"initial_law[{p!r}]", own).name) for p, own in pairs_of("initial_law", given, found))

    def _must_start_somewhere(self) -> None:
        """ValueError for zeros that do not learn, and for a law of what is not drawn"""
        for p in self.description:
            if p.role in ("input", "hidden") and self._multiple(p) == 0:
                raise ValueError(
                    f"weight_std of {p.name!r} is 0, and {p.role} weights of 0 "
                    + ("tell no sample from another" if p.role == "input" else "pass on neither features nor gradients")
                    + ": received 0; give a positive one. Readouts and biases may start at 0"
                )
        for pattern, _ in self.initial_law if isinstance(self.initial_law, tuple) else ():
            named = [p for p in self.description if fits(pattern, p)]
            if all(self.law_of(p) is None for p in named):
                raise ValueError(
                    f"initial_law[{pattern!r}] names what starts as its author starts it: received {named[0].name!r}; give its size, too, "
                    f"weight_std={{{pattern!r}: 0.1}}"
                )

    @property
    def builder(self) -> Callable[[int], nn.Module]:
        """`build` as a function of the width"""
        assert not isinstance(self.build, Network)
        return self.build

    @property
    def perceptron(self) -> Network | None:
        """The perceptron of which this gives settings by layer; None for a module"""
        return built(self.builder)

    def sized(self, inputs: int, outputs: int | None = None) -> Architecture:
        """Of a perceptron for data of so many inputs and outputs, as many as before if left out; a module as it is"""
        network = self.perceptron
        if network is None:
            return self
        before: dict[str, int] = self.builder.keywords  # type: ignore[attr-defined]
        outputs = before["outputs"] if outputs is None else outputs
        if (before["inputs"], before["outputs"]) == (inputs, outputs):
            return self
        found = replace(self, build=made_of(network, inputs, outputs))
        object.__setattr__(found, "records", self.records)  # of a file's, which does not keep functions
        return found

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
        """What weight_std makes of a parameter's multiplier (equation 79); None for one that starts as its author starts it"""
        own, multiple = self._own_std(parameter), self._multiple(parameter)
        return None if multiple is None else (own or 1.0) * (multiple or 1.0)

    def law_of(self, parameter: Parameter) -> Law | None:
        """Of the numbers that a parameter starts with; None for one that starts as its author starts it"""
        multiple = self._multiple(parameter)
        if not multiple:
            return None if multiple is None else ZERO
        given = self.initial_law
        return Law(first(given, parameter, NORMAL.name) if isinstance(given, tuple) else str(given))

    def decay_of(self, parameter: Parameter) -> float:
        """What multiplies the weight decay"""
        return first(self.decay if isinstance(self.decay, tuple) else (), parameter, 1.0)

    def rate_of(self, parameter: Parameter) -> float:
        """What multiplies the learning rate of equation 80; 0 for a frozen parameter"""
        if any(fits(pattern, parameter) for pattern in self.frozen):
            return 0.0
        return first(self.rate if isinstance(self.rate, tuple) else (), parameter, 1.0)

    def _own_std(self, parameter: Parameter) -> float | None:
        """Without a word of weight_std"""
        if network := self.perceptron:
            return network.bias_std if parameter.name.endswith("bias") else network.weight_std
        return 1.0 if parameter.role in ("input", "hidden", "readout") else None

    def _multiple(self, parameter: Parameter) -> float | None:
        """weight_std as it was given; None for a parameter that is not drawn"""
        usual = None if self._own_std(parameter) is None else 1.0
        if isinstance(self.weight_std, tuple):
            return first(self.weight_std, parameter, usual)
        weighs = parameter.role in ("input", "hidden", "readout") and not isinstance(self.weight_std, Mapping)
        return float(self.weight_std) if weighs else usual  # type: ignore[arg-type]


def made() -> list[Architecture]:
    """Those of this process that are in use"""
    return list(_MADE.values())


def architecture(network: Build | Architecture) -> Architecture:
    """An architecture as it is, or that of a builder alone"""
    return network if isinstance(network, Architecture) else Architecture(network)


def perceptron(network: Network, inputs: int, outputs: int) -> Architecture:
    """The architecture of a Network for data of so many inputs and outputs"""
    return Architecture(made_of(network, inputs, outputs))


def _word(name: str) -> str:
    """A name by which something is recorded, and kept in files; ValueError for one that is no word"""
    if not name.isidentifier():
        raise ValueError(f"record must have words as names: received {name!r}")
    if name in _TAKEN or parts(name)[1] is not None:
        raise ValueError(
            f"record must have names that nothing else has: received {name!r}, an observable; give e.g. 'my_{name}'"
        )
    return name
