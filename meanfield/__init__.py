"""The nouns of infinite-width networks: what is asked, what answers it, how answers are compared, drawn and kept.

    import meanfield as mf
    problem = mf.Problem(data=mf.digits(), network=mf.Network(depth=1, activation="tanh"), scaling=mf.mean_field(gamma0=1.0))

The solvers live in the package `solvers`.
"""

from meanfield.activations import Activation, activation
from meanfield.activations import register as register_activation
from meanfield.data import Dataset, digits, from_file, gaussian_mixture, multi_index_teacher, single_index_teacher
from meanfield.deviation import DeviationReport, deviation
from meanfield.distances import marginal_distance, measure_distance
from meanfield.kernels import TwoTimeKernel
from meanfield.losses import Loss, loss
from meanfield.measure import ParticleMeasure
from meanfield.observables import alignment, movement, observe
from meanfield.problem import Network, Problem, Training
from meanfield.scaling import Scaling, mean_field, ntk
from meanfield.solution import Solution, Status

__all__ = [
    "Activation",
    "Dataset",
    "DeviationReport",
    "Loss",
    "Network",
    "ParticleMeasure",
    "Problem",
    "Scaling",
    "Solution",
    "Status",
    "Training",
    "TwoTimeKernel",
    "activation",
    "alignment",
    "deviation",
    "digits",
    "from_file",
    "gaussian_mixture",
    "loss",
    "marginal_distance",
    "mean_field",
    "measure_distance",
    "movement",
    "multi_index_teacher",
    "ntk",
    "observe",
    "register_activation",
    "single_index_teacher",
]
