"""The nouns of infinite-width networks: what is asked, what answers it, how answers are compared, drawn and kept.

    import meanfield as mf
    problem = mf.Problem(data=mf.digits(), network=mf.Network(depth=1, activation="tanh"), scaling=mf.mean_field(gamma0=1.0))

The solvers live in the package `solvers`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meanfield.comparison.coordinates import CoordinatesReport
from meanfield.comparison.deviation import DeviationReport, deviation
from meanfield.comparison.distances import marginal_distance, measure_distance
from meanfield.comparison.ensembles import EnsembleLoss, ensemble_loss
from meanfield.comparison.free_energy import FreeEnergy, free_energy
from meanfield.comparison.observables import alignment, movement, observe
from meanfield.comparison.population import population_loss
from meanfield.comparison.scaling_reports import PowersReport, ProxyReport
from meanfield.comparison.stationary import StationaryAverages, stationary
from meanfield.comparison.transfer_report import TransferReport
from meanfield.files.storage import load, save, version
from meanfield.kernels.conv_kernels import conv_nngp_and_ntk
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.estimators import GaussianProcessClassifier, GaussianProcessRegressor
from meanfield.kernels.gaussian_process import GaussianProcess, Posterior
from meanfield.kernels.gram_checks import check_gram
from meanfield.kernels.regression import kernel_posterior, log_marginal_likelihood
from meanfield.kernels.spectrum import KernelSpectrum, spectrum
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.activations import Activation, activation
from meanfield.network.activations import register as register_activation
from meanfield.network.architecture import Architecture
from meanfield.network.convolutional import ConvNetwork
from meanfield.network.perceptron import Network
from meanfield.problem.data_files import from_file
from meanfield.problem.data_laws import Mixture, Teacher
from meanfield.problem.dataset import Dataset
from meanfield.problem.datasets import digits, gaussian_mixture, multi_index_teacher, single_index_teacher
from meanfield.problem.losses import Loss, loss
from meanfield.problem.losses import register as register_loss
from meanfield.problem.optimisers import Adam, Muon, RMSprop, SignDescent
from meanfield.problem.own_data import from_arrays, from_frame
from meanfield.problem.problem import Problem
from meanfield.problem.schedules import Schedule
from meanfield.problem.stream import Stream, stream
from meanfield.problem.training import Training
from meanfield.problem.transformation import Transformation
from meanfield.scaling.plane import classify
from meanfield.scaling.scaling import Scaling, coinciding, default, ic_mean_field, mean_field, ntk, sym_default
from meanfield.scaling.standard import Standard, improved_standard, naive_standard
from meanfield.solution.measured import measured
from meanfield.solution.pooling import pooled
from meanfield.solution.prediction import LazyPrediction
from meanfield.solution.solution import Solution, Status
from meanfield.solution.two_time import TwoTimeKernel

if TYPE_CHECKING:
    from meanfield import plot
    from meanfield.page.writing import write_page

__all__ = [
    "Activation",
    "Adam",
    "Architecture",
    "ConvNetwork",
    "CoordinatesReport",
    "Dataset",
    "DeviationReport",
    "EnsembleLoss",
    "FreeEnergy",
    "GaussianProcess",
    "GaussianProcessClassifier",
    "GaussianProcessRegressor",
    "KernelSpectrum",
    "LazyPrediction",
    "Loss",
    "Mixture",
    "Muon",
    "Network",
    "ParticleMeasure",
    "Posterior",
    "PowersReport",
    "Problem",
    "ProxyReport",
    "RMSprop",
    "Scaling",
    "Schedule",
    "SignDescent",
    "Solution",
    "Standard",
    "StationaryAverages",
    "Status",
    "Stream",
    "Teacher",
    "Training",
    "TransferReport",
    "Transformation",
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
    "ensemble_loss",
    "free_energy",
    "from_arrays",
    "from_file",
    "from_frame",
    "gaussian_mixture",
    "ic_mean_field",
    "improved_standard",
    "kernel_posterior",
    "load",
    "log_marginal_likelihood",
    "loss",
    "marginal_distance",
    "mean_field",
    "measure_distance",
    "measured",
    "movement",
    "multi_index_teacher",
    "naive_standard",
    "nngp_and_ntk",
    "ntk",
    "observe",
    "plot",
    "pooled",
    "population_loss",
    "register_activation",
    "register_loss",
    "save",
    "single_index_teacher",
    "spectrum",
    "stationary",
    "stream",
    "sym_default",
    "write_page",
]


def __getattr__(name: str) -> Any:
    """`mf.plot` and `mf.write_page` are imported when they are first used: matplotlib takes a second to load. So is the version read."""
    if name == "plot":
        return import_module("meanfield.plot")
    if name == "write_page":
        return import_module("meanfield.page.writing").write_page
    if name == "__version__":
        return version("meanfield")
    raise AttributeError(f"module 'meanfield' has no attribute {name!r}")
