"""How problems and solutions lie in a file: as named arrays with named dimensions, beside settings that JSON can hold.

storage.py writes and reads them. reports.py holds the other kinds of results, and `KINDS`, all that there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.network import activations
from meanfield.network.architecture import Architecture
from meanfield.network.keys import Key, parts
from meanfield.network.perceptron import Network
from meanfield.network.recalled import recalled, told
from meanfield.network.recalled import settings as layer_settings
from meanfield.problem import losses, optimisers
from meanfield.problem import stream as streams
from meanfield.problem.dataset import Dataset
from meanfield.problem.problem import Problem
from meanfield.problem.schedules import Schedule
from meanfield.problem.stream import Stream
from meanfield.problem.training import Training
from meanfield.problem.transformation import Transformation
from meanfield.scaling.scaling import MeasureLimit, Scaling
from meanfield.scaling.standard import Standard
from meanfield.solution.field_kernels import FieldKernels
from meanfield.solution.measure_kernels import MeasureKernels
from meanfield.solution.solution import Given, Solution, Status
from meanfield.solution.two_time import TwoTimeKernel, TwoTimeResponse

_DATA = {  # dimensions and meaning
    "x": ("sample input", "training inputs"),
    "y": ("sample output", "training targets"),
    "x_test": ("test_sample input", "test inputs"),
    "y_test": ("test_sample output", "test targets"),
}
_DONE = {"shift": "taken away from inputs of the user's", "scale": "by which the rest was divided"}
_SOLUTION = {
    "f": ("time sample output", "outputs on the training samples"),
    "f_test": ("time test_sample output", "outputs on the test samples"),
    "loss": ("time", "loss, mean over the training samples"),
    "test_loss": ("time", "loss, mean over the test samples"),
    "tangent_kernels": ("snapshot sample output sample_2 output_2", "tangent kernel K, df/dt = K Delta / P"),
}
_MEASURE = {
    "a": ("particle output", "readouts"),
    "w": ("particle weight", "input weights"),
    "m": ("particle", "masses"),
}
_GIVEN = re.compile(r"given \((\w+)\)")  # how a file names a setting that it does not hold
_COLUMNS = {"Phi": "sample", "G": "sample_output", "h": "sample", "g": "sample_output"}  # by the kind of a key
Stored = Mapping[str, np.ndarray]


class Arrays:
    """Named arrays whose dimensions agree: one name stands for one size throughout a file."""

    def __init__(self) -> None:
        self.data: dict[str, tuple] = {}
        self.coordinates: dict[str, tuple] = {}
        self._sizes: dict[str, int] = {}

    def put(self, name: str, value: Any, dims: str = "", meaning: str = "", coordinate: bool = False) -> None:
        """Add an array. Of one with more axes than `dims` names, samples of any shape, the others stand before the last.

        A dimension without a name, or of another size than its name stands for, is named after its size.
        """
        if not re.fullmatch(r"[\w.+\[\]-]+", name):
            raise ValueError(f"{name!r} cannot name an array of a file: letters, digits and _ . + - [ ] only")
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        wanted = dims.split()
        wanted[-1:-1] = [f"{wanted[-1]}_axis_{i}" for i in range(1, array.ndim - len(wanted) + 1)] if wanted else []
        named: list[str] = []
        for dim, n in zip(wanted if len(wanted) == array.ndim else [""] * array.ndim, array.shape, strict=True):
            fits = dim and self._sizes.setdefault(dim, n) == n
            named.append(dim if fits else f"size_{n}" + f"_{len(named)}" * (f"size_{n}" in named))
        attributes = {"long_name": meaning or name} | ({"units": "1"} if array.dtype.kind == "f" else {})
        (self.coordinates if coordinate else self.data)[name] = (named, array, attributes)

    def axis(self, name: str, values: Any, meaning: str) -> str:
        """A dimension with its coordinate"""
        self.put(name, np.asarray(values), name, meaning, coordinate=True)
        return name


@dataclass(frozen=True)
class Kind:
    """How results of one type become arrays and settings, and come back."""

    name: str
    type: type
    pack: Callable[[Any, Arrays], dict[str, Any]]
    unpack: Callable[[Stored, Mapping[str, Any]], Any]


def pack_problem(problem: Problem, arrays: Arrays) -> dict[str, Any]:
    """Puts its data into `arrays`; returns the rest. ValueError for an activation or loss that is not registered."""
    if (layered := problem.layered) is not None:
        hint = "make it known with meanfield.register_activation"
        _registered("activation", layered.nonlinearity, activations.activation, hint)
        network = by_field(layered) | {"activation": layered.nonlinearity.name}
        if problem.trial is not None:
            network |= {"by_layer": layer_settings(problem.architecture), "record": problem.architecture.records}
    else:
        network = {"module": told(problem.architecture)}
    _registered("loss", problem.loss_function, losses.loss, "make it known with meanfield.register_loss")
    for name, (dims, meaning) in _DATA.items():
        if (value := getattr(problem.data, name)) is not None:
            arrays.put(name, value, dims, meaning)
    data = problem.data
    if (done := data.transformation) is not None:
        for name, meaning in _DONE.items():
            arrays.put(f"x_{name}", getattr(done, name), meaning=meaning)
            if (value := getattr(done, f"target_{name}")) is not None:
                arrays.put(f"y_{name}", value, meaning=f"the same of targets: {meaning}")
    stream = (
        {"batch": data.batch, "seed": data.seed, "law": streams.told(data.law)} if isinstance(data, Stream) else None
    )
    return {
        "data": problem.data.name,
        "classes": problem.data.classes,
        "unit_norm": done.unit_norm if done else None,
        "stream": stream,
        "network": network,
        "scaling": by_field(problem.scaling),
        "training": _told(problem.training),
        "loss": problem.loss_function.name,
    }


def unpack_problem(stored: Stored, asked: Mapping[str, Any]) -> Problem:
    """The inverse of `pack_problem`"""
    arrays, stream = some(stored, "x", "y", "x_test", "y_test"), asked.get("stream")
    about: dict[str, Any] = {"name": asked["data"], "classes": asked.get("classes", ())}
    if asked.get("unit_norm") is not None:
        done = {name: tensor(stored, f"x_{name}") for name in _DONE}
        done |= {f"target_{name}": tensor(stored, f"y_{name}") for name in _DONE if f"y_{name}" in stored}
        about["transformation"] = Transformation(**done, unit_norm=asked["unit_norm"])
    made = Dataset(**arrays, **about)
    if stream:
        made = Stream(
            **arrays,
            **about,
            law=streams.recalled(stream["law"]),
            batch=stream["batch"],
            seed=stream["seed"],
        )
    return Problem(
        data=made,
        network=_network(asked["network"]),
        scaling=(Standard if "improved" in asked["scaling"] else Scaling)(**asked["scaling"]),
        training=_recalled(asked["training"]),
        loss=_known("loss", asked["loss"], losses.loss),
    )


def _known(what: str, name: str, known: Callable[[str], Any]) -> Any:
    """The activation or loss of that name; ValueError that says how to make the user's known"""
    try:
        return known(name)
    except ValueError as error:
        raise ValueError(f"{error}; make yours known with meanfield.register_{what} before loading") from error


