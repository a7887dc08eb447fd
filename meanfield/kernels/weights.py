"""KernelWeights: the numbers that a scaling or a standard parameterization puts into the recursion of kernels (equations 43 to 46)."""

from __future__ import annotations

from dataclasses import dataclass

from meanfield.network.layered import Layered
from meanfield.scaling.scaling import Scaling, settled
from meanfield.scaling.standard import Standard


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
