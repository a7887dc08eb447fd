"""LimitNetwork: the infinitely wide network that CausalDMFT trains; forward, backward and update as of a real one (equations 20 to 30).

Fields are rows (points, S) over the S neurons that stand for a layer, training points first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from meanfield import checks
from meanfield.kernels import TwoTimeKernel, TwoTimeResponse, tangent_kernel
from meanfield.measure import principal_directions
from meanfield.problem import Problem
from meanfield.solution import Solution
from solvers.evolve import Integrate, State, Trajectory
from solvers.infinite_dense import Basis, InfiniteDense, orthonormal
from solvers.inputs import EVERYWHERE, Rows
from solvers.limit_flow import Here, flow
from solvers.neurons import Neurons, exact_neurons, plain_neurons, sobol_neurons
from solvers.sharding import Shard, current
from solvers.solver import settings

if TYPE_CHECKING:
    from solvers.causal_dmft import CausalDMFT


@dataclass(frozen=True)
class Velocity:
    """d parameters / d(training time): of readout, input weights and biases as they are, of each matrix as d W = F d c^T E^T."""

    own: dict[str, Tensor]
    matrices: list[tuple[Tensor, Tensor]]  # (d (J, P), c (K, P))


@dataclass
class LimitPass:
    """Outputs f (n, C), preactivations h^l and features phi^l (n, S), and coefficients c^l (K, n) of a pass over the points `rows`, `train`
    training samples first; gradients g^l (P, C, S) and their coefficients d^l (J, P C) once they are found
    """

    f: Tensor
    rows: Rows
    train: int
    h: list[Tensor]
    phi: list[Tensor]
    c: list[Tensor]
    g: list[Tensor] = field(default_factory=list)
    d: list[Tensor] = field(default_factory=list)


class LimitNetwork:
    """One network in the limit and its records. Parameters are this object's own, since their basis grows: evolve's state is empty."""

    def __init__(self, problem: Problem, solver: CausalDMFT) -> None:
        self.problem, self.solver, network = problem, solver, problem.network
        self.act, self.depth = network.nonlinearity, network.depth
        self.exact = self.act.name == "linear"
        self.kind = torch.float64 if self.exact else checks.DTYPES[solver.dtype]
        self.tolerance, self.coarse = solver.tolerances(problem)
        self.gain, self.rate_a, self.rate_w = problem.scaling.measure_limit()
        self.std, self.bias, self.skip = network.weight_std, network.bias_std, network.residual is not None
        self.branch = 1.0 if network.residual is None else network.residual / math.sqrt(network.depth)
        self.x, self.y = _coordinates(problem).to(self.like), problem.data.y.to(self.like)
        self.train, self.c_out = problem.data.samples, problem.data.outputs
        self.shard = Shard(solver.samples, current())
        self._draw()
        self.records: dict[str, list[Tensor]] = {}
        self.momentum: dict[str, Tensor] = {}
        self.flows = problem.training.optimiser == "gradient_flow"
        self.here: Here | None = None  # where a flow that is cut short goes back to

    @property
    def like(self) -> Tensor:
        return torch.empty(0, dtype=self.kind, device=self.solver.device)

    def _draw(self) -> None:
        """Neurons of each layer and their first Gaussians: input weights, biases, readout."""
        first = self._neurons(0)  # a skip connection joins equal neurons of all layers
        self.neurons = [first if self.skip or l == 0 else self._neurons(l) for l in range(self.depth)]
        size, shard = self.solver.samples, self.shard
        w = first.fresh(self.x.shape[1])
        self.parameters = {"w": orthonormal(w, w[:0], shard)}
        if self.bias:
            self.parameters |= {f"b{l}": n.fresh(1) for l, n in enumerate(self.neurons[1:], 2)}
        self.parameters |= {"a": self.neurons[-1].fresh(self.c_out), "b": self.like.new_zeros(self.c_out)}
        limit = shard.ranks.least(self.solver.rank_limit(self.problem))
        self.layers = [
            InfiniteDense(*pair, self.tolerance, self.like, limit, self.coarse) for pair in pairwise(self.neurons)
        ]
        self.last_features = Basis(size, self.coarse, self.like, limit, shard)
        self.first_gradients = Basis(size, self.coarse, self.like, limit, shard)
        self.balanced = self.exact

    def _neurons(self, layer: int) -> Neurons:
        samples, where = self.solver.samples, (self.kind, self.solver.device, self.shard)
        if self.exact:
            return exact_neurons(samples, *where)
        seed = int(np.random.SeedSequence([self.solver.seed, layer]).generate_state(1)[0])
        return (sobol_neurons if self.solver.draws == "sobol" else plain_neurons)(samples, seed, *where)

    # -- one step --------------------------------------------------------------------------------------------------------

    def forward(self, state: State, rows: Rows, differentiated: bool = True) -> LimitPass:
        """A pass over some points; one over all points is recorded, with its gradients (equations 20, 24 and 25)"""
        del state, differentiated
        # a run that goes on there repeats the pass
        self.here = Here(self) if self.flows and rows != EVERYWHERE else None
        passed = self.pass_over(rows)
        if rows == EVERYWHERE:
            self._record_pass(passed)
        return passed

    def pass_over(self, rows: Rows) -> LimitPass:
        p, x = self.parameters, self.x[rows]
        train = len(rows) if isinstance(rows, Tensor) else self.train
        h, phis, cs = [x @ p["w"]], [], []
        for l, layer in enumerate(self.layers, 2):
            phis.append(self.act.phi(h[-1]))
            image, c = layer.forward(phis[-1])
            image *= self.std
            if self.bias:
                image += self.bias * p[f"b{l}"]
            cs.append(c)
            h.append(h[-1] + self.branch * image if self.skip else image)
        phis.append(self.act.phi(h[-1]))
        if not self.balanced:  # f(0) = 0 exactly
            tolerance, shard = min(self.tolerance, 1e-3) if self.kind == torch.float32 else 1e-8, self.shard
            span = Basis(self.solver.samples, tolerance, self.like, shard=shard)
            span.reveal(phis[-1])
            p["a"] = orthonormal(orthonormal(p["a"], span.fields.rows, shard), span.fields.rows, shard)
            self.balanced = True
        f = self.gain * self.std * self.shard.sum(phis[-1] @ p["a"].T) / self.solver.samples + p["b"]
        return LimitPass(f, rows, train, h, phis, cs)

    def gradients(self, passed: LimitPass) -> list[Tensor]:
        """g^1..g^L (P, C, S) of the training points of a pass (equation 25), found once"""
        if passed.g:
            return passed.g
        p, c, s = passed.train, self.c_out, self.shard.local
        slopes = [self.act.dphi(h[:p])[:, None, :] for h in passed.h]
        g, ds = [slopes[-1] * (self.std * self.parameters["a"])[None]], []
        for l in reversed(range(self.depth - 1)):
            z, d = self.layers[l].backward(g[0].reshape(p * c, s))
            ds.insert(0, d)
            above = g[0] if self.skip else z.new_zeros(())
            g.insert(0, torch.addcmul(above, slopes[l], z.reshape(p, c, s), value=self.branch * self.std))
        passed.g, passed.d = g, ds
        return g

    def _record_pass(self, passed: LimitPass) -> None:
        p, responses = self.train, self.solver.responses
        for l, c in enumerate(passed.c, 1):
            self._record(f"Phi{l}", c[:, :p])
            if responses:
                self._record(f"A{l}", self.layers[l - 1].pulled[:, :p])
        if self.solver.two_time:
            self._record(f"Phi{self.depth}", self.last_features.reveal(passed.phi[-1][:p])[0])
        g = self.gradients(passed)
        for l, d in enumerate(passed.d, 1):
            self._record(f"G{l + 1}", d)
            if responses:
                self._record(f"B{l}", self.layers[l - 1].images(g[l].flatten(0, 1)))
        if self.solver.two_time:
            self._record("G1", self.first_gradients.reveal(g[0].flatten(0, 1))[0])

    def backward(self, passed: LimitPass) -> Velocity:
        """Minus the gradient of the loss times the learning rates' multipliers (equations 9 and 26)"""
        g, p = self.gradients(passed), passed.train
        delta = self.problem.loss_function.delta(passed.f[:p], self.y[passed.rows][:p])  # (P, C)
        rate_a, rate_w = self.rate_a / p, self.rate_w / p
        own = {"w": rate_w * self.x[passed.rows][:p].T @ torch.einsum("pc,pcs->ps", delta, g[0])}
        if self.bias:
            scaled = (rate_w * self.bias * self.branch) * delta.reshape(1, -1)
            own |= {f"b{l}": scaled @ g[l - 1].flatten(0, 1) for l in range(2, self.depth + 1)}
        own["a"] = (rate_a * self.std) * delta.T @ passed.phi[-1][:p]
        own["b"] = (self.gain * self.rate_a * self.bias**2) * delta.mean(0)
        hidden = rate_w * self.std * self.branch
        pulled = [(d.reshape(-1, p, self.c_out) * delta).sum(2) for d in passed.d]  # sum_c Delta_c d_c
        return Velocity(own, [(d, hidden * c[:, :p]) for d, c in zip(pulled, passed.c, strict=True)])

    def advance(self, state: State, passed: LimitPass, integrate: Integrate) -> State:
        """A step of descent, or a stretch of the flow."""
        flow(self, passed, integrate) if self.flows else self._descend(passed)
        return state

    def _descend(self, passed: LimitPass) -> None:
        """With momentum and weight decay (equation 2)"""
        training, velocity = self.problem.training, self.backward(passed)
        eta, keep = training.learning_rate, 1 - training.learning_rate * training.weight_decay
        for name, v in velocity.own.items():
            if training.momentum:
                v = self.momentum[name] = v + training.momentum * self.momentum.get(name, torch.zeros_like(v))
            if keep != 1:
                self.parameters[name].mul_(keep)
            self.parameters[name].add_(v, alpha=eta)
        for layer, (d, c) in zip(self.layers, velocity.matrices, strict=True):
            if keep != 1:
                layer.decay(keep)
            layer.update(d, eta * c, training.momentum)

    # -- records ---------------------------------------------------------------------------------------------------------

    def capture(self, state: State, passed: LimitPass) -> tuple[list[Tensor], Tensor, Tensor]:
        """Preactivations of each layer, features of the last and gradients of the first, (neurons, points)"""
        del state
        p, first = self.train, self.gradients(passed)[0]
        return [h[:p].T.clone() for h in passed.h], passed.phi[-1][:p].T.clone(), first.flatten(0, 1).T.clone()

    def solution(self, run: Trajectory, state: dict[str, Tensor], previous: Solution | None = None) -> Solution:
        f, f_test = run.history(previous)
        steps, kept = sorted(run.captured), [run.captured[step] for step in sorted(run.captured)]
        recorded = run.recorded_steps(previous)
        records = {name: self.padded(name)[: len(f)] for name in self.records}
        kernels = {name: TwoTimeKernel(recorded, c) for name, c in records.items() if name[0] in "PG"}
        if kept and not self.solver.two_time:
            m = self.like.new_full((self.shard.local,), 1 / self.solver.samples)
            for name, i in ((f"Phi{self.depth}", 1), ("G1", 2)):
                fields = [k[i] for k in kept]
                kernels[name] = TwoTimeKernel.from_fields(steps, m, fields, fields[0].shape[1], total=self.shard.total)
        names = [[f"{kind}{l}" for l in range(1, self.depth + 1)] for kind in ("Phi", "G")]
        keep = self.solver.keep_neurons and not self.exact  # the exact solution's "neurons" are coefficients
        fields = [[self.shard.gather(h) for h in k[0]] for k in kept] if keep else []  # on the first process
        tangents = [self._tangent(*([kernels[n].at(t) for n in own] for own in names)) for t in steps]
        return Solution(
            problem=self.problem,
            solver=settings(self.solver),
            f=f,
            f_test=f_test,
            recorded_steps=recorded,
            state=state,
            status=run.status,
            snapshots=tuple(steps),
            kernels={name: kernels[name] for own in names for name in own if name in kernels},
            responses=self._responses(records) if self.solver.responses else {},
            tangent=torch.stack(tangents) if tangents else None,
            fields={f"h{l + 1}": torch.stack([h[l] for h in fields]) for l in range(self.depth)}
            if fields and self.shard.ranks.first
            else {},
            stats=run.stats
            | {
                "ranks": tuple((len(q.e), len(q.f)) for q in self.layers),
                "tolerances": (self.tolerance, self.coarse),
                "exact": self.exact,
            }
            | self.shard.stats(),
        )

    def _tangent(self, phi: list[Tensor], g: list[Tensor]) -> Tensor:
        """K (P, C, P, C) from Phi^1..Phi^L and G^1..G^L of one time (equation 11)"""
        scaled = self.problem.data.x.to(phi[0]) / math.sqrt(self.problem.data.inputs)
        total = self.gain * self.rate_a * tangent_kernel([(phi[-1], None)], self.c_out, self.std, self.bias)
        for l, (below, gradient) in enumerate(zip([scaled @ scaled.T, *phi], g, strict=False)):
            share = self.gain * self.rate_w * (1.0 if l == 0 else self.branch**2)
            total = total + share * tangent_kernel([(below, gradient)], self.c_out, self.std, self.bias)
        return total

    def _responses(self, records: dict[str, Tensor]) -> dict[str, TwoTimeResponse]:
        """A^l and B^l of equations 20 and 21 from the recorded correlations (equation 34)"""
        found = {}
        for l in range(1, self.depth):
            a, d, b, c = (records[name] for name in (f"A{l}", f"G{l + 1}", f"B{l}", f"Phi{l}"))
            found[f"A{l}"] = TwoTimeResponse(self.std * _same_rank(a, d), d, instant=False)
            found[f"B{l}"] = TwoTimeResponse(self.std * _same_rank(b, c), c, instant=True)
        return found

    def padded(self, name: str) -> Tensor:
        """Recorded coefficients (T, K, Q) of every step, zeros below where the basis was still smaller"""
        rows = self.records[name]
        largest = max(len(c) for c in rows)
        return torch.stack([torch.nn.functional.pad(c, (0, 0, 0, largest - len(c))) for c in rows])

    def _record(self, name: str, coefficients: Tensor) -> None:
        self.records.setdefault(name, []).append(coefficients.cpu())


def _coordinates(problem: Problem) -> Tensor:
    """(P + P_test, rank) the network's inputs along their principal directions, those of the training points first."""
    data = problem.data
    x = problem.network.inputs(data.x if data.x_test is None else torch.cat([data.x, data.x_test]))
    weighted = torch.cat([x[: data.samples], 1e-3 * x[data.samples :]])
    projected = x @ principal_directions(weighted, x.shape[1])
    return projected[:, projected.norm(dim=0) >= 1e-10 * projected.norm()]


def _same_rank(left: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.pad(left, (0, 0, 0, like.shape[1] - left.shape[1]))
