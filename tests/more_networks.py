"""Small networks that meet samples, tensors and weights in unusual ways."""

import torch
import torch.nn.functional as F
from torch import nn


class Normed(nn.Module):
    """Samples meet in the statistics of a batch; activations work in place"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = nn.Linear(64, n), nn.Linear(n, n), nn.Linear(n, 2, bias=False)
        self.norm = nn.BatchNorm1d(n, track_running_stats=False)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(F.silu(self.norm(self.read(x)), inplace=True))))


class InPlace(nn.Module):
    """Activations overwrite what they act on"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = nn.Linear(64, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, x):
        h = F.silu(self.read(x), inplace=True)
        return self.out(F.silu(self.mix(h), inplace=True))


class Odd(nn.Module):
    """Embeddings with padding, filters of several kinds, matrices of its own by three products, a weight that is met in two ways"""

    def __init__(self, n):
        super().__init__()
        self.tok = nn.Embedding(5, n, padding_idx=1)
        self.same = nn.Conv1d(n, 2 * n, 3, padding="same", dilation=2)
        self.wide = nn.Conv1d(2 * n, n, 2, stride=2, padding=1, padding_mode="circular")
        self.w, self.v = nn.Parameter(torch.empty(n, n)), nn.Parameter(torch.empty(n, n))
        self.gain, self.slope = nn.Parameter(torch.rand(n) + 0.5), nn.Parameter(torch.tensor(0.7))
        self.tied, self.out = nn.Linear(n, n), nn.Conv1d(n, 2, 2)

    def forward(self, x):
        h = self.wide(torch.tanh(self.same(self.tok(x).mT))).mT
        h = self.gain * torch.tanh(self.slope * h @ self.w) + torch.tanh(h) @ self.v.T
        h = torch.tanh(self.tied(h)) @ self.tied.weight
        return self.out(F.silu(h, inplace=True).mT).flatten(1)


class Other(nn.Module):
    """Samples on the second axis, or statistics over them behind a readout that starts at zero"""

    def __init__(self, n, meet):
        super().__init__()
        self.read, self.mix, self.out, self.meet = nn.Linear(8, n), nn.Linear(n, n), nn.Linear(n, 1), meet
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        h = torch.tanh(self.mix(torch.tanh(self.read(x.reshape(-1, 8, 8).transpose(0, 1)))))
        return self.out((h - h.mean(1, keepdim=True) if self.meet else h).mean(0))


class Seen(nn.Module):
    """As vision transformers begin: a token of its own and positions as raw parameters, gains in other shapes, lists of weights"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = nn.Conv2d(1, n, 4, stride=4), nn.Linear(n, n, bias=False), nn.Linear(n, 2)
        self.first, self.places = nn.Parameter(torch.ones(1, 1, n)), nn.Parameter(torch.randn(1, 5, n))
        self.gain, self.shift, self.many = (nn.Parameter(torch.rand(n)) for _ in range(3))
        self.slope, self.table = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.randn(9, n))
        self.norm, self.last = nn.RMSNorm(n), nn.GroupNorm(1, n)

    def forward(self, x):
        h = self.read(x) * self.gain[None, :, None, None] + self.shift.view(1, -1, 1, 1)
        h = torch.cat([self.first.expand(len(x), -1, -1), h.flatten(2).mT], 1) + self.places + self.table[:5]
        h = self.norm(h) * torch.exp(self.slope * self.many)
        h = h + self.last(torch.tanh(self.mix(h)).mT).mT
        return self.out(h[:, 0])


class Pooled(nn.Module):
    """Embeddings, a residual branch behind a layer norm, the mean over positions"""

    def __init__(self, n):
        super().__init__()
        self.tok, self.norm = nn.Embedding(5, n), nn.LayerNorm(n)
        self.mix, self.out = nn.Linear(n, n, bias=False), nn.Linear(n, 2, bias=False)

    def forward(self, x):
        h = self.tok(x)
        return self.out((h + torch.tanh(self.mix(self.norm(h)))).mean(1))


class Steps(nn.Module):
    """Outputs at each of three times: the first do not depend on later calls"""

    def __init__(self, n):
        super().__init__()
        self.read, self.again = nn.Linear(8, n, bias=False), nn.Linear(n, n, bias=False)
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x):
        h, found = 0.0, []
        for row in x.reshape(-1, 8, 8)[:, 3:6].unbind(1):
            h = self.read(row) + self.again(torch.tanh(self.read(row) + h))
            found.append(self.out(h))
        return torch.stack(found, 1)


def tokens():
    return torch.tensor([[0, 1, 2, 3, 4, 1], [2, 2, 1, 0, 3, 4], [4, 3, 3, 1, 1, 0]])
