"""Layered: what scalings and the weights of kernels ask of a network, dense or convolutional (equations 43 and 44)."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable


@runtime_checkable
class Layered(Protocol):
    """What the weights of a kernel depend on: a Network or a ConvNetwork"""

    @property
    def depth(self) -> int: ...
    @property
    def weight_std(self) -> float: ...
    @property
    def bias_std(self) -> float: ...
    @property
    def residual(self) -> float | None: ...


def branch(network: Layered) -> float:
    """What multiplies a new layer: beta / sqrt(depth) with residual branches, else 1"""
    return 1.0 if network.residual is None else network.residual / math.sqrt(network.depth)


def branch2(network: Layered) -> float:
    """Its square"""
    return 1.0 if network.residual is None else network.residual**2 / network.depth
