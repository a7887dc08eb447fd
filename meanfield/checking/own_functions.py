"""What users bring of their own, phi and phi' or a loss and its Delta, tried once against autograd when it is made or first used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

APART = 1e-6  # relative: far above rounding, far below a wrong factor
KINK = 1e-7  # a step to either side of a kink
REACH = 8.0  # |h| within which an activation is tried
_RIGHT = "write it with torch functions that act on every entry of a tensor"


def call(name: str, f: Callable[..., Tensor], shape: torch.Size, *given: Tensor) -> Tensor:
    """f(*given): a finite tensor of this shape and of the dtype of what was given; ValueError that says what came instead."""
    taken = [x.detach().clone() for x in given]
    try:
        returned = f(*given)
    except Exception as error:
        raise ValueError(f"{name} fails with {type(error).__name__}: {error}; {_RIGHT}") from error
    if not isinstance(returned, Tensor):
        raise ValueError(f"{name} must return a torch tensor: received {type(returned).__name__}; {_RIGHT}")
    if returned.shape != shape:
        at = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(
            f"{name} must return the shape {tuple(shape)} for {at}: received {tuple(returned.shape)}; {_RIGHT}"
        )
    if returned.dtype != given[0].dtype:
        raise ValueError(
            f"{name} must return the dtype that it is given, {given[0].dtype}: received {returned.dtype}; give its constants as Python "
            "numbers, or .to(h)"
        )
    if not bool(torch.isfinite(returned).all()):
        raise ValueError(
            f"{name} must be finite: received {float(returned[~torch.isfinite(returned)][0])} for ordinary numbers"
        )
    if any(not torch.equal(x.detach(), y) for x, y in zip(given, taken, strict=True)):
        raise ValueError(f"{name} changes its argument in place: return a new tensor")
    return returned


def slope(name: str, f: Callable[..., Tensor], shape: torch.Size, at: Tensor, *more: Tensor) -> Tensor:
    """d sum f(at, *more) / d at by autograd, whatever its mode is; ValueError if f is cut off from autograd."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = at.clone().requires_grad_()
        value = call(name, f, shape, leaf, *(x.clone() for x in more))
        if not value.requires_grad:
            raise ValueError(
                f"{name} is cut off from autograd, which FiniteWidth differentiates: leave out detach() and numpy"
            )
        return torch.autograd.grad(value.sum(), leaf)[0]


def same(what: str, where: Tensor, received: Tensor, right: Tensor, remedy: str, source: str = "autograd") -> None:
    """ValueError with the first place at which two tensors differ by more than `APART`."""
    wrong = (received - right).abs() > APART * (1 + right.abs())
    if bool(wrong.any()):
        at, given, true = (float(x[wrong][0]) for x in (where, received, right))
        raise ValueError(f"{what}: at {at:g} it is {given:g}, {source} gives {true:g}; {remedy}")


def check_activation(
    name: str, phi: Callable[[Tensor], Tensor], dphi: Callable[[Tensor], Tensor], kinks: tuple[tuple[float, float], ...]
) -> None:
    """ValueError for a phi' that is not the derivative, other shapes or dtypes, NaN, or kinks that are not where phi' jumps."""
    own = f"the activation {name!r}"
    for dtype in (torch.float32, torch.float64):
        h = torch.linspace(-REACH, REACH, 66, dtype=dtype, device="cpu").reshape(6, 11)
        h = torch.cat([h, torch.zeros_like(h[:1])])
        for piece, f in (("phi", phi), ("phi'", dphi)):
            whole, part = call(f"{piece} of {own}", f, h.shape, h), h[:, :1]
            same(
                f"{piece} of {own} mixes entries", part, whole[:, :1], f(part), "it must be pointwise", "one by itself"
            )
    smooth = h.flatten()
    for at, _ in (*kinks, (0.0, 0.0)):  # phi' may take any value between its sides at a kink, which 0 may be unasked
        smooth = smooth[(smooth - at).abs() > 1e-3]
    derivative = slope(f"phi of {own}", phi, smooth.shape, smooth)
    same(f"phi' of {own} is not the derivative of phi", smooth, dphi(smooth), derivative, "give dphi=phi'")
    _check_kinks(own, dphi, kinks)


