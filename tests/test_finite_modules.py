"""Real networks from modules against the perceptrons of FiniteWidth and against loops written from scratch here."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meanfield as mf
from meanfield.network.architecture import Architecture, perceptron
from meanfield.problem.losses import loss as loss_called
from solvers import FiniteWidth
from solvers.finite.modules import ModuleNetworks
from solvers.running.inputs import EVERYWHERE
from solvers.running.skeleton import Samples
from tests.any_networks import Convolutional, Language, Perceptron, digits, text

DOUBLE = torch.empty(0, dtype=torch.float64)


def descend(networks, state, eta, steps):
    """f (steps + 1, E, P + P_test, ...)"""
    fs = []
    for step in range(steps + 1):
        fs.append(networks.forward(state, EVERYWHERE, False).f)
        if step < steps:
            velocity = networks.backward(networks.forward(state, slice(0, len(networks.data.x)), True))
            state = tuple(t + eta * v for t, v in zip(state, velocity, strict=True))
    return torch.stack(fs)


def stacked(solutions):
    """The parameters of each, (seeds, ..) by name"""
    return {name: torch.stack([s.state[name] for s in solutions]) for name in solutions[0].state}


NETWORKS = [
    mf.Network(1, "tanh", weight_std=1.2, bias_std=0.3),
    mf.Network(3, "relu"),
    mf.Network(3, "erf", weight_std=0.9, bias_std=0.2, residual=0.7),
]


@pytest.mark.parametrize("scaling", [mf.mean_field(1.5), mf.ntk(), mf.sym_default(8)], ids=lambda s: s.name)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_network_as_a_module_trains_as_the_library_s(scaling, network):
    data = mf.single_index_teacher(n_train=6, n_test=4, inputs=3, seed=1)
    problem = mf.Problem(data, network, scaling, mf.Training(0.2, 10))
    start = stacked(FiniteWidth(32).ensemble(problem.with_steps(0), (0, 1, 2)))
    samples = Samples(data.x, data.y, data.x_test)
    networks = ModuleNetworks(perceptron(network, 3, 1), scaling, 32, (0, 1, 2), samples, problem.loss_function, DOUBLE)
    networks.initial_state()
    given = {"input.weight": start["W0"], "readout.weight": start["a"].transpose(1, 2)}
    given |= {f"hidden.{l}.weight": start[f"W{l}"] for l in range(1, network.depth)}
    if network.bias_std:
        given |= {"input.bias": start["b0"][..., 0], "readout.bias": start["b"]}
        given |= {f"hidden.{l}.bias": start[f"b{l}"][..., 0] for l in range(1, network.depth)}
    f = descend(networks, tuple(given[name] for name in networks.names), 0.2, 10)
    right = torch.stack([torch.cat([s.f, s.f_test], 1) for s in FiniteWidth(32).ensemble(problem, (0, 1, 2))], 1)
    torch.testing.assert_close(f, right, rtol=1e-11, atol=1e-12)
    assert float((f[-1] - f[0]).abs().max()) > 0.01


def by_hand(n, theta, x, y, gamma0, eta, steps, forward, multipliers):
    """Descent written here: every theta by eta gamma0^2 n along minus the gradient"""
    theta, fs = [t.clone() for t in theta], []
    for _ in range(steps + 1):
        leaves = [t.requires_grad_() for t in theta]
        f = forward(x, *(m * t for m, t in zip(multipliers, leaves, strict=True)))
        loss = 0.5 * ((f - y) ** 2).sum() / len(x)
        slopes = torch.autograd.grad(loss, leaves)
        fs.append(f.detach())
        theta = [(t - eta * gamma0**2 * n * g).detach() for t, g in zip(leaves, slopes, strict=True)]
    return torch.stack(fs)


def test_a_convolutional_network_against_a_loop_written_here():
    n, gamma0 = 16, 1.3
    x, y = digits(5, image=True)
    networks = ModuleNetworks(
        Architecture(Convolutional), mf.mean_field(gamma0), n, (3, 4), Samples(x, y), loss_called("squared"), DOUBLE
    )
    start = networks.initial_state()

    def forward(x, read, mix, out):
        h = torch.relu(F.conv2d(x, read, stride=2))
        h = torch.relu(F.conv2d(h, mix, stride=2, padding=1))
        return h.flatten(2).mean(2) @ out.T

    f = descend(networks, start, 0.2, 8)
    for e in range(2):
        right = by_hand(
            n, [t[e] for t in start], x, y, gamma0, 0.2, 8, forward, (1 / 2, 1 / (3 * math.sqrt(n)), 1 / (gamma0 * n))
        )
        torch.testing.assert_close(f[:, e], right, rtol=1e-11, atol=1e-12)
        assert float((right[-1] - right[0]).abs().max()) > 0.1
    for theta in start:  # unit Gaussians, another draw for each seed
        assert abs(float(theta.square().mean()) - 1) < 4 * math.sqrt(2 / theta.numel())
        assert not torch.equal(theta[0], theta[1])


def test_a_seed_has_the_same_network_in_any_company():
    x, y = digits(3, image=True)
    given = (Architecture(Convolutional), mf.ntk(), 8)
    alone = ModuleNetworks(*given, (7,), Samples(x, y), loss_called("squared"), DOUBLE)
    beside = ModuleNetworks(*given, (2, 7), Samples(x, y), loss_called("squared"), DOUBLE)
    for one, two in zip(alone.initial_state(), beside.initial_state(), strict=True):
        assert torch.equal(one[0], two[1])


def test_tokens_a_language_model_s_loss_over_positions_and_rates_by_name():
    """One step of descent moves each parameter by its own rate times the gradient of the mean over samples and positions"""
    x, y = text()
    rate, std = {"block.up.weight": 0.5}, {"tok.weight": 2.0}
    architecture = Architecture(Language, std, rate, frozen=("pos.*",))
    networks = ModuleNetworks(
        architecture, mf.mean_field(0.7), 12, (1,), Samples(x, y), loss_called("cross_entropy"), DOUBLE
    )
    state = networks.initial_state()
    assert "pos.weight" not in networks.names
    passed = networks.forward(state, slice(0, 6), True)
    assert passed.f.shape == (1, 6, 8, 13)
    velocity = dict(zip(networks.names, networks.backward(passed), strict=True))
    net = Language(12).double()
    with torch.no_grad():
        theta = dict(zip(networks.names, state, strict=True)) | networks.frozen
        scale = dict.fromkeys(theta, 1.0) | {
            name: 1 / math.sqrt(p.shape[1]) for name, p in net.block.named_parameters(prefix="block") if p.ndim == 2
        }
        scale |= {"tok.weight": 2.0, "head.weight": 1 / (0.7 * 12)}
        for name, p in net.named_parameters():
            p.copy_(scale[name] * theta[name][0])
    F.cross_entropy(net(x).flatten(0, 1), y.argmax(-1).flatten()).backward()
    for name, p in net.named_parameters():
        if name != "pos.weight":
            right = -(0.7**2) * 12 * rate.get(name, 1.0) * scale[name] * p.grad
            torch.testing.assert_close(velocity[name][0], right, rtol=1e-9, atol=1e-12)


def test_vectors_start_as_their_author_starts_them_and_output_biases_have_the_rate_of_equation_80():
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.out = nn.Linear(3, n), nn.Linear(n, 2)
            self.gain, self.slope = nn.Parameter(torch.rand(n)), nn.Parameter(torch.tensor(0.5))
            nn.init.constant_(self.read.bias, 0.25)

        def forward(self, x):
            return self.out(self.gain * torch.tanh(self.slope * self.read(x)))

    data = mf.single_index_teacher(n_train=6, inputs=3, seed=1)
    y = data.y.expand(6, 2)
    networks = ModuleNetworks(
        Architecture(Net), mf.mean_field(0.5), 20, (1, 2), Samples(data.x, y), loss_called("squared"), DOUBLE
    )
    state = networks.initial_state()
    start, rates = dict(zip(networks.names, state, strict=True)), dict(zip(networks.names, networks.rates, strict=True))
    assert torch.all(start["read.bias"] == 0.25)
    assert float(start["gain"].min()) > 0
    assert not torch.equal(*start["gain"])
    assert rates["gain"] == rates["read.weight"] == pytest.approx(0.25 * 20)
    assert rates["slope"] == pytest.approx(0.25)
    moved = dict(zip(networks.names, networks.backward(networks.forward(state, slice(0, 6), True)), strict=True))
    m = networks.units["out.bias"].multiplier
    f = networks.forward(state, slice(0, 6), False).f
    np.testing.assert_allclose(
        m * moved["out.bias"], (y - f).mean(1), rtol=1e-10
    )  # db = mean Delta, whatever n and gamma0


def test_fields_at_the_matrices_are_those_of_the_perceptrons():
    data = mf.single_index_teacher(n_train=5, inputs=3, seed=1)
    y = torch.cat([data.y, -data.y], 1)
    problem = mf.Problem(mf.Dataset(data.x, y), mf.Network(3, "tanh"), mf.mean_field(1.5), mf.Training(0.2, 2))
    solution = FiniteWidth(24, snapshots=(0,))(problem)
    networks = ModuleNetworks(
        Architecture(lambda n: Perceptron(n, outputs=2, depth=3)),
        problem.scaling,
        24,
        (0, 1),
        Samples(data.x, y),
        problem.loss_function,
        DOUBLE,
    )
    start = dict(zip(networks.names, networks.initial_state(), strict=True))
    theirs = stacked([FiniteWidth(24)(problem.with_steps(0))])
    for name, ours in {"W0": "read.weight", "W1": "mix.0.weight", "W2": "mix.1.weight", "a": "out.weight"}.items():
        start[ours][1] = theirs[name][0].T if name == "a" else theirs[name][0]
    found = networks.fields(tuple(start.values()), 1)
    for l, name in ((1, "mix.0.weight"), (2, "mix.1.weight")):
        h, g = solution.fields[f"h{l}"][0], solution.fields[f"g{l + 1}"][0]  # (N, P), (N, P C)
        torch.testing.assert_close(found[f"Phi {name}"], torch.tanh(h).T, rtol=1e-10, atol=1e-12)
        g = g.reshape(24, 5, 2).permute(2, 1, 0).reshape(10, 24)
        torch.testing.assert_close(found[f"G {name}"], g, rtol=1e-10, atol=1e-12)


def test_fields_at_a_filter_give_its_image():
    networks = ModuleNetworks(
        Architecture(Convolutional),
        mf.mean_field(1.0),
        6,
        (0,),
        Samples(*digits(3, True)),
        loss_called("squared"),
        DOUBLE,
    )
    found = networks.fields(networks.initial_state(), 0)
    assert found["Phi mix.weight"].shape == (3 * 16, 6)
    assert found["G mix.weight"].shape == (3 * 4, 6)


class Makes(nn.Module):
    """A network that makes tensors of its own, and looks at a number, which torch.func does not batch"""

    def __init__(self, n, looks):
        super().__init__()
        self.read, self.again, self.out = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, 1)
        self.looks = looks

    def forward(self, x):
        h = torch.zeros(len(x), self.read.out_features) + torch.tensor(0.1)
        for _ in range(2):
            h = torch.tanh(self.read(x) + self.again(h))
        return self.out(h) if not self.looks or h.mean().item() < 9 else h


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_tensors_that_a_forward_makes_are_of_its_kind_and_what_is_not_batched_runs_alone(kind):
    data, found = mf.single_index_teacher(n_train=4, inputs=3, seed=1), []
    for looks in (False, True):
        networks = ModuleNetworks(
            Architecture(lambda n: Makes(n, looks)),  # noqa: B023
            mf.mean_field(1.0),
            10,
            (0, 1, 2),
            Samples(data.x, data.y),
            loss_called("squared"),
            torch.empty(0, dtype=kind),
        )
        found.append(descend(networks, networks.initial_state(), 0.2, 3))
        assert found[-1].dtype == kind
        assert networks.together is not looks
    torch.testing.assert_close(*found)
    assert torch.get_default_dtype() == torch.float32
