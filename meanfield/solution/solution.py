"""What answers a problem: Solution. Particle flows, finite networks and every limit return it, on the problem's time grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.checking.short import as_table, of_value
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.keys import ByKey, Key
from meanfield.problem.dataset import for_tests
from meanfield.problem.problem import Problem
from meanfield.problem.two_layers import two_layers
from meanfield.solution.field_kernels import FieldKernels
from meanfield.solution.measure_kernels import MeasureKernels
from meanfield.solution.two_time import TwoTimeKernel, TwoTimeResponse, recorded

_BY_KEY = {  # what an entry is, and how to have one
    "kernels": ("kernel", "kernels need snapshots, e.g. snapshots=(0, -1)"),
    "responses": ("response", "solve with CausalDMFT(responses=True)"),
    "fields": ("field", "fields need snapshots and keep_neurons=True"),
}


class Status(Enum):
    """How a run ended; the value says what to do.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> run = WassersteinFlow(particles=64)(mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 5)))
        >>> run.status is mf.Status.FINISHED, run.status.value
        (True, 'finished: every step was taken')
    """

    FINISHED = "finished: every step was taken"
    CONVERGED = "converged: the stopping rule was met"
    NOT_CONVERGED = "not converged: raise iterations, lower damping or the learning rate; or take CausalDMFT, which needs no iteration"
    INTERRUPTED = "interrupted: go on from here with solver.resume(solution)"
    OUT_OF_ROOM = "out of room: the fields span more directions than the samples or the rank limit admit"
    OUT_OF_EVALUATIONS = (
        "out of evaluations: gradient flow did not reach the end of a step; raise evaluations, or scale the inputs down"
    )
    NON_FINITE = "non-finite: the outputs or the loss blew up; lower learning_rate, or, of gradient descent, take optimiser='gradient_flow'"
    DIVERGED = (
        "diverged: the loss grew beyond 1e12 times its scale; lower learning_rate, or, of gradient descent, take "
        "optimiser='gradient_flow'"
    )

    @property
    def blew_up(self) -> bool:
        """Whether the run ended in numbers from which nothing can go on"""
        return self in (Status.NON_FINITE, Status.DIVERGED)


@dataclass(frozen=True)
class Given:
    """A setting of a solver that was an object of Python's: solutions and files keep the name of its type alone."""

    type: str

    def __repr__(self) -> str:
        return f"'given ({self.type})'"

    def __str__(self) -> str:
        return f"given ({self.type})"


