"""Datasets by name: scikit-learn's digits, a Gaussian mixture, teacher networks. To add one, write a function that returns a `Dataset`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.problem import data_laws
from meanfield.problem.dataset import Dataset, split
from meanfield.problem.transformation import unit_norm


@checked
def digits(
    classes: Sequence[int] = (0, 1), n_train: int = 32, n_test: int = 64, seed: int = 0, one_hot: bool | None = None
) -> Dataset:
    """Scikit-learn's 8 x 8 digits, D = 64, each image scaled to norm sqrt(D), x . x / D = 1; training and test samples are disjoint.

    `data.transform(images)` scales others alike.

    Two classes give y = +1 (the first class) and -1, shape (P, 1); more give one-hot rows.

    Args:
        classes: Which digits
        n_train: Training samples
        n_test: Test samples
        seed: Of the draw
        one_hot: One-hot targets for two classes as well

    Example:
        >>> import meanfield as mf
        >>> mf.digits(classes=(3, 8), n_train=16, n_test=8)
        Dataset('digits 3/8', samples=16, inputs=64, outputs=1, test=8, classes=2)
        >>> mf.digits(classes=(0, 1, 2), n_train=6, n_test=0).y[0]
        tensor([0., 1., 0.], dtype=torch.float64)
    """
    from sklearn.datasets import load_digits

    classes = checks.integers("classes", classes, 0)
    if len(classes) < 2 or max(classes) > 9:
        raise ValueError(f"classes must be at least two different digits 0..9: received {classes}")
    n_train, n_test = checks.integer("n_train", n_train, 1), checks.integer("n_test", n_test, 0)
    images, labels = load_digits(return_X_y=True)
    of_class = np.flatnonzero(np.isin(labels, classes))
    if n_train + n_test > len(of_class):
        raise ValueError(
            f"n_train + n_test = {n_train + n_test} exceeds the {len(of_class)} images of the digits {classes}: ask for fewer"
        )
    chosen = of_class[torch.randperm(len(of_class), generator=_generator(seed))[: n_train + n_test].numpy()]
    scaled = unit_norm(images.shape[1:])
    x = scaled(images[chosen])
    index = torch.tensor([classes.index(int(label)) for label in labels[chosen]])
    names = tuple(map(str, classes))
    if one_hot or (one_hot is None and len(classes) > 2):
        y = torch.nn.functional.one_hot(index, len(classes)).double()
    elif len(classes) == 2:
        y, names = (1.0 - 2.0 * index)[:, None], names[::-1]  # the first class is +1
    else:
        raise ValueError(f"{len(classes)} classes need one-hot targets: leave out one_hot=False, or give two classes")
    return split(x, y, n_test, f"digits {'/'.join(map(str, classes))}", names, scaled)


@checked
def gaussian_mixture(
    n_train: int = 32, n_test: int = 64, inputs: int = 10, classes: int = 2, separation: float = 2.0, seed: int = 0
) -> Dataset:
    """Equally likely Gaussian clusters of unit variance with random means.

    Two classes have opposite means and y = +-1, shape (P, 1); more give one-hot rows.

    Args:
        n_train: Training samples
        n_test: Test samples
        inputs: Dimensions D of the inputs
        classes: How many clusters
        separation: Norm of the clusters' means
        seed: Of the draw

    Example:
        >>> import meanfield as mf
        >>> mf.gaussian_mixture(n_train=6, n_test=4, inputs=3, classes=3).y.shape
        torch.Size([6, 3])
    """
    classes, separation = checks.integer("classes", classes, 2), checks.positive("separation", separation, zero=True)
    n_train, n_test, inputs = _sizes(n_train, n_test, inputs, classes, "classes")
    g = _generator(seed)
    x, y = data_laws.clustered(data_laws.means(classes, inputs, separation, g), n_train + n_test, g)
    names = tuple(map(str, range(classes)))
    return split(x, y, n_test, f"gaussian mixture of {classes}", names[::-1] if classes == 2 else names)


@checked
def multi_index_teacher(
    n_train: int = 32,
    n_test: int = 64,
    inputs: int = 10,
    directions: int = 2,
    link: data_laws.Link = "tanh",
    noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Gaussian inputs x ~ N(0, I_D), y = link(x . u_1) + ... + link(x . u_k) with orthonormal u.

    A `link` of your own is a function of the projections (P, k) -> (P, k) that is summed over k; ValueError for another shape.

    Args:
        n_train: Training samples
        n_test: Test samples
        inputs: Dimensions D of the inputs
        directions: How many directions k the teacher looks at
        link: The teacher's nonlinearity
        noise: Standard deviation of noise on the training targets
        seed: Of the draw

    Example:
        >>> import meanfield as mf
        >>> data = mf.multi_index_teacher(n_train=6, n_test=4, inputs=3, directions=2, link="relu", noise=0.1)
        >>> data.x.shape, data.y.shape
        (torch.Size([6, 3]), torch.Size([6, 1]))
    """
    directions, noise = checks.integer("directions", directions, 1), checks.positive("noise", noise, zero=True)
    n_train, n_test, inputs = _sizes(n_train, n_test, inputs, directions, "directions")
    if directions > inputs:
        raise ValueError(f"directions={directions} exceeds inputs={inputs}: there are no more orthonormal directions")
    g = _generator(seed)
    u = data_laws.directions(inputs, directions, g)
    x = torch.randn(n_train + n_test, inputs, generator=g, dtype=torch.float64)
    y = data_laws.linked(link, x @ u)
    y[:n_train] += noise * torch.randn(n_train, 1, generator=g, dtype=torch.float64)
    return split(x, y, n_test, f"{directions}-index teacher")


@checked
def single_index_teacher(
    n_train: int = 32,
    n_test: int = 64,
    inputs: int = 10,
    link: data_laws.Link = "tanh",
    noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """y = link(x . u) with x ~ N(0, I_D) and one random unit direction u: `multi_index_teacher` explains the arguments.

    Example:
        >>> import meanfield as mf
        >>> mf.single_index_teacher(n_train=6, n_test=4, inputs=3).x_test.shape
        torch.Size([4, 3])
    """
    return multi_index_teacher(n_train, n_test, inputs, 1, link, noise, seed)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(checks.seed("seed", seed))


def _sizes(n_train: int, n_test: int, inputs: int, others: int, what: str) -> tuple[int, int, int]:
    n_train, n_test = checks.integer("n_train", n_train, 1), checks.integer("n_test", n_test, 0)
    inputs, samples = checks.integer("inputs", inputs, 1), n_train + n_test
    checks.memory(
        f"a data set of {samples} samples with {inputs} inputs and {others} {what}",
        24.0 * (samples * (inputs + others) + inputs * others),  # numbers of 8 bytes, and two copies on the way
        f"take fewer samples, inputs or {what}",
    )
    return n_train, n_test, inputs
