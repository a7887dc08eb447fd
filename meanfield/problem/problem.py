"""What is asked: Problem = Dataset + Network + Scaling + Training + Loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import as_table, of_value
from meanfield.network.architecture import Architecture, architecture, perceptron
from meanfield.network.keys import Key
from meanfield.network.perceptron import Network
from meanfield.network.roles import Role
from meanfield.network.trial import Trial, tried
from meanfield.problem.dataset import Dataset
from meanfield.problem.fitted_data import for_perceptron, in_classes, must_suit_modules, with_classes
from meanfield.problem.losses import Loss, loss
from meanfield.problem.stream import Stream, telling, told
from meanfield.problem.training import Training
from meanfield.scaling.scaling import Scaling, mean_field
from meanfield.scaling.standard import Standard

FEW_OUTPUTS = 16  # of a module on one sample, each of which takes a backward pass of its own


@checked
@dataclass(frozen=True)
class Problem:
    """One learning problem; every solver takes it and answers with a Solution on its time grid.

    ValueError for parts that do not fit each other, and for a network that has no width limit, with the reason.

    Example:
        >>> import meanfield as mf
        >>> problem = mf.Problem(mf.digits(n_train=8, n_test=4), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.1, 20))
        >>> problem.training.steps, problem.loss.name
        (20, 'squared')
    """

    data: Dataset
    """Samples to train on, and others to watch, or a stream of fresh ones; classes of the cross-entropy of a module are kept as one-hot
    rows"""
    network: Network | Architecture | Callable[[int], nn.Module] = field(default_factory=Network)
    """A perceptron of equation 1; or any network: build(n) makes the torch module of width n, or an Architecture of it (equation 79)"""
    scaling: Scaling | Standard = field(default_factory=mean_field)
    """How the output and the learning rates depend on the width; a standard parameterization has one learning rate for all"""
    training: Training = field(default_factory=Training)
    """On the mean loss, recorded at times that are the same for every solver (equation 2)"""
    loss: Loss | str = "squared"
    """Averaged over the training samples, and over their positions if outputs have some"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", loss(self.loss))
        if not isinstance(self.network, Network):
            self._fit_the_data(architecture(self.network))
            self._must_train_something()
            must_suit_modules(self.data)
            if self.trial:
                self._take_classes(self.trial.outputs)
                object.__setattr__(self, "data", with_classes(self.data, self.trial.outputs, self.loss_function))
        else:
            self._take_classes()
        if isinstance(self.data, Stream):
            self._must_suit_a_stream()
        else:
            self.training.batches(self.data.samples)
        self.loss_function.fits(self.data.y, *([] if self.data.y_test is None else [self.data.y_test]))
        if isinstance(self.network, Network):
            object.__setattr__(self, "data", for_perceptron(self.data, self.loss_function))

    def _take_classes(self, outputs: tuple[int, ...] | None = None) -> None:
        object.__setattr__(self, "data", in_classes(self.data, self.loss_function, outputs))

    def __repr__(self) -> str:
        return f"Problem({', '.join(f'{name}={text}' for name, text in self._told().items())})"

    def _repr_html_(self) -> str:
        return as_table("Problem", self._told())

    def _told(self) -> dict[str, str]:
        return {f.name: of_value(getattr(self, f.name)) for f in fields(self)}

    def _fit_the_data(self, network: Architecture) -> None:
        """A perceptron with settings by layer is made for the data's inputs and outputs"""
        if network.perceptron is not None:
            self._take_classes()
            object.__setattr__(self, "data", for_perceptron(self.data, self.loss_function))
        object.__setattr__(self, "network", network.sized(self.data.inputs, self.data.outputs))

    def _must_train_something(self) -> None:
        network, training = self.architecture, self.training
        most = max((network.decay_of(p) for p in network.description if network.rate_of(p)), default=0.0)
        if (
            training.weight_decay
            and (shrinks := max(training.rates.tolist(), default=0.0) * training.weight_decay * most) >= 1
        ):
            raise ValueError(
                f"learning_rate * weight_decay * decay must be below 1: received {shrinks:g} with a decay of {most:g} times "
                f"{training.weight_decay:g}; give smaller multiples"
            )
        if not any(map(network.rate_of, network.description)):
            raise ValueError(
                f"frozen={network.frozen} leaves nothing of {network.name!r} to train: leave out what is to learn; kernels at the start "
                "are mf.nngp_and_ntk's"
            )

    def _must_suit_a_stream(self) -> None:
        if self.training.batch_size is not None:
            raise ValueError(
                f"batch_size={self.training.batch_size} divides samples that come again: a stream has its own, mf.stream(.., batch=..); "
                "leave batch_size out"
            )
        if self.training.optimiser == "gradient_flow":
            raise ValueError(
                "a stream gives fresh samples to each step, and gradient_flow has none: take optimiser='gradient_descent' with a small "
                "learning_rate"
            )
        if isinstance(self.scaling, Scaling) and self.scaling.frozen != "none":
            raise ValueError(
                f"the scaling {self.scaling.name!r} keeps outputs as they start at known samples, and those of a stream are not known: "
                "take mf.mean_field(gamma0)"
            )

    @property
    def batch(self) -> int | None:
        """B, samples of a step, fresh ones of a stream; None for all"""
        return self.data.batch if isinstance(self.data, Stream) else self.training.batch_size

    def batches(self, first: int = 0) -> Iterator[Tensor | Dataset | None]:
        """Of each step from `first` on the training samples of its batch (B,), None for all, or fresh samples themselves (equation 117)"""
        if not isinstance(self.data, Stream):
            return self.training.batches(self.data.samples, first)
        self.data.must_be_known()
        first = checks.integer("first", first, 0)
        return (self._fresh(self.data, step) for step in range(first, self.training.steps))

    def _fresh(self, stream: Stream, step: int) -> Dataset:
        return self._taken(stream.fresh(step), stream.name, f"step {step}")

    def _taken(self, found: Dataset, name: str, when: str) -> Dataset:
        """Samples of a stream as the network takes them"""
        with telling(name, when):
            if self.layered is not None:
                found = for_perceptron(found, self.loss_function)
            if not isinstance(self.network, Network):
                must_suit_modules(found)
                found = with_classes(found, tuple(self.data.y.shape[1:]), self.loss_function)
            self.loss_function.check(found.y)
        shapes = [(tuple(d.x.shape[1:]), tuple(d.y.shape[1:]), d.x.is_floating_point()) for d in (found, self.data)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the law of the stream {name!r} gave x and y of the shapes {shapes[0][:2]} in {when} and {shapes[1][:2]} "
                "before, or tokens and real numbers in turn: give samples of one kind"
            )
        return found

    def must_have_its_law(self) -> None:
        """ValueError for a stream without its law, or with one that was given again and gives other watched samples"""
        stream = self.data
        if not isinstance(stream, Stream):
            return
        stream.must_be_known()
        if told(stream.law):  # a file kept it
            return
        again = self._taken(stream.watched_again(), stream.name, "the watched samples")
        if not all(torch.allclose(getattr(again, key), getattr(stream, key)) for key in ("x", "y")):
            raise ValueError(
                f"the law of the stream {stream.name!r} gives other watched samples than those of the solution: received {stream.law!r} "
                f"with the seed {stream.seed}; give the law that it was solved with"
            )

    @property
    def loss_function(self) -> Loss:
        return loss(self.loss)

    @cached_property
    def trial(self) -> Trial | None:
        """What a trial of a module on a few samples tells; None for a perceptron"""
        if isinstance(self.network, Network):
            return None
        # of tokens the largest may be a watched one
        x = self.data.x if self.data.x.is_floating_point() else self.data.all_x
        return tried(self.architecture, x)

    @property
    def in_plane(self) -> Scaling:
        """The scaling as a point of the scaling plane; ValueError for a standard parameterization, which not every solver can take"""
        if isinstance(self.scaling, Scaling):
            return self.scaling
        raise ValueError(
            f"this takes a Scaling, such as mf.mean_field(gamma0): received {self.scaling.name}(widths={self.scaling.widths}), whose limit "
            "is lazy; FiniteWidth, TangentKernelLimit and lazy_prediction take it"
        )

    @property
    def perceptron(self) -> Network:
        """The network of equation 1; ValueError for a module, which not every solver can take"""
        return self.perceptron_for("this")

    def perceptron_for(self, who: str) -> Network:
        """The network of equation 1; ValueError, in the name of who asks, for a module and for settings by layer"""
        if isinstance(self.network, Network):
            return self.network
        if self.layered is None:
            raise ValueError(
                f"{who} takes perceptrons, mf.Network(..): received the module {self.architecture.name!r}; FiniteWidth, CausalDMFT "
                "and TangentKernelLimit take any network"
            )
        raise ValueError(
            f"{who} takes perceptrons without settings by layer, mf.Network(..): received one in an Architecture; FiniteWidth, "
            "CausalDMFT, TangentKernelLimit and, of depth 1, WassersteinFlow take it"
        )

    @property
    def layered(self) -> Network | None:
        """The perceptron, with or without settings by layer; None for a module"""
        return self.network if isinstance(self.network, Network) else self.architecture.perceptron

    @property
    def architecture(self) -> Architecture:
        """The network as a module of any width, a perceptron too"""
        if isinstance(self.network, Network):
            return perceptron(self.network, self.data.inputs, self.data.outputs)
        return architecture(self.network)

    @property
    def is_linear(self) -> bool:
        """Whether the network's limit closes in matrices, without sampling (equations 30 and 87)"""
        if self.trial is None:
            return self.perceptron.is_linear
        drawn = all(self.architecture.std(p) is not None for p in self.architecture.description.having("vector"))
        plain = all(axis.size == 1 for p in self.architecture.description for axis in p.axes if axis.wide)
        return self.trial.linear and drawn and plain

    def keys(self, *kinds: str) -> list[Key]:
        """Of what is recorded of each kind: one for each hidden layer of a perceptron; of a module Phi of what enters each matrix and
        readout, G of what leaves each matrix and input weight
        """
        if isinstance(self.network, Network):
            return self.network.keys(*kinds)
        roles: dict[str, tuple[Role, ...]] = {"Phi": ("hidden", "readout"), "G": ("input", "hidden")}
        every = self.architecture.description
        return [Key(kind, p.key) for kind in kinds for p in every.having(*roles.get(kind, ()))]

    @property
    def gradients_recorded(self) -> bool:
        """Whether snapshots have what is known output by output, G and the tangent kernel: of modules those of few outputs a sample"""
        return self.trial is None or math.prod(self.trial.outputs) <= FEW_OUTPUTS

    @property
    def network_name(self) -> str:
        """For reports"""
        if isinstance(self.network, Network):
            return f"depth {self.network.depth}, {self.network.nonlinearity.name}"
        return self.architecture.name

    @property
    def has_kinks(self) -> bool:
        """Whether phi' jumps somewhere"""
        return bool(self.perceptron.nonlinearity.kinks) if self.trial is None else self.trial.kinks

    def with_steps(self, steps: int) -> Problem:
        """Cut short, or going on"""
        return replace(self, training=self.training.of_length(steps))
