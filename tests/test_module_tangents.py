"""Tangent kernels of modules: real networks by all derivatives, limits by what a small step does."""

import pytest
import torch
from torch import nn

import solvers.running.tangents
from meanfield.network.architecture import Architecture, architecture
from meanfield.problem.losses import loss as loss_called
from solvers.running.apart import passes_of
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import weighted
from solvers.running.skeleton import Samples
from tests.any_networks import Convolutional, Language, Recurrent, Residual, digits, text
from tests.module_methods import SINGLE, limit, off, onwards, real
from tests.more_networks import InPlace, Normed, Odd, Other, Seen, tokens

CASES = {
    "convolution": (Convolutional, lambda: digits(4, True)),
    "recurrent": (Recurrent, lambda: digits(4)),
    "residual": (Residual, lambda: digits(4)),
    "language": (Language, lambda: [t[:2] for t in text()]),
    "batch norm": (Normed, lambda: (digits(4)[0], digits(4)[1].expand(4, 2))),
    "odd": (Odd, lambda: (tokens(), torch.ones(3, 6, dtype=torch.float64))),
    "vision": (Seen, lambda: (*digits(3, True)[:1], torch.ones(3, 2).double())),
    "second axis": (lambda n: Other(n, False), lambda: digits(4)),
    "in place": (Architecture(InPlace, frozen=("read.*",)), lambda: digits(4)),
    "frozen": (Architecture(Residual, rate={"up.0.*": 3.0}, frozen=("read.*", "norms.1.*")), lambda: digits(4)),
}


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
    with torch.no_grad():  # as within a run
        k = networks.tangent_kernel(state, 1)
    right = by_jacobian(networks, state, 1)
    torch.testing.assert_close(k.reshape(right.shape), right, rtol=1e-10, atol=1e-12 * float(right.abs().max()))


def passes(build, x):
    network = architecture(build)
    with torch.no_grad():
        return passes_of(network.build, network.description, tuple(p.name for p in network.description), x)


HOW = {"batch norm": "meeting", "odd": "single", "second axis": "single"}  # in one pass over all samples where possible


@pytest.mark.parametrize("case", CASES)
def test_which_passes_tell_samples_apart(case):
    assert passes(CASES[case][0], CASES[case][1]()[0]) == HOW.get(case, "batch")


def test_a_product_by_a_parameter_of_no_layer_takes_a_pass_of_each_sample():
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.w, self.out = nn.Parameter(torch.ones(3, n)), nn.Linear(n, 1)

        def forward(self, x):
            return self.out(torch.tanh(x @ self.w))

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert passes(Net, x) == "single"
    networks = real(Net, Samples(x, x[:, :1]), 8)
    state = networks.initial_state()
    with torch.no_grad():
        k = networks.tangent_kernel(state, 1)
    right = by_jacobian(networks, state, 1)
    torch.testing.assert_close(k.reshape(right.shape), right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("meet", [False, True])
def test_other_orders_of_rows_and_samples_that_meet_behind_a_zero_start(meet):
    build = lambda n: Other(n, meet)  # noqa: E731
    for samples in (4, 8):  # of rows there are 8 for each sample
        x, y = digits(samples)
        assert passes(build, x) == ("meeting" if meet else "single")
        networks = real(build, Samples(x, y), 8)
        state = networks.initial_state()
        right = by_jacobian(networks, state, 1)
        k = networks.tangent_kernel(state, 1).reshape(right.shape)
        torch.testing.assert_close(k, right, rtol=1e-10, atol=1e-12 * float(right.abs().max()))


def test_as_many_positions_as_samples_are_not_taken_for_these():
    x = torch.randint(13, (8, 8), generator=torch.Generator().manual_seed(1))
    assert passes(Language, x) == "single"
    assert passes(Language, x[:7]) == "batch"


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


@pytest.mark.parametrize(
    "case", ["convolution", "residual", "language", "batch norm", "odd", "vision", "second axis", "in place", "frozen"]
)
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
    with torch.no_grad():
        k = method.tangent_kernel(state)
    right = along(k, passed.f, data.y, loss)
    before = method.forward(state, EVERYWHERE, False).f
    for eta in (5e-4, 2.5e-4):  # too short for a neuron's kink
        f = method.forward(weighted((1.0, eta), (state, velocity)), EVERYWHERE, False).f
        missed.append(off((f - before) / eta, right))
    assert missed[0] < 0.02
    assert missed[1] == pytest.approx(missed[0] / 2, rel=0.1, abs=1e-6)  # ten times the tolerance of the fields


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
