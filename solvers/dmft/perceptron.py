"""LimitNetwork: the infinitely wide perceptron; forward, backward and update as of a real one (equations 20 to 30).

Fields are rows (points, S) over the S neurons that stand for a layer, training points first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from meanfield.measures.particle_measure import principal_directions
from meanfield.network.layered import branch
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from solvers.dmft.basis import Basis, orthonormal, without_part_in
from solvers.dmft.basis import Rows as Growing
from solvers.dmft.entry_dense import EntryDense
from solvers.dmft.infinite_dense import InfiniteDense, Known
from solvers.dmft.neurons import Neurons, Population
from solvers.running.failures import RankError, in_layer
from solvers.running.inputs import Rows, at, trained
from solvers.running.integrator import State
from solvers.running.noise import source
from solvers.running.sharding import normal_part


class Parameters(NamedTuple):
    """Of a network with L hidden layers: L - 1 matrices as what they learned (J, K) and how much of W0 is left, and the neurons' own"""

    learned: Sequence[Tensor]
    w: Tensor  # (rank of the inputs, S)
    biases: Sequence[Tensor]  # (1, S) of layers 2 to L, none for networks without
    a: Tensor  # (C, S)
    b: Tensor  # (C,)
    scales: Tensor  # (L - 1,) float64, on the CPU

    def flat(self) -> State:
        return (*self.learned, self.w, *self.biases, self.a, self.b, self.scales)


@dataclass
class LimitPass:
    """Outputs f (n, C), preactivations h^l and features phi^l (n, S), and coefficients c^l (K, n) of a pass over points x with targets y,
    `train` training samples first; gradients g^l (P, C, S) and their coefficients d^l (J, P C) once they are found
    """

    f: Tensor
    parameters: Parameters
    x: Tensor
    y: Tensor
    train: int
    h: list[Tensor]
    phi: list[Tensor]
    c: list[Tensor]
    g: list[Tensor] = field(default_factory=list)
    d: list[Tensor] = field(default_factory=list)


