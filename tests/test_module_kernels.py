"""Kernels of modules, those that no hidden matrix needs among them: against perceptrons, and real networks against the limit."""

import math

import pytest
import torch
from torch import nn

import meanfield as mf
from meanfield.network.architecture import perceptron
from solvers import CausalDMFT, FiniteWidth
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import weighted
from solvers.running.skeleton import Samples
from tests.any_networks import Convolutional, Perceptron, digits
from tests.module_methods import SINGLE, SQUARED, limit, onwards, real
from tests.more_networks import Pooled, Steps, tokens


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
    given = {"input.weight": solution.state["W0"], "readout.weight": solution.state["a"].T}
    given |= {f"hidden.{l}.weight": solution.state[f"W{l}"] for l in range(1, network.depth)}
    if network.bias_std:
        given |= {"input.bias": solution.state["b0"][:, 0], "readout.bias": solution.state["b"]}
    state = tuple(given[name][None] for name in networks.names)
    torch.testing.assert_close(networks.tangent_kernel(state, 0), solution.tangent_kernel(0), rtol=1e-10, atol=1e-12)
    found = networks.fields(state, 0)
    phi, g = found["Phi readout.weight"], found["G input.weight"].reshape(2, 5, 32).transpose(0, 1).flatten(0, 1)
    last = f"Phi{network.depth}"
    torch.testing.assert_close(phi @ phi.T / 32, solution.kernels[last].at(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(g @ g.T / 32, solution.kernels["G1"].at(0), rtol=1e-10, atol=1e-12)


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
    phi, g = (noted[name].T @ noted[name] for name in ("Phi readout.weight", "G input.weight"))
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


def test_gradients_that_an_output_lacks_are_zeros_in_their_place():
    """For 3 outputs, 2 samples and all calls, in real networks and in the limit"""
    x, _ = digits(2)
    data = Samples(x, torch.ones(2, 3, 1).double())
    networks, method = real(Steps, data), limit(Steps, data)
    state, own = onwards(networks, 0.1, 1), onwards(method, 0.1, 1)
    fields, noted = networks.fields(state, 0), method.noted(method.forward(own, EVERYWHERE, True))
    for name, calls in {"again.weight": 3, "read.weight": 6}.items():
        g = fields[f"G {name}"].reshape(3, calls, 2, -1)
        factors = noted[f"G {name}"].reshape(-1, 3, calls, 2)
        found = torch.stack([g.square().sum((2, 3)), factors.square().sum((0, 3))]) > 0
        each = calls // 3
        right = torch.tensor([[call // each <= output for call in range(calls)] for output in range(3)])
        assert torch.equal(found, right.expand(2, 3, calls))
    assert fields["Phi again.weight"].shape[0] == noted["Phi again.weight"].shape[1] == 6


def test_a_matrix_by_its_transpose_alone_has_the_kernels_of_the_same_network():
    """h @ w and a linear layer, exactly"""

    class Net(nn.Module):
        def __init__(self, n, layer):
            super().__init__()
            self.read, self.out, self.layer = nn.Linear(3, n, bias=False), nn.Linear(n, 1, bias=False), layer
            self.mix = nn.Linear(n, n, bias=False)

        def forward(self, x):
            h = self.read(x)
            return self.out(self.mix(h) if self.layer else h @ self.mix.weight)

    data, found = mf.single_index_teacher(n_train=5, inputs=3, seed=2), []
    for layer in (True, False):
        build = lambda n: Net(n, layer)  # noqa: B023, E731
        method = limit(build, Samples(data.x, data.y), draws="exact", samples=600, tolerance=1e-11)
        passed = method.forward(onwards(method, 0.3, 4), EVERYWHERE, True)
        noted = method.noted(passed)
        assert (
            set(noted)
            == set(method.bases(passed))
            == {"Phi mix.weight", "G mix.weight", "Phi out.weight", "G read.weight"}
        )
        found.append({name: c.T @ c for name, c in noted.items()})
        fields = {name: noted[name].T @ basis.fields.rows for name, basis in method.bases(passed).items()}
        for name, rows in fields.items():
            torch.testing.assert_close(rows @ rows.T / 600, found[-1][name], rtol=1e-9, atol=1e-10)
    for name, kernel in found[0].items():
        torch.testing.assert_close(found[1][name], kernel, rtol=1e-9, atol=1e-10)
    networks = real(lambda n: Net(n, False), Samples(data.x, data.y))
    assert set(networks.fields(networks.initial_state(), 0)) == set(found[0])
