"""Kernels of convolutional networks against dense ones, real networks, and their symmetries."""

import math

import pytest
import torch

import meanfield as mf
from meanfield.kernels.conv_kernels import conv_nngp_and_ntk
from meanfield.kernels.dense_kernels import nngp_and_ntk
from meanfield.network.convolutional import ConvNetwork
from meanfield.scaling.standard import improved_standard, naive_standard
from solvers.finite.empirical_kernels import monte_carlo_kernels


def some(n=3, channels=2, height=5, width=6, seed=0):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scaling", [mf.ntk(), improved_standard((5, 7))], ids=["ntk", "improved"])
@pytest.mark.parametrize("readout", ["vectorised", "global_average"])
@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
def test_one_pixel_and_filters_of_one_are_a_dense_network(name, readout, scaling):
    x = some(4, 3, 1, 1)
    found = conv_nngp_and_ntk(ConvNetwork(2, name, 1, readout=readout, weight_std=1.2, bias_std=0.3), scaling, x)
    for kernel, dense in zip(found, nngp_and_ntk(mf.Network(2, name, 1.2, 0.3), scaling, x[:, :, 0, 0]), strict=True):
        torch.testing.assert_close(kernel, dense, rtol=1e-7 if name == "tanh" else 1e-12, atol=1e-12)


CASES = [
    dict(),
    dict(readout="global_average"),
    dict(padding="circular", bias_std=0.4),
    dict(padding="valid", filter_size=2, readout="global_average", activation="erf", bias_std=0.4),
    dict(padding="valid", activation="erf", weight_std=1.3),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_real_convolutional_networks_within_four_standard_errors(case):
    network, x = ConvNetwork(2, **case), some()
    found, (nngp, ntk) = monte_carlo_kernels(network, mf.ntk(), x, 96, 16), conv_nngp_and_ntk(network, mf.ntk(), x)
    assert float(((found.nngp - nngp) / found.nngp_error).abs().max()) < 4
    assert float(((found.ntk - ntk) / found.ntk_error).abs().max()) < 4
    assert float((found.ntk_error / ntk.diagonal().max()).max()) < 0.06


@pytest.mark.parametrize("readout", ["vectorised", "global_average"])
def test_real_networks_in_the_improved_standard_parameterization(readout):
    network, x, scaling = ConvNetwork(2, readout=readout, bias_std=0.4), some(), improved_standard((2, 5))
    found, (nngp, ntk) = monte_carlo_kernels(network, scaling, x, 24, 16), conv_nngp_and_ntk(network, scaling, x)
    assert float(((found.nngp - nngp) / found.nngp_error).abs().max()) < 4
    assert float(((found.ntk - ntk) / found.ntk_error).abs().max()) < 4


@pytest.mark.parametrize("readout", ["vectorised", "global_average"])
def test_blocks_symmetry_float32_and_a_copy(readout):
    network, x = ConvNetwork(2, readout=readout, bias_std=0.2), some(5)
    whole = conv_nngp_and_ntk(network, mf.ntk(), x)
    for block in (1, 2, 5):
        for kernel, part in zip(whole, conv_nngp_and_ntk(network, mf.ntk(), x, block=block), strict=True):
            torch.testing.assert_close(kernel, part, rtol=1e-13, atol=1e-14)
    copies = conv_nngp_and_ntk(network, mf.ntk(), x[:2], x)
    for kernel, copy, single in zip(whole, copies, conv_nngp_and_ntk(network, mf.ntk(), x.float()), strict=True):
        assert torch.equal(kernel, kernel.T)
        assert float(torch.linalg.eigvalsh(kernel)[0]) > 0
        torch.testing.assert_close(copy, kernel[:2], rtol=1e-9, atol=1e-12)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, kernel.float(), rtol=1e-6, atol=1e-6)


