"""Tangent kernels of torch modules as they are, beside derivatives that are taken one by one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import meanfield as mf
import solvers.finite.module_derivatives as own_derivatives
import solvers.finite.module_tangent_kernel as own
from solvers import FiniteWidth, module_tangent_kernel
from tests.any_networks import Convolutional, Language, Perceptron, Recurrent, Residual


def by_loops(module, x, x2=None, rates=None):
    """(P, C, P2, C) of derivatives that autograd takes for one output of one sample after the other"""

    def rows(some):
        found = []
        for one in some:
            trained = [p for p in module.parameters() if p.requires_grad]
            f = module(one[None]).flatten()
            for c in range(len(f)):
                slopes = torch.autograd.grad(f[c], trained, retain_graph=True, allow_unused=True)
                pairs = zip(slopes, trained, strict=True)
                found.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
        return len(f), [torch.stack(many).reshape(len(many), -1) for many in zip(*found, strict=True)]

    outputs, first = rows(x)
    second = first if x2 is None else rows(x2)[1]
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    pairs = zip(names, first, second, strict=True)
    k = sum((rates or {}).get(name, 1.0) * a @ b.T for name, a, b in pairs)
    return k.view(len(x), outputs, -1, outputs)


class Own(nn.Module):
    """Matrices as parameters, from the left and from the right, one of them both ways, and a scale"""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7, 7))
        self.c, self.scale = nn.Parameter(torch.randn(7, 7)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        h = torch.tanh(x @ self.a)
        h = torch.tanh(h @ self.b) + torch.tanh(F.linear(h, self.c) @ self.c) * self.scale
        return torch.einsum("pi,ij->pj", h, self.b.square())[:, :2]


class Tied(nn.Module):
    """Tokens read and written by one matrix, with a row for no token"""

    def __init__(self):
        super().__init__()
        self.tok, self.pos, self.out = (
            nn.Embedding(9, 6, padding_idx=2),
            nn.Embedding(4, 6),
            nn.Linear(6, 9, bias=False),
        )
        self.out.weight, self.head = self.tok.weight, nn.Embedding(9, 6, padding_idx=2)

    def forward(self, x):
        h = self.tok(x) + self.pos(torch.arange(x.shape[1])) + self.head(x) ** 2
        return self.out(torch.tanh(h))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


class Branching(nn.Module):
    """Does for some samples what it does not do for others, as its code looks at the numbers"""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x):
        return torch.cat(
            [self.b(torch.tanh(self.a(one))) if one.sum() > 0 else self.b(self.a(one)) for one in x[:, None]]
        )


class _Hidden(torch.autograd.Function):
    """Out of torch's sight"""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, slope):
        x, w = ctx.saved_tensors
        return slope @ w, slope.T @ x


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(_Hidden.apply(torch.tanh(self.a(x)), self.a.weight) + self.b(x))


def normed():
    """Running statistics that are not those of a start"""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, groups=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 2, 2, groups=2)
    )
    net = nn.Sequential(net, nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    net(torch.randn(8, 1, 6, 6))
    return net.eval()


def images(p=3):
    return torch.randn(p, 1, 6, 6, dtype=torch.float64)


def vectors(p=3, inputs=5):
    return torch.randn(p, inputs, dtype=torch.float64)


def tokens(p=3, most=9):
    return torch.randint(most, (p, 4))


CASES = {
    "perceptron": (lambda: Perceptron(24, 5, 2, 3, bias=True), vectors),
    "one output": (lambda: Perceptron(24, 5), vectors),
    "convolution": (lambda: Convolutional(6), images),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(1, 24, 5), nn.Tanh(), nn.Conv2d(24, 24, 2), nn.Flatten(), nn.Linear(24, 2)),
        images,
    ),
    "batch norm": (normed, images),
    "residual": (lambda: Residual(16), lambda: vectors(3, 64)),
    "recurrent": (lambda: Recurrent(24), lambda: vectors(3, 64)),
    "language": (lambda: Language(8), lambda: tokens(2, 13)),
    "own matrices": (Own, vectors),
    "tied": (Tied, lambda: tokens(2)),
    "attention": (lambda: Attentive().eval(), lambda: torch.randn(3, 4, 6, dtype=torch.float64)),
    "weight norm": (lambda: nn.Sequential(weight_norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 2)), vectors),
    "branching": (Branching, vectors),
    "hidden from torch": (Hiding, vectors),
}


