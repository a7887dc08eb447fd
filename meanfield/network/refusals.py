"""Modules that have no width limit, or none that is known here: refused by name, with the reason and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # the base of batch and instance norms
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

_ATTENTION = (
    "its logits are q.k / sqrt(n), which grow with the width once q and k are trained. Write q, k, v and the output as nn.Linear(n, n) and "
    "divide by n: a = (q @ k.transpose(-1, -2) / q.shape[-1]).softmax(-1); out = o(a @ v)"
)
_CELL = (
    "its matrices are fused. Write the step with two nn.Linear, e.g. h = torch.tanh(self.read(x[:, t]) + self.again(h))"
)
_WHOLE: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: _ATTENTION,
    nn.TransformerEncoderLayer: _ATTENTION,
    nn.TransformerDecoderLayer: _ATTENTION,
    nn.Transformer: _ATTENTION,
    nn.RNNBase: _CELL,
    nn.RNNCellBase: _CELL,
    nn.Bilinear: "its tensor has three axes. Multiply the outputs of two nn.Linear",
    _ConvTransposeNd: "its axes are exchanged. Write nn.Upsample and a convolution",
    nn.EmbeddingBag: "its rows are summed where they are read. Take nn.Embedding and a mean over positions",
}


def refuse_modules(small: nn.Module, large: nn.Module) -> None:
    """ValueError for the first module of a network, given at two widths, that has no limit, with the reason and the remedy"""
    others = dict(large.named_modules())
    for name, module in small.named_modules():
        for refuse in _CHECKS:
            if why := refuse(module, others.get(name, module)):
                raise ValueError(
                    f"{type(module).__name__} {name or 'itself'!r} has no width limit here: {why} (docs/choosing.md: what serves instead)"
                )


def _whole(module: Any, other: Any) -> str:
    return next((why for kind, why in _WHOLE.items() if isinstance(module, kind)), "")


def _dropout(module: Any, other: Any) -> str:
    if not isinstance(module, _DropoutNd) or module.p == 0:
        return ""
    return (
        "its masks are new random numbers in every pass. In the limit a mask over neurons is noise that averages out of each sum and stays "
        "in each neuron; no solver here draws it. Take p=0"
    )


def _statistics(module: Any, other: Any) -> str:
    if not isinstance(module, _NormBase) or not module.track_running_stats:
        return ""
    return (
        "its running statistics are kept from pass to pass, which no step of training knows. Take track_running_stats=False: each pass is "
        "then normalised by its own samples"
    )


def _groups(module: Any, other: Any) -> str:
    if isinstance(module, _ConvNd) and module.groups != 1:
        return f"groups={module.groups} leaves a neuron the sum over a part of those below: take groups=1"
    if isinstance(module, nn.GroupNorm) and module.num_groups != other.num_groups:
        return (
            f"its number of groups grows with the width, so that each holds {module.num_channels // module.num_groups} neurons whose mean "
            "stays random: take a fixed number of groups, e.g. nn.GroupNorm(1, n)"
        )
    return ""


def _renormalised(module: Any, other: Any) -> str:
    given = isinstance(module, nn.Embedding) and module.max_norm is not None
    return (
        f"max_norm={module.max_norm} changes the weights in passing, and |row| grows like sqrt(n): leave it out"
        if given
        else ""
    )


def _computed(module: Any, other: Any) -> str:
    if any(isinstance(p, UninitializedParameter) for p in module.parameters(recurse=False)):
        return "its shape is found in the first pass: give the sizes, e.g. nn.Linear(n, n)"
    if parametrize.is_parametrized(module):
        return "its weight is computed from others, e.g. divided by its norm: leave the parametrization out"
    return ""


_CHECKS: tuple[Callable[[Any, Any], str], ...] = (_whole, _dropout, _statistics, _groups, _renormalised, _computed)
