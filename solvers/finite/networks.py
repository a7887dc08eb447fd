"""A batch of real networks of one width: forward by matrix products, derivatives by autograd (equations 1 and 62)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanfield.checking.seeding import seeded
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network.layered import branch
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.units import layers
from meanfield.solution.field_kernels import FieldKernels
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel
from solvers.running.inputs import EVERYWHERE, Rows
from solvers.running.integrator import State
from solvers.running.method import Method
from solvers.running.noise import source
from solvers.running.trajectory import Trajectory

POINTS_AT_ONCE = 2**20  # times neurons and seeds, where outputs are only recorded


@dataclass(frozen=True)
class _Snapshot:
    """Per seed: parameters of two-layer networks, h and g of each layer."""

    parameters: State | None
    h: list[Tensor]  # (E, N, P) each
    g: list[Tensor]  # (E, N, P C) each


@dataclass(frozen=True)
class NetworksPass:
    """Outputs f (E, n, C), which remember the parameters `leaves` they came from, and targets y of the training samples, which are first"""

    f: Tensor
    leaves: State
    y: Tensor


class Networks(Method):
    """A batch of E independent networks; the state is W0, .., a (and biases), each with a leading axis of seeds.

    like: of the numbers' kind, where they are. keep: whether solutions keep the neurons.
    """

    def __init__(self, problem: Problem, width: int, seeds: Sequence[int], like: Tensor, keep: bool) -> None:
        self.problem, self.width, self.like, self.keep = problem, width, like, keep
        self.network, self.phi = problem.perceptron, problem.perceptron.nonlinearity.phi
        data = problem.data
        # many samples of which a step sees few are not kept twice
        self.x = data.x if problem.training.batch_size else self._here(data.x)
        self.x_test = data.x_test
        self.y = self._here(data.y)
        own = layers(self.network, problem.scaling, data.inputs, width)
        self.sigma, self.widths = own.sigma, own.widths
        below = (data.inputs, *own.widths)
        self.shapes: dict[str, tuple[int, ...]] = {f"W{l}": (n, below[l]) for l, n in enumerate(own.widths)}
        self.shapes["a"] = (below[-1], data.outputs)
        if self.network.bias_std:
            self.shapes |= {f"b{l}": (n, 1) for l, n in enumerate(own.widths)} | {"b": (data.outputs,)}
        self.names = tuple(self.shapes)
        self.rates = [own.rates[name] for name in self.names]
        self.still = [not rate for rate in self.rates]
        self.step_sizes = [own.steps[name] for name in self.names]
        self.matrix_steps = [own.matrices.get(name, 0.0) for name in self.names]
        self.seeds = tuple(seeds)
        scaling = problem.scaling
        self.frozen = self._frozen(scaling) if isinstance(scaling, Scaling) and scaling.frozen != "none" else None

    def initial_state(self) -> State:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # each seed has a generator of its own
            drawn = list(pool.map(self._draw, self.seeds))
        return tuple(torch.stack([self._here(t) for t in tensors]) for tensors in zip(*drawn, strict=True))

    def state_of(self, solution: Solution) -> State:
        return tuple(self._here(solution.state[name]).clone()[None] for name in self.names)

    def forward(self, state: State, rows: Rows, differentiated: bool) -> NetworksPass:
        leaves = tuple(tensor.detach().requires_grad_(differentiated) for tensor in state)
        train, *test = (0.0, 0.0) if self.frozen is None else self.frozen
        with torch.set_grad_enabled(differentiated):
            if isinstance(rows, Dataset):
                return NetworksPass(self._forward(leaves, self._here(rows.x))[0], leaves, self._here(rows.y))
            if isinstance(rows, Tensor):
                here = rows.to(self.y.device)
                kept = train[:, here] if isinstance(train, Tensor) else train
                return NetworksPass(self._forward(leaves, self._here(self.x[rows]))[0] + kept, leaves, self.y[here])
            f = (self._forward(leaves, self._here(self.x))[0] if differentiated else self._seen(state, self.x)) + train
            if rows == EVERYWHERE and self.x_test is not None:
                f = torch.cat([f, self._seen(state, self.x_test) + test[0]], 1)
        return NetworksPass(f, leaves, self.y)

    def _seen(self, state: State, x: Tensor) -> Tensor:
        """Outputs (E, P, C) without derivatives, for some of the points x at a time"""
        blocks = x.split(max(1, POINTS_AT_ONCE // state[0].shape[:2].numel()))
        with torch.no_grad():
            return torch.cat([self._forward(state, self._here(block))[0] for block in blocks], 1)

    def backward(self, passed: NetworksPass) -> State:
        with torch.enable_grad():
            f = passed.f[:, : len(passed.y)]
            loss = self.problem.loss_function.value(f, passed.y).mean(-1).sum()  # seeds do not interact
        gradients = torch.autograd.grad(loss, passed.leaves)
        return tuple(g.mul_(-rate) for g, rate in zip(gradients, self.rates, strict=True))

    def fall(self, passed: NetworksPass, velocity: State) -> Tensor:
        del passed
        return fall(velocity, self.rates)

    def diffused(self, passed: NetworksPass, state: State, size: float, at: int) -> State:
        del passed
        for e, seed in enumerate(self.seeds):
            g = source(self.problem.training, at, seed, self.width)
            for tensor in (t for t, still in zip(state, self.still, strict=True) if not still):
                tensor[e].add_(self._here(torch.randn(tensor[e].shape, generator=g, dtype=torch.float64)), alpha=size)
        return state

    def capture(self, state: State, passed: NetworksPass) -> _Snapshot:
        del passed  # which may not remember what it came from
        with torch.enable_grad():
            f, h = self._forward([tensor.detach().requires_grad_() for tensor in state], self._here(self.x))
            per_output = [torch.autograd.grad(f[..., c].sum(), h, retain_graph=True) for c in range(f.shape[-1])]
        slopes = [torch.stack(gs, -1) for gs in zip(*per_output, strict=True)]  # df / dh^l (E, N, P, C)
        keep = self.keep and self.network.depth == 1
        parameters = tuple(t.clone() for t in state) if keep else None
        return _Snapshot(parameters, [t.detach() for t in h], [s.flatten(2) / self.sigma for s in slopes])

    def solution(
        self,
        run: Trajectory,
        e: int,
        solver: Mapping[str, Any],
        wanted: Sequence[int],
        answer: Mapping[str, Any],
        previous: Solution | None,
    ) -> Solution:
        """The solution of the e-th seed; wanted: steps of its snapshots"""
        steps = sorted(run.captured)
        captured = [run.captured[step] for step in steps]
        particles = {
            step: self._measure(s.parameters, e) for step, s in run.captured.items() if s.parameters is not None
        }
        fields: dict[str, Tensor] = {
            key: torch.stack([getattr(s, key.kind)[l][e] for s in captured]).cpu()
            for kind in ("h", "g")
            for l, key in enumerate(self.network.keys(kind))
            if captured
        }
        if previous is not None:
            particles = dict(previous.particles) | particles
            steps, fields = _joined(previous, steps, fields, wanted)
        chosen = [i for i, step in enumerate(steps) if step in wanted]
        steps, fields = [steps[i] for i in chosen], {name: field[chosen] for name, field in fields.items()}
        source = FieldKernels(self.problem, steps, fields, str(self.like.device)) if steps else None
        kernels = source.kernels if source else {}
        if not self.keep:  # then now or never
            kernels = {name: TwoTimeKernel(steps, kernel.factor) for name, kernel in kernels.items()}
        state = {name: tensor[e].cpu() for name, tensor in run.named_state(self.names).items()}
        return Solution(
            problem=self.problem,
            solver=solver,
            **answer,
            state={} if run.status.blew_up else state,
            snapshots=tuple(steps),
            kernels=kernels,
            tangent=source if source is None or self.keep else source(),
            particles={step: measure for step, measure in particles.items() if step in wanted},
            fields=fields if self.keep else {},
            stats=dict(run.stats),
        )

    def _forward(self, parameters: Sequence[Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs (E, P, C) and preactivations of each layer (E, N, P)."""
        p = dict(zip(self.names, parameters, strict=True))
        std, bias, skip = self.network.weight_std, self.network.bias_std, self.network.residual is not None
        h = [std * (p["W0"] @ x.T) / math.sqrt(x.shape[1])]
        if bias:
            h[0] = h[0] + bias * p["b0"]
        for l in range(1, self.network.depth):
            new = std * torch.bmm(p[f"W{l}"], self.phi(h[-1])) / math.sqrt(self.widths[l - 1])
            if bias:
                new = new + bias * p[f"b{l}"]
            h.append(h[-1] + branch(self.network) * new if skip else new)
        f = std * torch.bmm(self.phi(h[-1]).transpose(1, 2), p["a"])
        if bias:
            f = f + bias * math.sqrt(self.widths[-1]) * p["b"][:, None, :]
        return self.sigma * f, h

    def _frozen(self, scaling: Scaling) -> list[Tensor]:
        """The part of the outputs (E, P, C) that stays as it was at step 0, at training and at test samples (equation 62)"""
        share, start = scaling.frozen_multiplier(self.width) / self.sigma, self.initial_state()
        return [share * self._seen(start, x) for x in (self.x, self.x_test) if x is not None]

    def _measure(self, parameters: State, e: int) -> ParticleMeasure:
        p = {name: tensor[e].cpu() for name, tensor in zip(self.names, parameters, strict=True)}
        w = torch.cat([p["W0"], p["b0"]], 1) if "b0" in p else p["W0"]
        return ParticleMeasure(p["a"], w, torch.full((self.width,), 1 / self.width, dtype=self.like.dtype))

    def _draw(self, seed: int) -> list[Tensor]:
        g = generator(seed, self.width)
        return [
            torch.randn(shape, generator=g, dtype=torch.float64).to(self.like.dtype) for shape in self.shapes.values()
        ]

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.like)


def fall(velocity: State, rates: Sequence[float]) -> Tensor:
    """(E,) minus d loss / d time of each seed: the squares of the velocities over their rates (equation 111)"""
    moving = [v.double().square().flatten(1).sum(1) / rate for v, rate in zip(velocity, rates, strict=True) if rate]
    return torch.stack(moving).sum(0)


def generator(seed: int, width: int) -> torch.Generator:
    """Of the initial weights of one network"""
    return torch.Generator().manual_seed(seeded(seed, width))


def _joined(
    previous: Solution, steps: list[int], fields: dict[str, Tensor], wanted: Sequence[int]
) -> tuple[list[int], dict[str, Tensor]]:
    """Snapshots of a resumed run behind those of the run that it continues, as far as they are wanted."""
    old = [i for i, step in enumerate(previous.snapshots) if step in wanted and step not in steps]
    if not old:
        return steps, fields
    if not previous.fields:
        raise ValueError(
            "the earlier snapshots were kept without neurons: resume with snapshots in the future only, e.g. (-1,)"
        )
    joined = {
        name: torch.cat([field[old], *([fields[name]] if steps else [])]) for name, field in previous.fields.items()
    }
    return [previous.snapshots[i] for i in old] + steps, joined
