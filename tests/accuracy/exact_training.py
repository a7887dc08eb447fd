"""Ways of training beside exact answers, and what masses that move can do (equations 2, 112 to 116, 125 to 127)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, WassersteinFlow, gibbs_fixed_point

SEEDS = 16


def exact_training() -> None:
    """What training in closed form, other solvers and the bits of other settings say of momentum, decay, noise, Adam and schedules"""
    print("| what | by | distance | noise |\n|---|---|---|---|")
    for what, by, off, noise in (*_moments(), *_no_gradients(), *_gibbs(), *_same()):
        print(f"| {what} | {by} | {off:.2g} | {f'{noise:.2g}' if noise else 'none'} |", flush=True)
        assert off <= (4 * noise if noise else 1e-9), (what, by, off, noise)


Row = tuple[str, str, float, float]


def _one_sample(activation: str, training: mf.Training) -> mf.Problem:
    data = mf.Dataset(torch.full((1, 1), 1.3, dtype=torch.float64), torch.full((1, 1), 0.9, dtype=torch.float64))
    return mf.Problem(data, mf.Network(1, activation), mf.mean_field(0.6), training)


def _moments() -> Iterator[Row]:
    """f(T) at P = D = 1 of a linear network, whose second moments of (a, w) and their momenta close (2 and 113)"""
    for tau in (0.0, 0.4):
        training = mf.Training(0.15, 12, momentum=0.5, weight_decay=0.5, temperature=tau)
        x, y, gamma, eta, keep, beta = 1.3, 0.9, 0.6, 0.15, 1 - 0.15 * 0.5, 0.5
        moments, added = np.diag([1.0, 1.0, 0.0, 0.0]), np.diag([2 * eta * tau, 2 * eta * tau, 0.0, 0.0])
        for _ in range(12):
            c = gamma * x * (y - moments[0, 1] * x / gamma)
            velocity = np.array([[0, c, beta, 0], [c, 0, 0, beta]])  # of a and w: what is remembered of the next step
            step = np.vstack([keep * np.eye(2, 4) + eta * velocity, velocity])
            moments = step @ moments @ step.T + added
        exact, problem = moments[0, 1] * x / gamma, _one_sample("linear", training)
        what = "linear, momentum and decay" + (", temperature 0.4" if tau else "")
        solvers = {"particles, 2^14": WassersteinFlow(2**14), "sweep, 2^12": CausalDMFT(2**12)}
        solvers |= {"networks of 1024": FiniteWidth(1024, snapshots=())}
        if not tau:
            solvers = {"quadrature": WassersteinFlow(2**14, initial="gauss_hermite")}
        for by, solver in solvers.items():
            if isinstance(solver, FiniteWidth):
                found = solver.ensemble(problem, 8 * SEEDS)
            else:
                found = [replace(solver, seed=s)(problem) for s in range(SEEDS if tau else 1)]
            f = torch.stack([one.f[-1, 0, 0] for one in found]).double()
            noise = float(f.std()) / len(f) ** 0.5 if tau else 0.0
            yield what, by, abs(float(f.mean()) / exact - 1), noise / exact


def _no_gradients() -> Iterator[Row]:
    """Variance of weights at x = 0 (Ornstein and Uhlenbeck)"""
    data = mf.Dataset(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    asked = mf.Problem(data, mf.Network(1), training=mf.Training(0.2, 9, temperature=0.7, weight_decay=0.4))
    keep2, added = (1 - 0.2 * 0.4) ** 2, 2 * 0.2 * 0.7
    exact = keep2**9 + added * (1 - keep2**9) / (1 - keep2)
    for by, w in (
        ("particles, 2^14", WassersteinFlow(2**14)(asked).state["w"]),
        ("networks, 2^14 neurons", FiniteWidth(2**14)(asked).state["W0"]),
    ):
        yield "no gradients, temperature 0.7", by, abs(float(w.square().mean()) / exact - 1), math.sqrt(2 / w.numel())


def _gibbs() -> Iterator[Row]:
    """The time average of outputs beside the measure of least free energy, with equal rates and by layer (115 and 125)"""
    training = mf.Training(0.02, 1200, temperature=0.3, weight_decay=0.4)
    own = {"input": 0.5, "readout": 1.5}
    plain = _one_sample("tanh", training)
    by_layer = replace(plain, network=mf.Architecture(plain.perceptron, rate=own, decay=own))
    end = float(gibbs_fixed_point(plain).f)
    for what, asked in (("Gibbs, P = D = 1", plain), ("Gibbs, rates by layer", by_layer)):
        runs = torch.stack([WassersteinFlow(2**10, s, snapshots=())(asked).f[400:, 0, 0].mean() for s in range(SEEDS)])
        # steps of 0.02 leave variances larger by eta lambda / 2
        yield what, "particles, 2^10", abs(float(runs.mean()) / end - 1), float(runs.std()) / SEEDS**0.5 / end + 0.001


def _same() -> Iterator[Row]:
    """The largest difference of outputs that should be the same bits"""
    two = mf.Problem(mf.digits((0, 1), n_train=4, n_test=2), mf.Network(2, "tanh"), training=mf.Training(0.1, 6))
    pairs: dict[str, tuple[mf.Training, mf.Training]] = {
        "Adam, beta1 = beta2 = epsilon = 0, as signs": (
            mf.Training(0.05, 6, mf.Adam(0.0, 0.0, 1e-300)),
            mf.Training(0.05, 6, "sign_descent"),
        ),
        "temperature 0 as descent": (mf.Training(0.1, 6, temperature=0.0), two.training),
        "factors of 1 as no schedule": (mf.Training(0.1, 6, schedule=(1.0,) * 6), two.training),
    }
    solvers = {"particles": WassersteinFlow(2**10), "sweep": CausalDMFT(256), "networks": FiniteWidth(64)}
    for what, pair in pairs.items():
        for by, solver in solvers.items():
            network = mf.Network(1 if by == "particles" else 2, "tanh")
            found: list[Tensor] = [solver(replace(two, network=network, training=one)).f for one in pair]
            yield what, by, float((found[0] - found[1]).abs().max()), 0.0


def masses() -> None:
    """Losses where transport alone is slow or stuck, and the lasso (equations 116, 126 and 127)"""
    print("One relu of 1000 alive, two samples, steps of 0.05: the loss of its first")
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    w = torch.full((1000, 1), -1.0, dtype=torch.float64)
    w[0] = 1.0
    problem = mf.Problem(mf.Dataset(x, x), mf.Network(1, "relu"), mf.mean_field(1.0), mf.Training(0.05, 60))
    print("\n| mass_rate | start | step 10 | step 20 | step 40 | step 60 |\n|---|---|---|---|---|---|")
    for rate in (0.0, 1.0, 3.0):
        loss = WassersteinFlow(initial=_cloud(w), mass_rate=rate)(problem).loss
        print(f"| {rate:g} | {' | '.join(f'{float(loss[k]):.3g}' for k in (0, 10, 20, 40, 60))} |", flush=True)
    _births()
    _lasso()


def _cloud(w: Tensor) -> mf.ParticleMeasure:
    ones = torch.ones(len(w), 1, dtype=torch.float64)
    return mf.ParticleMeasure(ones, w, ones[:, 0] / len(w))


def _births() -> None:
    """One live relu of 64 for a teacher of two directions (tests/test_mass_flow.py)"""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=g, dtype=torch.float64) * 2**0.5
    x[:, 0] = x[:, 0].abs() + 0.4
    y = torch.relu(x @ torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5).sum(1, keepdim=True)
    cloud = _cloud(torch.tensor([[0.6, 0.4]] + 63 * [[-1.0, 0.0]], dtype=torch.float64))
    problem = mf.Problem(mf.Dataset(x, y), mf.Network(1, "relu"), mf.mean_field(1.0), mf.Training(0.02, 1200))
    print("\nOne relu of 64 alive, a teacher of two directions: losses of four seeds")
    print("\n| | step 0 | step 300 | step 1200 |\n|---|---|---|---|")
    for name, rate, births in (("transport", 0.0, None), ("masses", 15.0, None), ("births, 0.2", 15.0, 0.2)):
        solver = WassersteinFlow(initial=cloud, mass_rate=rate, births=births)
        runs = [replace(solver, seed=s)(problem).loss for s in range(4 if births else 1)]
        cells = (", ".join(f"{float(loss[k]):.2g}" for loss in runs) for k in (0, 300, 1200))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _lasso() -> None:
    """Total variation at fixed input weights"""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=g, dtype=torch.float64)
    data = mf.Dataset(x, torch.sin(2 * x[:, :1]))
    cloud, scaling = mf.ParticleMeasure.iid(64, 3, seed=5), replace(mf.mean_field(1.0), eta_w=0.0)
    problem = mf.Problem(data, mf.Network(1, "tanh"), scaling, mf.Training(2.0, 8000, record_every=4000))
    print(
        "\n| total variation, s | particles with a readout | of the lasso | objective beside its, relative |\n|---|---|---|---|"
    )
    for s in (0.05, 0.1, 0.2):
        end = WassersteinFlow(initial=cloud, variation=s)(problem).measure()
        design = torch.tanh(cloud.w @ x.T / 3**0.5).T.numpy()
        lasso = Lasso(s, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(design, data.y[:, 0].numpy()).coef_
        beta = (end.m * end.a[:, 0]).numpy()
        alive = [np.count_nonzero(one) for one in (beta, lasso)]
        y = data.y[:, 0].numpy()
        least, found = (np.square(y - design @ one).mean() / 2 + s * np.abs(one).sum() for one in (lasso, beta))
        print(f"| {s} | {alive[0]} | {alive[1]} | {found / least - 1:.1e} |", flush=True)


CLAIMS = {"exact_training": exact_training, "masses": masses}
