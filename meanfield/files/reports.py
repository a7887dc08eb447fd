"""How reports lie in a file, as solutions.py has it for solutions. To keep another kind, add a `Kind` to `KINDS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from meanfield.comparison.coordinates import Coordinate, CoordinatesReport
from meanfield.comparison.predicted import Fluctuation
from meanfield.comparison.report import Deviation, DeviationReport
from meanfield.comparison.scaling_reports import PowerLaw, PowersReport, ProxyReport
from meanfield.comparison.statistics import Exponent
from meanfield.comparison.transfer_report import TransferReport
from meanfield.files.predictions import PREDICTIONS, Prediction
from meanfield.files.solutions import SOLUTION, Arrays, Kind, Stored, by_field, plain
from meanfield.files.spectra import SPECTRUM
from meanfield.files.stationary import STATIONARY, Stationary
from meanfield.kernels.spectrum import KernelSpectrum
from meanfield.scaling.scaling import Scaling
from meanfield.solution.solution import Solution

_COLUMNS = tuple(f.name for f in fields(Deviation) if f.name not in ("name", "exponents"))

_ROWS = {
    "size": "root mean square of what was predicted, in the limit",
    "measured": "N Var or N bias of networks",
    "measured_se": "standard error of measured",
    "predicted": "N Var or N bias, computed before any network was trained",
    "predicted_se": "standard error of predicted",
}


def _pack_report(report: DeviationReport, arrays: Arrays) -> dict[str, Any]:
    found = list(report.observables.values())
    quantities = list(dict.fromkeys(quantity for d in found for quantity in d.exponents))
    arrays.axis("width", np.array(report.widths, dtype=np.int64), "neurons in a hidden layer")
    arrays.put("seeds", np.array(report.seeds, dtype=np.int64), "width", "networks of this width", coordinate=True)
    arrays.axis("observable", np.array(list(report.observables), dtype=str), "what is compared")
    arrays.axis("quantity", np.array(quantities, dtype=str), "what goes as a power of the width")
    arrays.axis("bound", np.array(["slope", "low", "high"]), "the exponent and its 95 % interval")
    for name in _COLUMNS:
        dims = "observable" if name == "reference_error" else "observable width"
        arrays.put(name, np.array([getattr(d, name) for d in found]), dims, f"{name}, relative to the limit")
    exponents = np.full((len(found), len(quantities), 3), np.nan)
    for i, d in enumerate(found):
        for quantity, e in d.exponents.items():
            exponents[i, quantities.index(quantity)] = e.slope, e.low, e.high
    arrays.put("exponent", exponents, "observable quantity bound", "powers of the width, nan if not fitted")
    arrays.put("n_var", report.n_var, "width", f"N Var f_T, mean over the {report.averaged_over}")
    arrays.put("n_var_se", report.n_var_se, "width", "standard error of n_var")
    arrays.put("predicted_n_var", report.predicted_n_var, meaning="n_var, computed before any network was trained")
    arrays.put("predicted_n_var_se", report.predicted_n_var_se, meaning="standard error of predicted_n_var")
    for name in _ROWS if report.predictions else ():
        rows = np.array([getattr(p, name) for p in report.predictions])
        arrays.put(f"prediction_{name}", rows, "prediction width" if rows.ndim > 1 else "prediction", _ROWS[name])
    predictions = [
        {k: getattr(p, k) for k in ("kind", "name", "steps", "numbers", "whole")} for p in report.predictions
    ]
    return {
        "predictions": predictions,
        "compared": {k: plain(v, f"the report's setting {k}") for k, v in report.settings.items()},
    }


def _unpack_report(stored: Stored, settings: Mapping[str, Any]) -> DeviationReport:
    quantities, found = [str(q) for q in stored["quantity"]], {}
    for i, name in enumerate(str(n) for n in stored["observable"]):
        columns = {k: stored[k][i] for k in _COLUMNS}
        columns["reference_error"] = float(columns["reference_error"])
        rows = zip(quantities, stored["exponent"][i].tolist(), strict=True)
        fitted = {quantity: Exponent(*row) for quantity, row in rows if not np.isnan(row).all()}
        found[name] = Deviation(name, **columns, exponents=fitted)
    return DeviationReport(
        widths=tuple(stored["width"].tolist()),
        seeds=tuple(stored["seeds"].tolist()),
        observables=found,
        n_var=stored["n_var"],
        n_var_se=stored["n_var_se"],
        predicted_n_var=float(stored["predicted_n_var"]),
        settings=settings["compared"],
        predicted_n_var_se=float(stored.get("predicted_n_var_se", np.nan)),
        predictions=tuple(_fluctuation(stored, i, told) for i, told in enumerate(settings.get("predictions", ()))),
    )


def _fluctuation(stored: Stored, row: int, told: dict[str, Any]) -> Fluctuation:
    own: dict[str, Any] = dict(told)
    for name in _ROWS:
        value = stored[f"prediction_{name}"][row]
        own[name] = value if value.ndim else float(value)
    return Fluctuation(**own)


def _pack_powers(report: PowersReport, arrays: Arrays) -> dict[str, Any]:
    laws = list(report.quantities.values())
    arrays.axis("width", np.array(report.widths, dtype=np.int64), "neurons in the hidden layer")
    arrays.axis("quantity", np.array(list(report.quantities), dtype=str), "what goes as a power of the width")
    arrays.axis("bound", np.array(["slope", "low", "high"]), "the measured exponent and its 95 % interval")
    arrays.put("values", np.array([law.values for law in laws]), "quantity width", "root mean square over seeds")
    arrays.put("errors", np.array([law.errors for law in laws]), "quantity width", "standard errors of the values")
    arrays.put("predicted", np.array([law.predicted for law in laws]), "quantity", "predicted power of the width")
    measured = np.array([(law.measured.slope, law.measured.low, law.measured.high) for law in laws])
    arrays.put("measured", measured, "quantity bound", "measured power of the width")
    return {"scaling": by_field(report.scaling), "seeds": report.seeds, "steps": report.steps}


def _unpack_powers(stored: Stored, settings: Mapping[str, Any]) -> PowersReport:
    rows = zip(
        stored["values"], stored["errors"], stored["predicted"].tolist(), stored["measured"].tolist(), strict=True
    )
    laws = [PowerLaw(v, e, predicted, Exponent(*measured)) for v, e, predicted, measured in rows]
    return PowersReport(
        scaling=Scaling(**settings["scaling"]),
        widths=tuple(stored["width"].tolist()),
        seeds=settings["seeds"],
        steps=settings["steps"],
        quantities=dict(zip((str(q) for q in stored["quantity"]), laws, strict=True)),
    )


_PROXY = ("kl", "low", "high", "distance")


def _pack_proxy(report: ProxyReport, arrays: Arrays) -> dict[str, Any]:
    arrays.axis("limit", np.array(report.names, dtype=str), "infinite-width limit")
    arrays.axis("time", report.times, "training time, learning rate times step")
    for name in _PROXY:
        arrays.put(name, getattr(report, name), "limit time", f"{name} of equation 73")
    arrays.put("floor", report.floor, "time", "KL that networks of the reference width would show themselves")
    told = {k: plain(v, f"the report's setting {k}") for k, v in report.settings.items()}
    numbers = {"width": report.reference_width, "seeds": report.seeds, "limit_seeds": list(report.limit_seeds)}
    return {"compared": told} | numbers


def _unpack_proxy(stored: Stored, settings: Mapping[str, Any]) -> ProxyReport:
    return ProxyReport(
        names=tuple(str(n) for n in stored["limit"]),
        reference_width=settings["width"],
        times=stored["time"],
        **{name: stored[name] for name in _PROXY},
        floor=stored["floor"],
        seeds=settings["seeds"],
        limit_seeds=tuple(settings["limit_seeds"]),
        settings=settings["compared"],
    )


_OF_COORDINATES = {  # arrays by name: their axes behind that of the coordinates, and what they are
    "values": ("step width", "root mean square over neurons, rows and seeds"),
    "errors": ("step width", "standard errors of the values"),
    "expected": ("step", "power of the width that the scaling implies"),
    "limit": ("step size", "root mean square from S and from 2 S samples of the limit"),
    "limit_errors": ("step size", "standard errors of these"),
}
_OF_POWERS = {
    "measured": "measured power of the width",
    "limit_measured": "measured power of the samples, which should be 0",
}


def _pack_coordinates(report: CoordinatesReport, arrays: Arrays) -> dict[str, Any]:
    every = report.coordinates
    arrays.axis("width", np.array(report.widths, dtype=np.int64), "n of the networks")
    arrays.axis("step", np.array(report.steps, dtype=np.int64), "of training")
    arrays.axis("bound", np.array(["slope", "low", "high"]), "a power and its 95 % interval")
    for name in ("layer", "place", "kind"):
        arrays.put(name, np.array([getattr(c, name) for c in every], dtype=str), "coordinate", "of the field")
    for name, (axes, meaning) in _OF_COORDINATES.items():
        arrays.put(name, np.array([getattr(c, name) for c in every]), f"coordinate {axes}", meaning)
    for name, meaning in _OF_POWERS.items():
        powers = [[(e.slope, e.low, e.high) for e in getattr(c, name)] for c in every]
        arrays.put(name, np.array(powers), "coordinate step bound", meaning)
    plainly = {
        "network": report.network,
        "seeds": report.seeds,
        "samples": list(report.samples),
        "remark": report.remark,
    }
    told = {k: plain(v, f"the report's setting {k}") for k, v in report.settings.items()}
    return plainly | {"scaling": by_field(report.scaling), "trained": told}


def _unpack_coordinates(stored: Stored, settings: Mapping[str, Any]) -> CoordinatesReport:
    coordinates = []
    for i, layer in enumerate(stored["layer"]):
        own = {name: stored[name][i] for name in _OF_COORDINATES}
        own |= {name: tuple(Exponent(*power) for power in stored[name][i].tolist()) for name in _OF_POWERS}
        coordinates.append(Coordinate(str(layer), str(stored["place"][i]), str(stored["kind"][i]), **own))  # type: ignore[arg-type]
    return CoordinatesReport(
        network=settings["network"],
        scaling=Scaling(**settings["scaling"]),
        widths=tuple(stored["width"].tolist()),
        seeds=settings["seeds"],
        steps=tuple(stored["step"].tolist()),
        samples=tuple(settings["samples"]),
        coordinates=tuple(coordinates),
        remark=settings["remark"],
        settings=settings["trained"],
    )


def _pack_transfer(report: TransferReport, arrays: Arrays) -> dict[str, Any]:
    arrays.axis("rate", report.rates, "learning rate")
    arrays.axis("width", np.array(report.widths, dtype=np.int64), "neurons in a hidden layer")
    arrays.put("final", report.final, "width rate seed", "loss after the last step, infinite where the run blew up")
    arrays.put("best", report.best, "width rate seed", "least loss of all recorded steps")
    if report.limit is not None:
        arrays.put("limit", report.limit, "which rate", "final and least loss of the limit")
        arrays.put("limit_errors", report.limit_errors, "which rate", "standard errors of limit, nan if unknown")
    return {"compared": {k: plain(v, f"the report's setting {k}") for k, v in report.settings.items()}}


def _unpack_transfer(stored: Stored, settings: Mapping[str, Any]) -> TransferReport:
    return TransferReport(
        rates=stored["rate"],
        widths=tuple(stored["width"].tolist()),
        final=stored["final"],
        best=stored["best"],
        limit=stored.get("limit"),
        limit_errors=stored.get("limit_errors"),
        settings=settings["compared"],
    )


Result = (
    Solution
    | DeviationReport
    | Prediction
    | Stationary
    | PowersReport
    | ProxyReport
    | CoordinatesReport
    | TransferReport
    | KernelSpectrum
)  # what `save` takes
KINDS = (
    SOLUTION,
    Kind("meanfield deviation report", DeviationReport, _pack_report, _unpack_report),
    *PREDICTIONS,
    *STATIONARY,
    SPECTRUM,
    Kind("meanfield powers report", PowersReport, _pack_powers, _unpack_powers),
    Kind("meanfield proxy report", ProxyReport, _pack_proxy, _unpack_proxy),
    Kind("meanfield coordinates report", CoordinatesReport, _pack_coordinates, _unpack_coordinates),
    Kind("meanfield transfer report", TransferReport, _pack_transfer, _unpack_transfer),
)
