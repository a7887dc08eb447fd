"""How the output multiplier and the learning rates depend on the width (equations 3 to 5).

    f = sigma(N) sum_r a_r phi(h_r),    sigma = sigma* (N/N*)^q_sigma,    eta_a = eta eta_a* (N/N*)^q_a,    eta_w = eta eta_w* (N/N*)^q_w

A named scaling is a function that returns a `Scaling`; add yours below and name it in `NAMED`.
"""

from __future__ import annotations

from dataclasses import dataclass

from meanfield import checks


@dataclass(frozen=True)
class Scaling:
    """A point of the scaling plane with its values at the reference width N*.

    `eta_a` and `eta_w` multiply Training.learning_rate for the readout and for all weights below it.
    """

    q_sigma: float
    q_a: float
    q_w: float
    sigma: float = 1.0
    eta_a: float = 1.0
    eta_w: float = 1.0
    reference_width: int = 1
    name: str = "custom"

    def __post_init__(self) -> None:
        for key in ("q_sigma", "q_a", "q_w"):
            object.__setattr__(self, key, checks.finite(key, getattr(self, key)))
        for key in ("sigma", "eta_a", "eta_w"):
            object.__setattr__(self, key, checks.positive(key, getattr(self, key)))
        object.__setattr__(self, "reference_width", checks.integer("reference_width", self.reference_width, 1))

    def output_multiplier(self, width: int) -> float:
        """sigma(N)"""
        return self.sigma * self._ratio(width) ** self.q_sigma

    def learning_rate_multipliers(self, width: int) -> tuple[float, float]:
        """(eta_a, eta_w)(N) in units of Training.learning_rate"""
        ratio = self._ratio(width)
        return self.eta_a * ratio**self.q_a, self.eta_w * ratio**self.q_w

    @property
    def is_mean_field(self) -> bool:
        """Whether the width limit is the deterministic flow of a measure: f0 -> 0, weights move by O(1)."""
        return (self.q_sigma, self.q_a, self.q_w) == (-1.0, 1.0, 1.0)

    def measure_limit(self) -> tuple[float, float, float]:
        """(sigma N, eta_a sigma, eta_w sigma), which do not depend on N in the mean-field scaling (equation 7)."""
        if not self.is_mean_field:
            raise ValueError(
                f"the scaling {self.name!r} (q_sigma={self.q_sigma:g}, q_a={self.q_a:g}, q_w={self.q_w:g}) has no limit as a flow of "
                "measures: take mean_field(gamma0), or solve the finite network with FiniteWidth"
            )
        width = self.reference_width
        return self.sigma * width, self.eta_a * self.sigma, self.eta_w * self.sigma

    def _ratio(self, width: int) -> float:
        return checks.integer("width", width, 1) / self.reference_width


def mean_field(gamma0: float = 1.0) -> Scaling:
    """Mean field (muP) with richness gamma0: sigma = 1/(gamma0 N), eta_a = eta_w = gamma0^2 N; lazy as gamma0 -> 0, rich at O(1)."""
    gamma0 = checks.positive("gamma0", gamma0)
    return Scaling(-1.0, 1.0, 1.0, 1 / gamma0, gamma0**2, gamma0**2, 1, "mean_field")


def ntk() -> Scaling:
    """Neural tangent kernel scaling: sigma = 1/sqrt(N), learning rates independent of N; f0 is random, the kernel frozen."""
    return Scaling(-0.5, 0.0, 0.0, 1.0, 1.0, 1.0, 1, "ntk")


NAMED = {"mean_field": mean_field, "ntk": ntk}


def named(name: str, **parameters: float) -> Scaling:
    """The scaling called `name`; ValueError listing the known names."""
    return checks.lookup("scaling", name, NAMED)(**parameters)
