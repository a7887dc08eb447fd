"""The mean of finite networks agrees with the flow of the measure within its own noise, and would not with a wrong factor."""

from dataclasses import replace

import pytest
import torch

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow

CASES = {
    "tanh": dict(network=mf.Network(1, "tanh"), gamma0=1.0),
    "relu, rich": dict(network=mf.Network(1, "relu"), gamma0=3.0),
    "gelu, biases, weight_std": dict(network=mf.Network(1, "gelu", weight_std=1.3, bias_std=0.5), gamma0=1.0),
    "logistic": dict(network=mf.Network(1, "erf"), gamma0=1.0, loss="logistic"),
    "three classes": dict(
        network=mf.Network(1, "tanh", bias_std=0.5), gamma0=1.0, loss="cross_entropy", classes=(0, 1, 2)
    ),
    "one depth of residual is none": dict(network=mf.Network(1, "sin", residual=0.5), gamma0=0.3),
}
WIDTH, SEEDS = 1024, 32


def compare(network, gamma0, loss="squared", classes=(0, 1), error=1.0):
    """Distance of the ensemble mean from a limit whose gamma0 is off by `error`, in units of its noise, by observable."""
    data = mf.digits(classes, n_train=12, n_test=8)
    asked = mf.Problem(data, network, mf.mean_field(gamma0), mf.Training(0.2, 25), loss)
    nets = FiniteWidth(WIDTH, keep_neurons=False).ensemble(asked, SEEDS)
    limit = WassersteinFlow(2**13)(replace(asked, scaling=mf.mean_field(gamma0 * error)))
    limit = replace(limit, problem=asked)
    report = mf.deviation(nets, limit, names=("f", "f_test", "Phi1", "G1", "tangent_kernel"))
    return {
        name: float(((d.bias2 + d.variance / SEEDS).clip(0) ** 0.5 / d.floor)[0])
        for name, d in report.observables.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_networks_agree_with_the_flow(case):
    """The root mean square of many correlated errors, each of size one floor: 3 floors is beyond 4 sigma of any of them alone."""
    ratios = compare(**CASES[case])
    assert max(ratios.values()) < 3, ratios


def test_the_comparison_sees_twenty_percent_in_gamma0():
    assert compare(**CASES["tanh"], error=1.2)["f"] > 3


def test_a_network_is_its_own_measure():
    """i.i.d. particles with equal weights ARE a width-N network: the flow from a net's start reproduces the net."""
    data = mf.digits((0, 1, 2), n_train=10, n_test=4)
    asked = mf.Problem(
        data, mf.Network(1, "softplus", 1.2, 0.4), mf.mean_field(0.7), mf.Training(0.2, 20), "cross_entropy"
    )
    net = FiniteWidth(30, seed=4)(asked)
    flow = WassersteinFlow(initial=net.measure(0))(asked)
    b = (
        0.7**-1 * 0.4 * (FiniteWidth(30, seed=4)(asked.with_steps(0)).state["b"]) / 30**0.5
    )  # the limit's readout bias starts at 0
    torch.testing.assert_close(flow.f[0] + b, net.f[0], rtol=1e-11, atol=1e-12)
    no_bias = replace(asked, network=mf.Network(1, "softplus", 1.2))
    net = FiniteWidth(30, seed=4)(no_bias)
    flow = WassersteinFlow(initial=net.measure(0))(no_bias)
    torch.testing.assert_close(flow.f, net.f, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(flow.f_test, net.f_test, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(flow.tangent_kernel(), net.tangent_kernel(), rtol=1e-9, atol=1e-11)
    for name in ("Phi1", "G1"):
        torch.testing.assert_close(flow.kernels[name].at(0, 20), net.kernels[name].at(0, 20), rtol=1e-9, atol=1e-11)
