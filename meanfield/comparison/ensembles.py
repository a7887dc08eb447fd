"""ensemble_loss: what averaging the outputs of several networks takes off their loss, and what it leaves (equation 104)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance
from meanfield.problem.dataset import for_tests
from meanfield.problem.stream import laws_must_be_known
from meanfield.solution.solution import Solution


@checked
@dataclass(frozen=True, eq=False)
class EnsembleLoss:
    """Expected loss of the mean of E networks of width N, limit + n_variance / (N E) + n_bias / N + n2_bias2 / N^2, beside what was
    measured (equation 104).

    Example:
        >>> import meanfield as mf
        >>> found = mf.EnsembleLoss(limit=0.1, n_variance=2.0, n_variance_se=0.1, n_bias=1.0, n_bias_se=0.2, n2_bias2=0.0)
        >>> [round(found.expected(width=100, ensemble=e), 3) for e in (1, 4, 1000)]  # averaging leaves the bias
        [0.13, 0.115, 0.11]
    """

    limit: float
    """Loss of the limit"""
    n_variance: float
    """N times what the variance of one network adds, which averaging over E networks divides by E"""
    n_variance_se: float
    """Its standard error"""
    n_bias: float
    """N times what the bias adds to first order, which no averaging removes; negative where it lowers the loss"""
    n_bias_se: float
    """Its standard error"""
    n2_bias2: float
    """N^2 times what the square of the bias adds, less that of its error"""
    widths: tuple[int, ...] = ()
    """Of the networks that were measured"""
    ensembles: tuple[int, ...] = ()
    """E of the means that were measured"""
    measured: np.ndarray | None = None
    """(widths, ensembles) loss of the mean of E networks, mean over ensembles that share no network; nan where there are fewer than two"""
    measured_se: np.ndarray | None = None
    """Its standard errors"""

    __repr__ = brief
    _repr_html_ = html

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EnsembleLoss):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True) for a, b in pairs)

    @checked
    def removed(self, width: int, ensemble: int = 1) -> float:
        """What is left of the variance's part of the loss; at ensemble = 1 what averaging can remove"""
        return self.n_variance / (width * ensemble)

    @checked
    def kept(self, width: int) -> float:
        """The bias's part, which stays however many networks are averaged"""
        return self.n_bias / width + self.n2_bias2 / width**2

    @checked
    def expected(self, width: int, ensemble: int = 1) -> float:
        """Loss of the mean of so many networks"""
        return self.limit + self.removed(width, ensemble) + self.kept(width)

    def __str__(self) -> str:
        lines = [
            f"loss {self.limit:.4g} + ({self.n_variance:.4g} ± {self.n_variance_se:.2g}) / (N E) + ({self.n_bias:.4g} ± "
            f"{self.n_bias_se:.2g}) / N + {self.n2_bias2:.3g} / N^2 of the mean of E networks of width N"
        ]
        if self.measured is not None and self.measured_se is not None:
            lines.append(
                f"{'width':>7}{'E':>6}{'variance':>12}{'bias':>12}{'predicted':>12}{'measured':>12}{'error':>10}"
            )
            for width, row, errors in zip(self.widths, self.measured, self.measured_se, strict=True):
                for e, value, error in zip(self.ensembles, row, errors, strict=True):
                    cells = self.removed(width, e), self.kept(width), self.expected(width, e), value
                    lines.append(f"{width:>7}{e:>6}" + "".join(f"{cell:>12.4g}" for cell in cells) + f"{error:>10.2g}")
        return "\n".join(lines)


