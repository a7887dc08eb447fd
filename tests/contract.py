"""The solvers, one row each: what every test of the contract is tried with. A new solver adds its row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import meanfield as mf
from solvers import (
    CausalDMFT,
    FiniteWidth,
    FixedPointDMFT,
    InfiniteLogitsLimit,
    RevealedWidth,
    TangentKernelLimit,
    WassersteinFlow,
)
from solvers.running.solver import Solver
from tests.any_networks import Residual

DATA = mf.digits(n_train=4, n_test=2)
MEAN_FIELD = mf.Problem(DATA, training=mf.Training(0.2, 6))
DEEP = replace(MEAN_FIELD, network=mf.Network(2))
NTK = replace(DEEP, scaling=mf.ntk())
LOGITS = replace(MEAN_FIELD, scaling=mf.default(4), loss="logistic")
NOISY = replace(MEAN_FIELD.training, temperature=0.3, weight_decay=0.3)
FLOW = mf.Training(0.2, 6, optimiser="gradient_flow")


@dataclass(frozen=True)
class Row:
    """A solver, a problem of six steps that it takes, the same on the command line, and one that it refuses with these words.

    large: a setting that no memory holds, if there is one. float32, seldom: how far f may be from that in float64, and from that which is
    recorded at every step, relative. without_loop: why it does not step through time.
    """

    solver: Solver
    problem: mf.Problem
    flags: str
    refused: mf.Problem
    why: str
    large: dict[str, int] | None
    float32: float = 1e-5
    seldom: float = 1e-13  # training and test samples are summed together where a step is recorded
    without_loop: str = ""


TABLE = {
    "flow": Row(
        WassersteinFlow(16),
        MEAN_FIELD,
        "--solver.particles 16",
        DEEP,
        "CausalDMFT takes any depth",
        {"particles": 2**45},
    ),
    "dmft": Row(
        CausalDMFT(64),
        DEEP,
        "--solver.samples 64 --network.depth 2",
        NTK,
        "has no limit as a flow of measures",
        {"samples": 2**45},
        float32=1e-2,  # its tolerance, below which directions are dropped
        seldom=1e-2,  # recorded passes show it other directions
    ),
    "revealed": Row(
        RevealedWidth(64),
        DEEP,
        "--solver.width 64 --network.depth 2",
        NTK,
        "has no limit as a flow of measures",
        {"width": 2**45},
        float32=1e-2,  # its tolerance
        seldom=3e-2,  # recorded passes show it other directions, and so it draws others for what is dropped
    ),
    "fixedpoint": Row(
        FixedPointDMFT(256),
        DEEP,
        "--solver.samples 256 --network.depth 2",
        replace(DEEP, training=FLOW),
        "for gradient_flow take a small learning_rate",
        {"samples": 2**45},
        float32=1e-3,  # its tolerance
        seldom=0,
        without_loop="it iterates over whole windows",
    ),
    "lazy": Row(
        TangentKernelLimit(),
        NTK,
        "--network.depth 2 --scaling ntk",
        LOGITS,
        "has no lazy limit",
        None,
    ),
    "logits": Row(
        InfiniteLogitsLimit(16),
        LOGITS,
        "--solver.particles 16 --scaling default --reference-width 4 --loss logistic",
        replace(LOGITS, training=FLOW),
        "so there is no gradient flow",
        {"particles": 2**45},
    ),
    "adam dmft": Row(
        CausalDMFT(256),
        replace(
            DEEP,
            training=replace(DEEP.training, learning_rate=0.05, optimiser="adam", schedule="inverse_sqrt", warmup=2),
        ),
        "--solver.samples 256 --network.depth 2 --training.learning-rate 0.05 --training.optimiser adam --training.schedule inverse_sqrt "
        "--training.warmup 2",
        replace(NTK, training=replace(NTK.training, optimiser="adam")),
        "has no limit as a flow of measures",
        {"samples": 2**45},
        float32=3e-2,  # its tolerance, and signs of gradients that are almost 0
        seldom=3e-2,
    ),
    "noisy dmft": Row(
        CausalDMFT(512),
        replace(DEEP, training=NOISY),
        "--solver.samples 512 --network.depth 2 --training.temperature 0.3 --training.weight-decay 0.3",
        replace(NTK, training=NOISY),
        "has no limit as a flow of measures",
        {"samples": 2**45},
        float32=3e-2,  # its tolerance
        seldom=0.3,  # recorded passes show it other directions, and so it draws others
    ),
    "module dmft": Row(
        CausalDMFT(128),
        replace(MEAN_FIELD, network=Residual),
        "--solver.samples 128 --network tests.any_networks:Residual",
        replace(MEAN_FIELD, network=Residual, scaling=mf.ntk()),
        "has no limit as a flow of measures",
        {"samples": 2**45},
        seldom=0.3,  # recorded passes show it test points, and so it draws others: twice the error over seeds
    ),
    "module net": Row(
        FiniteWidth(8),
        replace(MEAN_FIELD, network=Residual),
        "--width 8 --network tests.any_networks:Residual",
        replace(MEAN_FIELD, network=Residual, scaling=mf.ic_mean_field(1.0, 64)),
        "keeps a part of the outputs as it starts",
        {"width": 2**25},
    ),
    "adam flow": Row(
        WassersteinFlow(16),
        replace(MEAN_FIELD, training=replace(MEAN_FIELD.training, learning_rate=0.05, optimiser="adam", clip=0.1)),
        "--solver.particles 16 --training.learning-rate 0.05 --training.optimiser adam --training.clip 0.1",
        DEEP,
        "CausalDMFT takes any depth",
        {"particles": 2**45},
        float32=1e-4,
    ),
    "noisy net": Row(
        FiniteWidth(8),
        replace(DEEP, training=replace(NOISY, schedule="inverse_sqrt", momentum=0.5)),
        "--width 8 --network.depth 2 --training.temperature 0.3 --training.weight-decay 0.3 --training.momentum 0.5 "
        "--training.schedule inverse_sqrt",
        replace(LOGITS, loss=LOGITS.loss_function.at_infinite_logits()),
        "a network of finite width has finite logits",
        {"width": 2**25},
    ),
    "net": Row(
        FiniteWidth(8),
        MEAN_FIELD,
        "--width 8",
        replace(LOGITS, loss=LOGITS.loss_function.at_infinite_logits()),
        "a network of finite width has finite logits",
        {"width": 2**25},
    ),
}
