"""N Var f predicted from the limit, against exact values, finite differences and trained networks."""

from dataclasses import replace

import pytest
import torch

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow, predicted_variance


def problem(activation="tanh", steps=20, gamma0=1.2, eta=0.4, **network):
    return mf.Problem(
        mf.digits(n_train=4, n_test=2),
        mf.Network(1, activation, **network),
        mf.mean_field(gamma0),
        mf.Training(eta, steps),
    )


def test_at_the_start_it_is_the_gaussian_process_variance():
    """N Var f_0 = <phi^2> / gamma0^2, for ReLU |x|^2 / (2 D gamma0^2)."""
    found = predicted_variance(problem("relu", steps=0), particles=2**13)
    exact = problem("relu").data.x.square().sum(1) / 64 / 2 / 1.2**2
    torch.testing.assert_close(found.train[:, 0], exact, rtol=0.02, atol=0)


def test_the_influence_of_a_particle_is_a_finite_difference_of_the_flow():
    """Moving mass between two particles changes f_T as the derivative says: seen through the variance of a two-atom measure."""
    asked = replace(problem("gelu", bias_std=0.4), data=mf.Dataset(torch.tensor([[0.5, -1.0]]), torch.tensor([1.0])))
    cloud = mf.ParticleMeasure.iid(2, 3, seed=1)

    def final(tilt):
        m = cloud.m + tilt * torch.tensor([1.0, -1.0], dtype=torch.float64)
        return WassersteinFlow(initial=mf.ParticleMeasure(cloud.a, cloud.w, m))(asked).f[-1, 0, 0]

    influence = float(final(1e-5) - final(-1e-5)) / 2e-5  # IF_1 - IF_2
    found = predicted_variance(asked, initial=cloud)
    assert float(found.train) == pytest.approx((influence / 2) ** 2, rel=1e-7)  # variance of +-(IF_1 - IF_2) / 2


@pytest.mark.parametrize(
    "asked",
    [problem(), problem("relu", eta=0.2), problem("softplus", bias_std=0.5, weight_std=1.2)],
    ids=["tanh", "relu", "biases"],
)
def test_trained_networks_have_the_predicted_variance(asked):
    """256 networks of width 512: each variance has a relative standard error of sqrt(2/255) = 9 %; the mean of six less."""
    nets = FiniteWidth(512, dtype="float32", snapshots=()).ensemble(asked, 256)
    final = torch.stack([torch.cat([s.f[-1], s.f_test[-1]]) for s in nets]).double()
    predicted = predicted_variance(asked, particles=2**12)
    expected = torch.cat([predicted.train, predicted.test])
    ratio = 512 * final.var(0) / expected
    assert float((ratio - 1).abs().max()) < 4 * 0.089
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * 0.089 / 2)


def test_only_the_asked_points_are_predicted():
    found = predicted_variance(problem(steps=3), particles=256, points=(1, 5))
    assert torch.isfinite(found.train).flatten().tolist() == [False, True, False, False]
    assert torch.isfinite(found.test).flatten().tolist() == [False, True]


def test_steps_too_long_for_a_kink_are_warned_of():
    with pytest.warns(RuntimeWarning, match="unreliable; take a smaller learning_rate"):
        predicted_variance(problem("relu", steps=3, gamma0=3.0, eta=1.0), particles=256, points=(0,))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"rows of the 6 samples.*received 6"):
        predicted_variance(problem(), points=(6,))
    with pytest.raises(ValueError, match="gradient_descent"):
        predicted_variance(replace(problem(), training=mf.Training(0.1, 3, "gradient_flow")))
    with pytest.raises(MemoryError, match="fewer particles or steps"):
        predicted_variance(problem(steps=10**5), particles=2**18)
