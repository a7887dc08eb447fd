"""Kinks of activations, whose second derivative is a delta function that derivatives along a path miss (equation 19)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from meanfield.network.activations import Activation


def softened(activation: Activation, width: float) -> Activation:
    """The activation with phi'' = Gaussians of the given width at its kinks, in derivatives of phi' only."""
    if not activation.kinks:
        return activation
    name = f"softened {activation.name}"
    return Activation(name, activation.phi, lambda h: _SoftKinks.apply(h, activation, width), tried=True)


class _SoftKinks(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, activation: Activation, width: float) -> Tensor:
        return activation.dphi(h)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, activation, width = inputs
        ctx.save_for_backward(h)
        ctx.kinks, ctx.width = activation.kinks, width

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (h,) = ctx.saved_tensors
        density = sum(
            jump * torch.exp(-0.5 * ((h - at) / ctx.width) ** 2) / (ctx.width * math.sqrt(2 * math.pi))
            for at, jump in ctx.kinks
        )
        return cotangents[0] * density, None, None
