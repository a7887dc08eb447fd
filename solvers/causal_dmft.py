"""CausalDMFT: the infinite-width limit of deep networks in the mean-field scaling, in one causal sweep (equations 20 to 30)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from meanfield import checks
from meanfield.kernels import TwoTimeKernel, tangent_kernel
from meanfield.measure import principal_directions
from meanfield.problem import Problem
from meanfield.solution import Solution, Status
from solvers.evolve import State, Trajectory, conclude, evolve, settings, snapshot_steps
from solvers.infinite_dense import (
    Basis,
    InfiniteDense,
    Neurons,
    exact_neurons,
    orthonormal,
    plain_neurons,
    sobol_neurons,
)

Draws = Literal["sobol", "plain"]


@dataclass(frozen=True)
class CausalDMFT:
    """Solves networks of any depth in the mean-field scaling: `CausalDMFT(samples=8192)(problem) -> Solution`.

    Each hidden layer is represented by `samples` neurons; linear networks are solved exactly, without sampling. tolerance: the part
    of a field (relative, root mean square) that may be dropped as already known; None takes 1e-2, and 1e-12 for linear networks.
    draws: "sobol" (scrambled quasi-Monte-Carlo) or "plain". two_time: keep
    the first layer's G and the last layer's Phi at all pairs of steps, as the others are; False keeps them at the snapshots.
    keep_neurons: keep preactivations at the snapshots.
    """

    samples: int = 8192
    seed: int = 0
    tolerance: float | None = None
    draws: Draws = "sobol"
    dtype: str = "float32"
    device: str = "cpu"
    snapshots: Sequence[int] = (0, -1)
    two_time: bool = True
    keep_neurons: bool = True
    progress: bool | None = None
    raise_on_failure: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", checks.integer("samples", self.samples, 2))
        object.__setattr__(self, "dtype", checks.dtype(self.dtype))
        object.__setattr__(self, "device", checks.device(self.device))
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        checks.integer("seed", self.seed, 0)
        checks.lookup("draws", self.draws, dict.fromkeys(get_args(Draws)))
        if self.tolerance is not None:
            checks.positive("tolerance", self.tolerance)

    def __call__(self, problem: Problem) -> Solution:
        self.check(problem)
        sweep = _Sweep(problem, self)
        run = evolve(
            sweep,
            (),
            problem.training,
            snapshots=snapshot_steps(self.snapshots, problem.training.steps),
            progress=self.progress,
            label=f"DMFT, {self.samples} samples",
            advance=sweep.advance,
        )
        solution = sweep.solution(run)
        conclude([solution], self.raise_on_failure)
        return solution

    def check(self, problem: Problem) -> None:
        """ValueError, before any work, for a problem without such a limit."""
        problem.scaling.measure_limit()
        snapshot_steps(self.snapshots, problem.training.steps)
        if problem.training.optimiser != "gradient_descent":
            raise ValueError("CausalDMFT follows gradient_descent: for gradient_flow take a small learning_rate")
        known = problem.data.samples + (0 if problem.data.x_test is None else len(problem.data.x_test))
        if self.samples <= 2 * known:
            raise ValueError(
                f"samples={self.samples} are too few for {known} data points, whose features alone may span as many directions: "
                f"take at least {4 * known}"
            )


class _Sweep:
    """The limit network: forward, backward and update as of a real one; fields are (points, S), training points first."""

    def __init__(self, problem: Problem, solver: CausalDMFT) -> None:
        self.problem, self.solver, network = problem, solver, problem.network
        self.act, self.depth = network.nonlinearity, network.depth
        self.exact = self.act.name == "linear"
        self.kind = torch.float64 if self.exact else checks.DTYPES[solver.dtype]
        self.device = solver.device
        self.tolerance = solver.tolerance or (1e-12 if self.exact else 1e-2)
        self.gain, self.rate_a, self.rate_w = problem.scaling.measure_limit()
        self.std, self.bias = network.weight_std, network.bias_std
        self.branch = 1.0 if network.residual is None else network.residual / math.sqrt(network.depth)
        self.x, self.y, self.train = (
            _coordinates(problem).to(self.like),
            problem.data.y.to(self.like),
            problem.data.samples,
        )
        self._draw()
        self.records: dict[str, list[Tensor]] = {}
        self.g: list[Tensor] | None = None
        self.momentum: dict[str, Tensor] = {}

    @property
    def like(self) -> Tensor:
        return torch.empty(0, dtype=self.kind, device=self.device)

    def _draw(self) -> None:
        """Neurons of each layer and their first Gaussians: input weights, biases, readout."""
        solver, depth = self.solver, self.depth
        make: Callable[[int], Neurons] = {
            "sobol": lambda l: sobol_neurons(solver.samples, 1000 * solver.seed + l, self.kind, self.device),
            "plain": lambda l: plain_neurons(solver.samples, 1000 * solver.seed + l, self.kind, self.device),
        }[solver.draws]
        if self.exact:
            make = lambda l: exact_neurons(solver.samples, self.kind, self.device)  # noqa: E731
        shared = self.problem.network.residual is not None  # a skip connection joins equal neurons of all layers
        first = make(0)
        self.neurons = [first if shared or l == 0 else make(l) for l in range(depth)]
        none = self.like.new_empty(0, solver.samples)
        self.w = orthonormal(first.fresh(self.x.shape[1]), none)
        self.biases = [n.fresh(1) for n in self.neurons[1:]] if self.bias else []
        self.a = self.neurons[-1].fresh(self.problem.data.outputs)
        self.b = self.like.new_zeros(self.problem.data.outputs)
        self.layers = [
            InfiniteDense(below, above, self.tolerance, self.like) for below, above in pairwise(self.neurons)
        ]
        self.last_features = Basis(solver.samples, self.tolerance, self.like)
        self.first_gradients = Basis(solver.samples, self.tolerance, self.like)
        self.started = False

    def outputs(self, state: State) -> tuple[Tensor, Tensor | None]:
        """The forward pass (equations 20 and 24)."""
        del state  # parameters are this object's own: their basis grows
        self.h, self.phi, self.c, self.g = [self.x @ self.w], [], [], None
        for l, layer in enumerate(self.layers):
            self.phi.append(self.act.phi(self.h[-1]))
            image, c = layer.forward(self.phi[-1])
            image *= self.std
            if self.biases:
                image += self.bias * self.biases[l]
            self.c.append(c)
            self._record(f"Phi{l + 1}", c[:, : self.train])
            self.h.append(image if self.problem.network.residual is None else self.h[-1] + self.branch * image)
        self.phi.append(self.act.phi(self.h[-1]))
        if self.solver.two_time:
            self._record(f"Phi{self.depth}", self.last_features.reveal(self.phi[-1][: self.train])[0])
        if not self.started and not self.exact:  # f(0) = 0 exactly
            span = Basis(self.solver.samples, 1e-3 if self.kind == torch.float32 else 1e-8, self.like)
            span.reveal(self.phi[-1])
            self.a = orthonormal(orthonormal(self.a, span.fields.rows), span.fields.rows)
        self.started = True
        f = self.gain * self.std * (self.phi[-1] @ self.a.T) / self.solver.samples + self.b
        return f[: self.train], f[self.train :] if len(f) > self.train else None

    def gradients(self) -> list[Tensor]:
        """g^1..g^L (P, C, S) of the training points (equation 25); once a step"""
        if self.g is not None:
            return self.g
        p, c, s = self.train, len(self.a), self.solver.samples
        slopes = [self.act.dphi(h[:p])[:, None, :] for h in self.h]
        g = [self.std * slopes[-1] * self.a[None]]
        for l in reversed(range(self.depth - 1)):
            z, d = self.layers[l].backward(g[0].reshape(p * c, s))
            self._record(f"G{l + 2}", d)
            below = (self.branch * self.std) * slopes[l] * z.reshape(p, c, s)
            g.insert(0, below if self.problem.network.residual is None else below + g[0])
        if self.solver.two_time:
            self._record("G1", self.first_gradients.reveal(g[0].reshape(p * c, s))[0])
        self.g = g
        return g

    def velocity(self, state: State, f: Tensor, weights: Tensor | None) -> State:
        raise NotImplementedError("the basis grows: `advance` does the step")

    def advance(self, state: State, f: Tensor, weights: Tensor | None) -> State:
        """One step of gradient descent, with momentum and weight decay (equation 26)"""
        training, g = self.problem.training, self.gradients()
        delta = self.problem.loss_function.delta(f, self.y)  # (P, C)
        if weights is not None:
            delta = delta * weights[:, None]
        pulled = [torch.einsum("pc,pcs->ps", delta, field) for field in g]  # sum_c Delta_c g_c
        rate_a, rate_w, hidden = self.rate_a / self.train, self.rate_w / self.train, self.std * self.branch
        self._step("a", self.a, (rate_a * self.std) * delta.T @ self.phi[-1][: self.train])
        self._step("b", self.b, (self.gain * self.rate_a * self.bias**2) * delta.mean(0))
        self._step("w", self.w, rate_w * self.x[: self.train].T @ pulled[0])
        for l, own in enumerate(self.biases):
            self._step(f"b{l}", own, (rate_w * self.bias * self.branch) * pulled[l + 1].sum(0, keepdim=True))
        keep = 1 - training.learning_rate * training.weight_decay
        for l, layer in enumerate(self.layers):
            if keep != 1:
                layer.decay(keep)
            force = (training.learning_rate * rate_w * hidden) * pulled[l + 1]
            layer.update(force, self.c[l][:, : self.train], training.momentum)
        return state

    def _step(self, name: str, parameter: Tensor, velocity: Tensor) -> None:
        training = self.problem.training
        if training.momentum:
            velocity = velocity + training.momentum * self.momentum.get(name, torch.zeros_like(velocity))
            self.momentum[name] = velocity
        parameter.mul_(1 - training.learning_rate * training.weight_decay).add_(velocity, alpha=training.learning_rate)

    def capture(self, state: State) -> tuple[list[Tensor], Tensor, Tensor]:
        """Preactivations of each layer, features of the last and gradients of the first, (neurons, points)"""
        del state
        g = self.gradients()[0]
        return (
            [h[: self.train].T.clone() for h in self.h],
            self.phi[-1][: self.train].T.clone(),
            g.flatten(0, 1).T.clone(),
        )

    def solution(self, run: Trajectory) -> Solution:
        if run.status is not Status.NON_FINITE:
            self.gradients()
        f, f_test = run.history()
        steps, kept = sorted(run.captured), [run.captured[step] for step in sorted(run.captured)]
        kernels = {name: _padded(rows[: len(f)]) for name, rows in self.records.items()}
        if kept and not self.solver.two_time:
            m = self.like.new_full((self.solver.samples,), 1 / self.solver.samples)
            kernels[f"Phi{self.depth}"] = TwoTimeKernel.from_fields(steps, m, [k[1] for k in kept], self.train)
            kernels["G1"] = TwoTimeKernel.from_fields(steps, m, [k[2] for k in kept], kept[0][2].shape[1])
        names = [f"{kind}{l}" for kind in ("Phi", "G") for l in range(1, self.depth + 1)]
        keep = self.solver.keep_neurons and not self.exact  # the exact solution's "neurons" are coefficients
        return Solution(
            problem=self.problem,
            solver=settings(self.solver),
            f=f,
            f_test=f_test,
            state={},
            status=run.status,
            snapshots=tuple(steps),
            kernels={name: kernels[name] for name in names if name in kernels},
            tangent_kernels=torch.stack([self._tangent(kernels, t) for t in steps]) if steps else None,
            fields={f"h{l + 1}": torch.stack([k[0][l] for k in kept]).cpu() for l in range(self.depth)}
            if keep and kept
            else {},
            stats=run.stats | {"ranks": tuple((len(q.e), len(q.f)) for q in self.layers), "exact": self.exact},
        )

    def _tangent(self, kernels: dict[str, TwoTimeKernel], t: int) -> Tensor:
        """K(t) = sum_l G^{l+1} * (weight_std^2 Phi^l + bias_std^2) (equation 11)"""
        data, c = self.problem.data, len(self.a)
        scaled = data.x.to(self.kind) / math.sqrt(data.inputs)
        phi = [scaled @ scaled.T, *(kernels[f"Phi{l}"].at(t) for l in range(1, self.depth + 1))]
        g = [kernels[f"G{l}"].at(t) for l in range(1, self.depth + 1)]
        total = self.gain * self.rate_a * tangent_kernel([(phi[-1], None)], c, self.std, self.bias)
        for l in range(self.depth):
            branch = 1.0 if l == 0 else self.branch**2
            total = total + branch * self.gain * self.rate_w * tangent_kernel([(phi[l], g[l])], c, self.std, self.bias)
        return total

    def _record(self, name: str, coefficients: Tensor) -> None:
        self.records.setdefault(name, []).append(coefficients.cpu())


def _coordinates(problem: Problem) -> Tensor:
    """(P + P_test, rank) the network's inputs along their principal directions, those of the training points first."""
    data = problem.data
    x = problem.network.inputs(data.x if data.x_test is None else torch.cat([data.x, data.x_test]))
    weighted = torch.cat([x[: data.samples], 1e-3 * x[data.samples :]])
    projected = x @ principal_directions(weighted, x.shape[1])
    return projected[:, projected.norm(dim=0) > 1e-10 * projected.norm()]


def _padded(rows: list[Tensor]) -> TwoTimeKernel:
    """Coefficients (K_t, Q) of every step, zeros below where the basis was still smaller."""
    largest = max(len(c) for c in rows)
    factor = torch.stack([torch.nn.functional.pad(c, (0, 0, 0, largest - len(c))) for c in rows])
    return TwoTimeKernel(tuple(range(len(rows))), factor)
