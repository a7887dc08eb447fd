"""Which weights a kernel gives to its layers: Scaling (NTK, mean field) and the standard parameterizations (equations 43 to 45)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from meanfield import checks
from meanfield.arguments import checked
from meanfield.scaling import Scaling, settled


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


@checked
@dataclass(frozen=True)
class Standard:
    """The standard parameterization W_ij ~ N(0, weight_std^2 / N_l), b_i ~ N(0, bias_std^2), one learning rate for all (equation 44)."""

    widths: tuple[int, ...]
    """Of the hidden layers, N_1 .. N_L; a single one stands for all of them"""
    improved: bool = True
    """The width s N_l goes to infinity, h^{l+1} = W phi(h^l) / sqrt(s) + b, at fixed N_l; otherwise the network has these very widths and
    its kernel grows with them"""

    def __post_init__(self) -> None:
        many = tuple(self.widths) if isinstance(self.widths, Iterable) else (self.widths,)
        if not many:
            raise ValueError("widths is empty: give one per hidden layer, or one for all, e.g. widths=(512, 512)")
        object.__setattr__(self, "widths", tuple(checks.integer(f"widths[{i}]", n, 1) for i, n in enumerate(many)))

    def layers(self, network: Layered) -> tuple[int, ...]:
        """(N_1, .., N_L) of this network; ValueError if their number is another than its depth."""
        widths = self.widths * network.depth if len(self.widths) == 1 else self.widths
        if len(widths) != network.depth:
            raise ValueError(
                f"{len(widths)} widths for {network.depth} hidden layers: received widths={self.widths}; give one each, or one for all"
            )
        if network.residual is not None and len(set(widths)) > 1:
            raise ValueError(f"residual branches need layers of one width: received widths={widths}")
        return widths


@checked
def improved_standard(widths: int | Iterable[int]) -> Standard:
    """The improved standard parameterization: per-layer widths stay in the kernel, which is finite (equation 44)."""
    return Standard(_tuple(widths), improved=True)


@checked
def naive_standard(widths: int | Iterable[int] | None = None) -> Standard:
    """The standard parameterization at these finite widths: its kernel to leading order, which diverges like N (equation 45).

    ValueError without widths: there is no limit.
    """
    if widths is None:
        raise ValueError(
            "the naive standard parameterization has no infinite-width kernel: it diverges like N. Give the widths of a finite network, "
            "naive_standard(widths=(512, 512)), or take improved_standard(widths) or ntk()"
        )
    return Standard(_tuple(widths), improved=False)


@dataclass(frozen=True)
class KernelWeights:
    """The numbers that a parameterization puts into the recursion (equation 43).

    prior: of Cov f_0 = prior (weight_std^2 Phi^L + bias_std^2); readout, hidden: of the two shares of K; layers: (feature, bias) of
    layer l = 0..L in Theta^{l+1} = feature Phi^l + bias + weight_std^2 <phi' phi'> Theta^l.
    """

    prior: float
    readout: float
    hidden: float
    layers: tuple[tuple[float, float], ...]


def kernel_weights(
    network: Layered, scaling: Scaling | Standard, inputs: int, positions: tuple[int, ...] | None = None
) -> KernelWeights:
    """ValueError if the scaling has no finite kernel at infinite width, with the reason.

    `positions`: how many positions a weight of layer l = 0..L sees in each channel (those of a filter), 1 in dense layers.
    """
    if isinstance(scaling, Standard):
        bias = float(network.bias_std > 0)
        fans = zip((inputs, *scaling.layers(network)), positions or (1,) * (network.depth + 1), strict=True)
        return KernelWeights(1.0, 1.0, 1.0, tuple((float(n * k), bias) for n, k in fans))
    prior = _limit(scaling, 2 * scaling.q_sigma + 1, scaling.sigma**2, "the variance of f_0")
    readout = _limit(
        scaling, 2 * scaling.q_sigma + scaling.q_a + 1, scaling.eta_a * scaling.sigma**2, "the tangent kernel"
    )
    hidden = _limit(
        scaling, 2 * scaling.q_sigma + scaling.q_w + 1, scaling.eta_w * scaling.sigma**2, "the tangent kernel"
    )
    same = (network.weight_std**2, network.bias_std**2)
    return KernelWeights(prior, readout, hidden, (same,) * (network.depth + 1))


def _limit(scaling: Scaling, exponent: float, starred: float, what: str) -> float:
    """lim N starred (N/N*)^(exponent - 1), a quantity that goes like N^exponent"""
    if settled(exponent) > 0:
        raise ValueError(
            f"{what} in the scaling {scaling.name!r} (q_sigma={scaling.q_sigma:g}, q_a={scaling.q_a:g}, q_w={scaling.q_w:g}) diverges like "
            f"N^{exponent:g}: a kernel needs 2 q_sigma + q + 1 <= 0; take ntk() or mean_field(gamma0)"
        )
    return 0.0 if settled(exponent) else starred * scaling.reference_width


def _tuple(widths: int | Iterable[int]) -> tuple[int, ...]:
    return tuple(widths) if isinstance(widths, Iterable) else (widths,)