def _told(training: Training) -> dict[str, Any]:
    course = training.schedule
    named = by_field(course) if isinstance(course, Schedule) else course
    return by_field(training) | {"optimiser": optimisers.told(training.optimiser), "schedule": named}


def _recalled(told: Mapping[str, Any]) -> Training:
    """The inverse of `_told`"""
    course = told.get("schedule", {})
    named = Schedule(**course) if isinstance(course, Mapping) else course
    return Training(**{**told, "optimiser": optimisers.recalled(told["optimiser"]), "schedule": named})


def _network(asked: Mapping[str, Any]) -> Network | Architecture:
    """given: the builder that `load` was given, beside what is told of a module"""
    if "module" in asked:
        return recalled(asked["module"], asked.get("given"))
    _known("activation", asked["activation"], activations.activation)
    own = Network(**{name: value for name, value in asked.items() if name not in ("given", "by_layer", "record")})
    if "by_layer" not in asked:
        return own
    found = Architecture(own, **asked["by_layer"])
    object.__setattr__(found, "records", tuple(asked.get("record", ())))  # functions that record are not kept
    return found


def _pack_solution(solution: Solution, arrays: Arrays) -> dict[str, Any]:
    problem, source = pack_problem(solution.problem, arrays), solution.tangent
    arrays.axis("time", solution.times, "training time, learning rate times step")
    arrays.put("step", np.array(solution.recorded_steps, np.int64), "time", "training step", coordinate=True)
    arrays.axis("snapshot", np.array(solution.snapshots, dtype=np.int64), "steps recorded in detail")
    for name, (dims, meaning) in _SOLUTION.items():
        left_out = name == "test_loss" and solution.problem.data.y_test is None
        left_out |= name == "tangent_kernels" and solution.tangent_deferred
        value = None if left_out else getattr(solution, name)
        if value is not None:
            arrays.put(name, value, dims, meaning)
    _pack_records(solution, arrays)
    asked = {
        "problem": problem,
        "solver": {
            k: str(v) if isinstance(v, Given) else plain(v, f"the solver's setting {k}")
            for k, v in solution.solver.items()
        },
        "stats": {k: plain(v) for k, v in solution.stats.items()},
        "status": solution.status.name,
    }
    if isinstance(source, FieldKernels):
        return asked | {"fields_tell": solution.kernels_told}
    return asked | ({"measure_limit": source.limit} if isinstance(source, MeasureKernels) else {})


