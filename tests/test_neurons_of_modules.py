"""Single neurons of modules, kept where `record` names a field of theirs: against kernels and outputs, which are averages over them."""

from dataclasses import replace

import matplotlib
import pytest
import torch
from torch import nn

import meanfield as mf
from solvers import CausalDMFT, FiniteWidth, width_sweep
from tests.any_networks import Convolutional, digits

matplotlib.use("Agg")
SOLVERS = [FiniteWidth(12), CausalDMFT(256)]
P = 6


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.read, self.mix = nn.Linear(64, n, bias=False), nn.Linear(n, n, bias=False)
        self.out = nn.Linear(n, 1, bias=False)

    def forward(self, x):
        return self.out(torch.tanh(self.mix(torch.tanh(self.read(x)))))


def first(net, x):
    return net.read(x)


def problem(network=Net, record=None, images=False, steps=4):
    record = {"mix": "mix", "first": first} if record is None else record
    network = mf.Architecture(network, record=record)
    return mf.Problem(mf.Dataset(*digits(P, images)), network, mf.mean_field(1.5), mf.Training(0.2, steps))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_averages_over_the_neurons_are_the_kernels(solver):
    """Phi of what enters a matrix, from the neurons that leave the one below"""
    solution = solver(problem())
    rounding = (
        1e-12 if isinstance(solver, FiniteWidth) else 2e-3
    )  # of the limit the tolerance 1e-2 squared, and float32
    for name, kernel in (("first", "Phi[mix]"), ("mix", "Phi[out]")):
        for step in (0, -1):
            h, m = solution.preactivations(step, name)
            assert h.shape[1] == P
            features = torch.tanh(h)
            torch.testing.assert_close(
                (features.T * m) @ features, solution.kernels[kernel].at(step), rtol=0, atol=rounding
            )


def test_outputs_are_those_of_the_neurons():
    solution = FiniteWidth(12)(problem())
    h, _ = solution.preactivations(layer="mix")
    f = torch.tanh(h).T @ solution.state["out.weight"].T / (1.5 * 12)  # equation 79
    torch.testing.assert_close(f, solution.f[-1], rtol=1e-12, atol=1e-13)
    assert torch.equal(solution.preactivations()[0], h)  # the first that is named


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_rows_are_samples_then_positions(solver):
    """Of a filter, whose axis of neurons is not the last"""
    solution = solver(problem(Convolutional, {"read": "read"}, images=True))
    h, m = solution.preactivations(layer="read")
    features = torch.relu(h)
    rounding = 1e-12 if isinstance(solver, FiniteWidth) else 2e-3
    expected = solution.kernels["Phi[mix]"].at()
    torch.testing.assert_close((features.T * m) @ features, expected, rtol=0, atol=rounding * float(expected.max()))


def test_distributions_approach_the_limit_s_and_are_pooled_drawn_kept_and_resumed(tmp_path):
    asked = problem(record={"mix": "mix"})
    limits = [CausalDMFT(1024, seed=seed, keep_state=True)(asked) for seed in (0, 1)]
    nets = width_sweep(asked, (16, 256), 4)
    report = mf.deviation(nets, limits)
    small, large = report["h[mix]"].deviation
    assert large < 0.6 * small  # 1/4 between widths, and a spread over four seeds
    assert mf.pooled(limits).preactivations(layer="mix")[0].shape == (2048, P)
    axes = mf.plot.preactivations(nets, limits[0])
    assert axes[0].get_xlabel() == "preactivation $h$[mix] of sample 0"
    axes[0].figure.draw_without_rendering()
    for run, solver in ((limits[0], CausalDMFT(1024, keep_state=True)), (nets[0], FiniteWidth(16))):
        kept = mf.load(mf.save(run, tmp_path / "run.nc"), network=asked.network)
        assert kept == run
        longer = replace(solver, snapshots=(0, 4, 5)).resume(kept, 1)
        assert torch.equal(longer.preactivations(0, "mix")[0], run.preactivations(0, "mix")[0])
        assert longer.snapshots[-1] == 5


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_what_was_not_kept_is_refused_with_what_was(solver):
    with pytest.raises(
        ValueError, match=r"no preactivations 'read' were kept: kept are h\[mix\], h\[first\]; name some"
    ):
        solver(problem()).preactivations(layer="read")
    with pytest.raises(ValueError, match=r"no preactivations 1 were kept: kept are none.*keep_neurons=True"):
        replace(solver, keep_neurons=False)(problem()).preactivations()
    assert replace(solver, keep_neurons=False)(problem()).recorded == {}


def test_neurons_count_in_memory():
    plain, noted = (FiniteWidth(1000).parts(problem(record=record)) for record in ({}, {"mix": "mix"}))
    size = sum(sum(b for b, _ in parts.values()) * sign for parts, sign in ((noted, 1), (plain, -1)))
    assert size == 2 * 1000 * P * 8  # two snapshots of float64
