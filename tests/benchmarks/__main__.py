"""Measure speed and memory: `python -m tests.benchmarks [name ..]`; no name runs all.

Each benchmark prints a markdown table; with --json the figures go to a file. Ratios are taken within one run, so that a busy
machine slows both sides. --commit makes this run the one in docs/performance.json and docs/performance.md; --check runs what stands
there again, with the same options, and ends with status 1 where a ratio became worse than its spread and a factor of 1.25 explain.
"""

import argparse
import ast
import inspect
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import torch

import tests.benchmarks
from meanfield.checking import checks
from tests.benchmarks import regression
from tests.running import gathered, machine


def main(arguments: Sequence[str] | None = None) -> None:
    benchmarks = gathered(tests.benchmarks, "BENCHMARKS")
    parser = _parser(", ".join(benchmarks))
    asked = parser.parse_args(arguments)
    committed = regression.committed_runs(asked.device)
    names = asked.names or list(committed if asked.check else benchmarks)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; leave it out, or install a CUDA build of torch")
    try:
        chosen = {name: checks.lookup("benchmark", name, benchmarks) for name in names}
        options = _committed_options(names, committed, asked) if asked.check else _options(chosen, asked.set)
        for name in names if asked.commit else ():
            regression.place(regression.page().read_text(), name, asked.device)
    except ValueError as error:
        parser.error(str(error))
    found, as_committed = {"machine": machine(), "device": asked.device, "benchmarks": {}}, True
    print("; ".join(f"{key}: {value}" for key, value in found["machine"].items()))
    for name, function in chosen.items():
        if asked.device == "cuda" and "device" not in inspect.signature(function).parameters:
            print(f"\n## {name}: runs on the CPU only, left out", flush=True)
            continue
        found["benchmarks"][name], entry = measured(name, function, asked.device, options[name])
        if asked.json:  # after each, so that a stop loses nothing
            asked.json.write_text(json.dumps(found, indent=1))
        if asked.commit:
            regression.commit(name, asked.device, entry)
        if asked.check:
            as_committed &= regression.report(name, committed[name], entry)
    if not as_committed:
        sys.exit(1)


def measured(
    name: str, function: Callable[..., Any], device: str, options: Mapping[str, Any]
) -> tuple[Any, regression.Entry]:
    """What the benchmark returns, and what of it is committed"""
    print(f"\n## {name}: {function.__doc__}\n", flush=True)
    start, state, printed = time.perf_counter(), machine(), _Copy(sys.stdout)
    on = {"device": device} if "device" in inspect.signature(function).parameters else {}
    with redirect_stdout(printed):
        result = function(**on, **options)
    seconds = time.perf_counter() - start
    print(f"({seconds:.0f} s)", flush=True)
    text, ratios = "".join(printed.parts), regression.ratios(result)
    entry = {"machine": state, "options": dict(options), "seconds": seconds, "text": text, "ratios": ratios}
    return result, json.loads(json.dumps(entry))


class _Copy(io.TextIOBase):
    """Writes on, and keeps what was written"""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.parts = stream, []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def _parser(names: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of: {names}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="for the benchmarks that take one")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="sizes, as 'particles=20000 dimensions=(2,10)'"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--check", action="store_true", help="compare with docs/performance.json; status 1 if worse")
    way.add_argument("--commit", action="store_true", help="write docs/performance.json and docs/performance.md")
    return parser


def _options(chosen: Mapping[str, Callable[..., Any]], pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By benchmark those of the settings that it takes; ValueError for one that none takes"""
    options: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        takers = [name for name, f in chosen.items() if key != "device" and key in inspect.signature(f).parameters]
        if not (equals and takers):
            raise ValueError(f"--set {pair}: give NAME=VALUE, a parameter of {' or '.join(chosen)}")
        try:
            meant = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            meant = value
        for name in takers:
            options[name][key] = meant
    return options


def _committed_options(
    names: Sequence[str], committed: Mapping[str, regression.Entry], asked: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    if asked.set:
        raise ValueError("--check runs with the options of the committed run: leave out --set")
    if unknown := [name for name in names if name not in committed] or ([] if names else ["any benchmark"]):
        raise ValueError(
            f"docs/performance.json has no figures of {', '.join(unknown)} on {asked.device}: --commit writes them"
        )
    return {name: committed[name]["options"] for name in names}


if __name__ == "__main__":
    main()
