"""Draws the rooms of both packages and who imports whom: `python docs/import_graph.py [PICTURE]`.

Arrows that can be reached by a longer way are left out. Rooms stand above those that they import.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
PACKAGES = {"meanfield": "#dbe7f3", "solvers": "#f6e3cf"}
Graph = dict[str, set[str]]


def room(module: str) -> str:
    """meanfield.kernels of meanfield.kernels.spectrum"""
    return ".".join(module.split(".")[:2])


def files() -> dict[str, list[Path]]:
    """The files of each room"""
    found: dict[str, list[Path]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).glob("*/*.py")):
            found.setdefault(f"{package}.{path.parent.name}", []).append(path)
    return found


def imports(rooms: dict[str, list[Path]]) -> Graph:
    """The other rooms that each imports, for type checkers or within functions as well"""
    graph: Graph = {}
    for name, paths in rooms.items():
        nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        graph[name] = {room(module) for module in modules} & rooms.keys() - {name}
    return graph


def reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        fresh = graph[ahead.pop()] - seen
        seen |= fresh
        ahead += fresh
    return seen


def nearest(graph: Graph) -> Graph:
    """Without arrows that a longer way replaces"""
    return {
        name: {to for to in ends if not any(to in reached(graph, other) for other in ends - {to})}
        for name, ends in graph.items()
    }


def levels(graph: Graph) -> dict[str, int]:
    """0 for rooms that import none, else one more than the highest that is imported"""

    def level(name: str) -> int:
        return 1 + max((level(to) for to in graph[name]), default=-1)

    return {name: level(name) for name in graph}


def places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Rooms of a level side by side, each near the middle of those that it imports"""
    rows: dict[int, list[str]] = {}
    for name, height in levels(graph).items():
        rows.setdefault(height, []).append(name)
    found: dict[str, tuple[float, float]] = {}
    for height in sorted(rows):

        def middle(name: str) -> float:
            below = [found[to][0] for to in graph[name] if to in found]
            return sum(below) / len(below) if below else 0.0

        row = sorted(rows[height], key=lambda name: (middle(name), name))
        for i, name in enumerate(row):
            found[name] = (2.6 * (i - (len(row) - 1) / 2), 1.5 * height)
    return found


def draw(path: Path) -> None:
    rooms = files()
    graph = imports(rooms)
    shown, where = nearest(graph), places(nearest(graph))
    figure, axes = plt.subplots(figsize=(9.5, 10.5))
    for name, (x, y) in where.items():
        package, short = name.split(".")
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in rooms[name])
        box = FancyBboxPatch(
            (x - 1.05, y - 0.3), 2.1, 0.6, "round,pad=0.04", fc=PACKAGES[package], ec="#444444", zorder=2
        )
        axes.add_patch(box)
        axes.text(x, y + 0.08, short, ha="center", va="center", fontsize=11, zorder=3)
        axes.text(
            x, y - 0.17, f"{len(rooms[name]) - 1} files, {lines} lines", ha="center", va="center", fontsize=7, zorder=3
        )
        for to in shown[name]:
            end = where[to]
            bend = 0.0 if abs(end[0] - x) > 0.1 or y - end[1] < 2 else 0.35
            style = f"arc3,rad={bend}"
            arrow = FancyArrowPatch(
                (x, y - 0.36),
                (end[0], end[1] + 0.36),
                connectionstyle=style,
                arrowstyle="-|>",
                mutation_scale=10,
                color="#777777",
            )
            axes.add_patch(arrow)
    for package, colour in PACKAGES.items():
        axes.plot([], [], "s", ms=12, color=colour, mec="#444444", label=package)
    axes.legend(loc="upper left", frameon=False, fontsize=11)
    axes.autoscale_view()
    axes.set_axis_off()
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "rooms.png")
