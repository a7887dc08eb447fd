"""predicted_bias: N (E f_N - f) from networks beside their own halves (equation 102)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.fluctuations import PredictedBias
from meanfield.problem.problem import Problem
from meanfield.problem.stream import beside
from solvers.dmft.neurons import Neurons, Population
from solvers.fluctuations.observed import Observables, asked_rows, asked_steps, default_names, must_fit
from solvers.fluctuations.unrolled import Unrolled
from solvers.fluctuations.weighted import Turns, WeightedNetwork
from solvers.running.clock import progress_bar
from solvers.running.memory import bound
from solvers.running.rehearsal import SECONDS, by_law
from solvers.running.sharding import Shard
from solvers.running.solver import Estimate


@checked
def predicted_bias(
    problem: Problem,
    width: int = 128,
    draws: int = 200,
    seed: int = 0,
    points: Sequence[int] | None = None,
    progress: bool | None = None,
    *,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    tolerance: float = 1e-3,
) -> PredictedBias:
    """lim N (E o_N - o), f if nothing else is named, with its standard error: no limit is needed, nor more than a few hundred draws.

    A network of `width` neurons, whose matrices are revealed as they are used (equation 100), is trained beside two of half the width
    that have its neurons, each one half of every layer's. In o_N - (o_A + o_B) / 2 all that is linear in the neurons cancels, and what
    is left has the mean -bias/N - 3 c/N^2. draws: of such threes; the error falls with their square root. The remainder of 3 c / width
    is seen in another width. Perceptrons, by gradient descent, with kinks too. observed, steps, points, tolerance: as of
    `predicted_variance`. Where the fields span more directions than a half has neurons, less of the linear part cancels: the error grows,
    and a larger width mends it.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_bias
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> predicted_bias(problem, width=16, draws=20, observed=("loss",)).bias("loss").shape
        torch.Size([1])
    """
    width, draws = checks.integer("width", width, 4), checks.integer("draws", draws, 2)
    seed = checks.seed("seed", seed)
    observables, at = _asked(problem, width, draws, observed, steps, points, tolerance)
    whole, apart = [], []
    for draw in progress_bar("predicted bias", progress, iterable=range(draws)):
        found, halves, _ = _three(problem, observables, at, width, seed * draws + draw, tolerance)
        whole.append(found)
        apart.append(width * (sum(halves) / 2 - found))
    values, index = observables.placed(torch.stack(whole).mean(0), len(at))
    settings = {"width": width, "draws": draws, "seed": seed, "tolerance": tolerance}
    return PredictedBias(problem, at, values, index, settings, torch.stack(apart))


def _asked(
    problem: Problem,
    width: int,
    draws: int,
    observed: Sequence[str] | None,
    steps: Sequence[int],
    points: Sequence[int] | None,
    tolerance: float,
) -> tuple[Observables, tuple[int, ...]]:
    """What is observed and when; ValueError or MemoryError for what cannot be"""
    if width % 2:
        raise ValueError(f"width must be even, for its halves: received {width}")
    if not follows(problem):
        raise ValueError(
            f"predicted_bias follows perceptrons by gradient_descent: received {_beside(problem) or 'a module'}; compare FiniteWidth of "
            "several widths"
        )
    observables = Observables(problem, default_names(problem, observed), asked_rows(problem, points))
    at = asked_steps(problem, steps)
    numbers = observables.count(len(at))
    checks.memory(f"draws={draws} of {numbers} numbers", 24.0 * draws * numbers, "take fewer draws or points")
    must_fit(problem, "width", width, tolerance)
    return observables, at


def follows(problem: Problem) -> bool:
    """Whether `predicted_bias` can take it"""
    return problem.trial is None and not _beside(problem)


def _beside(problem: Problem) -> str:
    return beside(problem.data) or problem.training.other_than(
        "momentum", "weight_decay", "batch_size", "schedule", "warmup"
    )


def bias_cost(
    problem: Problem,
    width: int = 128,
    draws: int = 200,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    points: Sequence[int] | None = None,
    tolerance: float = 1e-3,
    seconds: float = SECONDS,
) -> Estimate:
    """What `predicted_bias` with these arguments takes, by the time of one draw after fewer steps"""
    observables, at = _asked(problem, width, draws, observed, steps, points, tolerance)
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
    turns: list[tuple[Turns, Turns]] | None = None
    found, size = [], 0
    for start, stop in ((0, width), (0, width // 2), (width // 2, width)):
        network = _network(problem, width, seed, tolerance, chosen[:, start:stop])
        if turns is not None:
            network.turns = [(Turns(e.made), Turns(f.made)) for e, f in turns]
            network.know(network.nothing)
        with torch.no_grad():
            found.append(torch.cat(Unrolled(problem, network, network.initial_state, observables, at).seen()))
        turns = network.turns
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
