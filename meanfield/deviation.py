"""How far finite networks are from a limit: bias, variance, floor, and their exponents in the width (equations 13 to 17)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from meanfield import checks
from meanfield.arguments import checked
from meanfield.distances import marginal_distance, measure_distance, sample_of
from meanfield.measure import ParticleMeasure
from meanfield.observables import observables, observe, recorded_observables
from meanfield.report import Deviation, DeviationReport
from meanfield.solution import Solution
from meanfield.statistics import exponents_of, jackknife_errors, moments, resampled_moments

_LARGEST_CLOUD = 1024  # particles per side in the distance of whole measures
_CLOUDS = 4  # networks per width in that distance


@checked
def deviation(
    nets: Sequence[Solution],
    limits: Solution | Sequence[Solution],
    names: Sequence[str] | None = None,
    predicted: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> DeviationReport:
    """Compare networks (any widths, at least two seeds each) with a limit.

    limits: one solution, or several independent ones (other seeds): then the reference is their mean and carries its own error, as
    does a single one with `standard_errors`.
    names: observables ("loss", "f", "Phi1", "tangent_kernel", "h1", "measure", ..); None takes all that were recorded, "measure"
    only in up to ten dimensions. predicted: N Var f_T (P, C) from solvers.predicted_variance. ValueError for what cannot be compared.
    """
    limits = [limits] if isinstance(limits, Solution) else list(limits)
    by_width = _grouped(nets, limits)
    names = tuple(names) if names is not None else _default_names(nets, limits)
    distances = {f"h{l}" for l in range(1, limits[0].problem.network.depth + 1)} | {"measure"}
    for name in names:
        checks.lookup("observable", name, {**observables(limits[0].problem.network.depth), **dict.fromkeys(distances)})
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    bootstrap = checks.resamples("bootstrap", bootstrap, len(nets))
    found = {
        name: (_distance if name in distances else _decompose)(name, by_width, limits, rng, bootstrap) for name in names
    }
    scaled = [_scaled_variance(width, group, rng, bootstrap) for width, group in by_width.items()]
    first = limits[0]
    return DeviationReport(
        widths=tuple(by_width),
        seeds=tuple(len(group) for group in by_width.values()),
        observables=found,
        n_var=np.array([v for v, _ in scaled]),
        n_var_se=np.array([e for _, e in scaled]),
        predicted_n_var=math.nan if predicted is None else float(predicted.double().mean()),
        settings={
            "networks": f"{len(nets)} of depth {first.problem.network.depth}, {first.problem.network.nonlinearity.name}",
            "limit": f"{first.solver['name']} x {len(limits)}",
            "data": f"{first.problem.data.name}, P = {first.problem.data.samples}",
            "steps": str(first.steps),
        },
    )


def _grouped(nets: Sequence[Solution], limits: Sequence[Solution]) -> dict[int, list[Solution]]:
    if not nets or not limits:
        raise ValueError(
            f"a comparison needs networks and a limit: received {len(nets)} networks in nets and {len(limits)} limits"
        )
    first = limits[0]
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
    if any(other.problem != first.problem for other in [*nets, *limits]):
        raise ValueError("solutions of different problems (data, network, scaling or loss) cannot be compared")
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
    depth = limits[0].problem.network.depth
    names += [
        f"h{l}" for l in range(1, depth + 1) if all(f"h{l}" in s.fields or (l == 1 and s.particles) for s in everyone)
    ]
    if all(s.particles for s in everyone) and limits[0].measure().points.shape[1] <= 10:
        names.append("measure")
    return tuple(names)


def _decompose(
    name: str,
    by_width: Mapping[int, list[Solution]],
    limits: Sequence[Solution],
    rng: np.random.Generator,
    bootstrap: int,
) -> Deviation:
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
    draws = [resampled_moments(gram, rng, bootstrap) for gram in grams]
    widths = np.array(list(by_width), dtype=float)
    exponents = exponents_of(widths, [s[0] for s in statistics], [d[:, 0] for d in draws], "deviation", 0.5)
    exponents |= exponents_of(widths, [s[1] for s in statistics], [d[:, 1] for d in draws], "variance", 1.0)
    floor = [math.sqrt(s[1] / len(g) + known2) for s, g in zip(statistics, grams, strict=True)]
    jackknife = np.array([jackknife_errors(g, known2) for g in grams])
    dev2, var, bias2 = (np.array([s[i] for s in statistics]) for i in range(3))
    result = Deviation(
        name,
        np.sqrt(dev2),
        jackknife[:, 0] / (2 * np.sqrt(dev2)),
        var,
        jackknife[:, 1],
        bias2,
        jackknife[:, 2],
        np.array(floor),
        math.sqrt(error2),
        exponents,
    )
    seen = result.bias_detected
    if seen.sum() >= 3:  # below the floor there is no exponent
        spread = [rng.normal(b, e, bootstrap) for b, e in zip(bias2[seen], jackknife[seen, 2], strict=True)]
        exponents |= exponents_of(widths[seen], list(bias2[seen]), spread, "|bias|", 0.5)
    return result


def _own_error2(limit: Solution, name: str) -> float:
    """Sum of the squared standard errors that a pooled limit carries; nan if it carries none"""
    errors = limit.standard_errors.get("tangent_kernels" if name == "tangent_kernel" else name)
    if errors is None:
        return math.nan
    return float((errors if name in ("f", "f_test", "loss", "test_loss") else errors[-1]).double().square().sum())


def _scaled_variance(
    width: int, group: Sequence[Solution], rng: np.random.Generator, bootstrap: int
) -> tuple[float, float]:
    """N Var f_T averaged over training outputs, and its bootstrap error"""
    final = torch.stack([net.f[-1].double().flatten() for net in group]).numpy()
    apart = final - final.mean(0)
    draws = resampled_moments(apart @ apart.T / final.shape[1], rng, bootstrap)[:, 1]
    return width * float(final.var(0, ddof=1).mean()), width * float(np.std(draws))


def _distance(
    name: str,
    by_width: Mapping[int, list[Solution]],
    limits: Sequence[Solution],
    rng: np.random.Generator,
    bootstrap: int,
) -> Deviation:
    """Distances of distributions, beside those of independent neurons drawn from the limit (equation 17)."""
    limit = limits[0]
    distances, floors = [], []
    for width, group in by_width.items():
        chosen = group[:_CLOUDS] if name == "measure" else group
        pairs = [_pair(name, net, limit, width, int(rng.integers(2**31))) for net in chosen]
        distances.append(np.array([d for d, _ in pairs]))
        floors.append(float(np.mean([f for _, f in pairs])))
    draws = [d[rng.integers(len(d), size=(bootstrap, len(d)))].mean(1) for d in distances]
    mean = np.array([d.mean() for d in distances])
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
        _pair(name, limits[1], limit, len(limits[1].preactivations()[1]), 0)[0] if len(limits) > 1 else math.nan,
        exponents_of(np.array(list(by_width), dtype=float), list(mean), draws, "distance", 1.0),
    )


def _pair(name: str, net: Solution, limit: Solution, width: int, seed: int) -> tuple[float, float]:
    """(distance of the net from the limit, distance of `width` neurons drawn from the limit)"""
    if name != "measure":
        layer = int(name[1:])
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
