"""The nouns of infinite-width networks: what is asked, what answers it, how answers are compared, drawn and kept.

    import meanfield as mf
    problem = mf.Problem(data=mf.digits(), network=mf.Network(depth=1, activation="tanh"), scaling=mf.mean_field(gamma0=1.0))

The solvers live in the package `solvers`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meanfield.activations import Activation, activation
from meanfield.activations import register as register_activation
from meanfield.conv_kernels import ConvNetwork, conv_nngp_and_ntk
from meanfield.data import Dataset, digits, gaussian_mixture, multi_index_teacher, single_index_teacher
from meanfield.data_files import from_file
from meanfield.dense_kernels import nngp_and_ntk
from meanfield.deviation import DeviationReport, deviation
from meanfield.distances import marginal_distance, measure_distance
from meanfield.gram_checks import check_gram
from meanfield.kernels import TwoTimeKernel
from meanfield.losses import Loss, loss
from meanfield.measure import ParticleMeasure
from meanfield.observables import alignment, movement, observe
from meanfield.parameterization import Standard, improved_standard, naive_standard
from meanfield.pooling import pooled
from meanfield.prediction import LazyPrediction
from meanfield.problem import Network, Problem, Training
from meanfield.scaling import Scaling, coinciding, default, ic_mean_field, mean_field, ntk, sym_default
from meanfield.scaling_plane import classify
from meanfield.scaling_reports import PowersReport, ProxyReport
from meanfield.solution import Solution, Status
from meanfield.spectrum import KernelSpectrum, spectrum
from meanfield.storage import load, save

if TYPE_CHECKING:
    from meanfield import plot

__all__ = [
    "Activation",
    "ConvNetwork",
    "Dataset",
    "DeviationReport",
    "KernelSpectrum",
    "LazyPrediction",
    "Loss",
    "Network",
    "ParticleMeasure",
    "PowersReport",
    "Problem",
    "ProxyReport",
    "Scaling",
    "Solution",
    "Standard",
    "Status",
    "Training",
    "TwoTimeKernel",
    "activation",
    "alignment",
    "check_gram",
    "classify",
    "coinciding",
    "conv_nngp_and_ntk",
    "default",
    "deviation",
    "digits",
    "from_file",
    "gaussian_mixture",
    "ic_mean_field",
    "improved_standard",
    "load",
    "loss",
    "marginal_distance",
    "mean_field",
    "measure_distance",
    "movement",
    "multi_index_teacher",
    "naive_standard",
    "nngp_and_ntk",
    "ntk",
    "observe",
    "plot",
    "pooled",
    "register_activation",
    "save",
    "single_index_teacher",
    "spectrum",
    "sym_default",
]


def __getattr__(name: str) -> Any:
    """`mf.plot` is imported when it is first used: matplotlib takes a second to load."""
    if name == "plot":
        return import_module("meanfield.plot")
    raise AttributeError(f"module 'meanfield' has no attribute {name!r}")
