"""How the output multiplier and the learning rates depend on the width (equations 3 to 5, 61 and 62).

    f = sigma(N) sum_r a_r phi(h_r),    sigma = sigma* (N/N*)^q_sigma,    eta_a = eta eta_a* (N/N*)^q_a,    eta_w = eta eta_w* (N/N*)^q_w

A named scaling is a function that returns a `Scaling`; add yours below and name it in `NAMED`. `classify` (plane.py) says what
becomes of any of them as N -> infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html

Frozen = Literal["none", "matched", "added"]
TOLERANCE = 1e-9  # of exponents, and the only one: lines of the plane are met in spite of rounding


class MeasureLimit(NamedTuple):
    """Gamma = sigma N, kappa_a = eta_a sigma and kappa_w = eta_w sigma, which the flow of a measure knows of its scaling (equation 7)"""

    gamma: float
    kappa_a: float
    kappa_w: float


@checked
@dataclass(frozen=True)
class Scaling:
    """A point of the scaling plane with its values at the reference width N*.

    Exponents within 1e-9 of a fraction with a denominator of at most 100 are that fraction: -1 + 1e-12 is -1.

    Example:
        >>> import meanfield as mf
        >>> mine = mf.Scaling(q_sigma=-0.75, q_a=0.5, q_w=0.5, name="between")
        >>> mf.classify(mine).solver
        'TangentKernelLimit'
    """

    q_sigma: float
    """Power of the width in the output multiplier (equation 3)"""
    q_a: float
    """Power of the width in the readout's learning rate (equation 4)"""
    q_w: float
    """Power of the width in the learning rate of all weights below the readout"""
    sigma: float = 1.0
    """sigma*, the output multiplier at the reference width"""
    eta_a: float = 1.0
    """eta_a*, which multiplies Training.learning_rate for the readout there; 0 leaves it as it starts"""
    eta_w: float = 1.0
    """eta_w*, likewise for all weights below it; 0 for random features, of which only the readout is trained"""
    reference_width: int = 1
    """N*, at which scalings with the same starred values are the same"""
    name: str = "custom"
    """Of the scaling, in messages and reports"""
    frozen: Frozen = "none"
    """A part of the output that stays as it was at step 0 (equation 62): none, matched (zero at N*) or added (never zero)"""

    __repr__ = brief
    _repr_html_ = html

    def __post_init__(self) -> None:
        for key in ("q_sigma", "q_a", "q_w"):
            object.__setattr__(self, key, _exponent(checks.finite(key, getattr(self, key))))
        checks.normalise(self, reference_width=1)
        checks.lookup("frozen part", self.frozen, dict.fromkeys(get_args(Frozen)))
        if not self.eta_a and not self.eta_w:
            raise ValueError("eta_a=0 and eta_w=0 leave nothing to train: give one of them a rate, e.g. eta_a=1.0")

    def output_multiplier(self, width: int) -> float:
        """sigma(N)"""
        return self.sigma * self._ratio(width) ** self.q_sigma

    def learning_rate_multipliers(self, width: int) -> tuple[float, float]:
        """(eta_a, eta_w)(N) in units of Training.learning_rate"""
        ratio = self._ratio(width)
        return self.eta_a * ratio**self.q_a, self.eta_w * ratio**self.q_w

    def frozen_multiplier(self, width: int) -> float:
        """What multiplies sum_r a_r(0) phi(h_r(0)), beside sigma(N) for the part that is trained (equation 62)"""
        if self.frozen == "none":
            return 0.0
        taken = self.output_multiplier(width) if self.frozen == "matched" else 0.0
        return self.sigma * self._ratio(width) ** -0.5 - taken

    def matching(self, other: Scaling, width: int) -> Scaling:
        """These exponents, with the values of `other` at `width`: there the two train the same networks, number for number."""
        eta_a, eta_w = other.learning_rate_multipliers(width)
        sigma = other.output_multiplier(width)
        return replace(self, sigma=sigma, eta_a=eta_a, eta_w=eta_w, reference_width=width)

    @property
    def trained(self) -> Scaling:
        """This scaling without its frozen part"""
        return replace(self, frozen="none")

    @property
    def is_mean_field(self) -> bool:
        """Whether the width limit is the deterministic flow of a measure: f0 -> 0, weights move by O(1)."""
        return (self.q_sigma, self.q_a, self.q_w) == (-1.0, 1.0, 1.0) and self.frozen == "none"

    def products(self, width: int) -> MeasureLimit:
        """Gamma, kappa_a and kappa_w of a network of finite width"""
        sigma, (eta_a, eta_w) = self.output_multiplier(width), self.learning_rate_multipliers(width)
        return MeasureLimit(sigma * width, eta_a * sigma, eta_w * sigma)

    def measure_limit(self) -> MeasureLimit:
        """Gamma, kappa_a and kappa_w where they do not depend on N, in the mean-field scaling; ValueError in others (equation 7)."""
        if self.frozen != "none" and self.trained.is_mean_field:
            raise ValueError(
                f"the frozen part of the scaling {self.name!r} is random in the limit, which this solver does not know: "
                "take WassersteinFlow (two-layer networks), or mean_field(gamma0), which has no such part"
            )
        if not self.is_mean_field:
            raise ValueError(
                f"the scaling {self.name!r} (q_sigma={self.q_sigma:g}, q_a={self.q_a:g}, q_w={self.q_w:g}) has no limit as a flow of "
                "measures: take mean_field(gamma0), or the solver that mf.classify(scaling) names, or FiniteWidth for a finite network"
            )
        return self.products(self.reference_width)

    def _ratio(self, width: int) -> float:
        return checks.integer("width", width, 1) / self.reference_width


