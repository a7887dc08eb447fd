"""What the pictures show, as arrays: solutions by width, samples by class, kernels, pooled neurons, projected particles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanfield.checking import checks
from meanfield.network.keys import parts
from meanfield.problem.dataset import Dataset
from meanfield.problem.stream import Stream
from meanfield.solution.solution import Solution
from meanfield.solution.two_time import TwoTimeKernel, recorded

Solutions = Solution | Sequence[Solution]

_MOST_CLASSES = 10
_POINTS = 3000  # particles drawn
_DIRECTIONS = r"$w \cdot v_1$, direction of most movement", r"$w \cdot v_2$, second direction"


def several(solutions: Solutions | None) -> list[Solution]:
    """A list of solutions from one, many or none."""
    return [] if solutions is None else [solutions] if isinstance(solutions, Solution) else list(solutions)


def shown_samples(data: Dataset, test: bool = False, most: int = 3) -> list[int]:
    """Those that are drawn if nobody says which: the first of each class, then the next; without classes the least, middle and largest
    target."""
    y = data.y_test if test else data.y
    if y is None or y.ndim > 2:
        return list(range(min(most, max(data.points - data.samples if test else data.samples, 1))))
    if (found := classes_of(data, test)) is None:
        order = np.argsort(y[:, 0].numpy(), kind="stable")
        return [int(order[k]) for k in np.unique(np.linspace(0, len(y) - 1, min(most, len(y))).round().astype(int))]
    numbers, _ = found
    turns = np.array([np.sum(numbers[:mu] == numbers[mu]) for mu in range(len(numbers))])
    return [int(mu) for mu in np.lexsort((numbers, turns))[:most]]


def told(data: Dataset, mu: int, column: int, test: bool) -> str:
    """A sample and the output that is drawn of it, in words"""
    which = "test" if test else "watched" if isinstance(data, Stream) else "training"
    found, rows = classes_of(data, test), data.points - data.samples if test else data.samples
    of = f", class {found[1][found[0][mu]]}" if found is not None and -rows <= mu < rows else ""
    return f"{which} sample {mu}{of}" + (f", output {column}" if data.outputs > 1 else "")


def row(tensor: Tensor, index: int) -> Tensor:
    """tensor[index]; ValueError for a sample that does not exist."""
    if not -len(tensor) <= index < len(tensor):
        raise ValueError(f"sample {index} does not exist: there are {len(tensor)}, counted from 0")
    return tensor[index]


def classes_of(data: Dataset, test: bool = False) -> tuple[np.ndarray, list[str]] | None:
    """(number of its class of each sample, names of the classes), from the targets: the largest output, or the value of a single one.

    None without targets, with positions, and for targets of many values without names.
    """
    y = data.y_test if test else data.y
    if y is None or y.ndim > 2:
        return None
    if y.shape[1] > 1:
        numbers, names = y.argmax(1).numpy(), list(data.classes) or [str(k) for k in range(y.shape[1])]
    elif data.classes:  # -1 and +1
        numbers, names = (y[:, 0] > 0).long().numpy(), list(data.classes)
    else:
        values, numbers = np.unique(y[:, 0].numpy(), return_inverse=True)
        names = [f"{value:+g}" if values[0] < 0 else f"{value:g}" for value in values]
        if len(values) >= max(len(y), 2):
            return None
    return (numbers, names) if len(np.unique(numbers)) <= _MOST_CLASSES else None


def by_class(data: Dataset) -> tuple[np.ndarray, list[int], list[str]]:
    """Training samples in order of their class, where a class ends in it, and the names of those that there are; without classes in
    order of their target, with positions as they come."""
    if (found := classes_of(data)) is None:
        order = np.arange(len(data.y)) if data.y.ndim > 2 else np.argsort(data.y[:, 0].numpy(), kind="stable")
        return order, [], []
    numbers, names = found
    order = np.argsort(numbers, kind="stable")
    borders = (np.flatnonzero(np.diff(numbers[order])) + 1).tolist()
    return order, borders, [names[k] for k in np.unique(numbers)]


def kernel_matrix(solution: Solution, name: str, step: int) -> np.ndarray:
    """(P, P) the kernel at a step; with several outputs the mean over pairs of equal outputs. ValueError if not recorded.

    Of a module (Q, Q) over its rows, samples and their positions, where it has more of them.
    """
    p, c = solution.problem.data.samples, solution.problem.data.outputs
    tangent = name == "tangent_kernel"
    kernel = solution.tangent_kernel(step) if tangent else solution.kernels[name].at(step)
    if kernel.numel() > p * p and (tangent or solution.problem.trial is None):
        kernel = kernel.reshape(p, c, p, c).diagonal(dim1=1, dim2=3).mean(-1)
    return kernel.double().numpy()


def recorded_tensor(solution: Solution, name: str, step: int, at: tuple[int, ...] | None) -> tuple[str, np.ndarray]:
    """(the name with its indices, the matrix or vector at them) of what an architecture records (P, ..); at: None takes the first of each
    axis but the last two, and of the samples where there are other axes.

    ValueError for what was not recorded, does not exist, or is neither.
    """
    if not solution.recorded:
        raise ValueError(
            f"{solution!r} recorded no tensors: name some, mf.Architecture(Net, record={{{name!r}: ..}}), and ask for snapshots"
        )
    tensor = checks.lookup("name of what is recorded", name, solution.recorded)[recorded(step, solution.snapshots)]
    where = (0,) * max(min(tensor.ndim - 1, 1), tensor.ndim - 2) if at is None else at
    if not 0 < tensor.ndim - len(where) <= 2:
        least, most = max(tensor.ndim - 2, 0), max(tensor.ndim - 1, 0)
        right = f"{least} indices" if least == most else f"{least} or {most} indices"
        raise ValueError(
            f"at must leave a matrix or a vector of {name!r}, whose shape is {tuple(tensor.shape)}: received {where}; give {right}"
        )
    for axis, (index, size) in enumerate(zip(where, tensor.shape, strict=False)):
        if not -size <= index < size:
            raise ValueError(
                f"at[{axis}] = {index} does not exist: the shape of {name!r} is {tuple(tensor.shape)}, counted from 0"
            )
    return name + (str(list(where)) if where else ""), tensor[where].double().numpy()


def two_times(solution: Solution, name: str, most: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(steps, matrix over pairs (t, s) of steps) of a kernel or response, mean over equal samples and outputs; at most `most` steps.

    ValueError for one that was not recorded at all pairs of steps.
    """
    found = solution.kernels.get(name) or solution.responses.get(name)
    every = np.array(solution.recorded_steps)
    chosen = np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int))
    steps = every[chosen]
    if found is None or (isinstance(found, TwoTimeKernel) and not set(steps.tolist()) <= set(found.steps)):
        of_all = [str(key) for key, kernel in solution.kernels.items() if set(steps.tolist()) <= set(kernel.steps)]
        hint = "CausalDMFT(responses=True)" if parts(name)[0] in ("A", "B") else "CausalDMFT(two_time=True)"
        if parts(name)[0] not in ("A", "B") and (solution.width is not None or solution.problem.trial is not None):
            hint = "snapshots at all of them"
        known = ", ".join([*of_all, *solution.responses]) or "none"
        raise ValueError(f"{name} was not recorded at all pairs of steps: solve with {hint}; recorded so are {known}")
    if isinstance(found, TwoTimeKernel):
        factor = found.factor[[recorded(int(step), found.steps) for step in steps]]
        return steps, torch.einsum("tkq,skq->ts", factor, factor).double().numpy() / factor.shape[2]
    matrix = np.zeros((len(steps), len(steps)))
    outputs = solution.problem.data.outputs
    for i, t in enumerate(steps):
        rows = found.to_earlier(int(t))[steps[steps < t + found.instant]]  # (s, Q, Q')
        a = rows if parts(name)[0] == "A" else rows.transpose(1, 2)  # (s, P, P C)
        same = a.reshape(len(rows), a.shape[1], a.shape[1], outputs).diagonal(dim1=1, dim2=2)
        matrix[i, : len(rows)] = same.double().mean((1, 2)).numpy()
    return steps, matrix


