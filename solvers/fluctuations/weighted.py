"""WeightedNetwork: the perceptron of N neurons as a function of the weight of each neuron in every average (equations 100 and 101).

It is LimitNetwork with the exact law of finite networks, in operations that autograd can follow and that change nothing in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanfield.problem.problem import Problem
from solvers.dmft.neurons import Neurons, Population
from solvers.dmft.perceptron import LimitNetwork, Parameters
from solvers.running.failures import RankError
from solvers.running.integrator import State


@dataclass
class Turns:
    """The combinations of fields (k, n) by which a basis was extended, call by call: chosen by one pass, the same in those that follow it"""

    made: list[Tensor | None] = field(default_factory=list)
    at: int = 0

    def next(self) -> tuple[bool, Tensor | None]:
        """(whether it was chosen before, the combinations of this call)"""
        self.at += 1
        return (True, self.made[self.at - 1]) if self.at <= len(self.made) else (False, None)


@dataclass
class Side:
    """What is known of a matrix on one side: orthonormal directions e and Gaussian images (k, S) of those of the other side"""

    e: Tensor
    images: Tensor
    m: Tensor  # (S,) weights of the neurons
    neurons: Neurons
    turns: Turns


class WeightedDense:
    """InfiniteDense between neurons with the weights m: <a, b> = sum_r m_r a_r b_r, and draws that are projected only (equation 100)"""

    def __init__(self, below: Side, above: Side, tolerance: float) -> None:
        self.below, self.above, self.tolerance = below, above, tolerance

    def forward(self, v: Tensor, learned: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """(W v (n, S), coefficients <E, v> (K, n), the same) of features v (n, S)"""
        image, c = self._through(self.below, self.above, v, learned, scale)
        return image, c, c

    def backward(self, g: Tensor, learned: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(W^T g (n, S), coefficients <F, g> (J, n)) of gradients g (n, S)"""
        return self._through(self.above, self.below, g, learned.T, scale)

    def _through(self, own: Side, other: Side, v: Tensor, learned: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        new = _sticking_out(own, v, self.tolerance)
        if new is not None:
            draws = other.neurons.fresh(len(new))
            draws = draws - ((draws * other.m) @ other.e.T) @ other.e
            own.e, other.images = torch.cat([own.e, new]), torch.cat([other.images, draws])
        weighted = (v * own.m).T
        c, along = own.e @ weighted, scale * (own.images @ weighted)
        rows, columns = learned.shape
        if rows:
            pulled = learned @ c[:columns]
            along = along + torch.nn.functional.pad(pulled, (0, 0, 0, len(along) - rows))
        return (scale * c).T @ other.images + along.T @ other.e, c


def _sticking_out(side: Side, v: Tensor, tolerance: float) -> Tensor | None:
    """Orthonormal rows (k, S) that span what of the fields v sticks out of the basis, but for the part `tolerance` of v"""
    known, turn = side.turns.next()
    if known and turn is None:
        return None

    def free(rows: Tensor) -> Tensor:
        return rows - ((rows * side.m) @ side.e.T) @ side.e

    rest = free(v)
    if not known:
        with torch.no_grad():
            turn = _chosen((rest * side.m) @ rest.T, tolerance**2 * float(((v * side.m) * v).sum()))
        side.turns.made.append(turn)
        if turn is None:
            return None
        if len(side.e) + len(turn) >= len(side.m):
            raise RankError(
                f"the fields span more than {len(side.m) - 1} directions, which {len(side.m)} particles can represent: take more "
                "particles or a larger tolerance"
            )
    assert turn is not None
    new = free(turn @ rest)  # once more, for rounding
    root = torch.linalg.cholesky((new * side.m) @ new.T)
    return torch.linalg.solve_triangular(root, new, upper=False)


def _chosen(gram: Tensor, allowed: float) -> Tensor | None:
    """Combinations (k, n) of fields with these inner products that hold all but `allowed` of their squares, each of unit square"""
    values, vectors = torch.linalg.eigh(gram)
    keep = (values.clamp(min=0).cumsum(0) > allowed) & (values > 1e-12 * values[-1])
    return (vectors[:, keep] / values[keep].sqrt()).flip(1).T if bool(keep.any()) else None


class WeightedNetwork(LimitNetwork):
    """weights: m^l (S,) of each layer's neurons, each of sum 1; the same tensor for layers that share their neurons."""

    def __init__(self, problem: Problem, population: Population, tolerance: float, weights: Sequence[Tensor]) -> None:
        super().__init__(problem, population, (tolerance, tolerance), population.samples)
        self.weights, self.fine = list(weights), tolerance
        self.turns = [(Turns(), Turns()) for _ in self.layers]
        empty = population.like.new_empty(0, population.samples)
        self.nothing: list[tuple[Tensor, ...]] = [(empty,) * 4] * len(self.layers)
        self.know(self.nothing)

    def know(self, known: Sequence[tuple[Tensor, ...]]) -> None:
        """(E, R, F, U) of each matrix"""
        self.known_layers = [
            WeightedDense(
                Side(e, r, self.weights[l], self.neurons[l], self.turns[l][0]),
                Side(f, u, self.weights[l + 1], self.neurons[l + 1], self.turns[l][1]),
                self.fine,
            )
            for l, (e, r, f, u) in enumerate(known)
        ]
        self.layers = self.known_layers  # type: ignore[assignment]

    @property
    def known(self) -> list[tuple[Tensor, ...]]:
        sides = [(layer.below, layer.above) for layer in self.known_layers]
        return [(below.e, below.images, above.e, above.images) for below, above in sides]

    def readout(self, phi: Tensor, a: Tensor) -> Tensor:
        return self.gain * self.std * (phi * self.weights[-1]) @ a.T

    def initial_state(self) -> State:
        """Of networks: f(0) is random, and so is the readout's bias, a mean over neurons"""
        like, (first, *later) = self.population.like, self.neurons
        w, biases = first.fresh(self.x.shape[1]), [neurons.fresh(1) for neurons in later] if self.bias else []
        a = self.neurons[-1].fresh(self.c_out)
        return self.started(w, biases, a)

    def started(self, w: Tensor, biases: list[Tensor], a: Tensor) -> State:
        """The state with these of the neurons' own"""
        like, matrices = self.population.like, len(self.layers)
        b = like.new_zeros(self.c_out)
        if self.bias:
            b = self.gain * self.bias * (self.neurons[-1].fresh(self.c_out) @ self.weights[-1])
        learned = [like.new_empty(0, 0) for _ in range(matrices)]
        return Parameters(learned, w, biases, a, b, torch.ones(matrices, dtype=torch.float64)).flat()

    def mark(self) -> list[object]:
        """Where draws and choices are, for `back_to`"""
        at = [turns.at for pair in self.turns for turns in pair]
        return [[neurons.mark() for neurons in dict.fromkeys(self.neurons)], at]

    def back_to(self, mark: list[object]) -> None:
        draws, at = mark
        for neurons, to in zip(dict.fromkeys(self.neurons), draws, strict=True):  # type: ignore[arg-type]
            neurons.back_to(to)
        for turns, to in zip((turns for pair in self.turns for turns in pair), at, strict=True):  # type: ignore[arg-type]
            turns.at = to
