"""A trial of a network's forward: what has no width limit is found in code that does not say so in its modules."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meanfield.network.trial import tried
from tests.any_networks import Convolutional, Language, Perceptron, Recurrent, Residual, digits, text


def network(middle, positions=4):
    """Positions of three numbers each, wide features, `middle`, the mean over positions, one output"""

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.read, self.q, self.k, self.out = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, 1)
            self.register_buffer("seen", torch.zeros(1))

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
    "other code": (
        lambda net, h: torch.tanh(h) if h.shape[-1] > 50 else torch.relu(h),
        "does other things at another width",
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_averages_over_neurons_and_anything_else_over_positions_pass(case):
    assert tried(network(GOOD[case]), X).outputs == (1,)


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_limit_is_refused_with_the_reason(case):
    middle, message = BAD[case]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        tried(network(middle), X)


def test_outputs_must_begin_with_the_samples_and_not_grow():
    with pytest.raises(ValueError, match=r"received shape \(3,\) of torch.float64"):
        tried(lambda n: nn.Sequential(nn.Linear(3, n), nn.Linear(n, 1), nn.Flatten(0)), X[:, 0])
    with pytest.raises(ValueError, match=r"received shape \(4, 1\)"):
        tried(
            lambda n: nn.Sequential(
                nn.Linear(3, n), nn.Linear(n, 1), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3)), Mean()
            ),
            X,
        )
    with pytest.raises(ValueError, match=r"outputs grow with its width: received \(48,\) at width 48"):
        tried(lambda n: nn.Linear(3, n), X[:, 0])


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_the_networks_of_these_tests_pass():
    x = digits(4)[0]
    for build in (lambda n: Perceptron(n, 64), Recurrent, Residual):
        assert tried(build, x).outputs == (1,)
    assert tried(Convolutional, digits(4, True)[0]).outputs == (1,)
    assert tried(Language, text()[0]).outputs == (8, 13)
