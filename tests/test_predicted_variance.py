"""N Var f predicted from the limit, against exact values, finite differences and trained networks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.files.reports import KINDS
from meanfield.files.solutions import Arrays
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, WidthFor, predicted_bias, predicted_variance
from solvers.fluctuations.observed import Observables
from solvers.fluctuations.starts import start_of
from solvers.fluctuations.unrolled import Unrolled
from tests.frozen_layers import final_outputs


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
    predicted = predicted_variance(asked, particles=2**12, method="derivative")
    expected = torch.cat([predicted.train, predicted.test])
    ratio = 512 * final.var(0) / expected
    assert float((ratio - 1).abs().max()) < 4 * 0.089
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * 0.089 / 2)


def test_only_the_asked_points_are_predicted():
    found = predicted_variance(problem(steps=3), particles=256, points=(1, 5))
    assert torch.isfinite(found.train).flatten().tolist() == [False, True, False, False]
    assert torch.isfinite(found.test).flatten().tolist() == [False, True]


def test_steps_too_long_for_a_kink_are_warned_of():
    asked = problem("relu", steps=3, gamma0=3.0, eta=1.0)
    with pytest.warns(RuntimeWarning, match="unreliable; take a smaller learning_rate"):
        predicted_variance(asked, particles=256, points=(0,), method="derivative")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"rows of the 6 samples.*received 6"):
        predicted_variance(problem(), points=(6,))
    with pytest.raises(ValueError, match=r"span \d+ directions or more, beyond half of particles=16: take particles="):
        predicted_variance(deep("biases"), particles=16)
    with pytest.raises(ValueError, match="unknown method: received 'derivatives'; known: derivative, networks"):
        predicted_variance(problem(), method="derivatives")
    for given, why in (
        ({"method": "networks", "particles": 64}, "received particles=64 where networks are trained; leave it out"),
        (
            {"width": 16},
            "width, networks belong to method='networks': received width=16 where derivatives of the limit",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            predicted_variance(problem(), **given)
    with pytest.raises(ValueError, match="received groups=2 where networks are trained because of a kink"):
        predicted_variance(problem("relu"), groups=2)
    with pytest.raises(MemoryError, match="fewer particles"):
        predicted_variance(problem(), particles=2**40)


DEEP = {
    "biases": (mf.Network(2, "tanh", 1.2, 0.4), {}, "squared"),
    "residual": (mf.Network(2, "gelu", residual=0.7), {}, "squared"),
    "training": (mf.Network(2, "erf"), {"momentum": 0.5, "weight_decay": 0.1, "batch_size": 3}, "logistic"),
}


def deep(name, steps=8):
    network, training, loss = DEEP[name]
    return mf.Problem(
        mf.digits((0, 1), n_train=4, n_test=2), network, mf.mean_field(1.0), mf.Training(0.3, steps, **training), loss
    )


def influences(asked, particles=128, budget=1e9, tilt=None):
    """(observed, its derivatives in the weights of all neurons) or, moved by `tilt`, what is observed with the same directions"""
    start = start_of(asked, particles, 0, "sobol", 1e-3, asked.network.nonlinearity)
    observables = Observables(asked, ("f", "f_test", "loss", "Phi1", "G1", "tangent_kernel"), None)
    unrolled = Unrolled(asked, start.network, start.begin, observables, (3, asked.training.steps))
    kept, found = unrolled.forward(budget)
    if tilt is None:
        return torch.cat(found), unrolled.influences(kept, 0, sum(map(len, found))), len(kept)
    start.network.back_to(kept[0].mark)
    with torch.no_grad():
        for m, t in zip(dict.fromkeys(start.network.weights), tilt, strict=True):
            m += t
        return torch.cat(unrolled.seen())


@pytest.mark.parametrize("name", DEEP)
def test_influences_of_deep_networks_are_finite_differences(name):
    """Of outputs, losses and kernels at two steps, in directions of all layers' weights at once"""
    asked, draw = deep(name), torch.Generator().manual_seed(3)
    _, found, _ = influences(asked)
    tilts = [torch.randn(128, generator=draw, dtype=torch.float64) / 128 for _ in found]
    along = sum(influence @ tilt for influence, tilt in zip(found, tilts, strict=True))
    eps = 1e-4
    plus, minus = (influences(asked, tilt=[s * eps * t for t in tilts]) for s in (1, -1))
    torch.testing.assert_close((plus - minus) / (2 * eps), along, rtol=1e-5, atol=1e-6 * float(along.abs().max()))


