"""How far finite networks are from a limit: bias, variance, floor, and their exponents in the width (equations 13 to 17)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.comparison.distances import marginal_distance, measure_distance, sample_of
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance
from meanfield.comparison.observables import has_preactivations, observables, observe, recorded_observables
from meanfield.comparison.predicted import Fluctuation, fluctuations, scaled_variance
from meanfield.comparison.report import Deviation, DeviationReport
from meanfield.comparison.statistics import (
    bias_exponent,
    exponent_of,
    jackknife_error,
    left_out_means,
    left_out_moments,
    moments,
)
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.keys import Key
from meanfield.problem.stream import Stream, laws_must_be_known
from meanfield.scaling.plane import exponents as powers
from meanfield.scaling.scaling import Scaling
from meanfield.solution.solution import Solution, preactivation_keys

_LARGEST_CLOUD = 1024  # particles per side in the distance of whole measures
_OF_PARTICLES = {
    "mass_rate": "masses that move",
    "readout_ridge": "a readout at its optimum",
    "variation": "a penalty of their own",
}  # settings of a limit
_CLOUDS = 4  # networks per width in that distance


@checked
def deviation(
    nets: Sequence[Solution],
    limits: Solution | Sequence[Solution],
    names: Sequence[str] | None = None,
    predicted: Tensor | PredictedVariance | None = None,
    seed: int = 0,
    bias: PredictedBias | None = None,
) -> DeviationReport:
    """Compare networks (any widths, at least two seeds each) with a limit.

    limits: one solution, or several independent ones (other seeds): then the reference is their mean and carries its own error, as
    does a single one with `standard_errors`.
    names: observables ("loss", "f", "Phi1", "tangent_kernel", "h1", "measure", ..); None takes all that were recorded, "measure"
    only in up to ten dimensions. predicted, bias: what `solvers.predicted_variance` and `predicted_bias` found, to be compared with what
    the networks show at the same steps and points (of kernels, where all have a snapshot); or N Var f_T (P, C). seed: of the neurons
    drawn from the limit, for the floor of distances. ValueError for what cannot be compared.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> nets = [net for width in (16, 64, 256) for net in FiniteWidth(width).ensemble(problem, seeds=6)]
        >>> report = mf.deviation(nets, WassersteinFlow(particles=1024)(problem), names=("f",))
        >>> report.widths, bool(report["f"].deviation[0] > report["f"].deviation[-1])
        ((16, 64, 256), True)
    """
    limits = [limits] if isinstance(limits, Solution) else list(limits)
    by_width = _grouped(nets, limits)
    made = tuple(p for p in (predicted, bias) if isinstance(p, (PredictedVariance, PredictedBias)))
    predictions = fluctuations(by_width, limits, made)
    expected, expected_se = _of_last(predicted, limits[0], predictions)
    names = tuple(names) if names is not None else _default_names(nets, limits)
    problem = limits[0].problem
    distances = {*preactivation_keys(limits[0]), "measure"}
    for name in names:
        checks.lookup("observable", name, {**observables(limits[0]), **dict.fromkeys(distances)})
    rng = np.random.default_rng(checks.seed("seed", seed))
    by_name = {
        name: _distance(name, by_width, limits, rng) if name in distances else _decompose(name, by_width, limits)
        for name in names
    }
    scaled = [
        scaled_variance(width, torch.stack([net.f[-1].double().flatten() for net in group]))
        for width, group in by_width.items()
    ]
    first = limits[0]
    return DeviationReport(
        widths=tuple(by_width),
        seeds=tuple(len(group) for group in by_width.values()),
        observables=by_name,
        n_var=np.array([v for v, _ in scaled]),
        n_var_se=np.array([e for _, e in scaled]),
        predicted_n_var=expected,
        predicted_n_var_se=expected_se,
        predictions=predictions,
        settings={
            "networks": f"{len(nets)} of {problem.network_name}",
            "limit": f"{first.solver['name']} x {len(limits)}",
            "data": f"{problem.data.name}, P = {problem.data.samples}",
            "steps": str(first.steps),
        }
        | ({"outputs": "outputs at watched samples"} if isinstance(problem.data, Stream) else {})
        | _warning(first),
    )


def _warning(limit: Solution) -> dict[str, str]:
    """A line of the report where deviations hold the spread of a random f(0). No Python warning: that spread may be what is asked for."""
    scaling = limit.problem.scaling
    if isinstance(scaling, Scaling) and powers(scaling).f0 < -1e-9:
        return {}
    return {
        "warning": f"f(0) is random in the scaling {scaling.name!r}, and its spread is part of these deviations: "
        "compare each network with the limit from its own start, TangentKernelLimit(initial=torch.cat([net.f[0], net.f_test[0]])) or "
        "f0=net, or the mean and covariance of all with lazy_prediction"
    }


def _of_last(
    predicted: Tensor | PredictedVariance | None, limit: Solution, predictions: Sequence[Fluctuation]
) -> tuple[float, float]:
    """N Var f_T as predicted, mean over all training outputs, and its standard error; nan where it was not"""
    if not isinstance(predicted, Tensor):
        steps = (limit.problem.training.steps,)
        whole = (p for p in predictions if (p.kind, p.name, p.steps) == ("variance", "f", steps))
        return next(
            ((p.predicted, p.predicted_se) for p in whole if p.numbers == limit.f[0].numel()), (math.nan, math.nan)
        )
    given, shape = array_input.untracked("predicted", predicted).double(), tuple(limit.f.shape[1:])
    if tuple(given.shape) != shape:
        raise ValueError(
            f"predicted must have one value for each training output, shape {shape}: received {tuple(given.shape)}; give "
            "predicted_variance(problem)"
        )
    if not torch.isfinite(given).all():
        raise ValueError(
            "predicted holds NaN or infinity: ask predicted_variance for all training samples, points=None"
        )
    return float(given.mean()), math.nan


def _check_independent(limits: Sequence[Solution]) -> None:
    """ValueError for limits of which two are one run: their difference is no error"""
    drawn = [
        {(s.solver.get("name"), s.solver.get("seed", 0) + i) for i in range(s.solver.get("groups") or 1)}
        for s in limits
    ]
    for i, j in combinations(range(len(limits)), 2):
        if drawn[i] & drawn[j]:
            raise ValueError(
                f"the error of the limit needs limits with different seeds: received {limits[i].solver.get('name')} with the seed "
                f"{sorted(drawn[i] & drawn[j])[0][1]} twice"
            )
        exact = limits[i].stats.get("exact") and limits[j].stats.get("exact")  # no draw enters, so there is no error
        if torch.equal(limits[i].f, limits[j].f) and not exact:
            raise ValueError(
                f"limits {i} and {j} have the same f throughout, so that their difference is no error: give one of them, or runs "
                "that depend on their seed (initial='sobol')"
            )


def _grouped(nets: Sequence[Solution], limits: Sequence[Solution]) -> dict[int, list[Solution]]:
    if not nets or not limits:
        raise ValueError(
            f"a comparison needs networks and a limit: received {len(nets)} networks in nets and {len(limits)} limits"
        )
    first = limits[0]
    if found := next((what for name, what in _OF_PARTICLES.items() if any(s.solver.get(name) for s in limits)), ""):
        raise ValueError(f"the particles of this limit have {found}, networks do not: take WassersteinFlow without")
    groups: dict[int, list[Solution]] = {}
    for net in nets:
        if net.width is None:
            raise ValueError(
                f"the first argument takes finite networks: received a solution of {net.solver.get('name')}"
            )
        groups.setdefault(net.width, []).append(net)
    for other in [*nets, *limits]:
        if other.f.shape != first.f.shape or other.problem.training != first.problem.training:
            raise ValueError(
                f"solutions must share samples and time grid: {other!r} has f of shape {tuple(other.f.shape)} with "
                f"{other.problem.training}, the limit {tuple(first.f.shape)} with {first.problem.training}"
            )
    if apart := [other for other in [*nets, *limits] if other.problem != first.problem]:
        laws_must_be_known(apart[0].problem.data, first.problem.data)
        raise ValueError("solutions of different problems (data, network, scaling or loss) cannot be compared")
    _check_independent(limits)
    for width, group in groups.items():
        used = [net.solver.get("seed") for net in group]
        if len(set(used)) < max(2, len(used)):
            raise ValueError(
                f"width {width} needs at least two networks with different seeds: received the seeds {used}"
            )
    return dict(sorted(groups.items()))


def _default_names(nets: Sequence[Solution], limits: Sequence[Solution]) -> tuple[str, ...]:
    everyone = [*nets, *limits]
    names = [name for name in recorded_observables(limits[0]) if all(name in recorded_observables(s) for s in everyone)]
    fields = preactivation_keys(limits[0])
    names += [key for key in fields if all(has_preactivations(s, key.layer) for s in everyone)]
    if all(s.particles for s in everyone) and limits[0].measure().points.shape[1] <= 10:
        names.append("measure")
    return tuple(names)


def _decompose(name: str, by_width: Mapping[int, list[Solution]], limits: Sequence[Solution]) -> Deviation:
    """Bias and variance from the Gram matrix of the deviations, M_ee' = <o_e - r, o_e' - r> / |r|^2 (equations 13 to 15)."""
    values = torch.stack([observe(limit, name) for limit in limits])
    reference = values.mean(0)
    size = float(reference.square().sum())
    if size == 0:
        raise ValueError(f"the limit's {name} is zero throughout: there is no relative deviation from it")
    k = len(limits)
    error2 = (
        float((values - reference).square().sum()) / (k * (k - 1) * size)
        if k > 1
        else _own_error2(limits[0], name) / size
    )
    known2 = 0.0 if math.isnan(error2) else error2
    grams = []
    for group in by_width.values():
        apart = torch.stack([observe(net, name) for net in group]) - reference
        grams.append((apart @ apart.T).numpy() / size)
    statistics = [moments(gram, known2) for gram in grams]
    left_out = [left_out_moments(gram, known2) for gram in grams]
    widths = np.array(list(by_width), dtype=float)
    dev2, var, bias2 = np.array(statistics).T
    dev2_se, var_se, bias2_se = np.array([jackknife_error(rows) for rows in left_out]).T
    result = Deviation(
        name,
        np.sqrt(dev2),
        dev2_se / (2 * np.sqrt(dev2)),
        var,
        var_se,
        bias2,
        bias2_se,
        np.sqrt(var / np.array([len(gram) for gram in grams]) + known2),
        math.sqrt(error2),
        {},
    )
    seen = result.bias_detected
    seeds = np.array([len(gram) for gram in grams])
    fitted = {
        "deviation": exponent_of(widths, dev2, [rows[0] for rows in left_out], 0.5),
        "variance": exponent_of(widths, var, [rows[1] for rows in left_out], 1.0),
        "|bias|": bias_exponent(
            widths[seen], bias2[seen], bias2_se[seen], seeds[seen]
        ),  # below the floor there is none
    }
    return replace(result, exponents={key: found for key, found in fitted.items() if found is not None})


def _own_error2(limit: Solution, name: str) -> float:
    """Sum of the squared standard errors that a pooled limit carries; nan if it carries none"""
    errors = limit.standard_errors.get("tangent_kernels" if name == "tangent_kernel" else name)
    if errors is None:
        return math.nan
    return float((errors if name in ("f", "f_test", "loss", "test_loss") else errors[-1]).double().square().sum())


def _distance(
    name: str, by_width: Mapping[int, list[Solution]], limits: Sequence[Solution], rng: np.random.Generator
) -> Deviation:
    """Distances of distributions, beside those of independent neurons drawn from the limit (equation 17)."""
    limit = limits[0]
    distances, floors = [], []
    for width, group in by_width.items():
        chosen = group[:_CLOUDS] if name == "measure" else group
        pairs = [_pair(name, net, limit, width, int(rng.integers(2**31))) for net in chosen]
        distances.append(np.array([d for d, _ in pairs]))
        floors.append(float(np.mean([f for _, f in pairs])))
    mean, widths = np.array([d.mean() for d in distances]), np.array(list(by_width), dtype=float)
    slope = exponent_of(widths, mean.tolist(), [left_out_means(d) for d in distances], 1.0)
    none = np.full(len(mean), math.nan)
    return Deviation(
        name,
        mean,
        np.array([d.std(ddof=1) / math.sqrt(len(d)) for d in distances]),
        none,
        none,
        none,
        none,
        np.array(floors),
        _between(name, limits),
        {} if slope is None else {"distance": slope},
    )


def _between(name: str, limits: Sequence[Solution]) -> float:
    """Distance of two limits, or of the two halves of the groups of one; nan where there are none"""
    if len(limits) > 1:
        return _pair(name, limits[1], limits[0], len(limits[1].preactivations()[1]), 0)[0]
    groups = limits[0].solver.get("groups") or 1
    if name == "measure" or groups < 2:
        return math.nan
    h, m = limits[0].preactivations(layer=Key.of(name).layer)  # group by group
    half = len(h) // groups * (groups // 2)
    return marginal_distance((h[half : 2 * half], m[half : 2 * half]), (h[:half], m[:half]))


def _pair(name: str, net: Solution, limit: Solution, width: int, seed: int) -> tuple[float, float]:
    """(distance of the net from the limit, distance of `width` neurons drawn from the limit)"""
    if name != "measure":
        layer = Key.of(name).layer
        h, m = limit.preactivations(layer=layer)
        index, equal = sample_of(limit, width, seed)
        drawn = (h[torch.from_numpy(index)].to(h), equal.to(m))
        return marginal_distance(net.preactivations(layer=layer), (h, m)), marginal_distance(drawn, (h, m))
    first, second, third = (_cloud(s, min(_LARGEST_CLOUD, n), seed + i) for i, (s, n) in enumerate(
        ((limit, _LARGEST_CLOUD), (net, width), (limit, width))))  # fmt: skip
    return measure_distance(second, first), measure_distance(third, first)


def _cloud(solution: Solution, particles: int, seed: int) -> ParticleMeasure:
    """At most `particles` draws from the solution's particles; all of them if they are few and equally heavy"""
    measure = solution.measure()
    if len(measure) <= particles:
        return measure
    index, equal = sample_of(solution, particles, seed)
    rows = torch.from_numpy(index)
    return ParticleMeasure(measure.a[rows], measure.w[rows], equal.to(measure.m))
