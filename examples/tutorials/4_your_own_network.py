r"""
Your own PyTorch network
========================

Limits are not for textbook networks alone. Whatever you write as a ``torch.nn.Module`` of a width :math:`n` has one, if it is written so
that it *can* have one. This lesson takes a small network with a gate, makes two mistakes that are easily made, and shows how the library
tells.
"""

# %%
# A network is a function of its width
# ------------------------------------
# The class below is ordinary PyTorch. Its constructor takes the width ``n``; what should grow with it is written with ``n``. A *gate*,
# the sigmoid of a score, decides for each image how much of the first layer passes on:

import textwrap

import torch
from torch import nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, coordinate_check

data = mf.digits(classes=(3, 8), n_train=16, n_test=32)
training = mf.Training(learning_rate=0.1, steps=30)


class Gated(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.read = nn.Linear(64, n)  # 64 pixels to n neurons
        self.query, self.key = nn.Linear(n, n), nn.Linear(n, n)
        self.out = nn.Linear(n, 1)

    def score(self, q, k):
        return (q * k).sum(-1, keepdim=True)

    def forward(self, x):
        h = torch.tanh(self.read(x))
        gate = torch.sigmoid(self.score(self.query(h), self.key(h)))
        return self.out(h * gate)


# %%
# You do not choose how weights start and how fast they learn: that is what the *scaling* is for. From which axes of which parameters grow
# with ``n`` the library knows what each is (it builds the network at a few widths and looks), and gives it its multiplier and its
# learning rate.
#
# First mistake: a sum over neurons
# ---------------------------------
# The score sums ``n`` products. Twice the width, twice the score: at large widths the gate is always fully open or closed. Such a network
# has no limit, and the problem is refused before anything is computed:

try:
    mf.Problem(data, Gated, mf.mean_field(gamma0=1.0), training)
except ValueError as refused:
    print(textwrap.fill(str(refused), 90))

# %%
# Second mistake: a root where there should be none
# -------------------------------------------------
# Attention in transformers divides such scores by :math:`\sqrt n`. That is right for random weights, and wrong for trained ones: as the
# network learns, ``query`` and ``key`` become correlated, and the score grows like :math:`\sqrt n` again. A look at the code does not
# show it, so it is not refused, but :func:`~solvers.coordinate_check` finds it. It trains the network at several widths for a few steps
# and fits, for everything that enters or leaves a layer, the power of the width it goes with:


class Rooted(Gated):
    def score(self, q, k):
        return (q * k).sum(-1, keepdim=True) / q.shape[-1] ** 0.5


print(coordinate_check(mf.Problem(data, Rooted, mf.mean_field(gamma0=1.0), training)))

# %%
# Each row is something that enters or leaves a layer: its size (*field*), what training has moved it by (*change*), and the same of
# gradients. Below each step stands its measured power of the width, 0 for what stays of order 1; *expected* is what the scaling implies;
# *S to 2 S* is the power with which the limit itself goes when twice as many neurons are sampled. Rows marked with an arrow do not go as
# they should. What a score spoils spreads: since the gate acts on all that follows and, through its gradients, on all before, nearly every
# layer is named, and the layers around the score first of all deserve a look.
#
# As it should be
# ---------------
# With a mean over neurons instead of a sum, the score is an average like all else:


class Net(Gated):
    def score(self, q, k):
        return (q * k).mean(-1, keepdim=True)


problem = mf.Problem(data, Net, mf.mean_field(gamma0=1.0), training)
print(coordinate_check(problem))

# %%
# Its limit, and networks of three widths beside it. The solver runs *your* ``forward``, with a stand-in for each infinite matrix:

limit = CausalDMFT(samples=2048, groups=4)(problem)
nets = [net for width in (32, 128, 512) for net in FiniteWidth(width, dtype="float32").ensemble(problem, seeds=8)]
mf.plot.loss(nets, limit, test=True)

# %%
# Kernels have the names of your layers: ``Phi[key]`` is the kernel of what enters ``key``, ``G[read]`` that of the gradients at what
# leaves ``read``.

compared = ("f", "Phi[key]", "Phi[out]", "tangent_kernel")
report = mf.deviation(nets, limit, names=compared)
print(report)
mf.plot.deviation(report, compared)

# %%
# **Try it yourself.** Add ``nn.LayerNorm(n)`` after ``read``, or a residual branch. Convolutions, embeddings, attention and recurrent
# weights go the same way: :doc:`/networks` says what can be written, and what instead of the rest.
