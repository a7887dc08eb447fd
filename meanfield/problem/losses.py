"""Losses of outputs f (..., P, C) against targets y (P, C), and Delta = -d loss / d f (equation 2); with positions (..., P, positions, C).

The training loss is the mean of `value` over the P samples, and over their positions. To add a loss, add an entry to `_KNOWN` (or
`register` your own), and it is known everywhere by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.checking.arguments import checked
from meanfield.checking.own_functions import check_loss


def any_targets(y: Tensor) -> None:
    """Of a loss that all numbers fit"""


@checked
@dataclass(frozen=True)
class Loss:
    """A loss of one sample; one of your own is tried against autograd when a Problem is made with it (`fits`).

    Example:
        >>> import torch
        >>> import meanfield as mf
        >>> def any_target(y):
        ...     pass
        >>> quartic = mf.Loss("quartic", lambda f, y: ((f - y) ** 4).sum(-1) / 4, lambda f, y: -((f - y) ** 3), any_target)
        >>> mf.Problem(mf.digits(n_train=4, n_test=0), loss=quartic).loss.name  # tried against autograd here
        'quartic'
    """

    name: str
    """By which it is found, and what files keep"""
    value: Callable[[Tensor, Tensor], Tensor] = field(repr=False, compare=False)
    """value(f, y) -> (..., P), of outputs and targets (..., P, C); of any axes between P and C each position has its own"""
    delta: Callable[[Tensor, Tensor], Tensor] = field(repr=False, compare=False)
    """delta(f, y) -> (..., P, C), -d value / d f"""
    check: Callable[[Tensor], None] = field(default=any_targets, repr=False, compare=False)
    """check(y) raises ValueError for targets that do not fit; all fit if left out"""
    counted: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    """counted(y) -> (P, ..) which targets enter the mean, for a loss whose value and Delta vanish at others; None: all"""

    def mean(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss averaged over samples, and their positions, that are counted, for every leading dimension of f (.., P, .., C)."""
        if y.ndim < 2 or f.ndim < y.ndim or f.shape[-y.ndim :] != y.shape:
            raise ValueError(
                f"f must have shape (.., P, C) for y (P, C): received f of shape {tuple(f.shape)}, y of {tuple(y.shape)}"
            )
        return averaged(self, f, y)

    def fits(self, *targets: Tensor) -> None:
        """ValueError for targets (P, .., C) that do not fit, and for a loss of the user's whose Delta is not -d value / d f on them."""
        for y in targets:
            self.check(y)
        if not self._ours:
            check_loss(self.name, self.value, self.delta, targets[0], self.counted)

    @property
    def _ours(self) -> bool:
        """The library's own, which tests have tried"""
        return self.name in _OWN and (_KNOWN | _BY_NAME)[self.name] is self

    def __reduce__(self):  # other processes look the library's own up by name; a user's must be picklable itself
        return (loss, (self.name,)) if self._ours else super().__reduce__()

    def at_infinite_logits(self) -> Loss:
        """The limit c -> infinity of value(c f, y) / c and delta(c f, y) (equation 67); ValueError if there is none."""
        if self.is_at_infinite_logits:
            return self
        if self.name not in _AT_INFINITY:
            why = (
                "Delta = y - f grows with them" if self.name == "squared" else "its Delta at infinite logits is unknown"
            )
            raise ValueError(
                f"the loss {self.name!r} has no limit at infinite logits ({why}): take one of {', '.join(sorted(_AT_INFINITY))}"
            )
        return _AT_INFINITY[self.name]

    @property
    def is_at_infinite_logits(self) -> bool:
        return _BY_NAME.get(self.name) is self

    def at_finite_logits(self) -> Loss:
        """The loss whose limit this one is; itself if it is none"""
        return next((_KNOWN[name] for name, found in _AT_INFINITY.items() if found is self), self)


def averaged(loss: Loss, f: Tensor, y: Tensor) -> Tensor:
    """`Loss.mean` without its checks, which take as long as a small step; 0 where no target is counted"""
    values = loss.value(f, y).flatten(1 - y.ndim)
    if loss.counted is None:
        return values.mean(-1)
    counts = loss.counted(y).flatten().to(values)
    return (values * counts).sum(-1) / counts.sum().clamp(min=1)


def counted(loss: Loss, y: Tensor) -> int:
    """Of how many targets (P, .., C), at least one, the loss is the mean"""
    return y[..., 0].numel() if loss.counted is None else max(1, int(loss.counted(y).sum()))