def test_little_memory_changes_nothing():
    """All states kept, and only the first, from which the whole way is taken again"""
    many, few = influences(deep("training")), influences(deep("training"), budget=0.0)
    assert many[2] == 9
    assert few[2] == 1
    for a, b in zip(many[1], few[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_in_the_lazy_limit_fluctuations_are_those_of_a_static_kernel():
    """gamma0 -> 0: a neuron moves outputs by A^T f_0 (odd in a) and by eta/P sum_k A^(T-1-k) (k - K) A^k y (even), A = 1 - eta K / P,
    k(a, w) = phi phi' + a^2 phi' phi' x x' / D: kernels are random and static (Bordelon & Pehlevan 2023, arXiv 2304.03408)
    """
    x, y = (
        torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        torch.tensor([1.0, -0.5, 0.8]),
    )
    eta, steps, gamma0 = 0.7, 6, 1e-3
    asked = mf.Problem(mf.Dataset(x, y), mf.Network(1), mf.mean_field(gamma0), mf.Training(eta, steps))
    half = mf.ParticleMeasure.iid(50, 5, seed=2)
    cloud = mf.ParticleMeasure(
        torch.cat([half.a, -half.a]), torch.cat([half.w, half.w]), torch.cat([half.m, half.m]) / 2
    )
    start = start_of(asked, 100, 0, cloud, 1e-9, asked.network.nonlinearity)
    unrolled = Unrolled(asked, start.network, start.begin, Observables(asked, ("f",), None), (steps,))
    kept, _ = unrolled.forward(1e9)
    influence = unrolled.influences(kept, 0, 3)[0]
    influence = influence - influence.mean(1, keepdim=True)
    h = half.w @ x.T / 5**0.5
    phi, slope = torch.tanh(h), 1 - torch.tanh(h).square()
    each = phi[:, :, None] * phi[:, None] + (half.a.square() * slope)[:, :, None] * slope[:, None] * (x @ x.T / 5)
    kernel = each.mean(0)
    a = torch.eye(3, dtype=torch.float64) - eta / 3 * kernel
    power = torch.linalg.matrix_power
    even = sum(eta / 3 * power(a, steps - 1 - k) @ (each - kernel) @ power(a, k) @ y.double() for k in range(steps))
    odd = power(a, steps) @ (half.a * phi)[:, :, None]
    torch.testing.assert_close(
        (influence[:, :50] + influence[:, 50:]).T / 2, even, rtol=0, atol=1e-4 * float(even.abs().max())
    )
    torch.testing.assert_close(
        gamma0 * (influence[:, :50] - influence[:, 50:]).T / 2, odd[:, :, 0], rtol=0, atol=1e-4 * float(odd.abs().max())
    )


@pytest.mark.parametrize("name", DEEP)
def test_deep_networks_have_the_predicted_variance(name):
    """300 networks of width 512 each, outputs, the loss and the tangent kernel's trace: within 4 standard errors, and O(1/N)"""
    asked = deep(name)
    nets = FiniteWidth(512, dtype="float32", keep_neurons=False, snapshots=(-1,)).ensemble(asked, 300)
    found = predicted_variance(asked, 256, observed=("f", "f_test", "loss", "tangent_kernel"))
    final = torch.stack([torch.cat([s.f[-1], s.f_test[-1]]) for s in nets]).double()
    ratio = 512 * final.var(0) / torch.cat([found.train, found.test])
    one = (2 / 299) ** 0.5
    assert float((ratio - 1).abs().max()) < 4.5 * one
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * one / 2)
    for number, of in (
        (lambda s: s.loss[-1], lambda o: o["loss"][-1]),
        (lambda s: s.tangent_kernel(-1).reshape(4, 4).trace(), lambda o: o["tangent_kernel"][-1].reshape(4, 4).trace()),
    ):
        seen = 512 * torch.stack([number(s).double() for s in nets]).var()
        assert float(seen) == pytest.approx(found.of(of)[0], rel=4.5 * one)


def test_one_step_of_a_linear_network_in_closed_form():
    """f_1 = (1 + eta^2 Delta^2) u + eta Delta k with u = <a w>, k = <a^2 + w^2> and Delta = y - u, at u = 0, k = 2 in the limit"""
    data, eta, y = mf.Dataset(torch.ones(1, 1), torch.tensor([[1.5]])), 0.3, 1.5
    asked = mf.Problem(data, mf.Network(1, "linear"), mf.mean_field(1.0), mf.Training(eta, 1))
    found = predicted_variance(asked, 2**13)
    exact = (1 + eta**2 * y**2 - 2 * eta) ** 2 + 4 * eta**2 * y**2
    assert float(found.train) == pytest.approx(exact, rel=0.01)  # Sobol's error of a fourth moment
    bias = predicted_bias(asked, width=64, draws=400)
    assert float(bias.train) == pytest.approx(-2 * y * eta**2, abs=4 * float(bias.error()))
    assert float(bias.error()) < 0.1


def test_the_bias_of_a_module_comes_from_networks_beside_others_of_half_their_width():
    """The same step as a module, of which E f_1 - f = -2 y eta^2 / N at every width; the error is (2 N Var N / draws)^(1/2)"""
    eta, y, draws = 0.6, 1.5, 3000
    linear = lambda n: torch.nn.Sequential(*(torch.nn.Linear(*s, bias=False) for s in ((1, n), (n, 1))))  # noqa: E731
    asked = mf.Problem(mf.Dataset(torch.ones(1, 1), torch.tensor([[y]])), linear, training=mf.Training(eta, 1))
    found = predicted_bias(asked, width=4, draws=draws)
    spread = (1 + (eta * y) ** 2 - 2 * eta) ** 2 + 4 * (eta * y) ** 2  # N Var in the limit
    assert float(found.train) == pytest.approx(-2 * y * eta**2, abs=4 * float(found.error()))
    assert (2 * 4 * spread / draws) ** 0.5 == pytest.approx(float(found.error()), rel=0.3)  # of four neurons
    with pytest.raises(ValueError, match="method='halves' follows perceptrons by gradient_descent: received a module"):
        predicted_bias(asked, method="halves")


def test_one_sample_of_a_two_layer_linear_network_at_all_times():
    """u = <a w> and k = <a^2 + w^2> go their way alone, whatever the width, from N Cov(u, k) = diag(1, 4): so does their spread"""
    eta, y, times = 0.1, 1.5, (1, 5, 10)
    data = mf.Dataset(torch.ones(1, 1), torch.tensor([[y]]))
    asked = mf.Problem(data, mf.Network(1, "linear"), mf.mean_field(1.0), mf.Training(eta, 10))

    def after(steps, u, k):
        for _ in range(steps):
            apart = y - u
            u, k = (1 + (eta * apart) ** 2) * u + eta * apart * k, (1 + (eta * apart) ** 2) * k + 4 * eta * apart * u
        return u

    found, eps = predicted_variance(asked, 2**12, steps=times), 1e-5
    for time, seen, error in zip(times, found.variance(), found.error(), strict=True):
        of_u = (after(time, eps, 2.0) - after(time, -eps, 2.0)) / (2 * eps)
        of_k = (after(time, 0.0, 2 + eps) - after(time, 0.0, 2 - eps)) / (2 * eps)
        assert float(seen) == pytest.approx(of_u**2 + 4 * of_k**2, abs=4 * float(error))
        assert float(error) < 0.01 * float(seen)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_sample_of_a_deep_linear_network_at_its_start(depth):
    """Each layer of N neurons multiplies |h|^2 and |g|^2 by 1 + N(0, 2/N), so that N Var Phi^L = 2 L, 2 from each layer, and of
    K = sum_l Phi^l G^(l+1), of which the gain of a layer enters as many terms as there are behind it, 4 (1^2 + .. + L^2)
    """
    asked = mf.Problem(
        mf.Dataset(torch.ones(1, 1), torch.ones(1, 1)), mf.Network(depth, "linear"), training=mf.Training(0.1, 0)
    )
    last = f"Phi{depth}"
    found = predicted_variance(asked, 2**12, observed=(last, "tangent_kernel"))
    for name, exact in ((last, 2 * depth), ("tangent_kernel", 4 * sum(k * k for k in range(1, depth + 1)))):
        assert float(found.variance(name)) == pytest.approx(exact, rel=0.01)
        assert float(found.error(name)) < 0.01 * exact
    assert found.by_part(last).flatten().tolist() == pytest.approx([2.0] * depth, rel=0.02)


def test_the_bias_of_deep_networks_is_that_of_their_means():
    """A linear network, whose limit is exact: 8000 networks of width 64, and 200 beside their halves"""
    asked = replace(deep("biases", 8), network=mf.Network(2, "linear"))
    nets = FiniteWidth(64, dtype="float32", snapshots=()).ensemble(asked, 8000)
    final, limit = torch.stack([s.f[-1, :, 0] for s in nets]).double(), CausalDMFT()(asked).f[-1, :, 0]
    seen, error = 64 * (final.mean(0) - limit), 64 * final.std(0) / 8000**0.5
    found = predicted_bias(asked, width=128, draws=200, points=range(4))
    z = (found.train[:, 0] - seen) / (error.square() + found.error()[-1, :, 0].square()).sqrt()
    assert float(z.abs().max()) < 4
    assert float((seen / error).abs().max()) > 5  # there is a bias to be seen


def test_covariances_and_parts_agree_with_each_other():
    found = predicted_variance(deep("biases"), 128, observed=("f", "Phi2"), steps=(0, -1), points=(0, 2), groups=3)
    assert found.parts == ("layer 1", "layer 2")
    torch.testing.assert_close(found.by_part().sum(0), found.variance(), equal_nan=True)
    covariance = found.covariance()
    torch.testing.assert_close(covariance.diagonal().reshape(2, 4, 1), found.variance(), equal_nan=True)
    kernel = found.variance("Phi2")
    assert torch.isfinite(kernel[0]).tolist() == [[True, False, True, False], [False] * 4] * 2
    torch.testing.assert_close(kernel, kernel.transpose(1, 2), equal_nan=True)
    number, error = found.of(lambda o: o["f"][-1, 0, 0] - o["f"][-1, 2, 0])
    expected = covariance[4, 4] + covariance[6, 6] - 2 * covariance[4, 6]
    assert number == pytest.approx(float(expected))
    assert 0 < error < number


def test_parts_of_layers_are_those_of_networks_that_differ_in_one_layer_alone():
    """50 networks of width 128 about each of three draws of the other layer: an error of 0.1, and as much of order 1 / N. With the parts
    of the layers confused the ratios would be over 2: that of the parts is 2.3, with an error of 0.1.
    """
    asked = replace(deep("biases"), network=mf.Network(2, "tanh"), scaling=mf.mean_field(0.5))
    found = predicted_variance(asked, 256, groups=2)
    parts = torch.cat([found.by_part(name)[:, -1, :, 0] for name in ("f", "f_test")], 1).sum(1)
    assert float(parts[1] / parts[0]) > 2
    for layer, expected in enumerate(parts):
        seen = torch.stack([128 * final_outputs(asked, 128, layer, others, 50).var(0).sum() for others in range(3)])
        assert abs(float((seen.mean() / expected).log())) < 0.4
    torch.testing.assert_close(found.shares()[:, 0], found.by_part()[:, 0, :, 0].sum(1) / found.train.sum())


def test_what_was_predicted_is_kept_in_files(tmp_path):
    asked = deep("biases")
    found = [
        predicted_variance(asked, 64, observed=("f", "loss", "Phi1"), steps=(0, -1), points=(0, 2, 5), groups=2),
        predicted_variance(asked, method="networks", width=8, networks=40, observed=("f_test",)),
        predicted_bias(asked, 32, 3, steps=(2, 4)),
        WidthFor(100, math.nan, 0.01, 1, 0.3, 0.2, 0.9),
    ]
    for one in found:
        again = mf.load(mf.save(one, tmp_path / "found.nc"))
        assert again == one
        assert str(again) == str(one)
    changed = replace(found[2], estimates=found[2].estimates + 1e-12)
    assert changed != found[2]
    assert replace(found[0], problem=deep("training")) != found[0]
    assert "observable" in str(found[0])
    assert "f at step 8 from layer 1 " in str(found[0])


def test_a_file_that_lacks_numbers_is_refused(tmp_path):
    """Its digest is right: another program wrote it"""
    found = predicted_bias(deep("biases"), 32, 2)
    kind = next(k for k in KINDS if isinstance(found, k.type))
    arrays = Arrays()
    settings = kind.pack(found, arrays)
    for name in ("estimates", "index_f", "step"):
        left = {k: v[1] for k, v in (arrays.data | arrays.coordinates).items() if k != name}
        with pytest.raises(KeyError, match=name):
            kind.unpack({k: np.asarray(v) for k, v in left.items()}, settings)


@pytest.mark.parametrize("predict", [predicted_variance, predicted_bias])
def test_steps_that_were_not_recorded_are_refused(predict):
    with pytest.raises(ValueError, match=r"^steps must lie in 0\.\.8 \(or be -1, the last step\): received \(9,\)"):
        predict(deep("biases"), steps=(9,))


def test_narrow_networks_serve_where_no_derivative_does():
    """Kinks, and networks that are modules: N Cov of narrow networks, within their error of that of wide ones"""
    asked = replace(
        problem("relu", steps=5),
        network=lambda n: torch.nn.Sequential(torch.nn.Linear(64, n), torch.nn.ReLU(), torch.nn.Linear(n, 1)),
    )
    for one in (problem("relu", steps=5), asked):
        found = predicted_variance(one, width=64, networks=400, progress=False)
        assert found.settings["method"] == "networks"
        nets = FiniteWidth(256, dtype="float32", snapshots=()).ensemble(one, range(1000, 1400))
        seen = 256 * torch.stack([s.f[-1] for s in nets]).double().var(0)
        assert float((seen / found.train).log().abs().max()) < 4.5 * (4 / 400) ** 0.5
        assert float((found.error()[-1] / found.train).mean()) == pytest.approx((2 / 380) ** 0.5, rel=0.5)


def test_the_bias_of_saturated_networks_whose_features_depend_on_each_other_is_found():
    """Inputs so large that features are signs, of which few neurons have fewer independent ones than many"""
    x = 1e4 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    saturated = mf.Problem(mf.Dataset(x, torch.ones(8, 1)), mf.Network(2), training=mf.Training(0.1, 2))
    found = predicted_bias(saturated, width=8, draws=8, observed=("f",))
    assert torch.isfinite(found.values["f"]).all()
