"""Solutions in one picture: those of one problem together, named and coloured by what differs between the problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.colors import to_rgb

from meanfield.plot.frame import BLUE, LIMIT, ORANGE, colours
from meanfield.problem.problem import Problem
from meanfield.problem.summary import apart
from meanfield.solution.solution import Solution

Labels = str | Sequence[str] | None

PALETTE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4B00")  # Okabe and Ito, and a brown
_SYMBOLS = {
    "gamma0": r"$\gamma_0$",
    "learning_rate": r"$\eta$",
    "depth": "$L$",
    "samples": "$P$",
    "temperature": r"$\tau$",
}
_BARE = ("data", "network", "activation", "scaling", "loss", "optimiser")  # names that say what they are


@dataclass
class Family:
    """The solutions of one problem, with their name and the colour of all of them; one without a colour alone: widths from light to dark"""

    problem: Problem
    label: str = ""
    colour: Any = None
    nets: dict[int, list[Solution]] = field(default_factory=dict)
    limits: list[Solution] = field(default_factory=list)

    def who(self, solution: Solution) -> str:
        """A solution in words"""
        own = _solver(solution, self.limits) if solution.width is None else f"N = {solution.width}"
        if solution.width is None and self.label and not self.nets:
            own = own.removeprefix("limit").removeprefix(", ")
        return ", ".join(filter(None, (self.label, own)))

    def look(self, solution: Solution) -> dict[str, Any]:
        """How its line is drawn"""
        if solution.width is None:
            return LIMIT if self.colour is None else LIMIT | {"color": self.colour}
        if self.colour is None:
            return {
                "color": dict(zip(self.nets, colours(len(self.nets)), strict=True))[solution.width],
                "linewidth": 1.2,
            }
        place = [*self.nets].index(solution.width)
        white = 0.65 - 0.4 * place / max(1, len(self.nets) - 1)
        return {
            "color": tuple(white + (1 - white) * c for c in to_rgb(self.colour)),
            "linewidth": 1.1,
            "linestyle": "--",
        }

    def members(self) -> list[list[Solution]]:
        """Networks by width, then limits, each kind of solver for itself"""
        by_solver: dict[str, list[Solution]] = {}
        for limit in self.limits:
            by_solver.setdefault(self.who(limit), []).append(limit)
        return [*self.nets.values(), *by_solver.values()]


def families(
    nets: Sequence[Solution], limits: Sequence[Solution], label: Labels = None, first: int = 0
) -> list[Family]:
    """By their problems, in order; label: of the problem, or of each. first: number of the first colour, where lines are drawn already."""
    everyone = [*nets, *limits]
    if not everyone:
        raise ValueError("nothing to draw: give at least one Solution")
    found: list[Family] = []
    for solution in everyone:
        home = next((f for f in found if f.problem is solution.problem or f.problem == solution.problem), None)
        if home is None:
            found.append(home := Family(solution.problem))
        if solution.width is None:
            home.limits.append(solution)
        else:
            home.nets.setdefault(solution.width, []).append(solution)
    for family, text in zip(found, _labels([f.problem for f in found], label), strict=True):
        family.label, family.nets = text, dict(sorted(family.nets.items()))
    _must_run_alike(found)
    if len(found) > 1 or first:
        shades = [*PALETTE] if first + len(found) <= len(PALETTE) else [*reversed(colours(first + len(found)))]
        for k, family in enumerate(found):
            family.colour = shades[first + k]
    return found


def named(solutions: Sequence[Solution], label: Labels = None) -> list[str]:
    """Each in words"""
    if not solutions:
        return []
    every = families(solutions, (), label)
    homes = {id(s): family for family in every for group in family.members() for s in group}
    return [homes[id(solution)].who(solution) for solution in solutions]


def must_share_samples(every: Sequence[Family]) -> None:
    """ValueError for solutions whose samples of one number are not the same"""
    first = every[0].problem.data
    for family in every[1:]:
        if family.problem.data != first and (family.problem.data.x.shape, family.problem.data.y.shape) != (
            first.x.shape,
            first.y.shape,
        ):
            raise ValueError(
                f"solutions that are shown together must share samples: received {first!r} and {family.problem.data!r}; draw them, "
                "or write their pages, one by one"
            )


def given(label: str | Sequence[str], count: int) -> list[str]:
    """A name for each of several; ValueError for another number of them"""
    found = [label] if isinstance(label, str) else list(label)
    if len(found) != count:
        raise ValueError(
            f"label must name each of what is told apart: received {len(found)} for {count}, in their order; leave it out to have "
            "them named"
        )
    return found


def _labels(problems: Sequence[Problem], label: Labels) -> list[str]:
    if label is None:
        return [""] if len(problems) == 1 else list(map(_told, apart(problems)))
    return given(label, len(problems))


def _told(settings: dict[str, str]) -> str:
    words = [
        text.replace("_", "-") if name in _BARE else f"{_SYMBOLS.get(name, name.replace('_', ' '))} = {text}"
        for name, text in settings.items()
    ]
    return ", ".join(words if len(words) <= 4 else [*words[:3], f".. {len(words) - 3} more"])


def _solver(limit: Solution, limits: Sequence[Solution]) -> str:
    """ "limit", with its solver where others solved the same problem"""
    names = {other.solver.get("name") for other in limits}
    return "limit" if len(names) <= 1 else f"limit, {limit.solver.get('name')}"


def _must_run_alike(every: Sequence[Family]) -> None:
    for family in every:
        for group in family.nets.values():
            if other := next((s for s in group if s.recorded_steps != group[0].recorded_steps), None):
                raise ValueError(
                    f"networks of one width must share their time grid: received {group[0]!r} and {other!r}; draw them one by one"
                )
