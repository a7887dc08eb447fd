"""Networks for kernels at infinite width: what people write, each with something of its own."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


def dense(inputs, outputs, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


def filters(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


class WideResidual(nn.Module):
    """Group and layer norms with trained gains before relu, stride, a 1 x 1 shortcut, twice the channels inside, two outputs."""

    def __init__(self, n):
        super().__init__()
        self.stem, self.first, self.second = filters(2, n, 3), filters(n, 2 * n, 3, 2), filters(2 * n, n, 3)
        self.short, self.out = filters(n, n, 1, 2), dense(n, 2)
        self.norms = nn.ModuleList([nn.GroupNorm(1, n), nn.LayerNorm(2 * n), nn.LayerNorm(n)])

    def forward(self, x):
        def channels_last(norm, h):
            return norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

        u = torch.relu(self.norms[0](self.stem(x)))
        h = self.short(u) + self.second(torch.relu(channels_last(self.norms[1], self.first(u))))
        return self.out(torch.relu(channels_last(self.norms[2], h)).mean((2, 3)))


class Pooled(nn.Module):
    """Average pooling before an activation and, padded, behind one; circular filters; a readout of all pixels."""

    def __init__(self, n):
        super().__init__()
        self.first, self.pool, self.out = filters(2, n, 3), nn.AvgPool2d(2), dense(4 * n, 1)
        self.second = nn.Conv2d(n, n, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x):
        h = F.gelu(self.second(torch.relu(self.pool(self.first(x)))))
        return self.out(F.avg_pool2d(F.pad(h, (0, 1, 0, 1)), 2).flatten(1))


class Dilated(nn.Module):
    """A dilated filter without padding, one with stride over a sequence, biases."""

    def __init__(self, n):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, n, 2, dilation=2), nn.Conv1d(n, n, 3, stride=2, padding=1)
        self.out = nn.Conv1d(n, 1, 2)

    def forward(self, x):
        return self.out(torch.erf(self.second(torch.erf(self.first(x))))).mean(2)


class Recurrent(nn.Module):
    """The same matrices at each time, from a state of zeros."""

    def __init__(self, n):
        super().__init__()
        self.read, self.again, self.out = dense(3, n), dense(n, n), dense(n, 1)

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.again.weight.shape[0], dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, t]) + self.again(h))
        return self.out(h)


class Gated(nn.Module):
    """A gated branch of twice the width behind an RMS norm."""

    def __init__(self, n):
        super().__init__()
        self.read, self.up, self.gate, self.down = dense(6, n), dense(n, 2 * n), dense(n, 2 * n), dense(2 * n, n)
        self.norm, self.out = nn.RMSNorm(n), dense(n, 1)

    def forward(self, x):
        h = self.read(x)
        v = self.norm(h)
        return self.out(torch.erf(h + self.down(self.up(v) * F.silu(self.gate(v)))))


class Chunked(nn.Module):
    """A gate that is half of one matrix."""

    def __init__(self, n):
        super().__init__()
        self.read, self.up, self.down, self.out = dense(6, n), dense(n, 4 * n), dense(2 * n, n), dense(n, 1)

    def forward(self, x):
        value, gate = self.up(torch.relu(self.read(x))).chunk(2, -1)
        return self.out(self.down(value * torch.sigmoid(gate)))


class Sums(nn.Module):
    """Functions of the same neurons added, linear parts beside activations of them, biases, several readouts."""

    def __init__(self, n):
        super().__init__()
        self.read, self.up, self.out = dense(6, n, True), dense(n, n, True), dense(n, 2, True)
        self.other, self.third = dense(n, 2), dense(n, 2)

    def forward(self, x):
        h = self.read(x)
        fields = self.out(self.up(F.leaky_relu(h, 0.2)) + h)
        return fields + self.other(F.silu(h * 1.3 + 0.2)) + self.third(h + F.relu(h))


class PostNorm(nn.Module):
    """Layer norms of what is no Gaussian: of activations, and of sums with them."""

    def __init__(self, n):
        super().__init__()
        self.read, self.up, self.last, self.out = dense(6, n), dense(n, n), dense(n, n), dense(n, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(n) for _ in range(2))

    def forward(self, x):
        h = self.norms[0](torch.relu(self.read(x)))
        h = self.norms[1](h + torch.relu(self.up(h)))
        return self.out(torch.erf(self.last(h)))


class Heads(nn.Module):
    """Causal attention in heads over one matrix for q, k and v, an MLP of four times the width, tokens and trained positions; tied: q = k,
    whose weights stay positional."""

    def __init__(self, n, heads=4, context=5, tied=False):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, n), nn.Parameter(torch.zeros(context, n))
        self.qkv, self.mix, self.up, self.down, self.out = (
            dense(n, 3 * n),
            dense(n, n),
            dense(n, 4 * n),
            dense(4 * n, n),
            dense(n, 7),
        )
        self.norms, self.heads, self.tied = nn.ModuleList(nn.LayerNorm(n) for _ in range(3)), heads, tied

    def forward(self, x):
        samples, length = x.shape
        h = self.tokens(x) + self.positions[:length]
        n = h.shape[-1]
        q, k, v = self.qkv(self.norms[0](h)).chunk(3, -1)
        q, k, v = (
            t.view(samples, length, self.heads, n // self.heads).transpose(1, 2) for t in (q, q if self.tied else k, v)
        )
        a = (q @ k.transpose(-1, -2)) * (2 / q.shape[-1])
        a = a.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
        h = h + self.mix((a @ v).transpose(1, 2).reshape(samples, length, n))
        return self.out(self.norms[2](h + self.down(F.gelu(self.up(self.norms[1](h))))))


class Joined(nn.Module):
    """A token of its own joined to a sequence, the same vector added to neurons, means over positions, a norm written by hand."""

    def __init__(self, n):
        super().__init__()
        self.read, self.first, self.up = dense(3, n), nn.Parameter(torch.zeros(1, 1, n)), dense(n, n)
        self.last, self.out = dense(n, n), dense(n, 1)

    def forward(self, x):
        h = torch.cat([self.first.expand(len(x), -1, -1), self.read(x)], 1)
        h = F.relu(self.up(h) + self.first)
        h = h.mean(1) + h[:, 0]
        return self.out(self.last(h / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()))


class Mixed(nn.Module):
    """A fixed matrix over positions, kept as a buffer; outputs at each of them."""

    def __init__(self, n):
        super().__init__()
        self.read, self.up, self.out = dense(3, n), dense(n, n), dense(n, 2)
        self.register_buffer("mix", torch.eye(4) + 0.5 * torch.eye(4).roll(1, 0))

    def forward(self, x):
        h = torch.einsum("st,btn->bsn", self.mix, torch.relu(self.read(x)))
        return self.out(torch.erf(self.up(h)))


class Centred(nn.Module):
    """Fields less their mean over neurons, before and behind an activation, a gated linear unit, numbers that all neurons share."""

    def __init__(self, n):
        super().__init__()
        self.read, self.up, self.out = dense(6, n), dense(n, 2 * n), dense(n, 1)

    def forward(self, x):
        h = self.read(x)
        h = torch.relu(h - h.mean(-1, keepdim=True))
        h = F.glu(self.up(h - h.mean(-1, keepdim=True)))
        return self.out(torch.full((len(x), h.shape[-1]), 0.3, dtype=x.dtype) + h)


class Concatenated(nn.Module):
    """Channels side by side: of Gaussians before an activation, of activations before a norm; unequal shares."""

    def __init__(self, n):
        super().__init__()
        self.first, self.second = filters(2, n, 3), filters(2, 2 * n, 1)
        self.third, self.last, self.out = filters(3 * n, n, 3), dense(4 * n, n), dense(n, 1)
        self.norm = nn.LayerNorm(4 * n)

    def forward(self, x):
        h = torch.erf(torch.cat([self.first(x), self.second(x)], 1))
        h = torch.cat([h, torch.relu(self.third(h))], 1).mean((2, 3))
        return self.out(torch.relu(self.last(self.norm(h))))


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(net, std):
    """Weights as N(0, 1/fan_in), embeddings and named vectors as N(0, std^2); the squares of what stands before a trained N(0, 1)"""
    squares = {}
    for path, module in net.named_modules():
        for name, p in module.named_parameters(recurse=False):
            full = f"{path}.{name}".removeprefix(".")
            scale = std.get(name, std.get(full))
            if name == "weight" and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                scale = 1 / math.sqrt(p[0].numel())
            elif isinstance(module, nn.Embedding):
                scale = 1.0
            if scale is not None:
                nn.init.normal_(p, 0, scale)
            squares[full] = (scale or 1.0) ** 2
    return squares


def real_kernels(build, x, width, seeds, std):
    """f f^T over the outputs and the tangent kernel of one output, by seed"""
    products, tangents = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = build(width).double()
        squares = drawn(net, std)
        f = net(x)
        f = f.reshape(-1, f.shape[-1])
        names, parameters = zip(*net.named_parameters(), strict=True)
        rows = []
        for value in f[:, 0]:
            slopes = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([math.sqrt(squares[n]) * g.reshape(-1) for n, g in zip(names, slopes, strict=True)]))
        rows = torch.stack(rows)
        products.append((f @ f.T / f.shape[1]).detach())
        tangents.append(rows @ rows.T)
    return torch.stack(products), torch.stack(tangents)


CASES = {
    "wide residual": (WideResidual, some(2, 2, 4, 4), {}),
    "concatenated": (Concatenated, some(2, 2, 4, 4), {}),
    "pooled": (Pooled, some(2, 2, 6, 6), {}),
    "dilated": (Dilated, some(2, 2, 8), {"bias": 0.4}),
    "recurrent": (Recurrent, some(3, 4, 3), {}),
    "gated": (Gated, some(3, 6), {}),
    "centred": (Centred, some(3, 6), {}),
    "chunked": (Chunked, some(3, 6), {}),
    "sums": (Sums, some(3, 6), {"bias": 0.3}),
    "post norm": (PostNorm, some(3, 6), {}),
    "heads": (Heads, torch.tensor([[0, 3, 3, 1, 6], [5, 3, 0, 2, 6]]), {"positions": 0.5}),
    "tied": (partial(Heads, tied=True), torch.tensor([[0, 3, 3, 1, 6], [5, 3, 0, 2, 6]]), {"positions": 0.5}),
    "joined": (Joined, some(3, 4, 3), {"first": 0.7}),
    "mixed": (Mixed, some(2, 4, 3), {}),
}
