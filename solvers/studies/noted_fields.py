"""What enters and leaves each weight of a module, on its way through training, real or in the limit (equation 91)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from meanfield.comparison.coordinates import CHANGES
from meanfield.network.making import written_for
from meanfield.network.roles import Description
from meanfield.problem.losses import Loss
from meanfield.problem.problem import Problem
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Population
from solvers.dmft.stand_in import Matrix
from solvers.finite.module_run import ModuleRun
from solvers.finite.modules import ModulePass
from solvers.running.integrator import State
from solvers.running.method import Method
from solvers.running.noise import source
from solvers.running.skeleton import Samples
from solvers.running.watching import Watch, Watched, shells, watchable

_PRODUCTS = {"linear", "conv1d", "conv2d", "conv3d", "embedding", "matmul", "__matmul__", "einsum", "mm", "mv"}

Squares = dict[tuple[str, str, str], float]  # mean squares by (name of the weight, "enters" or "leaves", kind)


class Noted(TorchFunctionMode):
    """Notes what enters and leaves weights that are `Watched` or infinite, while a module's forward runs"""

    def __init__(self) -> None:
        super().__init__()
        self.entered: dict[str, list[Tensor]] = {}
        self.left: dict[str, list[Tensor]] = {}
        self.edges: dict[str, list[GradientEdge]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [a for a in args if isinstance(a, Tensor)]
        name = next(filter(None, map(_weight, given)), None)
        fields = [a for a in given if not isinstance(a, (Watched, Matrix))]
        if name is None or not fields or getattr(func, "__name__", "") not in _PRODUCTS:
            return out
        self.entered.setdefault(name, []).append(fields[0].detach().clone())
        self.left.setdefault(name, []).append(out.detach().clone())
        if out.requires_grad:
            self.edges.setdefault(name, []).append(get_gradient_edge(out))
        return out


def _weight(tensor: Tensor) -> str | None:
    """The name of the weight that it stands for, if it stands for one"""
    if isinstance(tensor, Watched):
        return tensor.called
    return tensor.met.name.partition("[")[0] if isinstance(tensor, Matrix) else None


@dataclass
class Coordinates:
    """Of one network: fields and gradients before training, from which changes are counted"""

    description: Description
    loss: Loss
    y: Tensor
    first: dict[tuple[str, str, str], Tensor] = field(default_factory=dict)

    def squares(self, noted: Noted, f: Tensor, slopes: Callable[[Tensor, Sequence[Any]], Sequence[Any]]) -> Squares:
        """Mean squares over neurons and rows; changes are those since the first call, gradients those of the outputs in the direction in
        which training moves outputs of 0, in the units of `slopes`
        """
        values = {("", "outputs", "field"): f.detach().clone()}
        for name, entered in self._of(noted.entered, "hidden", "readout").items():
            values[name, "enters", "field"] = _flat(entered)
        for name, left in self._of(noted.left, "input", "hidden").items():
            values[name, "leaves", "field"] = _flat(left)
        edges = self._of(noted.edges, "input", "hidden")
        with torch.enable_grad():
            target = (f * _first_slopes(self.loss, f, self.y)).sum()
        gradients = iter(slopes(target, [edge for own in edges.values() for edge in own]))
        for name, own in edges.items():
            apart = zip([next(gradients) for _ in own], noted.left[name], strict=True)
            values[name, "leaves", "gradient"] = _flat([torch.zeros_like(h) if g is None else g for g, h in apart])
        self.first = self.first or values
        found = {key: _square(value) for key, value in values.items()}
        return found | {
            (name, place, CHANGES[kind]): _square(value - self.first[name, place, kind])
            for (name, place, kind), value in values.items()
        }

    def _of(self, notes: Mapping[str, list[Any]], *roles: Any) -> dict[str, list[Any]]:
        """In the order of the module's parameters"""
        return {p.name: notes[p.name] for p in self.description.having(*roles) if p.name in notes}


def _first_slopes(loss: Loss, f: Tensor, y: Tensor) -> Tensor:
    """Minus dLoss/df at outputs of 0, which no width changes, of mean square 1 over samples; 1 for targets that these outputs meet"""
    with torch.enable_grad():
        zeros = torch.zeros_like(f).requires_grad_()
        (slopes,) = torch.autograd.grad(-loss.value(zeros, y).sum(), zeros)
    size = slopes.square().sum().div(len(f)).sqrt()
    return slopes / size if float(size) else torch.ones_like(f)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _square(values: Tensor) -> float:
    return float(values.square().mean(dtype=torch.float64))


class CheckedNetworks(ModuleRun):
    """Real networks whose snapshots are mean squares, one dictionary a seed"""

    def __init__(self, problem: Problem, width: int, seeds: Sequence[int], like: Tensor) -> None:
        super().__init__(problem, width, seeds, like)
        self.coordinates = [Coordinates(self.network.description, self.loss, self.y) for _ in seeds]

    def capture(self, state: State, passed: ModulePass) -> list[Squares]:  # type: ignore[override]
        del passed
        return [self._squares(state, e) for e in range(len(self.seeds))]

    def _squares(self, state: State, e: int) -> Squares:
        leaves = {name: w.requires_grad_() for name, w in self._weights(state, e).items()}
        noted, names = Noted(), watchable(self.network.description)
        with torch.enable_grad(), written_for(self.like), noted:
            f = self.skeleton(shells(leaves, names, Watch()), self.data.x)

        def slopes(target: Tensor, edges: Sequence[Any]) -> Sequence[Any]:
            found = torch.autograd.grad(target, edges, allow_unused=True)
            return [None if g is None else g / self.sigma for g in found]

        return self.coordinates[e].squares(noted, f, slopes)


class CheckedLimit(Method):
    """A module in the limit whose snapshots are mean squares"""

    def diffused(self, passed: Any, state: State, size: float, at: int) -> State:
        return self.network.noisy(passed, state, size, lambda *own: source(self.training, at, self.seed, *own))

    def __init__(self, problem: Problem, population: Population, tolerances: tuple[float, float], limit: int) -> None:
        data, optimiser = Samples(problem.data.x, problem.data.y), problem.training.entrywise
        self.network = ModuleLimit(
            problem.architecture,
            problem.in_plane,
            data,
            problem.loss_function,
            population,
            tolerances,
            limit,
            optimiser,
        )
        self.step_sizes, self.matrix_steps, self.fall = (
            self.network.step_sizes,
            self.network.matrix_steps,
            self.network.fall,
        )
        self.training, self.seed = problem.training, population.seed
        self.coordinates = Coordinates(problem.architecture.description, problem.loss_function, self.network.data.y)
        self.initial_state, self.norm = self.network.initial_state, self.network.norm
        self.forward, self.backward = self.network.forward, self.network.backward
        self.mark, self.back_to = self.network.mark, self.network.back_to

    def capture(self, state: State, passed: Any) -> Squares:
        del passed
        noted = Noted()  # what it reveals of the matrices stays: drawn anew, gradients would be those of other neurons
        with noted:
            some = self.network.forward(state, slice(0, len(self.network.data.x)), True)
        sigma = self.network.gain / self.network.width

        def slopes(target: Tensor, edges: Sequence[Any]) -> Sequence[Any]:
            return [None if g is None else g / sigma for g in some.slopes(target, edges, False)]

        return self.coordinates.squares(noted, some.f, slopes)
