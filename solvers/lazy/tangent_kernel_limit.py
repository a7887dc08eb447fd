"""TangentKernelLimit: the lazy limit, in which the tangent kernel stays as it started (equations 51, 52, 55 and 58)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.kernels.module_laws import must_have_kernels
from meanfield.kernels.process import draws
from meanfield.kernels.spectrum import KernelSpectrum, unstable
from meanfield.problem.dataset import Dataset
from meanfield.problem.losses import counted
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import Scaling
from meanfield.solution.solution import Solution
from solvers.lazy.lazy_kernels import Kernel, LazyKernels, check_lazy, has_random_start, in_rows, lazy_kernels
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.failures import conclude
from solvers.running.gradient_flow import EVALUATIONS, Flow
from solvers.running.inputs import Rows
from solvers.running.integrator import State
from solvers.running.memory import Parts, bound, kept
from solvers.running.method import Method, Step, Underway
from solvers.running.rehearsal import SECONDS, expected
from solvers.running.resuming import earlier, kept_momentum
from solvers.running.solver import Estimate, settings
from solvers.running.trajectory import snapshot_steps

_LAZY = 0.1  # gamma0 up to which mean-field networks are within about a per cent of their lazy limit


@checked
@dataclass(frozen=True)
class TangentKernelLimit:
    """Solves lazy problems of any depth and loss: `TangentKernelLimit()(problem) -> Solution`, df/dt = K Delta / P with K constant.

    In the NTK scaling this is the limit of infinite width, in mean_field(gamma0) that of gamma0 -> 0 after it, with remainder gamma0^2:
    above gamma0 = 0.1 stats["warning"] says so. Where networks start at random functions, as in the NTK scaling, a run starts at a draw of
    f0 from their Gaussian process, and so does that of a module, whose own first weights play no part; initial="mean" is the mean over
    starts for the squared loss. `initial` may also be f0 (Q, C) itself, e.g. a real network's. Outputs at positions are rows of their own,
    P and Q count them. No step inverts the kernel, so there is no jitter. Memory O(Q P), time O(P^3 + steps Q P C). ValueError for problems
    without such a limit, and for descent that must diverge; `raise_on_failure=False` lets it.

    Example:
        >>> import meanfield as mf
        >>> from solvers import TangentKernelLimit
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=2), mf.Network(depth=3), mf.ntk(), mf.Training(0.2, 5))
        >>> TangentKernelLimit()(problem).f_test.shape
        torch.Size([6, 2, 1])
    """

    kernel: Kernel | Tensor = "analytic"
    """analytic is that of the network; or a given one over [x; x_test], (Q, Q) or (Q, C, Q, C); with positions (Q, positions, Q, positions)
    or (Q, C, Q, C) over all outputs of a sample"""
    initial: Literal["draw", "mean"] | Tensor = "draw"
    """draw: f0 of one network, GP(0, NNGP) by the seed (zero in the mean-field scaling); mean: f0 = 0"""
    seed: int = 0
    """Of all random draws"""
    dtype: str = "float64"
    """Precision of all numbers"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, .."""
    snapshots: Sequence[int] = (0, -1)
    """Steps that show the kernel, which is the same at all; -1 is the last. None for modules of more than 16 outputs a sample"""
    rtol: float | None = None
    """Relative tolerance of gradient flow where the loss is not squared; 1e-9 if left out, 1e-6 in float32"""
    evaluations: int = EVALUATIONS
    """The most evaluations of the velocity in a step of gradient flow; one that needs more ends the run"""
    progress: bool | None = None
    """Show a bar; in a terminal only if left out"""
    raise_on_failure: bool = True
    """Raise where a run fails; otherwise its solution is returned, with a status that says why"""

    def __post_init__(self) -> None:
        checks.normalise(self, evaluations=1)
        if not isinstance(self.kernel, Tensor):
            checks.lookup("kernel", self.kernel, {"analytic": None})
        if not isinstance(self.initial, Tensor):
            checks.lookup("initial", self.initial, dict.fromkeys(("draw", "mean")))

    def __call__(self, problem: Problem) -> Solution:
        return self.ensemble(problem, (self.seed,))[0]

    def ensemble(self, problem: Problem, seeds: int | Sequence[int] = 16) -> list[Solution]:
        """One solution per draw of f0, all advanced at once; a number n means the seeds 0..n-1."""
        chosen = checks.seeds(seeds)
        self.check(problem, len(chosen))
        kernels = lazy_kernels(problem, self.kernel, self._drawn)
        return self._run(problem, kernels, self._start(problem, kernels, chosen), chosen, None)

    def estimate(self, problem: Problem, seeds: int = 1, seconds: float = SECONDS) -> Estimate:
        """Time and memory of `ensemble(problem, seeds)`, from its beginning, which is solved for so many `seconds`.

        ValueError or MemoryError as of the run.
        """
        self.check(problem, seeds)
        found, how, _ = expected(self, problem, seconds, lambda solver, asked: solver.ensemble(asked, range(seeds)))
        return Estimate(found, bound(self.parts(problem, seeds)), how)

    @property
    def _drawn(self) -> bool:
        return isinstance(self.initial, str) and self.initial == "draw"

    def resume(self, solution: Solution, steps: int) -> Solution:
        """The solution continued for `steps` more steps: the bits of an uninterrupted run on as many threads of the same device."""
        solver = replace(self, seed=solution.solver.get("seed", 0))
        problem = earlier(solver, solution, steps)
        kernels = lazy_kernels(problem, self.kernel, self._drawn)  # as at first, to the last bit on as many threads
        return solver._run(problem, kernels, solution.state["f"][None].clone(), (solver.seed,), solution)[0]

    def check(self, problem: Problem, seeds: int = 1) -> None:
        """ValueError or MemoryError, before any work, for a problem without such a limit or one that cannot fit."""
        check_lazy(problem)
        if not isinstance(self.kernel, Tensor) and problem.trial is not None:
            must_have_kernels(problem.architecture)
        checks.memory_in_all(self.parts(problem, seeds), checks.free_memory(self.device))
        snapshot_steps(self.snapshots, problem.training)
        expected = (problem.data.points, *problem.data.y.shape[1:])
        if isinstance(self.initial, Tensor) and tuple(self._given_start(self.initial).shape) != expected:
            raise ValueError(
                f"initial must hold f0 at the training and test samples, shape {expected}: received {tuple(self.initial.shape)}"
            )

    def parts(self, problem: Problem, seeds: int = 1) -> Parts:
        """What `ensemble` holds in memory"""
        data, flow = problem.data, problem.training.optimiser == "gradient_flow"
        given = isinstance(self.kernel, Tensor)
        # a given one may be between all outputs; of a wrong shape it is refused later
        each = (
            self.kernel.numel() ** 0.5 / data.points if isinstance(self.kernel, Tensor) else data.y[0, ..., 0].numel()
        )
        rows, columns = each * data.points, each * data.samples
        kernels = 2 * rows**2 if self._drawn and has_random_start(problem.scaling) else rows * columns
        work = 7 * columns**2 + flow * (columns**2 + 2 * rows * columns)
        shown = int(data.outputs > 1 and not given and len(self.snapshots) > 0)  # one kernel stands for all snapshots
        remedy = "take fewer samples; FiniteWidth needs no kernel"
        own = {"kernels and their decomposition": (8.0 * (kernels + work), remedy)}
        return own | kept(problem, shown, checks.DTYPES[self.dtype].itemsize, seeds, seeds)

    def _start(self, problem: Problem, kernels: LazyKernels, seeds: Sequence[int]) -> Tensor:
        """(E, Q, C) f0 of each seed"""
        shape = (len(seeds), problem.data.points, *problem.data.y.shape[1:])
        if isinstance(self.initial, Tensor):
            return self._given_start(self.initial).expand(shape).clone()
        if self.initial == "mean" or not has_random_start(problem.scaling):
            return torch.zeros(shape, dtype=torch.float64)
        assert kernels.covariance is not None
        return draws(kernels.covariance, kernels.rows, shape[-1], seeds).reshape(shape)

    def _given_start(self, initial: Tensor) -> Tensor:
        return checks.samples("initial", initial, targets=True)

    def _run(
        self, problem: Problem, kernels: LazyKernels, f: Tensor, seeds: Sequence[int], previous: Solution | None
    ) -> list[Solution]:
        """From f (E, Q, .., C), one start for each seed"""
        found = kernels.spectrum(in_rows(problem.data.y), in_rows(f[0, : problem.data.samples]))
        self._must_be_stable(problem, found)
        method = _Linear(problem, kernels.ntk.to(device=self.device, dtype=checks.DTYPES[self.dtype]))
        run = evolve(
            method,
            (f.to(method.ntk),),
            problem,
            self._step(method, found, tuple(v[None] for v in kept_momentum(previous, ("f",), method.ntk))),
            previous=previous,
            snapshots=snapshot_steps(self.snapshots, problem.training),
            captured=dict.fromkeys(previous.snapshots) if previous else None,
            progress=self.progress,
            label=f"lazy limit of {problem.data.samples} samples",
        )
        run.stats["seconds"] /= len(seeds)
        run.stats |= statistics(found, problem)
        recorded = tuple(sorted(run.captured))
        shown = len(recorded) if problem.gradients_recorded else 0
        kept = {} if run.status.blew_up else run.named_state(("f",))
        solutions = [
            Solution(
                problem=problem,
                solver=settings(replace(self, seed=seed)),
                **answer,
                state={name: tensor[e].cpu() for name, tensor in kept.items()},
                snapshots=recorded,
                tangent=method.tangent_kernels(shown) if shown else None,
                stats=dict(run.stats),
            )
            for e, (seed, answer) in enumerate(zip(seeds, run.answers(previous, len(seeds)), strict=True))
        ]
        return conclude(solutions, self.raise_on_failure)

    def _step(self, method: _Linear, found: KernelSpectrum, memory: State) -> Step:
        problem = method.problem
        if problem.training.optimiser == "gradient_flow" and problem.loss_function.name == "squared":
            return _Exact(method.propagator(found), method.y)
        rtol = self.rtol or (1e-6 if self.dtype == "float32" else 1e-9)
        flow = Flow(problem.training.learning_rate, method.train, rtol, self.evaluations)
        return step_of(problem.training, flow, memory)

    def _must_be_stable(self, problem: Problem, found: KernelSpectrum) -> None:
        """ValueError for full-batch descent on the squared loss beyond the edge of stability (equation 55)"""
        training, squared = problem.training, problem.loss_function.name == "squared"
        steady = squared and training.optimiser == "gradient_descent" and training.batch_size is None
        steady &= not training.changing and training.clip is None
        beyond = training.learning_rate > found.largest_learning_rate(training.momentum)
        if steady and beyond and self.raise_on_failure:
            raise ValueError(unstable(found, training.learning_rate, training.momentum))


