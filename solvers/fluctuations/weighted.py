"""WeightedNetwork: the perceptron of N neurons as a function of the weight of each neuron in every average (equations 100 and 101).

It is LimitNetwork with the exact law of finite networks, in operations that autograd can follow and that change nothing in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanfield.problem.problem import Problem
from solvers.dmft.neurons import Neurons, Population
from solvers.dmft.perceptron import LimitNetwork, Parameters
from solvers.running.integrator import State


@dataclass
class Turns:
    """Combinations of fields (k, n) by which a basis was extended, call by call: chosen by one pass, the same in those after it"""

    made: list[Tensor | None] = field(default_factory=list)
    at: int = 0

    def next(self, choose: Callable[[], Tensor | None]) -> Tensor | None:
        """Those of this call, None if nothing sticks out of the basis"""
        if self.at == len(self.made):
            self.made.append(choose())
        self.at += 1
        return self.made[self.at - 1]


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
        turn = own.turns.next(lambda: _chosen(own, v, self.tolerance))
        if turn is not None:
            new, kept = _extension(own, v, turn)
            draws = other.neurons.fresh(len(turn))[kept]  # as many draws as in the pass that chose the turn
            draws = draws - ((draws * other.m) @ other.e.T) @ other.e
            own.e, other.images = torch.cat([own.e, new]), torch.cat([other.images, draws])
        weighted = (v * own.m).T
        c, along = own.e @ weighted, scale * (own.images @ weighted)
        rows, columns = learned.shape
        if rows:
            pulled = learned @ c[:columns]
            along = along + torch.nn.functional.pad(pulled, (0, 0, 0, len(along) - rows))
        return (scale * c).T @ other.images + along.T @ other.e, c


def _free(side: Side, rows: Tensor) -> Tensor:
    """What of fields sticks out of the basis"""
    return rows - ((rows * side.m) @ side.e.T) @ side.e


def _extension(side: Side, v: Tensor, turn: Tensor) -> tuple[Tensor, list[int]]:
    """Orthonormal rows (k, S) out of the basis that combinations of the fields v give, and which combinations these are.

    No more than there are neurons; neurons fewer than those that chose the turn, or saturated ones, may leave some that depend on others.
    """
    turn = turn[: len(side.m) - len(side.e)]
    new = _free(side, turn @ _free(side, v))  # once more, for rounding
    kept, root = _independent((new * side.m) @ new.T)
    return torch.linalg.solve_triangular(root, new[kept], upper=False), kept


def _independent(gram: Tensor) -> tuple[list[int], Tensor]:
    """Rows that do not depend on those before them, and the Cholesky factor of their Gram matrix"""
    kept = list(range(len(gram)))
    while True:
        root, failed = torch.linalg.cholesky_ex(gram[kept][:, kept])
        small = (root.diagonal() < 1e-7 * gram.diagonal()[kept].sqrt()).nonzero().flatten().tolist()
        if not int(failed) and not small:
            return kept, root
        kept.pop(int(failed) - 1 if int(failed) else small[0])


def _chosen(side: Side, v: Tensor, tolerance: float) -> Tensor | None:
    """Combinations (k, n) of fields that leave the part `tolerance` of them, each of unit square out of the basis"""
    with torch.no_grad():
        rest = _free(side, v)
        values, vectors = torch.linalg.eigh((rest * side.m) @ rest.T)
        allowed = tolerance**2 * float(((v * side.m) * v).sum())
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
        first, *later = self.neurons
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
