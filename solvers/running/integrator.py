"""Integrator: dy/dt = F(y) over a time, stiff or not (equations 75 to 78). Nothing here knows a network.

A state is a tuple of tensors. F may return larger ones than it was given: the state then grows by zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

State = tuple[Tensor, ...]

_CALM = 2.0  # step times rate of Dormand and Prince's steps at most: stable up to 3.3, but fast modes must die out
_HELD = 4  # such steps, longer ones wished for, before stabilised ones
_WORTH = 8.0  # step times rate from which stabilised ones cost less
_MOST = 1e8  # step times rate of these at most: 18,000 stages
_FRESH = 25  # stabilised steps after which the rate is measured again
_SLOWEST = 1e-300  # a rate of nothing that can be divided by
_MARGIN = 1.1  # by which a measurement may have missed the rate


class Stuck(Exception):
    """Steps too short to be told from none: the velocity is not finite, or not as smooth as the tolerance asks."""


@dataclass(frozen=True)
class Trial:
    """A step as tried: the state behind it and its error, and what else was found on the way."""

    state: State
    error: State
    velocity: State | None = None  # at `state`
    rate: float = 0.0  # at which the velocity was seen to change


@dataclass(frozen=True)
class Integrator:
    """velocity: F, whose results are kept: it must not overwrite them. rtol: the error of a step is at most rtol times the norm of the
    state; norm: the largest root mean square of the tensors, unless another is given.
    told(time, rate): called before each step with the time reached and the rate, as far as it is known: the largest |eigenvalue| of dF/dy.
    """

    velocity: Callable[[State], State]
    rtol: float
    norm: Callable[[State], Tensor] | None = None
    told: Callable[[float, float], None] | None = None

    def __call__(self, state: State, length: float, flow: State | None = None) -> State:
        """The state a time `length` later, in new tensors; flow: the velocity at `state`, if it is known. Stuck if there is none."""
        flow = flow or self.velocity(state)
        step, rate, fast = self._first_step(state, flow, length)
        left, stiff, held, age = length, step * rate > _CALM, 0, 0
        if stiff:
            (rate, fast), step = self.fastest(state, flow, fast), length
        while left > 0:
            if self.told:
                self.told(length - left, rate)
            step = min(step, _MOST / rate) if stiff else step
            h = left if step > 0.99 * left else min(step, left / 2)
            trial = self._stabilised(state, flow, h, rate) if stiff else self._dormand_prince(state, flow, h)
            error, change = self._judged(state, trial, 4 if stiff else 5)
            good, step = error <= 1, h * change
            if good:
                left, state, age = left - h, trial.state, age + 1
                flow = trial.velocity or (self.velocity(state) if left else flow)
            elif left - step == left:
                raise Stuck
            elif math.isfinite(error):
                fast = trial.error
            if stiff:
                before = rate
                if not good or age % _FRESH == 0:
                    rate, fast = self.fastest(state, flow, fast)
                # h was too long for the rate, or for the error, of which fast modes leave a part that no h lessens
                if not good:
                    step = h if rate > _MARGIN * before else min(step, 0.3 * h)
                if step * rate < _WORTH:
                    stiff, held, step = False, 0, _CALM / rate
            else:
                rate = trial.rate
                if step * rate > _CALM:
                    held, step = held + good, _CALM / rate
                else:
                    held = 0
                if held == _HELD:
                    stiff, (rate, fast) = True, self.fastest(state, flow, fast)
                    step = 3 * _WORTH / rate
        return state

    def size(self, state: State) -> float:
        if self.norm is not None:
            return float(self.norm(state))
        squares = [tensor.square().mean(dtype=torch.float64) for tensor in state if tensor.numel()]
        return float(torch.stack(squares).max().sqrt())

    def fastest(self, state: State, flow: State, direction: State) -> tuple[float, State]:
        """(the largest |eigenvalue| of dF/dy, its direction), by power iteration on differences of F from `direction` on"""
        by = math.sqrt(torch.finfo(state[0].dtype).eps) * (self.size(state) or 1.0)
        rate = 0.0
        for _ in range(50):
            length = self.size(direction)
            if not (0 < length < math.inf):
                break
            there = self.velocity(weighted((by / length, 1.0), (direction, state)))
            direction = weighted((-1.0, 1.0), (flow, there))
            before, rate = rate, self.size(direction) / by
            if abs(rate - before) <= 0.03 * rate:
                break
        if not math.isfinite(rate):
            raise Stuck
        return max(rate, _SLOWEST), direction

    def _dormand_prince(self, state: State, flow: State, h: float) -> Trial:
        """Their pair of orders 5 and 4 (equation 75); the last two stages, at one time, tell the rate."""
        flows, points = [flow], [state]
        for row in _DORMAND_PRINCE:
            points = [points[-1], weighted([1.0, *(h * a for a in row)], [state, *flows])]
            flows.append(self.velocity(points[-1]))
        moved, turned = (self.size(weighted((-1.0, 1.0), pair)) for pair in (points, flows[-2:]))
        error = weighted([h * e for e in _ITS_ERROR], flows)
        return Trial(points[-1], error, flows[-1], turned / moved if moved else 0.0)

    def _stabilised(self, state: State, flow: State, h: float, rate: float) -> Trial:
        """As many stages as keep it stable, in all four of which are combined to third order and four compared (equations 76 and 77)"""
        stages = _stages(_MARGIN * h * rate)
        method = _stabilised_method(stages)
        moved, before = weighted([h * method.first], [flow]), tuple(torch.zeros_like(tensor) for tensor in state)
        kept = []
        for j, row in enumerate(method.rows, 2):
            slope = self.velocity(weighted((1.0, 1.0), (state, moved)))
            again, back, new, old = row
            moved, before = weighted((h * old, back, again, h * new), (flow, before, moved, slope)), moved
            if j in method.nodes:
                kept.append(moved)
        return Trial(weighted((1.0, *method.result), (state, *kept)), weighted(method.error, kept))

    def _first_step(self, state: State, flow: State, length: float) -> tuple[float, float, State]:
        """(a step, the rate, its direction) from how the velocity changes along itself"""
        speed, size = self.size(flow), self.size(state)
        if not (0 < speed < math.inf):
            return length, 0.0, flow
        by = min(length, 0.01 * (size / speed or length))
        change = weighted((-1.0, 1.0), (flow, self.velocity(weighted((by, 1.0), (flow, state)))))
        rate = self.size(change) / (by * speed)
        if not (0 < rate < math.inf):
            return (length if rate == 0 else by), 0.0, flow
        # an error of (h rate)^5 h speed / 1000
        fit = (1e3 * self.rtol * (size or by * speed) * rate / speed) ** (1 / 6) / rate
        return min(length, fit), rate, change

    def _judged(self, state: State, trial: Trial, order: int) -> tuple[float, float]:
        """(error of a trial in units of what is allowed, what to multiply the step by)"""
        finest = max(self.rtol, 10 * torch.finfo(state[0].dtype).eps)
        allowed = finest * max(self.size(state), self.size(trial.state))
        size = self.size(trial.error)
        error = size / allowed if allowed else math.inf if size else 0.0
        if not math.isfinite(error):
            return math.inf, 0.1
        change = 0.9 * error ** (-1 / order) if error else math.inf
        return error, min(5.0 if order == 5 else 25.0, max(0.1, change))


def weighted(weights: Sequence[float], states: Sequence[State]) -> State:
    """The sum of weights times states; what a state has not yet, rows or columns, is zero"""
    sums = []
    for *others, last in zip(*states, strict=True):
        total = last * weights[-1]
        for weight, tensor in zip(weights, others, strict=False):
            if tensor.shape == total.shape:
                total.add_(tensor, alpha=weight)
            else:
                total = grown(total, tensor.shape)
                total[tuple(map(slice, tensor.shape))].add_(tensor, alpha=weight)
        sums.append(total)
    return tuple(sums)


def grown(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """With zeros, to `shape` at least in every dimension. Not by torch's `pad`, which up to torch 2.9 refuses empty tensors."""
    grown = tensor.new_zeros([max(sizes) for sizes in zip(shape, tensor.shape, strict=True)])
    grown[tuple(map(slice, tensor.shape))] = tensor
    return grown


