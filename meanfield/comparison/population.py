"""The loss over all Gaussian inputs in closed form, of two-layer networks and limits that learn from a teacher (equation 118)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.kernels.gaussian_averages import gaussian_averages
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.activations import activation
from meanfield.problem.data_laws import Mixture, Teacher
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from meanfield.problem.two_layers import two_layers
from meanfield.solution.solution import Solution

_AT_ONCE = 2**22  # pairs of neurons


@checked
def population_loss(solution: Solution, teacher: Teacher | None = None) -> Tensor:
    """(snapshots,) the squared loss over all inputs x ~ N(0, I_D) at each step of `solution.particles`, without noise of targets.

    In closed form for erf, relu, linear, sin and gelu, by quadrature (1e-9) for other activations. teacher: that of the stream if left
    out; of data by `mf.multi_index_teacher` a Teacher with the same arguments. Time grows with the square of the neurons: 2^12 take
    about a second a snapshot. ValueError for other losses, deep networks, biases, and teachers with another link.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> data = mf.stream(mf.Teacher(inputs=3, link="erf"), batch=8)
        >>> problem = mf.Problem(data, mf.Network(1, "erf"), training=mf.Training(0.2, 20))
        >>> loss = mf.population_loss(WassersteinFlow(particles=64)(problem))  # at the snapshots, the first and the last step
        >>> bool(loss[1] < loss[0])
        True
    """
    problem = solution.problem
    teacher = _teacher(problem, teacher)
    if not solution.particles:
        raise ValueError(
            f"the population loss is a sum over particles, of which this solution of {solution.solver.get('name')} kept none: solve by "
            "WassersteinFlow(snapshots=(0, -1)), or by FiniteWidth of a plain mf.Network(1) with snapshots and keep_neurons=True"
            + _elsewhere(problem.data)
        )
    averages, u = gaussian_averages(two_layers(problem).activation), teacher.vectors
    one = torch.ones(teacher.directions, dtype=torch.float64)
    own = 0.5 * float(averages.pair(one, one, u.T @ u)[0].sum())
    found = [own + _beyond(problem, solution.particles[step], u) for step in sorted(solution.particles)]
    return torch.tensor(found, dtype=torch.float64)


def _beyond(problem: Problem, measure: ParticleMeasure, u: Tensor) -> float:
    """The loss but for the teacher's own square"""
    network, gain = two_layers(problem), problem.in_plane.measure_limit()[0]
    averages = gaussian_averages(network.activation)
    gain *= network.std
    a, w, m = (t.double().cpu() for t in measure.tensors)
    v = w * (network.inner.weight_std / math.sqrt(w.shape[1]))
    share, q = gain * m * a[:, 0], v.square().sum(1)
    ones = torch.ones(u.shape[1], dtype=torch.float64)
    across = averages.pair(q, ones, v @ u)[0].sum(1)
    total, block = -float(share @ across), max(1, _AT_ONCE // len(v))
    pair = averages.prepare(q, q, len(v) ** 2)
    for rows in torch.arange(len(v)).split(block):
        total += 0.5 * float(share[rows] @ (pair(q[rows], q, v[rows] @ v.T)[0] @ share))
    return total


def _teacher(problem: Problem, teacher: Teacher | None) -> Teacher:
    """Whose targets are learned; ValueError for a problem whose population loss is not known"""
    law = problem.data.law if isinstance(problem.data, Stream) else None
    found, elsewhere = teacher or (law if isinstance(law, Teacher) else None), _elsewhere(problem.data)
    if isinstance(law, Mixture):
        raise ValueError(
            f"the population loss is known for Gaussian inputs and targets of a teacher: received the stream {problem.data.name!r} of a "
            f"Mixture, which has none{elsewhere}"
        )
    if found is None:
        raise ValueError(
            f"teacher must be given for {problem.data.name!r}: give the mf.Teacher(..) that gave its targets, if one did{elsewhere}"
        )
    network, loss = problem.layered or problem.perceptron_for("population_loss"), problem.loss_function.name
    link = activation(found.link) if isinstance(found.link, str) else found.link
    for wrong, what in (
        (network.depth != 1, f"depth {network.depth}"),
        (network.bias_std, f"bias_std={network.bias_std:g}"),
        (loss != "squared", f"the loss {loss!r}"),
        (problem.in_plane.frozen != "none", f"the scaling {problem.in_plane.name!r}"),
        (link != network.nonlinearity, f"the activation {network.nonlinearity.name!r} and another link of the teacher"),
    ):
        if wrong:
            raise ValueError(
                "the population loss is known for squared losses of two-layer networks without biases whose activation is the teacher's "
                f"link: received {what}{elsewhere}"
            )
    if found.inputs != problem.data.inputs:
        raise ValueError(
            f"the teacher has inputs={found.inputs}, and the data {problem.data.inputs}: give its own arguments"
        )
    return found


def _elsewhere(data: Dataset) -> str:
    """Where a loss on fresh samples is to be had"""
    if isinstance(data, Stream):
        return (
            "; the loss on watched samples is solution.loss, which mf.stream(.., watched=4096) makes a mean of as many"
        )
    return "; solution.test_loss is the loss on test samples, x_test and y_test of the data"
