"""The command `meanfield`. Its flags are the fields of the library's own dataclasses; this is the only file that imports tyro."""

from __future__ import annotations

import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from meanfield import activations, checks, data, losses, scaling
from meanfield.activations import Activation
from meanfield.data import Dataset
from meanfield.data_files import from_file
from meanfield.losses import Loss
from meanfield.own_numerics import on_threads
from meanfield.problem import Network, Problem, Training
from meanfield.scaling import Scaling
from solvers import limit_commands, result_commands, run_commands, study_commands
from solvers.causal_dmft import CausalDMFT
from solvers.failures import SolverError
from solvers.finite_width import FiniteWidth
from solvers.fixed_point_dmft import FixedPointDMFT
from solvers.infinite_logits import InfiniteLogitsLimit
from solvers.tangent_kernel import TangentKernelLimit
from solvers.wasserstein_flow import WassersteinFlow

COMMANDS = limit_commands.COMMANDS | run_commands.COMMANDS | study_commands.COMMANDS | result_commands.COMMANDS

_registry = ConstructorRegistry()

_WITHOUT = {  # dataclasses whose fields become flags, and the fields that do not
    **dict.fromkeys(COMMANDS, ()),
    Problem: (),
    Network: (),
    Training: (),
    WassersteinFlow: ("f0", "progress", "raise_on_failure"),
    CausalDMFT: ("progress", "raise_on_failure"),
    FixedPointDMFT: ("progress", "raise_on_failure"),
    TangentKernelLimit: ("kernel", "progress", "raise_on_failure"),
    InfiniteLogitsLimit: ("f0", "progress", "raise_on_failure"),
    FiniteWidth: ("width", "seed", "progress", "raise_on_failure"),
}
_HELP = {  # where the docstrings are silent, or speak of what a shell cannot give
    "depth": "hidden layers",
    "activation": "the nonlinearity of the hidden layers",
    "weight_std": "multiplies all weights",
    "bias_std": "multiplies the biases; 0 means no biases",
    "residual": "beta of h^{l+1} = h^l + (beta / sqrt(depth)) W^l phi(h^l) / sqrt(N); plain layers if left out",
    "learning_rate": "training time per step",
    "steps": "steps of size learning_rate",
    "record_every": "steps between two records of the outputs on all samples",
    "optimiser": "exact steps, or the flow in continuous time",
    "loss": "averaged over the training samples",
    "samples": "neurons that stand for each layer; a power of 2 is best",
    "two_time": "keep every kernel at all pairs of steps; otherwise some at the snapshots only",
    "momentum": "of heavy-ball descent",
    "weight_decay": "parameters shrink by learning_rate * weight_decay at each step",
    "batch_size": "samples a step; all of them if left out",
    "batch_seed": "of the sequence of mini-batches",
    "particles": "points of the measure; a power of 2 is best",
    "seed": "of all draws",
    "initial": "sobol: quasi-Monte-Carlo, error about 1/N; iid: equal in law to a width-N network; gauss_hermite: quadrature, up to "
    "about four dimensions (particles is then an upper bound)",
    "engine": "how sums over particles are taken; the numbers are the same",
    "dtype": "of all numbers",
    "device": "cpu, cuda, cuda:1, ..",
    "keep_neurons": "record the neurons themselves at snapshots",
    "batch": "seeds trained at once; as many as are faster together if left out",
    "rtol": "relative tolerance of the adaptive integrator (gradient_flow only)",
    "evaluations": "the most of the velocity in one step of gradient_flow, which ends the run there",
}
_OWN_HELP = {  # where one name means another thing
    (
        TangentKernelLimit,
        "initial",
    ): "draw: f0 of one network, by the seed (zero in the mean-field scaling); mean: f0 = 0",
}
_DATA: dict[str, Callable[..., Dataset]] = {
    "digits": data.digits,
    "file": from_file,
    "mixture": data.gaussian_mixture,
    "single-index": data.single_index_teacher,
    "multi-index": data.multi_index_teacher,
}
_DATA_FLAGS: dict[str, tuple[Any, str]] = {
    "path": (Path, "a .npz file (arrays x, y), or a .csv file whose first line names its columns"),
    "targets": (tuple[str, ...], "target columns of a .csv file: their names, or how many at the right"),
    "classes": (tuple[int, ...], "which digits, or how many clusters"),
    "n_train": (int, "training samples"),
    "n_test": (int, "test samples"),
    "inputs": (int, "input dimensions"),
    "separation": (float, "norm of the clusters' means"),
    "directions": (int, "directions that the teacher looks at"),
    "link": (Activation, "the teacher's nonlinearity"),
    "noise": (float, "standard deviation of noise on the training targets"),
    "seed": (int, "of the draw"),
    "one_hot": (bool, "one-hot targets for two classes as well"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, which `--help` explains."""
    for stream in (s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)):
        stream.reconfigure(errors="replace")  # a terminal without "±" shows "?"
    named = [Annotated[c, tyro.conf.subcommand(c.__name__.lower(), description=_about(c))] for c in COMMANDS]
    about = "Infinite-width neural networks, and how far finite ones are from them. Exit status: 0 done; 1 a solver or a file failed; "
    about += "2 bad input; 3 done, but kept elsewhere than in --out, which could not be written; 130 interrupted."
    try:
        with _registry:
            asked = tyro.cli(reduce(or_, named), prog="meanfield", description=about, args=arguments)  # type: ignore[arg-type]
        with on_threads(getattr(asked, "threads", None)):
            return COMMANDS[type(asked)](asked) or 0
    except (_BadValue, ValueError, MemoryError) as error:
        return _failed(2, str(error))
    except (SolverError, OSError) as error:
        return _failed(1, str(error) if isinstance(error, SolverError) else f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as error:
        return _failed(130, str(error) or "interrupted; nothing was computed that could be kept")


def _failed(code: int, message: str) -> int:
    print(f"meanfield: {message}", file=sys.stderr)
    return code


class _BadValue(Exception):
    """What the library said against the flags' values; not a ValueError, which tyro would frame and wrap."""


def _about(kind: type) -> str:
    """What the docstring says of `kind` as a whole, without examples of code."""
    sentences = re.split(r"(?<=\.)\s+", _documented(kind)[0])
    return " ".join(s for s in sentences if not re.search(r"`[^`]*\([^`]*`", s))


@_registry.struct_rule
def _from_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    if info.type not in _WITHOUT:
        return None
    hints, told = get_type_hints(info.type), _documented(info.type)[1]
    flags = []
    for f in fields(info.type):
        kind, default = hints[f.name], tyro.MISSING_NONPROP if f.default is MISSING else f.default
        if kind in _WITHOUT or kind in (Dataset, Scaling):
            shown = tyro.conf.arg(name="" if kind is Problem else None, help=_about(kind) if kind in _WITHOUT else "")
            nested: Any = Annotated[kind, shown]
            flags.append(StructFieldSpec(f.name, nested, tyro.MISSING_NONPROP))
        elif f.name not in _WITHOUT[info.type]:
            ours = "" if info.type in COMMANDS else _OWN_HELP.get((info.type, f.name)) or _HELP.get(f.name)
            text = ours or told.get(f.name, "")
            flags.append(_flag(f.name, kind, default, text, f.metadata.get("positional", False)))
    return StructConstructorSpec(_refusing(info.type), tuple(flags))


@_registry.struct_rule
def _from_dataset(info: StructTypeInfo) -> StructConstructorSpec | None:
    if info.type is not Dataset:
        return None
    which = {"name": "data", "prefix_name": False, "metavar": _either(_DATA)}
    flags = [_flag("kind", str, "digits", "where the samples come from", **which)]
    for name, (kind, text) in _DATA_FLAGS.items():
        flags.append(_flag(name, kind | None, None, text, help_behavior_hint=_defaults(name)))
    return StructConstructorSpec(_refusing(_dataset), tuple(flags))


@_registry.struct_rule
def _from_scaling(info: StructTypeInfo) -> StructConstructorSpec | None:
    if info.type is not Scaling:
        return None
    which = {"name": "scaling", "prefix_name": False, "metavar": _either(scaling.NAMED)}
    richness = {"name": "gamma0", "prefix_name": False, "help_behavior_hint": "(mean_field, ic_mean_field: 1.0)"}
    reference = {"name": "reference-width", "prefix_name": False, "help_behavior_hint": _takers("reference_width")}
    frozen = {"name": "frozen", "prefix_name": False, "help_behavior_hint": _takers("frozen")}
    flags = (
        _flag("name", str, "mean_field", "how the output and the learning rates depend on the width", **which),
        _flag("gamma0", float | None, None, "richness: lazy towards 0, rich at 1", **richness),
        _flag("reference_width", int | None, None, "width N* at which the scalings agree", **reference),
        _flag("frozen", str | None, None, "the part that stays: matched (agrees at N*) or added", **frozen),
    )
    return StructConstructorSpec(_refusing(_scaling), flags)


def _flag(name: str, kind: Any, default: Any, text: str, first: bool = False, /, **shown: Any) -> StructFieldSpec:
    """One flag. What the library looks up by name stays text here: the library lists what it knows."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    literals = next((get_args(part) for part in parts if get_origin(part) is Literal), ())
    known = {Activation: activations.names, Loss: losses.names}
    names = next((known[part]() for part in parts if part in known), literals)
    names = tuple(checks.DTYPES) if name == "dtype" else names
    if names:
        kind, shown = (str | None if default is None else str), {"metavar": _either(names)} | shown
    elif get_origin(kind) is Sequence:
        kind = tuple[get_args(kind)[0], ...]
    elif default is None or first:  # as tyro shows them, but without {None}| and brackets
        many = get_origin(parts[0]) is tuple
        word = (get_args(parts[0])[0] if many else parts[0]).__name__.upper()
        word = "{True,False}" if word == "BOOL" else f"{word} [{word} ...]" if many else word
        shown = {"metavar": word, "help_behavior_hint": "(required)" if first else ""} | shown
    marks = [tyro.conf.arg(**shown), *([tyro.conf.Positional] if first else [])]
    marks += [tyro.conf.FlagCreatePairsOff] if default is False else []
    annotated: Any = reduce(lambda inner, mark: Annotated[inner, mark], marks, kind)
    return StructFieldSpec(name, annotated, default, text)


def _dataset(kind: str, **options: Any) -> Dataset:
    make = checks.lookup("data", kind, _DATA)
    takes = inspect.signature(make).parameters
    values = {name: value for name, value in options.items() if value is not None}
    for name in values:
        if name not in takes:
            known = ", ".join(f"--data.{_dashed(n)}" for n in takes)
            raise ValueError(f"--data.{_dashed(name)} does not belong to --data {kind}, which takes {known}")
    if "path" in takes and "path" not in values:
        raise ValueError(f"--data {kind} needs a file: give --data.path FILE")
    if "classes" in values and takes["classes"].annotation == "int":
        if len(values["classes"]) != 1:
            raise ValueError(f"--data.classes is one number for --data {kind}: received {values['classes']}")
        (values["classes"],) = values["classes"]
    if "targets" in values and len(values["targets"]) == 1 and values["targets"][0].isdecimal():
        values["targets"] = int(values["targets"][0])
    return make(**values)


def _scaling(name: str, **options: Any) -> Scaling:
    factory = checks.lookup("scaling", name, scaling.NAMED)
    takes, values = inspect.signature(factory).parameters, {k: v for k, v in options.items() if v is not None}
    for key in values:
        if key not in takes:
            others = ", ".join(
                other for other, make in scaling.NAMED.items() if key in inspect.signature(make).parameters
            )
            raise ValueError(
                f"--{_dashed(key)} does not belong to --scaling {name}: leave it out, or take --scaling {others}"
            )
    return factory(**values)


def _takers(option: str) -> str:
    """What each scaling takes for `option` if it is left out, e.g. "(default, sym_default: 1)\""""
    kinds: dict[str, list[str]] = {}
    for name, make in scaling.NAMED.items():
        if option in (takes := inspect.signature(make).parameters):
            default = takes[option].default
            kinds.setdefault("required" if default is inspect.Parameter.empty else str(default), []).append(name)
    return "(" + "; ".join(f"{', '.join(names)}: {value}" for value, names in kinds.items()) + ")"


def _refusing(build: Callable[..., Any]) -> Callable[..., Any]:
    def built(**values: Any) -> Any:
        try:
            return build(**values)
        except ValueError as error:
            raise _BadValue(str(error)) from error

    return built


def _either(names: Iterable[str]) -> str:
    return f"{{{','.join(names)}}}"


def _documented(kind: type) -> tuple[str, dict[str, str]]:
    """The docstring as what it says of the whole and of each field, which it explains as "name: text." or "name=x: text."."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    names = "|".join(f.name for f in fields(kind))
    whole, *parts = re.split(rf"(?:(?<=\.)|^) ?\b({names})(?:=\w+)?: ", text)
    told = {
        name: re.sub(r" ValueError.*", "", part).strip().rstrip(".")
        for name, part in zip(parts[::2], parts[1::2], strict=True)
    }
    return whole.strip(), told


def _defaults(name: str) -> str:
    """What each kind of data takes for `name` if it is left out, e.g. "(digits: 0 1; mixture: 2)"."""
    kinds: dict[str, list[str]] = {}
    for kind, make in _DATA.items():
        if name in (takes := inspect.signature(make).parameters):
            value = takes[name].default
            shown = {inspect.Parameter.empty: "required", None: "automatic"}.get(value, value)
            shown = " ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)
            kinds.setdefault(shown, []).append(kind)
    return "(" + "; ".join(f"{', '.join(which)}: {value}" for value, which in kinds.items()) + ")"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