@dataclass(frozen=True)
class _LinearPass:
    """Outputs f (E, n, .., C) at the points `rows`"""

    f: Tensor
    rows: Rows


@dataclass(frozen=True)
class _Exact:
    """An interval of gradient flow of the squared loss in closed form (equation 52)"""

    propagator: Tensor
    y: Tensor
    memory: State = ()

    def __call__(self, method: _Linear, state: State, passed: _LinearPass, at: int, underway: Underway) -> State:
        del at, underway
        errors = self.y - passed.f[:, : method.train]
        return (state[0] + method.apply(self.propagator, errors).reshape(state[0].shape),)


class _Linear(Method):
    """Outputs and velocity of functions; the state is f (E, Q, .., C) over training and test samples, one for each of E starts."""

    def __init__(self, problem: Problem, ntk: Tensor) -> None:
        self.problem, self.train = problem, problem.data.samples
        self.ntk = ntk  # (Q B, P B)
        self.y = problem.data.y.to(self.ntk)
        self.counted = counted(problem.loss_function, self.y)

    def forward(self, state: State, rows: Rows, differentiated: bool) -> _LinearPass:
        del differentiated
        assert not isinstance(rows, Dataset)  # `check` refuses streams
        chosen = rows if isinstance(rows, slice) else rows.to(self.y.device)
        return _LinearPass(state[0][:, chosen].clone(), rows)  # the state is advanced in place

    def backward(self, passed: _LinearPass) -> State:
        """K Delta / P (equation 51)"""
        y, matrix, count, loss = self.y, self.ntk, self.counted, self.problem.loss_function
        if isinstance(passed.rows, Tensor):
            rows = passed.rows.to(y.device)
            y, matrix = y[rows], matrix.unflatten(1, (self.train, -1))[:, rows].flatten(1)
            count = counted(loss, y)
        delta = loss.delta(passed.f[:, : len(y)], y)
        return (self.apply(matrix, delta).div_(count).reshape(len(delta), -1, *y.shape[1:]),)

    def fall(self, passed: _LinearPass, velocity: State) -> Tensor:
        y, v = self.y, velocity[0][:, : self.train]
        if isinstance(passed.rows, Tensor):
            rows = passed.rows.to(y.device)
            y, v = y[rows], v[:, rows]
        delta = self.problem.loss_function.delta(passed.f[:, : len(y)], y)
        return (delta * v).double().flatten(1).sum(1) / counted(self.problem.loss_function, y)

    def capture(self, state: State, passed: _LinearPass) -> None:
        """The kernel is constant"""

    def propagator(self, found: KernelSpectrum) -> Tensor:
        """(Q B, P B) what the errors of the squared loss add to f in one interval of gradient flow (equation 52)"""
        gain, vectors = found.gain([self.problem.training.learning_rate])[0], found.eigenvectors
        return (self.ntk.double().cpu() @ (vectors * gain) @ vectors.T).to(self.ntk)

    def tangent_kernels(self, count: int) -> Tensor:
        """(count, P, C, P, C) between all outputs of samples, one kernel seen `count` times"""
        p, c = self.train, self.problem.data.outputs
        kernel = self.ntk[: self.ntk.shape[1]].cpu()
        if len(kernel) < p * c:
            each = torch.eye(self.y.shape[-1]).to(kernel)
            kernel = kernel[:, None, :, None] * each[None, :, None, :]
        return kernel.reshape(1, p, c, p, c).expand(count, -1, -1, -1, -1)

    def apply(self, matrix: Tensor, f: Tensor) -> Tensor:
        """One product for all starts: f (E, P, .., C) -> (E, Q B, C / B)"""
        fields = f.reshape(len(f), matrix.shape[1], -1).transpose(0, 1)
        return (matrix @ fields.flatten(1)).reshape(len(matrix), *fields.shape[1:]).transpose(0, 1)


def statistics(found: KernelSpectrum, problem: Problem, jitter: float = 0.0) -> dict[str, float | str]:
    """What a solution reports of its kernel, with a "warning" where networks are far from lazy"""
    reported: dict[str, float | str] = {
        "jitter": jitter,
        "smallest_eigenvalue": float(found.eigenvalues[-1]),
        "largest_eigenvalue": float(found.eigenvalues[0]),
        "condition_number": found.condition_number,
        "remaining_error": found.remaining_error,
    }
    scaling = problem.scaling
    gamma0 = 0.0
    if isinstance(scaling, Scaling) and scaling.trained.is_mean_field:
        gamma0 = 1 / (scaling.sigma * scaling.reference_width)
    if gamma0 > _LAZY:
        reported["warning"] = (
            f"gamma0 = {gamma0:g} is far from lazy: networks in this scaling learn features, and are off this limit by a share of order "
            f"gamma0^2; take WassersteinFlow (depth 1) or CausalDMFT, gamma0 of at most {_LAZY:g}, or scaling=ntk()"
        )
    return reported
