"""Particles whose masses move too: Wasserstein-Fisher-Rao, or Fisher-Rao alone (equations 116, 126 and 127)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from meanfield.measures.particle_measure import ParticleMeasure
from solvers.running.inputs import Rows
from solvers.running.integrator import State
from solvers.running.noise import source
from solvers.running.trajectory import Trajectory
from solvers.two_layer.births import reborn
from solvers.two_layer.initial_particles import Cloud
from solvers.two_layer.measure_flow import MeasureFlow, MeasurePass

_BIRTHS = (0, 7)  # tells their draws from the noise of steps


@dataclass
class MassPass(MeasurePass):
    """m (N,): the masses there"""

    m: Tensor | None = None


class MassFlow(MeasureFlow):
    """The state is (a, w, b, log m): masses sum to one because they are its softmax, and stay positive. births: None, or the spread of
    particles that are born (equation 126).
    """

    names = ("a", "w", "b", "log_m")

    def __init__(self, *given: Any, mass_rate: float, transport: bool, births: float | None, variation: float) -> None:
        super().__init__(*given, variation=variation)
        self.mass_rate, self.transport, self.births = mass_rate, transport, births
        still_w, still_b = self.still[1:]
        self.still = (not transport, not transport or still_w, still_b, False)
        self.decays = (*self.decays, 0.0)
        self.step_sizes, self.matrix_steps = (), ()

    def forward(self, state: State, rows: Rows, differentiated: bool) -> MassPass:
        *own, log = state
        self.m = log.softmax(0)
        passed = super().forward(tuple(own), rows, differentiated)
        return MassPass(**{f.name: getattr(passed, f.name) for f in fields(passed)}, m=self.m)

    def backward(self, passed: MassPass) -> State:  # type: ignore[override]
        va, vw, vb = super().backward(passed)
        a, w = passed.state[:2]
        falls = (a * va).sum(1) - self._penalty(a, w)  # minus the first variation of what falls
        assert passed.m is not None
        growth = self.mass_rate * (falls - passed.m @ falls)
        return (va, vw, vb, growth) if self.transport else (va.mul_(0), vw.mul_(0), vb, growth)

    def _penalty(self, a: Tensor, w: Tensor) -> Tensor | float:
        """(N,) of each particle, in the units of the first variation of the loss (equation 127)"""
        training, found = self.problem.training, 0.0
        lasting = 1 - training.momentum  # penalties of positions stand beside the memory
        if decay := training.weight_decay * lasting:
            found = 0.5 * decay * self.decays[0] * a.square().sum(1)
            if self.rate_w:
                found = found + 0.5 * decay * self.rate_a / self.rate_w * (self.decays[1] * w.square()).sum(1)
        return found + lasting * self.variation * a.norm(dim=1) if self.variation else found

    def finished(self, state: State, eta: float, at: int) -> State:
        state = super().finished(state, eta, at) if self.transport else state
        if self.births is None:
            return state
        moving = (bool(self.rate_a), bool(self.rate_w))
        return reborn(state, self.births, moving, source(self.problem.training, at, self.seed, *_BIRTHS))

    def capture(self, state: State, passed: MeasurePass | None = None) -> ParticleMeasure | Cloud:
        del passed
        return ParticleMeasure(state[0].clone(), state[1].clone(), state[3].softmax(0))

    def whole_state(self, run: Trajectory) -> dict[str, Tensor]:
        kept = {name: tensor.cpu() for name, tensor in run.named_state(self.names).items()}
        kept |= {"m": run.state[3].softmax(0).cpu()}
        return kept | ({} if self.frozen is None else {"frozen": self.frozen.cpu()})
