"""Small networks of several kinds, as their authors would write them, and data for them."""

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class Perceptron(nn.Module):
    def __init__(self, n, inputs=3, outputs=1, depth=2, phi=torch.tanh, bias=False):
        super().__init__()
        self.read = nn.Linear(inputs, n, bias=bias)
        self.mix = nn.ModuleList(nn.Linear(n, n, bias=bias) for _ in range(depth - 1))
        self.out = nn.Linear(n, outputs, bias=bias)
        self.phi = phi

    def forward(self, x):
        h = self.phi(self.read(x))
        for layer in self.mix:
            h = self.phi(layer(h))
        return self.out(h)


class Convolutional(nn.Module):
    """Two convolutions with stride, global average pooling."""

    def __init__(self, n, phi=torch.relu):
        super().__init__()
        self.read = nn.Conv2d(1, n, 2, stride=2, bias=False)
        self.mix = nn.Conv2d(n, n, 3, stride=2, padding=1, bias=False)
        self.out, self.phi = nn.Linear(n, 1, bias=False), phi

    def forward(self, x):
        return self.out(self.phi(self.mix(self.phi(self.read(x)))).mean((2, 3)))


class Filtered(nn.Module):
    """Linear: an input layer at each position, a filter, the mean over positions."""

    def __init__(self, n, **geometry):
        super().__init__()
        self.read, self.mix = nn.Conv1d(2, n, 1, bias=False), nn.Conv1d(n, n, bias=False, **geometry)
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x):
        return self.out(self.mix(self.read(x)).mean(2))


class Recurrent(nn.Module):
    """The same matrix at four times."""

    def __init__(self, n):
        super().__init__()
        self.read, self.again = nn.Linear(8, n, bias=False), nn.Linear(n, n, bias=False)
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x):
        rows = x.reshape(-1, 8, 8)
        h = torch.tanh(self.read(rows[:, 3]))
        for t in range(4, 7):
            h = torch.tanh(self.read(rows[:, t]) + self.again(h))
        return self.out(h)


class Residual(nn.Module):
    """Residual branches of twice the width behind layer norms."""

    def __init__(self, n, blocks=2):
        super().__init__()
        self.read = nn.Linear(64, n)
        self.norms = nn.ModuleList(nn.LayerNorm(n) for _ in range(blocks + 1))
        self.up = nn.ModuleList(nn.Linear(n, 2 * n) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(2 * n, n) for _ in range(blocks))
        self.out = nn.Linear(n, 1)
        for layer in [self.read, *self.up, *self.down, self.out]:
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        h = self.read(x.flatten(1))
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            h = h + down(F.gelu(up(norm(h))))
        return self.out(self.norms[-1](h))


class Block(nn.Module):
    """Causal attention with logits q.k/n and an MLP of four times the width."""

    def __init__(self, n):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.q, self.k, self.v, self.o = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(n, 4 * n, bias=False), nn.Linear(4 * n, n, bias=False)

    def forward(self, h):
        u = self.ln1(h)
        q, k, v = self.q(u), self.k(u), self.v(u)
        a = q @ k.transpose(1, 2) * (4.0 / q.shape[-1])
        a = a.masked_fill(torch.ones(a.shape[-2:], dtype=torch.bool).triu(1), -math.inf).softmax(-1)
        h = h + self.o(a @ v)
        return h + self.down(F.gelu(self.up(self.ln2(h))))


class Language(nn.Module):
    def __init__(self, n, vocabulary=13, context=8):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocabulary, n), nn.Embedding(context, n)
        self.block, self.ln, self.head = Block(n), nn.LayerNorm(n), nn.Linear(n, vocabulary, bias=False)

    def forward(self, x):
        return self.head(self.ln(self.block(self.tok(x) + self.pos(torch.arange(x.shape[1])))))


def digits(samples, image=False):
    """Threes and eights as +1 and -1, centred, of norm sqrt(64)"""
    data = load_digits()
    keep = (data.target == 3) | (data.target == 8)
    x, t = torch.tensor(data.data[keep]) / 16, torch.tensor(data.target[keep])
    x = x - x.mean(0)
    x = x / x.norm(dim=1, keepdim=True) * 8
    y = torch.where(t == 3, 1.0, -1.0).double()[:, None]
    return (x.reshape(-1, 1, 8, 8) if image else x)[:samples], y[:samples]


def text():
    """Tokens (6, 8) of a sentence and the one-hot next ones (6, 8, 13)"""
    sentence = "the cat sat on the mat and the dog sat on the log"
    letters = sorted(set(sentence))
    ids = torch.tensor([letters.index(c) for c in sentence])
    x = torch.stack([ids[i : i + 8] for i in range(0, 40, 7)])
    y = torch.stack([ids[i + 1 : i + 9] for i in range(0, 40, 7)])
    return x, F.one_hot(y, len(letters)).double()
