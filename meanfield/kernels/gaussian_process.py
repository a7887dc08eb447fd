"""GaussianProcess: infinite networks as priors, what data make of them, and how well they explain them (equations 93 to 96)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.short import brief, html
from meanfield.checking.warning import warn
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.hyperparameters import known_of, log_derivative, value_of, varied
from meanfield.kernels.regression import Regression
from meanfield.scaling.scaling import Scaling, ntk
from meanfield.scaling.standard import Standard

Law = Literal["nngp", "ntk", "ensemble"]
Kernels = tuple[Tensor, Tensor, torch.Size]
_AT_ONCE = 1024  # points at which a posterior is looked at together
_FAR, _FARTHEST = (
    math.log(30),
    7.0,
)  # how far the logarithm of a number that is fitted moves before it is told, and at most
_ALONE = 64  # points whose prior covariance is formed for the sake of its diagonal


@checked
@dataclass(frozen=True)
class GaussianProcess:
    """f ~ GP(0, K) and y = f(x) + N(0, noise), independent for each output, with K of a network of infinite width (equations 93 to 95).

    Of a network with outputs at positions each (sample, position) is a point: y (P, positions, .., C), means and deviations alike, and
    covariances (P, positions, .., P, positions, ..).

    Example:
        >>> import meanfield as mf
        >>> data = mf.digits(n_train=16, n_test=3)
        >>> posterior = mf.GaussianProcess(mf.Network(2, "erf"), noise=0.1).posterior(data.x, data.y)
        >>> posterior.mean(data.x_test).shape, posterior.std(data.x_test).shape
        (torch.Size([3, 1]), torch.Size([3, 1]))
    """

    network: Any
    """Whatever `nngp_and_ntk` takes"""
    scaling: Scaling | Standard = field(default_factory=ntk)
    """Its parameterization"""
    noise: float = 0.0
    """Variance of what is added to f in y; 0 interpolates"""
    law: Law = "nngp"
    """nngp: K is the NNGP, the prior of the network's outputs, and the posterior that of Bayes; ntk: K is the tangent kernel, whose mean
    is kernel ridge regression; ensemble: no posterior, but the outputs of networks trained to the end from random starts (equation 95)"""

    __repr__ = brief
    _repr_html_ = html

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise", checks.positive("noise", self.noise, zero=True))
        checks.lookup("law", self.law, dict.fromkeys(get_args(Law)))

    def posterior(self, x: Any, y: Any) -> Posterior:
        """What training points x (P, ..) and targets y (P, C), or (P, positions, .., C), leave of it; time O(P^3), memory O(P^2).

        ValueError as of `nngp_and_ntk`, for a prior that is 0, and for K + noise that is singular to rounding.
        """
        return Posterior(self, x, y)

    def fitted(self, x: Any, y: Any, over: Sequence[str] | None = None) -> GaussianProcess:
        """The process that maximises the marginal likelihood of y (P, C), locally, from here: L-BFGS in the logarithms of `over`.

        over: "noise", "weight_std", "bias_std", "residual", or patterns of an Architecture's weight_std; None: noise, weight_std and
        bias_std as far as they are above 0. Each stays within a factor of 1000, noise above 1e-6 of the mean prior variance. UserWarning if
        it does not converge, and for what ends far from where it began, by a factor of 30; noise and biases may vanish.
        ValueError for a law without a likelihood, names that are not there, and numbers that start at 0.
        """
        first = self.posterior(x, y)
        names = _names(self, over)
        start = np.log([_value(self, name) for name in names])
        least = math.log(1e-6 * float(first._prior[1].diagonal().mean()))
        bounds = [
            (min(v, least) if n == "noise" else v - _FARTHEST, v + _FARTHEST) for n, v in zip(names, start, strict=True)
        ]

        def at(logs: np.ndarray) -> GaussianProcess:
            process, values = self, dict(zip(names, np.exp(logs).tolist(), strict=True))
            for name, value in values.items():
                change = {"noise": value} if name == "noise" else {"network": varied(process.network, name, value)}
                process = replace(process, **change)
            return process

        def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
            there = at(logs).posterior(first.x, first.y)
            slopes = there.gradient(names, 1e-8)
            per_log = np.array([slopes[name] * _value(there.process, name) for name in names])
            return -there.log_marginal_likelihood, -per_log

        from scipy.optimize import minimize

        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200, "gtol": 1e-3}
        )
        if not found.success:
            warn(
                f"the marginal likelihood is not at its maximum after {found.nit} steps ({found.message}): go on from here"
            )
        moved = zip(names, start, found.x, strict=True)
        far = [
            f"{name} from {math.exp(v):.3g} to {math.exp(end):.3g}" for name, v, end in moved if _is_far(name, end - v)
        ]
        if far:
            warn(
                f"the fit has moved {' and '.join(far)}, where the likelihood may have no maximum but at zero or infinity (targets of "
                "another size than the network's outputs, or that are noise to it): scale y to values of order 1, begin elsewhere, or "
                "leave that number out of over"
            )
        return at(found.x)


@checked
@dataclass(frozen=True, eq=False)
class Posterior:
    """A GaussianProcess, given targets at training points; made by `GaussianProcess.posterior`. Outputs are independent of each other.

    Example:
        >>> import meanfield as mf
        >>> data = mf.single_index_teacher(n_train=20, n_test=5, inputs=3)
        >>> posterior = mf.GaussianProcess(mf.Network(1, "erf"), noise=0.01).posterior(data.x, data.y)
        >>> posterior.mean(data.x_test).shape, posterior.std(data.x_test).shape
        (torch.Size([5, 1]), torch.Size([5, 1]))
        >>> bool(posterior.std(data.x).max() < 0.1)  # where it was told the targets, to the noise's deviation
        True
    """

    process: GaussianProcess
    """Before the data"""
    x: Any
    """(P, ..) training points"""
    y: Any
    """(P, C) targets, or (P, positions, .., C)"""

    __repr__ = brief
    _repr_html_ = html

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", checks.samples("x", self.x))
        object.__setattr__(self, "y", checks.samples("y", self.y, targets=True))
        if len(self.x) != len(self.y):
            raise ValueError(f"x and y differ in their number of samples: received {len(self.x)} and {len(self.y)}")
        positions = self._prior[2]
        if self.y.shape[1:] == positions:
            object.__setattr__(self, "y", self.y[..., None])
        if self.y.shape[1:-1] != positions:
            right = "".join(f"{size}, " for size in (len(self.x), *positions))
            raise ValueError(f"y must have shape ({right}C), as the network's outputs: received {tuple(self.y.shape)}")
        _ = self._regression  # refuses now what cannot be inverted

    def mean(self, x: Any) -> Tensor:
        """(P2, .., C) of f at points x (P2, ..)"""
        parts = [_kernels(self.process, some, self.x)[0] @ self._regression.weights for some in self._points(x)]
        return torch.cat(parts).unflatten(0, (-1, *self._prior[2]))

    def std(self, x: Any) -> Tensor:
        """(P2, .., C) standard deviation of f, the same for every output; that of a new y is the root of std^2 + noise"""
        variances = [
            self._left(*_kernels(self.process, some, self.x)[:2], self._variances(some)) for some in self._points(x)
        ]
        deviations = torch.cat(variances).sqrt().unflatten(0, (-1, *self._prior[2]))
        return deviations[..., None].expand(*deviations.shape, self.y.shape[-1])

    def covariance(self, x: Any) -> Tensor:
        """(P2, P2) of f in each output, or (P2, .., P2, ..)"""
        x = checks.samples("x", x)
        left = self._left(*_kernels(self.process, x, self.x)[:2], _kernels(self.process, x)[1])
        positions = self._prior[2]
        return left.reshape(len(x), *positions, len(x), *positions)

    @property
    def log_marginal_likelihood(self) -> float:
        """Of the targets before they were seen (equation 94); ValueError for an ensemble, which has none"""
        _has_likelihood(self.process)
        return float(self._regression.log_marginal_likelihood())

    def gradient(self, over: Sequence[str] | None = None, tolerance: float = 1e-12) -> dict[str, float]:
        """Derivatives of the log marginal likelihood in noise, weight_std, bias_std, .., each by its name (equations 94 and 96).

        over: as in `GaussianProcess.fitted`. That in the noise is exact; the others, to within `tolerance` times the sum of the sizes of
        what they add up, take 4 to 12 evaluations of the kernel each.
        """
        names, slope = _names(self.process, over), self._regression.slope()
        size, process = float((slope * self._prior[0]).abs().sum()), self.process
        tolerance = checks.positive("tolerance", tolerance)

        def explained(name: str, log: float) -> float:
            network = varied(process.network, name, _value(process, name) * math.exp(log))
            return float((slope * _kernels(replace(process, network=network), self.x)[0]).sum())

        found = {}
        for name in names:
            if name == "noise":
                found[name] = float(slope.trace())
            else:
                found[name] = log_derivative(lambda log, n=name: explained(n, log), size, tolerance) / _value(
                    process, name
                )
        return found

    @cached_property
    def _prior(self) -> Kernels:
        kernels = _kernels(self.process, self.x)
        if self.process.law == "nngp" and not bool(kernels[0].any()):
            name = getattr(self.process.scaling, "name", "standard")
            raise ValueError(
                f"the NNGP of the scaling {name!r} is 0 at these points, since its networks start at f = 0: no prior; take ntk(), or "
                "law='ntk'"
            )
        return kernels

    @cached_property
    def _regression(self) -> Regression:
        name = "the nngp" if self.process.law == "nngp" else "the ntk"
        return Regression(self._prior[0], self.y.flatten(0, -2), self.process.noise, name)

    def _left(self, across: Tensor, before: Tensor, test: Tensor) -> Tensor:
        """The covariance (P2, P2), or its diagonal from that of the prior: equations 93 and 95"""
        if self.process.law != "ensemble":
            return self._regression.remaining(across, test)
        learned = self._regression.regressor(across)
        if test.ndim == 1:
            moved = (learned * (learned @ self._prior[1] - 2 * before)).sum(1)
            return (test + moved).clamp(min=0)
        left = test - learned @ before.T - before @ learned.T + learned @ self._prior[1] @ learned.T
        return (left + left.T) / 2

    def _points(self, x: Any) -> Sequence[Tensor]:
        return checks.samples("x", x).split(max(1, _AT_ONCE // self._prior[2].numel()))

    def _variances(self, x: Tensor) -> Tensor:
        """(P2,) of the prior"""
        several = x.split(max(1, _ALONE // self._prior[2].numel()))
        return torch.cat([_kernels(self.process, some)[1].diagonal() for some in several])


def _kernels(process: GaussianProcess, x: Tensor, x2: Tensor | None = None) -> Kernels:
    """By which data are explained, and the covariance before training (P, P2): the same but for an ensemble; with the sizes of positions,
    whose outputs are points of their own"""
    nngp, tangent = nngp_and_ntk(process.network, process.scaling, x, x2)
    positions = nngp.shape[1 : nngp.ndim // 2]
    if positions:
        rows, columns = len(x) * positions.numel(), len(x if x2 is None else x2) * positions.numel()
        nngp, tangent = nngp.reshape(rows, columns), tangent.reshape(rows, columns)
    return (nngp if process.law == "nngp" else tangent), (tangent if process.law == "ntk" else nngp), positions


def _is_far(name: str, moved: float) -> bool:
    """Whether a logarithm has moved to where its number hardly tells anything; noise and biases may vanish"""
    if name == "noise":
        return moved > _FARTHEST - 1e-9
    return moved > _FAR or (moved < -_FAR and "bias" not in name)


def _names(process: GaussianProcess, over: Sequence[str] | None) -> tuple[str, ...]:
    """The hyperparameters to differentiate in, each a positive number"""
    _has_likelihood(process)
    noise = ("noise",) if process.noise > 0 else ()
    chosen = noise + known_of(process.network) if over is None else tuple(over)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"over must name different hyperparameters, at least one: received {chosen}")
    for name in chosen:
        _value(process, name)
    return chosen


def _value(process: GaussianProcess, name: str) -> float:
    if name == "noise" and not process.noise:
        raise ValueError(
            "noise is 0, from where the likelihood does not lead away: received over with 'noise'; give a positive noise, or leave it out"
        )
    return process.noise if name == "noise" else value_of(process.network, name)


def _has_likelihood(process: GaussianProcess) -> None:
    if process.law == "ensemble":
        raise ValueError(
            "an ensemble of trained networks is no prior and has no marginal likelihood: received law='ensemble'; take law='ntk' (the "
            "same mean) or 'nngp'"
        )
