"""The width for an error: its equation, and networks of that width."""

import math
from dataclasses import replace

import pytest
import torch

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow, predicted_bias, predicted_variance, width_for

PROBLEM = mf.Problem(
    mf.digits((0, 1), n_train=4, n_test=2), mf.Network(1, "tanh"), mf.mean_field(1.0), mf.Training(0.3, 10)
)


@pytest.fixture(scope="module")
def found():
    return predicted_variance(PROBLEM), predicted_bias(PROBLEM, 64, 100)


def test_networks_of_that_width_are_as_far_from_the_limit_as_was_asked(found):
    """400 networks, whose mean square distance has a relative standard error of about (2 / 400)^(1/2)"""
    asked = width_for(PROBLEM, 0.05, variance=found[0], bias=found[1])
    limit = WassersteinFlow(2**14)(PROBLEM).f[-1]
    nets = FiniteWidth(asked.width, snapshots=()).ensemble(PROBLEM, 400)
    apart = torch.stack([(net.f[-1] - limit).square().mean() for net in nets]).mean() / limit.square().mean()
    assert float(apart.sqrt()) == pytest.approx(0.05, rel=4 * 0.071 / 2)


def test_it_is_the_root_of_its_equation(found):
    for ensemble in (1, 10, 10**6):
        asked = width_for(PROBLEM, 0.01, ensemble, variance=found[0], bias=found[1])
        own = asked.n_variance / (asked.width * ensemble) + max(asked.n_bias2, 0) / asked.width**2
        assert math.sqrt(own) / asked.size <= 0.01
        assert asked.width == 1 or math.sqrt(own * asked.width / (asked.width - 1)) / asked.size > 0.0099
    assert "of the limit by a mean of 1000000 networks" in str(asked)


def test_what_has_no_relative_distance_is_refused(found):
    nothing = replace(found[0], values={"f": torch.zeros_like(found[0].values["f"])})
    with pytest.raises(ValueError, match="the limit of what is observed is zero throughout"):
        width_for(PROBLEM, variance=nothing, bias=found[1])
    with pytest.raises(ValueError, match="unknown observable: received 'Phi1'"):
        width_for(PROBLEM, name="Phi1", variance=found[0], bias=found[1])
