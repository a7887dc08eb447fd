"""Gaussian processes of infinite networks with the interface that scikit-learn's users know; of it nothing is needed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Self, cast

import numpy as np
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.gaussian_process import GaussianProcess, Posterior
from meanfield.scaling.scaling import Scaling, ntk
from meanfield.scaling.standard import Standard


class _Estimator:
    """Settings by name, which are looked at in `fit`, as scikit-learn's tools want it; those of a network as network__weight_std, .."""

    _estimator_type = ""

    def __init__(
        self,
        network: Any,
        scaling: Scaling | Standard | None = None,
        noise: float = 0.01,
        law: str = "nngp",
        over: Sequence[str] = (),
    ) -> None:
        """As in `GaussianProcess` (scaling None: ntk()). over: numbers that `fit` chooses by the marginal likelihood, as `fitted` there."""
        self.network, self.scaling, self.noise, self.law, self.over = network, scaling, noise, law, over

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings; deep: with those of the network"""
        own = {
            name: getattr(self, name) for name in inspect.signature(_Estimator.__init__).parameters if name != "self"
        }
        inner = [f.name for f in fields(self.network) if f.init] if deep and is_dataclass(self.network) else []
        return own | {f"network__{name}": getattr(self.network, name) for name in inner}

    def set_params(self, **params: Any) -> Self:
        """Change settings; ValueError for one that is not there"""
        known = self.get_params(deep=False)
        for name, value in sorted(params.items(), key=lambda item: item[0].count("__")):  # a new network first
            if name in known:
                setattr(self, name, value)
                continue
            checks.lookup("setting", name, self.get_params())
            self.network = replace(self.network, **{name.removeprefix("network__"): value})
        return self

    def _fit(self, x: Any, y: Any) -> Self:
        scaling = ntk() if self.scaling is None else self.scaling
        process = GaussianProcess(self.network, scaling, self.noise, cast(Any, self.law))
        as_it_is = self.over is None or (isinstance(self.over, (tuple, list)) and not self.over)
        self.posterior_: Posterior = (process if as_it_is else process.fitted(x, y, self.over)).posterior(x, y)
        self.process_ = self.posterior_.process
        self.n_features_in_ = int(self.posterior_.x.shape[1])
        return self

    def _positions(self, x: Any) -> tuple[int, ...]:
        """Of the network's outputs, by one of the points x"""
        one = checks.samples("x", x)[:1]
        nngp = nngp_and_ntk(self.network, ntk() if self.scaling is None else self.scaling, one)[0]
        return tuple(nngp.shape[1 : nngp.ndim // 2])

    def _fitted(self) -> Posterior:
        if not hasattr(self, "posterior_"):
            raise ValueError(f"this {type(self).__name__} knows no data yet: call fit(x, y) first")
        return self.posterior_

    def __sklearn_tags__(self) -> Any:
        """For scikit-learn, which alone asks for it"""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        regressor = self._estimator_type == "regressor"
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True, multi_output=regressor, single_output=True),
            regressor_tags=RegressorTags() if regressor else None,
            classifier_tags=None if regressor else ClassifierTags(),
            input_tags=InputTags(three_d_array=True),
        )

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params(deep=False).items())
        return f"{type(self).__name__}({given})"


