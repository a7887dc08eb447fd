"""Anderson's acceleration of a fixed-point iteration over named tensors."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

Point = dict[str, Tensor]


class Anderson:
    """From a point and its image under a map the next point; each tensor counts in units of its size in the first image."""

    def __init__(self, kept: int, damping: float) -> None:
        self.kept = kept  # earlier points that extrapolate the next one
        self.damping = damping
        self.past: list[tuple[Tensor, Tensor]] = []  # points and their changes
        self.scale: Tensor | None = None

    def __call__(self, point: Point, image: Point) -> Point:
        if self.scale is None:
            self.scale = torch.cat([(1 / (q.norm() + 1e-9)).expand(q.numel()) for q in image.values()])
        x = _flat(point) * self.scale
        change = _flat(image) * self.scale - x
        self.past = [*self.past, (x, change)][-self.kept - 1 :]
        pieces = (self._next() / self.scale).split([q.numel() for q in point.values()])
        return {name: piece.reshape(q.shape) for (name, q), piece in zip(point.items(), pieces, strict=True)}

    def _next(self) -> Tensor:
        """The combination of earlier points whose change is smallest, then a damped step"""
        x, change = self.past[-1]
        if len(self.past) > 1:
            dx = torch.stack([after[0] - before[0] for before, after in pairwise(self.past)], 1)
            dr = torch.stack([after[1] - before[1] for before, after in pairwise(self.past)], 1)
            gamma = torch.linalg.lstsq(dr, change[:, None], driver="gelsd").solution[:, 0]
            x, change = x - dx @ gamma, change - dr @ gamma
        return x + self.damping * change


def _flat(point: Point) -> Tensor:
    return torch.cat([q.flatten() for q in point.values()])
