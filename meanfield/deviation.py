"""How far finite networks are from a limit: bias, variance, floor, and their exponents in the width (equations 13 to 17)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from meanfield import checks
from meanfield.distances import marginal_distance, measure_distance, sample_of
from meanfield.measure import ParticleMeasure
from meanfield.observables import observables, observe, recorded_observables
from meanfield.solution import Solution

_Z = 1.96  # a 95 % interval
_LARGEST_CLOUD = 1024  # particles per side in the distance of whole measures
_CLOUDS = 4  # networks per width in that distance


@dataclass(frozen=True)
class Exponent:
    """Slope of log(quantity) against log(width), with its 95 % bootstrap interval."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True, eq=False)
class Deviation:
    """One observable at every width; arrays are (widths,), relative to the norm of the limit's value (equations 13 to 15).

    deviation: root mean square distance of single networks from the limit; variance: of a network about the mean of all
    networks, which ensembling removes; bias2: squared distance of that mean from the limit, unbiased (it may come out negative);
    floor: the distance that the mean has with no bias at all, from finitely many seeds and from the limit's own error.
    Standard errors in `*_se`. Distances between distributions ("h1", "measure") have no variance and bias; their floor is the
    distance that as many independent neurons of the limit itself have.
    """

    name: str
    deviation: np.ndarray
    deviation_se: np.ndarray
    variance: np.ndarray
    variance_se: np.ndarray
    bias2: np.ndarray
    bias2_se: np.ndarray
    floor: np.ndarray
    reference_error: float
    exponents: Mapping[str, Exponent]

    @property
    def bias_detected(self) -> np.ndarray:
        """(widths,) whether bias2 exceeds its own error and the error of the limit"""
        reference = 0.0 if math.isnan(self.reference_error) else self.reference_error
        return self.bias2 - _Z * self.bias2_se > reference**2


@dataclass(frozen=True, eq=False)
class DeviationReport:
    """Deviations of networks of several widths from a limit, by observable.

    n_var (widths,): N Var f_T averaged over the training outputs, beside predicted_n_var, computed before any network is trained
    (nan if not given). settings: what was compared.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    observables: Mapping[str, Deviation]
    n_var: np.ndarray
    n_var_se: np.ndarray
    predicted_n_var: float = math.nan
    settings: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Deviation:
        return checks.lookup("observable", name, self.observables)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeviationReport):
            return NotImplemented
        return repr(self._plain()) == repr(other._plain())

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The report as text, one line per observable and width."""
        head = f"{'observable':<15}{'width':>7}{'seeds':>7}{'deviation':>11}{'std':>10}{'|bias|':>12}{'floor':>10}"
        lines = [", ".join(f"{key} {value}" for key, value in self.settings.items()), head]
        for d in self.observables.values():
            for i, width in enumerate(self.widths):
                cells = f"{d.name:<15}{width:>7}{self.seeds[i]:>7}{d.deviation[i]:>11.4g}"
                lines.append(cells + f"{_root(d.variance[i]):>10}{self._bias(d, i):>12}{d.floor[i]:>10.2g}")
            slopes = "; ".join(f"{key} ~ N^{value}" for key, value in d.exponents.items())
            error = "not estimated: give two limits" if math.isnan(d.reference_error) else f"{d.reference_error:.2g}"
            lines.append(f"    {slopes or 'no exponent: fewer than 3 widths'}; error of the limit {error}")
        predicted = (
            "" if math.isnan(self.predicted_n_var) else f"; predicted before training: {self.predicted_n_var:.4g}"
        )
        variances = ", ".join(
            f"{n}: {v:.4g} ± {e:.2g}" for n, v, e in zip(self.widths, self.n_var, self.n_var_se, strict=True)
        )
        return "\n".join([*lines, f"N Var f(T), mean over training outputs: {variances}{predicted}"])

    @staticmethod
    def _bias(d: Deviation, i: int) -> str:
        if math.isnan(d.bias2[i]):
            return "-"
        return f"{math.sqrt(d.bias2[i]):.3g}" if d.bias_detected[i] else "below floor"

    def _plain(self) -> list:
        rows = [(k, {f: np.asarray(v).tolist() for f, v in vars(d).items() if f != "exponents"}, dict(d.exponents))
                for k, d in self.observables.items()]  # fmt: skip
        return [
            self.widths,
            self.seeds,
            rows,
            self.n_var.tolist(),
            self.n_var_se.tolist(),
            self.predicted_n_var,
            dict(self.settings),
        ]