def _pack_records(solution: Solution, arrays: Arrays) -> None:
    """What was recorded at snapshots, and the state."""

    def axis(name: str, steps: Sequence[int]) -> str:
        same = tuple(steps) == tuple(solution.snapshots)
        return "snapshot" if same else arrays.axis(f"snapshot_{name}", np.array(steps, np.int64), f"steps of {name}")

    for name, kernel in solution.kernels.items():
        if not kernel.made and solution.kernels_told:
            continue  # nobody looked at it yet, and particles or fields tell it
        dims = f"{axis(name, kernel.steps)} rank_{name} {_COLUMNS[Key.of(name).kind]}"
        arrays.put(f"kernel_{name}", kernel.factor, dims, f"factor c of {name}(t, s) = c(t)^T c(s)")
    for name, response in solution.responses.items():
        for side in ("left", "right"):
            meaning = f"{side} factor of the response {name}" + ", equal times included" * response.instant
            arrays.put(f"response_{name}_{side}", getattr(response, side), meaning=meaning)
    for name, value in solution.standard_errors.items():
        columns = _COLUMNS.get(parts(name)[0])
        dims = f"snapshot {columns} {columns}_2" if columns else _SOLUTION.get(name, ("", ""))[0]
        arrays.put(f"error_{name}", value, dims, f"standard error of {name}")
    for name, value in solution.recorded.items():
        arrays.put(f"recorded_{name}", value, meaning=f"{name}, which the architecture records")
    for name, value in solution.fields.items():
        arrays.put(f"field_{name}", value, f"snapshot neuron {_COLUMNS[Key.of(name).kind]}", f"{name} of each neuron")
    steps = sorted(solution.particles)
    if len({tuple(t.shape for t in solution.particles[step].tensors) for step in steps}) > 1:
        raise ValueError("the number of particles differs between snapshots: a file keeps one number")
    for name, (dims, meaning) in (_MEASURE if steps else {}).items():
        stacked = torch.stack([getattr(solution.particles[step], name) for step in steps])
        arrays.put(f"particle_{name}", stacked, f"{axis('particles', steps)} {dims}", f"the particles' {meaning}")
    for name, value in solution.state.items():
        arrays.put(f"state_{name}", value, meaning="what the solver goes on from")


