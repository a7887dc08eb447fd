"""The command `meanfield`."""

from __future__ import annotations

import io
import os
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_type_hints

import torch
import tyro

from meanfield.checking.own_numerics import on_threads
from meanfield.files import storage
from solvers.command_line import asking, overview, taking, words
from solvers.command_line import examples as example_commands
from solvers.command_line import fluctuations as fluctuation_commands
from solvers.command_line import kernels as kernel_commands
from solvers.command_line import limits as limit_commands
from solvers.command_line import results as result_commands
from solvers.command_line import runs as run_commands
from solvers.command_line import showing as showing_commands
from solvers.command_line import studies as study_commands
from solvers.command_line.flags import REGISTRY, BadValue
from solvers.running.failures import SolverError
from solvers.running.keeping import made

_ROOMS = (
    limit_commands,
    run_commands,
    kernel_commands,
    study_commands,
    fluctuation_commands,
    result_commands,
    showing_commands,
    example_commands,
)
COMMANDS: dict[type, Callable[[Any], int]] = reduce(or_, (room.COMMANDS for room in _ROOMS))
BROKEN_PIPE = 141  # as of a program that a pipe has stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, which `--help` explains."""
    for stream in (s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)):
        stream.reconfigure(errors="replace")  # a terminal without "±" shows "?"
    given = list(sys.argv[1:] if arguments is None else arguments)
    kind: list[type] = []  # of the command, once it is known
    try:
        with _warnings_in_one_line():
            status = _run(given, kind)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if isinstance(sys.stdout, io.TextIOWrapper):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return BROKEN_PIPE
    except (BadValue, ValueError, MemoryError) as error:
        return _failed(2, str(error), kind, given)
    except (SolverError, OSError) as error:
        own = str(error) if isinstance(error, SolverError) else f"{type(error).__name__}: {error}"
        return _failed(1, own, kind, given)
    except KeyboardInterrupt as error:
        return _failed(130, str(error) or "interrupted; nothing was computed that could be kept", kind, given)
    except Exception as error:
        if os.environ.get("MEANFIELD_TRACEBACK"):
            raise
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{at.filename}:{at.lineno}; MEANFIELD_TRACEBACK=1 shows the way there"
        return _failed(1, f"unexpected {type(error).__name__}: {error} ({where})", kind, given)


def _run(given: list[str], kind: list[type]) -> int:
    if not given:
        print(overview.text(COMMANDS))
        return 0
    if given[0] == "completion":
        return _completion(given[1:])
    if given == ["--version"]:
        print(
            f"meanfield {storage.version('meanfield')} (torch {torch.__version__}, Python {platform.python_version()})"
        )
        return 0
    commands = {c.__name__.lower(): c for c in COMMANDS}
    every = asking.varied(asking.configured(asking.imported(given), commands))
    every = [one._replace(words=taking.files_first(one.words, commands)) for one in every]
    parsed = [_parsed(one.words) for one in every]  # all, before the first of them works
    kind.append(type(parsed[0]))
    with nullcontext() if every[0].folder is None else made(every[0].folder):
        return max(_done(one, asked, len(every) == 1, kind, given) for one, asked in zip(every, parsed, strict=True))


def _done(one: asking.Asked, asked: Any, alone: bool, kind: list[type], given: list[str]) -> int:
    """One of the commands; returns its status"""
    if one.named:
        print(f"\n{one.named}", flush=True)
    noted = storage.COMMAND.set(shlex.join(one.words))
    try:
        with on_threads(getattr(asked, "threads", None)):
            return COMMANDS[type(asked)](asked) or 0
    except SolverError as error:
        if alone:
            raise
        return _failed(1, str(error), kind, given)  # the others may do better
    finally:
        storage.COMMAND.reset(noted)


def _parsed(arguments: Sequence[str]) -> Any:
    """What is asked, as a value of a command's dataclass"""
    told = {c: " ".join((c.__doc__ or "").split()) for c in COMMANDS}
    named = [Annotated[c, tyro.conf.subcommand(c.__name__.lower(), description=told[c])] for c in COMMANDS]
    with REGISTRY:
        return tyro.cli(reduce(or_, named), prog="meanfield", description=overview.ABOUT, args=arguments)  # type: ignore[arg-type]


def _completion(shells: list[str]) -> int:
    """Print what a shell needs to complete commands and flags"""
    if len(shells) != 1 or shells[0] not in ("bash", "zsh", "tcsh"):
        raise ValueError(f"completion needs a shell, bash, zsh or tcsh: received {' '.join(shells) or 'none'}")
    with suppress(SystemExit):
        _parsed(["--tyro-print-completion", shells[0]])
    return 0


def _failed(code: int, message: str, kind: Sequence[type], given: Sequence[str]) -> int:
    asked = next((c for c in (*kind, *COMMANDS) if kind or c.__name__.lower() in given[:1]), None)
    flags = words.flags_of(asked) if asked else {}
    solving = {c: get_type_hints(c).get("solver") for c in limit_commands.COMMANDS | run_commands.COMMANDS}
    commands = {solver.__name__: c.__name__.lower() for c, solver in solving.items() if solver is not None}
    print(f"meanfield: {words.in_shell(message, flags, commands)}", file=sys.stderr)
    return code


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    usual: Any = warnings.formatwarning
    warnings.formatwarning = lambda message, *where, **more: f"meanfield: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


if __name__ == "__main__":
    sys.exit(main())
