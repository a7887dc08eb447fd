"""What was measured about scalings: powers of the width (equation 72), and how well each limit stands for a finite net (equation 73)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.comparison.statistics import Exponent
from meanfield.scaling.scaling import Scaling

POWERS = {  # what is measured, in the words of Exponents (meanfield/scaling/plane.py)
    "f0": "outputs at step 0",
    "kernel": "tangent kernel at step 0",
    "f": "outputs at the last step",
    "readouts": "movement of the readouts a",
    "weights": "movement of the input weights w",
    "kernel_change": "relative change of the tangent kernel",
}


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """One quantity against the width."""

    values: np.ndarray
    """(widths,) root mean square over seeds"""
    errors: np.ndarray
    """(widths,) its standard error"""
    predicted: float
    """Power of the width"""
    measured: Exponent
    """Power of the width, with its interval"""

    __repr__ = brief


@checked
@dataclass(frozen=True, eq=False)
class PowersReport:
    """The powers of the width in one scaling, measured from finite networks beside the predicted ones (equation 72).

    Example:
        >>> import meanfield as mf
        >>> from solvers import measured_exponents
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), scaling=mf.ntk(), training=mf.Training(0.2, 3))
        >>> report = measured_exponents(problem, widths=(32, 64, 128), seeds=3)
        >>> report["f0"].predicted, report["kernel_change"].predicted  # the kernel stands still
        (0.0, -1.0)
    """

    scaling: Scaling
    """That was measured"""
    widths: tuple[int, ...]
    """Of the networks"""
    seeds: int
    """Networks of each width"""
    steps: int
    """That they were trained"""
    quantities: Mapping[str, PowerLaw]
    """By name"""

    __repr__ = brief
    _repr_html_ = html

    def __getitem__(self, name: str) -> PowerLaw:
        return checks.lookup("quantity", name, self.quantities)

    def __str__(self) -> str:
        span = f"N = {self.widths[0]}..{self.widths[-1]}, {self.seeds} seeds, {self.steps} steps"
        lines = [f"scaling {self.scaling.name!r}, {span}", f"{'quantity':<40}{'predicted':>10}  measured"]
        for name, law in self.quantities.items():
            lines.append(f"{POWERS[name]:<40}{law.predicted:>+10.2f}  {law.measured}")
        return "\n".join(lines)


@checked
@dataclass(frozen=True, eq=False)
class ProxyReport:
    """How far each limit is from networks of the reference width, at each of the R recorded times (equation 73).

    Example:
        >>> import meanfield as mf
        >>> from solvers import proxy_comparison
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 3))
        >>> report = proxy_comparison(problem, reference_width=16, limits=("ntk",), seeds=8)
        >>> report.names, report.kl.shape  # limits, records
        (('ntk',), (1, 4))
    """

    names: tuple[str, ...]
    """Of the limits"""
    reference_width: int
    """N*, of the networks"""
    times: np.ndarray
    """(R,) training times"""
    kl: np.ndarray
    """(limits, R) E_x KL( N(mean f_inf, var f_inf) || N(mean f_N*, var f_N*) ), corrected for the finite number of seeds; infinite for a
    limit without randomness"""
    low: np.ndarray
    """(limits, R) lower end of its 95 % interval, nan with fewer than three runs of a limit"""
    high: np.ndarray
    """(limits, R) upper end"""
    distance: np.ndarray
    """(limits, R) 2-Wasserstein distance of the same Gaussians, relative to the root mean square output of the networks"""
    floor: np.ndarray
    """(R,) the KL that as many networks of the reference width themselves would show, uncorrected"""
    seeds: int
    """Networks"""
    limit_seeds: tuple[int, ...]
    """Runs of each limit"""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What was compared"""

    __repr__ = brief
    _repr_html_ = html

    @property
    def estimate(self) -> np.ndarray:
        """(limits, R) the KL inside its interval: `kl`, which scatters about 0 where limits are good, but never below 0"""
        inside = np.clip(self.kl, self.low, self.high)
        return np.where(np.isnan(inside), np.maximum(self.kl, 0.0), inside)

    def mean_kl(self, first: int = 1) -> dict[str, float]:
        """The KL averaged over the records from number `first` on, the only one where there are no later ones"""
        first = min(first, len(self.times) - 1)
        return {name: float(row[first:].mean()) for name, row in zip(self.names, self.kl, strict=True)}

    @property
    def nearest(self) -> str:
        """The limit with the least mean KL after step 0"""
        found = self.mean_kl()
        return min(found, key=lambda name: found[name])

    def __str__(self) -> str:
        last = len(self.times) - 1
        steps = sorted({0, min(1, last), (last + 1) // 4, (last + 1) // 2, last})
        told = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        head = "".join(f"{f'time {self.times[k]:.4g}':>22}" for k in steps)
        lines = [
            f"E_x KL(limit || network of width {self.reference_width}), {self.seeds} networks; {told}",
            f"{'limit':<26}{head}",
        ]
        for name, kl, low, high, apart in zip(
            self.names, self.estimate, self.low, self.high, self.distance, strict=True
        ):
            lines.append(f"{name:<26}" + "".join(f"{_cell(kl[k], low[k], high[k]):>22}" for k in steps))
            lines.append(f"{'  distance':<26}" + "".join(f"{apart[k]:>22.3g}" for k in steps))
        lines.append(f"{'floor before correction':<26}" + "".join(f"{self.floor[k]:>22.2g}" for k in steps))
        if (self.kl < self.estimate).any():
            lines.append("0: the KL less its bias came out negative, and no KL is below 0")
        if np.isnan(self.low).any():
            lines.append("[unknown]: an interval needs at least three runs of the limit that differ (limit_seeds)")
        return "\n".join(lines)


def _cell(kl: float, low: float, high: float) -> str:
    """An estimate with its interval"""
    if np.isinf(kl):
        return "infinite"
    return f"{kl:.3g} " + ("[unknown]" if np.isnan(low) else f"[{low:.2g}, {high:.2g}]")
