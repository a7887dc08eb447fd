"""coordinate_check: how the fields of a network go with its width, before and after steps of training (equation 91)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.coordinates import UNKNOWN, Coordinate, CoordinatesReport, expected_power
from meanfield.comparison.statistics import Exponent, doubling_exponent, exponent_of, left_out_means
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Status
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.dmft.neurons import Population
from solvers.finite.finite_width import FiniteWidth
from solvers.running.clock import progress_bar
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.failures import Interrupted
from solvers.running.gradient_flow import EVALUATIONS, Flow, tolerance
from solvers.running.memory import bound
from solvers.running.rehearsal import SECONDS, expected, together
from solvers.running.sharding import Shard
from solvers.running.solver import Estimate
from solvers.running.trajectory import Trajectory
from solvers.studies.noted_fields import CheckedLimit, CheckedNetworks, Squares

Runs = list[list[Squares]]  # (steps that were reached, seeds)


@checked
def coordinate_check(
    problem: Problem,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int | Sequence[int] = 4,
    steps: Sequence[int] = (0, 1, 4),
    points: int = 32,
    samples: int | None = 512,
    solver: FiniteWidth | None = None,
) -> CoordinatesReport:
    """Train networks of several widths for a few steps, and tell which of their fields do not go with the width as they should.

    Of all that enters and leaves a weight: root mean square over neurons and rows, that of its change since step 0, and of gradients
    (1/sigma) df/dh, each with its power of the width. What finds q.k/sqrt(n), or a branch that vanishes, which reading the code
    cannot tell. In the mean-field scaling also the same from S and from 2 S samples of the limit, which must agree.

    widths: at least 3. seeds: at least 3, of networks and of the limit's draws. steps: of training, at which is looked, besides 0.
    points: training samples, the first of the problem's, that are used. samples: S; None leaves the limit out. solver: its precision,
    device, batch and bar hold for all networks; float32 if left out. ValueError for problems that FiniteWidth or CausalDMFT refuse.

    Example:
        >>> import meanfield as mf
        >>> from solvers import coordinate_check
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 5))
        >>> report = coordinate_check(problem, widths=(32, 64, 128), seeds=3, samples=None)
        >>> print(str(report).splitlines()[-1])
        all as they should be
    """
    few, sized, limits, chosen, asked = _asked(problem, widths, seeds, steps, points, samples, solver)
    shown = sized[0].progress
    with progress_bar("coordinate check", shown, total=len(sized) + len(limits) * len(chosen)) as bar:
        nets = []
        for net in sized:
            nets.append(_networks(few, net, chosen, asked))
            bar.update()
        found, remark = [], ""
        for limit in limits:
            runs, why = _limits(few, limit, chosen, asked, bar.update)
            found.append(runs)
            remark = remark or why
    sizes = tuple(net.width for net in sized)
    coordinates = _coordinates(few, np.array(sizes, dtype=float), asked, nets, [] if remark else found)
    told = {"data": problem.data.name, "learning rate": f"{problem.training.learning_rate:g}"}
    given = () if remark else tuple(limit.samples for limit in limits)
    return CoordinatesReport(
        problem.network_name, problem.in_plane, sizes, len(chosen), asked, given, coordinates, remark, told
    )


def coordinates_cost(
    problem: Problem,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    steps: Sequence[int],
    points: int,
    samples: int | None,
    solver: FiniteWidth | None,
) -> Estimate:
    """What `coordinate_check` with these arguments takes, from the beginnings of its runs"""
    few, sized, limits, chosen, asked = _asked(problem, widths, seeds, steps, points, samples, solver)
    found = []
    for net in sized:
        batch, looking = chosen[: net.seeds_at_once(few)], replace(net, snapshots=asked)
        cost, how, _ = expected(looking, few, SECONDS, lambda one, some: _networks(some, one, batch, one.snapshots))  # noqa: B023
        found.append(Estimate(cost * len(chosen) / len(batch), bound(net.parts(few, len(chosen))), how))
    for limit in limits:
        looking = replace(limit, snapshots=asked)
        cost, how, _ = expected(looking, few, SECONDS, lambda one, some: _limit(some, one, one.snapshots))
        found.append(Estimate(cost * len(chosen), limit.estimate(few).bytes, how))
    return together(found)


def _asked(
    problem: Problem,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    steps: Sequence[int],
    points: int,
    samples: int | None,
    solver: FiniteWidth | None,
) -> tuple[Problem, list[FiniteWidth], list[CausalDMFT], tuple[int, ...], tuple[int, ...]]:
    """The problem on its first samples, the networks of each width, the limits, the seeds and the steps, once all of them are checked"""
    sizes, chosen = tuple(sorted(checks.integers("widths", widths, 1))), checks.seeds(seeds)
    asked = tuple(sorted({0, *checks.integers("steps", steps, 0)}))
    points = checks.integer("points", points, 1)
    if len(sizes) < 3:
        raise ValueError(f"a power needs at least 3 widths: received {sizes}")
    if len(chosen) < 3:
        raise ValueError(f"an interval needs at least 3 seeds: received {chosen}")
    if problem.in_plane.frozen != "none":
        raise ValueError(
            f"the scaling {problem.in_plane.name!r} keeps a part of the outputs as it starts, which this check does not know: take "
            "mf.mean_field(gamma0)"
        )
    few, solver = _few(problem, points, asked[-1]), solver or FiniteWidth(dtype="float32")
    sized = [replace(solver, width=n, snapshots=()) for n in sizes]
    doubled = () if samples is None or not problem.in_plane.is_mean_field else (samples, 2 * samples)
    limits = [CausalDMFT(s, tolerance=1e-2 if few.is_linear else None, device=solver.device) for s in doubled]
    for net in sized:
        net.check(few, len(chosen))
    for limit in limits:
        limit.check(few)
    return few, sized, limits, chosen, asked


def _few(problem: Problem, points: int, steps: int) -> Problem:
    """The problem on its first samples, for so many steps, with a record at each of them"""
    data, training = problem.data, problem.training
    batch = training.batch_size if training.batch_size is None or training.batch_size < points else None
    data = replace(data, x=data.x[:points], y=data.y[:points], x_test=None, y_test=None)
    return replace(problem, data=data, training=replace(training.of_length(steps), record_every=1, batch_size=batch))


def _networks(problem: Problem, solver: FiniteWidth, seeds: Sequence[int], steps: Sequence[int]) -> Runs:
    """Mean squares of all seeds, at the steps that all of them reached"""
    like = torch.empty(0, dtype=checks.DTYPES[solver.dtype], device=solver.device)
    at_once, found = solver.seeds_at_once(problem), []
    for start in range(0, len(seeds), at_once):
        networks = CheckedNetworks(problem, solver.width, seeds[start : start + at_once], like)
        rtol = tolerance(solver.rtol, problem.has_kinks, like.dtype)
        flow = Flow(problem.training.learning_rate, problem.data.samples, rtol, solver.evaluations)
        state, step = networks.initial_state(), step_of(problem.training, flow)
        run = _uninterrupted(evolve(networks, state, problem, step, snapshots=steps, progress=False))
        found.append([run.captured[step] for step in steps if step in run.captured])
    least = min(map(len, found))
    return [[one for batch in found for one in batch[i]] for i in range(least)]


def _limits(
    problem: Problem, solver: CausalDMFT, seeds: Sequence[int], steps: tuple[int, ...], done: Callable[[], object]
) -> tuple[Runs, str]:
    """Mean squares of all seeds' draws, at the steps that all of them reached, and why a run does not count, if one does not"""
    found, remark = [], ""
    for seed in seeds:
        run = _limit(problem, replace(solver, seed=seed), steps)
        remark = remark or _why(run, solver)
        found.append([run.captured[step] for step in steps if step in run.captured])
        done()
    least = min(map(len, found))
    return [[run[i] for run in found] for i in range(least)], remark


