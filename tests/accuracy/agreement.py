"""Whether means of independent runs agree: z-scores of vectors, whose components move together, from the runs' own spread."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from meanfield.comparison.observables import observe
from meanfield.solution.solution import Solution


@dataclass(frozen=True)
class Group:
    """Runs of one kind: values (E, M), their mean enters the estimate with `coefficient`, their covariance is pooled by `scale`.

    Groups of one `kind` have covariance C / scale with the same C (networks: scale = width).
    """

    values: Tensor
    coefficient: float
    kind: str
    scale: float = 1.0


@dataclass(frozen=True)
class Distance:
    """|sum of coefficient * mean| (relative), the size that noise alone gives it, and how improbable it is as a Gaussian's z."""

    distance: float
    floor: float
    z: float


def distance(groups: Sequence[Group], size: float) -> Distance:
    """Of a combination of means whose expectation is zero if all agree.

    |estimate|^2 has the law of a weighted sum of chi^2; its weights' first two moments come from the spread about each group's mean
    (Satterthwaite: an F distribution), so neither many correlated components nor few seeds make agreement look better or worse.
    """
    estimate = sum(g.coefficient * g.values.mean(0) for g in groups)
    assert isinstance(estimate, Tensor)
    parts = []
    for kind in dict.fromkeys(g.kind for g in groups):
        own = [g for g in groups if g.kind == kind]
        degrees = sum(len(g.values) - 1 for g in own)
        weight = sum(g.coefficient**2 / (g.scale * len(g.values)) for g in own) / degrees
        parts.append((weight**0.5 * torch.cat([g.scale**0.5 * (g.values - g.values.mean(0)) for g in own]), degrees))
    trace = sum(float(rows.square().sum()) for rows, _ in parts)
    trace2, square, inverse = trace**2, 0.0, 0.0  # (tr C)^2 and tr C^2, unbiased; sum of tr^2 / degrees of freedom
    for i, (rows, n) in enumerate(parts):
        t, s = float(rows.square().sum()), float((rows @ rows.T).square().sum())
        own = (s - t**2 / n) / (1 + 1 / n - 2 / n**2) if n > 1 else s / 3
        square += own + 2 * sum(float((rows @ other.T).square().sum()) for other, _ in parts[:i])
        trace2, inverse = trace2 - 2 * own / n, inverse + t**2 / n
    k, degrees = max(1.0, trace2 / square if square > 0 else math.inf), trace**2 / inverse
    k = min(k, sum(n for _, n in parts))
    ratio = float(estimate.square().sum()) / trace
    tail = float(stats.f.sf(ratio, k, k * degrees))
    return Distance(float(estimate.norm()) / size, trace**0.5 / size, float(stats.norm.isf(tail)) if tail > 0 else 38.0)


def compared(some: Sequence[Tensor], others: Sequence[Tensor]) -> Distance:
    """Two sets of runs of one observable, relative to the mean of the second"""
    a, b = (torch.stack([v.double().flatten() for v in values]) for values in (some, others))
    return distance([Group(a, 1.0, "some"), Group(b, -1.0, "others")], float(b.mean(0).norm()))


def networks_and_limit(
    nets: Sequence[Solution], limits: Sequence[Solution], name: str, extrapolate: bool = False
) -> Distance:
    """The mean over networks of all widths given, each weighed by its width, or its extrapolation linear in 1/N, from the limit."""
    reference = torch.stack([observe(s, name) for s in limits])
    by_width: dict[int, list[Tensor]] = {}
    for net in nets:
        assert net.width is not None
        by_width.setdefault(net.width, []).append(observe(net, name))
    values = {n: torch.stack(v) for n, v in by_width.items()}
    precision = torch.tensor([n * len(v) for n, v in values.items()], dtype=torch.float64)
    design = torch.tensor([[1.0, 1 / n] if extrapolate else [1.0] for n in values], dtype=torch.float64)
    weights = torch.linalg.solve(design.T @ (precision[:, None] * design), design.T * precision)[0]
    groups = [Group(v, float(w), "networks", n) for (n, v), w in zip(values.items(), weights, strict=True)]
    return distance([*groups, Group(reference, -1.0, "limit")], float(reference.mean(0).norm()))


def largest_z(count: int, probability: float = 1e-3) -> float:
    """What `count` z-scores exceed somewhere with this probability, if all hold (Bonferroni; valid for dependent ones too)"""
    return float(stats.norm.isf(probability / count))


def kept(name: str, row: dict[str, Any]) -> None:
    """Append a finished row to NAME.jsonl in $ACCURACY_OUT (default: the temporary folder), so that a stop loses nothing."""
    folder = Path(os.environ.get("ACCURACY_OUT", tempfile.gettempdir()))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
