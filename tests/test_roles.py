"""Roles read off two builds, architectures, and refusals of what has no width limit."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from meanfield.network.architecture import Architecture, architecture
from meanfield.network.describing import describe
from meanfield.network.making import made
from tests.any_networks import Convolutional, Language, Residual


def roles(build):
    return {p.name: (p.role, " ".join(map(str, p.axes))) for p in describe(build)}


def test_roles_and_axes_of_layers_norms_embeddings_and_vectors():
    assert roles(Convolutional) == {
        "read.weight": ("input", "n 1 2 2"),
        "mix.weight": ("hidden", "n n 3 3"),
        "out.weight": ("readout", "1 n"),
    }
    found = roles(Language)
    assert found["tok.weight"] == ("input", "13 n")
    assert found["block.up.weight"] == ("hidden", "4n n")
    assert found["block.down.weight"] == ("hidden", "n 4n")
    assert found["block.ln1.weight"] == ("vector", "n")
    assert found["head.weight"] == ("readout", "13 n")
    found = roles(Residual)
    assert found["up.1.bias"] == ("vector", "2n")
    assert found["out.bias"] == ("output bias", "1")


def test_parameters_without_a_layer_flattened_axes_heads_and_plain_numbers():
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.own, self.start = nn.Parameter(torch.randn(n, n)), nn.Parameter(torch.randn(1, 5, n))
            self.slope, self.narrow = nn.Parameter(torch.ones(())), nn.Linear(3, 4)
            self.head, self.flat, self.out = nn.Linear(n, n // 8), nn.Linear(16 * n, n), nn.Linear(16 * n, 2)

    found = {p.name: p for p in describe(Net)}
    assert {name: p.role for name, p in found.items()} == {
        "own": "hidden",
        "start": "vector",
        "slope": "plain",
        "narrow.weight": "plain",
        "narrow.bias": "plain",
        "head.weight": "hidden",
        "head.bias": "vector",
        "flat.weight": "hidden",
        "flat.bias": "vector",
        "out.weight": "readout",
        "out.bias": "output bias",
    }
    assert found["head.weight"].shape(64) == (8, 64)
    assert found["flat.weight"].fan_in(64) == 16 * 64
    with pytest.raises(ValueError, match=r"multiple of 8.*received 12"):
        found["head.weight"].shape(12)


def test_descriptions_compare_and_have_a_table():
    one, again, other = describe(Language), describe(Language), describe(Convolutional)
    assert one == again
    assert hash(one) == hash(again)
    assert one != other
    assert one.source == "tests.any_networks:Language"
    assert len(one.digest) == 64
    assert one.digest != other.digest
    assert one.table() != other.table()
    assert describe(layer(lambda n: nn.Linear(n, 3 * n // 2))).table() == [
        ["read.weight", "input", "linear", "n", "3"],
        ["read.bias", "vector", "own", "n"],
        ["middle.weight", "hidden", "linear", "3n/2", "n"],
        ["middle.bias", "vector", "own", "3n/2"],
        ["out.weight", "readout", "linear", "1", "n"],
        ["out.bias", "output bias", "own", "1"],
    ]


@pytest.mark.parametrize("size", [48, 96, 144, 192, 288, 480, 576, 1440])
def test_sizes_that_are_widths_by_chance_are_numbers(size):
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.tok, self.read, self.image = nn.Embedding(size, n), nn.Linear(size, n), nn.Conv2d(size, n, 3)
            self.squeeze, self.narrow = nn.Linear(n, size), nn.Linear(size, size)
            self.where, self.inner = nn.Parameter(torch.zeros(1, size, n)), nn.Linear(2 * n, n)

    assert roles(Net) == {
        "where": ("vector", f"1 {size} n"),
        "tok.weight": ("input", f"{size} n"),
        "read.weight": ("input", f"n {size}"),
        "read.bias": ("vector", "n"),
        "image.weight": ("input", f"n {size} 3 3"),
        "image.bias": ("vector", "n"),
        "squeeze.weight": ("readout", f"{size} n"),
        "squeeze.bias": ("output bias", f"{size}"),
        "narrow.weight": ("plain", f"{size} {size}"),
        "narrow.bias": ("plain", f"{size}"),
        "inner.weight": ("hidden", "n 2n"),
        "inner.bias": ("vector", "n"),
    }


def layer(make, **given):
    """A network with one layer between a hidden axis and itself"""

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.middle, self.out = nn.Linear(3, n), make(n, **given), nn.Linear(n, 1)

    return Net


def tied(n):
    net = nn.ModuleDict({"tok": nn.Embedding(7, n), "head": nn.Linear(n, 7, bias=False)})
    net["head"].weight = net["tok"].weight
    return net


REFUSED = {
    "no network": (3, "function of the width.*received 3"),
    "no module": (lambda n: n, "torch.nn.Module: received"),
    "no width": (lambda n: nn.Linear(3, 4), "no parameter of the network grows"),
    "squares": (lambda n: nn.Linear(3, n * n), "multiple of the width: received 36864 at width 192 and 82944"),
    "one more": (lambda n: nn.Linear(3, n + 1), "multiple of the width: received 193"),
    "at least": (lambda n: nn.Linear(3, max(n, 256)), "multiple of the width: received 256 at width 192 and 288"),
    "at most": (lambda n: nn.Linear(3, min(n, 256)), "multiple of the width: received 192 at width 192 and 256"),
    "at most 512": (
        lambda n: nn.Linear(3, min(n, 512)),
        r"'weight' is another at other widths: build\(12288\) gives the shape \(512, 3\)",
    ),
    "at most 96": (
        lambda n: nn.Sequential(nn.Linear(n, min(n, 96)), nn.Linear(min(n, 96), 1)),
        r"build\(32\) gives .*\(32, 32\).*96 x n",
    ),
    "a choice": (lambda n: nn.Linear(3, n if n < 1000 else 2 * n), r"build\(12288\) gives .*\(24576, 3\).*no min"),
    "a late layer": (
        lambda n: nn.Sequential(nn.Linear(3, n), *(nn.Linear(n, n) for _ in range(n // 4096))),
        r"same parameters at every width: '1.bias' is in one of build\(12288\)",
    ),
    "an eleventh": (lambda n: nn.Linear(3, n // 11), "multiple of the width: received 17 at width 192 and 26"),
    "other layers": (
        lambda n: nn.Sequential(*(nn.Linear(3, n) for _ in range(n // 96))),
        "the same parameters at every",
    ),
    "tied": (tied, r"'tok.weight' \(input\) and 'head.weight' \(readout\) are one tensor"),
    "groups": (layer(nn.Conv1d, out_channels=96, kernel_size=1, groups=2), "groups=2.*take groups=1"),
    "dropout": (layer(lambda n: nn.Dropout(0.1)), "new random numbers.*Take p=0"),
    "statistics": (layer(nn.BatchNorm1d), "track_running_stats=False"),
    "attention": (layer(nn.MultiheadAttention, num_heads=4), r"divide by n: a = \(q @ k.transpose"),
    "encoder": (layer(nn.TransformerEncoderLayer, nhead=4), "divide by n"),
    "recurrent": (layer(nn.LSTM, hidden_size=4), "Write the step with two nn.Linear"),
    "cell": (layer(nn.GRUCell, hidden_size=4), "Write the step with two nn.Linear"),
    "bilinear": (layer(lambda n: nn.Bilinear(n, n, n)), "three axes"),
    "transposed": (layer(nn.ConvTranspose2d, out_channels=4, kernel_size=2), "axes are exchanged"),
    "small groups": (layer(lambda n: nn.GroupNorm(n // 4, n)), "4 neurons whose mean"),
    "normed rows": (layer(lambda n: nn.Embedding(5, n, max_norm=1.0)), "max_norm=1.0 changes the weights"),
    "lazy": (layer(lambda n: nn.LazyLinear(n)), "found in the first pass"),
    "weight norm": (
        layer(lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(n, n))),
        "leave the parametrization",
    ),
    "wide vocabulary": (layer(lambda n: nn.Embedding(n, 4)), "number of embeddings of 'middle.weight' grows"),
    "wide filter": (layer(lambda n: nn.Conv1d(n, n, n)), "filter of 'middle.weight' grows"),
    "stack": (
        layer(lambda n: nn.ParameterDict({"w": nn.Parameter(torch.ones(3, n, n))})),
        "3 x n x n, which does not tell",
    ),
    "two widths": (
        layer(lambda n: nn.ParameterDict({"w": nn.Parameter(torch.ones(2 * n, n))})),
        "2n x n, which does not",
    ),
    "not trained": (layer(lambda n: nn.Linear(n, n).requires_grad_(False)), r"frozen=\('middle.weight',\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        describe(build)


def test_norms_that_are_averages_over_neurons_pass():
    for make in (nn.LayerNorm, nn.RMSNorm, lambda n: nn.GroupNorm(4, n), nn.InstanceNorm1d, lambda n: nn.Dropout(0.0)):
        describe(layer(make))
    describe(layer(lambda n: nn.BatchNorm1d(n, track_running_stats=False)))


def test_what_an_architecture_says_beside_its_builder():
    plain = Architecture(Language)
    assert architecture(Language) == plain == architecture(plain)
    assert plain.name == "Language"
    by_name = {p.name: p for p in plain.description}
    assert plain.std(by_name["block.q.weight"]) == 1.0
    assert plain.std(by_name["ln.weight"]) is None
    given = Architecture(
        Language, {"*.up.*": 2.0, "block.*.weight": 0.5, "ln.bias": 0.1}, {"tok.*": 3.0}, ("pos.*",), "mine"
    )
    assert given.std(by_name["block.up.weight"]) == 2.0  # the first that fits
    assert given.std(by_name["block.q.weight"]) == 0.5
    assert given.std(by_name["head.weight"]) == 1.0
    assert given.std(by_name["ln.bias"]) == 0.1
    assert [given.rate_of(by_name[name]) for name in ("tok.weight", "pos.weight", "head.weight")] == [3.0, 0.0, 1.0]
    assert given != plain
    assert hash(given) == hash(replace(given))
    assert replace(given) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(weight_std=0.0), "weight_std must be positive"),
        (dict(weight_std={"a.*": 1.0}), r"weight_std must name parameters: received 'a\.\*'; known: tok.weight"),
        (dict(rate={"tok.*": -1.0}), r"rate\['tok\.\*'\] must be positive"),
        (dict(rate={"tok.*": 0}), r"rate\['tok\.\*'\] must be positive.*stay as they start are frozen=\('tok\.\*',\)"),
        (dict(rate=2.0), "rate must be a dictionary of numbers"),
        (dict(frozen="tok.*"), "frozen must be a sequence of texts"),
        (dict(frozen=("nothing",)), "frozen must name parameters"),
        (dict(weight_std={"*": float("nan")}), "non-negative and finite"),
    ],
)
def test_wrong_settings_of_an_architecture(given, message):
    with pytest.raises(ValueError, match=message):
        Architecture(Language, **given)


def test_large_tensors_are_not_made_and_no_global_generator_moves():
    state = torch.get_rng_state()
    net = made(Language, 4096, 4096**2)
    assert net.block.up.weight.is_meta
    assert not net.tok.weight.is_meta
    assert torch.equal(torch.get_rng_state(), state)

    class Looks(nn.Module):  # at its own numbers
        def __init__(self, n):
            super().__init__()
            self.out = nn.Linear(n, 2)
            if self.out.weight.abs().max().item() > 1:
                raise AssertionError

    assert {p.name: p.role for p in describe(Looks)} == {"out.weight": "readout", "out.bias": "output bias"}


def test_starts_come_from_their_seed_and_not_from_torch_s_generator():
    class Random(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.own = nn.Parameter(torch.randn(n) + torch.rand(n) + torch.randperm(n) + torch.randint(5, (n,)))
            self.out = nn.Linear(n, 2)
            nn.init.trunc_normal_(self.out.weight)
            nn.init.orthogonal_(self.out.weight)
            self.more = nn.Parameter(torch.normal(torch.zeros(n), 1.0) + torch.bernoulli(torch.full((n,), 0.5)))

    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (made(Random, 30, least=2**40, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        assert not torch.equal(value, other.get_parameter(name))
