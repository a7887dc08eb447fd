"""How lies in a file what noise leaves: the measure of its end, averages over time, free energies along a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meanfield.comparison.free_energy import FreeEnergy
from meanfield.comparison.stationary import StationaryAverages
from meanfield.files.solutions import Arrays, Kind, Stored, pack_problem, some, tensor, unpack_problem
from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.solution.gibbs_measure import GibbsMeasure

_NUMBERS = ("free_energy", "divergence", "effective", "residual")
_AVERAGES = ("runs", "start", "time", "correlation_time", "independent")
_ENERGIES = {"energy": "(kappa / Gamma) loss", "divergence": "from the law without samples", "errors": "of divergence"}


def _pack_gibbs(found: GibbsMeasure, arrays: Arrays) -> dict[str, Any]:
    problem = pack_problem(found.problem, arrays)
    arrays.put("f", found.f, "sample output", "outputs on the training samples")
    if found.f_test is not None:
        arrays.put("f_test", found.f_test, "test_sample output", "outputs on the test samples")
    arrays.put("kernel", found.kernel, "any_sample any_sample_2", "Phi over [x; x_test]")
    for name, dims in (("a", "particle output"), ("w", "particle input"), ("m", "particle")):
        arrays.put(name, getattr(found.measure, name), dims, f"{name} of weighted particles")
    return {"problem": problem, "gibbs": {name: getattr(found, name) for name in _NUMBERS}}


def _unpack_gibbs(stored: Stored, settings: Mapping[str, Any]) -> GibbsMeasure:
    return GibbsMeasure(
        problem=unpack_problem(stored, settings["problem"]),
        f=tensor(stored, "f"),
        f_test=some(stored, "f_test").get("f_test"),
        kernel=tensor(stored, "kernel"),
        measure=ParticleMeasure(*(tensor(stored, name) for name in ("a", "w", "m"))),
        **settings["gibbs"],
    )


def _pack_averages(found: StationaryAverages, arrays: Arrays) -> dict[str, Any]:
    problem = pack_problem(found.problem, arrays)
    for name, mean in found.means.items():
        arrays.put(f"mean_{name}", mean, meaning=f"{name}, its mean over time and runs")
        arrays.put(f"error_{name}", found.errors[name], meaning=f"standard error of mean_{name}")
    return {"problem": problem, "averaged": list(found.means), "numbers": {k: getattr(found, k) for k in _AVERAGES}}


def _unpack_averages(stored: Stored, settings: Mapping[str, Any]) -> StationaryAverages:
    means, errors = (
        {name: tensor(stored, f"{what}_{name}") for name in settings["averaged"]} for what in ("mean", "error")
    )
    return StationaryAverages(
        unpack_problem(stored, settings["problem"]), **settings["numbers"], means=means, errors=errors
    )


def _pack_energies(found: FreeEnergy, arrays: Arrays) -> dict[str, Any]:
    arrays.axis("time", found.times, "training time, learning rate times step")
    for name, meaning in _ENERGIES.items():
        arrays.put(name, getattr(found, name), "time", meaning)
    return {"temperature": found.temperature, "dimensions": found.dimensions}


def _unpack_energies(stored: Stored, settings: Mapping[str, Any]) -> FreeEnergy:
    numbers = {name: tensor(stored, name) for name in _ENERGIES}
    told = {name: settings[name] for name in ("temperature", "dimensions")}
    return FreeEnergy(times=tensor(stored, "time"), **numbers, **told)


Stationary = FreeEnergy | GibbsMeasure | StationaryAverages
STATIONARY = (
    Kind("meanfield Gibbs measure", GibbsMeasure, _pack_gibbs, _unpack_gibbs),
    Kind("meanfield averages over time", StationaryAverages, _pack_averages, _unpack_averages),
    Kind("meanfield free energy", FreeEnergy, _pack_energies, _unpack_energies),
)