_DORMAND_PRINCE = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ITS_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class _Method:
    """A stabilised step of so many stages in numbers: its recursion, the stages that are combined, and how."""

    first: float  # of h F in the first stage
    rows: list[list[float]]  # of later ones: the stage before, the one before that, h F there, h F at the start
    nodes: list[int]
    result: list[float]
    error: list[float]


_FRACTIONS, _LEAST, _OF_START = (0.3, 0.65, 0.88, 1.0), 12, -0.4


def _stages(z: float) -> int:
    """The fewest, an even number, that are stable for step times rate z: (s - 1) (s + 4) / 3 >= z"""
    return max(_LEAST, 2 * math.ceil((math.sqrt(6.25 + 3 * z) - 1.5) / 2))


@lru_cache(256)
def _stabilised_method(stages: int) -> _Method:
    """Equations 76 and 77, with the Gegenbauer polynomials of index 3/2 and their derivatives at 1"""
    j = np.arange(stages + 1.0)
    d1 = j * (j + 3) / 4
    d2 = d1 * (j - 1) * (j + 4) / 6
    d3 = d2 * (j - 2) * (j + 5) / 8
    d4 = d3 * (j - 3) * (j + 6) / 10
    w = d1[-1] / d2[-1]
    b = np.full(stages + 1, 0.4)
    b[2:] = d2[2:] / d1[2:] ** 2
    k = j[2:]
    again = (2 * k + 1) / (k + 2) * b[2:] / b[1:-1]
    back = -(k - 1) / (k + 2) * b[2:] / b[:-2]
    rows = np.stack([again, back, again * w, -(1 - b[1:-1]) * again * w], 1)
    nodes = sorted(2 * round(stages * fraction / 2) for fraction in _FRACTIONS)
    c = (b * w * d1)[nodes]
    moments = np.stack([c, c**2 / 2, (b * w**3 * d3)[nodes] / 6])
    fourth = (b * w**4 * d4)[nodes] / 24
    result = np.linalg.solve(np.stack([np.ones(4), *moments]), [1 - _OF_START, 1, 1 / 2, 1 / 6])
    error = np.linalg.solve(np.stack([*moments, fourth]), [0, 0, 0, 1 / 24 - fourth @ result])
    return _Method(float(b[1] * w), rows.tolist(), nodes, result.tolist(), error.tolist())
