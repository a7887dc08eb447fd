"""ConvNetwork: a convolutional network with any number of channels, and the images that it takes (equation 46)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.network.activations import Activation, activation

Padding = Literal["same", "circular", "valid"]

Readout = Literal["vectorised", "global_average"]


@checked
@dataclass(frozen=True)
class ConvNetwork:
    """Convolutions with square filters and stride 1, then a readout (equation 46).

    Example:
        >>> import meanfield as mf
        >>> network = mf.ConvNetwork(depth=2, activation="relu", readout="global_average")
        >>> nngp, ntk = mf.conv_nngp_and_ntk(network, mf.ntk(), mf.digits(n_train=3, n_test=0).x.reshape(3, 1, 8, 8))
        >>> ntk.shape
        torch.Size([3, 3])
    """

    instead: ClassVar[str] = (
        ", which has kernels at the start alone (mf.nngp_and_ntk): to train it or find its limit, write it as a torch module of nn.Conv2d"
    )

    depth: int = 1
    """Convolutions"""
    activation: Activation | str = "relu"
    """The nonlinearity after each of them"""
    filter_size: int = 3
    """Pixels of a filter's side, odd unless padding is valid"""
    padding: Padding = "same"
    """same (zeros around the image), circular, valid (the image shrinks)"""
    readout: Readout = "vectorised"
    """vectorised (a weight for each channel and pixel) or global_average (channels averaged over pixels)"""
    weight_std: float = 1.0
    """Multiplies all weights, as in `Network`"""
    bias_std: float = 0.0
    """Multiplies trained biases; 0 means no biases"""

    def __post_init__(self) -> None:
        checks.normalise(self, depth=1, filter_size=1)
        object.__setattr__(self, "activation", activation(self.activation))
        checks.lookup("padding", self.padding, dict.fromkeys(get_args(Padding)))
        checks.lookup("readout", self.readout, dict.fromkeys(get_args(Readout)))
        if self.padding != "valid" and self.filter_size % 2 == 0:
            raise ValueError(
                f"filter_size must be odd with padding={self.padding!r}: received {self.filter_size}; give {self.filter_size + 1}, "
                "or padding='valid'"
            )

    @property
    def nonlinearity(self) -> Activation:
        return activation(self.activation)

    @property
    def residual(self) -> None:
        """Convolutional networks have no residual branches here"""
        return None

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of the last hidden layer; ValueError if the filters do not fit"""
        height, width = checks.integer("height", height, 1), checks.integer("width", width, 1)
        shrink = self.depth * (self.filter_size - 1) if self.padding == "valid" else 0
        least = 1 + shrink if self.padding == "valid" else (self.filter_size + 1) // 2
        if min(height, width) < least:
            raise ValueError(
                f"images of {height} x {width} pixels are too small for {self.depth} layer(s) of filters of size {self.filter_size} with "
                f"padding={self.padding!r}: at least {least} x {least}"
            )
        return height - shrink, width - shrink


def images(name: str, x: Any) -> tuple[Tensor, torch.dtype]:
    """(P, channels, H, W) in float64 and the dtype it came in; ValueError for another layout, NaN and infinities."""
    given = array_input.numbers(name, x).to(x.device if isinstance(x, Tensor) else "cpu")
    if given.ndim != 4:
        fix = " for images of one channel x[:, None]" if given.ndim == 3 else " e.g. x.reshape(len(x), 1, 8, 8)"
        raise ValueError(f"{name} must be images (P, channels, H, W): received shape {tuple(given.shape)}; give{fix}")
    _, channels, height, width = given.shape
    if width in (1, 2, 3, 4) and channels == height > 4:
        raise ValueError(
            f"{name} looks like images with channels last, (P, H, W, channels): received shape {tuple(given.shape)}; (P, channels, H, W) "
            f"is needed, give {name}.permute(0, 3, 1, 2) (numpy: {name}.transpose(0, 3, 1, 2))"
        )
    if 0 in given.shape:
        raise ValueError(
            f"{name} is empty: received shape {tuple(given.shape)}; at least one image with one channel needed"
        )
    return given, array_input.precision(x)
