"""What a LimitNetwork goes on from, as named tensors, so that a resumed sweep has the bits of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from solvers.inputs import EVERYWHERE
from solvers.limit_flow import known_draws, matrices
from solvers.limit_network import LimitNetwork, LimitPass
from solvers.neurons import Neurons


def state_of(
    network: LimitNetwork, captured: Mapping[int, tuple[list[Tensor], Tensor, Tensor]], passed: LimitPass | None
) -> dict[str, Tensor]:
    """Parameters, bases, draws, records, snapshots and the pass over all points that belongs to them, if there is one.

    Later passes leave it as it is: bases grow by rows. Where processes share the neurons, all of them call this; the first gets the
    state of all neurons, the others an empty one.
    """
    state = {f"parameter_{name}": p for name, p in network.parameters.items()}
    state |= {f"momentum_{name}": v for name, v in network.momentum.items()}
    state |= {name: rows.rows for name, rows in matrices(network)}
    for l, layer in enumerate(network.layers, 1):
        state |= {f"learned{l}": layer.learned, f"learned_velocity{l}": layer.velocity}
    state["scales"] = torch.tensor([layer.scale for layer in network.layers], dtype=torch.float64)
    for l, neurons in enumerate(_distinct(network)):
        state[f"draws{l}_used"] = torch.tensor([neurons.used])
        if neurons.generator is not None:
            state[f"draws{l}_generator"] = neurons.generator.get_state()
    for i, known in enumerate(known_draws(network)):
        for k, waiting in enumerate(known.waiting):
            state[f"known{i}_waiting{k}"] = waiting
    state |= {f"record_{name}": network.padded(name) for name in network.records}
    if passed is not None:
        state["pass_f"] = passed.f
        for name in ("h", "c", "d", "g"):
            state |= {f"pass_{name}{i}": field for i, field in enumerate(getattr(passed, name))}
    for step, (h, phi, g) in captured.items():
        state |= {f"snapshot_{step}_h{i}": field for i, field in enumerate(h)}
        state |= {f"snapshot_{step}_phi": phi, f"snapshot_{step}_g": g}
    shard = network.shard
    state = {name: tensor for name, tensor in state.items() if tensor.numel()}
    if not shard.whole:
        state = {
            name: tensor if (dim := _over_neurons(name)) is None else shard.gather(tensor, dim)
            for name, tensor in state.items()
        }
    return {name: tensor.cpu() for name, tensor in state.items()} if shard.ranks.first else {}


def _over_neurons(name: str) -> int | None:
    """The dimension of a state's tensor that counts neurons, None for one that all processes share"""
    if name.startswith("snapshot_"):
        return 0
    fields = ("layer", "known", "last_features", "first_gradients", "pass_h", "pass_g", "parameter_", "momentum_")
    return -1 if name.startswith(fields) and name not in ("parameter_b", "momentum_b") else None


def restore(
    network: LimitNetwork, state: Mapping[str, Tensor]
) -> tuple[dict[int, tuple[list[Tensor], Tensor, Tensor]], LimitPass | None]:
    """Put a fresh network where `state_of` found one; returns snapshots and the pass. ValueError for a state of another kind.

    Each process takes its part of the neurons: the number of processes may change, and all of them need the whole state.
    """
    if "parameter_w" not in state:
        raise ValueError(
            "the solution keeps no state to go on from: solve with keep_state=True (an interrupted run keeps it)"
        )
    here = {
        name: (tensor if (dim := _over_neurons(name)) is None else network.shard.take(tensor, dim)).to(
            network.solver.device
        )
        for name, tensor in state.items()
        if "generator" not in name
    }
    network.parameters |= _with(here, "parameter_")
    network.momentum = _with(here, "momentum_")
    for name, rows in matrices(network):
        if name in here:
            rows.append(here[name])
    for layer, scale in zip(network.layers, state.get("scales", torch.empty(0)).tolist(), strict=True):
        layer.scale = scale
    for l, layer in enumerate(network.layers, 1):
        layer.learned = here.get(f"learned{l}", layer.learned)
        layer.velocity = here.get(f"learned_velocity{l}", layer.velocity)
        if f"layer{l}_acc" in here:  # a file of an older version, which kept scale U + learned^T F over the neurons
            layer.learned = layer.f.coefficients(here[f"layer{l}_acc"] - layer.scale * layer.u.rows)
        if f"layer{l}_velocity" in here:
            layer.velocity = layer.f.coefficients(here[f"layer{l}_velocity"])
    for l, neurons in enumerate(_distinct(network)):
        neurons.used = int(state[f"draws{l}_used"])
        if neurons.generator is not None:
            neurons.generator.set_state(state[f"draws{l}_generator"])
    for i, known in enumerate(known_draws(network)):
        known.waiting = _listed(here, f"known{i}_waiting")
    network.records = {name: list(c.cpu()) for name, c in _with(here, "record_").items()}
    network.balanced = True
    steps = sorted({int(name.split("_")[1]) for name in here if name.startswith("snapshot_")})
    snapshots = {
        step: (
            _listed(here, f"snapshot_{step}_h"),
            here[f"snapshot_{step}_phi"],
            here[f"snapshot_{step}_g"],
        )
        for step in steps
    }
    return snapshots, _pass_of(network, here) if "pass_f" in here else None


def _pass_of(network: LimitNetwork, state: Mapping[str, Tensor]) -> LimitPass:
    h, c, d, g = (_listed(state, f"pass_{name}") for name in "hcdg")
    return LimitPass(state["pass_f"], EVERYWHERE, network.train, h, [network.act.phi(field) for field in h], c, g, d)


def _distinct(network: LimitNetwork) -> list[Neurons]:
    return list(dict.fromkeys(network.neurons))


def _with(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t.clone() for name, t in state.items() if name.startswith(prefix)}


def _listed(state: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    found = []
    while (name := f"{prefix}{len(found)}") in state:
        found.append(state[name])
    return found
