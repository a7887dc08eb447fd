"""Infinite maps: filters as several matrices over one basis, axes of unequal widths; against torch's convolutions and inner products."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from solvers.dmft.infinite_dense import InfiniteDense
from solvers.dmft.neurons import plain_neurons
from solvers.dmft.places import convolution, gathered, phases, spread

DOUBLE = torch.empty(0, dtype=torch.float64)
GEOMETRIES = [
    ((7,), (3,), (1,), (0,), (1,)),
    ((7,), (3,), (2,), (1,), (1,)),
    ((9,), (2,), (3,), (0,), (2,)),
    ((5, 6), (3, 2), (1, 1), "same", (1, 2)),
    ((5, 6), (3, 3), (2, 1), (1, 2), (1, 1)),
    ((4, 4), (4, 4), (1, 1), "valid", (1, 1)),
    ((3, 4, 5), (2, 2, 2), (2, 1, 2), (1, 0, 1), (1, 1, 1)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_places_are_those_of_torch_s_convolutions(geometry):
    """Coefficients spread over offsets and multiplied by filters are a convolution; what is gathered is one, too; backwards likewise"""
    space, kernel, stride, padding, dilation = geometry
    g = torch.Generator().manual_seed(0)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(space) - 1]
    batch, k, s = 2, 3, 4
    c = torch.randn(batch, k, *space, generator=g, dtype=torch.float64).requires_grad_()
    filters = torch.randn(s, k, *kernel, generator=g, dtype=torch.float64)
    right = convolve(c, filters, None, stride, padding, dilation)
    slope = torch.randn(right.shape, generator=g, dtype=torch.float64)
    backwards = torch.autograd.grad(right, c, slope)[0]
    where = convolution(*geometry, "cpu")
    assert where.space == tuple(right.shape[2:])
    rows = c.detach().flatten(2).transpose(0, 1)  # (K, B, positions)
    by_offset = filters.flatten(2)  # (S, K, O)
    total, again, back = 0.0, 0.0, torch.zeros_like(rows)
    for own, offsets in zip(where.places, phases(kernel, stride, dilation), strict=True):
        seen = rows if own.used is None else rows[:, :, own.used]
        inputs, outputs = own.writes.shape[1], own.reads.shape[1]
        weights = by_offset[:, :, offsets]
        total = total + weights.flatten(1) @ spread(seen.flatten(1), own.reads, inputs)
        pulled = torch.einsum("sko,kn->son", weights, seen.flatten(1)).flatten(0, 1)
        again = again + gathered(pulled, own.reads, inputs)
        d = slope.flatten(2).transpose(0, 1).flatten(1)  # (S, B outputs)
        heard = torch.einsum("sko,son->kn", weights, spread(d, own.writes, outputs).reshape(s, len(offsets), -1))
        back[:, :, slice(None) if own.used is None else own.used] += heard.reshape(k, batch, -1)
    for found in (total, again):
        torch.testing.assert_close(found.reshape(s, batch, *where.space).transpose(0, 1), right.detach())
    torch.testing.assert_close(back.transpose(0, 1).reshape(c.shape), backwards)


def test_offsets_of_different_phases_see_different_positions():
    assert phases((3, 3), (1, 1), (1, 1)) == [list(range(9))]
    assert sorted(map(len, phases((3, 3), (2, 2), (1, 1)))) == [1, 2, 2, 4]
    assert phases((3,), (2,), (2,)) == [[0, 1, 2]]
    for one, two in itertools.combinations(convolution((9, 9), (3, 3), (2, 2), (1, 1), (1, 1), "cpu").places, 2):
        assert not set(one.used.tolist()) & set(two.used.tolist())


@pytest.mark.parametrize("offsets", [1, 4])
def test_image_and_adjoint_agree_for_unequal_widths_and_have_the_variance_of_the_entries(offsets):
    """<g, W v> = <W* g, v> with averages over each axis, whatever was learned; |W v|^2 = |v|^2, |W* g|^2 = (n_below / n_above) |g|^2"""
    below, above = plain_neurons(2000, 1, torch.float64, "cpu"), plain_neurons(500, 2, torch.float64, "cpu")
    layer = InfiniteDense(below, above, 1e-7, DOUBLE, offsets=offsets)
    where = convolution((3, 3), (2, 2), (1, 1), (0, 0), (1, 1), "cpu").places[0] if offsets == 4 else None
    g = torch.Generator().manual_seed(3)
    v, w = (torch.randn(9, 2000, generator=g, dtype=torch.float64) for _ in range(2))
    slope = torch.randn(4 if offsets == 4 else 9, 500, generator=g, dtype=torch.float64)
    nothing = DOUBLE.reshape(0, 0)
    image = layer.forward(v, nothing, 1.0, where)[0]
    pulled, d = layer.backward(slope, nothing, 1.0, where)
    assert float(image.square().mean()) == pytest.approx(offsets, rel=0.1)
    assert float(pulled.square().mean()) == pytest.approx(4 * len(slope) / 9 * (offsets if offsets > 1 else 1), rel=0.1)
    learned = torch.randn(len(d), 9 * offsets, generator=g, dtype=torch.float64)
    for field in (v, w):
        image = layer.forward(field, learned, 0.7, where)[0]
        pulled = layer.backward(slope, learned, 0.7, where)[0]
        left, right = float((slope * image).sum() / 500), float((pulled * field).sum() / 2000)
        assert left == pytest.approx(right, rel=1e-6)
    repeated = layer.forward(2 * v - w, learned, 0.7, where)[0]
    parts = 2 * layer.forward(v, learned, 0.7, where)[0] - layer.forward(w, learned, 0.7, where)[0]
    torch.testing.assert_close(repeated, parts, rtol=1e-5, atol=1e-5)


def test_many_fields_at_once_span_what_they_span_in_parts():
    neurons = plain_neurons(700, 1, torch.float64, "cpu")
    layer = InfiniteDense(neurons, neurons, 1e-6, DOUBLE)
    base = torch.randn(20, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = torch.randn(1200, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) @ base
    image, c, _ = layer.forward(v, DOUBLE.reshape(0, 0), 1.0)
    assert len(layer.e) == 20
    torch.testing.assert_close(c.T @ layer.e.fields.rows, v, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        image @ image.T / 700, v @ v.T / 700, rtol=1e-6, atol=1e-6
    )  # orthonormal images keep Gram matrices
