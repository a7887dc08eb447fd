"""The verbs: each solver is a frozen dataclass of numerical settings, and solver(problem) -> Solution."""

from solvers.evolve import Interrupted, NonFiniteError, SolverError
from solvers.finite_width import FiniteWidth
from solvers.wasserstein_flow import WassersteinFlow

__all__ = ["FiniteWidth", "Interrupted", "NonFiniteError", "SolverError", "WassersteinFlow"]
