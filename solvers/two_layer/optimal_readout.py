"""Particles whose readout is at its optimum at each step: two time scales (equation 122)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meanfield.measures import reductions
from solvers.running.inputs import Rows
from solvers.running.integrator import State
from solvers.two_layer.measure_flow import MeasureFlow, MeasurePass

_AT_ONCE = 2**12  # particles


class OptimalReadout(MeasureFlow):
    """The state is (a, w, b), of which a and b follow from w and are written anew in each pass."""

    def __init__(self, *given: Any, ridge: float) -> None:
        super().__init__(*given)
        self.ridge = ridge
        self.still = (True, self.still[1], True)

    def forward(self, state: State, rows: Rows, differentiated: bool) -> MeasurePass:
        self._settle(*state)
        return super().forward(state, rows, differentiated)

    def backward(self, passed: MeasurePass) -> State:
        va, vw, vb = super().backward(passed)
        return va.zero_(), vw, vb.zero_()

    def _settle(self, a: Tensor, w: Tensor, b: Tensor) -> None:
        """a = (omega / Gamma) phi^T c and b = beta_0^2 sum c in place, c (P, C) = (omega^2 <phi phi> + beta_0^2 + s)^-1 y"""
        phi, x, std = self.activation.phi, self.inputs(slice(0, self.train)), self.std
        gram = std**2 * reductions.gram(lambda w: phi(w @ x.T), self.m, w, columns=len(x)).double() + self.bias**2
        if not bool(gram.isfinite().all()):
            a.fill_(torch.nan)  # which the loop sees
            return
        shifted = gram + self.ridge * torch.eye(len(gram)).to(gram)
        c = torch.linalg.solve(shifted, self.y.double()).to(a)
        for some, of in zip(a.split(_AT_ONCE), w.split(_AT_ONCE), strict=True):
            some.copy_(phi(of @ x.T) @ c).mul_(std / self.gain)
        b.copy_(self.bias**2 * c.sum(0))
