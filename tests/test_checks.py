"""Settings that solvers share: checked alike, and kept in plain form."""

from dataclasses import fields

import numpy as np
import pytest
import torch

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, FixedPointDMFT, InfiniteLogitsLimit, TangentKernelLimit, WassersteinFlow

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


@pytest.mark.parametrize("solver", SOLVERS)
def test_seeds_that_would_repeat_others_are_refused(solver):
    """torch keeps 32 bits of a seed: 2^32 is 0 to it."""
    assert solver(seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(
        ValueError, match=r"seed must be below 2\^32, since torch's generator keeps no more of it: received 4294967297"
    ):
        solver(seed=2**32 + 1)


@pytest.mark.parametrize("ensemble", [FiniteWidth(8).ensemble, TangentKernelLimit().ensemble])
def test_lists_of_seeds_are_held_to_the_same(ensemble):
    asked = mf.Problem(mf.single_index_teacher(3, 0, 2), training=mf.Training(0.1, 1))
    with pytest.raises(ValueError, match=r"seeds\[1\] must be below 2\^32"):
        ensemble(asked, (0, 2**32))
    with pytest.raises(ValueError, match="seeds must be at least 1: received 0"):
        ensemble(asked, 0)


@pytest.mark.parametrize("make", [mf.ParticleMeasure.iid, mf.ParticleMeasure.sobol])
def test_seeds_of_clouds_are_held_to_the_same(make):
    assert make(4, 2, seed=2**32 - 1) != make(4, 2, seed=2**31 - 1)
    with pytest.raises(ValueError, match=r"seed must be below 2\^32"):
        make(4, 2, seed=2**32)
    with pytest.raises(ValueError, match=r"batch_seed must be below 2\^32"):
        mf.Training(0.1, 2, batch_size=1, batch_seed=2**32)