def _unpack_solution(stored: Stored, settings: Mapping[str, Any]) -> Solution:
    clouds = dict(_prefixed(stored, "particle_"))
    steps = _steps(stored, "particles") if clouds else ()
    problem = unpack_problem(stored, settings["problem"])
    particles = {step: ParticleMeasure(*(clouds[k][i] for k in _MEASURE)) for i, step in enumerate(steps)}
    kernels = {k: TwoTimeKernel(_steps(stored, k), c) for k, c in _prefixed(stored, "kernel_")}
    tangent = some(stored, "tangent_kernels").get("tangent_kernels")
    snapshots, fields = tuple(stored["snapshot"].tolist()), dict(_prefixed(stored, "field_"))
    source = None
    if "measure_limit" in settings:  # the particles tell the rest
        source = MeasureKernels(problem, particles, MeasureLimit(*settings["measure_limit"]))
    elif settings.get("fields_tell"):
        source = FieldKernels(problem, snapshots, fields)
    if source is not None:
        tangent, kernels = source if tangent is None else tangent, source.kernels | kernels
    return Solution(
        problem=problem,
        solver={k: Given(m[1]) if (m := _GIVEN.fullmatch(str(v))) else v for k, v in settings["solver"].items()},
        f=tensor(stored, "f"),
        f_test=some(stored, "f_test").get("f_test"),
        state=dict(_prefixed(stored, "state_")),
        status=Status[settings["status"]],
        snapshots=snapshots,
        kernels=kernels,
        responses=_responses(stored),
        standard_errors=dict(_prefixed(stored, "error_")),
        tangent=tangent,
        particles=particles,
        fields=fields,
        recorded=dict(_prefixed(stored, "recorded_")),
        stats=settings["stats"],
        recorded_steps=tuple(stored["step"].tolist()),
    )


def _responses(stored: Stored) -> dict[str, TwoTimeResponse]:
    factors = dict(_prefixed(stored, "response_"))
    keys = dict.fromkeys(Key.of(name.rpartition("_")[0]) for name in factors)
    return {k: TwoTimeResponse(factors[f"{k}_left"], factors[f"{k}_right"], instant=k.kind == "B") for k in keys}


SOLUTION = Kind("meanfield solution", Solution, _pack_solution, _unpack_solution)


def _registered(what: str, thing: Any, known: Callable[[str], Any], remedy: str) -> None:
    try:
        meant = known(thing.name)
    except ValueError:
        meant = None
    if meant is not thing:
        raise ValueError(f"the {what} {thing.name!r} is not registered, and a file keeps only its name: {remedy}")


def by_field(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are"""
    return {f.name: getattr(thing, f.name) for f in fields(thing)}


def plain(value: Any, strictly: str = "") -> Any:
    """`value` for JSON, tuples as arrays. Other things become text or, if `strictly` names them, a ValueError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and (value.ndim == 0 or not strictly):
        return value.tolist()
    if isinstance(value, tuple) or (isinstance(value, list) and not strictly):
        return [plain(v, strictly) for v in value]
    if isinstance(value, Mapping) and not strictly:
        return {str(k): plain(v) for k, v in value.items()}
    if strictly:
        raise ValueError(f"{strictly} cannot be kept: received {type(value).__name__}; give numbers, text or tuples")
    return str(value)


def tensor(stored: Stored, name: str) -> Tensor:
    """The array of that name, in memory of its own"""
    return torch.from_numpy(np.array(stored[name]))


def some(stored: Stored, *names: str) -> dict[str, Tensor]:
    """Those of the arrays that are there"""
    return {name: tensor(stored, name) for name in names if name in stored}


def _prefixed(stored: Stored, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name in stored:
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor(stored, name)


def _steps(stored: Stored, name: str) -> tuple[int, ...]:
    """The steps at which `name` was recorded: its own, or the solution's snapshots."""
    return tuple(stored.get(f"snapshot_{name}", stored["snapshot"]).tolist())
