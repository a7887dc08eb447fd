"""What a Sweep goes on from, as named tensors, so that a resumed one has the bits of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.dmft.module_sweep import ModuleSweep
from solvers.dmft.neurons import Neurons
from solvers.dmft.sweep import Sweep
from solvers.running.integrator import State
from solvers.running.trajectory import Trajectory

# names in files, of what a step remembers of a tensor
_MOMENTA = {"learned": "learned_velocity", "parameter_": "momentum_"}


def state_of(sweep: Sweep | ModuleSweep, run: Trajectory) -> dict[str, Tensor]:
    """Parameters and velocities, bases, draws and snapshots of a run that ended; records are in its solution.

    Where processes share the neurons, all of them call this; the first gets the state of all neurons, the others an empty one.
    """
    shard, names = sweep.shard, sweep.names
    own = list(zip(names, run.state, strict=True))
    own += list(zip((name for group in _remembered(names) for name in group), run.memory, strict=False))
    divided = {name: (tensor, -1) for name, tensor in own if _over_neurons(name)}
    whole = {name: tensor for name, tensor in own if not _over_neurons(name)}
    for name, part in sweep.growing().items():
        tensors = {name + end: tensor for end, tensor in part.tensors().items()}
        if isinstance(part, Neurons):
            whole |= tensors
        else:
            divided |= {key: (tensor, -1) for key, tensor in tensors.items()}
    for step, snapshot in run.captured.items():
        divided |= {f"snapshot_{step}_{name}": (tensor, 0) for name, tensor in sweep.named(snapshot).items()}
    gathered = {name: shard.gather(tensor, dim) for name, (tensor, dim) in divided.items() if tensor.numel()}
    kept = gathered | {name: tensor.cpu() for name, tensor in whole.items() if tensor.numel()}
    return kept if shard.ranks.first else {}


def restore(sweep: Sweep | ModuleSweep, kept: Mapping[str, Tensor]) -> tuple[State, State, dict[int, Any]]:
    """Put a fresh sweep where `state_of` found one: its state, the velocities and the snapshots. ValueError for a state of another kind.

    Each process takes its part of the neurons: the number of processes may change, and all of them need the whole state.
    """
    if not kept.keys() & set(sweep.names):
        raise ValueError(
            "the solution keeps no state to go on from: solve with keep_state=True (an interrupted run keeps it)"
        )
    shard, names, like = sweep.shard, sweep.names, sweep.population.like

    def own(name: str) -> Tensor:
        """What belongs to this process of a tensor, in memory of its own"""
        if name.endswith("scales"):
            return kept.get(name, torch.zeros(sum(n.startswith("learned") for n in names), dtype=torch.float64)).clone()
        tensor = kept.get(name, like.new_empty(0, 0))
        return (shard.take(tensor, -1) if _over_neurons(name) else tensor).to(like.device, copy=True)

    for name, part in sweep.growing().items():
        tensors = {key.removeprefix(name): t for key, t in kept.items() if key == name or key.startswith(f"{name}_")}
        if not isinstance(part, Neurons):
            tensors = {end: shard.take(tensor, -1).to(like.device) for end, tensor in tensors.items()}
        part.restore(tensors)
    state, memory = list(map(own, names)), _remembered(names)
    moving = [
        own(name)
        for group in memory
        if any(not name.startswith("learned") for name in kept.keys() & set(group))
        for name in group
    ]
    for l, layer in enumerate(sweep.network.layers if isinstance(sweep, Sweep) else (), 1):
        if f"layer{l}_acc" in kept:  # a file of an older version, which kept scale U + L^T F over the neurons
            over, scale = shard.take(kept[f"layer{l}_acc"], -1).to(like), float(kept["scales"][l - 1])
            state[l - 1] = layer.f.coefficients(over - scale * layer.u.rows)
        if f"layer{l}_velocity" in kept:
            moving[l - 1] = layer.f.coefficients(shard.take(kept[f"layer{l}_velocity"], -1).to(like))
    steps = sorted({int(name.split("_")[1]) for name in kept if name.startswith("snapshot_")})

    def snapshot(start: str) -> Any:
        tensors = {
            name.removeprefix(start): shard.take(t).to(like.device)
            for name, t in kept.items()
            if name.startswith(start)
        }
        return sweep.snapshot(tensors)

    return tuple(state), tuple(moving), {step: snapshot(f"snapshot_{step}_") for step in steps}


def _remembered(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a step remembers of the state's tensors is called so: first what replaces the gradient, then averaged squares"""
    return [_momentum(name) for name in names], [f"square_{name}" for name in names]


def _momentum(name: str) -> str:
    for of, called in _MOMENTA.items():
        if name.startswith(of):
            return called + name.removeprefix(of)
    return f"momentum_{name}"


def _over_neurons(name: str) -> bool:
    """Whether a tensor of the state is one of neurons, of which each process holds a part"""
    return name.startswith(("parameter_", "momentum_", "square_parameter_")) and not name.endswith(("_b", "_scales"))
