"""Draws of a Gaussian process at training and test samples, with which lazy networks start (equation 51)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def draws(covariance: Tensor, train: int, outputs: int, seeds: Sequence[int]) -> Tensor:
    """(E, Q, C) draws of GP(0, covariance), C independent ones for each seed alone; the training samples' do not depend on the test
    samples (equation 51)
    """
    own, across, test = covariance[:train, :train], covariance[train:, :train], covariance[train:, train:]
    values, vectors = torch.linalg.eigh(own)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normals(count: int) -> Tensor:
        return torch.stack([torch.randn(count, outputs, generator=g, dtype=torch.float64) for g in generators])

    along = vectors.T @ normals(train)
    varies = (covariance.diagonal() > 0)[:, None]  # f = 0 at inputs of zero, to the last bit
    f = vectors @ (values.clamp(min=0).sqrt()[:, None] * along)
    if len(covariance) == train:
        return f * varies
    keep = values > 1e-12 * values[-1].clamp(min=math.ulp(0.0))
    regression = (across @ vectors[:, keep]) / values[keep].sqrt()  # (P_test, rank), of the directions' unit Gaussians
    left, directions = torch.linalg.eigh(test - regression @ regression.T)
    conditional = directions @ (left.clamp(min=0).sqrt()[:, None] * (directions.T @ normals(len(test))))
    return torch.cat([f, regression @ along[:, keep] + conditional], 1) * varies