class GaussianProcessRegressor(_Estimator):
    """Regression of y (P,) or (P, C), or at positions (P, .., C), by a GaussianProcess, whose mean before data is 0.

    After `fit`: `process_` and `posterior_`.

    Example:
        >>> import meanfield as mf
        >>> data = mf.single_index_teacher(n_train=20, n_test=5, inputs=3)
        >>> model = mf.GaussianProcessRegressor(mf.Network(1, "erf"), noise=0.01).fit(data.x, data.y)
        >>> mean, std = model.predict(data.x_test, return_std=True)
        >>> mean.shape, std.shape
        ((5, 1), (5, 1))
    """

    _estimator_type = "regressor"

    @checked
    def fit(self, x: Any, y: Any) -> Self:
        """To points x (P, ..) and targets; ValueError as of `GaussianProcess.posterior`"""
        self._fit(x, y)
        self.column_ = getattr(y, "ndim", np.ndim(y)) < self.posterior_.y.ndim
        return self

    @checked
    def predict(self, x: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """The mean of f, shaped like the targets; with it its standard deviation, of that shape, or covariance (P2, P2) or (P2, P2, C).

        At positions these are (P2, .., P2, ..) or (P2, .., P2, .., C).
        """
        if return_std and return_cov:
            raise ValueError("return_std and return_cov exclude each other: received True for both; give one of them")
        found = self._fitted()
        mean = self._shaped(found.mean(x))
        if return_std:
            return mean, self._shaped(found.std(x))
        if return_cov:
            covariance = found.covariance(x).numpy()
            return mean, covariance if self.column_ else np.stack([covariance] * found.y.shape[-1], axis=-1)
        return mean

    @checked
    def score(self, x: Any, y: Any) -> float:
        """R^2, 1 - |y - f|^2 / |y - mean|^2, its mean over outputs; ValueError for targets that do not vary"""
        y, f = checks.samples("y", y, targets=True), self._fitted().mean(x)
        y = y[..., None] if y.shape == f.shape[:-1] and self.column_ else y
        if y.shape != f.shape:
            raise ValueError(f"y must have shape {tuple(f.shape)}, as the predictions: received {tuple(y.shape)}")
        y, f = y.flatten(1), f.flatten(1)
        spread = (y - y.mean(0)).square().sum(0)
        if not bool((spread > 0).all()):
            raise ValueError(
                f"y does not vary in output {int((spread == 0).nonzero()[0])}, so that R^2 has no meaning: give other samples"
            )
        return float((1 - (y - f).square().sum(0) / spread).mean())

    def _shaped(self, values: Tensor) -> np.ndarray:
        return values[..., 0].numpy() if self.column_ else values.numpy()


class GaussianProcessClassifier(_Estimator):
    """Classes y (P,), or at positions (P, ..), numbers or texts, by regression on one-hot targets less 1/C: that of the largest mean.

    After `fit`: `classes_`, `process_` and `posterior_`.

    Example:
        >>> import meanfield as mf
        >>> data = mf.digits((0, 1, 2), n_train=30, n_test=10)
        >>> model = mf.GaussianProcessClassifier(mf.Network(2, "relu")).fit(data.x, data.y.argmax(1))
        >>> model.classes_, model.predict(data.x_test).shape
        (array([0, 1, 2]), (10,))
    """

    _estimator_type = "classifier"

    @checked
    def fit(self, x: Any, y: Any) -> Self:
        """To points x (P, ..) and classes; ValueError for fewer than two, and as of `GaussianProcess.posterior`"""
        labels, positions = _classes(y), self._positions(x)
        if labels.shape[1:] != positions:
            wanted = " and position, (P, " + ", ".join(map(str, positions)) + ")" if positions else ""
            raise ValueError(_no_classes(y, wanted))
        self.classes_, which = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold two classes or more: received {len(self.classes_)}")
        count = len(self.classes_)
        return self._fit(x, np.eye(count)[which.reshape(labels.shape)] - 1 / count)

    @checked
    def predict(self, x: Any) -> np.ndarray:
        """(P2,) of `classes_`, or (P2, positions, ..)"""
        return self.classes_[self._fitted().mean(x).numpy().argmax(-1)]

    @checked
    def decision_function(self, x: Any) -> np.ndarray:
        """(P2, .., C) means of f, no probabilities; of two classes (P2, ..) that of the second less that of the first"""
        means = self._fitted().mean(x).numpy()
        return means[..., 1] - means[..., 0] if len(self.classes_) == 2 else means

    @checked
    def score(self, x: Any, y: Any) -> float:
        """The share of right classes"""
        found, right = self.predict(x), _classes(y)
        if len(found) != len(right):
            raise ValueError(f"x and y differ in their number of samples: received {len(found)} and {len(right)}")
        if found.shape != right.shape:
            raise ValueError(f"y must have shape {found.shape}, as the predictions: received {right.shape}")
        return float(np.mean(found == right))


def _classes(y: Any) -> np.ndarray:
    """(P, ..) labels; ValueError for none and for fractions"""
    labels = np.asarray(y)
    labels = np.array(labels.tolist()) if labels.dtype.kind == "O" else labels  # texts of a data frame
    whole = labels.dtype.kind in "biuU" or (labels.dtype.kind == "f" and bool((np.mod(labels, 1) == 0).all()))
    if not labels.ndim or not labels.size or not whole:
        raise ValueError(_no_classes(y))
    return labels


def _no_classes(y: Any, where: str = "") -> str:
    return (
        f"y must be one class for each sample{where}, whole numbers or texts: received {checks.shown(y)}; of one-hot rows give "
        "y.argmax(-1), for numbers take GaussianProcessRegressor"
    )