def _check_kinks(own: str, dphi: Callable[[Tensor], Tensor], kinks: tuple[tuple[float, float], ...]) -> None:
    def at(place: float) -> float:
        return float(dphi(torch.tensor([place], dtype=torch.float64, device="cpu")))

    for place, jump in kinks:
        low, value, high = at(place - KINK), at(place), at(place + KINK)
        near = 1e-4 * (1 + abs(high - low))
        if abs(high - low - jump) > near:
            raise ValueError(
                f"phi' of {own} does not jump by {jump:g} at its kink {place:g}: it goes from {low:g} to {high:g}; give "
                f"kinks=(({place:g}, {high - low:g}),), or leave out a kink without a jump"
            )
        if not min(low, high) - near <= value <= max(low, high) + near:
            raise ValueError(
                f"phi' of {own} is {value:g} at its kink {place:g}: it must lie between its two sides, {low:g} and {high:g}"
            )
    for place, jump in _jumps(dphi):
        if not any(abs(place - known) < 1e-6 for known, _ in kinks):
            raise ValueError(
                f"phi' of {own} jumps by {jump:.3g} at {place:.6g}, which is not among its kinks {kinks}: declare it, "
                f"Activation(.., kinks=(({place:.6g}, {jump:.3g}),))"
            )


def _jumps(dphi: Callable[[Tensor], Tensor]) -> list[tuple[float, float]]:
    """Where phi' jumps and by how much: of each of many intervals the half with the larger change, until nothing is left of it"""
    edges = torch.linspace(-REACH - 0.011, REACH + 0.017, 257, dtype=torch.float64, device="cpu")
    low, high = edges[:-1], edges[1:]
    below, above = dphi(low), dphi(high)
    for _ in range(40):
        middle = (low + high) / 2
        value = dphi(middle)
        left = (value - below).abs() >= (above - value).abs()
        low, below = torch.where(left, low, middle), torch.where(left, below, value)
        high, above = torch.where(left, middle, high), torch.where(left, value, above)
    jump = above - below
    where = (jump.abs() > 1e-5 * (1 + above.abs())).nonzero()[:, 0].tolist()
    return [(round(float(high[i]), 9) + 0.0, float(jump[i])) for i in where]


def check_loss(
    name: str,
    value: Callable[[Tensor, Tensor], Tensor],
    delta: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    counted: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """ValueError for a Delta that is not -d value / d f, for other shapes or dtypes, or NaN, tried on targets y (P, .., C) that fit."""
    own, y = f"the loss {name!r}", y[:5].detach().cpu()
    g = torch.Generator().manual_seed(0)
    f = torch.randn(3, *y.shape, generator=g, dtype=torch.float64, device="cpu")
    for dtype in (torch.float32, torch.float64):
        for at in (f, 0 * f):  # networks start at f = 0
            pair = (at.to(dtype), y.to(dtype))
            call(f"value of {own}", value, f.shape[:-1], *pair)
            call(f"Delta of {own}", delta, f.shape, *pair)
    whole, alone = value(f, y.double())[:, :1], value(f[:, :1], y.double()[:1])
    same(f"value of {own} mixes samples", whole, whole, alone, "each sample's value must be its own", "one by itself")
    derivative = -slope(f"value of {own}", value, f.shape[:-1], f, y.double())
    what = f"Delta of {own} is not -d value / d f"
    same(what, f, delta(f, y.double()), derivative, "give delta the negative gradient of value, not divided by P")
    if counted is not None:
        received = counted(y)
        if not isinstance(received, Tensor) or received.shape != y.shape[:-1]:
            got = tuple(received.shape) if isinstance(received, Tensor) else type(received).__name__
            raise ValueError(
                f"counted of {own} must return the shape {tuple(y.shape[:-1])} for y {tuple(y.shape)}: received {got}"
            )
