"""Networks whose matrices are revealed as they are used: equal in law to FiniteWidth, which shares no code with them."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import ks_2samp

import meanfield as mf
from solvers import FiniteWidth, RevealedWidth
from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.neurons import plain_neurons

DATA = mf.digits((0, 1), n_train=4, n_test=2)
F64 = torch.float64


def dense(width, seed=0, tolerance=1e-12):
    below, above = (plain_neurons(width, 2 * seed + k, F64, "cpu", finite=True) for k in (0, 1))
    return InfiniteDense(below, above, tolerance, torch.empty(0, dtype=F64))


def test_it_is_one_matrix_whatever_is_asked_of_it_in_which_order():
    """<g, W v> = <W^T g, v> to rounding, also where forward and backward took turns, and beyond the point where all of it is known"""
    layer, draw, nothing = dense(12), torch.Generator().manual_seed(5), torch.zeros(0, 0, dtype=F64)
    v, g = (torch.randn(30, 12, generator=draw, dtype=F64) for _ in range(2))
    for k in range(0, 30, 3):
        layer.forward(v[k : k + 3], nothing)
        layer.backward(g[k : k + 3], nothing)
    forward, back = layer.forward(v, nothing)[0], layer.backward(g, nothing)[0]
    torch.testing.assert_close(g @ forward.T, back @ v.T, rtol=1e-9, atol=1e-9)


def test_a_matrix_that_is_known_altogether_has_independent_gaussian_entries():
    """Revealed by features and gradients in turn, over 3000 draws: means, variances and correlations of the 16 entries"""
    draw, entries = torch.Generator().manual_seed(6), []
    v, g, nothing = (
        torch.randn(2, 4, generator=draw, dtype=F64),
        torch.randn(1, 4, generator=draw, dtype=F64),
        torch.zeros(0, 0, dtype=F64),
    )
    unit = torch.eye(4, dtype=F64)
    for seed in range(3000):
        layer = dense(4, seed + 10)
        layer.backward(layer.forward(v, nothing)[0][:1] + g, nothing)  # gradients depend on what was seen
        entries.append(
            layer.forward(unit, nothing)[0].flatten() * 4**0.5
        )  # N^(1/2) times a column of N(0, 1/N) entries
    found = torch.stack(entries)
    second = found.T @ found / len(found)
    assert float(found.mean(0).abs().max()) < 4.5 / 3000**0.5
    assert float((second - torch.eye(16, dtype=F64)).abs().max()) < 4.5 * (2 / 3000) ** 0.5


@pytest.mark.parametrize(
    "network",
    [mf.Network(2, "tanh", 1.2, 0.4), mf.Network(3, "relu"), mf.Network(2, "tanh", residual=0.8)],
    ids=["biases", "relu", "residual"],
)
def test_trained_they_have_the_law_of_real_networks(network):
    """Two-sample tests of each of six outputs, and their means and variances, over 300 seeds of width 24"""
    training = mf.Training(0.3, 6, momentum=0.5, weight_decay=0.1, batch_size=3)
    asked = mf.Problem(DATA, network, mf.mean_field(1.0), training)
    seen = []
    for solver in (FiniteWidth(24, snapshots=()), RevealedWidth(24, snapshots=(), keep_neurons=False)):
        nets = solver.ensemble(asked, 300)
        assert [net.width for net in nets] == [24] * 300
        seen.append(torch.stack([torch.cat([net.f[-1], net.f_test[-1]])[:, 0] for net in nets]))
    real, revealed = seen
    assert min(ks_2samp(real[:, k], revealed[:, k]).pvalue for k in range(6)) > 1e-3 / 6
    z = (real.mean(0) - revealed.mean(0)) / ((real.var(0) + revealed.var(0)) / 300).sqrt()
    assert float(z.abs().max()) < 4
    assert (
        float((real.var(0) / revealed.var(0)).log().abs().max()) < 4 * (4 / 300) ** 0.5 * 1.5
    )  # tails heavier than Gaussian


def test_what_it_does_not_train_is_refused():
    asked = mf.Problem(DATA, mf.Network(2), training=mf.Training(0.1, 3))
    flow = replace(asked, training=mf.Training(0.1, 3, "gradient_flow"))
    with pytest.raises(ValueError, match="trains by gradient_descent: received 'gradient_flow', which FiniteWidth"):
        RevealedWidth(8)(flow)