@checked
@dataclass(frozen=True, eq=False)
class Solution:
    """A solved problem, complete when created. R recorded steps, N neurons.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> solution = WassersteinFlow(particles=64)(mf.Problem(mf.digits(n_train=4, n_test=2), training=mf.Training(0.2, 5)))
        >>> solution.f.shape, solution.f_test.shape, solution.loss.shape  # records, samples, outputs
        (torch.Size([6, 4, 1]), torch.Size([6, 2, 1]), torch.Size([6]))
        >>> solution.kernels["Phi1"].at(-1, -1).shape, solution.tangent_kernel(0).shape
        (torch.Size([4, 4]), torch.Size([4, 4]))
    """

    problem: Problem
    """What was asked"""
    solver: Mapping[str, Any]
    """Its name and settings"""
    f: Tensor
    """(R, P, C) outputs at the recorded steps; (R, P, positions, .., C) of a module with such outputs"""
    f_test: Tensor | None
    """(R, P_test, .., C)"""
    state: Mapping[str, Tensor]
    """Tensors from which the solver goes on; empty after a blow-up"""
    status: Status = Status.FINISHED
    """How the run ended, and what to do"""
    snapshots: tuple[int, ...] = ()
    """The steps at which everything below was recorded"""
    kernels: Mapping[str, TwoTimeKernel] = field(default_factory=dict)
    """"Phi1".."PhiL" feature kernels and "G1".."GL" gradient kernels, each with `.at(t, s)`"""
    responses: Mapping[str, TwoTimeResponse] = field(default_factory=dict)
    """"A1".. and "B1".. between layers l and l+1 of a DMFT that was asked for them, with `.at(t, s)`"""
    standard_errors: Mapping[str, Tensor] = field(default_factory=dict)
    """Of means over independent runs (`pooled`): "f", "f_test", "loss", "test_loss" as those, "tangent_kernels" and the kernels
    (snapshots, Q, Q) at equal times"""
    tangent: Tensor | MeasureKernels | FieldKernels | None = None
    """The tangent kernels of the snapshots (snapshots, P, C, P, C), or what makes them from particles or fields: see tangent_kernels"""
    particles: Mapping[int, ParticleMeasure] = field(default_factory=dict)
    """Two-layer solutions only, the measure at each snapshot"""
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    """"h1".. (snapshots, N, P) of finite networks and of CausalDMFT's neurons, and "g1".. (snapshots, N, P C) of finite networks; of
    modules "h[name]" (snapshots, N, rows) of what `record` names, over samples, then positions"""
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    """What the module's Architecture records, by name, (snapshots, P, ..)"""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Seconds and threads of the last stretch, engine, ranks, .."""
    recorded_steps: Sequence[int] = ()
    """(R,), the last of which is below training.steps if the run ended early; 0..R-1 if left out"""

    def __post_init__(self) -> None:
        data = self.problem.data
        if self.f.ndim < 1 or self.f.shape[1:] != data.y.shape:
            right = ", ".join(map(str, data.y.shape))
            raise ValueError(f"f must have shape (R, {right}): received {tuple(self.f.shape)}")
        every = tuple(self.recorded_steps or range(len(self.f)))
        if len(every) != len(self.f) or any(later <= step for step, later in pairwise(every)):
            raise ValueError(f"recorded_steps must be {len(self.f)} increasing steps, one for each f: received {every}")
        object.__setattr__(self, "recorded_steps", every)
        if (self.f_test is None) != (data.x_test is None):
            raise ValueError("f_test belongs to a problem with test samples, and to such a problem only")
        for name, (what, remedy) in _BY_KEY.items():
            object.__setattr__(self, name, ByKey(what, getattr(self, name), remedy))

    def __repr__(self) -> str:
        end = f", loss {float(self.loss[0]):.4g} -> {float(self.loss[-1]):.4g}" if len(self.f) else ""
        return f"Solution({self.solver.get('name')}, steps={self.steps}{end}, {self.status.name.lower()})"

    def _repr_html_(self) -> str:
        told = {"solver": of_value(self.solver), "status": self.status.value, "steps": str(self.steps)}
        for name, what in (
            ("loss", self.loss),
            ("test loss", None if self.problem.data.y_test is None else self.test_loss),
        ):
            if what is not None and len(what):
                told[name] = f"{float(what[0]):.4g} -> {float(what[-1]):.4g}"
        told |= {"snapshots": of_value(self.snapshots), "kernels": ", ".join(map(str, self.kernels)) or "none"}
        return as_table("Solution", {"problem": repr(self.problem), **told})

    def __eq__(self, other: object) -> bool:
        """Same problem, settings and numbers; `stats` (seconds and the like) may differ."""
        if not isinstance(other, Solution):
            return NotImplemented
        keys = ("problem", "status", "snapshots", "recorded_steps", "kernels", "responses", "particles")
        return (
            dict(self.solver) == dict(other.solver)
            and all(getattr(self, key) == getattr(other, key) for key in keys)
            and all(
                _equal(getattr(self, key), getattr(other, key))
                for key in ("f", "f_test", "tangent_kernels", "state", "fields", "recorded", "standard_errors")
            )
        )

    @property
    def steps(self) -> int:
        """T, the steps that were taken"""
        return self.recorded_steps[-1] if self.recorded_steps else -1

    @property
    def times(self) -> Tensor:
        """(R,) training time eta k of each record"""
        return self.problem.training.times_of(self.recorded_steps)

    @property
    def loss(self) -> Tensor:
        """(R,) training loss"""
        return self.problem.loss_function.mean(self.f.double(), self.problem.data.y)

    @property
    def test_loss(self) -> Tensor:
        """(R,) loss on the test samples; ValueError if there are none"""
        y = self.problem.data.test_targets
        return self.problem.loss_function.mean(for_tests(self.f_test).double(), y)

    @cached_property
    def tangent_kernels(self) -> Tensor | None:
        """(snapshots, P, C, P, C) in units where df/dt = K Delta / P; those of particles and fields are made when first looked at"""
        if isinstance(self.tangent, (MeasureKernels, FieldKernels)):
            return self.tangent() if self.tangent.steps else None
        return self.tangent

    @property
    def has_tangent(self) -> bool:
        """Whether there are tangent kernels, made already or not"""
        return self.tangent is not None and (isinstance(self.tangent, Tensor) or bool(self.tangent.steps))

    @property
    def kernels_told(self) -> bool:
        """Whether particles or fields that are kept here tell the kernels, so that a file need not hold them"""
        source = self.tangent
        if isinstance(source, FieldKernels):
            return self.fields.keys() >= source.fields.keys() and list(source.steps) == list(self.snapshots)
        return isinstance(source, MeasureKernels) and source.steps == sorted(self.particles)

    @property
    def tangent_deferred(self) -> bool:
        """Whether the tangent kernels were not made yet, and particles or fields tell them"""
        return self.kernels_told and "tangent_kernels" not in self.__dict__

    @property
    def width(self) -> int | None:
        """N of a finite network; None for a limit"""
        return self.solver.get("width")

    def tangent_kernel(self, t: int = -1) -> Tensor:
        """K at step t, (P, P) for one output, else (P, C, P, C) (equation 11)"""
        index = recorded(t, self.snapshots)
        if self.tangent_kernels is None:
            raise ValueError("the solver recorded no tangent kernel: give it snapshots, e.g. snapshots=(0, -1)")
        kernel = self.tangent_kernels[index]
        return kernel[:, 0, :, 0] if kernel.shape[1] == 1 else kernel

    def measure(self, t: int = -1) -> ParticleMeasure:
        """The particles at step t (two-layer solutions)"""
        if not self.particles:
            if self.width is not None and self.problem.trial is not None and self.problem.layered is not None:
                raise ValueError(
                    "no particles were kept: finite networks with settings by layer, mf.Architecture(mf.Network(..)), keep none; their "
                    "limits by WassersteinFlow do, as do networks of a plain mf.Network(1)"
                )
            raise ValueError(
                "no particles were kept: they exist for two-layer networks, with snapshots and keep_neurons=True"
            )
        return self.particles[sorted(self.particles)[recorded(t, sorted(self.particles))]]

    def preactivations(self, t: int = -1, layer: int | str | None = None) -> tuple[Tensor, Tensor]:
        """(h (N, P), weights (N,)): the neurons' preactivations at step t on the training samples; of a module (N, rows) what was recorded
        by the name `layer`. The first layer's if left out.
        """
        if layer is None:
            layer = next((key.layer for key in preactivation_keys(self)), 1)
        if (key := Key("h", layer)) in self.fields:
            h = self.fields[key][recorded(t, self.snapshots)]
            return h, h.new_full((len(h),), 1 / len(h))
        if self.problem.trial is not None and not self.particles:
            known = ", ".join(map(str, preactivation_keys(self))) or "none"
            raise ValueError(
                f"no preactivations {layer!r} were kept: kept are {known}; name some, mf.Architecture(Net, record={{'mix': 'mix'}}), and "
                "ask for snapshots and keep_neurons=True"
            )
        if layer != 1 or not self.particles:
            depth = (self.problem.layered or self.problem.perceptron).depth
            raise ValueError(
                f"no preactivations of layer {layer} were kept: the network has {depth} hidden layers; "
                "ask for snapshots and keep_neurons=True"
            )
        measure = self.measure(t)
        return measure.w @ two_layers(self.problem).inner.inputs(self.problem.data.x).to(measure.w.dtype).T, measure.m


def preactivation_keys(solution: Solution) -> list[Key]:
    """Of a perceptron those of its layers, kept or not; of a module those that were recorded"""
    if solution.problem.trial is None:
        return solution.problem.keys("h")
    return [key for key in map(Key.of, solution.fields) if key.kind == "h"]


def first_key(solution: Solution, kind: str) -> Key:
    """The first layer, in the order of the network, whose kernel of this kind was recorded; the network's first where none was"""
    keys = solution.problem.keys(kind)
    return next((key for key in keys if key in solution.kernels), keys[0] if keys else Key(kind, 1))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a is None and b is None
