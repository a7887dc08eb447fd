"""Modules whose matrices are revealed as they are used: known at the end, they train in plain torch to the same outputs."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp

import meanfield as mf
from meanfield.network.architecture import architecture
from meanfield.problem.losses import loss as loss_called
from solvers import FiniteWidth, RevealedWidth
from solvers.dmft.module_limit import ModuleLimit
from solvers.dmft.neurons import Population
from solvers.dmft.stand_in import Matrix, Record
from solvers.finite.modules import ModuleNetworks
from solvers.running.inputs import EVERYWHERE
from solvers.running.integrator import weighted
from solvers.running.sharding import Shard
from solvers.running.skeleton import Samples
from tests.any_networks import Convolutional, Language, Recurrent, Residual, digits, text

DOUBLE = torch.empty(0, dtype=torch.float64)
IMAGES, ROWS = (Samples(*(t[:4] for t in digits(6, image)), digits(6, image)[0][4:]) for image in (True, False))
LETTERS = Samples(*text())
CASES = {
    "convolutional": (lambda n: Convolutional(n, torch.tanh), IMAGES, "squared"),
    "residual of twice the width": (Residual, ROWS, "squared"),
    "recurrent": (Recurrent, ROWS, "squared"),
    "transformer": (Language, LETTERS, "cross_entropy"),
}


def entries(matrix, module):
    """The numbers of a matrix or filter, by what torch's layer does with it to every unit field"""
    above, below, *kernel = matrix.shape
    unit = torch.eye(below * int(torch.tensor(kernel).prod()) if kernel else below, dtype=torch.float64)
    if not kernel:
        return F.linear(unit, matrix).T.clone()
    image = F.conv2d(unit.reshape(-1, below, *kernel), matrix, stride=module.stride)
    return image.flatten(1).T.reshape(above, below, *kernel).clone()


def steps_of(method, state, steps=5, eta=0.4):
    found = []
    for step in range(steps + 1):
        passed = method.forward(state, EVERYWHERE, step < steps)
        found.append(passed.f.detach())
        if step < steps:
            state = weighted((1.0, eta), (tuple(state), tuple(method.backward(passed))))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_that_was_revealed_trains_in_plain_torch_to_the_same_outputs(case):
    """To rounding, over five steps at width 12 (of neurons as of data, so that bases fill up), test points included"""
    build, data, loss = CASES[case]
    network, scaling, width = architecture(build), mf.mean_field(1.5), 12
    population = Population(width, 3, "finite", DOUBLE, Shard(width))
    sweep = ModuleLimit(network, scaling, data, loss_called(loss), population, (1e-12, 1e-12))
    state = sweep.initial_state()
    theta = dict(zip(sweep.own, state[len(sweep.learning) : -1], strict=True)) | sweep.fixed.theta
    theta = {name: t.clone() for name, t in theta.items()}
    found = steps_of(sweep, state)
    for name, directions in sweep.fixed.directions.items():
        theta[name] = (directions @ theta[name]).T

    def matrices(given):
        return {
            name: entries(w, sweep.skeleton.module.get_submodule(name.removesuffix(".weight")))
            for name, w in given.items()
            if isinstance(w, Matrix)
        }

    weights = {name: t * sweep.units[name].multiplier for name, t in theta.items()}
    nothing = {name: DOUBLE.new_zeros(0, 0) for name in sweep.learning}
    with torch.no_grad():
        whole = sweep._outputs(weights, nothing, {}, data.x, Record(DOUBLE.new_zeros(())), ask=matrices)
    theta |= {name: w / sweep.units[name].multiplier for name, w in whole.items()}
    real = ModuleNetworks(network, scaling, width, (0,), data, loss_called(loss), DOUBLE)
    real.initial_state()
    real.frozen = {name: t[None] for name, t in theta.items() if name not in real.names}
    expected = steps_of(real, tuple(theta[name][None] for name in real.names))
    assert float((expected[0] - expected[-1]).abs().max()) > 0.02
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=1e-8, atol=1e-9)


def test_in_law_they_are_networks():
    """Recurrent, 120 seeds of width 12 after two steps: two-sample tests, means and variances of four outputs"""
    x, y = digits(6)
    asked = mf.Problem(mf.Dataset(x[:4], y[:4]), Recurrent, mf.mean_field(1.0), mf.Training(0.5, 2))
    real, revealed = (
        torch.stack([net.f[-1, :, 0] for net in solver.ensemble(asked, 120)])
        for solver in (FiniteWidth(12, snapshots=()), RevealedWidth(12, snapshots=(), keep_neurons=False))
    )
    assert min(ks_2samp(real[:, k], revealed[:, k]).pvalue for k in range(4)) > 1e-3 / 4
    z = (real.mean(0) - revealed.mean(0)) / ((real.var(0) + revealed.var(0)) / 120).sqrt()
    assert float(z.abs().max()) < 4
    assert float((real.var(0) / revealed.var(0)).log().abs().max()) < 4 * (4 / 120) ** 0.5 * 1.5


def test_matrices_of_another_law_and_gradient_flow_are_refused():
    x, y = digits(4)
    asked = mf.Problem(mf.Dataset(x, y), mf.Architecture(Recurrent, initial_law="uniform"), mf.mean_field(1.0))
    with pytest.raises(ValueError, match=r"revealed as Gaussian ones: received 'uniform' for the layer 'again'"):
        RevealedWidth(16)(asked)
    flow = mf.Problem(mf.Dataset(x, y), Recurrent, mf.mean_field(1.0), mf.Training(0.1, 2, "gradient_flow"))
    with pytest.raises(ValueError, match="trains by gradient_descent: received 'gradient_flow'"):
        RevealedWidth(16)(flow)
