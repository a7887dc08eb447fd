"""The command `meanfield`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from meanfield.checking.own_numerics import on_threads
from solvers.command_line import fluctuations as fluctuation_commands
from solvers.command_line import limits as limit_commands
from solvers.command_line import results as result_commands
from solvers.command_line import runs as run_commands
from solvers.command_line import studies as study_commands
from solvers.command_line.flags import REGISTRY, BadValue
from solvers.running.failures import SolverError

_ROOMS = (limit_commands, run_commands, study_commands, fluctuation_commands, result_commands)
COMMANDS: dict[type, Callable[[Any], int]] = reduce(or_, (room.COMMANDS for room in _ROOMS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, which `--help` explains."""
    for stream in (s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)):
        stream.reconfigure(errors="replace")  # a terminal without "±" shows "?"
    told = {c: " ".join((c.__doc__ or "").split()) for c in COMMANDS}
    named = [Annotated[c, tyro.conf.subcommand(c.__name__.lower(), description=told[c])] for c in COMMANDS]
    about = "Infinite-width neural networks, and how far finite ones are from them. Exit status: 0 done; 1 a solver or a file failed; "
    about += "2 bad input; 3 done, but kept elsewhere than in --out, which could not be written; 130 interrupted."
    try:
        with REGISTRY:
            asked = tyro.cli(reduce(or_, named), prog="meanfield", description=about, args=arguments)  # type: ignore[arg-type]
        with on_threads(getattr(asked, "threads", None)):
            return COMMANDS[type(asked)](asked) or 0
    except (BadValue, ValueError, MemoryError) as error:
        return _failed(2, str(error))
    except (SolverError, OSError) as error:
        return _failed(1, str(error) if isinstance(error, SolverError) else f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as error:
        return _failed(130, str(error) or "interrupted; nothing was computed that could be kept")


def _failed(code: int, message: str) -> int:
    print(f"meanfield: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
