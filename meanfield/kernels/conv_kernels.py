"""NNGP and tangent kernel of convolutional networks with infinitely many channels, block by block over the images (equation 46)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from meanfield.checking.arguments import checked
from meanfield.kernels.kernel_range import among_all, kernels_in_range, layers_in_range, living
from meanfield.kernels.module_kernels import module_kernels
from meanfield.kernels.module_laws import Readable, of_convolutions
from meanfield.kernels.weights import kernel_weights
from meanfield.network.convolutional import ConvNetwork, images
from meanfield.scaling.scaling import Scaling
from meanfield.scaling.standard import Standard


@checked
def conv_nngp_and_ntk(
    network: ConvNetwork, scaling: Scaling | Standard, x: Any, x2: Any = None, *, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The covariance of f_0 and the tangent kernel (P, P2) between images x (P, channels, H, W) and x2, default x (equation 46).

    Meaning of both as in `nngp_and_ntk`. `block` images are paired with `block` others at a time: memory grows like block^2 H W numbers
    for each layer, block^2 (H W)^2 with the global average. The dtype of x is that of the result.
    Blank images, as rows of zeros there, have rows of zeros where f = 0 in every network.

    ValueError for another layout of images, sizes that differ or do not fit the filters, and scalings without a tangent kernel;
    MemoryError before allocation.

    Example:
        >>> import meanfield as mf
        >>> images = mf.digits(n_train=3, n_test=0).x.reshape(3, 1, 8, 8)
        >>> nngp, ntk = mf.conv_nngp_and_ntk(mf.ConvNetwork(depth=1, activation="relu"), mf.ntk(), images)
        >>> bool((ntk.diagonal() > nngp.diagonal()).all())  # the tangent kernel has a part for each layer
        True
    """
    first, dtype = images("x", x)
    second = first if x2 is None else images("x2", x2)[0]
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"x and x2 hold different images: received shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    rows = living(network, first)
    columns = rows if x2 is None else living(network, second)
    sizes = (len(first), len(second))
    readable = _readable(network, scaling, first)
    first = first if rows is None else first[rows]
    others = None if x2 is None else second if columns is None else second[columns]
    if not len(first) or (others is not None and not len(others)):
        empty = first.new_zeros(len(first), len(first if others is None else others), dtype=dtype)
        return among_all((empty, empty.clone()), sizes, (rows, columns))
    kernels, variances, ends = module_kernels(readable, first, others, block, dtype, first.device)
    layers_in_range(network, [p.amax() for p in variances])
    exact = [first.new_zeros(1) if end is None else end for end in ends.kernels]
    kernels_in_range(network, tuple(float(end is not None) for end in ends.kernels), kernels, exact)
    return among_all(kernels, sizes, (rows, columns))


def _readable(network: ConvNetwork, scaling: Scaling | Standard, x: Tensor) -> Readable:
    """ValueError for images that do not fit the filters too"""
    size = network.image_size(*x.shape[2:])
    positions = (network.filter_size**2,) * network.depth + (
        1 if network.readout == "global_average" else math.prod(size),
    )
    return of_convolutions(network, kernel_weights(network, scaling, x.shape[1], positions), x.shape[1], size)
