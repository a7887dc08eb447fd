"""residual: one application of the self-consistent map to any DMFT solution with fresh samples, its certificate (equation 32)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from meanfield import checks
from meanfield.arguments import checked
from meanfield.solution import Solution
from solvers.dmft_window import Kernels, Window, distance
from solvers.fixed_point_dmft import FixedPointDMFT


@checked
@dataclass(frozen=True)
class Certificate:
    """How far one application of the map moves a solution's kernels ("Phi1".., "G1".., "f"), relative, and by how much noise would."""

    residuals: Mapping[str, float]
    floors: Mapping[str, float]
    samples: int

    @property
    def consistent(self) -> bool:
        """Whether every residual is below four floors (False for NaN)"""
        return all(self.residuals[name] < 4 * self.floors[name] for name in self.residuals)

    def __str__(self) -> str:
        lines = [f"{'':8}{'residual':>12}{'floor':>12}{'ratio':>8}"]
        for name, found in self.residuals.items():
            floor = self.floors[name]
            lines.append(f"{name:8}{found:12.3g}{floor:12.3g}{found / floor:8.2f}")
        return "\n".join(
            [*lines, "consistent" if self.consistent else "NOT consistent: a residual exceeds four floors"]
        )


@checked
def residual(solution: Solution, samples: int | None = None, seed: int = 1, repeats: int = 4) -> Certificate:
    """Apply the map once, with fresh samples, to the kernels of any solution that kept them at all pairs of steps.

    Phi, G and f are the solution's and stay as they are. Responses are not part of a Solution: they are found for these kernels by
    repeating the map for A and B alone until its other results move by less than 1e-4 (1e-12 for linear networks), 50 times at most.
    The image is the mean over `repeats` independent draws of `samples` neurons (default: the solution's number). Floor: the spread
    of single draws, as the solution's own noise (scaled by 1/sqrt(samples)) and the mean's. Linear networks: 1e-10, for rounding.
    ValueError for a solution without those kernels, or of a problem that FixedPointDMFT does not take.
    """
    training = solution.problem.training
    now = _given(solution)
    own = solution.solver.get("samples") or solution.solver.get("width") or 4096
    count = checks.integer("samples", own if samples is None else samples, 2)
    problem = replace(solution.problem, data=replace(solution.problem.data, x_test=None, y_test=None))
    exact = problem.network.nonlinearity.name == "linear"
    images = []
    for repeat in range(1 if exact else checks.integer("repeats", repeats, 2)):
        solver = FixedPointDMFT(count, seed=1000 * checks.integer("seed", seed, 0) + repeat + 500, snapshots=())
        solver.check(problem)
        images.append(_answer(Window(problem, solver, training.steps), now, 1e-12 if exact else 1e-4))
    residuals, floors = {}, {}
    for name, q in now.items():
        stack, size = torch.stack([image[name] for image in images]), float(q.norm())
        residuals[name] = float((stack.mean(0) - q).norm()) / size
        spread = 0.0 if exact else float((stack - stack.mean(0)).square().sum() / (len(stack) - 1)) ** 0.5 / size
        floors[name] = 1e-10 if exact else spread * math.sqrt(1 / len(stack) + count / own)
    return Certificate(residuals, floors, count)


def _given(solution: Solution) -> Kernels:
    """Joint kernels and f of a solution; ValueError if it did not keep them at all steps."""
    depth, steps = solution.problem.network.depth, tuple(range(solution.problem.training.steps + 1))
    names = [f"{kind}{l}" for kind in ("Phi", "G") for l in range(1, depth + 1)]
    short = [name for name in names if name not in solution.kernels or solution.kernels[name].steps != steps]
    if short or solution.steps != steps[-1]:
        raise ValueError(
            f"the certificate needs the kernels at all steps 0..{steps[-1]}, which are missing for {', '.join(short) or 'f'}: "
            "solve with CausalDMFT(two_time=True), and to the end"
        )
    joint = {name: solution.kernels[name].factor.double().transpose(0, 1).flatten(1) for name in names}
    return {name: c.T @ c for name, c in joint.items()} | {"f": solution.f.double()}


def _answer(window: Window, now: Kernels, limit: float) -> Kernels:
    """The image of the kernels `now`, with the responses that belong to them"""
    responses = {name: q for name, q in window.zeros().items() if name[0] in "AB"}
    image = window.image(now | responses)
    for _ in range(50):
        responses = {name: image[name] for name in responses}
        before, image = image, window.image(now | responses)
        if max(distance(image[name], before[name]) for name in now) < limit:
            break
    return image
