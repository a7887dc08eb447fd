"""One pass over fresh samples: population losses of students of three widths and of their limit, beside the equation of small rates.

A teacher erf(u . x) in eight dimensions, two-layer erf students, the same sequence of single samples for all, no sample twice. Expected:
wide students follow their limit down to its steps, which are those of the samples, and narrow ones scatter about it; at a tenth of the
rate the limit is close to gradient flow of the population loss, at the larger one it is not.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from scipy.integrate import solve_ivp

import meanfield as mf
from solvers import FiniteWidth, WassersteinFlow

from . import folder, keep

COLOURS = ("#9ecae1", "#4292c6", "#08519c")
TEACHER = mf.Teacher(8, link="erf", seed=1)


def main(out: str | Path | None = None, quick: bool = False) -> dict[str, float]:
    """Train students of the stream, solve its limit and the equation; quick: fewer and narrower ones."""
    widths, seeds, particles = ((8, 64), 3, 2**7) if quick else ((8, 64, 512), 4, 2**10)
    time, rates = 12.0, (0.4, 0.04)
    marks = np.linspace(0, time, 31)
    flow = small_rates(particles, marks)
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.9), sharey=True, layout="constrained")
    found: dict[str, float] = {}
    for ax, rate in zip(axes, rates, strict=True):
        steps = tuple(np.unique(np.rint(marks / rate).astype(int)).tolist())
        training = mf.Training(rate, steps[-1])
        problem = mf.Problem(mf.stream(TEACHER, batch=1, watched=2), mf.Network(1, "erf"), training=training)
        times = rate * np.array(steps)
        limit = mf.population_loss(WassersteinFlow(initial=cloud(particles), snapshots=steps)(problem))
        for width, colour in zip(widths, COLOURS, strict=False):
            nets = FiniteWidth(width, snapshots=steps).ensemble(problem, seeds)
            losses = torch.stack([mf.population_loss(net) for net in nets])
            ax.plot(times, losses[0], color=colour, lw=0.9, label=f"N = {width}")
            ax.plot(times, losses[1:].T, color=colour, lw=0.9)
            off = (losses / limit).log().square().mean().sqrt()
            found[f"rate {rate:g}, N = {width}"] = float(off)
        ax.plot(times, limit, color="black", lw=2, ls="--", label="limit of the same samples")
        ax.plot(marks, flow, color="#D55E00", lw=1.5, label="small learning rates (119)")
        ax.set(title=rf"$\eta$ = {rate:g}, {steps[-1]} samples", xlabel="training time $\\eta k$", yscale="log")
        exact = np.interp(times, marks, np.log(flow))
        found[f"rate {rate:g}, limit from the equation"] = float(np.sqrt(np.mean((np.log(limit.numpy()) - exact) ** 2)))
    axes[0].set_ylabel("population loss")
    axes[0].legend(fontsize=8)
    for name, value in found.items():
        print(f"{name}: log of the population loss is off by {value:.3g}")
    if out is not None:
        keep(axes[0], folder(out) / "one_pass.png")
    plt.close(figure)
    return found


def cloud(particles: int) -> mf.ParticleMeasure:
    """Of the limit, with each readout's opposite, so that f = 0 for all inputs"""
    half = mf.ParticleMeasure.sobol(particles // 2, 8, 1)
    return mf.ParticleMeasure(torch.cat([half.a, -half.a]), half.w.repeat(2, 1), half.m.repeat(2) / 2)


def small_rates(particles: int, times: np.ndarray) -> np.ndarray:
    """(times,) the population loss under gradient flow on it (equation 119), by averages in closed form"""
    start, u = cloud(particles), TEACHER.vectors[:, 0].numpy()
    n, d = start.w.shape

    def averages(p: np.ndarray, q: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """<erf erf> and its derivatives in c and in p"""
        size = (1 + 2 * p) * (1 + 2 * q)
        root = np.sqrt(size - 4 * c * c)
        return 2 / np.pi * np.arcsin(2 * c / np.sqrt(size)), 4 / np.pi / root, -4 / np.pi * c / (1 + 2 * p) / root

    def of(state: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and the velocity of (a, w), the width times minus its gradient"""
        b, v = state[:n] / n, state[n:].reshape(n, d) / math.sqrt(d)
        q, r = (v * v).sum(1), v @ u
        (own, by_c, by_q), (to_u, by_r, by_p) = averages(q[:, None], q, v @ v.T), averages(q, np.ones(n), r)
        loss = 0.5 * b @ own @ b - b @ to_u + np.arcsin(2 / 3) / np.pi
        slope = b[:, None] * ((by_c * b) @ v + 2 * (by_q @ b - by_p)[:, None] * v - by_r[:, None] * u)
        return loss, np.concatenate([to_u - own @ b, -n * slope.ravel() / math.sqrt(d)])

    begin = np.concatenate([start.a[:, 0].numpy(), start.w.numpy().ravel()])
    run = solve_ivp(lambda _, state: of(state)[1], (0, times[-1]), begin, t_eval=times, rtol=1e-5, atol=1e-7)
    return np.array([of(state)[0] for state in run.y.T])


if __name__ == "__main__":
    tyro.cli(main)
