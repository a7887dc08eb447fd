"""The flow of a particle measure as the loop through time sees it, equations 7 to 9 and 69."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meanfield.measures import reductions, tiles
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.two_layers import two_layers
from meanfield.scaling.scaling import MeasureLimit
from solvers.running.inputs import Inputs, Rows, at, trained
from solvers.running.integrator import State
from solvers.running.method import Method
from solvers.running.noise import source
from solvers.running.sharding import Shard, normal_part
from solvers.running.trajectory import Trajectory
from solvers.two_layer.initial_particles import Cloud


@dataclass
class MeasurePass:
    """Outputs f (n, C) of the particles `state` at the points `rows`, `train` training samples first, and the particles' velocity where
    it was found on the way
    """

    f: Tensor
    state: State
    rows: Rows
    train: int
    velocity: tuple[Tensor, Tensor] | None = None


class MeasureFlow(Method):
    """Outputs and velocity of the measure; the state is (a, w, b), b the readout bias in units of the output.

    frozen (P + P_test, C): added to the outputs (equation 69). seed: of the noise. variation: s of equation 127.
    shard: says of which particles a, w and m are, where processes share them; None: of all.
    """

    names: tuple[str, ...] = ("a", "w", "b")  # of the state

    def __init__(
        self,
        problem: Problem,
        m: Tensor,
        engine: reductions.Engine,
        limit: MeasureLimit,
        frozen: Tensor | None = None,
        shard: Shard | None = None,
        seed: int = 0,
        variation: float = 0.0,
    ) -> None:
        self.seed, self.variation = seed, variation
        self.shard = shard or Shard(len(m))
        network = two_layers(problem)
        self.problem, self.m, self.activation = problem, m, network.activation
        self.engine: reductions.Engine = engine
        self.inputs = Inputs(problem, m)
        self.y = problem.data.y.to(m)
        self.train, self.frozen = len(self.y), frozen
        self.gain, (own_a, own_w, own_b) = limit.gamma, network.rates
        self.rate_a, self.rate_w, self.rate_b = limit.kappa_a * own_a, limit.kappa_w * own_w, limit.kappa_a * own_b
        self.std, self.bias = network.std, network.bias
        self.still = (not self.rate_a, not self.rate_w, not self.rate_b)
        self.roots = (math.sqrt(own_a), math.sqrt(own_w))  # of the noise (equation 125)
        self.step_sizes = (own_a, own_w, own_b * self.gain * self.bias)
        self.matrix_steps, self.decays = (0.0, 0.0, 0.0), network.decays_of(self.inputs.of_a_step)
        points, shared = problem.batch or self.train, not self.shard.whole
        one_pass = tiles.kept_points(self.activation, len(m), self.inputs.width, m, points, shared)
        # f and velocity share products
        self.fused = self.chosen == "dense" or (self.chosen == "chunked" and one_pass > 0)
        # a step's velocity is used up before the next, an integrator's stages are not
        self.room = tiles.Room() if problem.training.optimiser == "gradient_descent" else None

    @property
    def chosen(self) -> reductions.Engine:
        """The engine that serves a step; the same for all processes that share the particles"""
        largest = -(-self.shard.size // self.shard.ranks.count)
        return reductions.serving(self.engine, largest, self.inputs.of_a_step, self.activation)

    def forward(self, state: State, rows: Rows, differentiated: bool) -> MeasurePass:
        a, w, b = state
        train = trained(rows, self.train)
        if not (differentiated and self.fused):
            parts = [
                reductions.outputs(a, w, self.m, x, self.activation, self.engine) for x in self.inputs.blocks(rows)
            ]
            return MeasurePass(self._output(self.shard.sum(torch.cat(parts)), b, rows), state, rows, train)
        x = self.inputs(rows)
        y, frozen = at(rows, self.y, "y"), self._frozen(rows)

        def delta(f: Tensor, block: slice) -> Tensor:
            f = self.gain * self.std * f + b
            return self.problem.loss_function.delta(f if frozen is None else f + frozen[block], y[block])

        found, va, vw = reductions.step(
            a, w, self.m, x, delta, self.activation, self.chosen, train, self.shard.total, self.room
        )
        return MeasurePass(self._output(found, b, rows), state, rows, train, (va, vw))

    def _output(self, f: Tensor, b: Tensor, rows: Rows) -> Tensor:
        """The network's outputs at some points from the particles' sums there"""
        f = self.gain * self.std * f + b
        frozen = self._frozen(rows)
        return f if frozen is None else f + frozen

    def _frozen(self, rows: Rows) -> Tensor | None:
        """(n, C) what is added at some points; streams have none"""
        return None if self.frozen is None or isinstance(rows, Dataset) else self.frozen[rows]

    def backward(self, passed: MeasurePass) -> State:
        f, train = passed.f[: passed.train], slice(0, passed.train)
        delta = self.problem.loss_function.delta(f, at(passed.rows, self.y, "y")[train])  # (batch, C)
        if passed.velocity is None:
            (a, w, _), x = passed.state, self.inputs(passed.rows)[train]
            passed.velocity = reductions.velocity(a, w, x, delta, self.activation, self.engine)
        va, vw = passed.velocity
        vb = self.gain * self.rate_b * self.bias**2 * delta.mean(0)
        return va.mul_(self.rate_a * self.std), vw.mul_(self.rate_w * self.std), vb

    def fall(self, passed: MeasurePass, velocity: State) -> Tensor:
        del passed
        va, vw, vb = velocity
        moving = [(v, rate) for v, rate in ((va, self.rate_a), (vw, self.rate_w)) if rate]
        parts = [(self.m @ v.square().sum(1)).double() * self.gain / rate for v, rate in moving]
        own = self.gain * self.rate_b * self.bias**2
        found = self.shard.sum(torch.stack(parts).sum())
        return found + vb.double().square().sum() / own if own else found

    def diffused(self, passed: MeasurePass, state: State, size: float, at: int) -> State:
        """Every particle has noise of its own; the readout bias, a mean over neurons, has none"""
        del passed
        (a, w, b), shard = state, self.shard
        for tensor, still, root in zip((a, w), self.still, self.roots, strict=False):
            if still:
                continue
            g = source(self.problem.training, at, self.seed, tensor.shape[1], tensor is a)
            noise = normal_part(shard.size, tensor.shape[1], g, torch.float64, rows=shard.rows)
            tensor.add_(noise.to(tensor), alpha=size * root)
        return (a, w, b)

    def finished(self, state: State, eta: float, at: int) -> State:
        """What the penalty of the total variation takes of the readouts, by its proximal map (equation 127)"""
        del at
        if self.variation:
            a = state[0]
            a.mul_((1 - eta * self.variation / a.norm(dim=1, keepdim=True)).clamp_(min=0))
        return state

    def capture(self, state: State, passed: MeasurePass | None = None) -> ParticleMeasure | Cloud:
        del passed
        return (ParticleMeasure if self.shard.whole else Cloud)(state[0].clone(), state[1].clone(), self.m)

    def captured(self, whole: ParticleMeasure) -> ParticleMeasure | Cloud:
        """Of a measure what `capture` keeps here"""
        whole = whole.to(self.m.device)
        return whole if self.shard.whole else Cloud(*map(self.shard.take, whole.tensors))

    def norm(self, state: State) -> Tensor:
        """The integrator's, over the particles of all processes: the largest root mean square of a, w, b"""
        a, w, b = state
        sums = self.shard.sum(torch.stack([a.square().sum(dtype=torch.float64), w.square().sum(dtype=torch.float64)]))
        means = [sums[0] / (self.shard.size * a.shape[1]), sums[1] / (self.shard.size * w.shape[1]), b.square().mean()]
        return torch.stack([mean.to(a) for mean in means]).max().sqrt()

    def part(self, tensor: Tensor) -> Tensor:
        """Of a tensor over all particles what this process holds; a bias as it is"""
        return tensor if tensor.ndim == 1 else self.shard.take(tensor)

    def whole_state(self, run: Trajectory) -> dict[str, Tensor]:
        """What a run goes on from, on the CPU; the particles are gathered on the first process"""
        named = run.named_state(self.names) | {"m": self.m}
        kept = {k: v.cpu() if k.endswith("b") else self.shard.gather(v) for k, v in named.items()}
        return kept | ({} if self.frozen is None else {"frozen": self.frozen.cpu()})