class LimitNetwork:
    """Outputs and velocity of a perceptron in the limit. Its state is `Parameters`; what is known of the infinite matrices is its own, and
    grows.

    tolerances: of features and of gradients (equation 28b). limit: the most directions of one side of a matrix.
    """

    def __init__(self, problem: Problem, population: Population, tolerances: tuple[float, float], limit: int) -> None:
        network = problem.perceptron
        self.problem, self.population, self.shard = problem, population, population.shard
        self.act, self.depth = network.nonlinearity, network.depth
        self.tolerance, self.coarse = tolerances
        self.gain, self.rate_a, self.rate_w = problem.in_plane.measure_limit()
        self.std, self.bias, self.skip = network.weight_std, network.bias_std, network.residual is not None
        self.branch = branch(network)
        # an optimiser of entries sees each coordinate
        self.directions = None if problem.training.entrywise else directions(problem)
        self.x, self.y = self._inputs(problem.data.all_x), problem.data.y.to(population.like)
        self.train, self.c_out = problem.data.samples, problem.data.outputs
        first = population.neurons(0)  # a skip connection joins equal neurons of all layers
        self.neurons = [first if self.skip or l == 0 else population.neurons(l) for l in range(self.depth)]
        self.limit = self.shard.ranks.least(limit)
        optimiser = problem.training.entrywise
        self.dense = optimiser is not None and not optimiser.low_rank  # what a matrix learns
        made = EntryDense if self.dense else InfiniteDense
        self.layers = [
            made(*pair, self.tolerance, population.like, self.limit, self.coarse) for pair in pairwise(self.neurons)
        ]
        biases = (self.depth - 1) * bool(self.bias)
        below = [not self.rate_w] * (self.depth + biases)  # matrices, input weights, biases
        self.still = [*below, not self.rate_a, not self.rate_a, not self.rate_w]
        self.matrix_steps = [1.0] * (self.depth - 1) + [0.0] * (4 + biases)
        self.step_sizes = [*[1.0] * (self.depth - 1), 1.0, *[1.0] * biases, 1.0, self.gain * self.bias, 0.0]

    def basis(self) -> Basis:
        """An empty one, for fields of this network that are only looked at"""
        return Basis(self.population.samples, self.coarse, self.population.like, self.limit, self.shard)

    def initial_state(self) -> State:
        """First Gaussians of each layer: input weights, biases, readout, in the limit orthogonal to the first features so that f(0) = 0"""
        like, (first, *later) = self.population.like, self.neurons
        w = first.fresh(self.x.shape[1])
        w = w.clone() if self.population.finite else orthonormal(w, w[:0], self.shard)
        biases = [neurons.fresh(1).clone() for neurons in later] if self.bias else []
        a, matrices = self.neurons[-1].fresh(self.c_out).clone(), len(self.layers)
        b = like.new_zeros(self.c_out)
        if self.population.finite and self.bias:  # a Gaussian of size 1/sqrt(S), as a mean over neurons
            b = (
                self.gain
                * self.bias
                * self.shard.sum(self.neurons[-1].fresh(self.c_out).sum(1))
                / self.population.samples
            )
        learned = [like.new_zeros(layer.learned_shape) for layer in self.layers]
        start = Parameters(learned, w, biases, a, b, torch.ones(matrices, dtype=torch.float64))
        if not self.population.sampled:
            return start.flat()
        features = self.forward(start.flat(), slice(None), False).phi[-1]
        tolerance = min(self.tolerance, 1e-3) if like.dtype == torch.float32 else 1e-8
        span = Basis(self.population.samples, tolerance, like, shard=self.shard)
        span.reveal(features)
        if (needed := len(span) + self.c_out) > span.size:
            raise RankError(needed, span.size, None, "the readout")
        a = orthonormal(orthonormal(a, span.fields.rows, self.shard), span.fields.rows, self.shard)
        return start._replace(a=a).flat()

    @property
    def names(self) -> list[str]:
        """Of the state's tensors"""
        biases = [f"b{l}" for l in range(2, self.depth + 1)] if self.bias else []
        own = [f"parameter_{name}" for name in ("w", *biases, "a", "b")]
        return [*(f"learned{l}" for l in range(1, self.depth)), *own, "scales"]

    def parameters(self, state: State) -> Parameters:
        learned, (w, *biases, a, b, scales) = state[: self.depth - 1], state[self.depth - 1 :]
        return Parameters(learned, w, biases, a, b, scales)

    def forward(self, state: State, rows: Rows, differentiated: bool) -> LimitPass:
        """A pass over some points (equation 20)"""
        del differentiated
        p, x = self.parameters(state), self._inputs(rows.x) if isinstance(rows, Dataset) else self.x[rows]
        h, phis, cs = [x @ p.w], [], []
        for l, (layer, learned, scale) in enumerate(zip(self.layers, p.learned, p.scales.tolist(), strict=True)):
            phis.append(self.act.phi(h[-1]))
            with self._named(l):
                image, c, _ = layer.forward(phis[-1], learned, scale)
            image *= self.std
            if self.bias:
                image += self.bias * p.biases[l]
            cs.append(c)
            h.append(h[-1] + self.branch * image if self.skip else image)
        phis.append(self.act.phi(h[-1]))
        f = self.readout(phis[-1], p.a) + p.b
        return LimitPass(f, p, x, at(rows, self.y, "y"), trained(rows, self.train), h, phis, cs)

    def _inputs(self, x: Tensor) -> Tensor:
        """(n, rank of the inputs) what the first layer multiplies at points x"""
        x = self.problem.perceptron.inputs(x)
        return (x if self.directions is None else x @ self.directions).to(self.population.like)

    def readout(self, phi: Tensor, a: Tensor) -> Tensor:
        """(n, C) the average over the last layer's neurons"""
        return self.gain * self.std * self.shard.sum(phi @ a.T) / self.population.samples

    def gradients(self, passed: LimitPass) -> list[Tensor]:
        """g^1..g^L (P, C, S) of the training points of a pass (equation 25), found once"""
        if passed.g:
            return passed.g
        samples, c, size = passed.train, self.c_out, self.shard.local
        p, slopes = passed.parameters, [self.act.dphi(h[:samples])[:, None, :] for h in passed.h]
        g, ds, scales = [slopes[-1] * (self.std * p.a)[None]], [], p.scales.tolist()
        for l in reversed(range(self.depth - 1)):
            with self._named(l):
                z, d = self.layers[l].backward(g[0].reshape(samples * c, size), p.learned[l], scales[l])
            ds.insert(0, d)
            above = g[0] if self.skip else z.new_zeros(())
            g.insert(0, torch.addcmul(above, slopes[l], z.reshape(samples, c, size), value=self.branch * self.std))
        passed.g, passed.d = g, ds
        return g

    def _named(self, l: int) -> AbstractContextManager[None]:
        return in_layer(f"the matrix between hidden layers {l + 1} and {l + 2}", self.population.samples)

    def backward(self, passed: LimitPass) -> State:
        """Minus the gradient of the loss times the learning rates' multipliers (equations 9 and 26)"""
        g, samples = self.gradients(passed), passed.train
        delta = self.problem.loss_function.delta(passed.f[:samples], passed.y[:samples])  # (P, C)
        rate_a, rate_w = self.rate_a / samples, self.rate_w / samples
        w = rate_w * passed.x[:samples].T @ torch.einsum("pc,pcs->ps", delta, g[0])
        scaled = (rate_w * self.bias * self.branch) * delta.reshape(1, -1)
        biases = [scaled @ g[l].flatten(0, 1) for l in range(1, self.depth)] if self.bias else []
        a = (rate_a * self.std) * delta.T @ passed.phi[-1][:samples]
        b = (self.gain * self.rate_a * self.bias**2) * delta.mean(0)
        hidden = rate_w * self.std * self.branch
        if self.dense:
            pulled = [torch.einsum("pc,pcs->sp", delta, above) for above in g[1:]]
            learned = [d @ (hidden * phi[:samples]) for d, phi in zip(pulled, passed.phi, strict=False)]
        else:
            pulled = [(d.reshape(-1, samples, self.c_out) * delta).sum(2) for d in passed.d]  # sum_c Delta_c d_c
            learned = [d @ (hidden * c[:, :samples]).T for d, c in zip(pulled, passed.c, strict=True)]
        return Parameters(learned, w, biases, a, b, torch.zeros_like(passed.parameters.scales)).flat()

    def fall(self, passed: LimitPass, velocity: State) -> Tensor:
        """- d loss / d time (equation 111)"""
        del passed
        p, count = self.parameters(velocity), self.population.samples
        own = [
            (t.double().square().sum(), rate)
            for t, rate in [*((t, self.rate_w) for t in (p.w, *p.biases)), (p.a, self.rate_a)]
        ]
        found = (
            self.shard.sum(torch.stack([total / rate for total, rate in own if rate])).sum() / self.population.samples
        )
        if self.rate_w:
            squares = [
                q.weight_of_squares * t.double().square().sum() for q, t in zip(self.layers, p.learned, strict=True)
            ]
            found = found + sum(squares) / (count * self.rate_w)
        bias = self.gain * self.rate_a * self.bias**2
        return self.gain * found + (p.b.double().square().sum() / bias if bias else 0.0)

    def diffused(self, passed: LimitPass, state: State, size: float, at: int) -> State:
        """Noise on all that neurons have of their own and on each matrix; the readout bias, a mean over neurons, has none. In the limit it
        has no part in the fields that it meets, and so must the draws: otherwise each injects noise of size 1/sqrt(S) in f.
        """
        p, shard, training = self.parameters(state), self.shard, self.problem.training
        met = [g.flatten(0, 1) for g in self.gradients(passed)]
        met = [met[0], *(met[1:] if self.bias else ()), passed.phi[-1]]
        rates = [*[self.rate_w] * (len(met) - 1), self.rate_a]
        for i, (tensor, fields, rate) in enumerate(zip((p.w, *p.biases, p.a), met, rates, strict=True)):
            if not rate:
                continue
            g = source(training, at, self.population.seed, 0, i)
            noise = normal_part(len(tensor), shard.size, g, torch.float64, columns=shard.rows).to(tensor)
            if not self.population.finite:
                without_part_in(fields, noise, shard)
            tensor.add_(noise, alpha=size)
        for l, (layer, left) in enumerate(zip(self.layers if self.rate_w else (), p.scales.tolist(), strict=False), 1):
            p.scales[l - 1] = scale = math.hypot(left, size)
            layer.diffuse(left / scale, size / scale, source(training, at, self.population.seed, 1, l))
        return state

    def norm(self, state: State) -> Tensor:
        """The largest root mean square over neurons, of a matrix of what it does to fields in all directions of its basis"""
        p = self.parameters(state)
        own = (p.w, *p.biases, p.a)
        sums = self.shard.sum(torch.stack([tensor.square().sum(dtype=torch.float64) for tensor in own]))
        means = [total / max(1, len(tensor)) / self.shard.size for total, tensor in zip(sums, own, strict=True)]
        matrices = [learned.square().sum(dtype=torch.float64) for learned in p.learned]
        return torch.stack([*matrices, *means, p.b.double().square().mean()]).max().sqrt()

    def growing(self) -> dict[str, Growing | Known | Neurons]:
        """All that grows as the matrices become known, by name"""
        found: dict[str, Growing | Known | Neurons] = {}
        for l, layer in enumerate(self.layers):
            parts = layer.growing()
            found |= {f"layer{l + 1}_{name}": parts[name] for name in ("e", "f", "u", "r")}
            found |= {f"known{2 * l}": parts["below0"], f"known{2 * l + 1}": parts["above0"]}
        distinct = dict.fromkeys(self.neurons)
        return found | {f"draws{l}": neurons for l, neurons in enumerate(distinct)}


def directions(problem: Problem) -> Tensor:
    """(D, rank) orthonormal, the principal directions of the network's inputs, those of the training points first."""
    data = problem.data
    x = problem.perceptron.inputs(data.all_x)
    weighted = torch.cat([x[: data.samples], 1e-3 * x[data.samples :]])
    principal = principal_directions(weighted, x.shape[1])
    if isinstance(data, Stream):  # whose samples may have any
        return principal
    seen = (x @ principal).norm(dim=0)
    return principal[:, seen >= 1e-10 * seen.norm()]
