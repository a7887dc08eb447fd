"""The verbs: each solver is a frozen dataclass of numerical settings, and solver(problem) -> Solution."""

from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.solution.gibbs_measure import GibbsMeasure
from solvers.dmft.causal_dmft import CausalDMFT
from solvers.dmft.certificate import Certificate, residual
from solvers.dmft.fixed_point_dmft import FixedPointDMFT
from solvers.dmft.revealed_width import RevealedWidth
from solvers.finite.empirical_kernels import MonteCarloKernels, empirical_tangent_kernel, monte_carlo_kernels
from solvers.finite.finite_width import FiniteWidth
from solvers.finite.module_tangent_kernel import module_tangent_kernel
from solvers.finite.width_sweep import width_sweep
from solvers.fluctuations.predicted_bias import predicted_bias
from solvers.fluctuations.predicted_variance import predicted_variance
from solvers.fluctuations.width_for import width_for
from solvers.lazy.kernel_blocks import KernelBlocks
from solvers.lazy.lazy_prediction import lazy_prediction
from solvers.lazy.tangent_kernel_limit import TangentKernelLimit
from solvers.running.checkpoints import checkpointed
from solvers.running.failures import DivergedError, Interrupted, NonFiniteError, SolverError
from solvers.running.sharding import RankLost, over_ranks
from solvers.running.solver import Estimate
from solvers.studies.coordinate_check import coordinate_check
from solvers.studies.learning_rate_transfer import learning_rate_transfer
from solvers.studies.measured_exponents import measured_exponents
from solvers.studies.proxy_comparison import Proxy, proxy_comparison
from solvers.two_layer.gibbs import gibbs_fixed_point
from solvers.two_layer.infinite_logits import InfiniteLogitsLimit, rescaled
from solvers.two_layer.wasserstein_flow import WassersteinFlow

__all__ = [
    "CausalDMFT",
    "Certificate",
    "DivergedError",
    "Estimate",
    "FiniteWidth",
    "FixedPointDMFT",
    "GibbsMeasure",
    "InfiniteLogitsLimit",
    "Interrupted",
    "KernelBlocks",
    "MonteCarloKernels",
    "NonFiniteError",
    "PredictedBias",
    "PredictedVariance",
    "Proxy",
    "RankLost",
    "RevealedWidth",
    "SolverError",
    "TangentKernelLimit",
    "WassersteinFlow",
    "WidthFor",
    "checkpointed",
    "coordinate_check",
    "empirical_tangent_kernel",
    "gibbs_fixed_point",
    "lazy_prediction",
    "learning_rate_transfer",
    "measured_exponents",
    "module_tangent_kernel",
    "monte_carlo_kernels",
    "over_ranks",
    "predicted_bias",
    "predicted_variance",
    "proxy_comparison",
    "rescaled",
    "residual",
    "width_for",
    "width_sweep",
]
