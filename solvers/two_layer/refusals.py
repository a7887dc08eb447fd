"""What WassersteinFlow refuses of problems that ask for more than equation 9: settings by layer, masses, readouts at their optimum."""

from __future__ import annotations

from meanfield.measures.particle_measure import ParticleMeasure
from meanfield.problem.problem import Problem
from meanfield.problem.stream import Stream
from meanfield.problem.two_layers import two_layers
from solvers.running.sharding import current


def must_suit_layers(problem: Problem, initial: str | ParticleMeasure) -> None:
    """ValueError for a perceptron with settings by layer that particles cannot have"""
    network = two_layers(problem)
    if problem.in_plane.frozen != "none":
        raise ValueError(
            f"the scaling {problem.in_plane.name!r} keeps a part of the outputs as it starts, which is known without settings by "
            "layer: received an Architecture; take mf.mean_field(gamma0), or mf.Network alone"
        )
    given = "a given measure" if isinstance(initial, ParticleMeasure) else initial
    if not network.gaussian and given not in ("sobol", "iid"):
        raise ValueError(
            f"initial={given!r} is a start of its own, which no initial_law and no readout at 0 changes: received "
            f"{', '.join(law.name for law in network.laws)} for readouts, input weights and biases; take initial='sobol'"
        )


def must_let_masses_move(problem: Problem, mass_rate: float, births: float | None) -> None:
    """ValueError for what masses do not follow"""
    training = problem.training
    if not mass_rate:
        raise ValueError(
            f"births={births or 0:g} halve what grows heavy, and without mass_rate no mass moves: give mass_rate=1.0, or leave births out"
        )
    if training.temperature:
        raise ValueError(
            f"with mass_rate={mass_rate:g} noise makes of the loss a free energy, of which masses would need the density at each "
            f"particle, and a cloud has none: received temperature={training.temperature:g}; leave one of them out"
        )
    if other := training.other_than("optimiser", "batch_size", "schedule", "warmup", "momentum", "weight_decay"):
        raise ValueError(
            f"with mass_rate={mass_rate:g} masses follow gradients of the loss alone: received {other}; leave it out"
        )
    if births is not None and (training.momentum or training.optimiser == "gradient_flow"):
        given = f"momentum={training.momentum:g}" if training.momentum else "optimiser='gradient_flow'"
        raise ValueError(
            f"births={births:g} halve particles between two steps of descent without momentum, which the new ones would lack: received "
            f"{given}; leave one of them out"
        )
    if not problem.in_plane.eta_a or not two_layers(problem).rates[0]:
        still = "eta_a=0" if not problem.in_plane.eta_a else "a frozen readout"
        raise ValueError(
            f"mass_rate is in units of the readout's rate: received {still}; take transport=False for masses alone"
        )
    if current().count > 1:
        raise ValueError(f"masses that move are kept by one process: received {current().count} processes")


def must_have_a_penalty(problem: Problem, variation: float, ridge: float | None) -> None:
    """ValueError for what a penalty on the total variation does not go with"""
    training = problem.training
    other = training.other_than("batch_size", "schedule", "warmup", "momentum", "weight_decay", "clip")
    wrong = {
        other: bool(other),
        f"readout_ridge={ridge or 0:g}, which has one of its own": ridge is not None,
        "a readout that does not move": not problem.in_plane.eta_a or not two_layers(problem).rates[0],
    }
    if found := next((what for what, there in wrong.items() if there), ""):
        raise ValueError(
            f"variation={variation:g} shortens readouts after each step of gradient_descent: received {found}; leave one of them out"
        )


def must_let_readouts_settle(problem: Problem, ridge: float, mass_rate: float) -> None:
    """ValueError for what a readout at its optimum does not follow"""
    other = problem.training.other_than("optimiser", "schedule", "warmup", "momentum", "weight_decay", "clip")
    network = two_layers(problem)
    rates = network.rates
    wrong = {
        f"the loss {problem.loss_function.name!r}": problem.loss_function.name != "squared",
        other: bool(other),
        "a stream of fresh samples": isinstance(problem.data, Stream),
        f"the scaling {problem.in_plane.name!r}, which keeps a part of the outputs": problem.in_plane.frozen != "none",
        f"mass_rate={mass_rate:g}": mass_rate > 0,
        "a readout that starts at 0": network.laws[0].zero,
        "a rate of the readout's own": rates[0] not in (0.0, 1.0),
        "a frozen readout": not (problem.in_plane.eta_a and rates[0] and rates[2]),
        f"{current().count} processes": current().count > 1,
    }
    if found := next((what for what, there in wrong.items() if there), ""):
        raise ValueError(
            f"readout_ridge={ridge:g} takes the readout of ridge regression on all samples, of the squared loss: received {found}; leave "
            "it out, or train the readout at a high rate, mf.Architecture(network, rate={'readout': 30.0})"
        )
