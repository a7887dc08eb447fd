"""Whether the samples of a pass meet in a network, as in norms over a batch: seen on a few at a small width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanfield.network.making import Build, made

_FEW, _WIDTH = 3, 48


def samples_meet(build: Build, x: Tensor) -> bool:
    """Whether the outputs of a sample of x (P, ...) depend on the others beside it, or the network takes no sample alone

    Its parameters are drawn here, since their author's start may hide what the network does.
    """
    net = made(build, _WIDTH, least=2**62).to(torch.float64)
    g, some = torch.Generator().manual_seed(0), x[:_FEW].cpu()
    some = some.to(torch.float64) if some.is_floating_point() else some
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 1 / math.sqrt(_WIDTH), generator=g)
        try:
            alone = torch.cat([net(one[None]) for one in some])
        except (RuntimeError, ValueError, IndexError):
            return True
        f = net(some)
    return alone.shape != f.shape or not torch.allclose(alone, f, rtol=1e-9, atol=1e-9 * float(f.abs().max()))
