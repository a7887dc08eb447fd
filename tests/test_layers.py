"""Settings by layer and laws of the start (equations 120 and 121): against a loop of torch.optim, limits, moments, files, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

import meanfield as mf
from meanfield.comparison.stationary import slowest_decay
from meanfield.network.laws import law
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    RevealedWidth,
    TangentKernelLimit,
    WassersteinFlow,
    gibbs_fixed_point,
    monte_carlo_kernels,
    predicted_variance,
)

LAWS = {
    "uniform": stats.uniform(-1, 2),
    "truncated_normal": stats.truncnorm(-2, 2),
    "laplace": stats.laplace(),
    "student_t(5)": stats.t(5),
    "student_t(2.5)": stats.t(2.5),
}
BY_LAYER = {
    "rate": {"input": 2.0, "hidden.1": 0.5, "readout.weight": 1.5},
    "decay": {"*.bias": 0.0, "hidden.1.weight": 2.0, "readout.weight": 0.5},
    "weight_std": {"hidden.1.weight": 1.4, "input.bias": 0.5},
}


def data(samples=4, inputs=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=g, dtype=torch.float64)
    return mf.Dataset(x, torch.sin(2 * x.sum(1, keepdim=True)))


def problem(network, training=None, scaling=None, given=None):
    return mf.Problem(given or data(), network, scaling or mf.mean_field(1.0), training or mf.Training(0.3, 8))


def mean_of(problem, width, seeds):
    """(mean, its standard error) of the networks' outputs"""
    f = torch.stack([net.f for net in FiniteWidth(width, snapshots=()).ensemble(problem, seeds)])
    return f.mean(0), f.std(0) / math.sqrt(seeds)


def by_loop(problem, width, draw, seed):
    """f (T + 1, P, C) of a perceptron with one matrix, written out and trained by torch.optim with a group for each parameter"""
    asked, own = problem.training, problem.architecture
    network, (p, d), c = own.perceptron, problem.data.x.shape, problem.data.outputs
    g, b = torch.Generator().manual_seed(seed), network.bias_std
    shapes = {"input.weight": (width, d), "hidden.1.weight": (width, width), "readout.weight": (c, width)}
    shapes |= {"input.bias": (width,), "hidden.1.bias": (width,), "readout.bias": (c,)}
    theta = {
        name: nn.Parameter(draw(name, torch.randn(s, generator=g, dtype=torch.float64))) for name, s in shapes.items()
    }
    std = {"hidden.1.weight": 1.4 * network.weight_std, "input.bias": 0.5 * b, "hidden.1.bias": b, "readout.bias": b}
    rates = {
        "input.weight": 2.0,
        "input.bias": 2.0,
        "hidden.1.weight": 0.5,
        "hidden.1.bias": 0.5,
        "readout.weight": 1.5,
    }
    decay = {"hidden.1.weight": 2.0, "readout.weight": 0.5} | {name: 0.0 for name in shapes if name.endswith("bias")}
    groups = [
        # torch adds decay to the gradient, before the rate: the multiple of the library's is of the step
        {"params": [t], "lr": asked.learning_rate * width * rates.get(name, 1.0),
         "weight_decay": asked.weight_decay * decay.get(name, 1.0) / (width * rates.get(name, 1.0))}
        for name, t in theta.items()
    ]  # fmt: skip
    optimiser, found = torch.optim.SGD(groups), []
    for _ in range(asked.steps + 1):
        t = theta
        h = (
            network.weight_std * problem.data.x @ t["input.weight"].T / math.sqrt(d)
            + std["input.bias"] * t["input.bias"]
        )
        h = std["hidden.1.weight"] * torch.tanh(h) @ t["hidden.1.weight"].T / math.sqrt(width) + b * t["hidden.1.bias"]
        f = network.weight_std * torch.tanh(h) @ t["readout.weight"].T / width + b * t["readout.bias"] / math.sqrt(
            width
        )
        found.append(f.detach())
        optimiser.zero_grad()
        ((f - problem.data.y) ** 2).sum().div(2 * p).backward()
        optimiser.step()
    return torch.stack(found)


TWO = mf.Network(2, "tanh", weight_std=1.2, bias_std=0.4)


def settled(name):
    """A problem whose layers all differ, with a law for all"""
    return problem(mf.Architecture(TWO, **BY_LAYER, initial_law=name), mf.Training(0.3, 8, weight_decay=0.2))