def settled(exponent: float) -> float:
    """A power of the width, 0 where it is zero but for rounding: every comparison of exponents is one of these numbers with 0"""
    return 0.0 if abs(exponent) < TOLERANCE else exponent


def _exponent(given: float) -> float:
    simple = float(Fraction(given).limit_denominator(100))
    return given if settled(given - simple) else simple


@checked
def mean_field(gamma0: float = 1.0) -> Scaling:
    """Mean field (muP): sigma = 1/(gamma0 N), eta_a = eta_w = gamma0^2 N.

    Args:
        gamma0: Richness: lazy towards 0, rich at 1

    Example:
        >>> import meanfield as mf
        >>> scaling = mf.mean_field(gamma0=2.0)
        >>> scaling.q_sigma, scaling.q_a, scaling.q_w  # powers of the width
        (-1.0, 1.0, 1.0)
    """
    gamma0 = checks.positive("gamma0", gamma0)
    if not 1e-150 < gamma0 < 1e150:
        raise ValueError(f"gamma0 must lie between 1e-150 and 1e150, for its square: received {gamma0!r}")
    return Scaling(-1.0, 1.0, 1.0, 1 / gamma0, gamma0**2, gamma0**2, 1, "mean_field")


@checked
def ic_mean_field(gamma0: float = 1.0, reference_width: int = 1, frozen: Frozen = "matched") -> Scaling:
    """Initialisation-corrected mean field: mean field plus its own output at step 0, enlarged to stay finite (equation 62).

    The frozen part has the multiplier sigma* [(N/N*)^-1/2 - (N/N*)^-1], so that at N* this is mean field; frozen="added" leaves out
    the subtrahend, as the model is often written: the same limit, and twice the initial output at N*.

    Args:
        gamma0: Richness: lazy towards 0, rich at 1
        reference_width: Width N* at which the scalings agree
        frozen: The part that stays: matched (agrees at N*) or added

    Example:
        >>> import meanfield as mf
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), scaling=mf.ic_mean_field(1.0, reference_width=64))
        >>> problem.scaling.frozen
        'matched'
    """
    moving = Scaling(-1.0, 1.0, 1.0, name="ic_mean_field", frozen=frozen)
    return moving.matching(mean_field(gamma0), _width(reference_width))


def ntk() -> Scaling:
    """Neural tangent kernel scaling: sigma = 1/sqrt(N), learning rates independent of N; f0 is random, the kernel frozen.

    Example:
        >>> import meanfield as mf
        >>> mf.ntk().q_sigma, mf.ntk().q_a, mf.ntk().q_w  # powers of the width
        (-0.5, 0.0, 0.0)
    """
    return Scaling(-0.5, 0.0, 0.0, 1.0, 1.0, 1.0, 1, "ntk")


@checked
def default(reference_width: int = 1) -> Scaling:
    """What a network in standard parameterization does at a constant learning rate: sigma = 1/sqrt(N), eta_a = N/N*, eta_w = 1.

    Readouts drawn N(0, 1/N) and trained at a rate independent of N are readouts N(0, 1) trained at a rate ~ N. Outputs grow like N.

    Args:
        reference_width: Width N* at which the scalings agree

    Example:
        >>> import meanfield as mf
        >>> mf.default().q_sigma, mf.default().q_a, mf.default().q_w
        (-0.5, 1.0, 0.0)
        >>> mf.classify(mf.default()).solver
        'InfiniteLogitsLimit'
    """
    return Scaling(-0.5, 1.0, 0.0, name="default").matching(ntk(), _width(reference_width))


@checked
def sym_default(reference_width: int = 1) -> Scaling:
    """The default scaling with equal learning rates: sigma = 1/sqrt(N), eta_a = eta_w = sqrt(N/N*). Outputs grow like sqrt(N).

    Args:
        reference_width: Width N* at which the scalings agree

    Example:
        >>> import meanfield as mf
        >>> mf.sym_default().q_a == mf.sym_default().q_w
        True
    """
    return Scaling(-0.5, 0.5, 0.5, name="sym_default").matching(ntk(), _width(reference_width))


def _width(reference_width: int) -> int:
    return checks.integer("reference_width", reference_width, 1)


NAMED: dict[str, Callable[..., Scaling]] = {
    "mean_field": mean_field,
    "ic_mean_field": ic_mean_field,
    "ntk": ntk,
    "default": default,
    "sym_default": sym_default,
}


def named(name: str, **parameters: Any) -> Scaling:
    """The scaling called `name`; ValueError listing the known names."""
    return checks.lookup("scaling", name, NAMED)(**parameters)


@checked
def coinciding(other: Scaling, width: int) -> dict[str, Scaling]:
    """Every named scaling with the values of `other` at `width`, where they all train the same networks, number for number.

    Example:
        >>> import meanfield as mf
        >>> sorted(mf.coinciding(mf.mean_field(1.0), 64))
        ['default', 'ic_mean_field', 'mean_field', 'ntk', 'sym_default']
    """
    return {name: make().matching(other, width) for name, make in NAMED.items()}
