"""measured: networks that were trained elsewhere, as solutions that are compared, drawn and kept like any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meanfield.checking import array_input, checks
from meanfield.checking.arguments import checked
from meanfield.problem.problem import Problem
from meanfield.solution.solution import Solution

_APART = 1e-3  # relative: above float32's rounding over a run, far below a missing factor


@checked
def measured(
    problem: Problem, f: Any, width: int, seed: int = 0, f_test: Any = None, loss: Any = None, name: str = "measured"
) -> Solution:
    """A network of finite width that another program trained, of which the outputs are known; for `deviation`, pictures and files.

    The problem says what it was trained on and how; it is taken at its word, so train by equations 1 and 2. What only a run of this
    library has (kernels, neurons, a state to go on from) is left out. ValueError for outputs of another shape or at other steps, and for
    losses that are not those of the outputs.

    Args:
        problem: What the network was trained on, with the times of its records
        f: (R, P, C) outputs on the training samples at `problem.training.recorded_steps`, from step 0 on; (R, P) for one output
        width: N
        seed: Of its start, which tells networks of one width apart
        f_test: (R, P_test, C) outputs on the test samples, if the problem has some
        loss: (R,) training losses as the other program found them: a check of its loss, no more
        name: Who trained it, for reports

    Example:
        >>> import numpy as np
        >>> import meanfield as mf
        >>> problem = mf.Problem(mf.digits(n_train=4, n_test=0), training=mf.Training(0.2, 5))
        >>> net = mf.measured(problem, f=np.zeros((6, 4, 1)), width=64, name="my program")  # outputs after 0, 1, .., 5 steps
        >>> net.loss[0].item()
        0.5
    """
    width, seed = checks.integer("width", width, 1), checks.seed("seed", seed)
    data = problem.data
    outputs = _outputs(problem, "f", f, data.y.shape)
    tests = None
    if data.x_test is not None:
        if f_test is None:
            raise ValueError(
                "the problem has test samples: give f_test, the outputs there, or a problem without x_test"
            )
        tests = _outputs(problem, "f_test", f_test, (len(data.x_test), *data.y.shape[1:]))
    elif f_test is not None:
        raise ValueError(
            "f_test was given, but the problem has no test samples: give its data x_test, or leave out f_test"
        )
    found = Solution(
        problem=problem,
        solver={"name": name, "width": width, "seed": seed},
        f=outputs,
        f_test=tests,
        state={},
        recorded_steps=problem.training.recorded_steps,
    )
    if loss is not None:
        _must_be_its_loss(found, array_input.numbers("loss", loss))
    return found


def _outputs(problem: Problem, name: str, given: Any, of_one: tuple[int, ...]) -> Tensor:
    """Outputs (R, P, .., C) in float64; ValueError for another shape"""
    values, steps = array_input.numbers(name, given), problem.training.recorded_steps
    right = (len(steps), *of_one)
    if values.shape == right[:-1] and right[-1] == 1:
        values = values[..., None]
    if values.shape != right:
        every = f"steps {steps[0]}, {steps[1]}, .., {steps[-1]}" if len(steps) > 2 else f"steps {steps}"
        raise ValueError(
            f"{name} must have the shape {right}, outputs at the {len(steps)} recorded {every} on {right[1]} samples: received "
            f"{tuple(values.shape)}"
        )
    return values


def _must_be_its_loss(found: Solution, given: Tensor) -> None:
    right = found.loss
    if given.shape != right.shape:
        raise ValueError(
            f"loss must have one value for each of the {len(right)} records: received the shape {tuple(given.shape)}"
        )
    wrong = (given - right).abs() > _APART * torch.maximum(right.abs(), right.abs().max() * _APART)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"loss is not that of f: received {float(given[at]):.6g} at record {at}, where f gives {float(right[at]):.6g}, the mean of the "
            f"loss {found.problem.loss_function.name!r} over the training samples; see whether both speak of one loss (the squared loss "
            "is (f - y)^2 / 2, summed over outputs) and of samples in one order"
        )
