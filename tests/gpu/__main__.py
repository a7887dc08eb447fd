"""All that a GPU must show, in at most six minutes: `make gpu`, or `python -m tests.gpu [--out FOLDER] [--device cpu|cuda]`.

Runs the tests marked `cuda`, then measures the sums of two-layer networks, many particles, a deep sweep and networks beside what the
card can do. Each part is a process of its own with a limit of time, so that one that hangs or crashes costs the others nothing.
Needs torch, numpy, scipy, matplotlib and tqdm; what else is missing is named, and the checks that need it are left out. Without a GPU
all of it runs with tiny sizes, which measures nothing and shows that it works.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from tests.gpu import runs, sums
from tests.gpu.card import MARK, Card, cell, row
from tests.running import machine

OPTIONAL = ("pytest", "pykeops", "h5netcdf", "h5py", "sklearn", "ot", "tyro", "xarray", "distributed")


def _present(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def cuda_tests(card: Card) -> None:
    """tests marked cuda, of the files that can be imported here"""
    here = Path(__file__).parents[1]
    files = sorted(p for p in here.glob("test_*.py") if "mark.cuda" in p.read_text())
    if not _present("pytest"):
        row(left_out="pytest is missing", files=[p.name for p in files])
        return
    marked = "cuda" if not card.tiny else "cuda and not cuda"  # collects them only
    report = Path("out-of-pytest.xml")
    workers = (
        ["-n", "6", "-p", "no:benchmark"] if _present("xdist") else []
    )  # most of a test is Python that waits for no one
    options = ["-q", "--tb=short", *workers, "-p", "no:cacheprovider", "-m", marked, f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    shown = subprocess.run(command, cwd=here.parent, capture_output=True, text=True)
    found = _outcomes(here.parent / report) if (here.parent / report).exists() else {}
    (here.parent / report).unlink(missing_ok=True)
    row(files=[p.name for p in files], exit_status=shown.returncode, **found)
    if shown.returncode not in (0, 5):  # 5: none was chosen
        print(shown.stdout[-5000:], shown.stderr[:3000], file=sys.stderr)


def _outcomes(report: Path) -> dict[str, Any]:
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    by = {key: [c.get("name") for c in cases if c.find(key) is not None] for key in ("failure", "error", "skipped")}
    passed = len(cases) - sum(map(len, by.values()))
    return {"passed": passed, "failed": by["failure"] + by["error"], "skipped": by["skipped"]}


PARTS: dict[str, tuple[Any, int]] = {  # the function, seconds at most
    "ceilings": (sums.ceilings, 40),
    "cuda_tests": (cuda_tests, 200),
    "engines": (sums.engines, 75),
    "particles": (runs.particles, 60),
    "deep": (runs.deep, 150),
    "tile_sizes": (sums.tile_sizes, 30),
    "choice": (sums.choice, 45),
    "parts": (sums.parts, 45),
    "networks": (runs.networks, 45),
    "modules": (runs.modules, 110),
    "keops_wide": (sums.keops_wide, 40),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every part came to its end and no test failed, else 1"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    present = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}; none takes all")
    parser.add_argument("--device", default=present, choices=("cpu", "cuda"), help="cpu: tiny sizes")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for the figures, gpu.json")
    parser.add_argument("--minutes", type=float, default=6.0, help="of all parts together, at most")
    parser.add_argument("--alone", action="store_true", help="run the one part named in this process")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"unknown part: received {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    card = Card(asked.device, tiny=asked.device == "cpu")
    if asked.alone:
        for name in asked.parts:
            PARTS[name][0](card)
        return 0
    return _all(asked.parts or list(PARTS), card, asked.out, 60 * asked.minutes)


def _all(names: Sequence[str], card: Card, out: Path, seconds: float) -> int:
    out.mkdir(parents=True, exist_ok=True)
    missing = [name for name in OPTIONAL if not _present(name)]
    found: dict[str, Any] = {
        "machine": machine(),
        "device": card.device,
        "tiny": card.tiny,
        "missing": missing,
        "parts": {},
    }
    deadline = time.monotonic() + seconds
    for name in names:
        left = deadline - time.monotonic()
        part = _part(name, card, min(PARTS[name][1], left)) if left > 5 else {"ended": "no time was left", "rows": []}
        found["parts"][name] = part
        print(f"{name}: {part['ended']}", file=sys.stderr, flush=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=1))  # after each, so that a stop loses nothing
    text = report(found)
    (out / "gpu.md").write_text(text)
    print(text)
    whole = all(part["ended"].startswith("finished") for part in found["parts"].values())
    failed = any(r.get("failed") for part in found["parts"].values() for r in part["rows"])
    return 0 if whole and not failed else 1


def _part(name: str, card: Card, limit: float) -> dict[str, Any]:
    """How the part ended, and its rows, those before a stop included"""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.gpu", name, "--alone", "--device", card.device]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=Path(__file__).parents[2])
        text, errors = done.stdout, done.stderr
        ended = "finished" if done.returncode == 0 else f"failed with status {done.returncode}"
    except subprocess.TimeoutExpired as stopped:
        text, errors = (t.decode(errors="replace") if t else "" for t in (stopped.stdout, stopped.stderr))
        ended = f"stopped at its limit of {limit:.0f} s"
    rows = [json.loads(line.removeprefix(MARK)) for line in text.splitlines() if line.startswith(MARK)]
    part = {"ended": f"{ended} after {time.monotonic() - start:.0f} s", "rows": rows}
    return part if ended == "finished" and not errors else part | {"errors": errors[:8000]}


def report(found: Mapping[str, Any]) -> str:
    """The table of all parts: every figure of a rate beside its share of what the card did in a large product or copy"""
    lines = ["; ".join(f"{key}: {value}" for key, value in found["machine"].items())]
    lines += [f"missing here, and what needs it left out: {', '.join(found['missing']) or 'nothing'}"]
    lines += ["tiny sizes on a CPU: these figures measure nothing"] if found["tiny"] else []
    rates = {r["what"]: r["per_second"] for r in found["parts"].get("ceilings", {}).get("rows", ())}
    for name, part in found["parts"].items():
        lines += ["", f"## {name}: {part['ended']}", PARTS[name][0].__doc__ or "", ""]
        rows = [_with_shares(r, rates) for r in part["rows"]]
        columns = list(dict.fromkeys(key for r in rows for key in r))
        if rows:
            lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(cell(r[c]) if r.get(c) is not None else "-" for c in columns) + " |" for r in rows]
        if errors := part.get("errors"):
            lines += ["", "errors:", re.sub(r"^", "    ", errors.strip(), flags=re.M)]
    return "\n".join(lines) + "\n"


def _with_shares(r: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
    """The row, with the least time that its operations take beside its time"""
    rate = rates.get(f"product {r.get('dtype', 'float32')}")
    seconds = r["seconds"]["median"] if isinstance(r.get("seconds"), Mapping) else r.get("loop_s")
    if "operations" not in r or rate is None or not seconds:
        return dict(r)
    return {**r, "times_its_products": seconds / (r["operations"] / rate)}


if __name__ == "__main__":
    sys.exit(main())