def pooled(group: Sequence[Solution], step: int, layer: int | str, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Preactivations at one sample of the neurons of all solutions, and their weights, which sum to 1"""
    pairs = [s.preactivations(step, layer) for s in group]
    h = torch.cat([row(h.T, sample) for h, _ in pairs]).double().numpy()
    return h, torch.cat([m for _, m in pairs]).double().numpy() / len(pairs)


@dataclass(frozen=True)
class Clouds:
    """The drawn particles of a solution in a plane, by snapshot; particles with large final readouts come last."""

    axes: tuple[str, str]
    points: dict[int, np.ndarray]  # (n, 2)
    readouts: dict[int, np.ndarray]  # (n,)
    sizes: np.ndarray  # (n,) areas, proportional to the particle weights
    isometric: bool  # whether angles in the plane mean something


def clouds(solution: Solution, output: int) -> Clouds:
    """Both input weights for two inputs, (w, a) for one, else the two directions in which the input weights moved most."""
    solution.measure()  # says what to do if there are none
    measures = {step: measure.to("cpu", torch.float64) for step, measure in sorted(solution.particles.items())}
    first, last = measures[min(measures)], measures[max(measures)]
    if not 0 <= output < first.a.shape[1]:
        raise ValueError(f"output {output} does not exist: the particles have {first.a.shape[1]} readout(s)")
    rows = _drawn(first.m)
    rows = rows[last.a[rows, output].abs().argsort()]
    readouts = {step: q.a[rows, output].numpy() for step, q in measures.items()}
    inputs = first.w.shape[1]
    if inputs == 1:
        axes = "input weight $w$", "readout $a$"
        points = {step: np.stack([q.w[rows, 0].numpy(), readouts[step]], 1) for step, q in measures.items()}
    else:
        axes = ("input weight $w_1$", "input weight $w_2$") if inputs == 2 else _DIRECTIONS
        plane = torch.eye(2).double() if inputs == 2 else _plane_of_movement(first.w, last.w, first.m)
        points = {step: (q.w[rows] @ plane).numpy() for step, q in measures.items()}
    area = min(20.0, 15_000 / len(rows))
    sizes = np.clip(area * (first.m[rows] / first.m[rows].mean()).numpy(), 0.3, 80)
    return Clouds(axes, points, readouts, sizes, inputs > 1)


def _plane_of_movement(start: Tensor, end: Tensor, m: Tensor) -> Tensor:
    """(D, 2) the two main directions of the movement (of the cloud itself if nothing moved)"""
    moved = end - start if not torch.equal(end, start) else start
    directions = torch.linalg.eigh(moved.T @ (m[:, None] * moved)).eigenvectors[:, -2:].flip(1)
    return directions * torch.where(directions.sum(0) < 0, -1.0, 1.0)  # eigenvectors have no sign of their own


def _drawn(m: Tensor) -> Tensor:
    """At most `_POINTS` particles: the heaviest, or a random choice if all weigh the same; none that weighs next to nothing."""
    shuffled = torch.randperm(len(m), generator=torch.Generator().manual_seed(0))
    rows = shuffled[m[shuffled].argsort(descending=True, stable=True)[:_POINTS]]
    return rows[m[rows] > 1e-3 * m.mean()]


_NAMES = {
    "f": "outputs $f$, whole run",
    "f_test": "test outputs $f$, whole run",
    "loss": "training loss, whole run",
    "test_loss": "test loss, whole run",
    "tangent_kernel": "tangent kernel $K$, last snapshot",
    "measure": "measure of neurons, last snapshot",
    "Phi": "feature kernel {0}, last snapshot",
    "G": "gradient kernel {0}, last snapshot",
    "h": "preactivations {0}, last snapshot",
}


def symbol(kind: str, layer: int | str | None, of: str = "") -> str:
    """As it is printed: the number of a layer above the kind, a name, which may hold what mathtext would take as its own, in brackets"""
    letter = "\\Phi" if kind == "Phi" else kind
    return f"${letter}^{{{layer}}}{of}$" if isinstance(layer, int) else f"${letter}$[{layer}]" + (of and f"${of}$")


def described(name: str) -> str:
    """An observable in words."""
    kind, layer = parts(name)
    return _NAMES.get(kind, name).format(symbol(kind, layer))


def when(solution: Solution, step: int) -> str:
    """A recorded step in words; -1 is the last one recorded."""
    k = solution.snapshots[-1] if step == -1 and solution.snapshots else step
    return f"time {float(solution.problem.training.times_of([k])[0]):.3g}"