def _limit(problem: Problem, solver: CausalDMFT, steps: Sequence[int]) -> Trajectory:
    like = torch.empty(0, dtype=checks.DTYPES[solver.dtype], device=solver.device)
    population = Population(solver.samples, solver.seed, solver.draws, like, Shard(solver.samples))
    method = CheckedLimit(problem, population, solver.tolerances(problem), solver.rank_limit(problem))
    rtol = tolerance(solver.rtol, problem.has_kinks, like.dtype)
    flow = Flow(problem.training.learning_rate, problem.data.samples, rtol, EVALUATIONS, method.norm)
    step, state = step_of(problem.training, flow), method.initial_state()
    return _uninterrupted(evolve(method, state, problem, step, snapshots=steps, progress=False))


def _uninterrupted(run: Trajectory) -> Trajectory:
    if run.status is Status.INTERRUPTED:
        raise Interrupted("interrupted; nothing was computed that could be kept")
    return run


def _why(run: Trajectory, solver: CausalDMFT) -> str:
    """Why a run of the limit does not count; one that blew up does"""
    if run.status is Status.FINISHED or run.status.blew_up:
        return ""
    return f"no limit from {solver.samples} samples: {run.stats.get('reason', run.status.value)}"


def _coordinates(
    problem: Problem, widths: np.ndarray, steps: tuple[int, ...], nets: Sequence[Runs], limits: Sequence[Runs]
) -> tuple[Coordinate, ...]:
    layers = {p.name: p.key for p in problem.architecture.description} | {"": ""}
    every = list(nets[0][0][0])
    order = sorted(every, key=lambda key: list(layers).index(key[0]))
    return tuple(_coordinate(problem, layers[key[0]], key, widths, steps, nets, limits) for key in order)


