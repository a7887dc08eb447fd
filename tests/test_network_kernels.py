"""Kernels of modules at infinite width: against the recursion of perceptrons, loops over pixels, and real networks of torch."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meanfield as mf
from meanfield.network.architecture import perceptron
from tests.any_networks import Convolutional
from tests.lazy_networks import CASES, Gated, Mixed, PostNorm, WideResidual, dense, real_kernels, some


@pytest.mark.parametrize(
    "scaling", [mf.ntk(), mf.mean_field(2.0), mf.improved_standard(64)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("settings", [{}, {"bias_std": 0.3, "weight_std": 1.3}, {"residual": 0.7}], ids=str)
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_perceptrons_as_modules_have_their_kernels(name, settings, scaling):
    network, x = mf.Network(3, name, **settings), some(5, 7)
    found = mf.nngp_and_ntk(perceptron(network, 7, 2), scaling, x, some(3, 7, seed=1))
    for kernel, right in zip(found, mf.nngp_and_ntk(network, scaling, x, some(3, 7, seed=1)), strict=True):
        torch.testing.assert_close(kernel, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("settings", [{"bias_std": 0.1}, {"residual": 1.0}], ids=str)
def test_more_layers_than_fit_python_s_stack(settings):
    network, x = mf.Network(130, "relu", math.sqrt(2), **settings), some(3, 5)
    for found, right in zip(
        mf.nngp_and_ntk(perceptron(network, 5, 1), mf.ntk(), x), mf.nngp_and_ntk(network, mf.ntk(), x), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=0)


def by_pixels(x, strides, sizes):
    """Equation 46 of relu without biases, with strides and zeros around, by loops over pairs of pixels; the mean over pixels is read"""
    p, channels, height, width = x.shape

    def patches(c, size, stride, old, new):
        out = torch.zeros(p, *new, p, *new, dtype=torch.float64)
        around = size // 2
        for i in range(new[0]):
            for j in range(new[1]):
                for k in range(new[0]):
                    for l in range(new[1]):
                        for a in range(-around, around + 1):
                            for b in range(-around, around + 1):
                                s = (i * stride + a, j * stride + b)
                                t = (k * stride + a, l * stride + b)
                                inside = all(0 <= v < o for v, o in zip((*s, *t), (*old, *old), strict=True))
                                if inside:
                                    out[:, i, j, :, k, l] += c[:, s[0], s[1], :, t[0], t[1]] / size**2
        return out

    def averages(c):
        v = torch.einsum("aijaij->aij", c)
        norm = (v[:, :, :, None, None, None] * v).sqrt()
        angle = torch.acos((c / norm).clamp(-1, 1))
        return norm * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi), (math.pi - angle) / (2 * math.pi)

    old = (height, width)
    phi, theta = torch.einsum("acij,bckl->aijbkl", x, x) / channels, None
    for size, stride in zip(sizes, strides, strict=True):
        new = tuple((o + 2 * (size // 2) - size) // stride + 1 for o in old)
        c = patches(phi, size, stride, old, new)
        theta = c if theta is None else c + patches(theta, size, stride, old, new)
        phi, slope = averages(c)
        theta, old = theta * slope, new
    read = phi.mean((1, 2, 4, 5))
    return read, read + theta.mean((1, 2, 4, 5))


class Strided(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(c, n, k, stride=s, padding=k // 2, bias=False) for c, k, s in ((2, 3, 1), (n, 3, 2), (n, 1, 1))
        )
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.out(x.mean((2, 3)))


def test_convolutions_with_strides_are_those_of_loops_over_pixels():
    x = some(3, 2, 5, 4)
    for found, right in zip(mf.nngp_and_ntk(Strided, mf.ntk(), x), by_pixels(x, (1, 2, 1), (3, 3, 1)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)  # arccos loses digits near 1


@pytest.mark.parametrize("case", CASES)
def test_real_networks(case):
    """Their mean within 4.5 standard errors, beside which a bias of 4/N of the kernel's size is allowed for"""
    build, x, std = CASES[case]
    width, seeds = 192, 24
    patterns = {f"*{name}": value for name, value in std.items()}
    found = mf.nngp_and_ntk(mf.Architecture(build, patterns) if std else build, mf.ntk(), x)
    with torch.random.fork_rng():
        real = real_kernels(build, x, width, seeds, std)
    for kernel, many in zip(found, real, strict=True):
        rows = many.shape[1]
        limit = kernel.reshape(rows, rows)
        size = (limit.diagonal()[:, None] * limit.diagonal()).sqrt()
        error = (many.var(0) / seeds + (4 / width * size) ** 2).sqrt()
        z = (many.mean(0) - limit) / error
        assert float(z.abs().max()) < 4.5
        assert float((error / size).max()) < 0.5
    tangents = real[1]
    assert (
        float((tangents.std(0) / math.sqrt(seeds) / found[1].reshape(tangents.shape[1:]).diagonal().max()).max()) < 0.07
    )