def loss(which: str | Loss) -> Loss:
    """The loss called `which`; ValueError listing the known names.

    Example:
        >>> import meanfield as mf
        >>> mf.loss("logistic").name
        'logistic'
    """
    if isinstance(which, Loss):
        return which
    return checks.lookup("loss", which, _BY_NAME if isinstance(which, str) and which in _BY_NAME else _KNOWN)


@checked
def register(new: Loss) -> Loss:
    """Make a user's loss known by its name, to problems, files and the shell; ValueError if the name is taken by another one.

    Example:
        >>> import meanfield as mf
        >>> def any_target(y):
        ...     pass
        >>> loss = mf.Loss("fourth power", lambda f, y: ((f - y) ** 4).sum(-1) / 4, lambda f, y: -((f - y) ** 3), any_target)
        >>> known = mf.register_loss(loss)
        >>> mf.Problem(mf.digits(n_train=4, n_test=0), loss="fourth power").loss.name
        'fourth power'
    """
    if new.name in _BY_NAME or _KNOWN.setdefault(new.name, new) is not new:
        raise ValueError(f"the loss name {new.name!r} is taken: choose another")
    return new


def names() -> tuple[str, ...]:
    return tuple(sorted(_KNOWN))


def _any_target(y: Tensor) -> None:
    del y  # the squared loss takes every finite target


def _signs(y: Tensor) -> None:
    other = y[(y != 1) & (y != -1)]
    if len(other):
        raise ValueError(
            f"labels do not fit the loss 'logistic': received the label {other[0].item():g}; labels must be -1 or +1 "
            "(or one column of two whole numbers; for more classes and for one-hot rows take the loss 'cross_entropy')"
        )


def _distributions(y: Tensor) -> None:
    if y.shape[-1] < 2:
        raise ValueError(
            f"labels do not fit the loss 'cross_entropy': received {y.shape[-1]} column; each row must be a distribution over "
            "at least two classes (one-hot, or one column of whole numbers from 0 on, one for each class)"
        )
    bad = ((y < 0).any(-1) | (((y.sum(-1) - 1).abs() > 1e-6) & _some_class(y).bool())).nonzero()
    if len(bad):
        row, *position = bad[0].tolist()
        where = f"row {row}" + f", position {', '.join(map(str, position))}" * bool(position)
        raise ValueError(
            f"labels do not fit the loss 'cross_entropy': {where} is {y[(row, *position)].tolist()}; each row must be non-negative and "
            "sum to 1 (one-hot: torch.nn.functional.one_hot(labels)), or be all zeros where it is not counted"
        )


def _some_class(y: Tensor) -> Tensor:
    """(P, ..) 1 where a row has a class, 0 where it is all zeros, which is not counted"""
    return y.amax(-1).sign()  # in the numbers of y: small steps would notice what a change of kind costs


_KNOWN = {
    found.name: found
    for found in (
        Loss("squared", lambda f, y: 0.5 * (f - y).square().sum(-1), lambda f, y: y - f, _any_target),
        Loss(
            "logistic",
            lambda f, y: torch.logaddexp(-y * f, torch.zeros_like(f)).sum(-1),
            lambda f, y: y * torch.sigmoid(-y * f),
            _signs,
        ),
        Loss(
            "cross_entropy",
            lambda f, y: -(y * torch.log_softmax(f, -1)).sum(-1),
            lambda f, y: y - torch.softmax(f, -1) * _some_class(y)[..., None],
            _distributions,
            _some_class,
        ),
    )
}


def _share_of_largest(f: Tensor) -> Tensor:
    """softmax(c f) for c -> infinity: 1 at the largest entry, equal shares if there are several"""
    largest = (f == f.amax(-1, keepdim=True)).to(f)
    return largest / largest.sum(-1, keepdim=True)


_AT_INFINITY = {
    "logistic": Loss(
        "logistic at infinite logits",
        lambda f, y: torch.relu(-y * f).sum(-1),
        lambda f, y: y * torch.heaviside(-y * f, f.new_tensor(0.5)),
        _signs,
    ),
    "cross_entropy": Loss(
        "cross_entropy at infinite logits",
        lambda f, y: f.amax(-1) * _some_class(y) - (y * f).sum(-1),
        lambda f, y: y - _share_of_largest(f) * _some_class(y)[..., None],
        _distributions,
        _some_class,
    ),
}
_BY_NAME = {found.name: found for found in _AT_INFINITY.values()}
_OWN = frozenset(_KNOWN) | frozenset(_BY_NAME)
