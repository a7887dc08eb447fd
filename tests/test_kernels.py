"""Two-time kernels are averages over neurons; the tangent kernel is the Gram matrix of the network's Jacobian."""

import pytest
import torch

import meanfield as mf
from meanfield import TwoTimeKernel, activation
from meanfield.scaling.scaling import MeasureLimit
from meanfield.solution.two_time import recorded, tangent_of

STEPS = (0, 3, 10)


def _fields(neurons, columns, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    m = torch.rand(neurons, generator=g, dtype=torch.float64)
    fields = [torch.randn(neurons, columns, generator=g, dtype=torch.float64) for _ in STEPS]
    return (m / m.sum()).to(dtype), [q.to(dtype) for q in fields]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neurons", [1, 5, 12, 13, 500])  # 3 x 4 columns: few neurons up to 12, many from 13 on
def test_kernels_are_averages_over_neurons(neurons, dtype):
    """sum_r m_r q_r(t) q_r(s) for every pair of steps, q = tanh(field)."""
    m, fields = _fields(neurons, 4, dtype)
    kernel = TwoTimeKernel.from_fields(STEPS, m, fields, 4, torch.tanh)
    assert kernel.factor.shape[1] <= 12
    for t, ft in zip(STEPS, fields, strict=True):
        for s, fs in zip(STEPS, fields, strict=True):
            exact = torch.einsum("r,rp,rq->pq", m.double(), ft.double().tanh(), fs.double().tanh())
            error = (kernel.at(t, s).double() - exact).abs().max()
            assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_directions_without_weight_are_left_out():
    """Many copies of two neurons: rank 2; silent neurons: the kernel 0."""
    m, fields = _fields(2, 4)
    many = TwoTimeKernel.from_fields(STEPS, (m / 100).repeat(100), [q.repeat(100, 1) for q in fields], 4)
    assert many.factor.shape == (3, 2, 4)
    few = TwoTimeKernel.from_fields(STEPS, m, fields, 4)
    torch.testing.assert_close(many.at(0, 10), few.at(0, 10), rtol=0, atol=1e-14)
    silent = TwoTimeKernel.from_fields(STEPS, (m / 100).repeat(100), [0 * q.repeat(100, 1) for q in fields], 4)
    assert torch.equal(silent.at(0, 10), torch.zeros(4, 4).double())


def test_kernel_times_are_steps_and_minus_one_is_the_last():
    kernel = TwoTimeKernel.from_fields(STEPS, *_fields(5, 4), 4)
    assert torch.equal(kernel.at(), kernel.at(10, 10))
    assert torch.equal(kernel.at(3), kernel.at(3, 3))
    assert torch.equal(kernel.at(3, -1), kernel.at(10, 3).T)


def test_kernels_are_equal_by_value():
    first, second = (TwoTimeKernel.from_fields(STEPS, *_fields(5, 4), 4) for _ in range(2))
    assert first == second
    assert first != TwoTimeKernel((0, 3, 11), first.factor)
    assert first != TwoTimeKernel(STEPS, 2 * first.factor)


@pytest.mark.parametrize("step", [1, 11, -2])
def test_a_step_that_was_not_recorded_is_answered_with_those_that_were(step):
    with pytest.raises(ValueError, match=f"step {step} was not recorded; recorded are \\(0, 3, 10\\).*snapshots"):
        TwoTimeKernel.from_fields(STEPS, *_fields(5, 4), 4).at(0, step)
    with pytest.raises(ValueError, match="nothing was recorded: give the solver snapshots"):
        recorded(step, ())


@pytest.mark.parametrize(("weight_std", "bias_std"), [(1.0, 0.0), (1.4, 0.0), (1.0, 0.6), (1.4, 0.6)])
def test_tangent_kernel_is_the_gram_matrix_of_the_jacobian(weight_std, bias_std):
    """N times the Gram matrix over all parameters of f = (1/N) (s sum_r a_r phi(h_r) + t sqrt(N) b), h = s w.x / sqrt(D) + t b0."""
    n, p, d, c, act = 7, 4, 3, 2, activation("gelu")
    g = torch.Generator().manual_seed(0)
    a, w, b0, b, x = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, c), (n, d), (n,), (c,), (p, d)))

    def fields(w, b0):
        return weight_std * x @ w.T / d**0.5 + bias_std * b0  # (P, N)

    def f(a, w, b0, b):
        return (weight_std * act(fields(w, b0)) @ a + bias_std * n**0.5 * b) / n  # (P, C)

    rows = [j.flatten(2) for j in torch.func.jacrev(f, argnums=(0, 1, 2, 3))(a, w, b0, b)]
    jacobian = torch.cat(rows, 2)  # (P, C, parameters)
    exact = n * torch.einsum("pck,qdk->pcqd", jacobian, jacobian)

    h = fields(w, b0).T  # (N, P)
    gradients = (weight_std * act.dphi(h)[:, :, None] * a[:, None, :]).flatten(1)  # N df/dh, (N, P C)
    asked = mf.Problem(mf.Dataset(x, x[:, :c]), mf.Network(1, act, weight_std, bias_std))
    found = tangent_of(asked, MeasureLimit(1, 1, 1), [act(h).T @ act(h) / n], [gradients.T @ gradients / n])
    torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-13)
