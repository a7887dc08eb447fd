"""What a sweep gives beyond outputs: gradient flow, error bars, response functions, limits of memory and rank."""

import math
import signal
from dataclasses import replace

import pytest
import torch

import meanfield as mf
from meanfield.files.storage import load, save
from solvers import CausalDMFT, FiniteWidth, FixedPointDMFT, Interrupted, WassersteinFlow
from solvers.dmft.perceptron import LimitNetwork


def problem(depth=2, activation="tanh", eta=0.3, steps=6, flow=False, samples=4, tests=2, **network):
    data = mf.digits(n_train=samples, n_test=tests)
    training = mf.Training(eta, steps, "gradient_flow" if flow else "gradient_descent")
    return mf.Problem(data, mf.Network(depth, activation, **network), mf.mean_field(1.0), training)


def apart(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("network", [dict(), dict(bias_std=0.5), dict(activation="linear")], ids=str)
def test_gradient_flow_is_the_fine_limit_of_descent(network):
    """Exact networks, and the same samples at both: descent with 1/2 the step is twice as near (order 1), and flow is its limit."""
    network = dict(activation="linear") | network if network.get("bias_std") is None else network
    solver = CausalDMFT(1024, dtype="float64", tolerance=1e-7, keep_neurons=False, draws="plain")
    flow = solver(problem(flow=True, **network)).f[-1]
    distances = []
    for finer in (16, 32):
        descent = solver(problem(eta=0.3 / finer, steps=6 * finer, **network)).f[-1]
        distances.append(apart(descent, flow))
    assert distances[0] < 0.05
    if network.get("activation") == "linear":  # no draws that could differ
        assert math.log2(distances[0] / distances[1]) == pytest.approx(1, abs=0.05)


def test_the_flow_keeps_its_tolerance():
    asked = problem(2, "linear", 0.5, steps=3, flow=True)
    fine = CausalDMFT(128, rtol=1e-12)(asked).f
    for rtol in (1e-3, 1e-5, 1e-7):
        assert apart(CausalDMFT(128, rtol=rtol)(asked).f, fine) < 10 * rtol


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_one_layer_in_gradient_flow_is_the_flow_of_the_measure(activation):
    asked = problem(1, activation, flow=True, steps=3, bias_std=0.5)
    sweep = CausalDMFT(2048, groups=3, keep_neurons=False)(asked)
    measure = torch.stack([WassersteinFlow(2048, seed=s, snapshots=())(asked).f for s in range(3)])
    error = (sweep.standard_errors["f"].double().square() + measure.var(0) / 3).sqrt()
    distance = (sweep.f - measure.mean(0)).square().sum().sqrt() / error.square().sum().sqrt()
    assert distance < 4, distance
    assert error.norm() / sweep.f.norm() < 0.01


def test_deep_gradient_flow_is_that_of_wide_networks():
    asked = problem(2, "tanh", 0.9, steps=4, flow=True)
    nets = FiniteWidth(256, dtype="float32", snapshots=(-1,), keep_neurons=False, rtol=1e-4).ensemble(asked, 12)
    solver = CausalDMFT(2048, snapshots=(-1,), keep_neurons=False)
    limits = [replace(solver, seed=s)(asked) for s in (0, 1, 2)]
    report = mf.deviation(nets, limits, names=("f", "Phi2", "G1"))
    for found in report.observables.values():
        assert abs(float(found.bias2[0])) ** 0.5 < 4 * found.floor[0], found.name
    descent = [replace(solver, seed=s)(problem(2, "tanh", 0.9, steps=4)) for s in (0, 1)]
    shift = apart(descent[0].f, limits[0].f)
    assert shift > 2 * report["f"].floor[0]  # the comparison would see descent in its place


def test_groups_are_single_seeds_and_their_scatter_is_the_error():
    asked = problem()
    solver = CausalDMFT(512, seed=3, groups=4)
    both = solver(asked)
    singles = [CausalDMFT(512, seed=3 + k)(asked) for k in range(4)]
    torch.testing.assert_close(both.f, torch.stack([s.f for s in singles]).mean(0))
    torch.testing.assert_close(both.standard_errors["f"], torch.stack([s.f for s in singles]).std(0) / 2)
    joint = torch.stack([s.kernels["Phi2"].at(-1, 2) for s in singles])
    torch.testing.assert_close(both.kernels["Phi2"].at(-1, 2), joint.mean(0))
    g = torch.stack([s.kernels["G1"].at(-1) for s in singles])
    torch.testing.assert_close(both.standard_errors["G1"][1], g.std(0) / 2)
    torch.testing.assert_close(both.tangent_kernel(0), torch.stack([s.tangent_kernel(0) for s in singles]).mean(0))
    assert both.preactivations(-1, layer=2)[0].shape == (4 * 512, 4)
    assert {"f", "f_test", "loss", "test_loss", "tangent_kernels", "Phi1", "G2"} <= set(both.standard_errors)
    assert both.solver["groups"] == 4


def test_a_comparison_takes_the_limits_error_from_its_groups():
    asked = problem()
    nets = FiniteWidth(32).ensemble(asked, 3)
    limit = CausalDMFT(512, groups=4)(asked)
    singles = [CausalDMFT(512, seed=k)(asked) for k in range(4)]
    names = ("f", "f_test", "loss", "Phi2", "G1", "tangent_kernel")
    one, four = (mf.deviation(nets, given, names=names) for given in (limit, singles))
    for name in names:
        assert one[name].reference_error == pytest.approx(four[name].reference_error, rel=1e-3)
        assert float(one[name].floor[0]) == pytest.approx(float(four[name].floor[0]), rel=1e-3)
    halves = [mf.pooled(pair) for pair in (singles[:2], singles[2:])]  # of distances of neurons
    for key, layer in (("h1", 1), ("h2", 2)):
        expected = mf.marginal_distance(*(half.preactivations(layer=layer) for half in reversed(halves)))
        assert mf.deviation(nets, limit, names=(key,))[key].reference_error == pytest.approx(expected, rel=1e-3)
    assert math.isnan(mf.deviation(nets, singles[0], names=("h1",))["h1"].reference_error)


def test_error_bars_cover_the_distance_from_a_larger_run():
    asked = problem()
    reference = CausalDMFT(32_768, seed=100, groups=2, keep_neurons=False)(asked).f
    ratios = []
    for seed in range(0, 40, 4):
        run = CausalDMFT(512, seed=seed, groups=4, keep_neurons=False, draws="plain")(asked)
        error = run.standard_errors["f"].double().norm()
        ratios.append(float((run.f - reference).double().norm() / error))
    mean = sum(r**2 for r in ratios) / len(ratios)
    assert 0.4 < mean < 3, (
        ratios
    )  # a t-statistic of 3 degrees of freedom has mean square 3; outputs are strongly correlated


def test_exact_networks_have_one_group_and_no_error():
    run = CausalDMFT(256, groups=3)(problem(activation="linear"))
    assert run.standard_errors == {}
    assert run.f.equal(CausalDMFT(256)(problem(activation="linear")).f)


def test_pooling_refuses_what_is_not_independent_or_not_alike():
    one, other = CausalDMFT(128)(problem()), CausalDMFT(128, seed=1)(problem(steps=5))
    with pytest.raises(ValueError, match="at least two independent solutions: received 1"):
        mf.pooled([one])
    with pytest.raises(ValueError, match=r"different seeds to be independent: received \[0, 0\]"):
        mf.pooled([one, one])
    with pytest.raises(ValueError, match="different problems"):
        mf.pooled([one, other])


def joint(kernel, last):
    c = kernel.factor[:last].double().transpose(0, 1).flatten(1)
    return c.T @ c


@pytest.mark.parametrize(("activation", "std"), [("linear", 1.3), ("tanh", 1.3), ("relu", 1.0)])
def test_responses_are_those_of_the_window_equations(activation, std):
    """A G and B Phi at all pairs of times, which do not depend on how a response is chosen among nearly dependent fields."""
    asked = problem(2, activation, steps=4, samples=3, tests=0, weight_std=std)
    exact = activation == "linear"
    classical = FixedPointDMFT(8192 if not exact else 2, iterations=100)
    found, *_ = classical._solve(asked, None)
    sweeps = [CausalDMFT(8192, seed=s, responses=True)(asked) for s in range(1 if exact else 4)]
    for name, partner in (("A1", "G2"), ("B1", "Phi1")):
        seen = []
        for sweep in sweeps:
            r = sweep.responses[name]
            seen.append(torch.cat([torch.cat([r.correlation(t, s) for s in range(5)], 1) for t in range(5)]).double())
        seen = torch.stack(seen)
        expected = found[name].double() @ joint(sweeps[0].kernels[partner], 5)
        size = float(expected.norm())
        assert size > 0.05
        if exact:
            assert float((seen[0] - expected).norm()) < 1e-7 * size
        else:
            noise = float(seen.var(0).sum().sqrt())
            assert float((seen.mean(0) - expected).norm()) < 3 * noise + 0.02 * size, (name, noise / size)
            assert noise < 0.1 * size


def test_responses_are_causal_and_act_on_fields_as_the_sweep_does():
    """h^2(t) - u^2(t) of equation 20 without learning: left(t)^T F = sum_{s<t} A(t, s) g^2(s), at the training points."""
    asked = problem(2, "tanh", steps=5, tests=0)
    run = CausalDMFT(2048, dtype="float64", tolerance=1e-5, responses=True)(asked)
    a, b, g, phi = run.responses["A1"], run.responses["B1"], run.kernels["G2"], run.kernels["Phi1"]
    for t in range(6):
        for s in range(6):
            assert (s < t) == bool(a.at(t, s).abs().max() > 0)
            assert (s <= t) == bool(b.at(t, s).abs().max() > 0)
        acting = sum(a.at(t, s) @ g.at(s, 0) for s in range(t)) if t else torch.zeros(4, 4, dtype=torch.float64)
        torch.testing.assert_close(acting, a.correlation(t, 0), rtol=1e-3, atol=1e-4)
        acting = sum(b.at(t, s) @ phi.at(s, 0) for s in range(t + 1))
        torch.testing.assert_close(acting, b.correlation(t, 0), rtol=1e-3, atol=1e-4)


def test_equal_time_response_of_smooth_activations_is_the_mean_curvature():
    """B(0, 0) = weight_std^2 <phi''(h^2) z^2> delta at the start, where z^2 = a is independent of h^2: zero mean; later not."""
    asked = problem(2, "tanh", steps=3, samples=2, tests=0)
    run = CausalDMFT(16_384, responses=True, snapshots=(0, 3))(asked)
    assert float(run.responses["B1"].at(0, 0).abs().max()) < 4 / math.sqrt(16_384)
    off, diagonal = (
        run.responses["B1"].at(3, 3)[mask].abs().mean() for mask in (~torch.eye(2).bool(), torch.eye(2).bool())
    )
    assert diagonal > 3 * off


def test_responses_and_errors_survive_storage(tmp_path):
    run = CausalDMFT(512, responses=True)(problem())
    assert load(save(run, tmp_path / "responses.nc")) == run
    grouped = CausalDMFT(512, groups=2)(problem())
    assert load(save(grouped, tmp_path / "groups.nc")) == grouped
    assert set(load(tmp_path / "groups.nc").standard_errors) == set(grouped.standard_errors)


def test_what_cannot_fit_is_refused_with_its_bytes():
    with pytest.raises(
        MemoryError, match=r"a sweep with 2000000000 samples needs .* GB .*fewer samples \(with more groups\)"
    ):
        CausalDMFT(2_000_000_000)(problem())
    with pytest.raises(ValueError, match="max_rank=5 is below the 6 directions"):
        CausalDMFT(512, max_rank=5)(problem())
    with pytest.raises(ValueError, match="groups must be at least 1"):
        CausalDMFT(groups=0)


def test_the_rank_limit_follows_the_memory(monkeypatch):
    from meanfield.checking import checks

    asked, solver = problem(3), CausalDMFT(4096)
    free = solver.bytes_needed(asked, 200)
    monkeypatch.setattr(checks, "free_memory", lambda device="cpu": free)
    assert solver.rank_limit(asked) == pytest.approx(200, abs=1)
    monkeypatch.setattr(checks, "free_memory", lambda device="cpu": math.inf)
    assert solver.rank_limit(asked) == 4096
    assert replace(solver, max_rank=100).rank_limit(asked) == 100


@pytest.mark.parametrize(
    "change",
    [
        dict(),
        dict(draws="plain", two_time=False),
        dict(dtype="float64", responses=True, snapshots=(0, 3, -1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", [dict(), dict(activation="relu", bias_std=0.3, residual=0.8)], ids=str)
def test_a_resumed_sweep_equals_an_uninterrupted_one(tmp_path, change, network):
    network = dict(network)
    solver = CausalDMFT(**dict(samples=512, keep_state=True) | change)
    whole = solver(problem(3, steps=9, **network))
    part = solver(problem(3, steps=4, **network))
    part = load(save(part, tmp_path / "part.nc"))
    resumed = solver.resume(solver.resume(part, 2), 3)
    assert resumed == whole


def test_a_resumed_sweep_keeps_momentum_decay_batches_and_flow():
    for training in (
        dict(momentum=0.8, weight_decay=0.1, batch_size=2),
        dict(optimiser="gradient_flow"),
    ):
        asked = problem(2, steps=8)
        asked = replace(asked, training=mf.Training(0.2, 8, **training))
        solver = CausalDMFT(512, keep_state=True)
        assert solver.resume(solver(asked.with_steps(3)), 5) == solver(asked)


def test_a_state_of_older_files_goes_on():
    """They kept Acc = scale U + L^T F and its velocity over the neurons, where L and its velocity stand now"""
    asked = replace(problem(3), training=mf.Training(0.3, 6, momentum=0.5, weight_decay=0.1))
    solver = CausalDMFT(512, keep_state=True, dtype="float64")
    kept, whole = solver(asked.with_steps(3)), solver(asked)
    state = dict(kept.state)
    for l, scale in enumerate(state["scales"].tolist(), 1):
        learned, velocity = state.pop(f"learned{l}"), state.pop(f"learned_velocity{l}")
        f, u = state[f"layer{l}_f"], state[f"layer{l}_u"].clone()
        over = torch.zeros(2, *u.shape, dtype=u.dtype)
        for part, small in zip(over, (learned, velocity), strict=True):
            part[: small.shape[1]] = small.T @ f[: len(small)]
        state |= {f"layer{l}_acc": scale * u + over[0], f"layer{l}_velocity": over[1]}
    resumed = solver.resume(replace(kept, state=state), 3)
    torch.testing.assert_close(resumed.f, whole.f, rtol=1e-10, atol=1e-10)


def test_an_interrupted_sweep_can_be_resumed(monkeypatch):
    asked = problem(2, steps=8)
    solver = CausalDMFT(512)
    whole, backward, steps = solver(asked), LimitNetwork.backward, []

    def interrupted(self, passed):
        steps.append(passed)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)
        return backward(self, passed)

    monkeypatch.setattr(LimitNetwork, "backward", interrupted)
    with pytest.raises(Interrupted) as caught:
        solver(asked)
    monkeypatch.undo()
    partial = caught.value.solution
    assert partial.steps == 4
    resumed = solver.resume(partial, 4)
    assert resumed.f.equal(whole.f)
    assert resumed.kernels == whole.kernels


def test_what_cannot_be_resumed_says_why():
    asked = problem(2, steps=3)
    with pytest.raises(ValueError, match="keeps no state to go on from: solve with keep_state=True"):
        CausalDMFT(512).resume(CausalDMFT(512)(asked), 2)
    with pytest.raises(ValueError, match="resume each group"):
        CausalDMFT(512, groups=2).resume(CausalDMFT(512, groups=2)(asked), 2)


@pytest.mark.parametrize("solver", [CausalDMFT(64), CausalDMFT(64, draws="plain"), FixedPointDMFT(128)], ids=str)
def test_inputs_that_are_all_zero_leave_the_readout_to_learn(solver):
    """phi(0) is then every feature: f_k = mean y (1 - (1 - eta phi(0)^2)^k), with sigmoid(0) = 1/2; tanh(0) = 0 learns nothing."""
    asked = mf.Problem(
        mf.Dataset(torch.zeros(3, 2), [1, -1, 1]), mf.Network(1, "sigmoid"), training=mf.Training(0.1, 3)
    )
    expected = (1 - (1 - 0.1 / 4) ** torch.arange(4).double()) / 3
    torch.testing.assert_close(solver(asked).f[..., 0].double(), expected[:, None].expand(4, 3), rtol=0, atol=1e-6)
    assert not solver(replace(asked, network=mf.Network(2, "tanh"))).f.any()
