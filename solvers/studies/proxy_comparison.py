"""proxy_comparison: which limit stands best for networks of one width, by the KL between Gaussian fits of logits (equation 73)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.comparison.scaling_reports import ProxyReport
from meanfield.comparison.statistics import gaussian_kl_floor, gaussian_kl_interval
from meanfield.problem.problem import Problem
from meanfield.scaling.plane import exponents
from meanfield.scaling.scaling import NAMED, Scaling
from meanfield.solution.solution import Solution
from solvers.finite.finite_width import FiniteWidth
from solvers.lazy.lazy_kernels import has_random_start
from solvers.lazy.tangent_kernel_limit import TangentKernelLimit
from solvers.running.rehearsal import together
from solvers.running.solver import Ensemble, Estimate, Solver, Started
from solvers.two_layer.infinite_logits import InfiniteLogitsLimit, rescaled
from solvers.two_layer.initial_outputs import initial_draws
from solvers.two_layer.wasserstein_flow import WassersteinFlow


@checked
@dataclass(frozen=True)
class Proxy:
    """A limit that may stand for a network.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, Proxy, proxy_comparison
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 3))
        >>> wide = {"ntk, N = 256": Proxy("ntk", FiniteWidth(256))}
        >>> proxy_comparison(problem, reference_width=16, limits=wide, seeds=4).names
        ('ntk, N = 256',)
    """

    scaling: str | Scaling
    """Its name, or a Scaling"""
    solver: Solver
    """What solves it, e.g. a very wide FiniteWidth"""

    def problem(self, problem: Problem, reference_width: int) -> Problem:
        """The problem with this scaling, equal to the asked one at the reference width"""
        reference_width = checks.integer("reference_width", reference_width, 1)
        named = self.scaling
        scaling = named if isinstance(named, Scaling) else checks.lookup("scaling", named, NAMED)()
        return replace(problem, scaling=scaling.matching(problem.in_plane, reference_width))

    def outputs(self, problem: Problem, reference_width: int, seeds: Sequence[int]) -> np.ndarray:
        """(seeds, T+1, Q) outputs, those that grow with the width at the scale of the reference width; one run if nothing is random"""
        asked = self.problem(problem, reference_width)
        found = _runs(self.solver, asked, seeds[: self._draws(asked, len(seeds))])
        grows = exponents(asked.in_plane).f > 0
        return np.stack([_outputs(rescaled(s) if grows and s.width is not None else s) for s in found])

    def _draws(self, asked: Problem, most: int) -> int:
        """How many runs differ in more than their sampling error: of a limit without a random start one alone"""
        return most if isinstance(self.solver, FiniteWidth) or has_random_start(asked.in_plane) else 1


def five_limits(particles: int = 2**9) -> dict[str, Proxy]:
    """The five limits of the scaling plane, each with its solver"""
    flow = WassersteinFlow(particles, snapshots=())
    infinite = InfiniteLogitsLimit(particles, snapshots=())
    return {
        "ic_mean_field": Proxy("ic_mean_field", flow),
        "mean_field": Proxy("mean_field", flow),
        "ntk": Proxy("ntk", TangentKernelLimit(snapshots=())),
        "sym_default": Proxy("sym_default", infinite),
        "default": Proxy("default", infinite),
    }


@checked
def proxy_comparison(
    problem: Problem,
    reference_width: int = 64,
    limits: Mapping[str, Proxy] | Sequence[str] | None = None,
    seeds: int | Sequence[int] = 256,
    limit_seeds: int | Sequence[int] | None = None,
) -> ProxyReport:
    """Compare limits with networks of the reference width, at which all scalings train the same networks (equation 73).

    problem: its scaling gives the values at the reference width. limits: names of scalings (None: all five, see `five_limits()`), or a
    mapping from labels to `Proxy(scaling, solver)`, e.g. {"ntk, N = 4096": Proxy("ntk", FiniteWidth(4096))}. seeds: networks;
    limit_seeds: runs of each limit, as many if left out. Measured on the test samples, if there are any. A limit without randomness
    has an infinite KL; its `distance` is finite. Intervals come from leaving one network or one run of the limit out at a time, and need
    at least three runs of it; with fewer than about eight of either they span orders of magnitude.

    Example:
        >>> import meanfield as mf
        >>> from solvers import proxy_comparison
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 3))
        >>> report = proxy_comparison(problem, reference_width=16, limits=("mean_field", "ntk"), seeds=8)
        >>> float(report.kl[0, -1]), bool(report.kl[1, -1] < 100)  # a limit without randomness against networks that have some
        (inf, True)
    """
    chosen = checks.seeds(seeds)
    of_limit = chosen if limit_seeds is None else checks.seeds(limit_seeds, "limit_seeds")
    if len(chosen) < 4:
        raise ValueError(f"a Gaussian fit of the networks needs at least 4 seeds: received {len(chosen)}")
    if problem.in_plane.frozen == "added":
        raise ValueError(
            "with frozen='added' the networks of the reference width are others than those of the other scalings"
        )
    proxies = _proxies(limits)
    if not proxies:
        raise ValueError("limits is empty: give at least one, e.g. limits=['ntk']")
    reference_width = checks.integer("reference_width", reference_width, 1)
    for proxy in proxies.values():
        proxy.solver.check(proxy.problem(problem, reference_width))
    nets = np.stack([_outputs(s) for s in _networks(reference_width).ensemble(problem, chosen)])
    found = [proxy.outputs(problem, reference_width, of_limit) for proxy in proxies.values()]
    kl = [gaussian_kl_interval(f, nets) for f in found]
    estimate, low, high = (np.array(rows) for rows in zip(*kl, strict=True))
    data = problem.data
    which = f"{data.samples} training" if data.x_test is None else f"{len(data.x_test)} test"
    floor = gaussian_kl_floor(len(of_limit), len(chosen))
    return ProxyReport(
        names=tuple(proxies),
        reference_width=reference_width,
        times=problem.training.times.numpy(),
        kl=estimate,
        low=low,
        high=high,
        distance=np.array([_distance(f, nets) for f in found]),
        floor=np.full(estimate.shape[1], floor),
        seeds=len(chosen),
        limit_seeds=tuple(len(f) for f in found),
        settings={"data": data.name, "samples": which, "network": problem.perceptron.nonlinearity.name,
                  "learning rate": f"{problem.training.learning_rate:g}"},
    )  # fmt: skip


def proxy_cost(
    problem: Problem, reference_width: int, limits: Sequence[str] | None, seeds: int, limit_seeds: int | None
) -> Estimate:
    """What `proxy_comparison` with these arguments takes, from the beginnings of its runs"""
    found, runs = [_networks(reference_width).estimate(problem, seeds)], seeds if limit_seeds is None else limit_seeds
    for proxy in _proxies(limits).values():
        asked = proxy.problem(problem, reference_width)
        found.append(_cost(proxy.solver, asked, proxy._draws(asked, runs)))
    return together(found)


def _runs(solver: Solver, problem: Problem, seeds: Sequence[int]) -> list[Solution]:
    """One solution for each seed; the covariance of f0 is found once"""
    if isinstance(solver, Ensemble):
        return solver.ensemble(problem, seeds)
    one_each = [replace(solver, seed=seed) for seed in seeds]
    if isinstance(solver, Started) and len(seeds) > 1:
        one_each = [replace(one, f0=f0) for one, f0 in zip(one_each, initial_draws(problem, seeds), strict=True)]
    return [one(problem) for one in one_each]


def _cost(solver: Solver, problem: Problem, runs: int) -> Estimate:
    """Of `_runs`"""
    if isinstance(solver, Ensemble):
        return solver.estimate(problem, runs)
    if not isinstance(solver, Started) or runs == 1:
        one = solver.estimate(problem)
        return replace(one, seconds=runs * one.seconds)
    drawn = replace(solver, snapshots=()).estimate(problem.with_steps(0))
    data = problem.data
    one = replace(solver, f0=torch.zeros(data.points, data.outputs, dtype=data.y.dtype)).estimate(problem)
    return replace(one, seconds=drawn.seconds + runs * one.seconds)


def _networks(width: int) -> FiniteWidth:
    return FiniteWidth(width, snapshots=(), keep_neurons=False)


def _proxies(asked: Mapping[str, Proxy] | Sequence[str] | None) -> dict[str, Proxy]:
    known = five_limits()
    if asked is None:
        return known
    if isinstance(asked, Mapping):
        return dict(asked)
    return {name: checks.lookup("limit", name, known) for name in ((asked,) if isinstance(asked, str) else asked)}


def _outputs(solution: Solution) -> np.ndarray:
    """(T+1, Q) test outputs, training outputs if there are none"""
    f = solution.f if solution.f_test is None else solution.f_test
    return f.to(torch.float64).flatten(1).numpy()


def _distance(f: np.ndarray, nets: np.ndarray) -> np.ndarray:
    """(T+1,) 2-Wasserstein distance of the Gaussian fits, root mean square over samples, relative to the networks' outputs"""
    spread = f.std(0, ddof=1) if len(f) > 1 else np.zeros(f.shape[1:])
    squared = (f.mean(0) - nets.mean(0)) ** 2 + (spread - nets.std(0, ddof=1)) ** 2
    return np.sqrt(squared.mean(-1) / (nets**2).mean((0, -1)))
