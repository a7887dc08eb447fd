"""Births and deaths of particles whose masses move (equation 126)."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from solvers.running.integrator import State

_LIGHT = 0.1  # of the mean mass, below which a particle stands for next to nothing


def reborn(state: State, spread: float, moving: tuple[bool, bool], generator: torch.Generator) -> State:
    """The state (a, w, b, log m) in its memory, of which one light particle has inherited the mass of all light ones, and the heaviest ones
    are halved into the places of the others, the halves apart by a normal distance of this spread in what is `moving` of a and w.
    """
    a, w, b, log = state
    m = log.double().softmax(0).cpu()
    light = (m < _LIGHT / len(m)).nonzero()[:, 0]
    if len(light) < 2:
        return state
    shares = m[light].cumsum(0)
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * shares[-1]
    heir = int(torch.searchsorted(shares, drawn).clamp(max=len(light) - 1))
    free = torch.cat([light[:heir], light[heir + 1 :]])
    m[light[heir]], m[free] = float(shares[-1]), 0.0
    sources, generations = _halved(m, free.tolist())
    for tensor, moves in zip((a, w), moving, strict=True):
        apart = tensor.new_zeros(len(free), tensor.shape[1])
        if moves and spread:
            drawn = torch.randn(apart.shape, generator=generator, dtype=torch.float64)
            apart = spread * drawn.to(tensor)
        for g in range(int(generations.max()) + 1):  # the sources of one generation are different ones
            now = generations == g
            to, of, by = free[now].to(tensor.device), sources[now].to(tensor.device), apart[now.to(tensor.device)]
            tensor[to] = tensor[of] - by
            tensor[of] += by
    return a, w, b, m.clamp(min=torch.finfo(log.dtype).tiny).log().to(log)


def _halved(m: Tensor, free: list[int]) -> tuple[Tensor, Tensor]:
    """(n,) into which of the particles each free place halves the heaviest there is, m in place, and how often that was halved before"""
    masses = m.tolist()
    heap = [(-mass, i) for i, mass in enumerate(masses) if mass > 0]
    heapq.heapify(heap)
    age, sources, generations = dict.fromkeys(range(len(masses)), 0), [], []
    for place in free:
        mass, i = heap[0]
        heapq.heapreplace(heap, (mass / 2, i))
        heapq.heappush(heap, (mass / 2, place))
        sources.append(i)
        generations.append(age[i])
        masses[i] = masses[place] = -mass / 2
        age[i] = age[place] = age[i] + 1
    m.copy_(torch.tensor(masses, dtype=torch.float64))
    return torch.tensor(sources), torch.tensor(generations)
