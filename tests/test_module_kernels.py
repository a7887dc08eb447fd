"""Tangent kernels of modules, and kernels that no hidden matrix needs: real networks by Jacobians, limits exactly and against these."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meanfield as mf
import solvers.running.tangents
from meanfield.network.architecture import Architecture, architecture
from meanfield.network.meeting import samples_meet
from meanfield.network.module import perceptron
from meanfield.problem.losses import loss as loss_called
from solvers import CausalDMFT, FiniteWidth
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Population
from solvers.finite.modules import ModuleNetworks
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import weighted
from solvers.running.sharding import Shard
from solvers.running.skeleton import Samples
from tests.any_networks import Convolutional, Language, Perceptron, Recurrent, Residual, digits, text

SINGLE, DOUBLE = torch.empty(0), torch.empty(0, dtype=torch.float64)
SQUARED = loss_called("squared")


def real(build, data, width=16, scaling=None, seeds=(0, 1), loss=SQUARED, like=DOUBLE):
    return ModuleNetworks(architecture(build), scaling or mf.mean_field(1.3), width, seeds, data, loss, like)


def limit(build, data, gamma0=1.5, loss=SQUARED, like=DOUBLE, samples=512, seed=0, draws="sobol", tolerance=1e-7):
    population = Population(samples, seed, draws, like, Shard(samples))
    return ModuleLimit(architecture(build), mf.mean_field(gamma0), data, loss, population, (tolerance, tolerance))


def onwards(method, eta, steps):
    state = method.initial_state()
    for _ in range(steps):
        state = weighted((1.0, eta), (state, method.backward(method.forward(state, EVERYWHERE, True))))
    return state


def off(found, right):
    return float((found - right).norm() / right.norm())


class Normed(nn.Module):
    """Samples meet in the statistics of a batch; activations work in place"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = nn.Linear(64, n), nn.Linear(n, n), nn.Linear(n, 2, bias=False)
        self.norm = nn.BatchNorm1d(n, track_running_stats=False)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(F.silu(self.norm(self.read(x)), inplace=True))))


class Odd(nn.Module):
    """Embeddings with padding, filters of several kinds, matrices of its own by three products, a weight that is met in two ways"""

    def __init__(self, n):
        super().__init__()
        self.tok = nn.Embedding(5, n, padding_idx=1)
        self.same = nn.Conv1d(n, 2 * n, 3, padding="same", dilation=2)
        self.wide = nn.Conv1d(2 * n, n, 2, stride=2, padding=1, padding_mode="circular")
        self.w, self.v = nn.Parameter(torch.empty(n, n)), nn.Parameter(torch.empty(n, n))
        self.gain, self.slope = nn.Parameter(torch.rand(n) + 0.5), nn.Parameter(torch.tensor(0.7))
        self.tied, self.out = nn.Linear(n, n), nn.Conv1d(n, 2, 2)

    def forward(self, x):
        h = self.wide(torch.tanh(self.same(self.tok(x).mT))).mT
        h = self.gain * torch.tanh(self.slope * h @ self.w) + torch.tanh(h) @ self.v.T
        h = torch.tanh(self.tied(h)) @ self.tied.weight
        return self.out(F.silu(h, inplace=True).mT).flatten(1)


class Pooled(nn.Module):
    """Embeddings, a residual branch behind a layer norm, the mean over positions"""

    def __init__(self, n):
        super().__init__()
        self.tok, self.norm = nn.Embedding(5, n), nn.LayerNorm(n)
        self.mix, self.out = nn.Linear(n, n, bias=False), nn.Linear(n, 2, bias=False)

    def forward(self, x):
        h = self.tok(x)
        return self.out((h + torch.tanh(self.mix(self.norm(h)))).mean(1))


def tokens():
    return torch.tensor([[0, 1, 2, 3, 4, 1], [2, 2, 1, 0, 3, 4], [4, 3, 3, 1, 1, 0]])


CASES = {
    "convolution": (Convolutional, lambda: digits(4, True)),
    "recurrent": (Recurrent, lambda: digits(4)),
    "residual": (Residual, lambda: digits(4)),
    "language": (Language, lambda: [t[:2] for t in text()]),
    "batch norm": (Normed, lambda: (digits(4)[0], digits(4)[1].expand(4, 2))),
    "odd": (Odd, lambda: (tokens(), torch.ones(3, 6, dtype=torch.float64))),
    "frozen": (Architecture(Residual, rate={"up.0.*": 3.0}, frozen=("read.*", "norms.1.*")), lambda: digits(4)),
}


