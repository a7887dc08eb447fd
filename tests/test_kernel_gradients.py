"""Derivatives of kernels against differences of their exact values; elsewhere tensors that autograd follows are refused."""

import pytest
import torch
from torch.autograd import gradcheck

import meanfield as mf
from meanfield.kernels import kernel_gradients
from meanfield.scaling.standard import improved_standard
from solvers import TangentKernelLimit, WassersteinFlow, lazy_prediction, predicted_variance
from solvers.finite.empirical_kernels import empirical_tangent_kernel

NAMES = ("linear", "relu", "erf", "sin", "gelu")


def points(n=3, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def networks(name):
    return {
        "one layer": mf.Network(1, name),
        "biases": mf.Network(3, name, weight_std=1.3, bias_std=0.4),
        "residual": mf.Network(2, name, residual=0.7),
    }


@pytest.mark.parametrize("kind", networks("relu"))
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_the_values(name, kind, monkeypatch):
    """Two tiles of points; x alone stands on both sides and on its diagonal."""
    monkeypatch.setattr(kernel_gradients, "TILE", 2)
    network = networks(name)[kind]
    assert gradcheck(lambda x, x2: mf.nngp_and_ntk(network, mf.ntk(), x, x2), (points(), points(2, 1)))
    assert gradcheck(lambda x: mf.nngp_and_ntk(network, improved_standard(5), x), (points(),))


@pytest.mark.parametrize("name", NAMES)
def test_points_that_coincide_or_are_opposite(name):
    """At correlation 1 and -1. Differences to both sides of the cusp of relu's ntk have the mean 0."""
    x = points()
    others = torch.stack([x[0], 2 * x[1], -x[2]]).detach()
    for network in networks(name).values():
        assert gradcheck(lambda x: mf.nngp_and_ntk(network, mf.ntk(), x, others), (x,))  # noqa: B023


@pytest.mark.parametrize("name", ["linear", "erf", "sin", "gelu"])
def test_at_inputs_of_zero(name):
    x = torch.cat([points().detach(), torch.zeros(1, 2, dtype=torch.float64)]).requires_grad_()
    assert gradcheck(lambda x: mf.nngp_and_ntk(mf.Network(2, name), mf.ntk(), x, points(2, 1)), (x,))
    assert gradcheck(lambda x: mf.nngp_and_ntk(mf.Network(2, name), mf.ntk(), x), (x,))


def test_values_precision_and_what_is_not_known():
    x, network = points(), mf.Network(2, "relu")
    for kernel, plain in zip(
        mf.nngp_and_ntk(network, mf.ntk(), x), mf.nngp_and_ntk(network, mf.ntk(), x.detach()), strict=True
    ):
        assert torch.equal(kernel, plain)
    single = x.detach().float().requires_grad_()
    gradients = [
        torch.autograd.grad(mf.nngp_and_ntk(network, mf.ntk(), some)[1].sum(), some)[0] for some in (x, single)
    ]
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients[1], gradients[0].float())
    ntk = mf.nngp_and_ntk(network, mf.ntk(), x)[1]
    with pytest.raises(RuntimeError, match="kernels have derivatives of first order only"):
        torch.autograd.grad(ntk.sum(), x, create_graph=True)
    dead = torch.cat([x.detach(), torch.zeros(1, 2).double()]).requires_grad_()
    with pytest.raises(ValueError, match=r"row 3 of x2 is zero, where the kernels of relu without biases have no"):
        mf.nngp_and_ntk(network, mf.ntk(), x.detach(), dead)
    assert mf.nngp_and_ntk(mf.Network(2, "relu", bias_std=0.1), mf.ntk(), dead)[1].requires_grad
    with pytest.raises(ValueError, match=r"not known for the activation 'tanh'.*x\.detach\(\)"):
        mf.nngp_and_ntk(mf.Network(2, "tanh"), mf.ntk(), x)


def problem(scaling=None):
    data = mf.Dataset(points().detach(), points(seed=1).detach()[:, :1])
    return mf.Problem(data, mf.Network(1, "erf"), scaling or mf.ntk(), mf.Training(0.1, 2))


def cloud():
    return mf.ParticleMeasure(points()[:, :1], points(), torch.full((3,), 1 / 3, dtype=torch.float64))


def gram():
    return points() @ points().T + torch.eye(3)


CUT = {
    "Dataset": lambda: mf.Dataset(points(), [1.0, 2.0, 3.0]),
    "a list of tensors": lambda: mf.Dataset([*points()], [1.0, 2.0, 3.0]),
    "a number": lambda: mf.Training(learning_rate=points()[0, 0].square()),
    "conv_nngp_and_ntk": lambda: mf.conv_nngp_and_ntk(
        mf.ConvNetwork(filter_size=1), mf.ntk(), points()[:, :, None, None]
    ),
    "empirical_tangent_kernel": lambda: empirical_tangent_kernel(mf.Network(), mf.ntk(), points(), 4),
    "alignment": lambda: mf.alignment(gram(), [1.0, 2.0, 3.0]),
    "spectrum, kernel": lambda: mf.spectrum(gram(), [1.0, 2.0, 3.0]),
    "spectrum, y": lambda: mf.spectrum(gram().detach(), points()[:, 0]),
    "marginal_distance": lambda: mf.marginal_distance((points(), torch.ones(3)), (points(), torch.ones(3))),
    "measure_distance": lambda: mf.measure_distance(cloud(), cloud()),
    "TangentKernelLimit, kernel": lambda: TangentKernelLimit(kernel=gram())(problem()),
    "TangentKernelLimit, initial": lambda: TangentKernelLimit(initial=points()[:, :1])(problem()),
    "lazy_prediction, covariance": lambda: lazy_prediction(problem(), covariance=gram()),
    "WassersteinFlow": lambda: WassersteinFlow(initial=cloud())(problem(mf.mean_field())),
    "predicted_variance": lambda: predicted_variance(problem(mf.mean_field()), initial=cloud()),
}


@pytest.mark.parametrize("asked", CUT)
def test_nothing_cuts_autograd_in_silence(asked):
    with pytest.raises(ValueError, match=r"requires gradients, which do not pass through here: give .*\.detach\(\)"):
        CUT[asked]()
    with torch.no_grad():
        CUT[asked]()


def test_a_gram_matrix_that_was_checked_carries_derivatives():
    assert mf.check_gram(gram()).requires_grad
