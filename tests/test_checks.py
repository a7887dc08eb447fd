"""Settings that solvers share: checked alike, and kept in plain form."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    TangentKernelLimit,
    WassersteinFlow,
)

SOLVERS = [CausalDMFT, FiniteWidth, FixedPointDMFT, InfiniteLogitsLimit, TangentKernelLimit, WassersteinFlow]


@pytest.mark.parametrize("solver", SOLVERS)
def test_settings_are_kept_in_plain_form(solver):
    made = solver(seed=np.int64(3), dtype=torch.float32, snapshots=[0, 2])
    assert (made.seed, made.dtype, made.snapshots) == (3, "float32", (0, 2))
    assert type(made.seed) is int


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"seed": None}, "seed must be a number: received None"),
        ({"seed": -1}, "seed must be at least 0: received -1"),
        ({"dtype": "float16"}, "unknown dtype: received 'float16'; known: float32, float64"),
        ({"device": "abacus"}, "unknown device: received 'abacus'"),
        ({"rtol": 0}, "rtol must be positive"),
        ({"tolerance": float("nan")}, "tolerance must be positive and finite"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_all_that_have_them(solver, setting, message):
    if set(setting) <= {field.name for field in fields(solver)}:
        with pytest.raises(ValueError, match=message):
            solver(**setting)
    else:
        with pytest.raises(TypeError, match="unexpected keyword"):
            solver(**setting)


@pytest.mark.parametrize("size", ["samples", "groups"])
def test_none_passes_only_where_it_is_the_default(size):
    assert CausalDMFT(tolerance=None, max_rank=None).tolerance is None
    with pytest.raises(ValueError, match=f"{size} must be a number: received None"):
        CausalDMFT(**{size: None})
