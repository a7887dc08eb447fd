"""The infinite Gaussian matrix as an operator: its algebra is exact, its law is that of a wide matrix; no network appears here."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from solvers.dmft.basis import Basis, Rows, combination, orthonormal
from solvers.dmft.infinite_dense import InfiniteDense, Known
from solvers.dmft.neurons import exact_neurons, plain_neurons, sobol_neurons
from solvers.running.failures import RankError, enough
from solvers.running.integrator import weighted

S = 300
F64, F32 = torch.float64, torch.float32
EXACT = dict(rtol=1e-11, atol=1e-11)


class Trained(InfiniteDense):
    """With what was learned so far"""

    def __init__(self, *args):
        super().__init__(*args)
        self.learned, self.scale = torch.empty(0, 0, dtype=self.u.rows.dtype), 1.0

    def forward(self, v):
        return super().forward(v, self.learned, self.scale)

    def backward(self, g):
        return super().backward(g, self.learned, self.scale)

    def update(self, d, c):
        (self.learned,) = weighted((1.0, 1.0), ((d @ c.T,), (self.learned,)))

    def decay(self, factor):
        self.learned, self.scale = factor * self.learned, factor * self.scale


def dense(samples=S, seed=1, tolerance=1e-6, dtype=F64, draws=plain_neurons):
    below, above = (draws(samples, 2 * seed + i, dtype, "cpu") for i in (0, 1))
    return Trained(below, above, tolerance, torch.empty(0, dtype=dtype))


def fields(count, seed=0, samples=S, dtype=F64):
    return torch.randn(count, samples, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def dot(a, b):
    return a @ b.T / a.shape[1]


def used():
    """A matrix with a history of pushes and pulls of correlated vectors, which are returned"""
    w, v, g = dense(), fields(4, 1), fields(3, 2)
    h = w.forward(v)[0]
    z = w.backward(torch.cat([g, h.tanh()]))[0]
    v = torch.cat([v, z.tanh(), v[:2] + z[:2]])
    h = w.forward(v)[0]
    g = torch.cat([g, h[-2:] * g[:2]])
    w.backward(g)
    return w, v, g


def test_the_transpose_is_the_adjoint_before_and_after_updates_and_decay():
    w, v, g = used()
    for change in (
        lambda: None,
        lambda: w.update(w.backward(fields(len(v), 5))[1], w.forward(v)[1]),
        lambda: w.decay(0.7),
    ):
        change()
        torch.testing.assert_close(dot(g, w.forward(v)[0]), dot(w.backward(g)[0], v), **EXACT)
        assert float(dot(g, w.forward(v)[0]).abs().max()) > 0.1


def test_it_is_linear_on_what_was_revealed_and_remembers_it():
    w, v, g = used()
    mix = fields(5, 3, len(v))
    for act, known in ((w.forward, v), (w.backward, g)):
        m = mix[:, : len(known)]
        image = act(known)[0]
        torch.testing.assert_close(act(m @ known)[0], m @ image, **EXACT)
        torch.testing.assert_close(act(known)[0], image, **EXACT)


def test_an_image_does_not_change_when_more_is_revealed():
    w, v, g = dense(), fields(3, 1), fields(2, 2)
    h = w.forward(v)[0]
    w.backward(g)
    w.backward(h.tanh())
    torch.testing.assert_close(w.forward(v)[0], h, **EXACT)
    z = w.backward(g)[0]
    w.forward(z.tanh())
    w.forward(z)
    torch.testing.assert_close(w.backward(g)[0], z, **EXACT)


@pytest.mark.parametrize("draws", [plain_neurons, sobol_neurons])
def test_fields_that_do_not_know_the_matrix_keep_their_inner_products(draws):
    """<W v, W v'> = <v, v'> to rounding, not to 1/sqrt(S); likewise for W^T."""
    w, v, g = dense(draws=draws), fields(5, 1), fields(5, 2)
    torch.testing.assert_close(dot(w.forward(v)[0], w.forward(v)[0]), dot(v, v), **EXACT)
    w, v = dense(draws=draws), fields(5, 1)
    torch.testing.assert_close(dot(w.backward(g)[0], w.backward(g)[0]), dot(g, g), **EXACT)


@pytest.mark.parametrize("draws", [plain_neurons, sobol_neurons])
def test_powers_of_w_wt_have_the_catalan_numbers_of_an_infinite_matrix(draws):
    """<g, (W W^T)^k g> = 1, 2, 5, 14, 42, 132 times <g, g>: each pass needs the response of the one before, and no sample is in the way."""
    w, g = dense(draws=draws), fields(1)
    power, found = g, []
    for _ in range(6):
        power = w.forward(w.backward(power)[0])[0]
        found.append(float(dot(g, power) / dot(g, g)))
    np.testing.assert_allclose(found, [math.comb(2 * k, k) / (k + 1) for k in range(1, 7)], rtol=1e-10)


def test_images_of_orthogonal_fields_are_orthogonal_and_gaussian():
    none = torch.empty(0, 20_000, dtype=F64)
    w, v = dense(samples=20_000), orthonormal(fields(4, 1, 20_000), none)
    h = w.forward(v)[0]
    torch.testing.assert_close(dot(h, h), torch.eye(4, dtype=F64), **EXACT)
    assert max(abs(stats.kurtosis(row)) for row in h.numpy()) < 4 * math.sqrt(24 / 20_000)
    assert min(stats.kstest(row, "norm").pvalue for row in h.numpy()) > 6e-5  # 4 sigma


def test_update_adds_an_outer_product():
    """(W + g phi^T / S) v = W v + g <phi, v>, and the transpose."""
    w, v, g = used()
    a, phi = fields(2, 7), v[:2] + v[2:4]
    h, z = w.forward(v)[0], w.backward(g)[0]
    w.update(w.backward(a)[1], w.forward(phi)[1])
    torch.testing.assert_close(w.forward(v)[0], h + dot(v, phi) @ a, **EXACT)
    torch.testing.assert_close(w.backward(g)[0], z + dot(g, a) @ phi, **EXACT)


def test_what_is_learned_along_a_dropped_gradient_is_dropped_too():
    """Of a gradient whose part of 1e-3 was dropped, all but that part is learned"""
    w, v = dense(tolerance=1e-2), fields(1, 1)
    g = fields(1, 2)
    w.backward(g)
    odd = fields(1, 3)
    odd -= dot(odd, g) / dot(g, g) * g
    h, c, _ = w.forward(v)
    d = w.backward(g + 1e-3 * odd)[1]
    assert len(w.f) == 1
    w.update(d, c)
    torch.testing.assert_close(w.forward(v)[0], h + dot(v, v) @ g, **EXACT)


@pytest.mark.parametrize("known", [0, 1, 48, 49, 97, 200])
@pytest.mark.parametrize("count", [0, 1, 24, 25, 128, 129])
def test_combinations_are_products(known, count):
    c, rows, onto = fields(known, 1, count), fields(known, 2, 50), fields(count, 3, 50)
    torch.testing.assert_close(combination(c, rows), c.T @ rows, **EXACT)
    expected = onto + c.T @ rows
    assert combination(c, rows, onto) is onto
    torch.testing.assert_close(onto, expected, **EXACT)


def test_decay_scales_the_matrix_and_what_is_revealed_later():
    w, v, g = used()
    w.update(w.backward(fields(len(v), 5, len(g)) @ g)[1], w.forward(v)[1])
    h, z = w.forward(v)[0], w.backward(g)[0]
    w.decay(0.5)
    torch.testing.assert_close(w.forward(v)[0], 0.5 * h, **EXACT)
    torch.testing.assert_close(w.backward(g)[0], 0.5 * z, **EXACT)
    fresh = w.known_below[0].fresh(2)  # unknown to the matrix
    image = w.forward(fresh)[0]
    torch.testing.assert_close(dot(image, image), 0.25 * dot(fresh, fresh), **EXACT)
    fresh = w.known_above[0].fresh(2)
    image = w.backward(fresh)[0]
    torch.testing.assert_close(dot(image, image), 0.25 * dot(fresh, fresh), **EXACT)


class Matrix:
    """A finite matrix of N(0, 1/S) entries under the same two verbs"""

    def __init__(self, seed, samples):
        self.w = fields(samples, 10_000 + seed, samples) / math.sqrt(samples)

    def forward(self, v):
        return v @ self.w.T, None

    def backward(self, g):
        return g @ self.w, None


def back_and_forth(w, seed, samples):
    """Averages over neurons after a forward, a backward and a second forward pass through nonlinearities"""
    x, a = fields(2, 20_000 + seed, samples).split(1)
    h = w.forward(x.tanh())[0]
    g = a * (1 - h.tanh() ** 2) + 0.5 * h
    z = w.backward(g)[0]
    y = x + z
    k = w.forward(y.tanh())[0]
    pairs = (h, h), (a, h.tanh()), (z, z), (z, x.tanh()), (z, y.tanh()), (k, k), (k, h), (k, g), (a, k.tanh())
    return [float(dot(p, q)) for p, q in pairs]


def test_averages_are_those_of_a_wide_gaussian_matrix():
    """Means over 200 seeds within 4 of their standard errors; so is the variance where only the probe a fluctuates."""
    samples, seeds = 512, 200
    infinite = np.array([back_and_forth(dense(samples, seed), seed, samples) for seed in range(seeds)])
    finite = np.array([back_and_forth(Matrix(seed, samples), seed + seeds, samples) for seed in range(seeds)])
    error = np.sqrt((infinite.var(0, ddof=1) + finite.var(0, ddof=1)) / seeds)
    sigmas = np.abs(infinite.mean(0) - finite.mean(0)) / error
    assert sigmas.max() < 4, sigmas
    ratio = np.log(infinite[:, 1].var(ddof=1) / finite[:, 1].var(ddof=1))
    assert abs(ratio) < 4 * math.sqrt(4 / seeds)  # log of a sample variance: standard error sqrt(2 / seeds)
    assert np.abs(infinite.mean(0)[3:]).min() > 20 * error[3:].max()  # responses are what is compared


def test_a_basis_stays_orthonormal():
    for dtype, accuracy, tolerance in ((F32, 1e-5, 1e-2), (F64, 1e-12, 1e-6)):
        basis = Basis(1000, tolerance, torch.empty(0, dtype=dtype))
        for seed in range(40):
            old = basis.fields.rows[:5]
            basis.reveal(0.05 * fields(5, seed, 1000, dtype) + old.sum(0))  # nearly parallel, nearly known
        assert len(basis) >= 150
        e = basis.fields.rows.double()
        assert float((dot(e, e) - torch.eye(len(e))).abs().max()) < accuracy


@pytest.mark.parametrize(("dtype", "orthonormal_to"), [(F32, 1e-4), (F64, 1e-9)])
def test_fields_that_drift_slowly_leave_all_bases_orthonormal(dtype, orthonormal_to):
    """Each call sticks out by little more than the tolerance, so rounding of older directions is magnified by 1 / tolerance each time"""
    w, start, move = dense(2000, tolerance=1e-2, dtype=dtype), fields(4, 1, 2000), fields(4, 2, 2000)
    for k in range(40):
        v = start + 0.03 * k * move + 0.02 * fields(4, 10 + k, 2000)
        h = w.forward(v.to(dtype))[0]
        w.backward(h.tanh())
    assert len(w.e) > 80
    for rows in (w.e.fields.rows, w.f.fields.rows, w.known_below[0].fields.rows, w.known_above[0].fields.rows):
        off = dot(rows.double(), rows.double()) - torch.eye(len(rows), dtype=F64)
        assert float(off.abs().max()) < orthonormal_to


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-2), (F32, 0.1), (F64, 1e-3), (F64, 1e-6), (F64, 1e-10)])
def test_a_basis_drops_at_most_the_tolerance(dtype, tolerance):
    """What is dropped has a root mean square of at most `tolerance` times that of the fields of the call; more is kept."""
    big, small = fields(1, 1, dtype=dtype), fields(1, 2, dtype=dtype)
    for size, revealed in ((0.3 * tolerance, 1), (3 * tolerance, 2)):
        basis = Basis(S, tolerance, torch.empty(0, dtype=dtype))
        basis.reveal(big)
        v = torch.cat([big, big + size * small])
        c, _ = basis.reveal(v)
        assert len(basis) == revealed, size
        dropped = (v - c.T @ basis.fields.rows).square().mean(1).sqrt()
        assert float(dropped.norm()) <= tolerance * float(v.square().mean(1).sqrt().norm())


def test_a_basis_may_drop_many_small_parts_only_together():
    """Forty independent parts, each below the tolerance, are above it together: some are kept, just enough."""
    basis, common = Basis(S, 0.1, torch.empty(0, dtype=F64)), fields(1, 1)
    basis.reveal(common)
    v = common + 0.12 * orthonormal(fields(40, 2), basis.fields.rows)
    c, new = basis.reveal(v)
    assert new is not None
    dropped = (v - c.T @ basis.fields.rows).square().mean() / v.square().mean()
    assert dropped.sqrt() <= 0.1
    one_more = dropped + 0.12**2 / v.square().mean() / 40
    assert one_more.sqrt() > 0.1


def test_reveal_returns_coefficients_and_the_new_rows_only():
    basis, v = Basis(S, 1e-6, torch.empty(0, dtype=F64)), fields(3)
    c, new = basis.reveal(v)
    torch.testing.assert_close(c.T @ new, v, **EXACT)
    c, new = basis.reveal(2 * v[:1])
    assert new is None
    torch.testing.assert_close(c.T @ basis.fields.rows, 2 * v[:1], **EXACT)
    c, new = basis.reveal(torch.cat([v[:1], fields(1, 9)]))
    assert new.shape == (1, S)
    assert c.shape == (4, 2)
    assert basis.reveal(torch.zeros(2, S, dtype=F64))[1] is None


def test_more_directions_than_samples_name_both_remedies():
    basis = Basis(10, 1e-6, torch.empty(0, dtype=F64), limit=9)
    basis.reveal(fields(6, 1, 10))
    with pytest.raises(
        RankError, match=r"10 directions or more, where max_rank.* admits 9: take a larger max_rank, a larger tol"
    ):
        basis.reveal(fields(6, 2, 10))
    w = dense(samples=10)
    w.forward(fields(4, 1, 10))
    with pytest.raises(
        RankError, match=r"12 directions or more, .* 10 neurons.*: take samples=20 or more.* a larger tol"
    ) as caught:
        w.backward(fields(8, 2, 10))
    assert (caught.value.needed, caught.value.neurons) == (12, 10)
    assert issubclass(RankError, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as executors do


def test_as_many_directions_as_neurons_represent_any_field():
    basis, v = Basis(10, 1e-6, torch.empty(0, dtype=F64)), fields(14, 1, 10)
    c, new = basis.reveal(v)
    torch.testing.assert_close(c.T @ new, v, **EXACT)
    assert len(basis) == 10
    assert basis.reveal(fields(6, 2, 10))[1] is None


@pytest.mark.parametrize("neurons", [1, 3, 32])
def test_enough_samples_are_the_fewest_doublings_that_hold_the_directions(neurons):
    """An axis of neurons, which is samples / 8 here"""
    for directions in range(200):
        asked = enough(8 * neurons, neurons, directions)
        assert asked // 8 > directions
        assert asked == 8 * neurons or asked // 16 <= directions


def test_rows_grow_and_keep_their_contents():
    rows, blocks = Rows(3, torch.empty(0, dtype=F32)), [fields(n, n, 3, F32) for n in (1, 70, 2, 200)]
    assert rows.rows.shape == (0, 3)
    for i, block in enumerate(blocks):
        rows.append(block)
        assert torch.equal(rows.rows, torch.cat(blocks[: i + 1]))
        assert len(rows) == len(rows.rows)
    rows.rows[0] = 1.0  # a view: the learned part is added in place
    assert float(rows.rows[0].sum()) == 3


def test_exact_neurons_have_no_sampling_error():
    neurons = exact_neurons(64, F64, "cpu")
    e = torch.cat([neurons.fresh(3), neurons.fresh(61)])
    assert torch.equal(dot(e, e), torch.eye(64, dtype=F64))
    with pytest.raises(RankError, match=r"65 directions or more, .* the 64 neurons .*: take samples=128"):
        neurons.fresh(1)


def test_sobol_neurons_are_stratified_in_every_coordinate():
    """One neuron in each of S intervals of equal mass"""
    samples = 1024
    x = sobol_neurons(samples, 3, F64, "cpu").fresh(100)
    strata = (torch.special.ndtr(x) * samples).floor().long().sort(1).values
    assert torch.equal(strata, torch.arange(samples).expand(100, -1))


@pytest.mark.parametrize("draws", [plain_neurons, sobol_neurons])
@pytest.mark.parametrize("samples", [2048, 8192])
def test_no_two_coordinates_of_neurons_correlate_beyond_chance(draws, samples):
    """Uniform coordinates and their squares, within a block of 32, across blocks and across layers: the largest of n pairs is one that n
    normal values pass once in 10^4. Across blocks and layers they are as large as those of independent neurons, neither more nor less.
    """
    u = torch.special.ndtr(torch.cat([draws(samples, seed, F64, "cpu").fresh(160) for seed in (3, 4)]))
    uniform = torch.cat([math.sqrt(3) * (2 * u - 1), math.sqrt(5) * (6 * u * (u - 1) + 1)])  # Legendre, unit variance
    z = (uniform @ uniform.T / math.sqrt(samples)).fill_diagonal_(0)
    assert float(z.abs().max()) < stats.norm.isf(1e-4 / (len(z) * (len(z) - 1)))
    block = torch.arange(len(u)).repeat(2) // 32
    apart = z[block[:, None] < block]
    assert float(apart.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / len(apart)))


def test_sobol_draws_do_not_depend_on_how_they_are_asked_for():
    whole, parts = (sobol_neurons(64, 5, F64, "cpu") for _ in range(2))
    assert torch.equal(whole.fresh(200), torch.cat([parts.fresh(n) for n in (3, 5, 100, 92)]))
    assert whole.used == parts.used == 200
    single = sobol_neurons(64, 5, F32, "cpu").fresh(200)
    assert single.dtype == F32
    assert torch.equal(single, sobol_neurons(64, 5, F64, "cpu").fresh(200).float())
    assert not torch.equal(single, sobol_neurons(64, 6, F32, "cpu").fresh(200))


def test_fresh_draws_are_orthogonal_to_what_is_known():
    for draws in (plain_neurons, sobol_neurons):
        known, learnt = Known(draws(S, 1, F64, "cpu"), torch.empty(0, dtype=F64)), []
        for seed in range(3):
            learnt.append(orthonormal(fields(5, seed) + sum(learnt, torch.zeros(5, S)), torch.empty(0, S, dtype=F64)))
            known.learn(learnt[-1])
            e = known.fresh(7)
            torch.testing.assert_close(dot(e, e), torch.eye(7, dtype=F64), **EXACT)
            torch.testing.assert_close(dot(e, torch.cat(learnt)), torch.zeros(7, 5 * len(learnt), dtype=F64), **EXACT)
            learnt.append(e[:5])
