"""What the comparison with networks is able to see: the limit without its responses, or without their equal-time part, must fail it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth
from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.places import Places
from tests.accuracy.agreement import networks_and_limit
from tests.accuracy.deep_networks import kernels, problem

Pass = Callable[[InfiniteDense, Tensor], tuple[Tensor, Tensor]]


def without_a(self: InfiniteDense, phi: Tensor, out: Tensor, scale: float) -> Tensor:
    """W0 v = U <E, v> alone (equation 24)"""
    return out - scale * (phi @ self.r.rows.T / phi.shape[1]) @ self.f.fields.rows


def without_b(self: InfiniteDense, g: Tensor, out: Tensor, scale: float) -> Tensor:
    """W0^T g = R <F, g> alone (equation 25)"""
    return out - scale * (g @ self.u.rows.T / g.shape[1]) @ self.e.fields.rows


def curvature(activation: str, h: Tensor, g: Tensor) -> Tensor:
    """<phi''(h) z> (P,) of fields h and g = phi'(h) z (P, S).

    ReLU: phi'' = delta(h) as a kernel of width w on h > 0, where g = z; its first moment vanishes, so the error is of order w^2.
    """
    if activation == "tanh":
        return (-2 * torch.tanh(h) * g).mean(1)  # phi'' / phi' = -2 tanh
    w = 0.1 * h.square().mean(1, keepdim=True).sqrt()
    x = (h / w).clamp(min=0)
    density = (
        (2 / torch.pi) ** 0.5 * torch.exp(-(x**2) / 2) / w * (h > 0)
    )  # half a Gaussian: moments 1, sqrt(2 / pi), 1
    linear = (1 - (2 / torch.pi) ** 0.5 * x) / (1 - 2 / torch.pi)
    return (density * linear * g).mean(1)


@contextmanager
def ablated(drop: str, activation: str) -> Iterator[None]:
    """CausalDMFT without the responses named in `drop`: "A", "B", "B(t,t)" (one output, weight_std = 1, no biases).

    g_mu(t) = phi'(h_mu(t)) z_mu(t) depends on the u_alpha(t) of its own step through h_mu(t) = u_mu(t) + .. at mu = alpha, so
    B_mu,alpha(t,t) = delta_mu,alpha <phi''(h_mu) z_mu> once the layer above has lost its own B(t,t).
    """
    forward, backward = InfiniteDense.forward, InfiniteDense.backward
    fields: dict[int, tuple[Tensor, Tensor]] = {}

    def up(
        self: InfiniteDense, v: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, c, seen = forward(self, v, learned, scale, where)
        out = without_a(self, v, out, scale) if "A" in drop.split() else out
        fields[id(self)] = v, out.clone()
        return out, c, seen

    def down(
        self: InfiniteDense, g: Tensor, learned: Tensor, scale: float = 1.0, where: Places | None = None
    ) -> tuple[Tensor, Tensor]:
        out, d = backward(self, g, learned, scale, where)
        if "B" in drop.split():
            return without_b(self, g, out, scale), d
        if "B(t,t)" in drop.split():
            phi, h = (field[: len(g)] for field in fields[id(self)])
            out = out - curvature(activation, h, g)[:, None] * phi
        return out, d

    InfiniteDense.forward, InfiniteDense.backward = up, down
    try:
        yield
    finally:
        InfiniteDense.forward, InfiniteDense.backward = forward, backward


def ablations() -> None:
    """digits 0/1, P = 16, P_test = 8, eta = 0.1, T = 60, 24 networks of width 1024, two sweeps of 8192 samples: distance of the mean over
    seeds from the limit (floor from noise alone) z; without responses, and without B(t,t) alone, the same comparison fails
    """
    print("| network | responses removed | f | f_test | worst Phi | worst G |\n|---|---|---|---|---|---|")
    for activation, depth, gamma0 in (("tanh", 2, 1.0), ("relu", 3, 2.0)):
        asked = problem(mf.Network(depth, activation), gamma0, 60)
        nets = FiniteWidth(1024, dtype="float32", keep_neurons=False).ensemble(asked, 24)
        for drop in ("", "A", "B", "A B", "B(t,t)"):
            with ablated(drop, activation):
                limits = [
                    CausalDMFT(8192, seed=seed, two_time=False, responses=True, keep_neurons=False)(asked)
                    for seed in (0, 1)
                ]
            found = {name: networks_and_limit(nets, limits, name) for name in ("f", "f_test", *kernels(depth))}
            worst = [max((n for n in found if n.startswith(kind)), key=lambda n: found[n].z) for kind in ("Phi", "G")]
            cells = [
                f"{found[n].distance:.3f} ({found[n].floor:.3f}) {found[n].z:+.1f}" for n in ("f", "f_test", *worst)
            ]
            print(
                f"| {activation}, L = {depth}, gamma0 = {gamma0:g} | {drop or 'none'} | " + " | ".join(cells) + " |",
                flush=True,
            )
            z = max(d.z for d in found.values())
            assert z > 5 if drop else z < 3.5, (drop, z)


CLAIMS = {"ablations": ablations}
