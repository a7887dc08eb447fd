"""Laws of samples that never end, for streams: Gaussian teachers and mixtures. To add one, see `Law`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.network.activations import Activation, activation

Law = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""law(count, generator) gives x (count, ..) and y (count, ..) and draws from this generator alone"""
Link = str | Activation | Callable[[Tensor], Tensor]


@checked
@dataclass(frozen=True)
class Teacher:
    """Gaussian inputs x ~ N(0, I_D), y = link(x . u_1) + ... + link(x . u_k) with orthonormal u, for `mf.stream` (equation 118).

    The directions are those of `mf.multi_index_teacher` with the same seed.

    Example:
        >>> import meanfield as mf
        >>> data = mf.stream(mf.Teacher(inputs=5, directions=2, link="relu"), batch=4, watched=8)
        >>> data.x.shape, data.y.shape
        (torch.Size([8, 5]), torch.Size([8, 1]))
    """

    inputs: int = 10
    """Dimensions D of the inputs"""
    directions: int = 1
    """How many directions k the teacher looks at"""
    link: Link = "tanh"
    """The teacher's nonlinearity; one of your own is a function of the projections (P, k) -> (P, k) that is summed over k"""
    noise: float = 0.0
    """Standard deviation of noise on the targets that are trained on"""
    seed: int = 0
    """Of the directions"""

    def __post_init__(self) -> None:
        checks.normalise(self, inputs=1, directions=1)
        object.__setattr__(self, "noise", checks.positive("noise", self.noise, zero=True))
        if self.directions > self.inputs:
            raise ValueError(
                f"directions={self.directions} exceeds inputs={self.inputs}: there are no more orthonormal directions"
            )
        what = f"directions={self.directions} of inputs={self.inputs}"
        checks.memory(what, 24.0 * self.inputs * self.directions, "take fewer inputs or directions")
        if isinstance(self.link, str):
            activation(self.link)

    @property
    def name(self) -> str:
        """In reports"""
        return f"{self.directions}-index teacher"

    @property
    def quiet(self) -> Teacher:
        """The same without noise"""
        return replace(self, noise=0.0)

    @cached_property
    def vectors(self) -> Tensor:
        """(D, k) the directions u"""
        return directions(self.inputs, self.directions, torch.Generator().manual_seed(self.seed))

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x (count, D) and y (count, 1)"""
        x = torch.randn(count, self.inputs, generator=generator, dtype=torch.float64)
        y = linked(self.link, x @ self.vectors)
        noise = self.noise * torch.randn(count, 1, generator=generator, dtype=torch.float64) if self.noise else 0.0
        return x, y + noise


@checked
@dataclass(frozen=True)
class Mixture:
    """Equally likely Gaussian clusters of unit variance with random means, for `mf.stream`: those of `mf.gaussian_mixture` with the same
    seed. Two classes have opposite means and y = +-1; more give one-hot rows.

    Example:
        >>> import meanfield as mf
        >>> data = mf.stream(mf.Mixture(inputs=5, classes=2, separation=3.0), batch=4, watched=8)
        >>> data.x.shape, data.y.unique().tolist()
        (torch.Size([8, 5]), [-1.0, 1.0])
    """

    inputs: int = 10
    """Dimensions D of the inputs"""
    classes: int = 2
    """How many clusters"""
    separation: float = 2.0
    """Norm of the clusters' means"""
    seed: int = 0
    """Of the means"""

    def __post_init__(self) -> None:
        checks.normalise(self, inputs=1, classes=2)
        object.__setattr__(self, "separation", checks.positive("separation", self.separation, zero=True))
        what = f"classes={self.classes} of inputs={self.inputs}"
        checks.memory(what, 24.0 * self.inputs * self.classes, "take fewer inputs or classes")

    @property
    def name(self) -> str:
        """In reports"""
        return f"gaussian mixture of {self.classes}"

    @cached_property
    def means(self) -> Tensor:
        """(classes, D)"""
        return means(self.classes, self.inputs, self.separation, torch.Generator().manual_seed(self.seed))

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x (count, D) and y (count, 1), or one-hot rows (count, classes)"""
        return clustered(self.means, count, generator)


def directions(inputs: int, count: int, generator: torch.Generator) -> Tensor:
    """(D, k) orthonormal"""
    return torch.linalg.qr(torch.randn(inputs, count, generator=generator, dtype=torch.float64)).Q


def linked(link: Link, projections: Tensor) -> Tensor:
    """(n, 1) targets of projections (n, k); ValueError for a link of the user's that gives another shape"""
    found = (link if callable(link) else activation(link))(projections)
    if not isinstance(found, Tensor) or found.shape != projections.shape or found.is_complex():
        got = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"link must give real numbers of the shape of its argument {tuple(projections.shape)}: received {got}"
        )
    return found.detach().double().sum(1, keepdim=True)


def means(classes: int, inputs: int, separation: float, generator: torch.Generator) -> Tensor:
    """(classes, D) of clusters, opposite ones of two"""
    found = torch.randn(classes, inputs, generator=generator, dtype=torch.float64)
    if classes == 2:
        found[1] = -found[0]
    return separation * found / found.norm(dim=1, keepdim=True)


def clustered(centres: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (count, D) around these means (classes, D), and y"""
    classes, inputs = centres.shape
    label = torch.randint(classes, (count,), generator=generator)
    x = centres[label] + torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    y = (1.0 - 2.0 * label)[:, None] if classes == 2 else torch.nn.functional.one_hot(label, classes)
    return x, y.double()
