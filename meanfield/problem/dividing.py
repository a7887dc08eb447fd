"""Which rows of a data set are trained on and which are watched: in their order or shuffled, by classes or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from meanfield.checking import checks
from meanfield.problem.dataset import Dataset

_CLASSES = 2  # rows of a class at least, on average, for targets to be classes


def divided(data: Dataset, n_test: int, n_train: int | None, shuffle: int | None, stratify: bool) -> Dataset:
    """The last `n_test` rows as test samples, and of the others the first `n_train`; after a shuffle if it has a seed.

    `stratify` takes from each class its share, and orders rows as they were. ValueError for more rows than there are.
    """
    n_test, n = checks.integer("n_test", n_test, 0), data.samples
    if n_test and data.x_test is not None:
        raise ValueError(f"x_test is there already: leave out n_test={n_test}")
    if n_test >= n:
        raise ValueError(f"n_test={n_test} leaves no training sample of the {n} rows in {data.name}")
    count = n - n_test if n_train is None else checks.integer("n_train", n_train, 1)
    if count + n_test > n:
        raise ValueError(f"n_train={count} and n_test={n_test} exceed the {n} rows in {data.name}: ask for fewer")
    order = torch.arange(n) if shuffle is None else _shuffled(n, shuffle)
    if stratify:
        order = order[_by_share(data, order, count, n_test)]
    train, test = order[:count], order[len(order) - n_test :]
    if torch.equal(train, torch.arange(n)):
        return data
    parts: dict[str, Any] = {"x": data.x[train], "y": data.y[train]}
    return replace(data, **parts | ({"x_test": data.x[test], "y_test": data.y[test]} if n_test else {}))


def _shuffled(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(checks.seed("shuffle", seed)))


def _by_share(data: Dataset, order: torch.Tensor, n_train: int, n_test: int) -> torch.Tensor:
    """Positions in `order`: of each class the first for training, then of each class the last for the test"""
    kinds, kind = np.unique(data.y.flatten(1).numpy(), axis=0, return_inverse=True)
    if len(kinds) * _CLASSES > data.samples:
        raise ValueError(
            f"stratify=True is for classes: received {len(kinds)} different targets in {data.samples} rows; leave it out"
        )
    kind = kind.reshape(-1)[order.numpy()]
    sizes = np.bincount(kind)
    test = _shares("n_test", n_test, sizes, 0 * sizes, sizes - 1)
    train = _shares("n_train", n_train, sizes, 0 * sizes + 1, sizes - test)
    where = [np.flatnonzero(kind == k) for k in range(len(kinds))]
    first = np.sort(np.concatenate([at[:t] for at, t in zip(where, train, strict=True)]))
    last = np.sort(np.concatenate([at[len(at) - t :] for at, t in zip(where, test, strict=True)]))
    return torch.from_numpy(np.concatenate([first, last]))


def _shares(name: str, count: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Whole numbers between `least` and `most` that sum to `count`, as close to `count * sizes / sum(sizes)` as they can be"""
    if not least.sum() <= count <= most.sum():
        raise ValueError(
            f"{name}={count} leaves a class without training samples, of {len(sizes)} classes with {', '.join(map(str, sizes[:8]))}"
            f"{', ..' * (len(sizes) > 8)} rows: give another number, or leave out stratify"
        )
    ideal = count * sizes / sizes.sum()
    taken = np.clip(np.floor(ideal), least, most).astype(int)
    while (missing := count - taken.sum()) != 0:
        step = int(np.sign(missing))
        free = taken < most if step > 0 else taken > least
        taken[np.where(free, step * (ideal - taken), -np.inf).argmax()] += step
    return taken