# -- real networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [mf.mean_field(1.5), mf.ntk(), mf.sym_default(8)], ids=lambda s: s.name)
@pytest.mark.parametrize(
    "network", [mf.Network(1, "tanh", weight_std=1.2, bias_std=0.3), mf.Network(3, "relu", residual=0.7)], ids=str
)
def test_a_network_as_a_module_has_the_kernels_of_the_library_s(scaling, network):
    """To rounding: K, Phi of the last layer, G of the first"""
    data = mf.single_index_teacher(n_train=5, inputs=3, seed=1)
    problem = mf.Problem(mf.Dataset(data.x, torch.cat([data.y, -data.y], 1)), network, scaling, mf.Training(0.2, 0))
    solution = FiniteWidth(32, seed=3, snapshots=(0,))(problem)
    networks = real(perceptron(network, 3, 2), Samples(data.x, problem.data.y), 32, scaling, (3,))
    networks.initial_state()
    given = {"read.weight": solution.state["W0"], "out.weight": solution.state["a"].T}
    given |= {f"mix.{l - 1}.weight": solution.state[f"W{l}"] for l in range(1, network.depth)}
    if network.bias_std:
        given |= {"read.bias": solution.state["b0"][:, 0], "out.bias": solution.state["b"]}
    state = tuple(given[name][None] for name in networks.names)
    torch.testing.assert_close(networks.tangent_kernel(state, 0), solution.tangent_kernel(0), rtol=1e-10, atol=1e-12)
    found = networks.fields(state, 0)
    phi, g = found["Phi out.weight"], found["G read.weight"].reshape(2, 5, 32).transpose(0, 1).flatten(0, 1)
    last = f"Phi{network.depth}"
    torch.testing.assert_close(phi @ phi.T / 32, solution.kernels[last].at(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(g @ g.T / 32, solution.kernels["G1"].at(0), rtol=1e-10, atol=1e-12)


def by_jacobian(networks, state, seed):
    """(P C, P C) from derivatives of f by torch alone, each with its rate"""

    def f(*own):
        both = [torch.stack([s[0], one]) for s, one in zip(state, own, strict=True)]
        return networks.outputs(both, networks.data.x)[seed].flatten()

    jacobians = torch.autograd.functional.jacobian(f, tuple(s[seed] for s in state))
    return sum(
        r * j.reshape(len(j), -1) @ j.reshape(len(j), -1).T for r, j in zip(networks.rates, jacobians, strict=True)
    )


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_tangent_kernels_are_the_products_of_all_derivatives(case, turns, monkeypatch):
    build, data = CASES[case]
    networks = real(build, Samples(*data()), 8)
    state = networks.initial_state()
    if turns > 1:
        monkeypatch.setattr(solvers.running.tangents, "MOST", 400_000 if case == "language" else 4000)
        monkeypatch.setattr(solvers.running.tangents, "_BLOCK", 2**10)
    k = networks.tangent_kernel(state, 1)
    right = by_jacobian(networks, state, 1)
    torch.testing.assert_close(k.reshape(right.shape), right, rtol=1e-10, atol=1e-12 * float(right.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_which_samples_meet_is_seen(case):
    build, data = CASES[case]
    build = build.build if isinstance(build, Architecture) else build
    assert samples_meet(build, data()[0]) is (case == "batch norm")


def test_samples_meet_where_a_start_hides_it():
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.out = nn.Linear(64, n), nn.Linear(n, 1)
            nn.init.zeros_(self.out.weight)

        def forward(self, x):
            h = self.read(x)
            return self.out(torch.tanh(h - h.mean(0)))

    assert samples_meet(Net, digits(4)[0])


def along(k, f, y, loss):
    """-K dL/df, of a mean over samples and positions (equation 90)"""
    f = f.detach().requires_grad_()
    slope = torch.autograd.grad(loss.value(f, y).mean(), f)[0]
    return -torch.einsum("pcqd,qd->pc", k, slope.flatten(1)).reshape(f.shape)


@pytest.mark.parametrize("case", ["convolution", "residual", "language"])
def test_tangent_kernels_predict_a_small_step_of_real_networks(case):
    build, data = CASES[case]
    data, loss = Samples(*data()), loss_called("cross_entropy" if case == "language" else "squared")
    networks = real(build, data, 32, loss=loss)
    state = onwards(networks, 0.1, 3)
    passed = networks.forward(state, EVERYWHERE, True)
    velocity, missed = networks.backward(passed), []
    right = along(networks.tangent_kernel(state, 1), passed.f[1], data.y, loss)
    for eta in (1e-3, 5e-4):
        f = networks.forward(weighted((1.0, eta), (state, velocity)), EVERYWHERE, False).f[1]
        missed.append(off((f - passed.f[1].detach()) / eta, right))
    assert missed[0] < 0.02
    assert missed[1] == pytest.approx(missed[0] / 2, rel=0.1)  # of order eta


# -- the limit -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [None, 0.7])
def test_linear_perceptrons_have_the_exact_kernels(residual):
    """K after some steps, Phi of the last layer, G of the first"""
    data = mf.single_index_teacher(n_train=5, inputs=3, seed=1)
    data = mf.Dataset(data.x, torch.cat([data.y, data.y.roll(1, 0)], 1))
    network = mf.Network(3, "linear", weight_std=1.2, bias_std=0.3, residual=residual)
    problem = mf.Problem(data, network, mf.mean_field(1.5), mf.Training(0.3, 5))
    right = CausalDMFT(samples=600, progress=False)(problem)
    given = Samples(data.x, data.y)
    method = limit(perceptron(network, 3, 2), given, draws="exact", samples=600, tolerance=1e-11)
    state = onwards(method, 0.3, 5)
    torch.testing.assert_close(method.tangent_kernel(state), right.tangent_kernel(-1), rtol=1e-9, atol=1e-10)
    noted = method.noted(method.forward(state, EVERYWHERE, True))
    phi, g = (noted[name].T @ noted[name] for name in ("Phi out.weight", "G read.weight"))
    torch.testing.assert_close(phi, right.kernels["Phi3"].at(5), rtol=1e-9, atol=1e-10)
    g = g.reshape(2, 5, 2, 5).permute(1, 0, 3, 2).reshape(10, 10)
    torch.testing.assert_close(g, right.kernels["G1"].at(5), rtol=1e-9, atol=1e-10)


def test_perceptrons_have_the_sweep_s_kernels_within_the_error_over_seeds():
    x, y = digits(4)
    problem = mf.Problem(mf.Dataset(x=x, y=y), mf.Network(2, "tanh"), mf.mean_field(1.5), mf.Training(0.5, 3))
    ours, theirs = {}, {}
    for seed in range(4):
        method = limit(lambda n: Perceptron(n, 64), Samples(x, y), samples=1024, seed=seed, like=SINGLE, tolerance=1e-2)
        state = onwards(method, 0.5, 3)
        noted = method.noted(method.forward(state, EVERYWHERE, True))
        sweep = CausalDMFT(samples=1024, seed=seed, progress=False)(problem)
        for name, kernel in {"Phi out.weight": "Phi2", "G read.weight": "G1"}.items():
            ours.setdefault(kernel, []).append((noted[name].T @ noted[name]).double())
            theirs.setdefault(kernel, []).append(sweep.kernels[kernel].at(3).double())
        ours.setdefault("K", []).append(method.tangent_kernel(state)[:, 0, :, 0].double())
        theirs.setdefault("K", []).append(sweep.tangent_kernel(-1).double())
    for name in ours:
        one, two = torch.stack(ours[name]), torch.stack(theirs[name])
        error = float(((one.var(0) + two.var(0)) / 4).sum().sqrt())
        assert float((one.mean(0) - two.mean(0)).norm()) < 2 * error
        assert error < 0.06 * float(two.mean(0).norm())


@pytest.mark.parametrize("case", ["convolution", "residual", "language", "batch norm", "frozen"])
def test_tangent_kernels_predict_a_small_step_of_the_limit(case, monkeypatch):
    build, data = CASES[case]
    data, loss = Samples(*data()), loss_called("cross_entropy" if case == "language" else "squared")
    method = limit(build, data, loss=loss)
    state = onwards(method, 0.1, 2)
    passed = method.forward(state, EVERYWHERE, True)
    velocity, missed = method.backward(passed), []
    monkeypatch.setattr(
        method, "back_to", lambda mark: None
    )  # what is forgotten comes again with another sampling error
    right = along(method.tangent_kernel(state), passed.f, data.y, loss)
    before = method.forward(state, EVERYWHERE, False).f
    for eta in (1e-3, 5e-4):
        f = method.forward(weighted((1.0, eta), (state, velocity)), EVERYWHERE, False).f
        missed.append(off((f - before) / eta, right))
    assert missed[0] < 0.02
    assert missed[1] == pytest.approx(missed[0] / 2, rel=0.1)


def test_what_is_looked_at_changes_no_bit_of_a_run():
    data = Samples(*digits(3, True))
    plain, looked = (limit(Convolutional, data, like=SINGLE, tolerance=1e-2) for _ in range(2))
    one, two = plain.initial_state(), looked.initial_state()
    for _ in range(4):
        looked.tangent_kernel(two)
        one, two = (
            weighted((1.0, 0.5), (state, method.backward(method.forward(state, EVERYWHERE, True))))
            for method, state in ((plain, one), (looked, two))
        )
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left, right)


def test_a_restored_limit_notes_the_same_bits():
    data = Samples(*digits(3, True))
    first = limit(Convolutional, data, like=SINGLE, tolerance=1e-2)
    state = onwards(first, 0.5, 2)
    first.noted(first.forward(state, EVERYWHERE, True))
    kept = {name: {k: t.clone() for k, t in part.tensors().items()} for name, part in first.growing().items()}
    assert len(kept["features_out.weight"][""]) > 0
    second = limit(Convolutional, data, like=SINGLE, tolerance=1e-2)
    for name, part in second.growing().items():
        part.restore(kept[name])
    one, two = (
        weighted((1.0, 0.5), (state, method.backward(method.forward(state, EVERYWHERE, True))))
        for method in (first, second)
    )
    assert all(map(torch.equal, one, two))
    state = one
    one, two = (method.noted(method.forward(state, EVERYWHERE, True)) for method in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in {**one, **two})
    assert set(one) >= {"Phi out.weight", "G read.weight", "Phi mix.weight[0]", "G mix.weight[3]"}


@pytest.mark.parametrize("case", ["convolution", "embedding"])
def test_networks_approach_the_limit_s_kernels(case):
    """K, features of the readout and gradients of an input weight after some steps, at two widths: the distance of the mean over networks
    is within its errors and a bias of order 1/n, and that of one network falls like n^(-1/2)
    """
    if case == "convolution":
        build, data, names = (
            lambda n: Convolutional(n, torch.tanh),
            digits(4, True),
            ("Phi out.weight", "G read.weight"),
        )
    else:
        build, data, names = Pooled, (tokens(), torch.eye(3, 2).double()), ("Phi out.weight", "G tok.weight")
    data = Samples(*data)
    right = kernels_of_limit(build, data, names)
    spreads = []
    for width, seeds in ((32, 24), (128, 24)):
        nets = kernels_of_networks(build, data, names, width, seeds)
        spreads.append([])
        for found, wanted in zip(nets, right, strict=True):
            spread = float(found.var(0).sum().sqrt())
            error = math.sqrt(spread**2 / seeds + float(wanted.var(0).sum()) / len(wanted))
            difference = float((found.mean(0) - wanted.mean(0)).norm())
            assert difference < 2 * (error + spread / math.sqrt(width))
            spreads[-1].append(spread)
            assert spread < 0.6 * float(wanted.mean(0).norm())
    for few, many in zip(*spreads, strict=True):
        assert 0.3 < many / few < 0.75


def kernels_of_limit(build, data, names, gamma0=1.5):
    """(seeds, ..) of K and of two kernels"""
    found = []
    for seed in range(3):
        method = limit(build, data, gamma0, SQUARED, SINGLE, 2048, seed, tolerance=1e-2)
        state = onwards(method, 0.2, 3)
        noted = method.noted(method.forward(state, EVERYWHERE, True))
        found.append([method.tangent_kernel(state), *(noted[name].T @ noted[name] for name in names)])
    return [torch.stack(kernels).double() for kernels in zip(*found, strict=True)]


def kernels_of_networks(build, data, names, width, seeds, gamma0=1.5):
    networks = real(build, data, width, mf.mean_field(gamma0), range(seeds), SQUARED, SINGLE)
    state, found = onwards(networks, 0.2, 3), []
    for seed in range(seeds):
        fields = networks.fields(state, seed)
        own = [fields[name] @ fields[name].T / width for name in names]
        found.append([networks.tangent_kernel(state, seed), *own])
    return [torch.stack(kernels).double() for kernels in zip(*found, strict=True)]
