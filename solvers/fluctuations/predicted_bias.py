"""predicted_bias: N (E f_N - f) from networks beside their own halves, or beside others of half their width (equation 102)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.fluctuations import PredictedBias
from meanfield.problem.problem import Problem
from meanfield.problem.stream import beside
from solvers.dmft.neurons import Neurons, Population
from solvers.fluctuations.observed import Observables, asked_rows, asked_steps, default_names, must_fit, networks_of
from solvers.fluctuations.unrolled import Unrolled
from solvers.fluctuations.weighted import WeightedNetwork
from solvers.running.clock import progress_bar
from solvers.running.memory import bound
from solvers.running.rehearsal import SECONDS, by_law
from solvers.running.sharding import Shard
from solvers.running.solver import Estimate

Way = Literal["halves", "networks"]
_USUAL: dict[Way, tuple[int, int]] = {"halves": (128, 200), "networks": (64, 2000)}  # width and draws
_AT_ONCE = 256  # networks that are trained before what is observed of them is taken


@checked
def predicted_bias(
    problem: Problem,
    width: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    points: Sequence[int] | None = None,
    progress: bool | None = None,
    *,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    tolerance: float = 1e-3,
    method: Way | None = None,
) -> PredictedBias:
    """lim N (E o_N - o), f if nothing else is named, with its standard error: no limit is needed.

    method="halves": a network of `width` neurons, whose matrices are revealed as they are used (equation 100), is trained beside two of
    half the width that have its neurons, each one half of every layer's. In o_N - (o_A + o_B) / 2 all that is linear in the neurons
    cancels, and what is left has the mean -bias/N - 3 c/N^2: a few hundred draws are enough. Perceptrons, by gradient descent. With kinks,
    or where the fields span more directions than a half has neurons, less of the linear part cancels, and the error is larger.

    method="networks": of any problem that FiniteWidth trains, a network of `width` beside two independent ones of half the width; the
    error is (2 N Var N / draws)^(1/2), which narrow networks in large numbers make small. Left out, it is the first of smooth
    perceptrons by gradient descent.

    width: 128 if left out, of networks 64. draws: of such threes, 200 if left out, of networks 2000; the error falls with their square
    root. The remainder of 3 c / width is seen in another width. observed, steps, points, tolerance: as of `predicted_variance`.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> predicted_bias(problem, width=16, draws=20, observed=("loss",)).bias("loss").shape
        torch.Size([1])
    """
    seed = checks.seed("seed", seed)
    asked = bias_plan(problem, width, draws, observed, steps, points, tolerance, method)
    with progress_bar("predicted bias", progress, total=asked.draws) as bar:
        whole, apart = (_from_networks if asked.way == "networks" else _from_halves)(asked, seed, bar.update)
    values, index = asked.observables.placed(whole, len(asked.at))
    settings = {"method": asked.way, "width": asked.width, "draws": asked.draws, "seed": seed, "tolerance": tolerance}
    return PredictedBias(problem, asked.at, values, index, settings, apart)


@dataclass(frozen=True)
class BiasPlan:
    """What is asked of `predicted_bias`, once all of it is checked"""

    problem: Problem
    observables: Observables
    at: tuple[int, ...]
    way: Way
    width: int
    draws: int
    tolerance: float


def bias_plan(
    problem: Problem,
    width: int | None = None,
    draws: int | None = None,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    points: Sequence[int] | None = None,
    tolerance: float = 1e-3,
    method: Way | None = None,
) -> BiasPlan:
    """What is observed, when and how; ValueError or MemoryError for what cannot be"""
    problem.in_plane.measure_limit()  # other scalings have no lim N (E o_N - o)
    way: Way = method or ("halves" if follows(problem) and not problem.has_kinks else "networks")
    checks.lookup("method", way, dict.fromkeys(get_args(Way)))
    width, draws = (
        checks.integer(name, usual if given is None else given, least)
        for name, given, usual, least in zip(("width", "draws"), (width, draws), _USUAL[way], (4, 2), strict=True)
    )
    if width % 2:
        raise ValueError(f"width must be even, since networks of half of it are trained, too: received {width}")
    if way == "halves" and not follows(problem):
        raise ValueError(
            f"method='halves' follows perceptrons by gradient_descent: received {_beside(problem) or 'a module'}; method='networks' takes "
            "any"
        )
    observables = Observables(problem, default_names(problem, observed), asked_rows(problem, points))
    at = asked_steps(problem, steps)
    numbers = observables.count(len(at))
    checks.memory(f"draws={draws} of {numbers} numbers", 24.0 * draws * numbers, "take fewer draws or points")
    if way == "halves":
        must_fit(problem, "width", width, tolerance)
    return BiasPlan(problem, observables, at, way, width, draws, tolerance)


def _from_halves(asked: BiasPlan, seed: int, told: Callable[[int], object]) -> tuple[Tensor, Tensor]:
    """(Q,) what is observed, (draws, Q) of each three, of which the mean is the bias"""
    whole, apart = [], []
    for draw in range(asked.draws):
        own = seed * asked.draws + draw
        found, halves, _ = _three(asked.problem, asked.observables, asked.at, asked.width, own, asked.tolerance)
        whole.append(found)
        apart.append(asked.width * (sum(halves) / 2 - found))
        told(1)
    return torch.stack(whole).mean(0), torch.stack(apart)


def _from_networks(asked: BiasPlan, seed: int, told: Callable[[int], object]) -> tuple[Tensor, Tensor]:
    """The same of independent networks"""

    def seen(width: int, seeds: range) -> Tensor:
        nets = networks_of(asked.observables, asked.at, width).ensemble(asked.problem, seeds)
        return torch.stack([asked.observables.of_solution(net, asked.at) for net in nets])

    whole, apart = [], []
    for start in range(seed * asked.draws, (seed + 1) * asked.draws, _AT_ONCE):
        stop = min(start + _AT_ONCE, (seed + 1) * asked.draws)
        found, halves = seen(asked.width, range(start, stop)), seen(asked.width // 2, range(2 * start, 2 * stop))
        whole.append(found)
        apart.append(asked.width * (halves.unflatten(0, (-1, 2)).mean(1) - found))
        told(stop - start)
    return torch.cat(whole).mean(0), torch.cat(apart)


def follows(problem: Problem) -> bool:
    """Whether networks can be trained beside their own halves"""
    return problem.trial is None and not _beside(problem)


def _beside(problem: Problem) -> str:
    return beside(problem.data) or problem.training.other_than(
        "momentum", "weight_decay", "batch_size", "schedule", "warmup"
    )


def bias_cost(
    problem: Problem,
    width: int | None = None,
    draws: int | None = None,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    points: Sequence[int] | None = None,
    tolerance: float = 1e-3,
    seconds: float = SECONDS,
    method: Way | None = None,
) -> Estimate:
    """What `predicted_bias` with these arguments takes, by the time of one draw after fewer steps, of networks by their beginnings"""
    asked = bias_plan(problem, width, draws, observed, steps, points, tolerance, method)
    observables, at, width, draws = asked.observables, asked.at, asked.width, asked.draws
    if asked.way == "networks":
        one, two = (
            networks_of(observables, at, n).estimate(problem, count, seconds / 2)
            for n, count in ((width, draws), (width // 2, 2 * draws))
        )
        return replace(one, seconds=one.seconds + two.seconds, bytes=max(one.bytes, two.bytes))
    most, sizes = max(at), {}

    def run(steps: int) -> None:
        few = replace(problem, training=replace(problem.training, steps=steps, record_every=1))
        sizes[steps] = _three(few, replace(observables, problem=few), (steps,), width, 0, tolerance)[2]

    law, last = by_law(run, most, seconds)
    known = max(sizes.values()) * (most + 1) / (last + 1)
    how = f"one of {draws} draws, " + (f"the first {last} of {most} steps" if last < most else "the whole training")
    size = 6.0 * known + 24.0 * draws * observables.count(len(at))
    return Estimate(float(law[-1]) * draws, bound({"bases": (size, "")}), how)


def _three(
    problem: Problem, observables: Observables, at: tuple[int, ...], width: int, seed: int, tolerance: float
) -> tuple[Tensor, list[Tensor], int]:
    """What is observed of a network, and of the two with half of its neurons each; bytes of all that is known of the network"""
    layers = (
        1 if problem.perceptron.residual else problem.perceptron.depth
    )  # skip connections join equal neurons of all layers
    orders = np.random.default_rng([seed, width]).permuted(np.tile(np.arange(width), (layers, 1)), axis=1)
    chosen = torch.from_numpy(orders).expand(problem.perceptron.depth, -1)
    first: WeightedNetwork | None = None
    found, size = [], 0
    for start, stop in ((0, width), (0, width // 2), (width // 2, width)):
        network = _network(problem, width, seed, tolerance, chosen[:, start:stop])
        if first is not None:
            network.follow(first)
        with torch.no_grad():
            found.append(torch.cat(Unrolled(problem, network, network.initial_state, observables, at).seen()))
        first = first or network
        size = size or sum(t.nbytes for four in network.known for t in four) + 8 * width * problem.data.points * len(
            chosen
        )
    return found[0], found[1:], size


@dataclass(frozen=True)
class Some(Population):
    """Some of the neurons of a network of this width: chosen (L, n) of each layer"""

    width: int
    chosen: Tensor

    def neurons(self, layer: int) -> Neurons:
        whole = Population(self.width, self.seed, "finite", self.like, Shard(self.width)).neurons(layer)
        return Neurons(self.samples, lambda _, count: whole.fresh(count)[:, self.chosen[layer]], finite=True)


def _network(problem: Problem, width: int, seed: int, tolerance: float, chosen: Tensor) -> WeightedNetwork:
    depth, n = chosen.shape
    like = torch.empty(0, dtype=torch.float64)
    some = Some(n, seed, "finite", like, Shard(n), width, chosen)
    return WeightedNetwork(problem, some, tolerance, [torch.full((n,), 1 / n, dtype=like.dtype)] * depth)
