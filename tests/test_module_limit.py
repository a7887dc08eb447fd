"""The limit of modules: against the sweep of perceptrons, exactly where it is exact, and against real networks of growing width."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import meanfield as mf
import solvers.dmft.basis
import solvers.dmft.module_start
from meanfield.network.architecture import Architecture, architecture, perceptron
from meanfield.problem.losses import loss as loss_called
from solvers import CausalDMFT
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Population
from solvers.finite.modules import ModuleNetworks
from solvers.running.descent import step_of
from solvers.running.evolve import evolve
from solvers.running.failures import RankError
from solvers.running.gradient_flow import Flow
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import weighted
from solvers.running.sharding import Ranks, Shard
from solvers.running.skeleton import Samples
from tests.any_networks import Convolutional, Filtered, Language, Perceptron, Recurrent, Residual, digits, text

SINGLE, DOUBLE = torch.empty(0), torch.empty(0, dtype=torch.float64)
SQUARED = loss_called("squared")


def limit(build, data, gamma0=1.5, loss=SQUARED, like=SINGLE, samples=4096, seed=0, draws="sobol", tolerance=1e-2):
    population = Population(samples, seed, draws, like, Shard(samples))
    return ModuleLimit(architecture(build), mf.mean_field(gamma0), data, loss, population, (tolerance, tolerance))


def trained(method, eta, steps):
    """f (steps + 1, P + P_test, ..) in float64"""
    state, fs = method.initial_state(), []
    for step in range(steps + 1):
        passed = method.forward(state, EVERYWHERE, step < steps)
        fs.append(passed.f.detach().double())
        if step < steps:
            state = weighted((1.0, eta), (state, method.backward(passed)))
    return torch.stack(fs)


def exactly(build, data, eta=0.3, steps=8):
    return trained(limit(build, data, like=DOUBLE, draws="exact", samples=600, tolerance=1e-11), eta, steps)


def networks_of(build, data, width, seeds, eta, steps, gamma0=1.5, loss=SQUARED):
    """f (seeds, steps + 1, P, ..) of real networks"""
    method = ModuleNetworks(architecture(build), mf.mean_field(gamma0), width, range(seeds), data, loss, SINGLE)
    state, fs = method.initial_state(), []
    for step in range(steps + 1):
        passed = method.forward(state, EVERYWHERE, step < steps)
        fs.append(passed.f.detach().double())
        if step < steps:
            state = tuple(t + eta * v for t, v in zip(state, method.backward(passed), strict=True))
    return torch.stack(fs, 1)


def off(found, right):
    return float((found - right).norm() / right.norm())


# -- perceptrons -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phi", "depth"), [("tanh", 2), ("relu", 3)])
def test_perceptrons_agree_with_the_sweep_within_the_error_over_seeds(phi, depth):
    x, y = digits(6)
    problem = mf.Problem(mf.Dataset(x=x, y=y), mf.Network(depth, phi), mf.mean_field(1.5), mf.Training(0.5, 15))
    build = lambda n: Perceptron(n, 64, depth=depth, phi=getattr(torch, phi))  # noqa: E731
    new = torch.stack([trained(limit(build, Samples(x, y), samples=2048, seed=s), 0.5, 15) for s in range(4)])
    old = torch.stack([CausalDMFT(samples=2048, seed=s, progress=False)(problem).f.double() for s in range(4)])
    error = float(((new.var(0) + old.var(0)) / 4).sum().sqrt())
    assert float((new.mean(0) - old.mean(0)).norm()) < 2 * error
    assert error < 0.005 * float(old.norm())
    assert float(new[:, 0].abs().max()) < 1e-6


@pytest.mark.parametrize("residual", [None, 0.7])
def test_linear_perceptrons_are_exact_with_biases_deviations_and_test_points(residual):
    data = mf.single_index_teacher(n_train=6, n_test=3, inputs=3, seed=1)
    network = mf.Network(3, "linear", weight_std=1.2, bias_std=0.3, residual=residual)
    right = CausalDMFT(samples=600, progress=False)(mf.Problem(data, network, mf.mean_field(1.5), mf.Training(0.3, 8)))
    f = exactly(perceptron(network, 3, 1), Samples(data.x, data.y, data.x_test))
    torch.testing.assert_close(f, torch.cat([right.f, right.f_test], 1), rtol=1e-9, atol=1e-10)
    assert float(f[-1].abs().max()) > 0.1


@pytest.mark.parametrize("case", ["fewer", "linear", "filter", "tokens"])
def test_inputs_of_more_axes_than_neurons_have_the_law_of_few(case):
    """Of 64 neurons: first fields with the covariance of their inputs, exactly where those span few directions"""
    g, inputs = torch.Generator().manual_seed(0), 48 if case == "fewer" else 192
    x, right = torch.randn(5, inputs, generator=g, dtype=torch.float64), None
    if case == "filter":
        read, x = (lambda n: nn.Conv1d(inputs, n, 3, bias=False)), x[:, :, None].repeat(1, 1, 3)
        right = 3 * x[:, :, 0] @ x[:, :, 0].T / (3 * inputs)
    elif case == "tokens":
        read, x, right = (
            (lambda n: nn.Embedding(inputs, n)),
            torch.tensor([[3], [191], [100], [0], [3]]),
            torch.eye(5).double(),
        )
        right[0, 4] = right[4, 0] = 1
    else:
        read, right = (lambda n: nn.Linear(inputs, n, bias=False)), x @ x.T / inputs

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.out = read(n), nn.Linear(n, 1, bias=False)

        def forward(self, x):
            h = self.read(x)
            return self.out(torch.tanh(h.flatten(1)))

    method = limit(Architecture(Net, record={"h": "read"}), Samples(x, torch.zeros(5, 1)), like=DOUBLE, samples=64)
    h = method.recorded(method.initial_state())["h"].flatten(1)
    torch.testing.assert_close(h @ h.T / 64, right, rtol=1e-9, atol=1e-9)
    assert float(h.abs().max()) < 6 * float(right.diagonal().max()) ** 0.5


@pytest.mark.parametrize("inputs", [48, 96, 192, 288])
def test_inputs_as_many_as_trials_have_neurons_change_nothing(inputs):
    """Linear networks, exactly: zeros beside the inputs"""
    data = mf.single_index_teacher(n_train=5, inputs=3, seed=2)
    right = exactly(lambda n: Perceptron(n, 3, phi=nn.Identity()), Samples(data.x, data.y))
    wide = F.pad(data.x, (0, inputs - 3)) * math.sqrt(inputs / 3)
    found = exactly(lambda n: Perceptron(n, inputs, phi=nn.Identity()), Samples(wide, data.y))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)


# -- the ways in which a module may meet a matrix, exactly --------------------------------------------------------------------


def chain(meet):
    """A linear network with a matrix of its own between two layers"""

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.out = nn.Linear(3, n, bias=False), nn.Linear(n, 1, bias=False)
            self.w = nn.Parameter(torch.empty(n, n))

        def forward(self, x):
            return self.out(meet(self.read(x), self.w))

    return Net


@pytest.mark.parametrize(
    "meet",
    [
        lambda h, w: h @ w,
        lambda h, w: h @ w.T,
        lambda h, w: (w @ h.T).T,
        lambda h, w: torch.einsum("pi,ij->pj", h, w),
        lambda h, w: torch.einsum("ji,pi->pj", w, h),
        lambda h, w: F.linear(h, w.t()),
        lambda h, w: 2 * F.linear(h, w / 2),
        lambda h, w: torch.matmul(h, w.transpose(0, 1) * 0.5) * 2,
        lambda h, w: torch.stack([w @ row for row in h]),
        lambda h, w: F.linear(h[:, None], w)[:, 0],
    ],
)
def test_every_way_to_multiply_by_a_matrix_is_the_same_network(meet):
    data = mf.single_index_teacher(n_train=5, inputs=3, seed=2)
    samples = Samples(data.x, data.y)
    right = exactly(lambda n: Perceptron(n, phi=lambda h: h), samples)
    torch.testing.assert_close(exactly(chain(meet), samples), right, rtol=1e-9, atol=1e-10)
    assert float(right[-1].abs().max()) > 0.1


@pytest.mark.parametrize("times", [1, 2])
def test_a_matrix_and_its_transpose_in_one_network_against_real_ones(times):
    """h -> W^T tanh(W h), also for W between axes of n and 2n: the mean over networks agrees within the errors"""

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.up = nn.Linear(3, n, bias=False), nn.Linear(n, times * n, bias=False)
            self.out = nn.Linear(n, 1, bias=False)

        def forward(self, x):
            return self.out(torch.tanh(torch.tanh(self.up(self.read(x))) @ self.up.weight))

    data = mf.single_index_teacher(n_train=4, inputs=3, seed=2)
    samples = Samples(data.x, data.y)
    found = torch.stack([trained(limit(Net, samples, samples=4096, seed=s), 0.5, 8) for s in range(3)])
    nets = networks_of(Net, samples, 256, 48, 0.5, 8)
    error = float((nets.var(0) / 48 + found.var(0) / 3).sum().sqrt())
    assert float((nets.mean(0) - found.mean(0)).norm()) < 2 * error
    assert error < 0.04 * float(found.mean(0).norm())


@pytest.mark.parametrize(
    ("meet", "what"),
    [
        (lambda h, w: h @ F.normalize(w), "needs its entries"),
        (lambda h, w: h @ (w + h.mean()), "needs its entries"),
        (lambda h, w: h @ w[:3].T, "needs its entries"),
        (lambda h, w: h @ (w @ w), "two matrices"),
        (lambda h, w: h @ (w * h.mean()), "product with a tensor"),
        (lambda h, w: torch.einsum("pi,ij->p", h, w), "einsum"),
        (lambda h, w: h @ w.relu(), "needs its entries"),
    ],
)
def test_what_needs_the_entries_of_a_matrix_is_refused(meet, what):
    data = mf.single_index_teacher(n_train=4, inputs=3, seed=2)
    with pytest.raises(ValueError, match="'w' between two wide axes must multiply fields") as error:
        limit(chain(meet), Samples(data.x, data.y), samples=64).initial_state()
    assert what in str(error.value)


# -- convolutions, exactly -----------------------------------------------------------------------------------------------------


def line(positions, samples=4):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 2, positions, generator=g, dtype=torch.float64)
    return x, torch.randn(samples, 1, generator=g, dtype=torch.float64)


def test_a_filter_on_equal_positions_is_one_matrix():
    x, y = line(1)
    dense = exactly(lambda n: Perceptron(n, 2, phi=lambda h: h), Samples(x[:, :, 0], y))
    filtered = exactly(lambda n: Filtered(n, kernel_size=3), Samples(x.expand(-1, -1, 3).contiguous(), y))
    torch.testing.assert_close(filtered, dense, rtol=1e-9, atol=1e-10)


def test_a_filter_of_which_one_offset_sees_something_is_a_smaller_matrix():
    x, y = line(1)
    dense = exactly(
        Architecture(lambda n: Perceptron(n, 2, phi=lambda h: h), {"mix.0.weight": 1 / math.sqrt(3)}),
        Samples(x[:, :, 0], y),
    )
    filtered = exactly(lambda n: Filtered(n, kernel_size=3), Samples(F.pad(x, (1, 1)), y))
    torch.testing.assert_close(filtered, dense, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 2, 1, 1), (2, 3, 0, 1), (3, 2, 2, 2), (2, 2, 0, 1)]
)
def test_a_stride_leaves_out_positions_of_the_same_filter(kernel, stride, padding, dilation):
    """One basis for each phase against one for all offsets: the same network, without sampling error"""
    x, y = line(7)

    class Thinned(Filtered):
        def forward(self, x):
            return self.out(self.mix(self.read(x))[:, :, ::stride].mean(2))

    given = dict(kernel_size=kernel, padding=padding, dilation=dilation)
    found = exactly(lambda n: Filtered(n, stride=stride, **given), Samples(x, y))
    right = exactly(lambda n: Thinned(n, **given), Samples(x, y))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)
    assert float(right[-1].abs().max()) > 0.05


def test_a_filter_as_large_as_its_input_is_a_matrix_on_flattened_features():
    """An axis of 4n, neurons times positions: within the error over seeds"""
    x, y = line(4)

    class Whole(nn.Module):
        def __init__(self, n, flat):
            super().__init__()
            self.read, self.flat = nn.Conv1d(2, n, 1, bias=False), flat
            self.mix = nn.Linear(4 * n, n, bias=False) if flat else nn.Conv1d(n, n, 4, bias=False)
            self.out = nn.Linear(n, 1, bias=False)

        def forward(self, x):
            h = torch.tanh(self.read(x))
            return self.out(torch.tanh(self.mix(h.flatten(1)) if self.flat else self.mix(h)[:, :, 0]))

    def sweeps(flat):
        build = lambda n: Whole(n, flat)  # noqa: E731
        return torch.stack([trained(limit(build, Samples(x, y), samples=2048, seed=s), 0.5, 12) for s in range(4)])

    both = sweeps(True), sweeps(False)
    error = float(sum(f.var(0) / 4 for f in both).sum().sqrt())
    assert float((both[0].mean(0) - both[1].mean(0)).norm()) < 2 * error
    assert error < 0.01 * float(both[0].mean(0).norm())


# -- against real networks -----------------------------------------------------------------------------------------------------

CASES = {  # builder, data, eta, gamma0
    "tanh convolution": (lambda n: Convolutional(n, torch.tanh), lambda: digits(4, True), 0.5, 1.5),
    "relu convolution": (Convolutional, lambda: digits(4, True), 0.5, 1.5),
    "recurrent": (Recurrent, lambda: digits(4), 0.5, 1.5),
    "residual": (Residual, lambda: digits(4), 0.1, 1.5),
    "language": (Language, text, 0.1, 4.0),
}


def loss_of(case):
    return loss_called("cross_entropy" if case == "language" else "squared")


@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_networks_agrees_with_the_limit_and_not_without_responses(case, monkeypatch):
    build, data, eta, gamma0 = CASES[case]
    data, loss, width, seeds, steps = Samples(*data()), loss_of(case), 128, 64 if case == "language" else 32, 6

    def sweep(seed):
        return trained(limit(build, data, gamma0, loss, samples=2048, seed=seed), eta, steps)

    found = torch.stack([sweep(seed) for seed in range(2)])
    nets = networks_of(build, data, width, seeds, eta, steps, gamma0, loss)
    error = float((nets.var(0) / seeds + found.var(0) / 2).sum().sqrt())
    bias = float(nets.var(0).sum().sqrt()) / math.sqrt(
        width
    )  # of order 1/n, as one network's error is of order 1/sqrt(n)
    difference = float((nets.mean(0) - found.mean(0)).norm())
    whole = solvers.dmft.infinite_dense.Basis.reveal_beside

    def deaf(self, v, others):
        c, new, beside = whole(self, v, others)
        return c, new, torch.zeros_like(beside)

    monkeypatch.setattr(solvers.dmft.infinite_dense.Basis, "reveal_beside", deaf)
    without = float((nets.mean(0) - sweep(0)).norm())
    assert difference < 2 * (error + bias)
    assert without > 3 * (error + bias)


# -- start and derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["relu convolution", "residual", "language"])
def test_outputs_vanish_at_the_start_at_all_points(case):
    x, y = CASES[case][1]()
    method = limit(CASES[case][0], Samples(x[:3], y[:3], x[3:]), loss=loss_of(case), like=DOUBLE, samples=1024)
    f = method.forward(method.initial_state(), EVERYWHERE, False).f
    assert f.shape[0] == len(x)
    assert float(f.detach().abs().max()) < 1e-9


def test_the_velocity_of_what_is_learned_is_minus_the_gradient_of_the_loss():
    """Entries of L moved by hand, for a filter with a stride and a matrix that is used at several times"""
    for build, data in ((CASES["tanh convolution"][0], digits(3, True)), (Recurrent, digits(3))):
        method = limit(build, Samples(*data), like=DOUBLE, samples=256, tolerance=1e-6)
        state = method.initial_state()
        for _ in range(3):
            state = weighted((1.0, 0.5), (state, method.backward(method.forward(state, slice(0, 3), True))))
        velocity = method.backward(method.forward(state, slice(0, 3), True))
        state = weighted((1.0, 0.0), (state, velocity))  # in its size
        for k, name in enumerate(method.learning):
            rate = method.units[name.partition("[")[0]].rate / method.layers[name].above.samples
            large = velocity[k].abs().flatten().topk(2).indices
            for at in [divmod(int(i), velocity[k].shape[1]) for i in large]:
                loss = []
                for sign in (1, -1):
                    moved = [t.clone() for t in state]
                    moved[k][at] += sign * 1e-4
                    loss.append(
                        float(SQUARED.value(method.forward(tuple(moved), slice(0, 3), False).f, data[1]).mean())
                    )
                assert float(velocity[k][at]) == pytest.approx(-rate * (loss[0] - loss[1]) / 2e-4, rel=1e-6)


def test_axes_of_one_size_have_independent_draws():
    """Where the fields of two axes meet neuron by neuron, stratification must not make them alike"""
    x, y = text()
    method = limit(Language, Samples(x, y), loss=loss_of("language"), samples=4096)
    state = dict(zip(method.own, method.initial_state()[len(method.learning) : -1], strict=True))
    rows = [state["tok.weight"], state["pos.weight"], state["head.weight"]]
    rows += [method.layers[f"block.{name}.weight"].u.rows[:8] for name in ("q", "k", "v", "o")]
    for one, two in itertools.combinations(rows, 2):
        for power in (1, 2):
            a, b = (t.double() ** power for t in (one, two))
            a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
            z = a @ b.T / 4096 / (a.std(1)[:, None] * b.std(1)) * 64
            assert float(z.abs().max()) < 5


def test_author_s_vectors_start_as_they_are_but_for_biases_that_shrink_with_the_width():
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.mix, self.out = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, 1)
            self.gain, self.shift = nn.Parameter(torch.rand(n)), nn.Parameter(torch.full((n,), 0.5))

        def forward(self, x):
            return self.out(torch.tanh(self.mix(self.gain * torch.tanh(self.read(x)) + self.shift)))

    data = mf.single_index_teacher(n_train=4, inputs=3, seed=2)
    method = limit(Architecture(Net, frozen=("mix.weight",)), Samples(data.x, data.y), samples=1024)
    state = method.initial_state()
    assert method.learning == []
    own = dict(zip(method.own, state[:-1], strict=True))
    assert float(own["mix.bias"].abs().max()) == 0
    assert float(own["out.bias"].abs().max()) == 0
    assert float(own["read.bias"].std()) == pytest.approx(1 / 3, rel=0.1)  # uniform up to 1 / sqrt(3)
    assert torch.all(own["shift"] == 0.5)
    assert 0 < float(own["gain"].min()) < float(own["gain"].max()) < 1


def test_matrices_learn_on_features_that_nothing_trained_lies_below():
    """A frozen input layer, against a descent on real networks"""
    x, y = digits(4)
    build = Architecture(lambda n: Perceptron(n, 64), frozen=("read.weight", "out.weight"))
    found = torch.stack([trained(limit(build, Samples(x, y), samples=2048, seed=s), 0.5, 6) for s in range(2)])
    nets = networks_of(build, Samples(x, y), 256, 32, 0.5, 6)
    error = float((nets.var(0) / 32 + found.var(0) / 2).sum().sqrt())
    assert float((nets.mean(0) - found.mean(0)).norm()) < 2 * error
    assert float(found.norm()) > 5 * error


def test_kernels_by_matrix_are_those_of_the_sweep():
    """Phi of what enters, G of what leaves, for two outputs, within the error over seeds"""
    x, y = digits(4)
    y = torch.cat([y, y.roll(1, 0)], 1)
    problem = mf.Problem(mf.Dataset(x=x, y=y), mf.Network(3, "tanh"), mf.mean_field(1.5), mf.Training(0.5, 3))
    names = {"Phi mix.0.weight": "Phi1", "Phi mix.1.weight": "Phi2", "G mix.0.weight": "G2", "G mix.1.weight": "G3"}
    found, right = {name: [] for name in names}, {name: [] for name in names}
    for seed in range(4):
        method = limit(lambda n: Perceptron(n, 64, outputs=2, depth=3), Samples(x, y), samples=1024, seed=seed)
        state = method.initial_state()
        for _ in range(3):
            state = weighted((1.0, 0.5), (state, method.backward(method.forward(state, EVERYWHERE, True))))
        noted = method.noted(method.forward(state, EVERYWHERE, True))
        sweep = CausalDMFT(samples=1024, seed=seed, progress=False)(problem)
        for name, other in names.items():
            kernel = (noted[name].T @ noted[name]).double()
            if name[0] == "G":  # ours are ordered by outputs first
                kernel = kernel.reshape(2, 4, 2, 4).permute(1, 0, 3, 2).reshape(8, 8)
            found[name].append(kernel)
            right[name].append(sweep.kernels[other].at(3, 3).double())
    for name in names:
        ours, theirs = torch.stack(found[name]), torch.stack(right[name])
        error = float(((ours.var(0) + theirs.var(0)) / 4).sum().sqrt())
        assert float((ours.mean(0) - theirs.mean(0)).norm()) < 2 * error
        assert error < 0.06 * float(theirs.mean(0).norm())


@pytest.mark.parametrize("draws", ["sobol", "plain"])
def test_the_error_of_sampling_falls_with_the_samples(draws):
    """The spread of 6 seeds at 16 times the samples is a quarter, known to half of it if their errors have one direction"""
    data = Samples(*digits(4))

    def spread(samples):
        runs = [trained(limit(Recurrent, data, samples=samples, seed=seed, draws=draws), 0.5, 4) for seed in range(6)]
        return float(torch.stack(runs).var(0).sum().sqrt())

    assert spread(2048) < 0.5 * spread(128)


# -- on the way through time ----------------------------------------------------------------------------------------------------

WAYS = {
    "momentum, decay and batches": mf.Training(0.2, 10, momentum=0.6, weight_decay=0.2, batch_size=2, record_every=3),
    "flow": mf.Training(0.2, 4, optimiser="gradient_flow"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loop_of_all_solvers_takes_a_module_as_the_exact_sweep(way):
    data = mf.single_index_teacher(n_train=6, n_test=3, inputs=3, seed=1)
    problem = mf.Problem(data, mf.Network(3, "linear"), mf.mean_field(1.5), WAYS[way])
    right = CausalDMFT(samples=600, progress=False, rtol=1e-8)(problem)
    samples = Samples(data.x, data.y, data.x_test)
    build = lambda n: Perceptron(n, depth=3, phi=lambda h: h)  # noqa: E731
    method = limit(build, samples, like=DOUBLE, draws="exact", samples=600, tolerance=1e-11)
    step = step_of(problem.training, Flow(0.2, 6, 1e-8, norm=method.norm))
    run = evolve(method, method.initial_state(), problem, step, progress=False)
    answer = run.answer()
    f, f_test = answer["f"], answer["f_test"]
    rtol = 1e-9 if way != "flow" else 1e-5
    torch.testing.assert_close(f, right.f, rtol=rtol, atol=rtol)
    torch.testing.assert_close(f_test, right.f_test, rtol=rtol, atol=rtol)
    assert float(f[-1].abs().max()) > 0.1


def test_a_restored_limit_goes_on_with_the_same_bits():
    """State and what is known of the matrices, into a fresh object; and back to a mark"""
    data = Samples(*digits(3, True))

    def fresh():
        return limit(Convolutional, data, samples=512, seed=3)

    def onwards(method, state, steps):
        for _ in range(steps):
            state = weighted((1.0, 0.5), (state, method.backward(method.forward(state, slice(0, 3), True))))
        return state

    first = fresh()
    middle = onwards(first, first.initial_state(), 3)
    kept = {name: {k: t.clone() for k, t in part.tensors().items()} for name, part in first.growing().items()}
    mark = first.mark()
    end = onwards(first, middle, 3)
    first.back_to(mark)
    second = fresh()
    for name, part in second.growing().items():
        part.restore(kept[name])
    for method in (first, second):
        for one, two in zip(onwards(method, middle, 3), end, strict=True):
            assert torch.equal(one, two)


class Narrowed(nn.Module):
    """A bottleneck of n/8 between layers of n, or an inner layer of 4n."""

    def __init__(self, n, times):
        super().__init__()
        self.read, self.down = nn.Linear(64, n), nn.Linear(n, int(times * n))
        self.up, self.out = nn.Linear(int(times * n), n), nn.Linear(n, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.up(torch.tanh(self.down(torch.tanh(self.read(x)))))))


def on_digits(build, points=12, steps=12, eta=1.0):
    x, y = digits(points)
    return mf.Problem(mf.Dataset(x=x, y=y), build, mf.mean_field(1.5), mf.Training(eta, steps))


def test_samples_too_few_for_an_axis_are_refused_before_work(monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(ModuleLimit, "initial_state", work)
    asked = on_digits(lambda n: Narrowed(n, 1 / 8))
    for solve in (CausalDMFT(64), CausalDMFT(64).estimate):
        with pytest.raises(
            ValueError, match=r"samples=64 are too few for 12 .*layer 'down' .* n/8, 8 neurons; take at least 128$"
        ):
            solve(asked)
    CausalDMFT(128).check(asked)
    CausalDMFT(64).check(on_digits(lambda n: Narrowed(n, 4)))


@pytest.mark.parametrize(("times", "samples", "neurons"), [(1 / 8, 128, 16), (4, 32, 32)])
def test_fields_that_outgrow_an_axis_are_told_with_the_layer_and_samples_that_would_do(times, samples, neurons):
    """The samples that are named take a run beyond the step at which the fewer ones ended"""
    asked = on_digits(lambda n: Narrowed(n, times))
    ended, first = 0, samples
    for _ in range(6):
        solution = CausalDMFT(samples, raise_on_failure=False)(asked)
        if solution.status is mf.Status.FINISHED:
            break
        told = re.fullmatch(
            r"the fields of the layer '(down|up)' span (\d+) directions or more, which take more than the (\d+) neurons of its axis: take "
            rf"samples=(\d+) or more instead of {samples}, since training adds others, or a larger tolerance",
            solution.stats["reason"],
        )
        needed, room, asked_for = map(int, told.groups()[1:])
        assert needed >= room == neurons
        assert asked_for * neurons // samples > needed
        assert solution.steps >= ended
        ended, neurons, samples = solution.steps, neurons * asked_for // samples, asked_for
    assert solution.status is mf.Status.FINISHED
    assert samples > first


@pytest.mark.parametrize("inner", [None, 48])
def test_modules_without_a_matrix_between_neurons_may_have_many_directions(inner):
    """Two layers, or two such networks one behind the other"""

    def build(n):
        between = [] if inner is None else [nn.Linear(n, inner), nn.Linear(inner, n), nn.Tanh()]
        return nn.Sequential(nn.Linear(64, n), nn.Tanh(), *between, nn.Linear(n, 1))

    asked = on_digits(build)
    assert CausalDMFT(64, dtype="float64").rank_limit(asked) == 64
    solution = CausalDMFT(64, raise_on_failure=False)(asked)
    assert solution.status is mf.Status.FINISHED


def test_readouts_that_cannot_vanish_on_all_features_are_told():
    """Of 32 neurons 16 independent features leave 16 directions, for 17 outputs"""

    def build(outputs):
        return lambda n: nn.Sequential(nn.Linear(8, n), nn.Tanh(), nn.Linear(n, outputs))

    x = 3 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(RankError, match=r"readout '2' span 33 directions .* 32 neurons .* samples=64"):
        limit(build(17), Samples(x, torch.zeros(16, 17)), samples=32).initial_state()
    limit(build(16), Samples(x, torch.zeros(16, 16)), samples=32).initial_state()


def test_what_cannot_be_is_refused_before_work():
    samples = Samples(*digits(3))
    with pytest.raises(ValueError, match="all wide axes to be n: received 2n x n for"):
        limit(Residual, samples, draws="exact")
    network, given = architecture(Residual), (samples, SQUARED)
    whole, shared = (Population(64, 0, "sobol", SINGLE, shard) for shard in (Shard(64), Shard(64, Ranks(0, 2))))
    with pytest.raises(ValueError, match="spread groups over an executor"):
        ModuleLimit(network, mf.mean_field(1.0), *given, shared, (1e-2, 1e-2))
    with pytest.raises(ValueError, match="has no limit as a flow of measures"):
        ModuleLimit(network, mf.ntk(), *given, whole, (1e-2, 1e-2))


def test_an_input_weight_of_few_directions_tells_its_shape_without_its_numbers():
    weight = solvers.dmft.module_start.Narrow.of(torch.ones(9, 2), torch.ones(2, 5))
    with FlopCounterMode(display=False) as counter:
        assert (weight.shape, weight.dtype, weight.ndim) == ((5, 9), torch.float32, 2)
        assert (weight.size(1), weight.dim()) == (9, 2)
    assert counter.get_total_flops() == 0
    assert torch.equal(weight + 1, torch.full((5, 9), 3.0))


def test_inputs_of_few_directions_are_kept_as_these_and_the_network_is_the_same(monkeypatch):
    """Exactly, with a frozen input layer or not, and restored"""
    g = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(5, 2, generator=g, dtype=torch.float64) @ torch.randn(2, 9, generator=g, dtype=torch.float64),
        torch.ones(5, 1),
    )
    for frozen in ((), ("read.weight",)):
        build = Architecture(lambda n: Perceptron(n, 9, phi=lambda h: h), frozen=frozen)
        given = dict(like=DOUBLE, draws="exact", samples=600, tolerance=1e-11)
        method = limit(build, Samples(x[:4], y[:4].double(), x[4:]), **given)
        state = method.initial_state()
        assert method.fixed.directions["read.weight"].shape == (9, 2)
        f = method.forward(
            weighted((1.0, 0.3), (state, method.backward(method.forward(state, EVERYWHERE, True)))), EVERYWHERE, False
        ).f
        again = limit(build, Samples(x[:4], y[:4].double(), x[4:]), **given)
        for name, part in again.growing().items():
            part.restore(method.growing()[name].tensors())
        assert torch.equal(again.forward(state, EVERYWHERE, False).f, method.forward(state, EVERYWHERE, False).f)
        with monkeypatch.context() as patch:
            patch.setattr(solvers.dmft.module_start, "_MANY_INPUTS", 0)
            whole = limit(build, Samples(x[:4], y[:4].double(), x[4:]), **given)
            state = whole.initial_state()
            assert not whole.fixed.directions
            right = whole.forward(
                weighted((1.0, 0.3), (state, whole.backward(whole.forward(state, EVERYWHERE, True)))), EVERYWHERE, False
            ).f
        torch.testing.assert_close(f, right, rtol=1e-9, atol=1e-10)


def test_a_recurrent_network_may_start_from_zeros_of_its_own():
    """Exactly: a matrix on a field of zeros is one that is not called"""

    class Net(Recurrent):
        def __init__(self, n, zeros):
            super().__init__(n)
            self.zeros = zeros

        def forward(self, x):
            h = torch.zeros(len(x), self.again.in_features) if self.zeros else None
            for row in x.reshape(-1, 8, 8)[:, 3:7].unbind(1):
                h = self.read(row) + (0.0 if h is None else self.again(h))
            return self.out(h)

    data = Samples(*digits(4))
    one, two = (exactly(lambda n: Net(n, zeros), data, 0.1) for zeros in (True, False))  # noqa: B023
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)
    assert float(one[-1].abs().max()) > 0.1
