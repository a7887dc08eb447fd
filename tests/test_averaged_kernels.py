"""Kernels of averages over positions, on request (equation 88b): against whole kernels, in networks and in the limit."""

import json

import pytest
import torch
from torch import nn

import meanfield as mf
from meanfield.network.recalled import told
from solvers import CausalDMFT, FiniteWidth, width_sweep
from tests.any_networks import Convolutional, Language, Recurrent, digits, text

P = 6
SOLVERS = [FiniteWidth(12), CausalDMFT(256)]


class Two(Language):
    """Two outputs at three of the positions"""

    def __init__(self, n):
        super().__init__(n)
        self.head = nn.Linear(n, 2, bias=False)

    def forward(self, x):
        return super().forward(x)[:, :3]


def verse():
    x, y = text()
    return mf.Dataset(x, y[:, :3, :2])


def images():
    return mf.Dataset(*digits(P, True))


def asked(network, data, steps=2):
    return mf.Problem(data, network, mf.mean_field(1.0), mf.Training(0.2, steps))


CASES = {  # a network, its data, its outputs, and whether calls come before samples
    "positions and outputs": (Two, verse, 6, False),
    "a filter with a stride": (Convolutional, images, 1, False),
    "calls": (Recurrent, lambda: mf.Dataset(*digits(P)), 1, True),
}


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("case", CASES)
def test_averages_over_positions_are_those_of_the_whole_kernel(case, solver):
    network, data, outputs, calls_first = CASES[case]
    whole = solver(asked(network, data()))
    averaged = solver(asked(mf.Architecture(network, averaged=("*",)), data()))
    assert torch.equal(whole.f, averaged.f)
    assert whole.kernels.keys() == averaged.kernels.keys()
    rounding = (
        1e-12 if isinstance(solver, FiniteWidth) else 1e-3
    )  # of the limit the tolerance 1e-2 squared, and float32
    for key in whole.kernels.keys() - {"G[pos]"}:
        k, c = whole.kernels[key].at().double(), outputs if key.kind == "G" else 1
        rows = (c, -1, P) if calls_first else (c, P, -1)
        blocks = k.reshape(*rows, *(len(k) // (c * P) if n == -1 else n for n in rows))
        expected = blocks.mean((1, 4) if calls_first else (2, 5)).reshape(c * P, c * P)
        found = averaged.kernels[key].at().double()
        assert found.shape == expected.shape
        assert float((found - expected).norm()) <= rounding * float(k.diagonal().mean()) * c * P


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_what_samples_share_each_has_for_itself(solver):
    """Embedded letters and positions are added, so that the same gradient leaves both, sample by sample"""
    kernels = solver(asked(mf.Architecture(Two, averaged=("tok", "pos")), verse())).kernels
    assert kernels["G[pos]"].at().shape == (6 * P, 6 * P)
    assert kernels["Phi[head]"].at().shape == (8 * P, 8 * P)  # not asked for
    scale = float(kernels["G[tok]"].at().diagonal().mean())
    tolerance = 1e-12 if isinstance(solver, FiniteWidth) else 3e-3
    torch.testing.assert_close(kernels["G[pos]"].at(), kernels["G[tok]"].at(), rtol=0, atol=tolerance * scale)


def test_networks_approach_the_limit_s_averages_and_files_keep_them(tmp_path):
    network = mf.Architecture(Convolutional, averaged=("mix",))
    problem = asked(network, images(), 6)
    limit = CausalDMFT(512, keep_state=True)(problem)
    report = mf.deviation(
        width_sweep(problem, (32, 256), 8, FiniteWidth(dtype="float32")), limit, ("Phi[mix]", "G[mix]")
    )
    for name in ("Phi[mix]", "G[mix]"):
        small, large = report[name].deviation
        assert large < 0.6 * small  # 0.35, and a standard error of a fifth
    assert mf.load(mf.save(limit, tmp_path / "limit.nc"), network=network) == limit
    assert mf.load(tmp_path / "limit.nc").problem == problem
    assert problem != asked(Convolutional, images(), 6)
    assert "averaged" not in json.dumps(told(asked(Convolutional, images()).architecture))  # as files of before have it
    longer = CausalDMFT(512, keep_state=True).resume(mf.load(tmp_path / "limit.nc", network=network), 2)
    assert longer.kernels["Phi[mix]"].at().shape == (P, P)


class Turned(nn.Module):
    """Positions first"""

    def __init__(self, n):
        super().__init__()
        self.read, self.mix, self.out = nn.Linear(8, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, x):
        h = torch.tanh(self.read(x.reshape(-1, 8, 8).transpose(0, 1)))
        return self.out(torch.tanh(self.mix(h)).mean(0))


class Meeting(Turned):
    """Samples meet in a norm"""

    def __init__(self, n):
        super().__init__(n)
        self.norm = nn.BatchNorm1d(n, track_running_stats=False)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(self.norm(self.read(x.reshape(-1, 8, 8)[:, 0])))))


@pytest.mark.parametrize("network", [Turned, Meeting])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_rows_of_no_one_sample_are_refused(network, solver):
    problem = asked(mf.Architecture(network, averaged=("mix",)), mf.Dataset(*digits(8)))
    with pytest.raises(
        ValueError, match=r"averaged=\('mix',\) needs fields whose first axis is that of the samples.*record="
    ):
        solver.check(problem)


def test_names_that_are_none_are_refused():
    with pytest.raises(
        ValueError,
        match=r"averaged must name layers, as Phi\[..\] and G\[..\] do: received 'mix.weight'; known: read, mix, out",
    ):
        mf.Architecture(Convolutional, averaged=("mix.weight",))
