"""Draws the rooms of both packages and who imports whom: `python docs/import_graph.py [PICTURE]`.

Arrows that can be reached by a longer way are left out. Rooms stand above those that they import.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
PACKAGES = {"meanfield": "#dbe7f3", "solvers": "#f6e3cf"}
WIDTH, STEP = 2.6, 1.5  # of a room, and half of the way to the next
Graph = dict[str, set[str]]
Places = dict[str, tuple[float, float]]


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


def purpose(paths: list[Path]) -> str:
    """The room's, as its `__init__.py` begins"""
    init = next(path for path in paths if path.name == "__init__.py")
    return re.split("[:,(]", ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "")[0].replace("`", "")


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


def hidden(where: Places, name: str, to: str) -> int:
    """How many rooms the arrow runs through"""
    (x, y), (u, v) = where[name], where[to]
    others = [place for other, place in where.items() if other not in (name, to)]
    crossed = (x + (u - x) * (b - y) / (v - y) - a for a, b in others if v < b < y)
    return sum(abs(apart) < WIDTH / 2 + 0.4 for apart in crossed)


def places(graph: Graph) -> Places:
    """Rooms of a level side by side, moved by half a width as long as arrows get shorter or run through fewer rooms"""
    height, found = levels(graph), {}
    for level in set(height.values()):
        row = sorted(name for name in graph if height[name] == level)
        found |= {name: (STEP * (2 * i - len(row) + 1), 1.5 * level) for i, name in enumerate(row)}

    def cost(where: Places) -> float:
        arrows = [(name, to) for name in graph for to in sorted(graph[name])]
        return sum(abs(where[a][0] - where[b][0]) + 50 * hidden(where, a, b) for a, b in arrows)

    def moves(name: str) -> Iterator[Places]:
        y = found[name][1]
        for x in (STEP * i for i in range(-4, 5)):
            near = [
                other
                for other in found
                if other != name and found[other][1] == y and abs(found[other][0] - x) < 2 * STEP
            ]
            if not near:
                yield found | {name: (x, y)}
            elif len(near) == 1:  # they change places
                yield found | {name: found[near[0]], near[0]: found[name]}

    for name in sorted(graph) * 10:
        found = min((found, *moves(name)), key=cost)
    return found


def draw(path: Path) -> None:
    rooms = files()
    shown = nearest(imports(rooms))
    where = places(shown)
    figure, axes = plt.subplots(figsize=(10.5, 9.5))
    for name, (x, y) in where.items():
        package, short = name.split(".")
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - 0.35), WIDTH, 0.7, "round,pad=0.04", fc=PACKAGES[package], ec="#444444"
        )
        axes.add_patch(box)
        axes.text(x, y + 0.13, short, ha="center", va="center", fontsize=11)
        axes.text(x, y - 0.2, purpose(rooms[name]), ha="center", va="center", fontsize=7)
        for to in sorted(shown[name]):
            ends = (x, y - 0.39), (where[to][0], where[to][1] + 0.39)
            style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": "#777777", "shrinkA": 0, "shrinkB": 0}
            axes.add_patch(FancyArrowPatch(*ends, zorder=0, **style))
    for package, colour in PACKAGES.items():
        axes.plot([], [], "s", ms=12, color=colour, mec="#444444", label=package)
    axes.legend(loc="lower left", frameon=False, fontsize=11)
    axes.autoscale_view()
    axes.set_axis_off()
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "rooms.png")
