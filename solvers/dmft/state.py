"""What a Sweep goes on from, as named tensors, so that a resumed one has the bits of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from solvers.dmft.neurons import Neurons
from solvers.dmft.sweep import Snapshot, Sweep
from solvers.running.integrator import State
from solvers.running.trajectory import Trajectory

# names in files, of what a step remembers of a tensor
_MOMENTA = {"learned": "learned_velocity", "parameter_": "momentum_"}


def state_of(sweep: Sweep, run: Trajectory) -> dict[str, Tensor]:
    """Parameters and velocities, bases, draws and snapshots of a run that ended; records are in its solution.

    Where processes share the neurons, all of them call this; the first gets the state of all neurons, the others an empty one.
    """
    shard, names = sweep.network.shard, sweep.network.names
    own = list(zip(names, run.state, strict=True))
    own += [(_momentum(name), v) for name, v in zip(names, run.memory, strict=False)]
    divided = {name: (tensor, -1) for name, tensor in own if _over_neurons(name)}
    whole = {name: tensor for name, tensor in own if not _over_neurons(name)}
    for name, part in sweep.growing().items():
        tensors = {name + end: tensor for end, tensor in part.tensors().items()}
        if isinstance(part, Neurons):
            whole |= tensors
        else:
            divided |= {key: (tensor, -1) for key, tensor in tensors.items()}
    for step, snapshot in run.captured.items():
        divided |= {f"snapshot_{step}_h{i}": (h, 0) for i, h in enumerate(snapshot.h)}
        divided |= {f"snapshot_{step}_phi": (snapshot.phi, 0), f"snapshot_{step}_g": (snapshot.g, 0)}
    gathered = {name: shard.gather(tensor, dim) for name, (tensor, dim) in divided.items() if tensor.numel()}
    kept = gathered | {name: tensor.cpu() for name, tensor in whole.items() if tensor.numel()}
    return kept if shard.ranks.first else {}


def restore(sweep: Sweep, kept: Mapping[str, Tensor]) -> tuple[State, State, dict[int, Snapshot]]:
    """Put a fresh sweep where `state_of` found one: its state, the velocities and the snapshots. ValueError for a state of another kind.

    Each process takes its part of the neurons: the number of processes may change, and all of them need the whole state.
    """
    if "parameter_w" not in kept:
        raise ValueError(
            "the solution keeps no state to go on from: solve with keep_state=True (an interrupted run keeps it)"
        )
    shard, names, like = sweep.network.shard, sweep.network.names, sweep.network.population.like

    def own(name: str) -> Tensor:
        """What belongs to this process of a tensor, in memory of its own"""
        if name.endswith("scales"):
            return kept.get(name, torch.zeros(len(sweep.network.layers), dtype=torch.float64)).clone()
        tensor = kept.get(name, like.new_empty(0, 0))
        return (shard.take(tensor, -1) if _over_neurons(name) else tensor).to(like.device, copy=True)

    for name, part in sweep.growing().items():
        tensors = {key.removeprefix(name): t for key, t in kept.items() if key == name or key.startswith(f"{name}_")}
        if not isinstance(part, Neurons):
            tensors = {end: shard.take(tensor, -1).to(like.device) for end, tensor in tensors.items()}
        part.restore(tensors)
    state, memory = list(map(own, names)), [_momentum(name) for name in names]
    moving = list(map(own, memory)) if "momentum_w" in kept else []
    for l, layer in enumerate(sweep.network.layers, 1):
        if f"layer{l}_acc" in kept:  # a file of an older version, which kept scale U + L^T F over the neurons
            over, scale = shard.take(kept[f"layer{l}_acc"], -1).to(like), float(kept["scales"][l - 1])
            state[l - 1] = layer.f.coefficients(over - scale * layer.u.rows)
        if f"layer{l}_velocity" in kept:
            moving[l - 1] = layer.f.coefficients(shard.take(kept[f"layer{l}_velocity"], -1).to(like))
    steps = sorted({int(name.split("_")[1]) for name in kept if name.startswith("snapshot_")})
    snapshots = {
        step: Snapshot(
            [kept[f"snapshot_{step}_h{i}"] for i in range(sweep.network.depth)],
            kept[f"snapshot_{step}_phi"],
            kept[f"snapshot_{step}_g"],
        ).over(lambda tensor: shard.take(tensor).to(like.device))
        for step in steps
    }
    return tuple(state), tuple(moving), snapshots


def _momentum(name: str) -> str:
    for of, called in _MOMENTA.items():
        if name.startswith(of):
            return called + name.removeprefix(of)
    return f"momentum_{name}"


def _over_neurons(name: str) -> bool:
    """Whether a tensor of the state is one of neurons, of which each process holds a part"""
    return name.startswith(("parameter_", "momentum_")) and not name.endswith(("_b", "_scales"))
