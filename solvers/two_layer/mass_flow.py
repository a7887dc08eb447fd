"""Particles whose masses move too: Wasserstein-Fisher-Rao, or Fisher-Rao alone (equation 116)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from meanfield.measures.particle_measure import ParticleMeasure
from solvers.running.inputs import Rows
from solvers.running.integrator import State
from solvers.running.trajectory import Trajectory
from solvers.two_layer.initial_particles import Cloud
from solvers.two_layer.measure_flow import MeasureFlow, MeasurePass


@dataclass
class MassPass(MeasurePass):
    """m (N,): the masses there"""

    m: Tensor | None = None


class MassFlow(MeasureFlow):
    """The state is (a, w, b, log m): masses sum to one because they are its softmax, and stay positive."""

    def __init__(self, *given: Any, mass_rate: float, transport: bool) -> None:
        super().__init__(*given)
        self.mass_rate, self.transport = mass_rate, transport
        self.still, self.decays, self.step_sizes, self.matrix_steps = (), (), (), ()

    def forward(self, state: State, rows: Rows, differentiated: bool) -> MassPass:
        *own, log = state
        self.m = log.softmax(0)
        passed = super().forward(tuple(own), rows, differentiated)
        return MassPass(**{f.name: getattr(passed, f.name) for f in fields(passed)}, m=self.m)

    def backward(self, passed: MassPass) -> State:  # type: ignore[override]
        va, vw, vb = super().backward(passed)
        falls = (passed.state[0] * va).sum(1)  # minus the first variation of the loss
        assert passed.m is not None
        growth = self.mass_rate * (falls - passed.m @ falls)
        return (va, vw, vb, growth) if self.transport else (va.mul_(0), vw.mul_(0), vb, growth)

    def capture(self, state: State, passed: MeasurePass | None = None) -> ParticleMeasure | Cloud:
        del passed
        return ParticleMeasure(state[0].clone(), state[1].clone(), state[3].softmax(0))

    def whole_state(self, run: Trajectory) -> dict[str, Tensor]:
        named = {"a": run.state[0], "w": run.state[1], "b": run.state[2], "log_m": run.state[3]}
        kept = {name: tensor.cpu() for name, tensor in named.items()} | {"m": run.state[3].softmax(0).cpu()}
        return kept | ({} if self.frozen is None else {"frozen": self.frozen.cpu()})
