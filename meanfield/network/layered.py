"""Layered: what scalings and the weights of kernels ask of a network, dense or convolutional (equations 43 and 44)."""

from __future__ import annotations

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
