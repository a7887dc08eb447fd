"""Pictures of results: (result, ..., ax=None, label=None) -> the axes drawn on. Nothing is shown, only `save` writes; rcParams stay as
they are.

Without `ax` a new figure is made. Functions with several panels return a flat array of axes, and take one of that many. Widths run
from light to dark, a limit is black; solutions of several problems have colours, and names by what differs between the problems. `label`
names what is drawn instead: in legends, at the ends of lines and in titles where solutions are told apart (one for each problem), above
the picture elsewhere. Heat maps go from white to red, and from blue to red where signs matter. Only this folder imports matplotlib.
"""

from meanfield.plot.fluctuations import ensemble_loss, predicted_bias, predicted_variance, predictions, width_for
from meanfield.plot.frame import save
from meanfield.plot.lazy import eigenvalues, learning_curves, prediction
from meanfield.plot.matrices import kernels, two_times
from meanfield.plot.plane import powers, proxy_comparison, scaling_plane
from meanfield.plot.reports import coordinates, deviation, variance
from meanfield.plot.runs import animate_particles, loss, outputs, particles, preactivations
from meanfield.plot.stationary import free_energy, stationary
from meanfield.plot.style import paper
from meanfield.plot.tensors import recorded
from meanfield.plot.transfer import learning_rates

__all__ = [
    "animate_particles",
    "coordinates",
    "deviation",
    "eigenvalues",
    "ensemble_loss",
    "free_energy",
    "kernels",
    "learning_curves",
    "learning_rates",
    "loss",
    "outputs",
    "paper",
    "particles",
    "powers",
    "preactivations",
    "predicted_bias",
    "predicted_variance",
    "prediction",
    "predictions",
    "proxy_comparison",
    "recorded",
    "save",
    "scaling_plane",
    "stationary",
    "two_times",
    "variance",
    "width_for",
]
