"""The causal sweep against the fixed-point iteration, and its error against samples, draws and tolerance."""

from dataclasses import replace
from itertools import product

import numpy as np
import torch

import meanfield as mf
from meanfield.comparison.statistics import Exponent, exponent_of, left_out_means
from solvers import CausalDMFT, FixedPointDMFT, TangentKernelLimit
from solvers.dmft.causal_dmft import Draws
from tests.accuracy.agreement import Group, compared, distance, largest_z

SEEDS = 8
SIZES = (1024, 4096, 16384, 65536)


def digits(samples: int, depth: int, activation: str, steps: int, eta: float) -> mf.Problem:
    data = mf.digits((0, 1), n_train=samples, n_test=0)
    return mf.Problem(data, mf.Network(depth, activation), mf.mean_field(1.0), mf.Training(eta, steps))


def two_time(solution: mf.Solution, name: str) -> torch.Tensor:
    """The kernel at all pairs of steps, or f"""
    if name == "f":
        return solution.f.double()
    c = solution.kernels[name].factor.double().transpose(0, 1).flatten(1)  # (rank, steps x points)
    return c.T @ c


def fixed_point_and_sweep() -> None:
    """digits 0/1, P = 4, T = 20, gamma0 = 1, eta = 0.2; 8 sweeps of 8192 samples, 4 iterations of 2048: f, Phi and G at all pairs
    of steps agree within their error bars. z: how improbable the distance is, as a Gaussian's deviation; floor: its size from noise alone.
    Iterations that did not converge are shown and claim nothing
    """
    print("| network | observable | distance | floor | z | status, iterations |\n|---|---|---|---|---|---|")
    z, rows = [], []
    for activation, depth in (("tanh", 2), ("tanh", 3), ("relu", 2)):
        asked = digits(4, depth, activation, 20, 0.2)
        sweeps = [CausalDMFT(8192, seed=s, tolerance=3e-3, keep_neurons=False)(asked) for s in range(SEEDS)]
        solver = FixedPointDMFT(2048, raise_on_failure=False)
        fixed = [replace(solver, seed=s)(asked) for s in range(SEEDS // 2)]
        words = " and ".join(sorted({s.status.name.lower().replace("_", " ") for s in fixed}))
        words += f", {max(s.stats['iterations'] for s in fixed)}"
        for name in ("f", *sweeps[0].kernels):
            found = compared(*([two_time(s, name) for s in some] for some in (fixed, sweeps)))
            rows.append((activation, depth, name, found, words))
            if all(s.status is mf.Status.CONVERGED for s in fixed):
                z.append(found.z)
            print(
                f"| {activation}, L = {depth} | {name} | {found.distance:.2g} | {found.floor:.2g} | {found.z:+.1f} | {words} |",
                flush=True,
            )
    limit = largest_z(len(z))
    words = f"noise alone passes {limit:.1f} once in a thousand such tables"
    print(f"\nLargest z of the {len(z)} of converged iterations: {max(z):.1f}; {words}.")
    assert max(z) < limit, rows


def samples() -> None:
    """digits 0/1, P = 6, T = 30, gamma0 = 1, eta = 0.1: the relative error of f falls like S^-1/2 with plain draws, faster with Sobol's.
    Root mean square of 12 (S < 16384) or 6 seeds about the mean of the 6 Sobol runs with 65536 samples, whose own error is subtracted
    """
    print("| network | draws | " + " | ".join(f"S = {s}" for s in SIZES) + " | slope | spread at the largest S |")
    print("|---|---|" + "---|" * (len(SIZES) + 2))
    for activation, depth in product(("tanh", "relu"), (1, 2, 3)):
        asked, reference = digits(6, depth, activation, 30, 0.1), None
        for draws in ("sobol", "plain"):
            runs = {s: _outputs(asked, s, draws, 12 if s < 16384 else 6) for s in reversed(SIZES)}
            reference = runs[SIZES[-1]] if reference is None else reference
            errors, slope = _errors(runs, reference)
            spread = float(runs[SIZES[-1]].var(0).sum().sqrt() / reference.mean(0).norm())
            cells = " | ".join(f"{e:.2g}" for e in errors)
            print(f"| {activation}, L = {depth} | {draws} | {cells} | {slope} | {spread:.2g} |", flush=True)
            if draws == "sobol":
                assert slope.slope < -0.5, slope  # the interval of relu, L = 3 reaches -0.48
            else:
                assert slope.low < -0.5 < slope.high, slope


def _errors(runs: dict[int, torch.Tensor], reference: torch.Tensor) -> tuple[list[float], Exponent]:
    """Errors of f by samples about the mean of the reference runs, relative, and their slope"""
    exact, e = reference.mean(0), len(reference)
    own, size = float(reference.var(0).sum()) / e, float(exact.square().sum())
    errors, left_out = [], []
    for s in SIZES:
        square = (runs[s] - exact).square().sum(1).numpy()
        square = square * e / (e - 1) if runs[s] is reference else square - own
        errors.append(max(float(square.mean()), 1e-12) / size)
        left_out.append(left_out_means(square) / size)
    slope = exponent_of(np.array(SIZES, float), errors, left_out, 0.5)
    assert slope is not None
    return [e**0.5 for e in errors], slope


def _outputs(asked: mf.Problem, samples: int, draws: Draws, seeds: int, tolerance: float | None = None) -> torch.Tensor:
    """(seeds, M) f of the whole run"""
    solver = CausalDMFT(samples, draws=draws, tolerance=tolerance, two_time=False, keep_neurons=False, snapshots=())
    return torch.stack([replace(solver, seed=s)(asked).f.double().flatten() for s in range(seeds)])


def tolerance() -> None:
    """digits 0/1, P = 6, T = 30, gamma0 = 1, eta = 0.1, L = 2, S = 4096, 40 seeds: a tolerance below the default 1e-2 moves f by no more
    than other draws do (sqrt 2 times the spread of seeds: other ranks mean other draws), and their mean by less than half that spread
    """
    print(
        "| network | tolerance | f of one seed moves by | sqrt 2 x spread of seeds | their mean by | z |\n|---|---|---|---|---|---|"
    )
    for activation, finer in (("tanh", (3e-3, 1e-3)), ("relu", (3e-3, 1e-3))):
        asked = digits(6, 2, activation, 30, 0.1)
        base = _outputs(asked, 4096, "sobol", 40)
        size = float(base.mean(0).norm())
        noise = float(2 * base.var(0).sum()) ** 0.5 / size
        for tau in finer:
            apart = _outputs(asked, 4096, "sobol", 40, tau) - base
            one = float(apart.square().sum(1).mean()) ** 0.5 / size
            found = distance([Group(apart, 1.0, "differences")], size)
            cells = f"{one:.2g} | {noise:.2g} | {found.distance:.2g} | {found.z:+.1f}"
            print(f"| {activation} | {tau:g} | {cells} |", flush=True)
            assert one < 1.1 * noise  # each from forty seeds: standard errors of 11 % over the root of many numbers
            assert found.distance < 0.5 * noise / 2**0.5


def tolerance_at_small_gamma0() -> None:
    """Eight points of a line, y = sin 3x, bias_std 0.5, L = 3, T = 60, eta = 0.3, S = 4096, 4 seeds: the root mean square error of f
    against the exact lazy limit, with the default tolerance and with 1e-2, and the seconds of a run
    """
    print("| network | gamma0 | default | 1e-2 | s | s at 1e-2 |\n|---|---|---|---|---|---|")
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    for activation, gamma0 in product(("relu", "tanh", "gelu"), (1e-2, 1e-3, 3e-4)):
        network, training = mf.Network(3, activation, bias_std=0.5), mf.Training(0.3, 60)
        asked = mf.Problem(mf.Dataset(x, torch.sin(3 * x)), network, mf.mean_field(gamma0), training)
        lazy = TangentKernelLimit(snapshots=())(asked).f
        errors, seconds = [], []
        for tau in (None, 1e-2):
            runs = [CausalDMFT(4096, seed=s, tolerance=tau, two_time=False, snapshots=())(asked) for s in range(4)]
            apart = torch.stack([run.f.double() - lazy for run in runs])
            errors.append(float(apart.square().sum() / len(runs)) ** 0.5 / float(lazy.norm()))
            seconds.append(sum(run.stats["seconds"] for run in runs) / len(runs))
        cells = [f"{e:.2g}" for e in (*errors, *seconds)]
        print(f"| {activation} | {gamma0:g} | {' | '.join(cells)} |", flush=True)
        assert errors[0] < 4096**-0.5, errors


CLAIMS = {f.__name__: f for f in (fixed_point_and_sweep, samples, tolerance, tolerance_at_small_gamma0)}
