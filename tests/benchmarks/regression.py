"""The figures of the last committed run, docs/performance.json: comparing a new run's ratios with them, writing their tables to the page.

An entry is {"machine", "options", "seconds", "text", "ratios"} of one benchmark on one device; text is the table that it printed, which
docs/performance.md repeats between marks. Ratios are those made by timing.over_rounds, named by where they stand in the result.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.timing import spread

FACTOR = 1.25  # a smaller change of a median is none
DOCS = Path(__file__).parents[2] / "docs"

Entry = dict[str, Any]
Ratios = dict[str, dict[str, Any]]


def ratios(result: Any, name: str = "") -> Ratios:
    """Of all dictionaries within a benchmark's result those that timing.over_rounds made, by their path"""
    if not isinstance(result, Mapping):
        return {}
    if "better" in result:
        return {name: dict(result)}
    return {path: r for key, value in result.items() for path, r in ratios(value, f"{name}, {key}".strip(", ")).items()}


def moved(committed: Ratios, new: Ratios, factor: float = FACTOR) -> Iterator[tuple[str, str]]:
    """(name, "worse" | "better" | "missing" | "new") of the ratios that are not what they were.

    Worse: the median by more than the factor, and every round of the new run worse than every round of the committed one. Better alike.
    """
    for name in committed | new:
        if name not in new:
            yield name, "missing"
        elif name not in committed:
            yield name, "new"
        elif _below(new[name], committed[name], factor):
            yield name, "worse" if committed[name]["better"] == "higher" else "better"
        elif _below(committed[name], new[name], factor):
            yield name, "better" if committed[name]["better"] == "higher" else "worse"


def _below(one: Mapping[str, Any], other: Mapping[str, Any], factor: float) -> bool:
    return one["max"] < other["min"] and one["median"] * factor < other["median"]


def report(benchmark: str, committed: Entry, new: Entry) -> bool:
    """Prints a table of what moved; whether nothing is worse or missing"""
    before, after = committed["ratios"], new["ratios"]
    changes = list(moved(before, after))
    bad = sum(what in ("worse", "missing") for _, what in changes)
    kept = len(before.keys() & after.keys()) - sum(what in ("worse", "better") for _, what in changes)
    print(f"{benchmark}: {kept} of {len(before)} ratios as committed, {bad} worse or missing", flush=True)
    if changes:
        print("\n| ratio | committed | now | |\n|---|---|---|---|")
    for name, what in changes:
        cells = [spread(r[name]) if name in r else "-" for r in (before, after)]
        print(f"| {name} | {' | '.join(cells)} | {what} |", flush=True)
    return not bad


def figures() -> Path:
    """Where committed entries stand, by device and benchmark"""
    return DOCS / "performance.json"


def page() -> Path:
    """Where their tables stand"""
    return DOCS / "performance.md"


def committed_runs(device: str) -> dict[str, Entry]:
    """Entries by benchmark; none where nothing was committed"""
    return json.loads(figures().read_text()).get(device, {}) if figures().exists() else {}


def commit(benchmark: str, device: str, entry: Entry) -> None:
    """Write the entry to performance.json and its table to performance.md. ValueError where that page has no place for it."""
    text = page().read_text()
    start, stop = place(text, benchmark, device)
    everything = json.loads(figures().read_text()) if figures().exists() else {}
    everything.setdefault(device, {})[benchmark] = entry
    figures().write_text(json.dumps(everything, indent=1) + "\n")
    page().write_text(text[:start] + table(benchmark, device, entry) + text[stop:])


def place(text: str, benchmark: str, device: str) -> tuple[int, int]:
    """Where in the page the table begins and ends; ValueError where its marks are not there once"""
    begin, end = f"<!-- {device} {benchmark} -->\n", "<!-- end -->"
    if text.count(begin) != 1 or end not in text.split(begin)[1].split("\n<!-- c")[0]:
        raise ValueError(f"{page().name} has no place for {benchmark}: give it the lines {begin}{end}, once")
    start = text.index(begin) + len(begin)
    return start, text.index(end, start)


def table(benchmark: str, device: str, entry: Entry) -> str:
    """The command, the machine, and what was printed"""
    options = " ".join(
        f'"{key}={value}"' if " " in str(value) else f"{key}={value}" for key, value in entry["options"].items()
    )
    command = f"python -m tests.benchmarks {benchmark}" + (f" --device {device}" if device != "cpu" else "")
    command += f" --set {options}" if options else ""
    machine = "; ".join(f"{key}: {value}" for key, value in entry["machine"].items())
    return f"`{command}`, {entry['seconds']:.0f} s; {machine}.\n\n{entry['text'].strip()}\n\n"