def test_samples_and_blocks():
    x, scaling = some(5, 2, 4, 4), mf.ntk()
    whole = mf.nngp_and_ntk(WideResidual, scaling, x)
    order = torch.tensor([3, 1, 4, 0, 2])
    for kernel, part, moved, across, single in zip(
        whole,
        mf.nngp_and_ntk(WideResidual, scaling, x, block=2),
        mf.nngp_and_ntk(WideResidual, scaling, x[order]),
        mf.nngp_and_ntk(WideResidual, scaling, x[:2], x),
        mf.nngp_and_ntk(WideResidual, scaling, x.float()),
        strict=True,
    ):
        assert kernel.shape == (5, 5)
        assert torch.equal(kernel, kernel.T)
        assert float(torch.linalg.eigvalsh(kernel)[0]) > 0
        torch.testing.assert_close(part, kernel, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(moved, kernel[order][:, order], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(across, kernel[:2], rtol=1e-7, atol=1e-9)  # duplicates have angles to rounding
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, kernel.float(), rtol=1e-5, atol=1e-5)


def test_one_sample_at_a_time_behind_a_norm():
    """A norm is a number then, of each batch another"""
    x = some(3, 6)
    for kernel, part in zip(*(mf.nngp_and_ntk(PostNorm, mf.ntk(), x, block=block) for block in (3, 1)), strict=True):
        torch.testing.assert_close(part, kernel, rtol=1e-9, atol=1e-12)


def test_relu_without_norms_doubles_with_the_images():
    x = some(3, 1, 8, 8)
    for kernel, twice in zip(*(mf.nngp_and_ntk(Convolutional, mf.ntk(), c * x) for c in (1, 2)), strict=True):
        torch.testing.assert_close(twice, 4 * kernel, rtol=1e-12, atol=0)


def test_positions_of_outputs_are_axes_of_the_kernels():
    x = some(2, 4, 3)
    nngp, ntk = mf.nngp_and_ntk(Mixed, mf.ntk(), x)
    assert nngp.shape == ntk.shape == (2, 4, 2, 4)
    torch.testing.assert_close(ntk, ntk.permute(2, 3, 0, 1))


def test_frozen_gains_and_rates_count_in_the_tangent_kernel_alone():
    """A readout alone trained: the tangent kernel is that of its features"""
    x = some(3, 6)
    every = mf.nngp_and_ntk(Gated, mf.ntk(), x)
    readout = mf.nngp_and_ntk(
        mf.Architecture(Gated, frozen=("read.*", "up.*", "gate.*", "down.*", "norm.*")), mf.ntk(), x
    )
    torch.testing.assert_close(readout[0], every[0])
    torch.testing.assert_close(readout[1], every[0])
    faster = mf.nngp_and_ntk(mf.Architecture(Gated, rate={"*": 3.0}), mf.ntk(), x)
    torch.testing.assert_close(faster[1], 3 * every[1])


def network(forward, **layers):
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            for name, sizes in ({"read": (6, 1), "up": (1, 1), "out": (1, 1.0)} | layers).items():
                inputs, outputs = (int(s * n) if s == 1 and not isinstance(s, float) else int(s) for s in sizes)
                setattr(self, name, nn.Linear(inputs, outputs, bias=False))

        def forward(self, x):
            return forward(self, x)

    return Net


def by_root(net, x):
    q, k = net.up(net.read(x)), net.key(net.read(x))
    return net.out((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ net.read(x))


def without_gradients(net, x):
    with torch.no_grad():
        h = torch.relu(net.read(x))
    return net.out(torch.relu(net.up(h)))


REFUSED = {
    "softmax of neurons": (
        lambda net, x: net.out(torch.softmax(net.up(net.read(x)), -1)),
        "leaves each of them about 1/n",
    ),
    "maximum over positions": (
        lambda net, x: net.out(F.max_pool1d(net.read(x).mT, 2).mT),
        "no rule.*monte_carlo_kernels",
    ),
    "mixes samples": (lambda net, x: net.out(net.read(x) - net.read(x).mean(0)), "mixes samples"),
    "rolls samples": (lambda net, x: net.out(net.read(x).roll(1, 0)), "mixes samples"),
    "norm over samples": (
        lambda net, x: net.out(F.batch_norm(net.read(x), None, None, training=True)),
        "fails for one sample alone.*depend on the others",
    ),
    "samples of data": (lambda net, x: net.out(torch.relu(net.read(x - x.mean(0)))), "depend on the others"),
    "largest of data": (lambda net, x: net.out(torch.relu(net.read(x / x.abs().max()))), "depend on the others"),
    "neighbours": (lambda net, x: net.out(torch.relu(net.read(x).roll(1, -1) + net.read(x))), "mixes neurons"),
    "numbered neurons": (
        lambda net, x: net.out(net.read(x) * torch.arange(net.read.weight.shape[0])),
        "number of neurons",
    ),
    "no grad": (without_gradients, "within torch.no_grad"),
    "comparison": (lambda net, x: net.out(torch.where(net.read(x) > 0, net.read(x), 0.0)), "write relu, leaky_relu"),
    "no Gaussian": (lambda net, x: net.out(torch.tanh(F.relu(net.read(x)) + net.up(net.read(x)))), "is no Gaussian"),
    "two functions": (
        lambda net, x: net.out(torch.tanh(net.read(x))) + net.out(torch.relu(net.read(x))),
        r"\('tanh' and 'relu'\)",
    ),
    "two functions without names": (
        lambda net, x: net.out(torch.tanh(net.read(x) * 2)) + net.out(net.read(x).sin().exp()),
        r"\('test_network_kernels.py, line \d+', twice\)",
    ),
    "centred by point": (
        lambda net, x: net.out(torch.tanh((lambda h: h - h.mean(-1, keepdim=True))(torch.relu(net.read(x))))),
        "numbers that differ from point to point",
    ),
    "mean that fluctuates": (
        lambda net, x: net.out(torch.tanh(net.read(x) - net.read(x).mean(-1, keepdim=True) * net.up.in_features**0.5)),
        "averages over neurons.*fluctuate",
    ),
    "outputs at positions without an axis": (
        lambda net, x: net.out(torch.relu(net.read(x))).squeeze(-1),
        "keep the axis of outputs",
    ),
    "outputs as fields": (
        lambda net, x: net.out(torch.relu(net.read(x) + net.out(net.read(x)))),
        "outputs are used as fields",
    ),
    "outputs times fields": (lambda net, x: net.out(net.read(x) * net.out(net.read(x))), "outputs are multiplied"),
    "outputs times outputs": (
        lambda net, x: net.out(net.read(x)) * net.out(net.up(net.read(x))),
        "outputs are multiplied",
    ),
    "a mean of the outputs": (lambda net, x: net.out(net.read(x)) + 1.0, "numbers are added to the outputs"),
    "data beside the outputs": (lambda net, x: net.out(net.read(x)) + x[:, :1], "numbers are added to the outputs"),
    "a function of the outputs": (lambda net, x: torch.tanh(net.out(net.read(x))), "a function of the outputs"),
    "gates at other positions": (
        lambda net, x: net.out(F.glu(net.read(x), 1)).mean(1),
        r"glu \(test_net.*another position.*axis of neurons, 2",
    ),
    "a matrix both ways": (
        lambda net, x: net.out(torch.relu(net.up(torch.relu(net.read(x)))) @ net.up.weight),
        "'up.weight' is used as it is and transposed.*monte_carlo_kernels",
    ),
    "norm of each neuron over positions": (
        lambda net, x: net.out(F.instance_norm(net.read(x).mT).mT),
        r"instance_norm \(test_network_kernels.py, line \d+\).*no rule.*monte_carlo_kernels",
    ),
    "neurons to positions": (
        lambda net, x: net.out(F.pixel_shuffle(net.read(x).mT.unflatten(2, (2, 2)), 2).mean((2, 3)).repeat(1, 4)),
        r"pixel_shuffle \(test_network_kernels.py, line \d+\).*no rule.*monte_carlo_kernels",
    ),
    "depends on n": (
        lambda net, x: net.out(torch.tanh(net.read(x) * net.out.weight.shape[1] ** 0.25)),
        "depends on the number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_with_its_place(case):
    forward, why = REFUSED[case]
    x = some(3, 4, 6) if "positions" in case else some(3, 6)
    with pytest.raises(ValueError, match=why):
        mf.nngp_and_ntk(network(forward), mf.ntk(), x)
    if case == "no Gaussian":
        with pytest.raises(ValueError, match=r"tanh \(test_network_kernels.py, line \d+\)"):
            mf.nngp_and_ntk(network(forward), mf.ntk(), x)


def test_a_gated_linear_unit_is_its_halves():
    def by_halves(h):
        value, gate = h.chunk(2, -1)
        return value * torch.sigmoid(gate)

    class Net(nn.Module):
        def __init__(self, n, way):
            super().__init__()
            self.read, self.up, self.out, self.way = dense(6, n), dense(n, 2 * n), dense(n, 1), way

        def forward(self, x):
            return self.out(self.way(self.up(torch.relu(self.read(x)))))

    ways = (F.glu, nn.GLU(), by_halves)
    first, second, right = (mf.nngp_and_ntk(partial(Net, way=way), mf.ntk(), some(3, 6)) for way in ways)
    torch.testing.assert_close(first, right, rtol=1e-12, atol=0)
    torch.testing.assert_close(second, right, rtol=1e-12, atol=0)


def test_numbers_that_all_neurons_share_are_a_field():
    """Zeros and ones of the shape of neurons, however they are made, on either side and changed in place"""
    x = some(3, 6)

    def plainly(net, x):
        return net.out(torch.erf(net.up(torch.relu(net.read(x) + 0.5))))

    def zeros(net, x):
        h = torch.zeros(len(x), net.up.in_features, dtype=x.dtype) + 0.5
        h += net.read(x)
        return net.out(torch.erf(torch.zeros(net.up.in_features, dtype=x.dtype) + net.up(torch.relu(h))))

    def ones(net, x):
        h = net.read(x) + x.new_ones(len(x), net.up.in_features) / 2
        return net.out(torch.erf(torch.ones(net.up.in_features, dtype=x.dtype) * net.up(torch.relu(h))))

    right = mf.nngp_and_ntk(network(plainly), mf.ntk(), x)
    for way in (zeros, ones):
        torch.testing.assert_close(mf.nngp_and_ntk(network(way), mf.ntk(), x), right, rtol=1e-12, atol=0)


@pytest.mark.parametrize("index", [0, 2])
def test_a_row_that_stands_for_no_token_is_a_field_of_zeros(index):
    """As if the field were multiplied by 0 there"""

    class Padded(nn.Module):
        def __init__(self, n, index=None):
            super().__init__()
            self.tokens, self.up, self.out = nn.Embedding(5, n, padding_idx=index), dense(n, n), dense(n, 1)

        def forward(self, x):
            return self.out(torch.relu(self.up(self.given(x))).mean(1))

        def given(self, x):
            return self.tokens(x)

    class Masked(Padded):
        def given(self, x):
            return self.tokens(x) * (x != index).to(self.out.weight.dtype)[..., None]

    x = torch.tensor([[0, 1, 2], [4, 0, 2], [3, 3, 1]])
    found, right = (mf.nngp_and_ntk(net, mf.ntk(), x) for net in (partial(Padded, index=index), Masked))
    for kernel, other in zip(found, right, strict=True):
        torch.testing.assert_close(kernel, other, rtol=1e-14, atol=0)


def test_outputs_times_numbers_of_the_sample():
    def plainly(net, x):
        return net.out(torch.relu(net.read(x)))

    x = some(3, 6)
    sizes = x.norm(dim=1)
    ways = (plainly, lambda net, x: -2 * plainly(net, x) / x.norm(dim=1, keepdim=True))
    for kernel, found in zip(*(mf.nngp_and_ntk(network(way), mf.ntk(), x) for way in ways), strict=True):
        torch.testing.assert_close(found, 4 * kernel / sizes[:, None] / sizes, rtol=1e-13, atol=0)


def test_one_matrix_in_any_words_is_one_matrix():
    """Added to itself it is twice as large; with its transpose, however that is written, it is refused"""

    def plainly(net, x):
        return net.up(torch.relu(net.read(x)))

    def by_letters(net, x):
        return torch.einsum("bi,oi->bo", torch.relu(net.read(x)), net.up.weight)

    def turned(net, x):
        return torch.relu(net.read(x)) @ net.up.weight.T

    def other(net, x):
        return torch.einsum("bi,io->bo", torch.relu(net.read(x)), net.up.weight)

    def both(one, two):
        return network(lambda net, x: net.out(torch.erf(one(net, x) + two(net, x))))

    x = some(3, 6)
    right = mf.nngp_and_ntk(both(plainly, plainly), mf.ntk(), x)
    for one, two in ((plainly, by_letters), (by_letters, turned), (other, other)):
        for found, kernel in zip(mf.nngp_and_ntk(both(one, two), mf.ntk(), x), right, strict=True):
            torch.testing.assert_close(found, kernel, rtol=1e-13, atol=0)
    for one in (plainly, by_letters, turned):
        with pytest.raises(ValueError, match=r"'up.weight' is used as it is and transposed"):
            mf.nngp_and_ntk(both(one, other), mf.ntk(), x)


class Kept(nn.Module):
    """Numbers of all neurons as buffers, beside a table of positions and one that has no neurons"""

    def __init__(self, n, numbers=None):
        super().__init__()
        self.read, self.up, self.out = dense(3, n), dense(n, n), dense(n, 1)
        self.register_buffer("shift", torch.full((n,), 0.4) if numbers is None else numbers(n))
        self.register_buffer("table", torch.linspace(-1, 1, 4)[:, None].expand(4, n).clone())
        self.register_buffer("gain", torch.tensor(1.5))

    def forward(self, x):
        return self.out(torch.relu(self.up(torch.relu(self.read(x) + self.shift) * self.gain)) + self.table)


def test_buffers_of_numbers_that_all_neurons_share_are_fields():
    class Written(Kept):
        def forward(self, x):
            h = torch.relu(self.read(x) + 0.4) * 1.5
            return self.out(torch.relu(self.up(h)) + torch.linspace(-1, 1, 4, dtype=x.dtype)[:, None])

    x = some(2, 4, 3)
    for found, right in zip(*(mf.nngp_and_ntk(net, mf.ntk(), x) for net in (Kept, Written)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=0)  # buffers are made in float32


@pytest.mark.parametrize("numbers", [lambda n: torch.linspace(0, 1, n), lambda n: torch.arange(n) % 2])
def test_buffers_with_a_number_for_each_neuron_are_refused_by_name(numbers):
    with pytest.raises(
        ValueError,
        match=r"add \(test_network_kernels.py, line \d+\): the buffer 'shift' holds other numbers.*N\(0, std",
    ):
        mf.nngp_and_ntk(partial(Kept, numbers=numbers), mf.ntk(), some(2, 4, 3))


def in_place(net, x):
    h = net.read(x)
    h.relu_()
    return net.out(torch.relu_(net.up(h)).mul_(2.0))


def added_to(net, x):
    h = net.read(x)
    before = h + 0.0
    h.add_(1.0)
    return net.out(torch.erf(net.up(h)) + before)


def twice_named(net, x):
    h = net.read(x)
    g = h
    h += net.up(torch.relu(h))
    return net.out(torch.tanh(g))


def test_changes_in_place_are_those_of_torch():
    """Whether what they return is used or not, by whatever name; and no other network is touched by them"""
    x = some(3, 6)

    def plainly(net, x):
        return net.out(2.0 * torch.relu(net.up(torch.relu(net.read(x)))))

    def by_one_name(net, x):
        h = net.read(x)
        return net.out(torch.tanh(h + net.up(torch.relu(h))))

    def apart(net, x):
        h = net.read(x)
        return net.out(torch.erf(net.up(h + 1.0)) + h)

    before = mf.nngp_and_ntk(network(plainly), mf.ntk(), x)
    for way, right in ((in_place, plainly), (twice_named, by_one_name), (added_to, apart)):
        for found, kernel in zip(*(mf.nngp_and_ntk(network(f), mf.ntk(), x) for f in (way, right)), strict=True):
            torch.testing.assert_close(found, kernel, rtol=1e-12, atol=0)
    for found, kernel in zip(mf.nngp_and_ntk(network(plainly), mf.ntk(), x), before, strict=True):
        assert torch.equal(found, kernel)

    def of_a_view(net, x):
        h = net.read(x)
        h[:, None].mul_(2.0)
        return net.out(torch.relu(h))

    with pytest.raises(ValueError, match="changed in place by another name"):
        mf.nngp_and_ntk(network(of_a_view), mf.ntk(), x)


def test_inputs_of_zeros_with_an_activation_by_quadrature():
    x = some(3, 6)
    x[1] = 0
    for kernel in mf.nngp_and_ntk(network(lambda net, x: net.out(torch.tanh(net.read(x)))), mf.ntk(), x):
        assert not kernel[1].any()
    for kernel in mf.nngp_and_ntk(network(lambda net, x: net.out(torch.tanh(net.read(x)))), mf.ntk(), 0 * x):
        assert not kernel.any()


def test_logits_over_the_root_of_n_are_refused_and_over_n_they_are_uniform():
    x = some(2, 4, 6)
    with pytest.raises(ValueError, match="divide the sum over n neurons by n"):
        mf.nngp_and_ntk(network(by_root, key=(1, 1)), mf.ntk(), x)

    def over_n(net, x):
        q, k = net.up(net.read(x)), net.key(net.read(x))
        return net.out((q @ k.transpose(-1, -2) / q.shape[-1]).softmax(-1) @ net.read(x)).mean(1)

    uniform = mf.nngp_and_ntk(network(lambda net, x: net.out(net.read(x)).mean(1)), mf.ntk(), x)
    for found, right in zip(mf.nngp_and_ntk(network(over_n, key=(1, 1)), mf.ntk(), x), uniform, strict=True):
        torch.testing.assert_close(found, right)


def test_starts_and_scalings_that_have_no_kernel():
    class Biased(nn.Sequential):
        def __init__(self, n):
            super().__init__(nn.Linear(6, n), nn.ReLU(), dense(n, 1))

    x = some(3, 6)
    with pytest.raises(ValueError, match=r"'0.bias' starts with random numbers.*weight_std"):
        mf.nngp_and_ntk(Biased, mf.ntk(), x)
    mf.nngp_and_ntk(mf.Architecture(Biased, {"0.bias": 0.1}), mf.ntk(), x)
    with pytest.raises(ValueError, match="diverges like"):
        mf.nngp_and_ntk(mf.Architecture(Biased, {"0.bias": 0.1}), mf.sym_default(), x)
    with pytest.raises(ValueError, match="the same for every draw"):
        mf.nngp_and_ntk(lambda n: Averages(n), mf.ntk(), x)
    with pytest.raises(ValueError, match="not known for the activation"):
        mf.nngp_and_ntk(Gated, mf.ntk(), x.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"different samples.*one shape.*a mask"):
        mf.nngp_and_ntk(Gated, mf.ntk(), some(3, 6), some(3, 5))


class Averages(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.read = dense(6, n)

    def forward(self, x):
        return torch.relu(self.read(x)).mean(-1, keepdim=True)


def test_an_activation_with_a_closed_form_of_its_user_is_found():
    """By the values of what the network does, whatever it is written with"""
    relu = mf.nngp_and_ntk(network(lambda net, x: net.out(torch.relu(net.read(x)))), mf.ntk(), some(3, 6))
    for way in (
        lambda h: h.clamp(min=0),
        lambda h: torch.maximum(h, h.new_zeros(())),
        F.relu,
        lambda h: (h + h.abs()) / 2,
        lambda h: F.relu(F.relu(h)),
        lambda h: h.clone().clamp_(min=torch.zeros(())),
        lambda h: F.threshold(h, 0.0, 0.0),
        lambda h: torch.relu(2 * h) / 2,
    ):
        again = mf.nngp_and_ntk(network(lambda net, x, way=way: net.out(way(net.read(x)))), mf.ntk(), some(3, 6))
        for kernel, right in zip(again, relu, strict=True):
            torch.testing.assert_close(kernel, right, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda h: F.leaky_relu(h, 0.2), lambda h: 0.6 * h + 0.4 * h.abs()),
        (lambda h: F.rrelu(h, 0.1, 0.3, training=False), lambda h: F.leaky_relu(h, 0.2)),
        (torch.abs, lambda h: torch.relu(h) + torch.relu(-h)),
        (lambda h: F.relu(-F.leaky_relu(h, 0.2)), lambda h: 0.2 * F.relu(-h)),
        (F.softsign, lambda h: h / (1 + h.abs())),
        (F.logsigmoid, lambda h: -torch.log1p(torch.exp(-h))),
        (lambda h: h.clamp(min=torch.tensor(0.25)), lambda h: torch.relu(h - 0.25) + 0.25),
        (lambda h: F.silu(h, inplace=True), lambda h: h * torch.special.expit(h)),
        (torch.special.ndtr, lambda h: (1 + torch.erf(h * 0.5**0.5)) / 2),
    ],
)
def test_functions_in_other_words_have_the_same_kernels(one, other):
    kernels = (
        mf.nngp_and_ntk(network(lambda net, x, way=way: net.out(way(net.up(net.read(x))))), mf.ntk(), some(3, 6))
        for way in (one, other)
    )
    for found, right in zip(*kernels, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


def test_a_frozen_slope_below_zero_is_leaky_relu():
    class Net(nn.Sequential):
        def __init__(self, n, phi):
            super().__init__(dense(6, n), phi, dense(n, 1))

    sloped = mf.Architecture(partial(Net, phi=nn.PReLU(init=0.125)), frozen=("1.weight",))
    plain = partial(Net, phi=nn.LeakyReLU(0.125))
    for found, right in zip(*(mf.nngp_and_ntk(net, mf.ntk(), some(3, 6)) for net in (sloped, plain)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-14, atol=0)


def slopes(kernels, x, x2, weights):
    """Of a weighted sum of both kernels in both inputs"""
    ends = [t.clone().requires_grad_() for t in (x, x2)]
    total = sum((w * k).sum() for w, k in zip(weights, kernels(*ends), strict=True))
    return torch.autograd.grad(total, ends)


def test_derivatives_in_the_inputs():
    """Of perceptrons as modules those of perceptrons; of a residual network with norms those of differences"""
    network, x, x2 = mf.Network(2, "relu", bias_std=0.3), some(4, 5), some(3, 5, seed=1)
    weights = some(2, 4, 3, seed=2)
    ways = [
        slopes(lambda *ends, net=net: mf.nngp_and_ntk(net, mf.ntk(), *ends), x, x2, weights)
        for net in (network, perceptron(network, 5, 1))
    ]
    for found, right in zip(*ways, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)

    images, others, weights = some(2, 2, 4, 4), some(2, 2, 4, 4, seed=1), some(2, 2, 2, seed=3)

    def total(x):
        return sum(
            float((w * k).sum())
            for w, k in zip(weights, mf.nngp_and_ntk(WideResidual, mf.ntk(), x, others), strict=True)
        )

    way, step = some(2, 2, 4, 4, seed=4), 1e-5
    found = slopes(lambda *ends: mf.nngp_and_ntk(WideResidual, mf.ntk(), *ends), images, others, weights)[0]
    difference = (total(images + step * way) - total(images - step * way)) / (2 * step)
    assert float((found * way).sum()) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("heads", [1, 5, 9, 64])
def test_heads_that_the_widths_must_hold_have_the_kernels_of_one(heads):
    """Averages over the neurons of each head of independent neurons are those over all, whatever the widths that are taken"""

    class Heads(nn.Module):
        def __init__(self, n):
            super().__init__()
            assert n % heads == 0
            self.read, self.out = nn.Linear(3, n, bias=False), nn.Linear(n, 1, bias=False)

        def forward(self, x):
            h = self.read(x)
            part = h.unflatten(-1, (heads, -1))
            return self.out(torch.relu(h) * part.square().mean(-1).mean(-1, keepdim=True))

    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mf.nngp_and_ntk(Heads, mf.ntk(), x)
    of_one = mf.nngp_and_ntk(
        lambda n: nn.Sequential(nn.Linear(3, n, bias=False), nn.ReLU(), nn.Linear(n, 1, bias=False)), mf.ntk(), x
    )
    size = x.square().mean(1)
    torch.testing.assert_close(found[0], of_one[0] * size[:, None] * size, rtol=1e-9, atol=1e-12)


class Words(nn.Module):
    """Attention with 1/n, filters and a mean over the letters of a word, which ends with 0"""

    def __init__(self, n):
        super().__init__()
        self.read, self.q, self.k, self.v, self.out = (
            nn.Embedding(7, n),
            dense(n, n),
            dense(n, n),
            dense(n, n),
            dense(n, 1),
        )
        self.mix = nn.Conv1d(n, n, 3, padding=1, bias=False)

    def forward(self, x):
        h, there = self.read(x), (x != 0)[..., None]
        mask = there.to(h)
        a = self.q(h) @ self.k(h).mT / h.shape[-1]
        h = torch.relu(h + a.masked_fill(~there.mT, -math.inf).softmax(-1) @ self.v(h)) * mask
        h = torch.relu(self.mix(h.mT).mT) * mask
        return self.out(h.sum(1) / mask.sum(1))


def test_samples_of_two_lengths_are_filled_up_and_masked():
    """With the kernels that the short ones have by themselves"""
    long, short = torch.tensor([[1, 4, 2, 2, 6], [3, 3, 5, 1, 2]]), torch.tensor([[2, 5, 1], [6, 6, 4], [1, 4, 2]])
    filled = F.pad(short, (0, 2))
    whole = mf.nngp_and_ntk(Words, mf.ntk(), torch.cat([long, filled]))
    for kernel, own, across in zip(
        whole, mf.nngp_and_ntk(Words, mf.ntk(), short), mf.nngp_and_ntk(Words, mf.ntk(), long, filled), strict=True
    ):
        torch.testing.assert_close(kernel[2:, 2:], own, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(kernel[:2, 2:], across, rtol=1e-12, atol=1e-14)
        assert float(across.min()) > 0


def test_large_starts_of_one_number_have_kernels():
    """Positions whose zeros are too many to be made without being asked for"""

    class Net(nn.Module):
        def __init__(self, n, start):
            super().__init__()
            self.tok, self.out = nn.Embedding(5, n), nn.Linear(n, 1, bias=False)
            self.pos = nn.Parameter(torch.full((1, 40, n), start))

        def forward(self, x):
            return self.out(torch.relu(self.tok(x) + self.pos).mean(1))

    x = torch.arange(120).reshape(3, 40) ** 2 % 5
    found = mf.nngp_and_ntk(lambda n: Net(n, 0.0), mf.ntk(), x)
    without = lambda n: nn.Sequential(nn.Embedding(5, n), nn.ReLU(), Averaged(), nn.Linear(n, 1, bias=False))  # noqa: E731
    torch.testing.assert_close(found[0], mf.nngp_and_ntk(without, mf.ntk(), x)[0], rtol=1e-9, atol=1e-12)


class Averaged(nn.Module):
    def forward(self, h):
        return h.mean(1)
