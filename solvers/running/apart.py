"""Which passes tell the derivatives of samples apart, and the derivatives of a pass (equation 90)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from meanfield.network.architecture import Architecture
from meanfield.network.making import Build, made, written_for
from meanfield.network.roles import Description
from solvers.running.spread import Unknown
from solvers.running.tangents import Derivative, Factors, beside
from solvers.running.watching import Watch, shells, watchable

Passes = Literal["batch", "single", "meeting"]


def rows_of(passes: Passes, samples: int) -> list[slice]:
    """The samples of each pass"""
    return [slice(p, p + 1) for p in range(samples)] if passes == "single" else [slice(0, samples)]


def derivatives(
    f: Tensor,
    samples: int,
    watch: Watch,
    own: Mapping[str, Tensor],
    scales: Mapping[str, float],
    slopes_in: Callable[[Tensor, Sequence[Any]], Sequence[Tensor | None]],
    others: Callable[[], list[Factors]] = list,
) -> Iterator[tuple[int, dict[str, Derivative]]]:
    """(number, derivatives by name) of each output of a pass, in the trained parameters, times their scales

    f: outputs, whose derivatives are told apart for so many `samples`, 1 if there is one or if they are taken each by itself; own: tensors
    that the pass used, those of weights that `watch` noted, others with a copy for each sample if there are several. slopes_in: derivatives
    of a number in tensors; others: factors of what else the last of them found.
    """
    calls = [call for call in watch.of(*own) if call.name not in watch.otherwise]
    known = {call.name for call in calls}
    left = {name: t for name, t in own.items() if name not in known}
    targets, count = [*(call.left for call in calls), *left.values()], f.numel() // samples
    with torch.enable_grad():
        outputs = f.reshape(samples, count).sum(0).unbind()
    for c, output in enumerate(outputs):
        slopes = slopes_in(output, targets)
        factors = others()
        for call, g in zip(calls, slopes[: len(calls)], strict=True):
            factors.append((call.name, *call.factors(g, scales[call.name])))
        pairs = zip(left, slopes[len(calls) :], strict=True)
        found = {name: g * scales[name] for name, g in pairs if g is not None}
        entries = {name: g if samples > 1 else g[None] for name, g in found.items()}
        for p in range(samples):
            yield p * count + c, _of_sample(p, samples, factors, entries)


def _of_sample(p: int, samples: int, factors: list[Factors], entries: Mapping[str, Tensor]) -> dict[str, Derivative]:
    mine = []
    for name, left, right in factors:
        k = left.shape[1] // samples
        mine.append((name, left[:, p * k : (p + 1) * k], right[..., p * k : (p + 1) * k]))
    return beside(mine) | {name: Derivative(torch.atleast_1d(every[p])) for name, every in entries.items()}


def averages(calls: Sequence[Tensor], samples: int, outputs: int = 1, rows: int | None = None) -> Tensor:
    """(C P, N) of rows (n, N) of calls, for each of C outputs in turn: the average over the rows of each sample (equation 88b)

    rows: how many a sample has, if these calls do not have them all.
    """
    each = len(calls) // outputs
    own = rows or sum(len(call) for call in calls[:each]) // samples
    sums = [call.reshape(samples, -1, call.shape[1]).sum(1) for call in calls]
    return torch.cat([torch.stack(sums[i : i + each]).sum(0) for i in range(0, len(sums), each)]) / own


def must_be_apart(network: Architecture, x: Tensor) -> None:
    """ValueError for kernels of averages over positions where a row need not belong to one sample of x (P, ...)"""
    if not network.averaged or len(x) == 1:
        return
    if passes_of(network.builder, network.description, tuple(p.name for p in network.description), x) != "batch":
        raise ValueError(
            f"averaged={network.averaged} needs fields whose first axis is that of the samples, which do not meet: {network.name!r} has "
            "others; leave it out, or take the average yourself, record={name: a function of (module, x)}"
        )


def passes_of(build: Build, description: Description, trained: tuple[str, ...], x: Tensor) -> Passes:
    """How derivatives are told apart by sample of x (P, ...): by one pass over all samples whose rows are ordered by sample ("batch"), by a
    pass of each sample, or, where samples meet in the network, by one pass whose outputs are taken one after the other ("meeting")

    Seen at a small width, with parameters that are drawn here, since their author's start may hide what the network does.
    """
    net, g = made(build, description.unit, least=2**62).to(torch.float64), torch.Generator().manual_seed(0)
    x = x.cpu().to(torch.float64) if x.is_floating_point() else x.cpu()
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 1 / math.sqrt(description.unit), g)
    weights = dict(net.named_parameters())

    def outputs(parameters: Mapping[str, Tensor], some: Tensor) -> Tensor:
        with written_for(next(iter(weights.values()))):
            return torch.func.functional_call(net, dict(parameters), (some,))

    try:
        with torch.enable_grad():
            if len(x) == 1 or _by_rows(outputs, weights, description, trained, x):
                return "batch" if len(x) > 1 else "single"
    except (Unknown, RuntimeError, ValueError, IndexError):
        pass
    some = x[:3]
    with torch.no_grad():
        try:
            alone = torch.cat([outputs(weights, one[None]) for one in some])
        except (RuntimeError, ValueError, IndexError):
            return "meeting"
        f = outputs(weights, some)
    same = alone.shape == f.shape and torch.allclose(alone, f, rtol=1e-9, atol=1e-9 * float(f.abs().max()))
    return "single" if same else "meeting"


def _by_rows(outputs: Any, weights: Mapping[str, Tensor], description: Description, trained: Any, x: Tensor) -> bool:
    """Whether the outputs of a sample depend on the sample's own rows and copies alone"""
    names, watch = watchable(description), Watch(len(x))
    copies = {name: weights[name].expand(len(x), *weights[name].shape) for name in trained if name not in names}
    f = outputs(shells({**weights, **copies}, names, watch, copies), x)
    if len(f) != len(x) or watch.otherwise & set(trained):
        return False
    for p in (0, len(x) - 1):
        edges = [call.left for call in watch.calls]
        targets: list[Any] = [*edges, *copies.values()]
        slopes = torch.autograd.grad(f[p].sum(), targets, retain_graph=True, allow_unused=True)
        rows = [call.slopes(s) for call, s in zip(watch.calls, slopes[: len(edges)], strict=True)]
        for slope in (*rows, *(s for s in slopes[len(edges) :] if s is not None)):
            if len(slope) % len(x):
                return False
            others = slope.reshape(len(x), -1).clone()
            others[p] = 0
            if bool(others.any()):
                return False
    return True
