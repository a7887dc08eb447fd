"""predicted_variance: N times the covariances of width-N networks, from the limit alone (equation 101), or from narrow networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.comparison.fluctuations import PredictedVariance
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.problem import Problem
from solvers.finite.finite_width import FiniteWidth
from solvers.fluctuations.kinks import softened
from solvers.fluctuations.observed import Observables, asked_rows, asked_steps, default_names, must_fit
from solvers.fluctuations.starts import Start, start_of
from solvers.fluctuations.unrolled import Unrolled
from solvers.running.clock import progress_bar
from solvers.two_layer.wasserstein_flow import Initial

Method = Literal["derivative", "networks"]
_AT_ONCE = 64  # numbers of which derivatives are taken together
_BYTES = 2**30  # that may be kept of the way, and that the derivatives of numbers taken together may hold
_OF_NETWORKS = 20  # groups into which narrow networks are divided


@checked
def predicted_variance(
    problem: Problem,
    particles: int = 2**10,
    seed: int = 0,
    points: Sequence[int] | None = None,
    initial: Initial | ParticleMeasure = "sobol",
    kink_width: float = 0.2,
    progress: bool | None = None,
    *,
    observed: Sequence[str] | None = None,
    steps: Sequence[int] = (-1,),
    groups: int = 4,
    tolerance: float = 1e-3,
    method: Method | None = None,
    width: int = 256,
    networks: int = 400,
) -> PredictedVariance:
    """lim N Cov of what networks of width N show, f if nothing else is named, with standard errors.

    method="derivative" trains no network: a network is the limit's sweep with plain draws, so that its outputs are a smooth function of
    the weights of its neurons, whose derivatives come from a backward pass through the sweep (equation 101), and it tells from which
    layer's neurons fluctuations come. Perceptrons, by gradient descent. method="networks" trains narrow ones, so many of this width,
    whose covariances are within O(1/width). Left out, it is the first but for modules, gradient flow and activations with kinks.

    observed: names as of `mf.observe` ("f", "f_test", "loss", "test_loss", "Phi1", "G1", "tangent_kernel", ..; of modules no kernels), at
    the steps given, -1 being the last. points: rows of [x; x_test]: outputs and kernels at these only (None: all; each number costs a
    derivative). particles: neurons that stand for a layer, in each of the groups, from whose scatter errors come. tolerance: as of
    CausalDMFT. initial: particles of two-layer networks. kink_width: a derivative sees the delta function in phi'' of a kink (ReLU) as a
    Gaussian of this width in h (equation 19), which fails where steps move preactivations by more, and is warned of. Memory of the
    derivative: the sweep at some of its steps, at most 1 GiB, and as much again for as many numbers as are taken together.
    """
    particles, groups = checks.integer("particles", particles, 2), checks.integer("groups", groups, 1)
    width, networks = checks.integer("width", width, 2), checks.integer("networks", networks, 2 * _OF_NETWORKS)
    seed = checks.seed("seed", seed)
    observables = Observables(problem, default_names(problem, observed), asked_rows(problem, points))
    at = asked_steps(problem, steps)
    smooth = problem.trial is None and problem.training.optimiser == "gradient_descent"
    kinks = problem.has_kinks and bool(problem.training.steps)
    way = method or ("derivative" if smooth and not kinks else "networks")
    settings = {"method": way, "seed": seed}
    numbers, parts = observables.count(len(at)), 1 if way == "networks" else problem.perceptron.depth
    held = _OF_NETWORKS * numbers**2 + networks * numbers if way == "networks" else groups * parts * numbers**2
    checks.memory(
        f"the covariances of {numbers} numbers", 16.0 * held, "ask for fewer points, steps, groups or networks"
    )
    if way == "networks":
        return _from_networks(problem, observables, at, settings, width, networks, progress)
    if not smooth:
        raise ValueError(
            "method='derivative' follows perceptrons by gradient_descent: received "
            + (f"the optimiser {problem.training.optimiser!r}" if problem.trial is None else "a module")
            + "; method='networks' takes any"
        )
    settings |= {"particles": particles, "groups": groups, "tolerance": tolerance}
    must_fit(problem, "particles", particles, tolerance)
    fixed = isinstance(initial, ParticleMeasure) or initial == "gauss_hermite"  # each group would be the same
    phi = softened(problem.perceptron.nonlinearity, checks.positive("kink_width", kink_width))
    found, parts = [], ()
    bar = progress_bar("predicted variance", progress, total=(1 if fixed else groups) * observables.count(len(at)))
    with bar:
        for group in range(1 if fixed else groups):
            start = start_of(problem, particles, seed + group, initial, tolerance, phi)
            found.append(_from_derivatives(problem, observables, at, start, bar.update))
            parts = start.parts
    values, covariances = torch.stack([one[0] for one in found]), torch.stack([one[1] for one in found])
    stride = max(one[2] for one in found)
    if problem.has_kinks and stride > kink_width:
        warn(
            f"a step moves preactivations by up to {stride:.2g} (root mean square), more than kink_width={kink_width:g}: the prediction "
            f"for {problem.perceptron.nonlinearity.name} is unreliable; take a smaller learning_rate, or method='networks'",
            RuntimeWarning,
        )
    return PredictedVariance(problem, at, *observables.placed(values.mean(0), len(at)), settings, parts, covariances)


def _from_derivatives(
    problem: Problem,
    observables: Observables,
    at: tuple[int, ...],
    start: Start,
    told: Callable[[int], object],
) -> tuple[Tensor, Tensor, float]:
    """(Q,) what is observed, (parts, Q, Q) the covariances over neurons of its derivatives in their weights (equation 101), and how far a
    step moves preactivations
    """
    unrolled, total = Unrolled(problem, start.network, start.begin, observables, at), observables.count(len(at))
    kept, found = unrolled.forward(_BYTES)
    largest = sum(t.nbytes for t in kept[-1].moment.tensors())
    pieces, together = [], max(1, min(_AT_ONCE, int(_BYTES / max(1, largest))))
    for first in range(0, total, together):
        stop = min(first + together, total)
        pieces.append(unrolled.influences(kept, first, stop))
        told(stop - first)
    covariances = []
    for m, influence in zip(
        dict.fromkeys(start.network.weights), map(torch.cat, zip(*pieces, strict=True)), strict=True
    ):
        apart = influence - (influence @ m.detach())[:, None]
        covariances.append((apart * m.detach()) @ apart.T)
    return torch.cat(found), torch.stack(covariances), unrolled.stride


def _from_networks(
    problem: Problem,
    observables: Observables,
    at: tuple[int, ...],
    settings: dict[str, object],
    width: int,
    networks: int,
    progress: bool | None,
) -> PredictedVariance:
    """From narrow networks, of which each group gives an estimate without bias but for O(1/width)"""
    seeds = [settings["seed"] * networks + k for k in range(networks)]  # type: ignore[operator]
    kernels = [name for name in observables.names if name not in ("f", "f_test", "loss", "test_loss")]
    solver = FiniteWidth(width, dtype="float32", snapshots=at if kernels else (), keep_neurons=False, progress=progress)
    trained = solver.ensemble(problem, seeds)
    numbers = torch.stack([observables.of_solution(net, at) for net in trained])
    size = networks // _OF_NETWORKS
    groups = numbers[: size * _OF_NETWORKS].reshape(_OF_NETWORKS, size, -1)
    apart = groups - groups.mean(1, keepdim=True)
    covariances = width * apart.transpose(1, 2) @ apart / (size - 1)
    settings = settings | {"width": width, "networks": networks}
    return PredictedVariance(
        problem, at, *observables.placed(numbers.mean(0), len(at)), settings, ("all neurons",), covariances[:, None]
    )
