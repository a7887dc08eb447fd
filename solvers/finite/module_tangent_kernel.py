"""The tangent kernel of a torch module as it is, in blocks of samples (equation 47)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.kernels.kernel_range import sampled_in_range
from meanfield.network.trial import must_repeat, outputs_of, untrained
from solvers.finite.module_derivatives import Differentiated, plain_operations

MOST = 2**29  # bytes of derivatives that are held at a time
PER_PASS = 6  # products of entries that take as long as one of a pass with vectors (docs/performance.md)


@checked
@torch.inference_mode(False)  # in which nothing is differentiated
def module_tangent_kernel(
    module: nn.Module, x: Any, x2: Any = None, rates: Mapping[str, float] | None = None, block: int | None = None
) -> Tensor:
    """K = sum over parameters of rate times df(x) df(x2), of a torch module as it is, trained or not (equation 47).

    x (P, ..) and x2 (P2, ..), default x, are inputs as the module takes them, integers as tokens. K is (P, C, P2, C) for the C outputs of
    a sample, those at all positions in the order of f.flatten(1); (P, P2) for one output. Its dtype and device are the module's, and for
    x2 = None it is exactly symmetric.

    Parameters with requires_grad=False have no part in it. The module is called as it stands, in its mode, on one sample at a time, by
    torch.func (by autograd, slower, where torch.func does not know what it does). Derivatives in the weights of layers are kept as two
    factors where this is less work; where outputs are so many that even this is more work than their products with vectors, those are
    taken.

    Args:
        module: An instance, not its class
        x: Samples
        x2: Others of the same shape
        rates: {pattern: multiple} of learning rates, 1 elsewhere, by names of parameters, with * and ? as in names of files; of several
            that fit, the first counts
        block: Samples that are differentiated at a time; as many as fit into half a GB if left out

    ValueError for dropout and batch norm in training mode, for samples that meet in the module, for one that keeps state, draws numbers
    or has nothing to train; MemoryError before allocation.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from solvers import module_tangent_kernel
        >>> module_tangent_kernel(nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [1.0, 2.0]]))  # x . x2
        tensor([[1., 1.],
                [1., 5.]])
    """
    _must_stand(module)
    scales = _scales(module, rates or {})
    first, second, f = _samples(module, x, x2)
    with plain_operations():
        kernel = _between(Differentiated(module, scales, first), first, second, block)
    sampled_in_range("the tangent kernel of the module", kernel, f if second is first else None)
    return kernel


def _between(kernel: Differentiated, first: Tensor, second: Tensor, block: int | None) -> Tensor:
    o, like = kernel.outputs, kernel.like
    checks.memory(
        f"the tangent kernel of {o} outputs between {len(first)} and {len(second)} samples",
        float(o**2 * len(first) * len(second) * like.element_size()),
        "give fewer samples at a time, module_tangent_kernel(module, x[i:j], x2)",
        checks.free_memory(str(like.device)),
    )
    k = like.new_empty(len(first), o, len(second), o)
    rule = _by_products if _products_pay(kernel, first) else _by_derivatives
    rule(kernel, first, second, k, block)
    return k[:, 0, :, 0] if o == 1 else k


def _by_derivatives(kernel: Differentiated, x: Tensor, x2: Tensor, k: Tensor, block: int | None) -> None:
    """Fills k with inner products of the derivatives of blocks of samples"""
    most = MOST / 2 / (kernel.held * k.element_size())
    pairs = math.sqrt(MOST / 4 / (kernel.outputs**2 * 8.0))
    size = max(1, int(min(most, pairs))) if block is None else checks.integer("block", block, 1)
    for i in range(0, len(x), size):
        left = kernel(x[i : i + size])
        for j in range(i if x2 is x else 0, len(x2), size):
            right = left if x2 is x and i == j else kernel(x2[j : j + size])
            _put(k, i, j, left.kernel(right), x2 is x)


def _by_products(kernel: Differentiated, x: Tensor, x2: Tensor, k: Tensor, block: int | None) -> None:
    """Fills k with K e for each output e of each sample of x2: a pass back at the sample, and one forth at blocks of x"""
    o, size_of = kernel.outputs, k.element_size()
    at_once = min(o, max(1, int(MOST / 4 / (kernel.parameters * size_of))))
    most = max(1, int(MOST / 4 / ((kernel.made + o) * at_once * size_of)))
    size = most if block is None else checks.integer("block", block, 1)
    for q in range(len(x2)):
        back = vjp(partial(kernel.forward, x=x2[q : q + 1]), kernel.weights)[1]
        start = q if x2 is x else 0
        column = k.new_empty(len(x) - start, o, 1, o)
        for c in range(0, o, at_once):
            units = torch.eye(o, dtype=k.dtype, device=k.device)[c : c + at_once, None]
            slopes = {name: slope * kernel.scales[name] ** 2 for name, slope in vmap(back)(units)[0].items()}
            for p in range(0, len(column), size):
                found = vmap(partial(kernel.onwards, x[start + p : start + p + size]))(slopes)
                column[p : p + size, :, 0, c : c + at_once] = found.permute(1, 2, 0)
        _put(k, start, q, column[:1], x2 is x)
        _put(k, start + 1, q, column[1:], x2 is x)


def _put(k: Tensor, i: int, j: int, tile: Tensor, symmetric: bool) -> None:
    """A tile into k, and of a symmetric k its mirror image"""
    rows, columns = len(tile), tile.shape[2]
    if symmetric and i == j:
        square = tile.flatten(2).flatten(0, 1)
        tile = (square.triu() + square.triu(1).T).view(tile.shape)
    elif symmetric:
        k[j : j + columns, :, i : i + rows] = tile.permute(2, 3, 0, 1)
    k[i : i + rows, :, j : j + columns] = tile


def _products_pay(kernel: Differentiated, x: Tensor) -> bool:
    """Whether products with vectors take less work, or the only memory there is, and torch knows how to take them"""
    large = kernel.held * kernel.like.element_size() > MOST
    if kernel.vectorised and (large or kernel.work > PER_PASS * kernel.outputs * kernel.pass_work):
        try:
            kernel.onwards(x[:1], kernel.weights)
            return True
        except (RuntimeError, NotImplementedError):
            pass
    checks.memory(
        "the derivatives of one sample",
        float(kernel.held * kernel.like.element_size()),
        "freeze parameters with requires_grad_(False), or give a module of fewer outputs",
        checks.free_memory(str(kernel.like.device)),
    )
    return False


def _must_stand(module: nn.Module) -> None:
    """ValueError for modules that give other outputs in every pass, or have no numbers yet"""
    for name, one in module.named_modules():
        noisy = isinstance(one, _DropoutNd) and one.p > 0
        if one.training and (noisy or (isinstance(one, _BatchNorm) and one.track_running_stats)):
            why = "draws new masks in every pass" if noisy else "changes its running statistics in every pass"
            raise ValueError(
                f"the module {name or type(one).__name__!r} ({type(one).__name__}) is in training mode, where it {why}: call "
                "module.eval() first"
            )
    for name, p in module.named_parameters():
        if isinstance(p, nn.UninitializedParameter):
            raise ValueError(f"the parameter {name!r} has no numbers yet: call the module once on some samples first")


def _scales(module: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """The root of the rate of each parameter that is trained"""
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    for pattern, rate in rates.items():
        checks.positive(f"rates[{pattern!r}]", rate, zero=True)
        if not any(fnmatchcase(name, pattern) for name in trained):
            known = ", ".join(trained)
            raise ValueError(f"rates must name parameters that are trained: received {pattern!r}; known: {known}")
    own = {name: next((r for pattern, r in rates.items() if fnmatchcase(name, pattern)), 1.0) for name in trained}
    if not any(own.values()):
        raise ValueError(
            "the module has no parameter to train: all have requires_grad=False or a rate of 0, or there are none"
        )
    return {name: math.sqrt(rate) for name, rate in own.items() if rate}


def _samples(module: nn.Module, x: Any, x2: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x and x2 of the module's kind, and outputs of the first of x; ValueError for those that it does not take, or not each by itself"""
    like = next(p for p in module.parameters() if p.is_floating_point())
    first, *others = (
        given.to(like.device, like.dtype if given.is_floating_point() else None)
        for given in (checks.samples(name, value) for name, value in (("x", x), ("x2", x2)) if value is not None)
    )
    for second in others:
        if (second.shape[1:], second.dtype) != (first.shape[1:], first.dtype):
            kinds = [f"{tuple(t.shape)} of {t.dtype}" for t in (first, second)]
            raise ValueError(
                f"x and x2 must hold samples of the same shape and kind: received {kinds[0]} and {kinds[1]}"
            )
    some = first[:2]
    f = outputs_of(module, some)
    if not bool(torch.isfinite(f).all()):
        raise ValueError(
            "the outputs of the module are NaN or infinite: look at its parameters, or give smaller inputs"
        )
    must_repeat(module, some, f)
    untrained(module, some)  # refuses outputs that are cut off from all parameters
    alone = torch.cat([outputs_of(module, one[None]) for one in some])
    tolerance = 100 * torch.finfo(f.dtype).eps * float(f.abs().max())
    if alone.shape != f.shape or not torch.allclose(alone, f, rtol=0, atol=tolerance):
        raise ValueError(
            "the outputs of a sample depend on the other samples of its batch (norms over samples?): only a module in which each stands "
            "by itself has a tangent kernel between any two"
        )
    return first, others[0] if others else first, f