def deviation(
    nets: Sequence[Solution],
    limits: Solution | Sequence[Solution],
    names: Sequence[str] | None = None,
    predicted: Tensor | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> DeviationReport:
    """Compare networks (any widths, at least two seeds each) with a limit.

    limits: one solution, or several independent ones (other seeds): then the reference is their mean and carries its own error.
    names: observables ("loss", "f", "Phi1", "tangent_kernel", "h1", "measure", ..); None takes all that were recorded, "measure"
    only in up to ten dimensions. predicted: N Var f_T (P, C) from solvers.predicted_variance. ValueError for what cannot be compared.
    """
    limits = [limits] if isinstance(limits, Solution) else list(limits)
    by_width = _grouped(nets, limits)
    names = tuple(names) if names is not None else _default_names(nets, limits)
    distances = {f"h{l}" for l in range(1, limits[0].problem.network.depth + 1)} | {"measure"}
    for name in names:
        checks.lookup("observable", name, {**observables(limits[0].problem.network.depth), **dict.fromkeys(distances)})
    rng = np.random.default_rng(seed)
    found = {
        name: (_distance if name in distances else _decompose)(
            name, by_width, limits, rng, checks.integer("bootstrap", bootstrap, 10)
        )
        for name in names
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
            f"a comparison needs networks and a limit: received {len(nets)} networks and {len(limits)} limits"
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
    error2 = float((values - reference).square().sum()) / (k * (k - 1) * size) if k > 1 else math.nan
    known2 = 0.0 if k == 1 else error2
    grams = []
    for group in by_width.values():
        apart = torch.stack([observe(net, name) for net in group]) - reference
        grams.append((apart @ apart.T).numpy() / size)
    statistics = [_statistics(gram, known2) for gram in grams]
    draws = [np.array([_statistics(_resampled(g, rng), known2)[:2] for _ in range(bootstrap)]) for g in grams]
    widths = np.array(list(by_width), dtype=float)
    exponents = _exponents(widths, [s[0] for s in statistics], [d[:, 0] for d in draws], "deviation", 0.5)
    exponents |= _exponents(widths, [s[1] for s in statistics], [d[:, 1] for d in draws], "variance", 1.0)
    floor = [math.sqrt(s[1] / len(g) + known2) for s, g in zip(statistics, grams, strict=True)]
    jackknife = np.array([_jackknife(g, known2) for g in grams])
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
        math.sqrt(error2) if k > 1 else math.nan,
        exponents,
    )
    seen = result.bias_detected
    if seen.sum() >= 3:  # below the floor there is no exponent
        spread = [rng.normal(b, e, bootstrap) for b, e in zip(bias2[seen], jackknife[seen, 2], strict=True)]
        exponents |= _exponents(widths[seen], list(bias2[seen]), spread, "|bias|", 0.5)
    return result


def _statistics(gram: np.ndarray, known2: float) -> tuple[float, float, float]:
    """(deviation^2, variance, bias^2) of E networks; bias^2 is the U-statistic, less the squared error of the limit."""
    e, trace, total = len(gram), float(np.trace(gram)), float(gram.sum())
    return trace / e, (trace - total / e) / (e - 1), (total - trace) / (e * (e - 1)) - known2


def _resampled(gram: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    index = rng.integers(len(gram), size=len(gram))
    return gram[np.ix_(index, index)]


def _jackknife(gram: np.ndarray, known2: float) -> np.ndarray:
    """(3,) standard errors of `_statistics`, leaving one seed out at a time"""
    e = len(gram)
    if e < 3:
        return np.full(3, math.nan)
    left = np.array([_statistics(np.delete(np.delete(gram, i, 0), i, 1), known2) for i in range(e)])
    return np.sqrt((e - 1) / e * ((left - left.mean(0)) ** 2).sum(0))


def _exponents(
    widths: np.ndarray, values: Sequence[float], draws: Sequence[np.ndarray], name: str, power: float
) -> dict[str, Exponent]:
    """Weighted regression of power * log(value) on log(width); the interval from the bootstrap draws."""
    if len(widths) < 3 or min(values) <= 0:
        return {}
    x, y = np.log(widths), power * np.log(np.array(values))
    positive = [np.log(np.maximum(d, 1e-300)) * power for d in draws]
    deviations = np.array([max(float(np.std(np.clip(d, np.median(d) - 5, None))), 1e-12) for d in positive])
    weights = deviations**-2
    centred = x - np.average(x, weights=weights)

    def slope(heights: np.ndarray) -> float:
        return float((weights * centred * heights).sum() / (weights * centred**2).sum())

    slopes = [slope(np.array(row)) for row in zip(*positive, strict=True)]
    low, high = np.percentile(slopes, [2.5, 97.5])
    return {name: Exponent(slope(y), float(low), float(high))}


def _scaled_variance(
    width: int, group: Sequence[Solution], rng: np.random.Generator, bootstrap: int
) -> tuple[float, float]:
    """N Var f_T averaged over training outputs, and its bootstrap error"""
    final = torch.stack([net.f[-1].double().flatten() for net in group]).numpy()
    e = len(final)
    draws = [final[rng.integers(e, size=e)].var(0, ddof=1).mean() for _ in range(bootstrap)]
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
        _exponents(np.array(list(by_width), dtype=float), list(mean), draws, "distance", 1.0),
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


def _root(variance: float) -> str:
    return "-" if math.isnan(variance) else f"{math.sqrt(max(0.0, variance)):.3g}"