def test_networks_of_rademacher_weights_are_those_of_a_loop_that_draws_signs():
    """Means over networks within their errors, all layers' settings apart"""
    asked, seeds = settled("rademacher"), 64
    loops = torch.stack([by_loop(asked, 64, lambda _, z: z.sign(), 1000 + seed) for seed in range(seeds)])
    mean, error = mean_of(asked, 64, seeds)
    off = (mean - loops.mean(0)) / (error**2 + loops.var(0) / seeds).sqrt()
    assert float(off.abs().max()) < 4


def test_rates_decays_and_sizes_by_layer_are_those_of_a_loop_of_torch_optim():
    """From one start, to rounding"""
    asked = settled("laplace")
    started = FiniteWidth(16, seed=3, snapshots=())(replace(asked, training=replace(asked.training, steps=0))).state
    found = FiniteWidth(16, seed=3, snapshots=())(asked).f
    torch.testing.assert_close(
        by_loop(asked, 16, lambda key, z: started[key].clone(), 0), found, rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("name", LAWS)
def test_laws_have_the_quantiles_of_scipy_s_distributions_at_variance_one(name):
    """In the order of the Gaussian's numbers, in the tails too"""
    z = torch.cat([torch.linspace(-7, 7, 1000, dtype=torch.float64), torch.tensor([-20.0, 20.0])])
    found = LAWS[name]
    right = found.ppf(stats.norm.cdf(-z.abs().numpy())) / found.std()
    torch.testing.assert_close(law("law", name).of(z), -torch.from_numpy(right) * z.sign(), rtol=1e-9, atol=1e-12)


def test_signs_are_those_of_the_gaussian_s_numbers():
    z = torch.tensor([-3.0, -0.1, 0.0, 0.2])
    assert law("law", "rademacher").of(z).tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert law("law", "normal").of(z) is z


@pytest.mark.parametrize("initial", ["sobol", "iid"])
@pytest.mark.parametrize("name", ["uniform", "rademacher"])
def test_particles_have_the_law_in_each_coordinate(name, initial):
    """Moments of the coordinates of w, of its bias and of a, which a rotation of w would change"""
    laws = {"input": name, "readout": name}
    asked = problem(mf.Architecture(mf.Network(1, bias_std=0.5), initial_law=laws))
    cloud = WassersteinFlow(2**12, initial=initial, balanced=False).initial_measure(asked)
    for t in (cloud.w, cloud.a):
        assert float(t.abs().max()) <= math.sqrt(3) + 1e-9
        fourth = t.pow(4).mean(0)
        error = 0.03 if initial == "sobol" else 4 * 1.5 / 64
        assert float((fourth - (1.0 if name == "rademacher" else 1.8)).abs().max()) < error
        assert float((t.square().mean(0) - 1).abs().max()) < error
    assert name != "rademacher" or set(cloud.w.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("name", "apart"), [("rademacher", 8), ("laplace", 3.5)])
def test_the_law_of_input_weights_stays_in_the_limit_and_particles_know_it(name, apart):
    """Networks are at particles of their law, and many errors from particles of the normal one"""
    asked = problem(
        mf.Architecture(mf.Network(1, weight_std=1.5, bias_std=0.5), initial_law=name), given=data(inputs=1)
    )
    mean, error = mean_of(asked, 256, 64)
    off = [
        float((mean - WassersteinFlow(2**12, snapshots=())(limit).f)[1:].norm() / error[1:].norm())
        for limit in (asked, replace(asked, network=asked.layered))
    ]
    assert off[0] < 2.5
    assert off[1] > apart


def test_particles_with_settings_by_layer_are_the_deep_limit_of_one_layer():
    """Two solvers that share no step: outputs and K, within the error of the sampled neurons; both biases, all laws, decay, momentum"""
    network = mf.Architecture(
        mf.Network(1, "tanh", 1.3, 0.5),
        weight_std={"input.bias": 0.5, "readout.weight": 0.8},
        rate={"input": 2.0, "readout.bias": 3.0},
        decay={"*.bias": 0.0, "input.weight": 3.0},
        initial_law={"input.weight": "rademacher", "readout": "laplace"},
    )
    asked = problem(network, mf.Training(0.3, 8, weight_decay=0.2, momentum=0.5, clip=0.3))
    flow, sweep = WassersteinFlow(2**13)(asked), CausalDMFT(2048, groups=4)(asked)
    error = sweep.standard_errors["f"].square().mean().sqrt()
    assert float((flow.f - sweep.f).square().mean().sqrt()) < 3 * error + 1e-3
    k, of_k = flow.tangent_kernel(-1), sweep.tangent_kernel(-1)
    assert float((k - of_k).norm() / k.norm()) < 0.03
    assert set(flow.kernels) == set(sweep.kernels)
    assert flow.preactivations()[0].shape == (2**13, 4)


def test_the_deep_limit_knows_the_laws_and_only_the_variance_of_hidden_matrices():
    """Networks of Rademacher matrices, with all settings by layer, approach the sweep; their law in the input weights is seen"""
    asked = settled("rademacher")
    limit = CausalDMFT(1024, groups=4, snapshots=())(asked)
    mean, error = mean_of(asked, 256, 48)
    noise = (error.square() + limit.standard_errors["f"] ** 2)[1:].mean().sqrt()
    assert float((mean - limit.f)[1:].square().mean().sqrt()) < 2 * noise + 0.003
    hidden = replace(asked, network=mf.Architecture(TWO, **BY_LAYER, initial_law={"hidden.1.weight": "rademacher"}))
    same = replace(asked, network=mf.Architecture(TWO, **BY_LAYER))
    solver = CausalDMFT(256, snapshots=())
    assert torch.equal(solver(hidden).f, solver(same).f)


def test_linear_networks_know_second_moments_alone():
    """The exact sweep of a Rademacher start is that of a Gaussian one, and networks agree with it"""
    given = problem(mf.Architecture(mf.Network(2, "linear"), initial_law="rademacher"), mf.Training(0.2, 6))
    limit = CausalDMFT(400, snapshots=())(given)
    assert limit.stats["exact"]
    torch.testing.assert_close(
        limit.f, CausalDMFT(400, snapshots=())(replace(given, network=given.layered)).f, rtol=1e-8, atol=1e-10
    )
    mean, error = mean_of(given, 256, 48)
    assert float((mean - limit.f)[1:].square().mean().sqrt() / error[1:].square().mean().sqrt()) < 2.5


@pytest.mark.parametrize("scaling", [mf.mean_field(1.0), mf.ntk(), mf.improved_standard(32)], ids=lambda s: s.name)
def test_a_readout_of_zeros_starts_at_zero_and_learns_in_every_scaling(scaling):
    nets = FiniteWidth(2 if scaling.name == "improved_standard" else 64, snapshots=()).ensemble(
        problem(mf.Architecture(TWO, weight_std={"readout": 0}), scaling=scaling), 2
    )
    assert all(float(net.f[0].abs().max()) == 0 and net.loss[-1] < net.loss[0] for net in nets)


def test_limits_of_a_readout_of_zeros():
    """Particles, the sweep and the lazy limit; the lazy kernel is the readout's share alone"""
    zero = {"weight_std": {"readout": 0}}
    one = problem(mf.Architecture(mf.Network(1, "tanh", bias_std=0.4), **zero))
    flow = WassersteinFlow(2**12, snapshots=(0,))(one)
    assert float(flow.f[0].abs().max()) == 0
    assert float(flow.measure(0).a.abs().max()) == 0
    mean, error = mean_of(one, 256, 32)
    assert float((mean - flow.f)[1:].square().mean().sqrt() / error[1:].square().mean().sqrt()) < 2.5
    two = problem(mf.Architecture(TWO, **zero))
    sweep = CausalDMFT(1024, groups=4, snapshots=())(two)
    mean, error = mean_of(two, 256, 32)
    noise = (error.square() + sweep.standard_errors["f"] ** 2)[1:].mean().sqrt()
    assert float((mean - sweep.f)[1:].square().mean().sqrt() / noise) < 2.5
    nngp, ntk = mf.nngp_and_ntk(two.network, mf.ntk(), two.data.x)
    assert float(nngp.abs().max()) == 0
    torch.testing.assert_close(ntk, mf.nngp_and_ntk(TWO, mf.ntk(), two.data.x)[0])
    lazy = TangentKernelLimit(snapshots=())(replace(two, scaling=mf.ntk()))
    mean, error = mean_of(replace(two, scaling=mf.ntk()), 512, 16)
    assert float(lazy.f[0].abs().max()) == 0
    assert float((mean - lazy.f)[1:].square().mean().sqrt() / error[1:].square().mean().sqrt()) < 2.5


def test_lazy_kernels_by_layer_are_those_of_drawn_networks():
    asked = mf.Architecture(
        TWO,
        weight_std={"hidden.1.weight": 1.5, "input.bias": 2.0},
        rate={"hidden.1": 3.0, "input": 0.2, "readout": 0.5},
        initial_law={"hidden.1.weight": "rademacher", "readout.weight": "student_t(5)"},
    )
    x = data().x
    found = mf.nngp_and_ntk(asked, mf.ntk(), x)
    drawn = monte_carlo_kernels(asked, mf.ntk(), x, 256, 32)
    for kernel, mean, error in zip(found, (drawn.nngp, drawn.ntk), (drawn.nngp_error, drawn.ntk_error), strict=True):
        assert float(((kernel - mean) / error).square().mean()) < 4
    for kernel, plain in zip(
        mf.nngp_and_ntk(mf.Architecture(TWO), mf.ntk(), x), mf.nngp_and_ntk(TWO, mf.ntk(), x), strict=True
    ):
        torch.testing.assert_close(kernel, plain, rtol=1e-10, atol=1e-12)


def test_an_architecture_without_settings_is_the_network():
    """Particles bit for bit"""
    for training in (mf.Training(0.3, 5, weight_decay=0.1, momentum=0.5), mf.Training(0.05, 5, "adam")):
        one = problem(mf.Network(1, bias_std=0.4), training)
        by_layer = replace(one, network=mf.Architecture(one.network))
        assert torch.equal(WassersteinFlow(2**9)(one).f, WassersteinFlow(2**9)(by_layer).f)


def test_frozen_layers_stay_bit_for_bit():
    """Under decay, momentum, noise and Adam; others move"""
    for training in (
        mf.Training(0.2, 4, weight_decay=0.3, momentum=0.5),
        mf.Training(0.2, 4, temperature=0.2),
        mf.Training(0.05, 4, "adamw", weight_decay=0.3),
    ):
        one = problem(mf.Architecture(mf.Network(1, bias_std=0.4), frozen=("input",), initial_law="laplace"), training)
        run = WassersteinFlow(2**9, snapshots=(0, -1))(one)
        assert torch.equal(run.measure(0).w, run.measure().w)
        assert not torch.equal(run.measure(0).a, run.measure().a)
        two = problem(mf.Architecture(TWO, frozen=("hidden.*",)), training)
        sweep = CausalDMFT(256, snapshots=(), keep_state=True)(two)
        assert not any("learned" in name for name in sweep.state)
        nets = FiniteWidth(8, snapshots=())(two)
        assert not any(name.startswith("hidden") for name in nets.state)
        assert nets.loss[-1] < nets.loss[0]


def test_decay_alone_shrinks_each_layer_of_the_limit_by_its_own_factor():
    """Where nothing is learned (y = 0 = f): what is left of W0 and of theta after T steps"""
    given = mf.Dataset(data().x, torch.zeros(4, 1))
    network = mf.Architecture(TWO, weight_std={"readout": 0}, decay={"hidden.1.weight": 2.0, "*.bias": 0.0})
    asked = problem(network, mf.Training(0.5, 4, weight_decay=0.2), given=given)
    started = replace(asked, training=replace(asked.training, steps=0))
    solver = CausalDMFT(64, snapshots=(), keep_state=True)
    first, last = solver(started).state, solver(asked).state
    theta = {name: key for name in ("input.weight", "input.bias") for key in last if key.endswith(f"theta_{name}")}
    assert float(last["scales"]) == pytest.approx(0.8**4, rel=1e-12)
    torch.testing.assert_close(last[theta["input.weight"]], 0.9**4 * first[theta["input.weight"]], rtol=1e-5, atol=1e-7)
    assert torch.equal(last[theta["input.bias"]], first[theta["input.bias"]])
    one = replace(
        asked, network=mf.Architecture(mf.Network(1, bias_std=0.4), weight_std={"readout": 0}, decay={"*.bias": 0.0})
    )
    run = WassersteinFlow(2**8)(one)
    torch.testing.assert_close(run.measure().w[:, :-1], 0.9**4 * run.measure(0).w[:, :-1], rtol=1e-12, atol=0)
    assert torch.equal(run.measure().w[:, -1], run.measure(0).w[:, -1])


def test_noise_follows_the_rate_of_each_layer_in_networks_and_the_limit():
    """Where nothing is learned (y = 0 = f) a matrix is Ornstein and Uhlenbeck's, with its own rate and decay (equation 125)"""
    given = mf.Dataset(data().x, torch.zeros(4, 1))
    settings = {"weight_std": {"readout": 0}, "rate": {"hidden.1": 0.3}, "decay": {"hidden.1": 2.0}}
    network = mf.Architecture(mf.Network(2, "tanh"), frozen=("input", "readout"), **settings)
    asked = problem(network, mf.Training(0.2, 6, temperature=0.7, weight_decay=0.4), given=given)
    keep2, added = (1 - 0.2 * 2 * 0.4) ** 2, 2 * 0.2 * 0.7 * 0.3
    expected = keep2**6 + added * (1 - keep2**6) / (1 - keep2)
    limit = CausalDMFT(512, keep_state=True)(asked)
    assert float(limit.state["scales"].square()) == pytest.approx(expected, rel=1e-12)
    theta = FiniteWidth(200)(asked).state["hidden.1.weight"]
    assert float(theta.square().mean()) == pytest.approx(expected, rel=4 * math.sqrt(2 / theta.numel()))


def test_rates_with_noise_and_decays_like_them_lead_where_equal_ones_do():
    """The mobility of a layer changes how fast the posterior is reached, not which (equation 125): that of equal rates, without a run"""
    training = mf.Training(0.05, 400, temperature=0.3, weight_decay=0.4)
    given = mf.Dataset(data().x, 4 * data().y)
    plain = problem(mf.Network(1, "tanh"), training, given=given)
    own = {"input": 0.5, "readout": 1.5}
    asked = replace(plain, network=mf.Architecture(plain.network, rate=own, decay=own))
    end = gibbs_fixed_point(plain)
    runs = torch.stack([WassersteinFlow(2**10, seed=s, snapshots=())(asked).f[150:] for s in range(4)])
    mean, error = runs.mean((0, 1)), runs.mean(1).std(0) / 2
    assert ((mean - end.f).abs() <= 5 * error + 0.02 * end.f.abs().max()).all()
    # the noise of equal rates would be 0.05 off, 2.6 times what is allowed
    assert 5 * float(error.max()) + 0.02 * float(end.f.abs().max()) < 0.045


def test_averages_over_time_know_the_slowest_decay_and_refuse_what_has_none():
    training = mf.Training(0.1, 20, temperature=0.3, weight_decay=0.4)
    asked = problem(mf.Architecture(TWO, decay={"input": 0.5, "readout": 1.5}, frozen=("hidden.1",)), training)
    assert slowest_decay(asked) == 0.2
    free = replace(asked, network=mf.Architecture(TWO, decay={"*.bias": 0.0}))
    with pytest.raises(ValueError, match=r"noise without one never settles: received decay=0 for 'input.bias'"):
        mf.stationary(CausalDMFT(512)(free), after=4)


def test_files_keep_the_settings_and_runs_go_on(tmp_path):
    """Without code: of particles, the sweep and networks; resumed runs have the bits of whole ones"""
    one = problem(
        mf.Architecture(mf.Network(1, bias_std=0.4), rate={"input": 2.0}, initial_law={"input": "student_t(5)"})
    )
    for asked, solver in (
        (one, WassersteinFlow(2**8)),
        (settled("rademacher"), CausalDMFT(128, keep_state=True)),
        (settled("uniform"), FiniteWidth(16)),
    ):
        half = solver(replace(asked, training=replace(asked.training, steps=4)))
        mf.save(half, path := tmp_path / f"{type(solver).__name__}.nc")
        found = mf.load(path)
        assert found == half
        assert found.problem.network == asked.network
        assert found.problem.architecture.decay == asked.architecture.decay
        assert torch.equal(solver.resume(found, 4).f, solver(asked).f)


NET = mf.Network(1, bias_std=0.4)
BAD = {
    "hidden zeros": (
        lambda: mf.Architecture(TWO, weight_std={"hidden.1": 0}),
        "pass on neither features nor gradients",
    ),
    "input zeros": (lambda: mf.Architecture(TWO, weight_std={"input": 0}), "tell no sample from another"),
    "all zeros": (lambda: mf.Architecture(TWO, weight_std=0), "weight_std must be positive"),
    "no such layer": (lambda: mf.Architecture(TWO, rate={"hidden.2": 2.0}), "known: input.weight.*hidden.1.weight"),
    "no law": (lambda: mf.Architecture(TWO, initial_law="cauchy"), "received 'cauchy'; known: normal, uniform"),
    "no variance": (lambda: mf.Architecture(TWO, initial_law={"input": "student_t(2)"}), "df > 2"),
    "no number": (lambda: mf.Architecture(TWO, initial_law="student_t(many)"), "df > 2"),
    "negative decay": (lambda: mf.Architecture(TWO, decay={"input": -1.0}), "non-negative"),
    "decays beyond": (
        lambda: problem(mf.Architecture(TWO, decay={"input": 9.0}), mf.Training(0.5, 2, weight_decay=0.3)),
        "learning_rate [*] weight_decay [*] decay must be below 1: received 1.35",
    ),
    "nothing left": (lambda: problem(mf.Architecture(TWO, frozen=("*",))), "leaves nothing"),
    "rates within a neuron": (
        lambda: WassersteinFlow(64).check(problem(mf.Architecture(NET, rate={"input.bias": 2.0}))),
        "give the layer 'input' one",
    ),
    "depth": (lambda: WassersteinFlow(64).check(problem(mf.Architecture(TWO))), "received depth 2"),
    "quadrature": (
        lambda: WassersteinFlow(4096, initial="gauss_hermite").check(
            problem(mf.Architecture(NET, initial_law="uniform"))
        ),
        "take initial='sobol'",
    ),
    "a given measure": (
        lambda: WassersteinFlow(initial=mf.ParticleMeasure.iid(8, 3)).check(
            problem(mf.Architecture(NET, weight_std={"readout": 0}))
        ),
        "a start of its own",
    ),
    "frozen part": (
        lambda: WassersteinFlow(64).check(problem(mf.Architecture(NET), scaling=mf.ic_mean_field(1.0, 64))),
        "known without settings by layer",
    ),
    "masses": (
        lambda: WassersteinFlow(64, mass_rate=1.0).check(problem(mf.Architecture(NET, frozen=("readout",)))),
        "transport=False",
    ),
    "kernels": (
        lambda: mf.nngp_and_ntk(mf.Architecture(TWO, initial_law="laplace"), mf.ntk(), data().x),
        "'laplace' of 'input.weight'",
    ),
    "lazy": (
        lambda: TangentKernelLimit().check(problem(mf.Architecture(TWO, initial_law="laplace"), scaling=mf.ntk())),
        "monte_carlo_kernels takes any law",
    ),
    "finite draws": (
        lambda: RevealedWidth(64).check(problem(mf.Architecture(TWO, initial_law="laplace"))),
        "revealed as Gaussian ones: received 'laplace'",
    ),
    "fixed point": (lambda: FixedPointDMFT(256).check(problem(mf.Architecture(TWO))), "without settings by layer"),
    "infinite logits": (
        lambda: InfiniteLogitsLimit(64).check(problem(mf.Architecture(NET))),
        "without settings by layer",
    ),
    "gibbs": (
        lambda: gibbs_fixed_point(
            problem(mf.Architecture(NET), mf.Training(0.1, 3, temperature=0.1, weight_decay=0.1))
        ),
        "without settings by layer",
    ),
    "responses": (lambda: CausalDMFT(256, responses=True).check(problem(mf.Architecture(TWO))), "of perceptrons only"),
    "what an author draws": (
        lambda: mf.Architecture(
            lambda n: nn.Sequential(nn.Linear(2, n), nn.Linear(n, 1)), initial_law={"0.bias": "uniform"}
        ),
        "starts as its author starts it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_by_name(case):
    make, why = BAD[case]
    with pytest.raises(ValueError, match=why):
        make()


def test_the_variance_of_networks_with_settings_by_layer_is_measured_on_narrow_ones():
    found = predicted_variance(settled("uniform"))
    assert found is not None
