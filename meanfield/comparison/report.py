"""What a comparison found: Deviation of one observable, DeviationReport of many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.comparison.predicted import Fluctuation
from meanfield.comparison.statistics import Exponent

_Z = 1.96  # a 95 % interval


@checked
@dataclass(frozen=True, eq=False)
class Deviation:
    """One observable at every width; arrays are (widths,), relative to the norm of the limit's value (equations 13 to 15).

    Standard errors in `*_se`, nan for fewer than three seeds. Distances between distributions ("h1", "measure") have no variance and
    bias; their floor is the distance that as many independent neurons of the limit itself have.
    """

    name: str
    """Of the observable"""
    deviation: np.ndarray
    """Root mean square distance of single networks from the limit"""
    deviation_se: np.ndarray
    """Its standard error"""
    variance: np.ndarray
    """Of a network about the mean of all networks, which ensembling removes"""
    variance_se: np.ndarray
    """Its standard error"""
    bias2: np.ndarray
    """Squared distance of that mean from the limit, unbiased (it may come out negative)"""
    bias2_se: np.ndarray
    """Its standard error"""
    floor: np.ndarray
    """The distance that the mean has with no bias at all, from finitely many seeds and from the limit's own error"""
    reference_error: float
    """The limit's own standard error, from several limits or the groups of one, nan without them; of distances, that of two limits, or of
    the two halves of a limit's groups, which have fewer neurons than the whole and so are further apart"""
    exponents: Mapping[str, Exponent]
    """Powers of the width, by the quantity"""

    __repr__ = brief

    @property
    def bias_detected(self) -> np.ndarray:
        """(widths,) whether bias2 exceeds its own error and the error of the limit"""
        reference = 0.0 if math.isnan(self.reference_error) else self.reference_error
        return self.bias2 - _Z * self.bias2_se > reference**2


@checked
@dataclass(frozen=True, eq=False)
class DeviationReport:
    """Deviations of networks of several widths from a limit, by observable.

    Example:
        >>> import meanfield as mf
        >>> from solvers import FiniteWidth, WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5))
        >>> nets = [net for width in (16, 64) for net in FiniteWidth(width).ensemble(problem, seeds=4)]
        >>> report = mf.deviation(nets, WassersteinFlow(particles=256)(problem))
        >>> sorted(report.observables)
        ['G1', 'Phi1', 'f', 'f_test', 'h1', 'loss', 'tangent_kernel', 'test_loss']
        >>> report["f"].deviation.shape  # one for each width
        (2,)
    """

    widths: tuple[int, ...]
    """Of the networks"""
    seeds: tuple[int, ...]
    """Networks of each width"""
    observables: Mapping[str, Deviation]
    """By name"""
    n_var: np.ndarray
    """(widths,) N Var f_T averaged over the training outputs, of a stream over those at its watched samples"""
    n_var_se: np.ndarray
    """(widths,) its standard error"""
    predicted_n_var: float = math.nan
    """The same from the limit, before any network is trained; nan if not given"""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What was compared, and a "warning" where the numbers answer another question than they seem to"""
    predicted_n_var_se: float = math.nan
    """The standard error of predicted_n_var"""
    predictions: tuple[Fluctuation, ...] = ()
    """Variance and bias, measured beside predicted, of all that was predicted"""

    __repr__ = brief
    _repr_html_ = html

    @property
    def averaged_over(self) -> str:
        """In words, the outputs over which n_var is a mean"""
        return self.settings.get("outputs", "training outputs")

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
        told = {key: value for key, value in self.settings.items() if key != "warning"}
        lines = [", ".join(f"{key} {value}" for key, value in told.items()), head]
        for d in self.observables.values():
            for i, width in enumerate(self.widths):
                cells = f"{d.name:<15}{width:>7}{self.seeds[i]:>7}{d.deviation[i]:>11.4g}"
                lines.append(cells + f"{_root(d.variance[i]):>10}{self._bias(d, i):>12}{d.floor[i]:>10.2g}")
            slopes = "; ".join(f"{key} ~ N^{value}" for key, value in d.exponents.items())
            error = (
                "not estimated: give two limits, or one with groups"
                if math.isnan(d.reference_error)
                else f"{d.reference_error:.2g}"
            )
            lines.append(f"    {slopes or 'no exponent: fewer than 3 widths'}; error of the limit {error}")
        predicted = (
            "" if math.isnan(self.predicted_n_var) else f"; predicted before training: {self.predicted_n_var:.4g}"
        )
        variances = ", ".join(
            f"{n}: {v:.4g} ± " + ("unknown (2 seeds)" if math.isnan(e) else f"{e:.2g}")
            for n, v, e in zip(self.widths, self.n_var, self.n_var_se, strict=True)
        )
        lines.append(f"N Var f(T), mean over {self.averaged_over}: {variances}{predicted}")
        lines += [p.line(self.widths) for p in self.predictions]
        return "\n".join([*lines, *(f"warning: {text}" for key, text in self.settings.items() if key == "warning")])

    @staticmethod
    def _bias(d: Deviation, i: int) -> str:
        if math.isnan(d.bias2[i]):
            return "-"
        if math.isnan(d.bias2_se[i]):
            return "unknown"  # of two seeds: nothing tells its error
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
            self.predicted_n_var_se,
            [p.plain() for p in self.predictions],
            dict(self.settings),
        ]


def _root(variance: float) -> str:
    return "-" if math.isnan(variance) else f"{math.sqrt(max(0.0, variance)):.3g}"