def _coordinate(
    problem: Problem,
    layer: str,
    key: tuple[str, str, str],
    widths: np.ndarray,
    steps: tuple[int, ...],
    nets: Sequence[Runs],
    limits: Sequence[Runs],
) -> Coordinate:
    _, place, kind = key
    powers = [expected_power(problem.in_plane, place, kind, step > 0) for step in steps]  # type: ignore[arg-type]
    squares = [_squares(runs, key, len(steps)) for runs in nets]
    of_limit = [_squares(runs, key, len(steps)) for runs in limits] or [np.full((len(steps), 1), np.nan)] * 2
    (values, errors), (limit, limit_errors) = _summary(squares), _summary(of_limit)
    empty = (place, kind) == ("outputs", "field")  # at step 0 the limit's outputs vanish but for rounding
    return Coordinate(
        layer,
        place,  # type: ignore[arg-type]
        kind,  # type: ignore[arg-type]
        values,
        errors,
        np.array(powers),
        tuple(_power(widths, [own[i] for own in squares]) for i in range(len(steps))),
        limit,
        limit_errors,
        tuple(UNKNOWN if empty and i == 0 else doubling_exponent(*(o[i] for o in of_limit)) for i in range(len(steps))),
    )


def _squares(runs: Runs, key: tuple[str, str, str], steps: int) -> np.ndarray:
    """(steps, seeds), nan at those that were not reached"""
    reached = np.array([[one[key] for one in at] for at in runs])
    return np.concatenate([reached, np.full((steps - len(reached), reached.shape[1]), np.nan)])


def _summary(squares: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, sizes) root mean squares and their standard errors, of squares (steps, seeds) for each size"""
    values = np.sqrt(np.stack([own.mean(1) for own in squares], 1))
    spread = np.stack(
        [own.std(1, ddof=1) / np.sqrt(own.shape[1]) if own.shape[1] > 1 else own[:, 0] for own in squares], 1
    )
    return values, np.divide(spread, 2 * values, out=np.zeros_like(values), where=values != 0)


def _power(widths: np.ndarray, squares: Sequence[np.ndarray]) -> Exponent:
    """Of the root of mean squares (seeds,) at each width"""
    means = [float(own.mean()) for own in squares]
    if not np.isfinite(means).all():
        return UNKNOWN
    return exponent_of(widths, means, [left_out_means(own) for own in squares], 0.5) or UNKNOWN
