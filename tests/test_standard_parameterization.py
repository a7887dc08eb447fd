"""The standard parameterizations of any network (equations 44 and 45): units of every parameter, training, kernels."""

import math

import pytest
import torch
from torch import nn

import meanfield as mf
from meanfield.kernels.weights import kernel_weights
from meanfield.network.architecture import Architecture, perceptron
from meanfield.network.laws import NORMAL
from meanfield.scaling.units import Unit, units


class Uneven(nn.Module):
    """A convolution, layers of n, 2n and n/2 neurons, a gain, a number of no neuron"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix = nn.Conv1d(2, n, 3, padding=1), nn.Conv1d(n, 2 * n, 3, padding=1, bias=False)
        self.norm, self.narrow = nn.LayerNorm(2 * n), nn.Linear(2 * n, n // 2)
        self.slope, self.out = nn.Parameter(torch.ones(())), nn.Linear(n // 2, 3)
        for layer in (self.read, self.narrow, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        h = torch.relu(self.mix(torch.tanh(self.read(x)))).mean(-1)
        return self.out(torch.tanh(self.slope * self.narrow(self.norm(h))))


def test_units_are_those_of_weights_divided_by_the_root_of_the_multiple():
    """theta ~ N(0, std^2 / fan_in(n)) at one rate, and theta / sqrt(s) in hidden layers and readouts"""
    own = Architecture(Uneven, {"read.weight": 2.0, "mix.weight": 3.0, "out.bias": 0.5, "*.weight": 1.5})
    n, s = 10, 4
    found = units(own, mf.improved_standard(n), s * n)
    fans = {"read.weight": (2 * 3, 2.0), "mix.weight": (n * 3, 3.0), "narrow.weight": (2 * n, 1.5)}
    for name, (fan, std) in (fans | {"out.weight": (n // 2, 1.5)}).items():
        grows = name != "read.weight"
        start, outside = std / math.sqrt(fan), 1 / math.sqrt(s) if grows else 1.0
        assert found[name].drawn
        assert math.isclose(found[name].multiplier, start * outside, rel_tol=1e-14)
        # theta = start z: a step of theta at rate 1 is one of z at rate 1 / start^2
        assert math.isclose(found[name].rate, 1 / start**2, rel_tol=1e-14)
        assert math.isclose(found[name].step, 1 / start, rel_tol=1e-14)  # and one of torch.optim, entry by entry
    assert found["out.bias"] == Unit(0.5, 4.0, NORMAL, 2.0, 0.0, 1.0, 1.0)
    assert found["norm.weight"].multiplier == 1.5  # named by a pattern
    assert found["norm.weight"].drawn
    for name in ("norm.bias", "narrow.bias", "slope"):
        assert found[name] == Unit(1.0, 1.0, None, 1.0, 0.0, 1.0, 1.0)
    naive = units(own, mf.naive_standard(n), s * n)
    assert naive == units(own, mf.improved_standard(s * n), s * n)


def test_perceptrons_as_modules_have_the_numbers_of_their_kernels():
    network, scaling = mf.Network(3, "tanh", weight_std=1.3, bias_std=0.4), mf.improved_standard(32)
    found = units(perceptron(network, 5, 1), scaling, 96)
    layers = kernel_weights(network, scaling, 5).layers
    for name, fan, (feature, bias) in zip(
        ("input", "hidden.1", "hidden.2", "readout"), (5, 96, 96, 96), layers, strict=True
    ):
        weight, shift = found[f"{name}.weight"], found[f"{name}.bias"]
        assert math.isclose(weight.rate * weight.multiplier**2 * fan, feature, rel_tol=1e-14)
        assert math.isclose(shift.rate * shift.multiplier**2, bias, rel_tol=1e-14)


def test_several_widths_are_those_of_a_perceptron():
    with pytest.raises(ValueError, match=r"follow from one n: received widths=\(8, 16\); give one number, and layers"):
        units(Architecture(Uneven), mf.improved_standard((8, 16)), 8)
    with pytest.raises(ValueError, match="the width must be a multiple of 2"):
        units(Architecture(Uneven), mf.improved_standard(7), 14)
