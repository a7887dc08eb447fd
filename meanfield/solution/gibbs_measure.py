"""GibbsMeasure: where Langevin descent of two layers ends (equation 115)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.problem import Problem


@checked
@dataclass(frozen=True, eq=False)
class GibbsMeasure:
    """What noise and decay leave of two layers after a long time (equation 115). Of P + P_test points, training samples first.

    Example:
        >>> import meanfield as mf
        >>> from solvers import gibbs_fixed_point
        >>> training = mf.Training(temperature=0.5, weight_decay=0.5)
        >>> end = gibbs_fixed_point(mf.Problem(mf.single_index_teacher(8, 4, inputs=2), training=training))
        >>> end.f.shape, end.f_test.shape, end.kernel.shape
        (torch.Size([8, 1]), torch.Size([4, 1]), torch.Size([12, 12]))
    """

    problem: Problem = field(repr=False)
    """What was asked"""
    f: Tensor = field(repr=False)
    """(P, C) outputs on the training samples"""
    f_test: Tensor | None = field(repr=False)
    """(P_test, C) outputs on the test samples"""
    kernel: Tensor = field(repr=False)
    """(P + P_test, P + P_test) Phi, the average of phi phi over the measure"""
    measure: ParticleMeasure = field(repr=False)
    """Weighted particles that have its law: input weights at the points of the average, a readout drawn for each"""
    free_energy: float
    """(kappa / Gamma) loss + temperature times the divergence from the law without samples; the least that any measure has"""
    divergence: float
    """Kullback and Leibler's, of this law from that without samples, N(0, temperature / weight_decay)"""
    effective: float
    """Which part of the points carries the average; small means that it rests on few"""
    residual: float
    """What is left of the equation, relative to the outputs"""

    __repr__ = brief
    _repr_html_ = html

    @property
    def loss(self) -> float:
        """Mean over the training samples"""
        return float(self.problem.loss_function.mean(self.f, self.problem.data.y))

    def __str__(self) -> str:
        return (
            f"Gibbs measure: loss {self.loss:.4g}, divergence {self.divergence:.4g}, free energy {self.free_energy:.4g}; "
            f"{self.effective:.0%} of {len(self.measure)} points count"
        )

    def __eq__(self, other: object) -> bool:
        """Same problem and numbers"""
        if not isinstance(other, GibbsMeasure):
            return NotImplemented
        tests = self.f_test is None or (other.f_test is not None and torch.equal(self.f_test, other.f_test))
        return (
            tests
            and all(torch.equal(getattr(self, name), getattr(other, name)) for name in ("f", "kernel"))
            and all(
                getattr(self, name) == getattr(other, name)
                for name in ("problem", "measure", "free_energy", "divergence")
            )
        )