def near(found, right):
    torch.testing.assert_close(found, right.view(found.shape), rtol=0, atol=1e-12 * float(right.abs().max()))


def prepared(case):
    torch.manual_seed(3)
    build, data = CASES[case]
    return build().double(), data()


@pytest.mark.parametrize("case", CASES)
def test_all_derivatives_one_by_one(case):
    module, x = prepared(case)
    right, before = by_loops(module, x), [p.detach().clone() for p in module.parameters()]
    with torch.no_grad():
        found = module_tangent_kernel(module, x)
    near(found, right)
    outputs = right.shape[1]
    assert found.shape == ((len(x), outputs) * 2 if outputs > 1 else (len(x), len(x)))
    square = found.flatten(0, 1).flatten(1) if outputs > 1 else found
    assert torch.equal(square, square.T)
    near(module_tangent_kernel(module, x, block=2), right)
    near(module_tangent_kernel(module, x[:2], x), right[:2])
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    "case", ["perceptron", "convolution", "batch norm", "residual", "language", "own matrices", "attention"]
)
@pytest.mark.parametrize("how", ["products", "entries", "factors"])
def test_every_way_to_contract_gives_the_same(case, how, monkeypatch):
    module, x = prepared(case)
    right, used = by_loops(module, x), []
    if how == "products":
        monkeypatch.setattr(own, "MOST", 2**14)  # outputs and samples in several turns
        monkeypatch.setattr(own, "PER_PASS", 0)
        kept = own._by_products
        monkeypatch.setattr(own, "_by_products", lambda *given: used.append(kept(*given)))
    else:
        monkeypatch.setattr(own, "_products_pay", lambda *_: False)
        monkeypatch.setattr(own_derivatives.Differentiated, "_pays", lambda *_: used.append(how) or how == "factors")
    near(module_tangent_kernel(module, x), right)
    near(module_tangent_kernel(module, x[:2], x, block=1), right[:2])
    assert used


@own_derivatives.plain_operations()
def test_factors_are_taken_where_they_take_less_and_products_where_outputs_are_many():
    def plan(module, x):
        return own_derivatives.Differentiated(module, dict.fromkeys(dict(module.named_parameters()), 1.0), x)

    dense = plan(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)), torch.randn(2, 64))
    assert dense.factored == {"0.weight", "2.weight"}
    assert not own._products_pay(dense, torch.randn(1, 64))
    filters = plan(
        nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Conv2d(4, 24, 2), nn.Flatten()), torch.randn(2, 1, 6, 6)
    )
    assert not filters.factored
    assert own._products_pay(filters, torch.randn(1, 1, 6, 6))  # 384 outputs at 16 positions
    branching = plan(Branching(), torch.randn(2, 5))
    assert not branching.vectorised


def test_frozen_parameters_have_no_part_and_rates_multiply():
    module, x = prepared("residual")
    for p in module.norms.parameters():
        p.requires_grad_(False)
    rates = {name: 3.0 if name.startswith("up.") else 1.0 for name, _ in module.named_parameters()}
    rates["down.0.weight"] = 0.0
    right = by_loops(module, x, rates=rates)
    near(module_tangent_kernel(module, x, rates={"up.*": 3.0, "down.0.weight": 0.0, "*": 1.0}), right)
    whole = by_loops(module, x)
    assert float((whole - right).abs().max()) > 1e-3


