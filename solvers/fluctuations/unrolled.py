"""Unrolled: training of a weighted network, and the derivatives of what is observed of it in the weights of the neurons (equation 101).

Memory: states are kept at some steps, and the way between two of them is taken again when its derivatives are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.problem.problem import Problem
from solvers.dmft.perceptron import LimitPass
from solvers.fluctuations.weighted import WeightedNetwork
from solvers.fluctuations.weighted_dense import Known
from solvers.fluctuations.weighted_module import WeightedModule
from solvers.running.inputs import EVERYWHERE, Rows
from solvers.running.integrator import State, weighted

Observed = Callable[[Any, Any], Tensor]  # of a pass: (q,) numbers


class TooManyDirections(ValueError):
    """Too few neurons for what training makes of them"""


@dataclass(frozen=True)
class Moment:
    """Everything that a step of training starts from"""

    parameters: State  # the last are scales, which nothing depends on
    memory: State
    known: list[Known]

    def tensors(self) -> list[Tensor]:
        return [*self.parameters[:-1], *self.memory[:-1], *(t for four in self.known for t in four)]

    def of(self, tensors: Sequence[Tensor]) -> Moment:
        """The same with other numbers"""
        rest = iter(tensors)
        parameters = (*(next(rest) for _ in self.parameters[:-1]), self.parameters[-1])
        memory = (*(next(rest) for _ in self.memory[:-1]), *self.memory[-1:])
        known: list[Any] = [tuple(next(rest) for _ in four) for four in self.known]
        return Moment(parameters, memory, known)


@dataclass(frozen=True)
class Kept:
    """A step at which a way begins, and all that it takes to go it again"""

    step: int
    moment: Moment
    mark: list[object]

    @property
    def size(self) -> int:
        """Bytes"""
        return sum(t.nbytes for t in self.moment.tensors())


class Unrolled:
    """problem: of perceptrons, by gradient descent. observed: what is looked at in the steps `at`, over all points."""

    def __init__(
        self,
        problem: Problem,
        network: WeightedNetwork | WeightedModule,
        start: Callable[[], State],
        observed: Observed,
        at: Sequence[int],
    ) -> None:
        self.problem, self.network, self.start, self.observed, self.at = (
            problem,
            network,
            start,
            observed,
            frozenset(at),
        )
        training = problem.training
        self.last, self.stride = max(self.at), 0.0
        self._before: Tensor | None = None
        self.rate = training.rate_by_step()
        self.batches = list(zip(range(self.last), training.batches(problem.data.samples), strict=False))

    def way(self, moment: Moment, first: int, stop: int) -> tuple[Moment, list[Tensor]]:
        """From step `first` to step `stop`; what was observed at the steps from `first` on and before `stop`, at the last too"""
        network, found = self.network, []
        network.know(moment.known)
        parameters, memory = moment.parameters, moment.memory
        for step in range(first, min(stop, self.last + 1)):
            batch = self.batches[step][1] if step < self.last else None
            passed: Any = None
            if step in self.at:
                passed = network.forward(parameters, EVERYWHERE, True)
                found.append(self.observed(network, passed))
            if step == self.last:
                break
            if batch is not None or passed is None:
                rows: Rows = slice(0, self.problem.data.samples) if batch is None else batch
                passed = network.forward(parameters, rows, True)
            if self.problem.has_kinks and batch is None and not torch.is_grad_enabled():
                self._watch(passed)
            parameters, memory = self._moved(step, parameters, memory, network.backward(passed))
        return Moment(parameters, memory, network.known), found

    def _watch(self, passed: LimitPass) -> None:
        """How far a step moves preactivations at most, root mean square over neurons and training points of a layer"""
        now = torch.stack([h[: passed.train] for h in passed.h])
        if self._before is not None:
            self.stride = max(self.stride, float((now - self._before).square().mean((1, 2)).max().sqrt()))
        self._before = now

    def _moved(self, step: int, parameters: State, memory: State, velocity: State) -> tuple[State, State]:
        """A step of descent (equation 2), in memory of its own"""
        training = self.problem.training
        eta = self.rate(step)
        fall, decays = eta * training.weight_decay, self.network.decays
        if training.momentum:
            velocity = memory = weighted((1.0, training.momentum), (velocity, memory)) if memory else velocity
        fallen = tuple(p * (1 - fall * own) for p, own in zip(parameters, decays, strict=True))
        moved = weighted((eta, 1.0), (velocity, fallen))
        still = self.network.still
        return tuple(p if rests else m for m, p, rests in zip(moved, parameters, still, strict=True)), memory

    def seen(self) -> list[Tensor]:
        """What is observed (q,) at each of the steps `at`"""
        return self.way(self._begun(), 0, self.last + 1)[1]

    def forward(self, bytes_allowed: float) -> tuple[list[Kept], list[Tensor]]:
        """Where ways begin, as close together as so many bytes allow, and what was observed (q,) at each of the steps `at`"""
        kept, found, stride = [Kept(0, Moment((), (), []), self.network.mark())], [], 1
        most = self.network.population.samples // 2  # beyond, what is left of the neurons' space is no sample of theirs
        with torch.no_grad():
            moment = self._begun()
            for step in range(self.last + 1):
                if step and step % stride == 0:
                    kept.append(Kept(step, moment, self.network.mark()))
                    own = [one.size for one in kept]
                    if sum(own) > bytes_allowed:
                        stride *= 2
                        kept = [one for one in kept if one.step % stride == 0]
                        checks.memory(
                            f"{stride} steps that are differentiated",
                            3.0 * stride * own[-1],
                            "take fewer particles or steps",
                        )
                moment, seen = self.way(moment, step, step + 1)
                found += seen
                if (rank := max((len(e) for four in moment.known for e in (four[0], four[2])), default=0)) > most:
                    raise TooManyDirections(
                        f"the fields of a layer span {rank} directions or more, beyond half of particles="
                        f"{self.network.population.samples}: take particles={2 ** (4 * rank - 1).bit_length()} or so, since training adds "
                        "others, a larger tolerance, or method='networks'"
                    )
        return kept, found

    def influences(self, kept: Sequence[Kept], first: int, stop: int) -> list[Tensor]:
        """(stop - first, S) for the weights of each population of neurons: derivatives of the observed numbers `first` to `stop`"""
        weights, n = list(dict.fromkeys(self.network.weights)), stop - first
        totals = [torch.zeros(n, *m.shape, dtype=m.dtype, device=m.device) for m in weights]
        after: list[Tensor] | None = None  # derivatives in the moment where a way ends
        ends = [*(one.step for one in kept[1:]), self.last + 1]
        for one, end in zip(reversed(kept), reversed(ends), strict=True):
            self.network.back_to(one.mark)
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in one.moment.tensors()]
                begun = one.moment.of(leaves) if one.step else self._begun()
                moment, found = self.way(begun, one.step, end)
            pairs = [] if after is None else list(zip(moment.tensors(), after, strict=True))
            if found:
                pairs.append((torch.cat(found), self._asked(one.step, first, stop, found)))
            pairs = [(t, g) for t, g in pairs if t.requires_grad and t.numel()]
            outputs, seeds = zip(*pairs, strict=True) if pairs else ((), ())
            inputs = [t for t in leaves if t.numel()] + weights
            gradients = iter(
                torch.autograd.grad(outputs, inputs, seeds, is_grads_batched=True, allow_unused=True)
                if pairs
                else [None] * len(inputs)
            )
            after = [_or_zero(next(gradients) if t.numel() else None, t, n) for t in leaves]
            for total, m in zip(totals, weights, strict=True):
                total += _or_zero(next(gradients), m, n)
        return totals

    def _begun(self) -> Moment:
        self.network.know(())
        return Moment(self.start(), (), self.network.known)

    def _asked(self, start: int, first: int, stop: int, found: Sequence[Tensor]) -> Tensor:
        """(stop - first, q) which of the numbers that were observed in a way are those asked for"""
        each = len(found[0])
        before = each * sum(1 for step in self.at if step < start)
        columns = torch.arange(before, before + each * len(found))
        return (torch.arange(first, stop)[:, None] == columns).to(found[0])


def _or_zero(gradient: Tensor | None, like: Tensor, n: int) -> Tensor:
    return torch.zeros(n, *like.shape, dtype=like.dtype, device=like.device) if gradient is None else gradient
