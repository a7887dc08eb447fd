"""residual: one application of the self-consistent map to any DMFT solution with fresh samples, its certificate (equation 32)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import stdtrit
from tqdm.auto import tqdm

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.problem.problem import Problem
from meanfield.problem.stream import must_come_again
from meanfield.solution.solution import Solution
from solvers.dmft.dmft_window import Kernels, Window, distance
from solvers.running.clock import progress_bar
from solvers.running.rehearsal import SECONDS, by_law

LEVEL = 0.01  # of the whole certificate: how often noise alone makes a good solution fail
_IMAGES, _MOST = 10, 50  # applications of the map that responses take, as seen and at most
_ENOUGH = (1e-4, 1e-12)  # how little images move in the end, by samples and exactly
_SECONDS = 10.0  # a certificate takes about as long as its run, and this where the run was shorter


@checked
@dataclass(frozen=True)
class Certificate:
    """How far one application of the map moves a solution's kernels ("Phi1".., "G1".., "f"), and by how much noise would (equation 32).

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT, residual
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> found = residual(CausalDMFT(samples=512)(problem))
        >>> sorted(found.residuals), found.steps, found.total
        (['G1', 'G2', 'Phi1', 'Phi2', 'f'], 3, 3)
    """

    residuals: Mapping[str, float]
    """Relative distance, by kernel"""
    floors: Mapping[str, float]
    """What noise of the draws would show, by kernel"""
    samples: int
    """Neurons of each draw"""
    draws: int
    """Independent applications"""
    steps: int
    """The last step that was tested"""
    total: int
    """Steps of the solution"""

    __repr__ = brief
    _repr_html_ = html

    @property
    def limit(self) -> float:
        """How many floors a residual may have: noise alone passes it anywhere in the table once in 1 / LEVEL certificates, or less often.

        Student's t of draws - 1 degrees of freedom, for the worst case of noise in one direction only, Bonferroni's share of the
        level for each residual. A single draw (linear networks) has no noise but rounding: 4.
        """
        share = LEVEL / (2 * len(self.residuals))
        return float(stdtrit(self.draws - 1, 1 - share)) if self.draws > 1 else 4.0

    @property
    def consistent(self) -> bool:
        """Whether every residual is below `limit` floors (False for NaN)"""
        return all(self.residuals[name] < self.limit * self.floors[name] for name in self.residuals)

    def __str__(self) -> str:
        lines = [f"{'':8}{'residual':>12}{'floor':>12}{'ratio':>8}"]
        for name, found in self.residuals.items():
            floor = self.floors[name]
            lines.append(f"{name:8}{found:12.3g}{floor:12.3g}{found / floor:8.2f}")
        how = (
            "rounding stays below it"
            if self.draws == 1
            else f"noise alone passes it in {LEVEL:.0%} of certificates at most"
        )
        verdict = (
            f"consistent: every ratio is below {self.limit:.1f} ({how})"
            if self.consistent
            else f"NOT consistent: a ratio is above {self.limit:.1f} ({how}); this is no solution of its equations"
        )
        return "\n".join([f"{self.test}:", *lines, verdict])

    @property
    def test(self) -> str:
        """What was tested, with what"""
        many = f"{self.draws} draws of {self.samples} samples" if self.draws > 1 else "exactly"
        return f"certificate of steps 0 to {self.steps} of {self.total}, {many}"


@dataclass(frozen=True)
class Planned:
    """A certificate that is planned: steps 0..`steps` of `total`, `draws` of `samples` neurons; `seconds`, about, on this machine."""

    steps: int
    total: int
    samples: int
    draws: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"certificate of steps 0 to {self.steps} of {self.total} ({self.draws} draws of {self.samples} samples): "
            f"about {self.seconds:.2g} s"
        )


def planned(solution: Solution, samples: int | None = None, repeats: int = 8, steps: int | None = None) -> Planned:
    """The certificate that `residual` would make with these arguments, and its cost, from draws of short windows.

    ValueError or MemoryError as there.
    """
    count, draws, total = _sizes(solution, samples, repeats)
    budget = max(float(solution.stats.get("seconds", 0.0)), _SECONDS)
    if steps is None:
        data = solution.problem.data
        enough = total if draws == 1 else count // (2 * data.samples * (1 + data.outputs)) - 1
        most = max(min(1, total), min(total, enough))
        seconds = draws * _draw_seconds(solution, count, draws, most, budget / draws)
        last = max(min(1, total), int((np.maximum.accumulate(seconds) <= budget).sum()) - 1)
    else:
        last = _must_fit(solution, count, draws, total, steps)
        seconds = draws * _draw_seconds(solution, count, draws, last, SECONDS)
    return Planned(_must_fit(solution, count, draws, total, last), total, count, draws, float(seconds[last]))


def _sizes(solution: Solution, samples: int | None, repeats: int) -> tuple[int, int, int]:
    """(samples, draws, the last step that can be tested)"""
    _must_have_a_map(solution.problem)
    exact = solution.problem.is_linear
    own = solution.solver.get("samples") or solution.solver.get("width") or 4096
    count = checks.integer("samples", own if samples is None else samples, 2)
    draws = 1 if exact else checks.integer("repeats", repeats, 2)
    return count, draws, _known(solution)


def _must_fit(solution: Solution, samples: int, draws: int, total: int, steps: int) -> int:
    """`steps`, or all for -1; ValueError or MemoryError for what the solution, the samples or the memory do not admit"""
    last, data = total if steps == -1 else checks.integer("steps", steps, 0), solution.problem.data
    if last > total:
        raise ValueError(f"steps={last} is beyond the solution, which has {total}: give fewer, or -1 for all")
    rows = data.samples * (1 + data.outputs) * (last + 1)
    if draws > 1 and samples < 2 * rows:
        raise ValueError(
            f"a certificate of steps 0 to {last} needs at least {2 * rows} samples, two for each Gaussian of a neuron: received {samples}; "
            "give more samples or fewer steps"
        )
    size = 8 * (solution.problem.perceptron.depth + 3) * rows * samples
    checks.memory(f"a certificate of steps 0 to {last}", size, "test fewer steps, or take fewer samples")
    return last


def _draw_seconds(solution: Solution, samples: int, draws: int, most: int, seconds: float) -> np.ndarray:
    """(most + 1,) seconds of one draw and its images on the window of so many steps"""
    enough = _ENOUGH[draws == 1]

    def draw(steps: int) -> None:
        window = Window(_window_problem(solution, steps), steps, samples, seed=0)
        _answer(window, _given(solution, steps), enough, progress_bar("", False))

    return by_law(draw, most, seconds)[0]


@checked
def residual(
    solution: Solution,
    samples: int | None = None,
    seed: int = 1,
    repeats: int = 8,
    steps: int | None = None,
    progress: bool | None = None,
) -> Certificate:
    """Apply the map once, with fresh samples, to the kernels of any solution that kept them at all pairs of steps.

    steps: the last step that is tested, -1 for all; None takes as many as cost about as much as the run itself (or ten seconds), for the
    cost grows like their square and more; the result names them. The first steps know nothing of later ones, so what they say holds.
    Phi, G and f are the solution's and stay as they are. Responses are not part of a Solution: they are found for these kernels by
    repeating the map for A and B alone until its other results move by less than 1e-4 (1e-12 for linear networks), 50 times at most.
    The image is the mean over `repeats` independent draws of `samples` neurons (default: the solution's number). Floor: the spread
    of single draws, as the solution's own noise (scaled by 1/sqrt(samples)) and the mean's. Linear networks: 1e-10, for rounding.
    ValueError for a solution without those kernels, or of a problem without such a map (biases, residual branches, momentum, ..).

    Example:
        >>> import meanfield as mf
        >>> from solvers import CausalDMFT, residual
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> residual(CausalDMFT(samples=512)(problem), progress=False).consistent
        True
    """
    count, draws, total = _sizes(solution, samples, repeats)
    last = planned(solution, samples, repeats).steps if steps is None else steps
    last = _must_fit(solution, count, draws, total, last)
    first = 1000 * checks.integer("seed", seed, 0) + 501
    problem, now = _window_problem(solution, last), _given(solution, last)
    exact, images = draws == 1, []
    with progress_bar("certificate", progress, total=draws * _IMAGES) as bar:
        for draw in range(draws):
            window = Window(problem, last, count, first + draw)
            images.append(_answer(window, now, _ENOUGH[exact], bar))
            bar.n = (draw + 1) * _IMAGES
    residuals, floors = {}, {}
    own = (solution.solver.get("samples") or solution.solver.get("width") or 4096) * (
        solution.solver.get("groups") or 1
    )
    for name, q in now.items():
        stack, size = torch.stack([image[name] for image in images]), float(q.norm())
        residuals[name] = float((stack.mean(0) - q).norm()) / size
        spread = 0.0 if exact else float((stack - stack.mean(0)).square().sum() / (len(stack) - 1)) ** 0.5 / size
        floors[name] = 1e-10 if exact else spread * math.sqrt(1 / len(stack) + count / own)
    return Certificate(residuals, floors, count, draws, last, total)


def _must_have_a_map(problem: Problem) -> None:
    """ValueError for a problem whose single-neuron equations are not those of the window"""
    must_come_again(problem.data, "the certificate")
    problem.in_plane.measure_limit()
    others = "Other seeds (groups=4) and networks (mf.deviation) test"
    if problem.trial is not None:
        raise ValueError(
            f"the certificate tests perceptrons, mf.Network(..), of which it knows the equations of a single neuron: received the module "
            f"{problem.network_name!r}. {others} modules"
        )
    network, other = (
        problem.perceptron_for("the certificate"),
        problem.training.other_than("batch_size", "schedule", "warmup"),
    )
    found = [
        word
        for word, present in (
            (f"bias_std={network.bias_std:g}", network.bias_std),
            (f"residual={network.residual}", network.residual is not None),
            (other, other),
        )
        if present
    ]
    if found:
        raise ValueError(
            "the certificate tests networks without biases and residual branches, under gradient_descent without momentum and "
            f"weight_decay: received {', '.join(found)}. {others} these"
        )


def _known(solution: Solution) -> int:
    """The last step up to which all kernels are known at all pairs of steps; ValueError if there is none"""
    kernels = solution.kernels
    counts = {name: len(kernels[name].steps) if name in kernels else 0 for name in solution.problem.keys("Phi", "G")}
    short = [name for name, count in counts.items() if not count or kernels[name].steps != tuple(range(count))]
    if short:
        raise ValueError(
            f"the certificate needs the kernels at all steps 0..{solution.steps}, which are missing for {', '.join(short)}: "
            "solve with CausalDMFT(two_time=True) and record_every=1"
        )
    return min(solution.steps, min(counts.values()) - 1)


def _window_problem(solution: Solution, steps: int) -> Problem:
    """The problem up to `steps`, without test samples"""
    problem = solution.problem
    training = problem.training.of_length(steps)
    return replace(problem, training=training, data=replace(problem.data, x_test=None, y_test=None))


def _given(solution: Solution, steps: int) -> Kernels:
    """Joint kernels and f of a solution at the steps 0..`steps`"""
    joint = {
        name: solution.kernels[name].factor[: steps + 1].double().transpose(0, 1).flatten(1)
        for name in solution.problem.keys("Phi", "G")
    }
    return {name: c.T @ c for name, c in joint.items()} | {"f": solution.f[: steps + 1].double()}


def _answer(window: Window, now: Kernels, limit: float, bar: tqdm) -> Kernels:
    """The image of the kernels `now`, with the responses that belong to them"""
    zeros = window.zeros()
    responses = {key: zeros[key] for key in window.responses}
    image = window.image(now | responses)
    for done in range(_MOST):
        bar.update(done < _IMAGES - 1)
        responses = {name: image[name] for name in responses}
        before, image = image, window.image(now | responses)
        if max(distance(image[name], before[name]) for name in now) < limit:
            break
    return image
