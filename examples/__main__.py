"""Run all examples, or the named ones, each into a folder of its own."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import tyro

from . import names


def main(which: tyro.conf.Positional[tuple[str, ...]] = (), out: Path | None = None, quick: bool = False) -> None:
    """Run examples: all, or those named. Pictures go to a folder of each one's name in `out`; quick takes seconds for each."""
    unknown = set(which) - set(names())
    if unknown:
        raise SystemExit(f"unknown example: {', '.join(sorted(unknown))}; known: {', '.join(names())}")
    for name in which or names():
        module, start = importlib.import_module(f"{__package__}.{name}"), time.perf_counter()
        print(f"\n=== {name}: {(module.__doc__ or '').splitlines()[0]}")
        module.main(out / name if out else None, quick)
        print(f"({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    tyro.cli(main)
