"""The verbs: each solver is a frozen dataclass of numerical settings, and solver(problem) -> Solution."""

from solvers.causal_dmft import CausalDMFT
from solvers.certificate import Certificate, residual
from solvers.evolve import Interrupted, NonFiniteError, SolverError
from solvers.finite_width import FiniteWidth
from solvers.fixed_point_dmft import FixedPointDMFT
from solvers.predicted_variance import PredictedVariance, predicted_variance
from solvers.wasserstein_flow import WassersteinFlow
from solvers.width_sweep import width_sweep

__all__ = [
    "CausalDMFT",
    "Certificate",
    "FiniteWidth",
    "FixedPointDMFT",
    "Interrupted",
    "NonFiniteError",
    "PredictedVariance",
    "SolverError",
    "WassersteinFlow",
    "predicted_variance",
    "residual",
    "width_sweep",
]