def test_a_trained_module_by_finite_differences():
    torch.manual_seed(0)
    x, y = vectors(4), torch.randn(4, 2, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    descent = torch.optim.SGD(module.parameters(), 0.2)
    for _ in range(20):
        descent.zero_grad()
        (module(x) - y).square().mean().backward()
        descent.step()
    found, h, columns = module_tangent_kernel(module, x), 1e-5, []
    with torch.no_grad():
        for p in module.parameters():
            for i in range(p.numel()):
                flat, start = p.view(-1), float(p.view(-1)[i])
                flat[i] = start + h
                up = module(x)
                flat[i] = start - h
                columns.append((up - module(x)).flatten() / (2 * h))
                flat[i] = start
    jacobian = torch.stack(columns, 1)
    # truncation h^2 f'''/6 and rounding 1e-16 f / h, each about 1e-10
    torch.testing.assert_close(found.flatten(0, 1).flatten(1), jacobian @ jacobian.T, rtol=1e-8, atol=1e-8)


def test_the_kernel_of_the_networks_that_are_trained():
    """Weights with their multipliers, and rates in their units, give K of equation 11"""
    torch.manual_seed(1)
    data = mf.Dataset(vectors(4), vectors(4, 2))
    problem = mf.Problem(data, mf.Network(2, "tanh"), mf.mean_field(1.5), mf.Training(0.2, 5))
    n, net = 32, FiniteWidth(32)(problem)
    sigma, (rate_a, rate_w) = problem.scaling.output_multiplier(n), problem.scaling.learning_rate_multipliers(n)
    module = Perceptron(n, 5, 2).double()
    multipliers = {"read.weight": 1 / math.sqrt(5), "mix.0.weight": 1 / math.sqrt(n), "out.weight": sigma}
    state = {"read.weight": net.state["W0"], "mix.0.weight": net.state["W1"], "out.weight": net.state["a"].T}
    module.load_state_dict({name: m * state[name] for name, m in multipliers.items()})
    rates = {name: m**2 * (rate_a if name == "out.weight" else rate_w) for name, m in multipliers.items()}
    torch.testing.assert_close(
        module_tangent_kernel(module, data.x, rates=rates), net.tangent_kernel(-1), rtol=1e-10, atol=1e-12
    )


def test_single_precision_and_inputs_of_any_kind():
    torch.manual_seed(2)
    module, x = Perceptron(24, 5, 2), vectors().numpy()
    found = module_tangent_kernel(module, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_loops(module.double(), torch.tensor(x)), rtol=1e-4, atol=1e-5)


def refused(module, match, x=None, **given):
    with pytest.raises(ValueError, match=match):
        module_tangent_kernel(module, vectors() if x is None else x, **given)


def test_what_has_no_tangent_kernel_is_refused_with_the_reason():
    dropping = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.1), nn.Linear(4, 1)).double()
    refused(dropping, r"'1' \(Dropout\) is in training mode, where it draws new masks in every pass: call module.eval")
    refused(
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double(),
        r"'1' \(BatchNorm1d\) is in .* statistics .* call module",
    )
    meeting = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    refused(meeting.double(), "the outputs of a sample depend on the other samples|Expected more than 1 value")
    refused(nn.Sequential(nn.LazyLinear(3)), "'0.weight' has no numbers yet: call the module once")
    refused(nn.Linear(5, 2).requires_grad_(False), "no parameter to train")
    refused(nn.Tanh(), "no parameter to train")
    refused(
        nn.Linear(5, 2),
        r"rates must name parameters that are trained: received 'wait'; known: weight, bias",
        rates={"wait": 1.0},
    )
    refused(nn.Linear(5, 2), r"rates\['bias'\] must be", rates={"bias": -1.0})
    refused(nn.Linear(4, 2).double(), r"forward fails for x of shape \(2, 5\)")
    refused(
        nn.Linear(5, 2).double(),
        r"samples of the same shape and kind: received \(3, 5\) of torch.float64 and \(2, 4\)",
        x2=vectors(2, 4),
    )
    refused(nn.Linear(5, 2).double(), "block must be at least 1", block=0)
    refused(nn.Linear, "module must be a Module: received the class Linear")
    refused(
        nn.Linear(5, 2, bias=False).double(), r"tangent kernel of the module exceeds 1.8e\+308", x=1e160 * vectors()
    )
    refused(nn.Linear(5, 2, bias=False).double(), "falls below 2.2e-308.*outputs are of size", x=1e-160 * vectors())
    refused(nn.Linear(5, 2, bias=False), "falls below 1.2e-38, the least normal torch.float32", x=1e-25 * vectors())
    lost = nn.Linear(5, 2).double()
    lost.weight.data[0] = math.nan
    refused(lost, "outputs of the module are NaN or infinite")
    refused(nn.Linear(5, 2).double(), "x requires gradients", x=vectors().requires_grad_())
    with pytest.raises(MemoryError, match="the tangent kernel of 100000 outputs between 3 and 3 samples"):
        module_tangent_kernel(nn.Linear(5, 10**5), vectors())


def test_kernels_that_are_0_are_returned():
    """At inputs of 0, and between samples that share nothing"""
    module, x = nn.Linear(5, 1, bias=False).double(), torch.eye(5, dtype=torch.float64)
    assert not module_tangent_kernel(module, 0 * x).any()
    assert not module_tangent_kernel(module, x[:2], x[2:]).any()