def test_the_global_average_of_circular_networks_ignores_translations():
    network, x = ConvNetwork(2, padding="circular", readout="global_average"), some()
    for kernel, moved in zip(
        conv_nngp_and_ntk(network, mf.ntk(), x),
        conv_nngp_and_ntk(network, mf.ntk(), x, x.roll((2, 3), (2, 3))),
        strict=True,
    ):
        torch.testing.assert_close(kernel, moved, rtol=1e-7, atol=1e-10)


def test_the_naive_standard_parameterization_grows_with_the_channels():
    network, x = ConvNetwork(2), some()
    small, large = (conv_nngp_and_ntk(network, naive_standard(n), x)[1].trace() for n in (10**3, 10**6))
    assert math.log10(large / small) == pytest.approx(3, abs=0.01)


def test_images_of_a_wrong_layout():
    network, x = ConvNetwork(2), some()
    with pytest.raises(ValueError, match=r"channels last.*permute\(0, 3, 1, 2\)"):
        conv_nngp_and_ntk(network, mf.ntk(), torch.ones(2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"x\[:, None\]"):
        conv_nngp_and_ntk(network, mf.ntk(), torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match=r"\(P, channels, H, W\): received shape \(2, 64\)"):
        conv_nngp_and_ntk(network, mf.ntk(), torch.ones(2, 64))
    with pytest.raises(ValueError, match="different images"):
        conv_nngp_and_ntk(network, mf.ntk(), x, some(2, 2, 6, 6))
    with pytest.raises(ValueError, match=r"at least 5 x 5"):
        conv_nngp_and_ntk(ConvNetwork(2, padding="valid"), mf.ntk(), some(2, 2, 4, 8))
    with pytest.raises(ValueError, match="NaN"):
        conv_nngp_and_ntk(network, mf.ntk(), x * math.nan)
    with pytest.raises(MemoryError, match="smaller block"):
        conv_nngp_and_ntk(ConvNetwork(readout="global_average"), mf.ntk(), torch.ones(10**3, 1, 28, 28), block=1000)


@pytest.mark.parametrize("readout", ["vectorised", "global_average"])
def test_blank_images_give_zero_and_change_no_other_entry(readout):
    network, x = ConvNetwork(2, readout=readout), some(4)
    joined, kept = torch.cat([x[:2], 0 * x[:1], x[2:]]), torch.tensor([0, 1, 3, 4])
    for whole, part, across in zip(
        conv_nngp_and_ntk(network, mf.ntk(), joined),
        conv_nngp_and_ntk(network, mf.ntk(), x),
        conv_nngp_and_ntk(network, mf.ntk(), 0 * x, x),
        strict=True,
    ):
        torch.testing.assert_close(whole[kept][:, kept], part, rtol=1e-13, atol=1e-14)
        assert not whole[2].any()
        assert not whole[:, 2].any()
        assert not across.any()
    with pytest.raises(ValueError, match=r"at least 5 x 5"):
        conv_nngp_and_ntk(ConvNetwork(2, padding="valid"), mf.ntk(), 0 * some(2, 2, 4, 8))
    found = monte_carlo_kernels(ConvNetwork(2, "sigmoid", readout=readout), mf.ntk(), joined, 96, 16)
    lit = conv_nngp_and_ntk(ConvNetwork(2, "sigmoid", readout=readout), mf.ntk(), joined)[1]
    assert float(((found.ntk - lit) / found.ntk_error).abs().max()) < 4


def test_images_without_a_common_pixel_have_a_kernel_of_zero():
    left, right = torch.zeros(1, 1, 4, 12), torch.zeros(1, 1, 4, 12)
    left[..., :3], right[..., 9:] = 1.0, 1.0
    for kernel in conv_nngp_and_ntk(ConvNetwork(1, "erf"), mf.ntk(), left, right):
        assert float(kernel.abs().max()) == 0


def test_bad_descriptions():
    with pytest.raises(ValueError, match="must be odd"):
        ConvNetwork(filter_size=2)
    with pytest.raises(ValueError, match="unknown padding"):
        ConvNetwork(padding="reflect")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown readout"):
        ConvNetwork(readout="mean")  # pyright: ignore[reportArgumentType]
