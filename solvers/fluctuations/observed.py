"""What is observed of a weighted network at a step: outputs, losses and kernels, as functions of the weights of its neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.network.keys import parts
from meanfield.problem.problem import Problem
from meanfield.solution.two_time import tangent_of
from solvers.dmft.perceptron import LimitPass
from solvers.fluctuations.weighted import WeightedNetwork


@dataclass(frozen=True)
class Observables:
    """names: of `mf.observe`, each at some steps. points: rows of [x; x_test], None for all: outputs and kernels at these alone."""

    problem: Problem
    names: tuple[str, ...]
    points: tuple[int, ...] | None

    def __post_init__(self) -> None:
        for name in self.names:
            checks.lookup("observable", name, self.shapes())
        for name, test in (("f_test", self.problem.data.x_test), ("test_loss", self.problem.data.y_test)):
            if name in self.names and test is None:
                raise ValueError(f"{name!r} needs test samples with targets where there are losses: the data has none")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that can be observed, at one step"""
        p, c, tests = self.problem.data.samples, self.problem.data.outputs, self.problem.data.points - self.problem.data.samples
        found: dict[str, tuple[int, ...]] = {"f": (p, c), "f_test": (tests, c), "loss": (), "test_loss": ()}
        found |= {key: (p, p) for key in self.problem.keys("Phi")}
        return found | {key: (p * c, p * c) for key in self.problem.keys("G")} | {"tangent_kernel": (p, c, p, c)}

    def mask(self, name: str) -> Tensor:
        """Of a name's shape, which of its numbers are asked for; of kernels, which are symmetric, one half"""
        shape, (p, c) = self.shapes()[name], (self.problem.data.samples, self.problem.data.outputs)
        asked = torch.ones(self.problem.data.points, dtype=torch.bool)
        if self.points is not None:
            asked[:] = False
            asked[list(self.points)] = True
        if not shape:
            return torch.ones((), dtype=torch.bool)
        if name in ("f", "f_test"):
            return (asked[:p] if name == "f" else asked[p:])[:, None].expand(shape)
        rows = asked[:p] if shape == (p, p) and parts_of(name) == "Phi" else asked[:p].repeat_interleave(c)
        upper = torch.ones(len(rows), len(rows), dtype=torch.bool).triu()
        return (rows[:, None] & rows & upper).reshape(shape)

    def index(self, steps: int) -> dict[str, Tensor]:
        """(R, ..) by name, where each number lies among those of all steps; the two halves of a kernel at the same places"""
        masks = {name: self.mask(name) for name in self.names}
        each, found, start = sum(int(m.sum()) for m in masks.values()), {}, 0
        for name, mask in masks.items():
            own = torch.full(mask.shape, -1)
            own[mask] = start + torch.arange(int(mask.sum()))
            if len(mask.shape) > 1 and name not in ("f", "f_test"):
                side = round(mask.numel() ** 0.5)
                square = own.reshape(side, side)
                own = torch.maximum(square, square.T).reshape(mask.shape)
            start += int(mask.sum())
            found[name] = torch.stack([torch.where(own < 0, -1, own + each * r) for r in range(steps)])
        return found

    def __call__(self, network: WeightedNetwork, passed: LimitPass) -> Tensor:
        """(q,) the numbers asked for, of a pass over all points"""
        found = dict(self._all(network, passed))
        return torch.cat([found[name]()[self.mask(name)].reshape(-1) for name in self.names])

    def _all(self, network: WeightedNetwork, passed: LimitPass) -> Mapping[str, Callable[[], Tensor]]:
        problem, p = self.problem, self.problem.data.samples
        weights, keys = network.weights, problem.keys

        def loss(f: Tensor, y: Tensor | None) -> Tensor:
            assert y is not None
            return problem.loss_function.value(f, y.to(f)).mean(-1)

        def phi(l: int) -> Tensor:
            return (passed.phi[l][:p] * weights[l]) @ passed.phi[l][:p].T

        def g(l: int) -> Tensor:
            own = network.gradients(passed)[l].flatten(0, 1)
            return (own * weights[l]) @ own.T

        def tangent() -> Tensor:
            layers = range(network.depth)
            return tangent_of(problem, problem.in_plane.measure_limit(), [phi(l) for l in layers], [g(l) for l in layers])

        outputs: dict[str, Callable[[], Tensor]] = {
            "f": lambda: passed.f[:p],
            "f_test": lambda: passed.f[p:],
            "loss": lambda: loss(passed.f[:p], problem.data.y),
            "test_loss": lambda: loss(passed.f[p:], problem.data.y_test),
            "tangent_kernel": tangent,
        }
        outputs |= {key: lambda l=l: phi(l) for l, key in enumerate(keys("Phi"))}
        return outputs | {key: lambda l=l: g(l) for l, key in enumerate(keys("G"))}


def parts_of(name: str) -> str:
    return parts(name)[0]


def default_names(problem: Problem, given: Sequence[str] | None) -> tuple[str, ...]:
    """Outputs at training and at test samples, if left out"""
    return tuple(given) if given is not None else ("f",) + ("f_test",) * (problem.data.x_test is not None)
