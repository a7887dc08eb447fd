"""What is observed of a weighted network at a step: outputs, losses and kernels, as functions of the weights of its neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.comparison.observables import observed_at
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import tangent_of
from solvers.dmft.module_kernels import LimitPass as ModulePass
from solvers.dmft.perceptron import LimitPass
from solvers.dmft.revealed_width import RevealedWidth
from solvers.finite.finite_width import FiniteWidth
from solvers.fluctuations.weighted import WeightedNetwork
from solvers.fluctuations.weighted_module import WeightedModule
from solvers.running.trajectory import snapshot_steps

OUTPUTS, SCALARS = ("f", "f_test"), ("loss", "test_loss")


@dataclass(frozen=True)
class Observables:
    """names: of `mf.observe`, each at some steps. points: rows of [x; x_test], None for all: outputs and kernels at these alone."""

    problem: Problem
    names: tuple[str, ...]
    points: tuple[int, ...] | None

    def __post_init__(self) -> None:
        data = self.problem.data
        if not self.names:
            raise ValueError("observed must name something, e.g. ('f',): received none")
        for name in self.names:
            if self.problem.trial is not None and name not in self.shapes() and _is_kernel(self.problem, name):
                raise ValueError(
                    f"of modules outputs and losses are predicted, no kernels: received {name!r}; give some of {', '.join(self.shapes())}, "
                    "and see kernels of networks beside the limit by width_sweep and mf.deviation"
                )
            checks.lookup("observable", name, self.shapes())
        for name, test in (("f_test", self.problem.data.x_test), ("test_loss", self.problem.data.y_test)):
            if name in self.names and test is None:
                raise ValueError(f"{name!r} needs test samples with targets where there are losses: the data has none")

        if not self.count(1):
            raise ValueError(
                f"points must hold a sample at which {self.names} is known: received points={self.points}, of {data.samples} training "
                f"samples, then {data.points - data.samples} of test"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that can be observed, at one step"""
        data = self.problem.data
        p, c, own = data.samples, data.outputs, tuple(data.y.shape[1:])
        found: dict[str, tuple[int, ...]] = {"f": (p, *own), "f_test": (data.points - p, *own)}
        found |= dict.fromkeys(SCALARS, ())
        if self.problem.trial is not None:
            return found
        found |= dict.fromkeys(self.problem.keys("Phi"), (p, p))
        return found | dict.fromkeys(self.problem.keys("G"), (p * c, p * c)) | {"tangent_kernel": (p, c, p, c)}

    def mask(self, name: str) -> Tensor:
        """Of a name's shape, which of its numbers are asked for; of kernels, which are symmetric, one half"""
        shape, p = self.shapes()[name], self.problem.data.samples
        asked = torch.zeros(self.problem.data.points, dtype=torch.bool)
        asked[slice(None) if self.points is None else list(self.points)] = True
        if name in SCALARS:
            return torch.ones((), dtype=torch.bool)
        if name in OUTPUTS:
            own = asked[:p] if name == "f" else asked[p:]
            return own.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        side = round(math.prod(shape) ** 0.5)
        rows = asked[:p].repeat_interleave(side // p)
        return (rows[:, None] & rows & torch.ones(side, side, dtype=torch.bool).triu()).reshape(shape)

    def index(self, steps: int) -> dict[str, Tensor]:
        """(R, ..) by name, where each number lies among those of all steps; the two halves of a kernel at the same places"""
        masks = {name: self.mask(name) for name in self.names}
        each, found, start = sum(int(m.sum()) for m in masks.values()), {}, 0
        for name, mask in masks.items():
            own = torch.full(mask.shape, -1)
            own[mask] = start + torch.arange(int(mask.sum()))
            if name not in OUTPUTS + SCALARS:
                side = round(mask.numel() ** 0.5)
                square = own.reshape(side, side)
                own = torch.maximum(square, square.T).reshape(mask.shape)
            start += int(mask.sum())
            found[name] = torch.stack([torch.where(own < 0, -1, own + each * r) for r in range(steps)])
        return found

    def count(self, steps: int) -> int:
        """Q, of all steps together"""
        return steps * sum(int(self.mask(name).sum()) for name in self.names)

    def placed(self, numbers: Tensor, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(values, index), (R, ..) by name, of numbers (Q,)"""
        index = self.index(steps)
        values = {name: torch.where(at < 0, torch.nan, numbers[at.clamp(min=0)]) for name, at in index.items()}
        return values, index

    def of_solution(self, solution: Solution, at: Sequence[int]) -> Tensor:
        """(Q,) the numbers asked for of a solution that recorded the steps `at`"""

        def one(name: str, step: int) -> Tensor:
            return observed_at(solution, name, step).reshape(self.shapes()[name])

        return torch.cat([one(n, step)[self.mask(n)].reshape(-1).double() for step in at for n in self.names])

    def __call__(self, network: WeightedNetwork | WeightedModule, passed: LimitPass | ModulePass) -> Tensor:
        """(q,) the numbers asked for, of a pass over all points"""
        found = dict(self._all(network, passed))
        return torch.cat([found[name]()[self.mask(name)].reshape(-1) for name in self.names])

    def _all(self, network: Any, passed: Any) -> Mapping[str, Callable[[], Tensor]]:
        problem, p = self.problem, self.problem.data.samples
        weights, keys = network.weights, problem.keys

        def loss(f: Tensor, y: Tensor | None) -> Tensor:
            assert y is not None
            return problem.loss_function.mean(f, y.to(f))

        def phi(l: int) -> Tensor:
            return (passed.phi[l][:p] * weights[l]) @ passed.phi[l][:p].T

        def g(l: int) -> Tensor:
            own = network.gradients(passed)[l].flatten(0, 1)
            return (own * weights[l]) @ own.T

        def tangent() -> Tensor:
            layers = range(network.depth)
            return tangent_of(
                problem, problem.in_plane.measure_limit(), [phi(l) for l in layers], [g(l) for l in layers]
            )

        outputs: dict[str, Callable[[], Tensor]] = {
            "f": lambda: passed.f[:p],
            "f_test": lambda: passed.f[p:],
            "loss": lambda: loss(passed.f[:p], problem.data.y),
            "test_loss": lambda: loss(passed.f[p:], problem.data.y_test),
            "tangent_kernel": tangent,
        }
        if problem.trial is not None:
            return outputs
        outputs |= {key: lambda l=l: phi(l) for l, key in enumerate(keys("Phi"))}
        return outputs | {key: lambda l=l: g(l) for l, key in enumerate(keys("G"))}


def _is_kernel(problem: Problem, name: str) -> bool:
    return name == "tangent_kernel" or name in {*problem.keys("Phi"), *problem.keys("G")}


def must_fit(problem: Problem, name: str, neurons: int, tolerance: float) -> None:
    """ValueError or MemoryError, before any work, for a problem that has no sweep, or neurons of which too many are asked for"""
    fields = bytes_of_a_pass(problem, neurons)
    checks.memory(f"{name}={neurons}", 8 * fields, f"take fewer {name}" if name != "width" else "take a smaller width")
    RevealedWidth(neurons, tolerance=tolerance, snapshots=()).check(problem)


def bytes_of_a_pass(problem: Problem, neurons: int) -> float:
    """Of all fields, forward and backward"""
    data = problem.data
    if problem.trial is not None:
        return 16.0 * problem.trial.numbers(neurons) * data.points
    return 8.0 * neurons * problem.perceptron.depth * (data.points + data.samples * data.outputs)


def networks_of(
    observables: Observables, at: tuple[int, ...], width: int, progress: bool | None = False
) -> FiniteWidth:
    """Trains networks of which this can be observed at the steps `at`"""
    kernels = set(observables.names) - {*OUTPUTS, *SCALARS}
    snapshots = at if kernels else ()
    return FiniteWidth(width, dtype="float32", snapshots=snapshots, keep_neurons=False, progress=progress)


def default_names(problem: Problem, given: Sequence[str] | None) -> tuple[str, ...]:
    """Outputs at training and at test samples, if left out"""
    return tuple(given) if given is not None else ("f",) + ("f_test",) * (problem.data.x_test is not None)


def asked_rows(problem: Problem, points: Sequence[int] | None) -> tuple[int, ...] | None:
    """Rows of [x; x_test]; ValueError for others"""
    if points is None:
        return None
    rows, count = tuple(checks.integer("points", p, 0) for p in points), problem.data.points
    if not rows:
        raise ValueError("points must hold a row at least, or be left out: received none")
    if max(rows) >= count:
        raise ValueError(f"points must be rows of the {count} samples (train, then test): received {max(rows)}")
    return rows


def asked_steps(problem: Problem, steps: Sequence[int]) -> tuple[int, ...]:
    """Those of a run, in order; -1 is the last"""
    if not steps:
        raise ValueError("steps must hold one at least, e.g. (-1,): received none")
    return snapshot_steps(steps, problem.training, "steps")
