"""predicted_variance: N times the covariances of width-N networks, from the limit alone (equation 101), or from narrow networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.checking.warning import warn
from meanfield.comparison.fluctuations import PredictedVariance
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.problem import Problem
from solvers.fluctuations.observed import Observables, bytes_of_a_pass, networks_of
from solvers.fluctuations.plan import OF_NETWORKS, Method, Plan, planned, populations
from solvers.fluctuations.starts import Start
from solvers.fluctuations.unrolled import TooManyDirections, Unrolled
from solvers.running.clock import progress_bar
from solvers.running.memory import bound
from solvers.running.rehearsal import SECONDS, by_law
from solvers.running.solver import Estimate
from solvers.two_layer.wasserstein_flow import Initial

_AT_ONCE = 64  # numbers of which derivatives are taken together
_BYTES = 2**30  # that may be kept of the way, and that the derivatives of numbers taken together may hold


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
    width: int | None = None,
    networks: int = 400,
) -> PredictedVariance:
    """lim N Cov of what networks of width N show, f if nothing else is named, with standard errors.

    method="derivative" trains no network: a network is the limit's sweep with plain draws, so that its outputs are a smooth function of
    the weights of its neurons, whose derivatives come from a backward pass through the sweep (equation 101), and it tells from which
    layer's neurons fluctuations come. Perceptrons and modules (equation 101b), by gradient descent. method="networks" trains narrow ones,
    so many of this width (256 if left out, 4096 of two-layer perceptrons), whose covariances are within O(1/width). method left out: the
    first but for kinks, gradient flow, optimisers, more than 16 numbers of a module, since each takes a derivative, and modules that do
    more with their neurons than average over them (several heads).

    observed: names as of `mf.observe` ("f", "f_test", "loss", "test_loss", "Phi1", "G1", "tangent_kernel", ..; of modules no kernels), at
    the steps given, -1 being the last. points: rows of [x; x_test]: outputs and kernels at these only (None: all; each number costs a
    derivative). particles: neurons that stand for a layer, in each of the groups, from whose scatter errors come. tolerance: as of
    CausalDMFT. initial: particles of two-layer networks. kink_width: a derivative sees the delta function in phi'' of a kink (ReLU) as a
    Gaussian of this width in h (equation 19), which fails where steps move preactivations by more, and is warned of. Memory of the
    derivative: the sweep at some of its steps, at most 1 GiB, and as much again for as many numbers as are taken together.

    Example:
        >>> import meanfield as mf
        >>> from solvers import predicted_variance
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), mf.Network(depth=2), mf.mean_field(1.0), mf.Training(0.2, 3))
        >>> predicted_variance(problem, particles=64, progress=False).variance("f").shape
        torch.Size([1, 3, 1])
    """
    plan = planned(
        problem,
        particles,
        seed,
        points,
        initial,
        kink_width,
        observed,
        steps,
        groups,
        tolerance,
        method,
        width,
        networks,
    )
    if plan.way == "networks":
        return _from_networks(plan, progress)
    try:
        found, parts = _by_groups(plan, progress)
    except TooManyDirections:
        if not plan.free:
            raise
        return _from_networks(plan.of_networks(), progress)
    values, covariances = torch.stack([one[0] for one in found]), torch.stack([one[1] for one in found])
    stride = max(one[2] for one in found)
    if problem.has_kinks and stride > kink_width:
        warn(
            f"a step moves preactivations by up to {stride:.2g} (root mean square), more than kink_width={kink_width:g}: the prediction "
            f"for {problem.perceptron.nonlinearity.name} is unreliable; take a smaller learning_rate, or method='networks'",
            RuntimeWarning,
        )
    settings = {"method": plan.way, "seed": seed, "particles": particles, "groups": groups, "tolerance": tolerance}
    placed = plan.observables.placed(values.mean(0), len(plan.at))
    return PredictedVariance(problem, plan.at, *placed, settings, parts, covariances)


def _by_groups(plan: Plan, progress: bool | None) -> tuple[list[tuple[Tensor, Tensor, float]], tuple[str, ...]]:
    """What derivatives give in each group, and the names of populations"""
    found, parts, total = [], (), plan.observables.count(len(plan.at))
    with progress_bar("predicted variance", progress, total=plan.groups * total) as bar:
        for group in range(plan.groups):
            with torch.inference_mode(False), torch.enable_grad():  # whatever the caller's mode is
                start = plan.start(group)
                found.append(_from_derivatives(plan.problem, plan.observables, plan.at, start, bar.update))
            parts = start.parts
    return found, parts


def variance_cost(plan: Plan, seconds: float = SECONDS) -> Estimate:
    """What `predicted_variance` takes: of derivatives by those of some numbers after fewer steps, of networks by their beginnings"""
    total, held = plan.observables.count(len(plan.at)), {}
    if plan.way == "networks":
        whole = networks_of(plan.observables, plan.at, plan.width).estimate(
            plan.problem, plan.networks, seconds=seconds
        )
        return replace(whole, bytes=whole.bytes + 16.0 * OF_NETWORKS * total**2)
    most, each = max(plan.at), plan.observables.count(1)
    one = partial(_of_a_number, plan.problem, plan.particles)

    def run(steps: int) -> None:
        few = plan.at_end_of(steps)
        start = few.start(0)
        unrolled = Unrolled(few.problem, start.network, start.begin, few.observables, few.at)
        kept, _ = unrolled.forward(_BYTES)
        state = kept[-1].size
        unrolled.influences(kept, 0, min(each, _together(one(state))))
        held[steps] = state

    try:
        law, last = by_law(run, most, seconds)
    except TooManyDirections:
        if not plan.free:
            raise
        return variance_cost(plan.of_networks(), seconds)
    state = max(held.values()) * (most + 1) / (last + 1)
    at_once = _together(one(state))
    pieces = total / min(each, at_once)
    steps = f"the first {last} of {most} steps" if last < most else "the whole training"
    how = f"{min(each, total)} of {plan.groups * total} derivatives of {steps}"
    together = one(state) * min(total, at_once)
    covariances = 8.0 * plan.groups * populations(plan.problem) * total**2
    parts = {
        "states": min(_BYTES, most * state),
        "derivatives": 2.0 * together,
        "passes": 6.0 * one(state),
        "covariances": covariances,
    }
    return Estimate(
        float(law[-1]) * plan.groups * pieces, bound({name: (size, "") for name, size in parts.items()}), how
    )


def _together(size: float) -> int:
    """Numbers of which derivatives are taken together, where one holds so many bytes"""
    return max(1, min(_AT_ONCE, int(_BYTES / max(1, size))))


def _of_a_number(problem: Problem, particles: int, state: float) -> float:
    """Bytes that the derivative of one number holds: as much as the state, of modules what autograd makes of it on its way, too"""
    return state if problem.trial is None else 2.5 * max(state, bytes_of_a_pass(problem, particles))


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
    pieces, together = [], _together(_of_a_number(problem, start.network.population.samples, kept[-1].size))
    for first in range(0, total, together):
        stop = min(first + together, total)
        pieces.append(unrolled.influences(kept, first, stop))
        told(stop - first)
    covariances = []
    whole = map(torch.cat, zip(*pieces, strict=True))
    for m, size, influence in zip(dict.fromkeys(start.network.weights), start.sizes, whole, strict=True):
        apart = influence - (influence @ m.detach())[:, None]
        covariances.append((apart * m.detach()) @ apart.T / size)
    return torch.cat(found), torch.stack(covariances), unrolled.stride


def _from_networks(plan: Plan, progress: bool | None) -> PredictedVariance:
    """From narrow networks, of which each group gives an estimate without bias but for O(1/width)"""
    seeds = [plan.seed * plan.networks + k for k in range(plan.networks)]
    trained = networks_of(plan.observables, plan.at, plan.width, progress).ensemble(plan.problem, seeds)
    numbers = torch.stack([plan.observables.of_solution(net, plan.at) for net in trained])
    size = plan.networks // OF_NETWORKS
    groups = numbers[: size * OF_NETWORKS].reshape(OF_NETWORKS, size, -1)
    apart = groups - groups.mean(1, keepdim=True)
    covariances = plan.width * apart.transpose(1, 2) @ apart / (size - 1)
    settings = {"method": plan.way, "seed": plan.seed, "width": plan.width, "networks": plan.networks}
    settings |= {"because": plan.why} if plan.why else {}
    placed = plan.observables.placed(numbers.mean(0), len(plan.at))
    return PredictedVariance(plan.problem, plan.at, *placed, settings, ("all neurons",), covariances[:, None])
