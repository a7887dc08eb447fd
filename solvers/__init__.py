"""The verbs: each solver is a frozen dataclass of numerical settings, and solver(problem) -> Solution."""

from solvers.causal_dmft import CausalDMFT
from solvers.certificate import Certificate, residual
from solvers.checkpoints import checkpointed
from solvers.empirical_kernels import MonteCarloKernels, empirical_tangent_kernel, monte_carlo_kernels
from solvers.failures import DivergedError, Interrupted, NonFiniteError, SolverError
from solvers.finite_width import FiniteWidth
from solvers.fixed_point_dmft import FixedPointDMFT
from solvers.infinite_logits import InfiniteLogitsLimit, rescaled
from solvers.lazy_prediction import lazy_prediction
from solvers.measured_exponents import measured_exponents
from solvers.predicted_variance import PredictedVariance, predicted_variance
from solvers.proxy_comparison import Proxy, proxy_comparison
from solvers.sharding import RankLost, over_ranks
from solvers.solver import Estimate
from solvers.tangent_kernel import TangentKernelLimit
from solvers.wasserstein_flow import WassersteinFlow
from solvers.width_sweep import width_sweep

__all__ = [
    "CausalDMFT",
    "Certificate",
    "DivergedError",
    "Estimate",
    "FiniteWidth",
    "FixedPointDMFT",
    "InfiniteLogitsLimit",
    "Interrupted",
    "MonteCarloKernels",
    "NonFiniteError",
    "PredictedVariance",
    "Proxy",
    "RankLost",
    "SolverError",
    "TangentKernelLimit",
    "WassersteinFlow",
    "checkpointed",
    "empirical_tangent_kernel",
    "lazy_prediction",
    "measured_exponents",
    "monte_carlo_kernels",
    "over_ranks",
    "predicted_variance",
    "proxy_comparison",
    "rescaled",
    "residual",
    "width_sweep",
]
