"""Standard: the standard parameterizations, whose weights have variances 1/N_l and one learning rate (equations 44 and 45)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.network.layered import Layered


@checked
@dataclass(frozen=True)
class Standard:
    """The standard parameterization W_ij ~ N(0, weight_std^2 / N_l), b_i ~ N(0, bias_std^2), one learning rate for all (equation 44).

    Example:
        >>> import meanfield as mf
        >>> mf.improved_standard(512), mf.naive_standard((256, 512)).improved
        (Standard(widths=(512,), improved=True), False)
    """

    widths: tuple[int, ...]
    """Of the hidden layers, N_1 .. N_L; a single one stands for all of them, and for build(n) of a module, whose layers follow from n"""
    improved: bool = True
    """The width s N_l goes to infinity, h^{l+1} = W phi(h^l) / sqrt(s) + b, at fixed N_l; otherwise the network has these very widths and
    its kernel grows with them"""

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty: give one per hidden layer, or one for all, e.g. widths=(512, 512)")
        object.__setattr__(
            self, "widths", tuple(checks.integer(f"widths[{i}]", n, 1) for i, n in enumerate(self.widths))
        )

    @property
    def name(self) -> str:
        """For messages and reports"""
        return "improved_standard" if self.improved else "naive_standard"

    @property
    def reference(self) -> int:
        """n of the module build(n) whose layers have the widths N_l; ValueError if several are given."""
        n, *others = self.widths
        if others:
            raise ValueError(
                f"the layers of a module build(n) follow from one n: received widths={self.widths}; give one number, and layers of other "
                "widths in the builder, e.g. nn.Linear(n, 2 * n)"
            )
        return n

    def output_multiplier(self, width: int) -> float:
        """sigma(n) = 1/sqrt(n) of equation 79, as of `ntk()`: readouts are weight_std / sqrt(fan_in) times N(0, 1) numbers"""
        return checks.integer("width", width, 1) ** -0.5

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
    """The improved standard parameterization: per-layer widths stay in the kernel, which is finite (equation 44).

    Of a module build(n) give n: its layers have the widths, and its filters the sizes, of build(n).

    Example:
        >>> import meanfield as mf
        >>> x = mf.digits(n_train=3, n_test=0).x
        >>> nngp, ntk = mf.nngp_and_ntk(mf.Network(2, "relu"), mf.improved_standard((256, 512)), x)
        >>> ntk.shape
        torch.Size([3, 3])
    """
    return Standard(_tuple(widths), improved=True)


@checked
def naive_standard(widths: int | Iterable[int] | None = None) -> Standard:
    """The standard parameterization at these finite widths: its kernel to leading order, which diverges like N (equation 45).

    ValueError without widths: there is no limit.

    Example:
        >>> import meanfield as mf
        >>> x = mf.digits(n_train=3, n_test=0).x
        >>> kernels = [mf.nngp_and_ntk(mf.Network(2, "relu"), mf.naive_standard(width), x)[1] for width in (256, 512)]
        >>> round((kernels[1][0, 0] / kernels[0][0, 0]).item(), 6)  # it grows with the width
        1.888889
    """
    if widths is None:
        raise ValueError(
            "the naive standard parameterization has no infinite-width kernel: it diverges like N. Give the widths of a finite network, "
            "naive_standard(widths=(512, 512)), or take improved_standard(widths) or ntk()"
        )
    return Standard(_tuple(widths), improved=False)


def _tuple(widths: int | Iterable[int]) -> tuple[int, ...]:
    return tuple(widths) if isinstance(widths, Iterable) else (widths,)
