"""Loss against the learning rate for several widths and the limit: whether the best rate of one width is that of another (equation 92)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.comparison.statistics import Exponent, exponent_of, jackknife_error


@dataclass(frozen=True)
class BestRate:
    """Where a curve of losses is lowest (equation 92)."""

    rate: float
    """The lowest point of the parabola through the lowest loss and its neighbours, in logarithms of both, not further than half a step of
    the rates from the lowest; nan if every rate diverged"""
    low: float
    """Lower end of its 95 % interval over seeds; nan with fewer than three"""
    high: float
    """Upper end"""
    enclosed: bool
    """Whether losses rise on both sides; otherwise rate is the best one that was tried, and the interval holds its neighbours, or has
    no end where there is none"""

    def __str__(self) -> str:
        if np.isnan(self.rate):
            return "none: every rate diverged"
        span = "" if np.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.rate:.3g}{span}" + ("" if self.enclosed else " (not enclosed by the rates)")


@checked
@dataclass(frozen=True, eq=False)
class TransferReport:
    """Losses of networks of several widths, and of their limit, at several learning rates after the same number of steps (equation 92).

    A loss is infinite where the run blew up, nan where it ended early for another reason.

    Example:
        >>> import meanfield as mf
        >>> from solvers import learning_rate_transfer
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), mf.Network(2), mf.ntk(), mf.Training(0.2, 5))
        >>> report = learning_rate_transfer(problem, rates=(0.1, 0.4, 1.6), widths=(16, 64), seeds=3)
        >>> report.final.shape  # widths, rates, seeds
        (2, 3, 3)
    """

    rates: np.ndarray
    """(K,) learning rates, ascending"""
    widths: tuple[int, ...]
    """Of the networks, ascending"""
    final: np.ndarray
    """(widths, K, E) losses after the last step, of each seed"""
    best: np.ndarray
    """(widths, K, E) the least losses of all recorded steps"""
    limit: np.ndarray | None = None
    """(2, K) final and best losses of the limit; None without one"""
    limit_errors: np.ndarray | None = None
    """(2, K) their standard errors, nan where they are not known"""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What was trained, and on which samples the loss was taken"""

    __repr__ = brief
    _repr_html_ = html

    def losses(self, best: bool = False) -> np.ndarray:
        """(widths, K) means over seeds; infinite where a seed diverged"""
        return (self.best if best else self.final).mean(-1)

    def diverged(self) -> np.ndarray:
        """(widths, K) how many seeds blew up"""
        return np.isinf(self.final).sum(-1)

    def best_rates(self, best: bool = False) -> dict[int, BestRate]:
        """Of each width, with an interval from leaving out one seed at a time"""
        every = self.best if best else self.final
        return {n: _best_rate(self.rates, losses) for n, losses in zip(self.widths, every, strict=True)}

    def limit_rate(self, best: bool = False) -> BestRate | None:
        """That of the limit, without an interval; None without a limit"""
        return None if self.limit is None else _best_rate(self.rates, self.limit[int(best)][:, None])

    def drift(self, best: bool = False) -> Exponent | None:
        """The power of the width with which the best rate goes, about 0 where it transfers; None with fewer than three widths or where
        some best rate is not enclosed
        """
        every = self.best if best else self.final
        found = self.best_rates(best).values()
        if not all(one.enclosed for one in found):
            return None
        left = [np.exp(_left_out(self.rates, losses)) for losses in every]
        return exponent_of(np.array(self.widths, dtype=float), [one.rate for one in found], left, 1.0)

    def excess(self, best: bool = False) -> np.ndarray:
        """(widths,) the loss at the rate that was best for the limit (without one for the narrowest networks), over the least loss; 1
        where the same rate of those tried is best
        """
        losses = _worst_if_unknown(self.losses(best))
        other = losses[0] if self.limit is None else _worst_if_unknown(self.limit[int(best)])
        least = losses.min(-1)
        with np.errstate(over="ignore"):
            return np.divide(
                losses[:, other.argmin()], least, out=np.full(len(least), np.nan), where=np.isfinite(least)
            )

    def __str__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        names = [f"N = {n}" for n in self.widths] + ["limit"] * (self.limit is not None)
        lines = [f"loss against learning rate, {self.final.shape[-1]} seeds; {told}"]
        lines.append(f"{'learning rate':<15}" + "".join(f"{name:>20}" for name in names))
        curves, lost = self.losses(), self.diverged()
        for k, rate in enumerate(self.rates):
            cells = [self._cell(curves[i, k], lost[i, k]) for i in range(len(self.widths))]
            cells += [] if self.limit is None else [self._cell(self.limit[0, k], 0)]
            lines.append(f"{rate:<15.4g}" + "".join(f"{cell:>20}" for cell in cells))
        lines.append(f"{'':<15}{'best rate, 95 %':<40} loss at the best rate of the {self._other} over the least")
        for (n, found), excess in zip(self.best_rates().items(), self.excess(), strict=True):
            lines.append(f"{f'N = {n}':<15}{found!s:<40} {excess:.3g}")
        if (found := self.limit_rate()) is not None:
            lines.append(f"{'limit':<15}{found}")
        if (drift := self.drift()) is not None:
            lines.append(f"the best rate goes as the power {drift} of the width")
        return "\n".join(lines)

    @property
    def _other(self) -> str:
        return "narrowest" if self.limit is None else "limit"

    def _cell(self, loss: float, lost: int) -> str:
        if np.isinf(loss):
            return f"{lost} of {self.final.shape[-1]} diverged" if lost else "diverged"
        return "no result" if np.isnan(loss) else f"{loss:.4g}"


def _best_rate(rates: np.ndarray, losses: np.ndarray) -> BestRate:
    """Of losses (K, E)"""
    x, enclosed, i = _lowest(rates, losses.mean(-1))
    e, half = losses.shape[-1], np.nan
    if e >= 3:
        half = float(stdtrit(e - 1, 0.975) * jackknife_error(_left_out(rates, losses)))
    low, high = np.exp(x - half), np.exp(x + half)
    if not enclosed and not np.isnan(x):
        low = np.fmin(low, rates[i - 1] if i > 0 else 0.0)
        high = np.fmax(high, rates[i + 1] if i + 1 < len(rates) else np.inf)
    return BestRate(float(np.exp(x)), float(low), float(high), enclosed)


def _left_out(rates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """(E,) logarithms of the best rate with one seed of (K, E) left out at a time; nan below three seeds"""
    e = losses.shape[-1]
    if e < 3:
        return np.full(e, np.nan)
    return np.array([_lowest(rates, np.delete(losses, seed, -1).mean(-1))[0] for seed in range(e)])


def _lowest(rates: np.ndarray, losses: np.ndarray) -> tuple[float, bool, int]:
    """(log of the best rate, whether losses rise on both sides, the place of the lowest) of one curve (K,)"""
    x, y = np.log(rates), np.log(np.maximum(_worst_if_unknown(losses), np.finfo(float).tiny))
    i = int(y.argmin())
    if np.isinf(y[i]):
        return np.nan, False, i
    inside = 0 < i < len(x) - 1 and bool(np.isfinite(y[i - 1 : i + 2]).all())
    if not inside:
        return float(x[i]), False, i
    (left, right), (before, after) = (x[i] - x[i - 1], x[i + 1] - x[i]), (y[i - 1] - y[i], y[i + 1] - y[i])
    bend = left * after + right * before
    shift = (left**2 * after - right**2 * before) / (2 * bend) if bend > 0 else 0.0
    return float(x[i] - shift), True, i


def _worst_if_unknown(losses: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(losses), np.inf, losses)
