"""A trial of a network's forward: what has no width limit is found in code that does not say so in its modules."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meanfield as mf
from meanfield.network.architecture import Architecture
from meanfield.network.trial import tried
from solvers import module_tangent_kernel, monte_carlo_kernels
from tests.any_networks import Convolutional, Language, Perceptron, Recurrent, Residual, digits, text


def network(middle, positions=4):
    """Positions of three numbers each, wide features, `middle`, the mean over positions, one output"""

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.q, self.k, self.out = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, 1)
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("fixed", torch.randn(n))
            self.small, self.large = nn.Parameter(torch.randn(n, 1) / n**0.5), nn.Parameter(torch.ones(n, 1))
            self.act = F.gelu

        def forward(self, x):
            return self.out(middle(self, self.read(x)).mean(1))

    return Net


X = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))


def sdpa(net, h, **given):
    return F.scaled_dot_product_attention(net.q(h), net.k(h), h, **given)


def counted(net, h):
    net.seen += 1
    return h


GOOD = {
    "layer norm": lambda net, h: F.layer_norm(h, h.shape[-1:]),
    "mean over neurons": lambda net, h: h - h.mean(-1, keepdim=True),
    "softmax over positions": lambda net, h: h.softmax(1),
    "largest of positions": lambda net, h: h + h.max(1, keepdim=True).values,
    "larger of two": lambda net, h: torch.max(h, net.q(h)),
    "heads": lambda net, h: h.reshape(*h.shape[:2], 4, -1).permute(0, 2, 1, 3).mean(1).repeat(1, 1, 4),
    "halves": lambda net, h: torch.cat([a * b for a, b in [h.chunk(2, -1)]] * 2, -1),
    "positions by number": lambda net, h: h[:, 1:] * h[:, :1],
    "attention": lambda net, h: (net.q(h) @ net.k(h).transpose(1, 2) / h.shape[-1]).softmax(-1) @ h,
    "attention by torch": lambda net, h: sdpa(net, h, scale=2 / h.shape[-1]),
    "no dropout": lambda net, h: F.dropout(h, 0.0),
    "rms norm by hand": lambda net, h: h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "norm by root n": lambda net, h: net.act(h / (h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5)),
    "norm times root n": lambda net, h: net.act(h.shape[-1] ** 0.5 * h / h.norm(dim=-1, keepdim=True).clamp(min=1e-9)),
    "standard deviation": lambda net, h: net.act((h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True)),
    "sum over n": lambda net, h: h * torch.sigmoid(h.sum(-1, keepdim=True) / h.shape[-1]),
    "sum of squares over n": lambda net, h: h * torch.exp(-h.square().sum(-1, keepdim=True) / h.shape[-1]),
    "weights that add up to one": lambda net, h: (
        h * torch.tanh((h.exp() / h.exp().sum(-1, keepdim=True) * h).sum(-1, keepdim=True))
    ),
    "cosines": lambda net, h: (h @ h.mT / (h.norm(dim=-1)[..., None] * h.norm(dim=-1)[:, None])).softmax(-1) @ h,
    "cosines by torch": lambda net, h: F.cosine_similarity(h[:, :, None], h[:, None], dim=-1).softmax(-1) @ h,
    "distances": lambda net, h: (-torch.cdist(h, h).square() / h.shape[-1]).softmax(-1) @ h,
    "einsum over n": lambda net, h: (torch.einsum("pti,psi->pts", net.q(h), h) / h.shape[-1]).softmax(-1) @ h,
    "a constant of each neuron": lambda net, h: net.act(h * (net.fixed * h).mean(-1, keepdim=True)),
    "a sum that a norm undoes": lambda net, h: net.act(F.layer_norm(h * h.norm(dim=-1, keepdim=True), h.shape[-1:])),
    "a covariance over positions": lambda net, h: net.act(h @ (h.mT @ h) / (4 * h.shape[-1])),
    "logits over root n": lambda net, h: (net.q(h) @ net.k(h).mT / h.shape[-1] ** 0.5).softmax(-1) @ h,
    "a readout that its author makes small": lambda net, h: h * torch.tanh(h @ net.small),
}
BAD = {
    "largest neuron": (lambda net, h: h / h.amax(-1, keepdim=True), "amax over neurons is decided by few"),
    "sorted": (lambda net, h: h.sort().values, "sort over neurons"),
    "top": (lambda net, h: h.topk(3, -1).values.sum(-1, keepdim=True) * h, "topk over neurons"),
    "largest of all": (lambda net, h: h / h.max(), "max over neurons"),
    "softmax": (lambda net, h: F.softmax(h, dim=-1), "softmax along an axis of neurons leaves each"),
    "first neuron": (lambda net, h: h * h[..., :1], "takes neurons by number"),
    "three neurons": (lambda net, h: h + h.narrow(2, 0, 3).mean(-1, keepdim=True), "takes neurons by number"),
    "attention": (sdpa, "divides its logits by sqrt.*Divide by n"),
    "attention by root": (lambda net, h: sdpa(net, h, scale=h.shape[-1] ** -0.5), "Divide by n"),
    "dropout": (lambda net, h: F.dropout(h, 0.5), "other outputs when it is asked again"),
    "noise": (lambda net, h: h + torch.randn_like(h), "other outputs when it is asked again"),
    "state": (counted, "keeps the state 'seen'"),
    "norm": (lambda net, h: net.act(net.q(h / h.norm())), "norm sums over neurons without 1/n.*gelu is given vanishes"),
    "norm of each": (
        lambda net, h: net.act(net.q(h / (h.norm(dim=-1, keepdim=True) + 1e-6))),
        "norm sums over neurons without 1/n",
    ),
    "norm by linalg": (
        lambda net, h: net.act(net.q(h / torch.linalg.vector_norm(h, dim=-1, keepdim=True))),
        "vector_norm sums over neurons without 1/n",
    ),
    "norm at the end": (lambda net, h: h / h.norm(dim=-1, keepdim=True), "what the network returns vanishes"),
    "root of squares": (
        lambda net, h: net.act(net.q(h * h.square().sum(-1, keepdim=True).rsqrt())),
        "sum sums over neurons without 1/n",
    ),
    "squares": (lambda net, h: h * torch.exp(-h.square().sum(-1, keepdim=True)), "what exp is given grows"),
    "a norm that multiplies": (lambda net, h: net.act(h * h.norm(dim=-1, keepdim=True)), "what gelu is given grows"),
    "sum": (lambda net, h: h * torch.sigmoid(h.sum(-1, keepdim=True)), "what sigmoid is given grows"),
    "sum that multiplies": (lambda net, h: net.act(h * h.sum(-1, keepdim=True)), "sum sums over neurons"),
    "logits": (lambda net, h: (net.q(h) @ net.k(h).mT).softmax(-1) @ h, "mul.*sums over neurons.*softmax is"),
    "einsum": (lambda net, h: torch.einsum("pti,psi->pts", net.q(h), h).softmax(-1) @ h, "einsum sums over neurons"),
    "distances": (lambda net, h: (-torch.cdist(h, h)).softmax(-1) @ h, "cdist sums over neurons"),
    "a readout of its own": (lambda net, h: h * torch.tanh(h @ net.large), "matmul.* sums over neurons"),
    "other code": (
        lambda net, h: torch.tanh(h) if h.shape[-1] > 100 else torch.relu(h),
        "does other things at another width",
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_averages_over_neurons_and_anything_else_over_positions_pass(case):
    assert tried(Architecture(network(GOOD[case])), X).outputs == (1,)


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_limit_is_refused_with_the_reason(case):
    middle, message = BAD[case]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        tried(Architecture(network(middle)), X)


def test_outputs_must_begin_with_the_samples_and_not_grow():
    with pytest.raises(ValueError, match=r"received shape \(3,\) of torch.float64"):
        tried(Architecture(lambda n: nn.Sequential(nn.Linear(3, n), nn.Linear(n, 1), nn.Flatten(0))), X[:, 0])
    with pytest.raises(ValueError, match=r"received shape \(4, 1\)"):
        tried(
            Architecture(
                lambda n: nn.Sequential(
                    nn.Linear(3, n), nn.Linear(n, 1), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3)), Mean()
                )
            ),
            X,
        )
    with pytest.raises(ValueError, match=r"outputs grow with its width: received \(96,\) at width 96"):
        tried(Architecture(lambda n: nn.Linear(3, n)), X[:, 0])


class Heads(nn.Module):
    """Averages of products over the neurons of each of so many heads"""

    def __init__(self, n, heads, parts=1):
        super().__init__()
        assert n % heads == 0
        self.read, self.down, self.out = nn.Linear(3, n), nn.Linear(n, n // parts), nn.Linear(n, 1)
        self.heads = heads

    def forward(self, x):
        h = self.read(x)
        return self.out(h + h.unflatten(-1, (self.heads, -1)).square().mean(-1).mean(-1, keepdim=True))


@pytest.mark.parametrize("heads", [3, 5, 7, 9, 10, 12, 14, 16, 20, 25, 32, 64])
def test_heads_of_which_the_widths_must_be_multiples(heads):
    network = Architecture(lambda n: Heads(n, heads))
    assert network.description.unit % heads == 0
    assert tried(network, X).outputs == (4, 1)


@pytest.mark.parametrize("parts", [2, 3, 5, 7, 8, 9, 16, 20, 32, 64])
def test_axes_of_a_part_of_the_neurons(parts):
    """A vector of n/96 or n/64 is a few numbers at these widths, without a warning"""
    network = Architecture(lambda n: Heads(n, 1, parts))
    down = next(p for p in network.description if p.name == "down.weight")
    assert str(down.above) == f"n/{parts}"
    assert tried(network, X).outputs == (4, 1)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_the_networks_of_these_tests_pass():
    x = digits(4)[0]
    for build in (lambda n: Perceptron(n, 64), Recurrent, Residual):
        assert tried(Architecture(build), x).outputs == (1,)
    assert tried(Architecture(Convolutional), digits(4, True)[0]).outputs == (1,)
    assert tried(Architecture(Language), text()[0]).outputs == (8, 13)


class Typed(nn.Module):
    """A constant and a step in between that keep to a precision of their own"""

    def __init__(self, n, step=lambda net, h: h, constant=None):
        super().__init__()
        self.read, self.out, self.step, self.constant = nn.Linear(3, n), nn.Linear(n, 1), step, constant

    def forward(self, x):
        h = torch.tanh(self.read(x))
        return self.out(self.step(self, h if self.constant is None else h * self.constant)).mean(1)


@pytest.mark.parametrize(
    ("step", "constant", "meets"),
    [
        (lambda net, h: h.float(), None, "linear meets torch.float32 and torch.float64.*self.out.weight.dtype"),
        (lambda net, h: h.half(), None, "linear meets torch.float16 and torch.float64.*rather than x.float"),
        (lambda net, h: h.double(), None, "linear meets torch.float32 and torch.float64.*self.register_buffer"),
        (lambda net, h: h @ torch.eye(4).float(), None, "matmul.* meets torch.float32 and torch.float64"),
        (lambda net, h: h, torch.ones(1, dtype=torch.float64), "linear meets torch.float32 and torch.float64"),
    ],
)
def test_numbers_of_another_precision_are_told_with_what_to_write(step, constant, meets):
    with pytest.raises(ValueError, match=f"^the network's forward fails for x of shape .*{meets}"):
        tried(Architecture(lambda n: Typed(n, step, constant)), X)


def test_a_forward_may_make_numbers_and_change_precision_if_it_returns():
    def step(net, h):
        return (h + torch.zeros(4, h.shape[-1])).float().square().to(h.dtype) @ torch.eye(h.shape[-1])

    assert tried(Architecture(lambda n: Typed(n, step)), X).outputs == (1,)


class Told(nn.Module):
    """Tokens and their positions, the table of which is not long enough"""

    def __init__(self, n, tokens=5, positions=4, way="embedding"):
        super().__init__()
        self.tok, self.out, self.way = nn.Embedding(tokens, n), nn.Linear(n, 1), way
        self.pos = nn.Embedding(positions, n) if way == "embedding" else nn.Parameter(torch.randn(positions, n))

    def forward(self, x):
        at = torch.arange(x.shape[1])
        rows = {"embedding": lambda: self.pos(at), "rows": lambda: self.pos[at], "part": lambda: self.pos[: x.shape[1]]}
        return self.out(torch.tanh(self.tok(x) + rows[self.way]())).mean(1)


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("embedding", "'pos.weight' has 4 rows and is asked for row 6; x has 7 positions: make it as long"),
        ("rows", "'pos' has 4 rows and is asked for row 6; x has 7 positions"),
        ("part", r"was given \(3, 7, 96\) and a part of 'pos' \(4, 96\)"),
    ],
)
def test_a_table_that_is_too_short_is_told_by_its_name(way, told):
    x = torch.arange(5 * 7).reshape(5, 7) % 5
    assert tried(Architecture(lambda n: Told(n, 5, 7, way)), x).outputs == (1,)
    with pytest.raises(ValueError, match=told) as error:
        tried(Architecture(lambda n: Told(n, 5, 4, way)), x)
    assert "tokens" not in str(error.value)
    with pytest.raises(ValueError, match=r"its tokens go down to -1, and are counted from 0"):
        tried(Architecture(lambda n: Told(n, 5, 7, way)), x - 1)
    with pytest.raises(ValueError, match=r"its tokens go up to 4, and the table 'tok.weight' has 4 rows: give it 5"):
        tried(Architecture(lambda n: Told(n, 4, 7, way)), x)


def filters(inputs, outputs, **given):
    return nn.Conv2d(inputs, outputs, 3, bias=False, **given)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: nn.Sequential(filters(2, n), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * n, 1)),
        lambda n: nn.Sequential(
            filters(2, n, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            filters(n, n, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36 * n, 1),
        ),
        lambda n: nn.Sequential(
            filters(2, n), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(4 * n, 1)
        ),
    ],
    ids=["pooled at the edges", "reflected", "pooled"],
)
def test_neurons_flattened_with_positions_pass(build):
    """Copies of neurons stand apart then, with their positions between them"""
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert tried(Architecture(build), x).outputs == (1,)

    def turned(n):
        return nn.Sequential(
            nn.Unflatten(1, (2, 36)), Last(), nn.Linear(2, n), nn.ReLU(), nn.Flatten(), nn.Linear(36 * n, 1)
        )

    assert tried(Architecture(turned), x.flatten(1)).outputs == (1,)


class Last(nn.Module):
    """Channels behind positions"""

    def forward(self, x):
        return x.mT


class Cut(nn.Module):
    """how: where the forward does without derivatives"""

    def __init__(self, n, how):
        super().__init__()
        self.read, self.mix, self.out = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, 1)
        self.how = how

    def forward(self, x):
        if self.how == "sizes":  # which no parameter enters
            with torch.no_grad():
                x = x / self.read.weight.shape[1] ** 0.5 + torch.zeros(3, dtype=self.read.weight.dtype)
        with torch.inference_mode(self.how == "inference"), torch.set_grad_enabled(self.how != "no_grad"):
            h = torch.relu(self.read(x))
        f = self.out(torch.relu(self.mix(h.detach() if self.how == "stopped" else h)))
        return f.detach() if self.how == "detached" else f


CUT = {
    "no_grad": r"'read.weight' is used within torch.no_grad.*frozen=\('read.weight',\)",
    "inference": "fails for x .*Inference tensors",
    "detached": "cut off from all parameters.*return what the layers give",
}


@pytest.mark.parametrize("how", [*CUT, "stopped", "sizes"])
def test_what_is_not_trained_is_refused_with_the_remedy(how):
    """By all who train or differentiate; a gradient that is stopped is none of these"""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = partial(Cut, how=how)
    asked = [
        lambda: tried(Architecture(network), x),
        lambda: monte_carlo_kernels(Architecture(network, weight_std=1.0), mf.ntk(), x, 8, 2),
        lambda: module_tangent_kernel(network(8).double(), x),
    ]
    for ask in asked[: 2 if how == "no_grad" else 3]:  # of a module as it is, what is not trained is none of its kernel
        if how in CUT:
            with pytest.raises(ValueError, match=CUT[how]):
                ask()
        else:
            ask()
