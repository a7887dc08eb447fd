"""What the measurements of one card share: their sizes, clocks and rows."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Card:
    """A device to measure, and whether with the sizes of a GPU or with tiny ones, which only show that all of it runs."""

    device: str
    tiny: bool

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], Any], least: float = 0.25, most: int = 50) -> dict[str, float]:
        """min, median and max of repeated calls on the wall's clock, after one that is not counted; at least three, in about `least` s"""
        call()
        self.synchronise()
        found: list[float] = []
        while len(found) < 3 or (sum(found) < least and len(found) < most):
            start = time.perf_counter()
            call()
            self.synchronise()
            found.append(time.perf_counter() - start)
        return {"min": min(found), "median": median(found), "max": max(found), "repetitions": len(found)}

    def holds(self, size: float) -> bool:
        """Whether so many bytes are free on the card, with a tenth to spare; a CPU's memory is not asked"""
        return not self.device.startswith("cuda") or 1.1 * size < torch.cuda.mem_get_info(self.device)[0]

    def peak(self, call: Callable[[], Any]) -> tuple[Any, float | None]:
        """The result, and the most memory on the card meanwhile in GB; None for a CPU"""
        if not self.device.startswith("cuda"):
            return call(), None
        torch.cuda.reset_peak_memory_stats(self.device)
        result = call()
        return result, torch.cuda.max_memory_allocated(self.device) / 1e9


def row(**values: Any) -> None:
    """One finding, as a line that the parent process reads; it is out at once, so that a stop loses nothing."""
    print(MARK + json.dumps(values), flush=True)


MARK = "row: "


def cell(value: Any) -> str:
    """A value of a row in a table"""
    if isinstance(value, Mapping):
        return f"{scaled(value['median'])} [{scaled(value['min'])}, {scaled(value['max'])}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def scaled(seconds: float) -> str:
    unit, factor = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * factor:.3g} {unit}"
