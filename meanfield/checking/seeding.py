"""Seeds of random numbers that belong to several numbers: a seed, a width, a step, a layer."""

from __future__ import annotations

import numpy as np


def seeded(*numbers: int) -> int:
    """A seed for torch, another one wherever any of the numbers differs"""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] % 2**63)