@checked
def ensemble_loss(
    limit: Solution,
    variance: PredictedVariance,
    bias: PredictedBias,
    nets: Sequence[Solution] = (),
    ensembles: Sequence[int] = (1, 4, 16),
    test: bool = False,
) -> EnsembleLoss:
    """What variance and bias of networks add to the loss of the mean of E of them, after the last step, to second order in their distance
    from the limit (equation 104).

    variance, bias: predicted for all outputs f (f_test for test=True) at the last step. nets: networks of some widths, whose outputs are
    averaged over as many disjoint groups of E as there are, beside the prediction. ValueError for solutions of different problems.

    Example:
        >>> import meanfield as mf
        >>> from solvers import WassersteinFlow, predicted_bias, predicted_variance
        >>> problem = mf.Problem(mf.digits(n_train=3, n_test=0), training=mf.Training(0.2, 3))
        >>> limit = WassersteinFlow(particles=256)(problem)
        >>> variance = predicted_variance(problem, particles=64)
        >>> found = mf.ensemble_loss(limit, variance, predicted_bias(problem, width=16, draws=20))
        >>> found.expected(64, 1) > found.expected(64, 16)
        True
    """
    name, problem = ("f_test" if test else "f"), limit.problem
    sizes = tuple(sorted({checks.integer("ensembles", e, 1) for e in ensembles}))
    for given in (variance, bias, *nets):
        if given.problem != problem:
            laws_must_be_known(given.problem.data, problem.data)
            raise ValueError(
                f"limit, variance, bias and nets must be of one problem: received {problem!r} and {given.problem!r}"
            )
    y = problem.data.test_targets if test else problem.data.y
    f = (for_tests(limit.f_test) if test else limit.f)[-1].double()
    at, among = (_at_the_end(given, name, problem.training.steps) for given in (variance, bias))
    covariances, draws = variance.covariances.sum(1)[:, at][:, :, at].double(), bias.estimates[:, among].double()

    def loss(flat: Tensor) -> Tensor:
        return problem.loss_function.mean(flat.reshape(f.shape), y.to(flat))

    with torch.inference_mode(False), torch.enable_grad():
        at_f = f.flatten().clone()
        slope: Any = jacobian(loss, at_f)
        curvature: Any = hessian(loss, at_f)
    each = 0.5 * torch.stack([(curvature * c).sum() for c in covariances])
    first, b = draws @ slope, draws.mean(0)
    noise = draws.T.cov() / len(draws)
    groups: dict[int, list[Tensor]] = {}
    for net in nets:
        if net.width is None:
            raise ValueError(f"nets must be finite networks: received a solution of {net.solver.get('name')}")
        groups.setdefault(net.width, []).append((for_tests(net.f_test) if test else net.f)[-1].double())
    rows = [[_averaged(torch.stack(groups[n]), e, loss) for e in sizes] for n in sorted(groups)]
    measured = np.array(rows).reshape(len(rows), len(sizes), 2) if rows else None
    return EnsembleLoss(
        limit=float(loss(f.flatten())),
        n_variance=float(each.mean()),
        n_variance_se=float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan,
        n_bias=float(first.mean()),
        n_bias_se=float(first.std() / math.sqrt(len(first))),
        n2_bias2=float(0.5 * (b @ curvature @ b - (curvature * noise).sum())),
        widths=tuple(sorted(groups)),
        ensembles=sizes if rows else (),
        measured=None if measured is None else measured[..., 0],
        measured_se=None if measured is None else measured[..., 1],
    )


def _averaged(outputs: Tensor, e: int, loss: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Loss of the mean of e networks, and its error, over groups that share none"""
    count = len(outputs) // e
    if count < 2:
        return math.nan, math.nan
    means = outputs[: count * e].reshape(count, e, -1).mean(1)
    losses = torch.stack([loss(mean) for mean in means])
    return float(losses.mean()), float(losses.std() / math.sqrt(count))


def _at_the_end(found: PredictedVariance | PredictedBias, name: str, last: int) -> Tensor:
    """(n,) where the outputs after the last step lie among all numbers; ValueError if some were not predicted"""
    index = checks.lookup("observable", name, found.index)[-1].flatten()
    if found.steps[-1] != last or bool((index < 0).any()):
        raise ValueError(
            f"{type(found).__name__} needs all of {name} at the last step, {last}: received steps={found.steps}; leave out steps and points"
        )
    return index
