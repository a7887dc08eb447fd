"""Every solver on a GPU gives the numbers that it gives on the CPU, and goes on, saves and fails alike."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

import meanfield as mf
from meanfield.measures import keops
from solvers import (
    CausalDMFT,
    DivergedError,
    FiniteWidth,
    InfiniteLogitsLimit,
    RevealedWidth,
    TangentKernelLimit,
    WassersteinFlow,
    lazy_prediction,
    predicted_variance,
)

pytestmark = pytest.mark.cuda


class Residual(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.read, self.norm = torch.nn.Linear(3, n), torch.nn.LayerNorm(n)
        self.up, self.down = torch.nn.Linear(n, 2 * n), torch.nn.Linear(2 * n, n)
        self.out = torch.nn.Linear(n, 1)

    def forward(self, x):
        h = self.read(x)
        return self.out(h + self.down(torch.relu(self.up(self.norm(h)))))


class Filters(torch.nn.Module):
    """On the sample as a line of positions, with filters and a stride"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix = (
            torch.nn.Conv1d(1, n, 2, bias=False),
            torch.nn.Conv1d(n, n, 2, stride=2, padding=1, bias=False),
        )
        self.out = torch.nn.Linear(n, 1, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(torch.tanh(self.read(x[:, None])))).mean(-1))


