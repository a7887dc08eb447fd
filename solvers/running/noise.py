"""The noise of Langevin descent (equation 113): of a step, a seed and a place alone, so that a run that goes on finds it again."""

from __future__ import annotations

import torch

from meanfield.checking.seeding import seeded
from meanfield.problem.training import Training


def source(training: Training, at: int, *own: int) -> torch.Generator:
    """Of the numbers that step `at` adds; own: what tells seeds, widths and layers apart"""
    return torch.Generator().manual_seed(seeded(training.noise_seed, at, *own))
