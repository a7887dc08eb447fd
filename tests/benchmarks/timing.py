"""Timing of peers within one run: repetitions take turns, so that a busy machine slows all of them alike."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass
class Timing:
    """Seconds of every repetition of one peer: of the processor (all threads of this process) and of the clock on the wall."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    result: Any = None

    def summary(self) -> dict[str, Any]:
        """min, median and max of both clocks, JSON-able"""
        return {
            clock: {"min": min(seconds), "median": median(seconds), "max": max(seconds)}
            for clock, seconds in (("processor", self.processor), ("wall", self.wall))
        } | {"repetitions": len(self.wall)}


def interleaved(
    peers: Mapping[str, Callable[[], Any]], repetitions: int = 3, warm_up: bool = True
) -> dict[str, Timing]:
    """Run the peers in turn, `repetitions` rounds, after one round that is not counted (warm_up); each keeps its last result."""
    timings = {name: Timing() for name in peers}
    for turn in range(repetitions + warm_up):
        for name, peer in peers.items():
            _settle()
            processor, wall = time.process_time(), time.perf_counter()
            timings[name].result = peer()
            _settle()
            if turn >= warm_up:
                timings[name].processor.append(time.process_time() - processor)
                timings[name].wall.append(time.perf_counter() - wall)
    return timings


def ratio(slow: Timing, fast: Timing, clock: str = "processor", better: str = "higher") -> dict[str, Any]:
    """How many times longer `slow` took than `fast` in the same round, as `over_rounds` has it; ours is `fast` where higher is better"""
    return over_rounds(rounds(slow, fast, clock), better)


def rounds(slow: Timing, fast: Timing, clock: str = "processor") -> list[float]:
    """The ratio of each round"""
    return [a / b for a, b in zip(getattr(slow, clock), getattr(fast, clock), strict=True)]


def over_rounds(ratios: Sequence[float], better: str = "higher") -> dict[str, Any]:
    """min, median and max of a ratio; better ("higher" or "lower") marks it as one that the regression check compares"""
    if better not in ("higher", "lower"):
        raise ValueError(f"better must be 'higher' or 'lower': received {better!r}")
    return {"min": min(ratios), "median": median(ratios), "max": max(ratios), "better": better}


def spread(values: Mapping[str, Any], digits: int = 3) -> str:
    """median [min, max] in words"""
    return f"{values['median']:.{digits}g} [{values['min']:.{digits}g}, {values['max']:.{digits}g}]"


def alone(code: str, first: str = "") -> dict[str, Any]:
    """Run Python code in a process of its own, so that its peak memory is its own; the code leaves a JSON-able dictionary `out`.

    Added to it: peak_gb (resident, whole process) and before_gb (after `import torch, meanfield, solvers` and what comes first).
    """
    before = (
        "import json, time, torch\nimport meanfield as mf\nimport solvers\nfrom tests.memory import forget_peak, peak\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"{first}\n_before = forget_peak()\n"
    )
    after = "\nout |= dict(peak_gb=peak() / 1e9, before_gb=_before / 1e9)\nprint(json.dumps(out))\n"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", before + code + after], capture_output=True, text=True, cwd=root)
    if run.returncode:
        raise RuntimeError(f"the measured process failed: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
