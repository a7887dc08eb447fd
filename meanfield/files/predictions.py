"""How predictions lie in a file: of lazy networks, and of what finite width adds to a limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from meanfield.comparison.ensembles import EnsembleLoss
from meanfield.comparison.fluctuations import PredictedBias, PredictedVariance, WidthFor
from meanfield.files.solutions import (
    Arrays,
    Kind,
    Stored,
    by_field,
    pack_problem,
    plain,
    some,
    tensor,
    unpack_problem,
)
from meanfield.solution.prediction import LazyPrediction

_OWN = {  # the numbers of each kind, and their dimensions
    "covariances": ("group part number number", "N times the covariances of all numbers, each group an estimate"),
    "estimates": ("draw number", "N times the bias of all numbers, each draw an estimate"),
}


def _pack_lazy(prediction: LazyPrediction, arrays: Arrays) -> dict[str, Any]:
    problem = pack_problem(prediction.problem, arrays)
    arrays.axis("time", prediction.times, "training time, learning rate times step")
    arrays.put("mean", prediction.mean, "time sample output", "mean over the random start, training samples")
    if prediction.mean_test is not None:
        arrays.put(
            "mean_test", prediction.mean_test, "time test_sample output", "mean over the random start, test samples"
        )
    arrays.put("covariance", prediction.covariance, "time any_sample any_sample_2", "of each output, over [x; x_test]")
    return {"problem": problem, "stats": {k: plain(v) for k, v in prediction.stats.items()}}


def _unpack_lazy(stored: Stored, settings: Mapping[str, Any]) -> LazyPrediction:
    return LazyPrediction(
        problem=unpack_problem(stored, settings["problem"]),
        times=tensor(stored, "time"),
        mean=tensor(stored, "mean"),
        mean_test=some(stored, "mean_test").get("mean_test"),
        covariance=tensor(stored, "covariance"),
        stats=settings["stats"],
    )


def _pack_observed(found: PredictedVariance | PredictedBias, arrays: Arrays) -> dict[str, Any]:
    problem = pack_problem(found.problem, arrays)
    arrays.axis("step", np.array(found.steps, dtype=np.int64), "training steps at which was observed")
    for name in found.values:
        arrays.put(f"value_{name}", found.values[name], meaning=f"{name} at each step, nan where not asked for")
        arrays.put(f"index_{name}", found.index[name], meaning=f"place of each number of {name} among all, -1 for none")
    for name, (dims, meaning) in _OWN.items():
        if hasattr(found, name):
            arrays.put(name, getattr(found, name), dims, meaning)
    asked = {"problem": problem, "observed": list(found.values)}
    asked["found"] = {k: plain(v, f"the prediction's setting {k}") for k, v in found.settings.items()}
    return asked | ({"parts": list(found.parts)} if isinstance(found, PredictedVariance) else {})


def _observed(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What variance and bias share"""
    values, index = (
        {name: tensor(stored, f"{what}_{name}") for name in settings["observed"]} for what in ("value", "index")
    )
    problem, steps = unpack_problem(stored, settings["problem"]), tuple(stored["step"].tolist())
    return {"problem": problem, "steps": steps, "values": values, "index": index, "settings": settings["found"]}


def _unpack_variance(stored: Stored, settings: Mapping[str, Any]) -> PredictedVariance:
    own = {"parts": tuple(settings["parts"]), "covariances": tensor(stored, "covariances")}
    return PredictedVariance(**_observed(stored, settings), **own)


def _unpack_bias(stored: Stored, settings: Mapping[str, Any]) -> PredictedBias:
    return PredictedBias(**_observed(stored, settings), estimates=tensor(stored, "estimates"))


def _pack_width(found: WidthFor, arrays: Arrays) -> dict[str, Any]:
    for f in fields(found):
        arrays.put(f.name, getattr(found, f.name))
    return {"width_for": by_field(found)}


def _unpack_width(stored: Stored, settings: Mapping[str, Any]) -> WidthFor:
    return WidthFor(**settings["width_for"])


_MEASURED = ("measured", "measured_se")


def _pack_ensembles(found: EnsembleLoss, arrays: Arrays) -> dict[str, Any]:
    if found.widths:
        arrays.axis("width", np.array(found.widths, dtype=np.int64), "neurons in a hidden layer")
        arrays.axis("ensemble", np.array(found.ensembles, dtype=np.int64), "networks of which the mean is taken")
        for name in _MEASURED:
            arrays.put(name, getattr(found, name), "width ensemble", f"{name}, loss of the mean")
    return {"ensembles": {name: value for name, value in by_field(found).items() if name not in _MEASURED}}


def _unpack_ensembles(stored: Stored, settings: Mapping[str, Any]) -> EnsembleLoss:
    measured: dict[str, Any] = {name: stored[name] for name in _MEASURED if name in stored}
    return EnsembleLoss(**settings["ensembles"], **measured)


Prediction = EnsembleLoss | LazyPrediction | PredictedVariance | PredictedBias | WidthFor
PREDICTIONS = (
    Kind("meanfield lazy prediction", LazyPrediction, _pack_lazy, _unpack_lazy),
    Kind("meanfield predicted variance", PredictedVariance, _pack_observed, _unpack_variance),
    Kind("meanfield predicted bias", PredictedBias, _pack_observed, _unpack_bias),
    Kind("meanfield loss of ensembles", EnsembleLoss, _pack_ensembles, _unpack_ensembles),
    Kind("meanfield width for an error", WidthFor, _pack_width, _unpack_width),
)
