"""A trial of a network on a few samples at two small widths, which finds in its `forward` what has no width limit (equation 89)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from meanfield.network.architecture import Architecture
from meanfield.network.calls import Call, Log, Untrained, wide, words
from meanfield.network.failing import failed
from meanfield.network.growing import Growing, spread
from meanfield.network.making import made, written_for
from meanfield.network.recording import neurons_of, recorded

FEW = 3  # samples


_EXTREME = words(
    "max min amax amin argmax argmin sort argsort topk kthvalue median mode aminmax quantile",
    "cummax cummin cumsum cumprod prod logsumexp logcumsumexp",
)
_SHARES = words("softmax log_softmax softmin gumbel_softmax normalize")
_PARTS = words("__getitem__ narrow select index_select take gather split unbind take_along_dim")
_MASKS = words("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout")
_KINKED = words(
    "relu relu_ relu6 leaky_relu prelu rrelu threshold hardtanh hardshrink softshrink hardsigmoid hardswish abs absolute sign",
    "clamp clip clamp_min clamp_max where maximum minimum max_pool1d max_pool2d max_pool3d boolean_dispatch l1_loss",
)
_JUMPING = words(  # kinks where it is a field of neurons that they are given, not positions or a mask
    "gt lt ge le __gt__ __lt__ __ge__ __le__ heaviside floor ceil round trunc frac fmod remainder max min amax amin aminmax median sort",
)
_LINEAR = words(  # in the fields
    "linear conv1d conv2d conv3d embedding add __add__ __radd__ __iadd__ sub __sub__ neg __neg__ mul __mul__ __rmul__ div __truediv__",
    "mean sum flatten reshape view unsqueeze squeeze transpose permute movedim contiguous __getitem__ size dim stack cat unbind",
    "avg_pool1d avg_pool2d adaptive_avg_pool2d is_floating_point to double float",
)
_ATTENTION = (
    "scaled_dot_product_attention divides its logits by sqrt(n): trained, they grow with the width. Divide by n: "
    "a = (q @ k.transpose(-1, -2) / q.shape[-1]).softmax(-1), then a @ v, or give scale=1 / q.shape[-1]"
)


@dataclass(frozen=True)
class Trial:
    """What a trial tells of a network.

    outputs: the shape of the outputs of one sample. fixed, per_neuron: numbers that a forward makes for one sample are fixed + per_neuron
    times the width. kept: those that enter or leave layers between wide axes, per neuron. kinks: whether it has jumps in its derivative.
    linear: whether all that it does is linear in its fields. neurons: of what is recorded neuron by neuron the axis of neurons and the
    numbers of one sample, per neuron.
    """

    outputs: tuple[int, ...]
    fixed: float
    per_neuron: float
    kept: float
    kinks: bool
    linear: bool
    neurons: dict[str, tuple[int, float]] = field(default_factory=dict)

    def numbers(self, width: int) -> float:
        """That a forward makes for one sample"""
        return self.fixed + self.per_neuron * width

    def noted(self, width: int) -> float:
        """That a snapshot keeps of one sample neuron by neuron"""
        return width * sum(numbers for _, numbers in self.neurons.values())


def tried(network: Architecture, x: Tensor) -> Trial:
    """What a network does with a few of the inputs x (P, ...), of which a tensor that is to be recorded has one axis of neurons or none.

    ValueError for a `forward` that has no width limit, keeps state, draws numbers, works in one precision only, or whose outputs do not
    begin with the samples.
    """
    some, record = _of_kind(_few(x), torch.float64), network.recordings
    widths = (network.description.unit, 2 * network.description.unit)
    nets = [made(network.builder, width, least=2**62).to(torch.float64) for width in widths]
    spread(nets[0], nets[1], network.description, widths)
    small = Log()
    large = Growing(small.calls, widths[1] // widths[0])
    shapes, kept = [], []
    for net, log in zip(nets, (small, large), strict=True):
        with written_for(torch.empty(0, dtype=torch.float64)):
            f = outputs_of(net, some, log)
            if log is large:
                large.judge(f, "what the network returns")
            must_repeat(net, some, f)
            must_be_trained(net, some)
            found = recorded(net, record, some)
        shapes.append(tuple(f.shape[1:]))
        kept.append({name: tuple(tensor.shape) for name, tensor in found.items()})
    axes = neurons_of(kept[0], kept[1], len(some))
    neurons = {name: (axis, math.prod(kept[0][name]) / len(some) / widths[0]) for name, axis in axes.items()}
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the network's outputs grow with its width: received {shapes[0]} at width {widths[0]} and {shapes[1]} at width {widths[1]}; "
            "end it with a layer of a fixed number of outputs, e.g. nn.Linear(n, 1)"
        )
    if [call.name for call in small.calls] != [call.name for call in large.calls]:
        raise ValueError(
            "the network's forward does other things at another width: it must be the same code for every number of neurons"
        )
    reasons = [check(*pair) for pair in zip(small.calls, large.calls, strict=True) for check in _CHECKS]
    if why := next(filter(None, [*reasons, large.wrong]), ""):
        raise ValueError(f"the network has no width limit here: {why}")
    with written_for(torch.empty(0, dtype=torch.float32)):
        outputs_of(nets[0].to(torch.float32), _of_kind(some, torch.float32))
    return replace(_told(shapes[0], len(some), widths, small.calls, large.calls), neurons=neurons)


def _of_kind(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def outputs_of(net: Callable[[Tensor], Any], x: Tensor, log: Log | None = None) -> Tensor:
    """f (P, .., C) without derivatives; ValueError where the module takes no such x, or returns something else"""
    log = log or Log()
    try:
        with torch.no_grad(), log:
            f = net(x)
    except Exception as error:
        raise ValueError(failed(net, x, error, log.failed)) from error
    if not isinstance(f, Tensor) or not f.is_floating_point() or f.ndim < 2 or len(f) != len(x):
        got = f"shape {tuple(f.shape)} of {f.dtype}" if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(
            f"the network must return real outputs of the shape (samples, .., outputs), ({len(x)}, .., C) for {len(x)} samples: "
            f"received {got}"
        )
    return f


def _few(x: Tensor) -> Tensor:
    """Some of the inputs (P, ..), of tokens those with the largest"""
    return x[:FEW] if x.is_floating_point() else x[x.flatten(1).amax(1).argsort(descending=True, stable=True)[:FEW]]


def _told(
    outputs: tuple[int, ...], samples: int, widths: tuple[int, int], small: list[Call], large: list[Call]
) -> Trial:
    made, more = (sum(math.prod(shape) for call in calls for shape in call.found) / samples for calls in (small, large))
    slope = (more - made) / (widths[1] - widths[0])
    kept = 0.0
    for one, other in zip(small, large, strict=True):
        if one.name in ("linear", "conv1d", "conv2d", "conv3d") and len(wide(one.given[1], other.given[1])) == 2:
            kept += (math.prod(one.given[0]) + math.prod(one.found[0])) / samples / widths[0]
    names = {call.name for call in small}
    return Trial(
        outputs,
        max(0.0, made - slope * widths[0]),
        slope,
        kept,
        bool(names & _KINKED) or any(map(_jumps, small, large)),
        all(map(_is_linear, small, large)),
    )


def _jumps(small: Call, large: Call) -> bool:
    return small.name in _JUMPING and any(wide(*pair) for pair in zip(small.given, large.given, strict=False))


def _is_linear(small: Call, large: Call) -> bool:
    """Whether a call is linear in the fields, and neuron by neuron or a layer"""
    if small.name not in _LINEAR:
        return False
    if small.name in ("mul", "__mul__", "__rmul__", "div", "__truediv__"):
        return len(small.given) == 1
    if small.name in ("mean", "sum"):
        return bool(small.given) and len(wide(small.given[0], large.given[0])) == len(
            wide(small.found[0], large.found[0])
        )
    return True


def untrained(net: nn.Module, x: Tensor) -> str:
    """The first parameter that is used within torch.no_grad, if any; ValueError for outputs that no parameter is trained through"""
    noted = Untrained(net.named_parameters())
    try:
        with torch.enable_grad(), noted:
            f = net(x)
    except Exception as error:
        raise ValueError(failed(net, x, error, None)) from error
    if not f.requires_grad:
        raise ValueError(
            "the outputs are cut off from all parameters, by torch.no_grad, detach or the like, so that nothing is trained: return what "
            "the layers give"
        )
    return noted.found


def must_be_trained(net: nn.Module, x: Tensor) -> None:
    """ValueError for a module whose parameters do not all take part where derivatives are taken"""
    if still := untrained(net, x):
        raise ValueError(
            f"the parameter {still!r} is used within torch.no_grad, where it is not trained: leave that out, and freeze what is to stay as "
            f"it starts, mf.Architecture(build, frozen=({still!r},))"
        )


def must_repeat(net: nn.Module, x: Tensor, f: Tensor) -> None:
    """ValueError for a module that keeps state or gives other outputs than f when it is asked again"""
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    again = outputs_of(net, x)
    for name, buffer in net.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise ValueError(
                f"the network keeps the state {name!r} from pass to pass, which no step of training knows: compute it anew in each pass"
            )
    if again.shape != f.shape or not torch.equal(again.nan_to_num(), f.nan_to_num()):
        raise ValueError(
            "the network gives other outputs when it is asked again: it keeps state or draws numbers (functional dropout?); leave that out"
        )


def _axis(call: Call, default: int | None) -> int | None:
    """The axis that a function acts along, None for all of them"""
    given = call.options.get("dim", call.options.get("axis"))
    if given is None:
        first = 2 if call.name in ("topk", "kthvalue", "quantile") else 1  # behind how many
        numbers = [a for a in call.arguments[first:] if isinstance(a, int) and not isinstance(a, bool)]
        given = numbers[0] if numbers else default
    return given if given is None or isinstance(given, int) else None


def _extreme(small: Call, large: Call) -> str:
    of_two = small.name in ("max", "min") and len(small.given) == 2  # neuron by neuron
    if small.name not in _EXTREME | _SHARES or len(small.given) < 1 or of_two:
        return ""
    grown, dims = wide(small.given[0], large.given[0]), len(small.given[0])
    axis = _axis(small, -1 if small.name in (*_SHARES, "sort", "argsort", "topk", "kthvalue", "mode") else None)
    if not grown or (axis is not None and axis % dims not in grown):
        return ""
    if small.name in _SHARES:
        return f"{small.name} along an axis of neurons leaves each of them about 1/n: average over neurons instead"
    return f"{small.name} over neurons is decided by few of them, or grows with their number: take a mean over neurons"


def _parts(small: Call, large: Call) -> str:
    if small.name not in _PARTS or not small.given:
        return ""
    before = wide(small.given[0], large.given[0])
    if not small.found or len(before) <= len(wide(small.found[0], large.found[0])):
        return ""
    return f"{small.name} takes neurons by number, a fixed part of an axis that grows: take a share of it, e.g. x.chunk(2, -1)"


def _attention(small: Call, large: Call) -> str:
    if small.name != "scaled_dot_product_attention" or len(small.given[0]) - 1 not in wide(
        small.given[0], large.given[0]
    ):
        return ""
    products = [(call.options.get("scale") or 0.0) * call.given[0][-1] for call in (small, large)]
    if products[0] and abs(products[1] / products[0] - 1) < 1e-9:
        return ""
    return _ATTENTION


def _masked(small: Call, large: Call) -> str:
    del large
    if small.name not in _MASKS:
        return ""
    p = small.options.get("p", small.arguments[1] if len(small.arguments) > 1 else 0.5)
    on = small.options.get("training", small.arguments[2] if len(small.arguments) > 2 else True)
    return f"{small.name} draws new masks in every pass, which no solver here does: leave it out" if p and on else ""


_CHECKS: tuple[Callable[[Call, Call], str], ...] = (_extreme, _parts, _attention, _masked)
