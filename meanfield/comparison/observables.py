"""What is compared between solutions: numbers drawn from a Solution, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.network.keys import Key
from meanfield.problem.dataset import for_tests
from meanfield.solution.solution import Solution, first_key
from meanfield.solution.two_time import recorded

OUTPUTS = ("f", "f_test", "loss", "test_loss")  # which every recorded step has


def observables(solution: Solution) -> dict[str, Callable[[Solution], Tensor]]:
    """The known observables of a solution, recorded or not; each gives a flat float64 tensor.

    Outputs and losses over the whole run; kernels, and what an architecture records, at the last snapshot.
    """
    problem = solution.problem
    named = {name: lambda s, name=name: _flat(s.recorded[name][-1]) for name in solution.recorded}
    kernels = {key: lambda s, key=key: _flat(s.kernels[key].at()) for key in problem.keys("Phi", "G")}
    return {
        "loss": lambda s: _flat(s.loss),
        "test_loss": lambda s: _flat(s.test_loss),
        "f": lambda s: _flat(s.f),
        "f_test": lambda s: _flat(for_tests(s.f_test)),
        "tangent_kernel": lambda s: _flat(s.tangent_kernel()),
    } | (kernels | named)


@checked
def observe(solution: Solution, name: str) -> Tensor:
    """The observable called `name`; ValueError listing the known names, or saying what was not recorded.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> run = WassersteinFlow(particles=64)(mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 5)))
        >>> mf.observe(run, "loss").shape, mf.observe(run, "Phi1").shape
        (torch.Size([6]), torch.Size([16]))
    """
    return checks.lookup("observable", name, observables(solution))(solution)


def observed_at(solution: Solution, name: str, step: int) -> Tensor:
    """An output, loss or kernel at one recorded step; kernels in whatever shape they were recorded"""
    if name in OUTPUTS:
        return for_tests(getattr(solution, name))[solution.recorded_steps.index(step)]
    return solution.tangent_kernel(step) if name == "tangent_kernel" else solution.kernels[name].at(step)


def holds(solution: Solution, name: str, steps: Sequence[int]) -> bool:
    """Whether `observed_at` finds it there"""
    if name in OUTPUTS:
        at: Sequence[int] = solution.recorded_steps
    elif name == "tangent_kernel":
        at = solution.snapshots if solution.has_tangent else ()
    else:
        at = solution.kernels[name].steps if name in solution.kernels else ()
    return set(steps) <= set(at)


def recorded_observables(solution: Solution) -> tuple[str, ...]:
    """The names that this solution can answer."""
    problem, data = solution.problem, solution.problem.data
    lacking = {*map(str, problem.keys("Phi", "G"))} - solution.kernels.keys()
    if data.x_test is None:
        lacking.add("f_test")
    if data.y_test is None:
        lacking.add("test_loss")
    if not solution.has_tangent:
        lacking.add("tangent_kernel")
    return tuple(name for name in observables(solution) if name not in lacking)


def has_preactivations(solution: Solution, layer: int | str) -> bool:
    """Whether the preactivations of a layer were kept, or particles that tell them"""
    return Key("h", layer) in solution.fields or (layer == 1 and bool(solution.particles))


@checked
def alignment(kernel: Tensor, y: Tensor) -> Tensor:
    """Tr(K y y^T) / (|K| |y y^T|) in [0, 1] of a kernel (P, P) with targets y (P, .., C): how much of it points at the task.

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> y = torch.tensor([[1.0], [-1.0]])
        >>> mf.alignment(y @ y.T, y).item(), mf.alignment(torch.ones(2, 2), y).item()
        (1.0, 0.0)
    """
    kernel, y = checks.matrix("kernel", kernel), checks.samples("y", y, targets=True).flatten(1)
    if not kernel.shape[0] == kernel.shape[1] == len(y):
        raise ValueError(
            f"kernel and y must have shapes (P, P) and (P, C): received {tuple(kernel.shape)} and {tuple(y.shape)}"
        )
    target = y.to(kernel) @ y.to(kernel).T
    return (kernel * target).sum() / (kernel.norm() * target.norm())


@checked
def movement(solution: Solution, name: str | None = None, start: int = 0, end: int = -1) -> Tensor:
    """|K(end) - K(start)| / |K(start)|, the relative change of a kernel ("tangent_kernel", "Phi1", ..) between two snapshots; of the first
    layer's Phi if name is left out.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), scaling=mf.mean_field(0.01), training=mf.Training(0.2, 5))
        >>> bool(mf.movement(WassersteinFlow(particles=256)(problem), "Phi1") < 0.01)  # lazy
        True
    """
    name = first_key(solution, "Phi") if name is None else name
    kernel = None if name == "tangent_kernel" else solution.kernels[name]
    for key, step in (("start", start), ("end", end)):
        recorded(step, solution.snapshots if kernel is None else kernel.steps, key)
    at = solution.tangent_kernel if kernel is None else kernel.at
    return (at(end) - at(start)).norm() / at(start).norm()


def _flat(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64).flatten()