class Lines(torch.nn.Module):
    """Linear, and so exact"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix = torch.nn.Linear(3, n, bias=False), torch.nn.Linear(n, n, bias=False)
        self.out = torch.nn.Linear(n, 1, bias=False)

    def forward(self, x):
        h = self.read(x)
        return self.out(h + 0.5 * self.mix(h))


class Attention(torch.nn.Module):
    """Three positions that look at each other, behind a layer norm"""

    def __init__(self, n):
        super().__init__()
        self.read, self.places = torch.nn.Linear(1, n, bias=False), torch.nn.Parameter(torch.zeros(3, n))
        self.q, self.k, self.v = (torch.nn.Linear(n, n, bias=False) for _ in range(3))
        self.norm, self.out = torch.nn.LayerNorm(n), torch.nn.Linear(n, 1, bias=False)

    def forward(self, x):
        h = self.read(x[..., None]) + self.places
        looked = (self.q(h) @ self.k(h).transpose(-1, -2) / h.shape[-1]).softmax(-1) @ self.v(h)
        return self.out(torch.tanh(self.norm(h + looked)).mean(-2))


TO_ROUNDING = {"rtol": 1e-9, "atol": 1e-11}


def problem(depth=1, activation="tanh", loss="squared", scaling=None, **training):
    data = mf.single_index_teacher(n_train=6, n_test=4, inputs=3, seed=1)
    if loss == "logistic":
        data = replace(data, y=data.y.sign(), y_test=data.y_test.sign())
    options = {"learning_rate": 0.2, "steps": 8} | training
    network = mf.Network(depth, activation) if isinstance(depth, int) else depth
    return mf.Problem(data, network, scaling or mf.mean_field(1.0), mf.Training(**options), loss)


TESTS = {name: getattr(problem().data, name) for name in ("x_test", "y_test")}
FRESH = replace(mf.stream(mf.Teacher(3), batch=2, watched=6), **TESTS)
WAYS = {
    "momentum": {"momentum": 0.5, "weight_decay": 0.01},
    "batches": {"batch_size": 2},
    "flow": {"optimiser": "gradient_flow", "steps": 3},
}
CASES = {
    "flow, sobol": (WassersteinFlow(2**10), problem()),
    "flow, quadrature": (WassersteinFlow(2**10, initial="gauss_hermite"), problem()),
    "flow, keops": (WassersteinFlow(2**10, engine="keops"), problem()),
    "flow, tiles": (WassersteinFlow(2**10, engine="chunked"), problem(activation="relu")),
    "flow, frozen": (WassersteinFlow(2**10), problem(scaling=mf.ic_mean_field(1.0, 64))),
    "logits": (InfiniteLogitsLimit(2**10), problem(loss="logistic", scaling=mf.default(64))),
    "networks": (FiniteWidth(32), problem(2, "gelu")),
    "networks, ntk": (FiniteWidth(32), problem(2, "relu", scaling=mf.ntk())),
    "lazy": (TangentKernelLimit(), problem(2, "erf", scaling=mf.ntk())),
    "lazy, logistic": (TangentKernelLimit(), problem(2, "erf", "logistic", mf.ntk())),
    "linear sweep": (CausalDMFT(200), problem(3, "linear")),
    "residual networks": (FiniteWidth(32), problem(Residual)),
    "networks of filters": (FiniteWidth(32), problem(Filters)),
    "linear module": (CausalDMFT(200), problem(Lines)),
    "flow, stream": (WassersteinFlow(2**10), replace(problem(), data=FRESH)),
    "residual networks, stream": (FiniteWidth(32), replace(problem(Residual), data=FRESH)),
    "linear sweep, stream": (CausalDMFT(200), replace(problem(3, "linear"), data=FRESH)),
}
OPTIMISERS = {
    "adam": {"optimiser": mf.Adam(epsilon=0.1), "learning_rate": 0.05},
    "muon": {"optimiser": "muon", "learning_rate": 0.05},
    "noise": {"temperature": 0.01, "weight_decay": 0.1},
    "schedule": {"schedule": "cosine", "warmup": 2, "clip": 0.5},
}
CASES |= {f"flow, {name}": (WassersteinFlow(2**10), problem(**way)) for name, way in (WAYS | OPTIMISERS).items()}
CASES |= {f"networks, {name}": (FiniteWidth(32), problem(2, **way)) for name, way in OPTIMISERS.items()}
CASES |= {f"filters, {name}": (FiniteWidth(32), problem(Filters, **way)) for name, way in OPTIMISERS.items()}
CASES["linear sweep, schedule"] = CausalDMFT(200), problem(3, "linear", **OPTIMISERS["schedule"])
CASES["flow, mass"] = WassersteinFlow(2**10, mass_rate=0.5), problem()
CASES |= {f"networks, {name}": (FiniteWidth(32), problem(2, **way)) for name, way in WAYS.items()}
CASES |= {f"linear sweep, {name}": (CausalDMFT(200), problem(3, "linear", **way)) for name, way in WAYS.items()}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.keops) if "keops" in c else c for c in CASES])
def test_the_numbers_of_the_cpu(case):
    solver, asked = CASES[case]
    if getattr(solver, "engine", "") == "keops" and (died := keops.end_of_trial()):
        pytest.skip(f"KeOps {died}")
    here = replace(solver, **({"engine": "chunked"} if "keops" in case else {}))(asked)  # another way than KeOps' own
    there = replace(solver, device="cuda")(asked)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if asked.training.optimiser == "gradient_flow" else TO_ROUNDING
    for name in ("f", "f_test", "loss", "tangent_kernels"):
        mine, right = getattr(there, name), getattr(here, name)
        assert mine.device.type == "cpu", name
        torch.testing.assert_close(mine, right.to(mine), **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for name, kernel in here.kernels.items():
        torch.testing.assert_close(there.kernels[name].at(-1), kernel.at(-1), rtol=1e-4, atol=1e-5)


DEEP = {
    "tanh": problem(3, "tanh"),
    "relu": problem(3, "relu"),
    "residual": problem(Residual),
    "filters": problem(Filters),
    "adam": problem(2, **OPTIMISERS["adam"]),
    "adam, residual": problem(Residual, **OPTIMISERS["adam"]),
    "noise": problem(2, **OPTIMISERS["noise"]),
    "muon, residual": problem(Residual, **OPTIMISERS["muon"]),
}


@pytest.mark.parametrize(("case", "dtype"), [(case, "float64" if case == "relu" else "float32") for case in DEEP])
def test_a_deep_sweep_agrees_within_its_seeds(case, dtype):
    """Eigenvectors have other signs there, so the draws meet other directions: equal in law only."""
    asked, solver, seeds = DEEP[case], CausalDMFT(2048, dtype=dtype), 16
    here = torch.stack([replace(solver, seed=seed)(asked).f.double() for seed in range(seeds)])
    there = torch.stack([replace(solver, seed=seed, device="cuda")(asked).f.double() for seed in range(seeds)])
    apart = (here.mean(0) - there.mean(0))[1:]
    error = ((here.var(0) + there.var(0)) / seeds).sqrt()[1:]
    assert (
        apart.abs() < 5 * error + 1e-4
    ).all()  # 48 correlated outputs, t with 30 degrees: 5 has a level of about 1e-3
    ratio = float(here.var(0)[1:].mean() / there.var(0)[1:].mean())  # as correlated as can be, it is that of one output
    assert abs(math.log(ratio)) < math.log(stats.f.ppf(1 - 5e-4, seeds - 1, seeds - 1))  # a factor of 6.5


@pytest.mark.parametrize(
    ("solver", "network"),
    [
        (WassersteinFlow(2**10), 1),
        (CausalDMFT(200, keep_state=True), 2),
        (FiniteWidth(32), 2),
        (CausalDMFT(200, keep_state=True), Residual),
        (FiniteWidth(32), Filters),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(solver, network, tmp_path):
    pytest.importorskip("h5netcdf")
    asked = problem(network, momentum=0.5)
    there = replace(solver, device="cuda")
    whole, half = there(asked), there(asked.with_steps(4))
    kept = mf.load(mf.save(half, tmp_path / "half.nc"))
    torch.testing.assert_close(there.resume(kept, 4).f, whole.f, rtol=0, atol=0)


def test_a_batch_of_networks_and_one_alone():
    asked, there = problem(2), FiniteWidth(32, device="cuda")
    both = there.ensemble(asked, (3, 5))
    torch.testing.assert_close(both[1].f, replace(there, seed=5)(asked).f, **TO_ROUNDING)


def test_a_run_that_blows_up_is_named():
    with pytest.raises(DivergedError, match="step"):
        WassersteinFlow(2**8, device="cuda")(problem(activation="relu", learning_rate=1e9, steps=200))


def test_kernels_of_points_on_the_card():
    x = problem().data.x
    for here, there in zip(*(mf.nngp_and_ntk(mf.Network(2), mf.ntk(), z) for z in (x, x.cuda())), strict=True):
        torch.testing.assert_close(there.cpu(), here, **TO_ROUNDING)


READABLE = [  # torch's biases and places have laws of their own
    mf.ConvNetwork(2, "relu"),
    mf.Architecture(Residual, weight_std={"read.bias": 0.5}),
    Filters,
    mf.Architecture(Attention, weight_std={"places": 0.3}),
]


@pytest.mark.parametrize("network", READABLE)
def test_kernels_of_images_and_modules_on_the_card(network):
    x = torch.randn(7, 1, 5, 5, dtype=torch.float64) if isinstance(network, mf.ConvNetwork) else problem().data.x
    for here, there in zip(*(mf.nngp_and_ntk(network, mf.ntk(), z, block=3) for z in (x, x.cuda())), strict=True):
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), here, **TO_ROUNDING)


def test_networks_by_their_exact_law():
    """Equal in law to those of the CPU: as for a deep sweep"""
    asked, seeds = problem(2), 16
    here, there = (
        torch.stack([net.f for net in RevealedWidth(64, device=device).ensemble(asked, seeds)])
        for device in ("cpu", "cuda")
    )
    error = ((here.var(0) + there.var(0)) / seeds).sqrt()
    assert ((here.mean(0) - there.mean(0)).abs() < 5 * error + 1e-6).all()


def test_predictions_take_solutions_of_the_card():
    asked = problem(2, scaling=mf.ntk())
    net = FiniteWidth(32, device="cuda")(asked)
    start = torch.cat([net.f[0], net.f_test[0]])
    here, there = (TangentKernelLimit(initial=start, device=device)(asked).f for device in ("cpu", "cuda"))
    torch.testing.assert_close(there, here, **TO_ROUNDING)
    assert torch.isfinite(lazy_prediction(asked).mean).all()
    assert torch.isfinite(predicted_variance(problem()).train).all()


def test_a_data_set_takes_tensors_from_the_card():
    x = torch.tensor([[0.1, 2.0], [3.0, -4.0]], dtype=torch.float64)
    assert torch.equal(mf.Dataset(x.cuda(), [1, -1]).x, x)
