"""Networks in the standard parameterizations, trained: beside ordinary loops of torch, and beside the lazy limit."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import meanfield as mf
import solvers
from meanfield.scaling.units import units
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    TangentKernelLimit,
    WassersteinFlow,
    lazy_prediction,
    module_tangent_kernel,
    width_sweep,
)
from tests.test_standard_parameterization import Uneven

ETA, STEPS = 0.05, 6


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(parameters, forward, data):
    """f (steps + 1, P, C) of an ordinary loop"""
    descent, found = torch.optim.SGD(parameters, ETA), []
    for step in range(STEPS + 1):
        f = forward(data.x)
        found.append(f.detach().clone())
        if step < STEPS:
            descent.zero_grad()
            (0.5 * (f - data.y).square().sum(-1)).mean().backward()
            descent.step()
    return torch.stack(found)


@pytest.mark.parametrize("s", [1, 3])
def test_a_perceptron_of_unequal_widths_is_trained_as_an_ordinary_loop_does(s):
    n, std, bias = (6, 10, 4), 1.3, 0.4
    data = mf.Dataset(points(5, 3), points(5, 2, seed=1))
    problem = mf.Problem(data, mf.Network(3, "tanh", std, bias), mf.improved_standard(n), mf.Training(ETA, STEPS))
    start = FiniteWidth(s, seed=4)(problem.with_steps(0)).state
    w = [start[f"W{l}"] * std / math.sqrt(fan) for l, fan in enumerate((3, *n[:-1]))]  # N(0, std^2 / N_l)
    b = [start[f"b{l}"][:, 0] * bias for l in range(3)]
    a, c = start["a"].T * std / math.sqrt(n[-1]), start["b"] * bias
    assert [tuple(t.shape) for t in w] == [(6 * s, 3), (10 * s, 6 * s), (4 * s, 10 * s)]
    parameters = [t.clone().requires_grad_() for t in (*w, *b, a, c)]

    def forward(x):
        w0, w1, w2, b0, b1, b2, a, c = parameters
        h = torch.tanh(x @ w0.T + b0)
        h = torch.tanh(h @ w1.T / math.sqrt(s) + b1)
        return torch.tanh(h @ w2.T / math.sqrt(s) + b2) @ a.T / math.sqrt(s) + c

    net = FiniteWidth(s, seed=4)(problem)
    torch.testing.assert_close(net.f, trained(parameters, forward, data), rtol=0, atol=1e-12)
    assert float((net.f[-1] - net.f[0]).abs().max()) > 0.05


def theta(start, own, reference, n):
    """The parameters of an ordinary loop, and what multiplies them in build(n)"""
    found, beside = {}, {}
    for parameter in own.description:
        unit = units(own, mf.improved_standard(reference), n)[parameter.name]
        grows = parameter.role in ("hidden", "readout")
        beside[parameter.name] = math.sqrt(reference / n) if grows else 1.0
        found[parameter.name] = start[parameter.name] * unit.multiplier / beside[parameter.name]
    return found, beside


def test_a_module_is_trained_as_an_ordinary_loop_does():
    data, reference, s = mf.Dataset(points(5, 2, 4), points(5, 3, seed=1)), 6, 2
    own = mf.Architecture(Uneven, weight_std=1.2)
    problem = mf.Problem(data, own, mf.improved_standard(reference), mf.Training(ETA, STEPS))
    net = FiniteWidth(s, seed=4)(problem)
    start = FiniteWidth(s, seed=4)(problem.with_steps(0)).state
    found, beside = theta(start, own, reference, s * reference)
    found = {name: t.clone().requires_grad_() for name, t in found.items()}
    module = Uneven(s * reference).double()

    def forward(x):
        return functional_call(module, {name: t * beside[name] for name, t in found.items()}, (x,))

    torch.testing.assert_close(net.f, trained(found.values(), forward, data), rtol=0, atol=1e-12)
    assert float((net.f[-1] - net.f[0]).abs().max()) > 0.05
    tangents = net.tangent_kernel(-1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(found[name] * beside[name])
    rates = {name: factor**2 for name, factor in beside.items()}
    torch.testing.assert_close(module_tangent_kernel(module, data.x, rates=rates), tangents, rtol=1e-9, atol=1e-10)


def test_the_naive_standard_parameterization_is_a_module_as_it_stands():
    data, own = mf.Dataset(points(5, 2, 4), points(5, 3, seed=1)), mf.Architecture(Uneven)
    problem = mf.Problem(data, own, mf.naive_standard(6), mf.Training(ETA, STEPS))
    start, module = FiniteWidth(1)(problem.with_steps(0)).state, Uneven(6).double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(theta(start, own, 6, 6)[0][name])
    k = module_tangent_kernel(module, data.x)
    net = FiniteWidth(1)(problem)
    torch.testing.assert_close(net.tangent_kernel(0), k, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(net.f, trained(module.parameters(), module, data), rtol=0, atol=1e-12)


@pytest.mark.parametrize("improved", [True, False])
def test_tangent_kernels_of_perceptrons_of_unequal_widths(improved):
    n, s = (6, 10), 2
    scaling, data = mf.Standard(n, improved), mf.Dataset(points(4, 3), points(4, 2, seed=1))
    net = FiniteWidth(s)(mf.Problem(data, mf.Network(2, "erf", 1.1, 0.3), scaling, mf.Training(ETA, 2)))
    module = nn.Sequential(nn.Linear(3, 12), nn.Identity(), nn.Linear(12, 20), nn.Identity(), nn.Linear(20, 2)).double()
    module[1].forward = module[3].forward = lambda h: torch.erf(h)
    fans, state = (3, 12, 20), net.state
    with torch.no_grad():
        for l, name in enumerate(("W0", "W1", "a")):
            layer = module[2 * l]
            layer.weight.copy_((state[name].T if name == "a" else state[name]) * 1.1 / math.sqrt(fans[l]))
            layer.bias.copy_(state["b" if name == "a" else f"b{l}"].flatten() * 0.3)
    rates = {"2.weight": 1 / s, "4.weight": 1 / s} if improved else {}
    torch.testing.assert_close(net.tangent_kernel(-1), module_tangent_kernel(module, data.x, rates=rates))


def test_wider_networks_approach_the_lazy_limit_of_their_own_start():
    data = mf.Dataset(points(4, 3), points(4, 1, seed=1), points(2, 3, seed=2), points(2, 1, seed=3))
    problem = mf.Problem(data, mf.Network(2, "tanh", 1.2, 0.3), mf.improved_standard((4, 8)), mf.Training(0.04, 20))
    missed = []
    for nets in (width_sweep(problem, (s,), 12) for s in (4, 36)):
        off = []
        for net in nets:
            limit = TangentKernelLimit(initial=torch.cat([net.f[0], net.f_test[0]]))(problem)
            moved = (limit.f[-1] - limit.f[0]).norm()
            off.append(float((net.f[-1] - limit.f[-1]).norm() / moved))
        missed.append(sum(off) / len(off))
    assert missed[1] < 0.15
    assert missed[1] / missed[0] == pytest.approx(math.sqrt(4 / 36), rel=0.35)  # errors of order s^-1/2


def test_the_spread_over_starts_is_that_of_the_lazy_prediction():
    data = mf.Dataset(points(4, 3), points(4, 1, seed=1))
    problem = mf.Problem(data, mf.Network(2, "relu"), mf.improved_standard((4, 8)), mf.Training(0.02, 40))
    nets = FiniteWidth(48, snapshots=()).ensemble(problem, 96)
    f = torch.stack([net.f[-1, :, 0] for net in nets])
    found = lazy_prediction(problem, [0.02 * 40])
    mean, variance = found.mean[0, :4, 0], found.covariance[0].diagonal()[:4]
    assert float(((f.mean(0) - mean) / (f.std(0) / math.sqrt(96))).abs().max()) < 4
    # the standard error of a variance of 96 Gaussian numbers is its sqrt(2 / 95), 15 %
    torch.testing.assert_close(f.var(0), variance, rtol=0.6, atol=0.02)


def test_kept_and_gone_on_with(tmp_path):
    data = mf.Dataset(points(4, 3), points(4, 1, seed=1))
    problem = mf.Problem(data, mf.Network(2, "tanh"), mf.improved_standard((4, 8)), mf.Training(ETA, 4))
    whole, half = FiniteWidth(3)(problem), FiniteWidth(3)(problem.with_steps(2))
    assert torch.equal(FiniteWidth(3, snapshots=(-1,)).resume(half, 2).f, whole.f)
    mf.save(whole, tmp_path / "net.nc")
    again = mf.load(tmp_path / "net.nc")
    assert again.problem == problem
    assert torch.equal(again.f, whole.f)
    assert torch.equal(again.tangent_kernel(-1), whole.tangent_kernel(-1))
    assert not again.fields


REFUSING = {
    "flow": lambda p: WassersteinFlow(16)(p),
    "dmft": lambda p: CausalDMFT(16)(p),
    "fixed point": lambda p: FixedPointDMFT(16)(p),
    "logits": lambda p: InfiniteLogitsLimit(16)(p),
    "variance": lambda p: solvers.predicted_variance(p, 16),
    "powers": lambda p: solvers.measured_exponents(p, (2, 3, 4), 2),
    "coordinates": lambda p: solvers.coordinate_check(p, (2, 3, 4), 3),
    "rates": lambda p: solvers.learning_rate_transfer(p, (0.1, 0.2, 0.4), (2, 4), 2, CausalDMFT(16)),
    "proxies": lambda p: solvers.proxy_comparison(p, 4),
}


@pytest.mark.parametrize("what", REFUSING)
def test_what_has_no_such_limit_refuses_with_the_reason(what):
    data = mf.Dataset(points(4, 3), points(4, 1, seed=1), points(4, 3), points(4, 1, seed=1))
    problem = mf.Problem(data, mf.Network(1, "tanh"), mf.improved_standard(4), mf.Training(ETA, 4))
    with pytest.raises(ValueError, match=r"received improved_standard\(widths=\(4,\)\), whose limit is lazy"):
        REFUSING[what](problem)


def test_widths_that_do_not_fit_are_refused_before_work():
    data = mf.Dataset(points(4, 3), points(4, 1, seed=1))
    problem = mf.Problem(data, mf.Network(3), mf.improved_standard((4, 8)), mf.Training(ETA, 4))
    with pytest.raises(ValueError, match="2 widths for 3 hidden layers"):
        FiniteWidth(2)(problem)
    with pytest.raises(ValueError, match="follow from one n"):
        FiniteWidth(2)(mf.Problem(mf.Dataset(points(4, 2, 4), points(4, 3)), Uneven, mf.improved_standard((4, 8))))
    with pytest.raises(MemoryError, match="width 100000"):
        FiniteWidth(100_000)(problem.__class__(data, mf.Network(2), mf.improved_standard(64), mf.Training(ETA, 4)))
