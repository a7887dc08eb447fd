"""What `meanfield` alone prints: its commands by what they are for."""

from __future__ import annotations

from collections.abc import Iterable

ABOUT = (
    "Infinite-width neural networks, and how far finite ones are from them. Exit status: 0 done; 1 a solver or a file failed; "
    "2 bad input; 3 done, but kept elsewhere than in --out, which could not be written; 130 interrupted; 141 the reader of a pipe left. "
    "Beside the flags of a command: --vary SETTING VALUE .. runs it once for each value, --config FILE.toml reads flags from a file, "
    "--import NAME loads a module of yours that registers activations or losses."
)

TASKS = {
    "Solve the limit of infinite width": ("flow", "dmft", "lazy", "logits", "fixedpoint"),
    "Train networks of finite width": ("net", "sweep", "revealed"),
    "Measure how far they are from the limit": ("compare", "fluctuations", "width"),
    "Kernels and lazy networks in closed form": ("nngp", "spectrum", "predict"),
    "Answer a question with many runs": ("powers", "proxy", "coordinates", "rates"),
    "See what it does": ("demo", "examples"),
    "Look at what is kept, and go on": ("show", "plot", "report", "certify", "resume"),
}

_MORE = """\
More
  meanfield COMMAND --help                            the flags of a command; all have defaults but --out
  meanfield COMMAND .. --dry-run                      the time and memory that it would take
  meanfield COMMAND .. --vary gamma0 0.1 1 --out DIR  once for each value, a file each
  meanfield COMMAND .. --config run.toml              flags from a file; meanfield show FILE --toml writes one
  meanfield rerun FILE --out OTHER                    the command that made a file, again, with other flags if you like
  meanfield completion bash                           what a shell needs to complete commands and flags (bash, zsh, tcsh)
  meanfield --version"""


def text(commands: Iterable[type]) -> str:
    """The commands by task, each with the first sentence of its help"""
    told = {c.__name__.lower(): " ".join((c.__doc__ or "").split()).split(". ")[0].rstrip(".") for c in commands}
    lines = ["meanfield: infinite-width neural networks, and how far finite ones are from them", ""]
    for task, names in TASKS.items():
        lines += [task, *(f"  {name:13} {told[name]}" for name in names), ""]
    return "\n".join([*lines, _MORE])
