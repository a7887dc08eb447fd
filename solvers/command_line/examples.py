"""Commands that run the examples of the gallery, and the first of them as a demo."""

from __future__ import annotations

import ast
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solvers.running.keeping import DONE

BESIDE = Path(__file__).parents[2]
FOLDER = next(
    folder for folder in (BESIDE / "meanfield_examples", BESIDE / "examples") if folder.is_dir()
)  # of a wheel, of a checkout


@dataclass(frozen=True)
class Examples:
    """List the examples of the gallery, or run those that are named; each draws pictures and prints what it found."""

    which: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """Names of examples; none lists them"""
    out: Path = Path("out")
    """Folder, in which each has one of its own"""
    quick: bool = False
    """Few and narrow networks, a matter of seconds"""


@dataclass(frozen=True)
class Demo:
    """Networks approach their limit: digits, six widths, tables and pictures, in less than a minute."""

    out: Path = Path("out")
    """Folder of the pictures"""
    quick: bool = False
    """Few and narrow networks, a matter of seconds"""


def _examples(asked: Examples) -> int:
    known = _known()
    for name in asked.which:
        if name not in known:
            raise ValueError(f"unknown example: received {name!r}; known: {', '.join(known)}")
    if not asked.which:
        print("\n".join(f"{name:28} {told}" for name, told in known.items()))
    for name in asked.which:
        _run(name, asked.out / name, asked.quick)
    return DONE


def _demo(asked: Demo) -> int:
    _run("demo", asked.out, asked.quick)
    return DONE


def _known() -> dict[str, str]:
    """{name: what it shows}"""
    files = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name: text.splitlines()[0] if text else "" for name, text in docs.items()}


def _run(name: str, out: Path, quick: bool) -> None:
    if str(FOLDER.parent) not in sys.path:
        sys.path.insert(0, str(FOLDER.parent))
    start = time.perf_counter()
    importlib.import_module(f"{FOLDER.name}.{name}").main(out, quick)
    print(f"({time.perf_counter() - start:.1f} s, in {out})")


COMMANDS: dict[type, Callable[[Any], int]] = {Examples: _examples, Demo: _demo}
