"""The flow of a particle measure as the loop through time sees it, equations 7 to 9 and 69."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from meanfield import reductions, tiles
from meanfield.measure import ParticleMeasure
from meanfield.problem import Problem
from solvers.evolve import Outputs, State, Trajectory
from solvers.initial_particles import Cloud
from solvers.sharding import Shard


class MeasureFlow:
    """Outputs and velocity of the measure; the state is (a, w, b), b the readout bias in units of the output.

    limit: (Gamma, kappa_a, kappa_w) of equation 7. frozen (P + P_test, C): added to the outputs (equation 69). shard: says of which
    particles a, w and m are, where processes share them; None: of all.
    """

    def __init__(
        self,
        problem: Problem,
        m: Tensor,
        engine: reductions.Engine,
        limit: tuple[float, float, float],
        frozen: Tensor | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.shard = shard or Shard(len(m))
        self.problem, self.m, self.activation = problem, m, problem.network.nonlinearity
        self.engine: reductions.Engine = engine
        self.x = all_inputs(problem, m.dtype, m.device)
        self.rows = torch.arange(len(self.x), device=m.device)
        self.y = problem.data.y.to(m)
        self.train, self.frozen = len(self.y), frozen
        self.gain, self.rate_a, self.rate_w = limit
        self.std, self.bias = problem.network.weight_std, problem.network.bias_std
        points, inputs, shared = problem.training.batch_size or self.train, self.x.shape[1], not self.shard.whole
        one_pass = tiles.kept_points(self.activation, len(m), inputs, m, points, shared)
        # f and velocity share products
        self.fused = self.chosen == "dense" or (self.chosen == "chunked" and one_pass > 0)
        # a step's velocity is used up before the next, an integrator's stages are not
        self.room = tiles.Room() if problem.training.optimiser == "gradient_descent" else None
        self.found: tuple[Tensor, Tensor, Tensor] | None = None  # f and the particles' velocity that belongs to it

    @property
    def chosen(self) -> reductions.Engine:
        """The engine that serves; the same for all processes that share the particles"""
        largest = -(-self.shard.size // self.shard.ranks.count)
        return reductions.serving(self.engine, largest, self.x, self.activation)

    def outputs(self, state: State) -> Outputs:
        a, w, b = state
        sums = self.shard.sum(reductions.outputs(a, w, self.m, self.x, self.activation, self.engine))
        return self._split(self._output(sums, b, slice(0, len(self.x))))

    def ahead(self, state: State, weights: Tensor | None) -> Outputs:
        """`outputs`, and on the way, where one pass yields both, the velocity that is asked for next"""
        if not self.fused:
            return self.outputs(state)
        a, w, b = state
        order, train = self._batch_first(weights)

        def delta(f: Tensor, rows: slice) -> Tensor:
            at = order[rows]
            return self.problem.loss_function.delta(self._output(f, b, at), self.y[at])

        x = self.x if weights is None else self.x[order]
        found, va, vw = reductions.step(
            a, w, self.m, x, delta, self.activation, self.chosen, train, self.shard.total, self.room
        )
        sums = torch.empty_like(found)
        sums[order] = found
        f, f_test = self._split(self._output(sums, b, slice(0, len(self.x))))
        self.found = f, va, vw
        return f, f_test

    def _batch_first(self, weights: Tensor | None) -> tuple[Tensor, int]:
        """All rows of x, those of the batch first, and how many these are"""
        if weights is None:
            return self.rows, self.train
        outside = torch.ones(len(self.x), dtype=torch.bool)
        outside[: self.train] = weights == 0
        inside = weights.nonzero()[:, 0]
        return torch.cat([inside, outside.nonzero()[:, 0]]).to(self.x.device), len(inside)

    def _output(self, f: Tensor, b: Tensor, rows: slice | Tensor) -> Tensor:
        """The network's outputs at some points from the particles' sums there"""
        f = self.gain * self.std * f + b
        return f if self.frozen is None else f + self.frozen[rows]

    def _split(self, f: Tensor) -> Outputs:
        return f[: self.train], f[self.train :] if len(f) > self.train else None

    def velocity(self, state: State, f: Tensor, weights: Tensor | None) -> State:
        a, w, _ = state
        batch = slice(0, self.train) if weights is None else weights.nonzero()[:, 0].to(f.device)
        delta = self.problem.loss_function.delta(f[batch], self.y[batch])  # (batch, C)
        if self.found is not None and self.found[0] is f:
            va, vw = self.found[1:]
        else:
            va, vw = reductions.velocity(a, w, self.x[: self.train][batch], delta, self.activation, self.engine)
        self.found = None
        vb = self.gain * self.rate_a * self.bias**2 * delta.mean(0)
        return va.mul_(self.rate_a * self.std), vw.mul_(self.rate_w * self.std), vb

    def capture(self, state: State) -> ParticleMeasure | Cloud:
        return (ParticleMeasure if self.shard.whole else Cloud)(state[0].clone(), state[1].clone(), self.m)

    def captured(self, whole: ParticleMeasure) -> ParticleMeasure | Cloud:
        """Of a measure what `capture` keeps here"""
        whole = whole.to(self.m.device)
        return whole if self.shard.whole else Cloud(*map(self.shard.take, whole.tensors))

    @property
    def norm(self) -> Callable[[State], Tensor] | None:
        """The integrator's norm, over the particles of all processes: the largest root mean square of a, w, b; None for its own"""
        return None if self.shard.whole else self._norm

    def _norm(self, state: State) -> Tensor:
        a, w, b = state
        sums = self.shard.sum(torch.stack([a.square().sum(dtype=torch.float64), w.square().sum(dtype=torch.float64)]))
        means = [sums[0] / (self.shard.size * a.shape[1]), sums[1] / (self.shard.size * w.shape[1]), b.square().mean()]
        return torch.stack([mean.to(a) for mean in means]).max().sqrt()

    def part(self, tensor: Tensor) -> Tensor:
        """Of a tensor over all particles what this process holds; a bias as it is"""
        return tensor if tensor.ndim == 1 else self.shard.take(tensor)

    def whole_state(self, run: Trajectory) -> dict[str, Tensor]:
        """What a run goes on from, on the CPU; the particles are gathered on the first process"""
        named = zip(("a", "w", "b", "m"), (*run.state, self.m), strict=True)
        momentum = zip(("momentum_a", "momentum_w", "momentum_b"), run.momentum, strict=False)
        kept = {k: v.cpu() if k.endswith("b") else self.shard.gather(v) for k, v in (*named, *momentum)}
        return kept | ({} if self.frozen is None else {"frozen": self.frozen.cpu()})


def all_inputs(problem: Problem, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """(P + P_test, D) what the first layer's weights multiply, training samples first."""
    data = problem.data
    x = data.x if data.x_test is None else torch.cat([data.x, data.x_test])
    return problem.network.inputs(x).to(dtype=dtype, device=device)
