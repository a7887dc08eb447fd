"""NNGP and tangent kernels of dense networks against high precision, invariances, and networks of finite width."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

import meanfield as mf
from meanfield.kernels import dense_kernels
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.kernels.gram_checks import check_gram
from meanfield.network import activations
from meanfield.scaling.standard import improved_standard, naive_standard
from solvers.finite.empirical_kernels import empirical_tangent_kernel

NAMES = activations.names()


def points(n=6, inputs=4, seed=0):
    return torch.randn(n, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def awkward():
    """Duplicates, nearly the same, opposite, nearly opposite and collinear points"""
    x = points(8)
    x[1], x[2], x[3] = x[0], x[0] + 1e-6 * x[7], -x[0]
    x[4], x[5] = -x[0] + 1e-5 * x[6], 3 * x[0]
    return x


def relu_in_50_digits(x, network):
    """Equation 43 for ReLU, straight from the arc-cosine formula"""
    with mpmath.workdps(50):
        rows = [[mpmath.mpf(float(v)) for v in row] for row in x]
        n, std2, bias2 = len(rows), mpmath.mpf(network.weight_std) ** 2, mpmath.mpf(network.bias_std) ** 2
        add = mpmath.mpf(1) if network.residual is None else mpmath.mpf(network.residual) ** 2 / network.depth
        c = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                c[i, j] = std2 * mpmath.fdot(rows[i], rows[j]) / len(rows[0]) + bias2
        theta = c.copy()
        for l in range(network.depth):
            phi, through = mpmath.matrix(n, n), mpmath.matrix(n, n)
            for i in range(n):
                for j in range(n):
                    norm = mpmath.sqrt(c[i, i] * c[j, j])
                    rho = max(mpmath.mpf(-1), min(mpmath.mpf(1), c[i, j] / norm))
                    rest = mpmath.pi - mpmath.acos(rho)
                    phi[i, j] = std2 * norm * (mpmath.sqrt(1 - rho * rho) + rest * rho) / (2 * mpmath.pi) + bias2
                    through[i, j] = phi[i, j] + std2 * rest / (2 * mpmath.pi) * theta[i, j]
            if l == network.depth - 1:
                return (np.array(m.tolist(), dtype=float) for m in (phi, through))
            keep = network.residual is not None
            c, theta = (c + add * phi, theta + add * through) if keep else (phi, through)
    raise AssertionError


NETWORKS = {
    "plain": dict(depth=3),
    "bias": dict(depth=3, weight_std=1.3, bias_std=0.5),
    "residual": dict(depth=3, residual=0.8),
    "residual and bias": dict(depth=3, residual=0.8, bias_std=0.4),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_relu_keeps_twelve_digits_near_and_at_correlations_of_one(kind):
    x, network = awkward(), mf.Network(activation="relu", **NETWORKS[kind])
    expected = [torch.from_numpy(k) for k in relu_in_50_digits(x.tolist(), network)]
    for found in (nngp_and_ntk(network, mf.ntk(), x), nngp_and_ntk(network, mf.ntk(), x, x.clone())):
        for kernel, exact in zip(found, expected, strict=True):
            assert float(((kernel - exact).abs() / exact.diagonal().max()).max()) < 1e-12
    for kernel, exact in zip(nngp_and_ntk(network, mf.ntk(), x.float()), expected, strict=True):
        assert kernel.dtype == torch.float32
        single = [torch.from_numpy(k) for k in relu_in_50_digits(x.float().tolist(), network)][exact is expected[1]]
        assert float((kernel.double() - single).abs().max() / single.diagonal().max()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_symmetric_positive_and_invariant_under_rotation(name):
    x, network = points(12, 5), mf.Network(2, name, bias_std=0.3)
    turned = x @ torch.linalg.qr(points(5, 5, seed=3)).Q
    for kernel, again in zip(nngp_and_ntk(network, mf.ntk(), x), nngp_and_ntk(network, mf.ntk(), turned), strict=True):
        assert torch.equal(kernel, kernel.T)
        assert float(torch.linalg.eigvalsh(kernel)[0]) > -1e-13 * float(kernel.diagonal().max())
        torch.testing.assert_close(kernel, again, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
def test_blocks_and_float32(name, monkeypatch):
    monkeypatch.setattr(dense_kernels, "PANEL", 8)
    x, network = points(21, 5), mf.Network(2, name, bias_std=0.3)
    whole = nngp_and_ntk(network, mf.ntk(), x)
    for block in (1, 3, 8, 100) if name != "tanh" else (3,):
        assert all(
            torch.equal(a, b) for a, b in zip(nngp_and_ntk(network, mf.ntk(), x, block=block), whole, strict=True)
        )
    between = nngp_and_ntk(network, mf.ntk(), x[:4], x[4:], block=3)
    for rectangle, full, single in zip(between, whole, nngp_and_ntk(network, mf.ntk(), x.float()), strict=True):
        torch.testing.assert_close(rectangle, full[:4, 4:], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(single, full.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("residual", [None, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_the_diagonal_agrees_with_a_copy_of_the_point(name, residual):
    x, network = points(3), mf.Network(3, name, bias_std=0.2, residual=residual)
    for own, copy in zip(
        nngp_and_ntk(network, mf.ntk(), x), nngp_and_ntk(network, mf.ntk(), x, x.clone()), strict=True
    ):
        torch.testing.assert_close(own.diagonal(), copy.diagonal(), rtol=1e-11, atol=0)


def test_linear_networks_multiply():
    """f = a W .. W x: Phi^l = x x^T / D, and each of the L + 1 layers has the same share of K"""
    x = points()
    nngp, ntk = nngp_and_ntk(mf.Network(4, "linear"), mf.ntk(), x)
    torch.testing.assert_close(nngp, x @ x.T / 4)
    torch.testing.assert_close(ntk, 5 * nngp)


@pytest.mark.parametrize("residual", [None, 0.6])
def test_mean_field_and_ntk_share_the_tangent_kernel(residual):
    x, network = points(), mf.Network(2, "tanh", bias_std=0.4, residual=residual)
    nngp, ntk = nngp_and_ntk(network, mf.ntk(), x)
    for gamma0 in (0.1, 2.0):
        prior, kernel = nngp_and_ntk(network, mf.mean_field(gamma0), x)
        torch.testing.assert_close(kernel, ntk, rtol=1e-12, atol=0)
        assert not prior.any()  # f_0 = 0
    assert nngp.diagonal().min() > 0.1


def test_shares_of_unequal_learning_rates():
    x, network = points(), mf.Network(1, "linear")
    _, ntk = nngp_and_ntk(network, mf.Scaling(-0.5, 0.0, 0.0, sigma=0.5, eta_a=3.0, eta_w=2.0, reference_width=8), x)
    torch.testing.assert_close(ntk, 0.25 * 8 * (3 + 2) * x @ x.T / 4)
    _, ntk = nngp_and_ntk(network, mf.Scaling(-0.5, 0.0, -1.0), x)
    torch.testing.assert_close(ntk, x @ x.T / 4)  # hidden layers that stand still


def test_scalings_without_a_kernel_are_refused():
    with pytest.raises(ValueError, match=r"diverges like N\^1"):
        nngp_and_ntk(mf.Network(), mf.Scaling(-0.5, 1.0, 0.0), points())
    with pytest.raises(ValueError, match="diverges like N"):
        naive_standard()
    with pytest.raises(ValueError, match="scaling must be a Scaling or a Standard: received 'ntk'; give"):
        nngp_and_ntk(mf.Network(), "ntk", points())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="3 widths for 2"):
        nngp_and_ntk(mf.Network(2), improved_standard((3, 4, 5)), points())
    with pytest.raises(ValueError, match="layers of one width"):
        nngp_and_ntk(mf.Network(2, residual=1.0), improved_standard((3, 4)), points())


def standard_network(x, widths, std, bias, generator):
    """Weights and biases of one tanh network in the standard parameterization, and its forward map"""
    sizes = (x.shape[1], *widths, 1)
    shapes = [(b, a) for a, b in itertools.pairwise(sizes)]
    parameters = [std / math.sqrt(s[1]) * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    parameters += [bias * torch.randn(s[0], generator=generator, dtype=torch.float64) for s in shapes]
    return [p.requires_grad_() for p in parameters]


def forward(parameters, x, stretch):
    half, h = len(parameters) // 2, x
    for l, (w, b) in enumerate(zip(parameters[:half], parameters[half:], strict=True)):
        h = h @ w.T / (1.0 if l == 0 else math.sqrt(stretch)) + b
        h = torch.tanh(h) if l < half - 1 else h
    return h[:, 0]


def kernel_of(parameters, x, stretch):
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, parameters, retain_graph=True)])
        for f in forward(parameters, x, stretch)
    ]
    return torch.stack(rows) @ torch.stack(rows).T


def improved_draw(x, widths, s, generator):
    """W ~ N(0, std^2 / N_l) in a network of widths s N_l, whose layers but the first are multiplied by 1/sqrt(s)"""
    parameters = standard_network(x, [s * n for n in widths], 1.2, 0.5, generator)
    for w in parameters[1 : len(widths) + 1]:
        w.data *= math.sqrt(s)
    return parameters


def test_improved_standard_is_the_kernel_of_wide_networks_of_unequal_widths():
    x, widths, generator = points(4, 3), (4, 16), torch.Generator().manual_seed(5)
    _, expected = nngp_and_ntk(mf.Network(2, "tanh", 1.2, 0.5), improved_standard(widths), x)
    many = torch.stack([kernel_of(improved_draw(x, widths, 64, generator), x, 64) for _ in range(24)])
    error = many.std(0) / math.sqrt(24)
    assert float(((many.mean(0) - expected).abs() / error).max()) < 4
    assert float((error / expected.abs()).max()) < 0.1
    _, other = nngp_and_ntk(mf.Network(2, "tanh", 1.2, 0.5), improved_standard((16, 4)), x)
    assert float(((many.mean(0) - other).abs() / error).max()) > 20  # relative widths matter


def test_improved_standard_predicts_training_with_one_learning_rate():
    """f_t of a wide network under plain gradient descent with one rate follows its kernel: f <- f + eta K (y - f) / P"""
    x, widths, s = points(4, 3), (4, 16), 64
    _, kernel = nngp_and_ntk(mf.Network(2, "tanh", 1.2, 0.5), improved_standard(widths), x)
    y, eta, apart = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64), 0.02, []
    for seed in range(3):
        parameters = improved_draw(x, widths, s, torch.Generator().manual_seed(seed))
        predicted = forward(parameters, x, s).detach()
        start = predicted.clone()
        for _ in range(6):
            loss = (forward(parameters, x, s) - y).square().mean() / 2
            with torch.no_grad():
                for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    p -= eta * g
            predicted = predicted + eta * kernel @ (y - predicted) / 4
        found = forward(parameters, x, s).detach()
        apart.append(float((found - predicted).norm() / (predicted - start).norm()))
    assert sum(apart) / 3 < 0.15


def test_naive_standard_diverges_like_the_width():
    x, network, generator = points(4, 3), mf.Network(2, "tanh", 1.2, 0.5), torch.Generator().manual_seed(7)
    sizes = (64, 128, 256)
    measured = []
    for n in sizes:
        expected = nngp_and_ntk(network, naive_standard(n), x)[1]
        many = torch.stack([kernel_of(standard_network(x, (n, n), 1.2, 0.5, generator), x, 1) for _ in range(8)])
        assert (
            float(((many.mean(0) - expected).abs() / (many.std(0) / math.sqrt(8))).max()) < 6
        )  # eight seeds: Student's t
        measured.append(float(many.mean(0).trace()))
    slope = np.polyfit(np.log(sizes), np.log(measured), 1)[0]
    assert 0.85 < slope < 1.05


def test_bad_points():
    network, x = mf.Network(2, "tanh"), points()
    bad = x.clone()
    bad[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"NaN.*row 1, column 2"):
        nngp_and_ntk(network, mf.ntk(), bad)
    with pytest.raises(ValueError, match="differ in dimension"):
        nngp_and_ntk(network, mf.ntk(), x, points(3, 5))
    with pytest.raises(MemoryError, match=r"x\[i:j\]"):
        nngp_and_ntk(network, mf.ntk(), torch.ones(10**6, 1))
    with pytest.raises(ValueError, match="block must be at least 1"):
        nngp_and_ntk(network, mf.ntk(), x, block=0)


@pytest.mark.parametrize("name", ["relu", "tanh", "erf"])
def test_rows_of_zeros_give_zero_and_change_no_other_entry(name):
    """f = 0 there in every network, and so is its gradient"""
    network, x = mf.Network(3, name, residual=0.7), points()
    empty = x[:2] * 0
    joined = torch.cat([x[:3], empty[:1], x[3:], empty[1:]])
    kept = torch.tensor([0, 1, 2, 4, 5, 6])
    real = empirical_tangent_kernel(network, mf.ntk(), joined, 8)
    assert not real[3].any()
    for whole, part, across, none in zip(
        nngp_and_ntk(network, mf.ntk(), joined),
        nngp_and_ntk(network, mf.ntk(), x),
        nngp_and_ntk(network, mf.ntk(), joined, x[:2]),
        nngp_and_ntk(network, mf.ntk(), empty),
        strict=True,
    ):
        assert torch.equal(whole[kept][:, kept], part)
        assert not whole[[3, 7]].any()
        assert not whole[:, [3, 7]].any()
        assert not across[[3, 7]].any()
        assert not none.any()
        torch.testing.assert_close(across[kept], part[:, :2], rtol=1e-9, atol=1e-12)


COSINE = mf.Activation("cos of mine", torch.cos, lambda h: -torch.sin(h))


@pytest.mark.parametrize("which", ["sigmoid", COSINE], ids=["sigmoid", "cos"])
def test_rows_of_zeros_keep_what_phi_of_zero_gives_them(which):
    """Two layers by Gauss-Hermite products of 80 x 80 nodes; a variance of 0 is an average over phi(0) alone."""
    x = torch.tensor([[0.0, 0.0], [1.0, -0.6], [0.4, 0.9]], dtype=torch.float64)
    network = mf.Network(2, which)
    phi, dphi = network.nonlinearity.phi, network.nonlinearity.dphi
    z, w = np.polynomial.hermite_e.hermegauss(80)
    a, b = (torch.from_numpy(t) for t in np.meshgrid(z, z, indexing="ij"))
    weight = torch.from_numpy(np.outer(w, w) / (2 * math.pi))

    def average(f, c, i, j):
        root = c[i, i].sqrt()
        along = c[i, j] / root if root else root
        rest = (c[j, j] - along**2).clamp(min=0).sqrt()
        return (f(root * a) * f(along * a + rest * b) * weight).sum()

    def averages(f, c):
        return torch.stack([torch.stack([average(f, c, i, j) for j in range(3)]) for i in range(3)])

    c = x @ x.T / 2
    theta = c
    for _ in range(2):
        c, through = averages(phi, c), averages(dphi, c)
        theta = c + through * theta
    for found, exact in zip(nngp_and_ntk(network, mf.ntk(), x), (c, theta), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_singular_gram_matrices_are_named_with_the_remedy():
    x = points()
    x[4] = x[1]
    kernel = nngp_and_ntk(mf.Network(2, "relu"), mf.ntk(), x)[1]
    with pytest.raises(ValueError, match=r"smallest eigenvalue.*; points 1 and 4 are duplicates.*jitter=") as caught:
        check_gram(kernel)
    jitter = float(str(caught.value).split("jitter=")[1].split()[0])
    jittered = check_gram(kernel, jitter=jitter)
    torch.testing.assert_close(
        jittered - kernel,
        jitter * float(kernel.diagonal().mean()) * torch.eye(6, dtype=torch.float64),
        rtol=1e-2,
        atol=1e-16,
    )
    assert torch.equal(check_gram(kernel[:4, :4]), kernel[:4, :4])
    for wrong, message in (
        (kernel[:3], "square"),
        (kernel[0], "two dimensions"),
        (kernel + torch.eye(6).roll(1, 0), "not symmetric: .* by up to 1"),
        (kernel / 0, "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_gram(wrong)
